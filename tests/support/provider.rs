//! A provider of identities: an HTTP server with keys of its own, which counts requests and can misbehave.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{Duration, Utc};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use parking_lot::Mutex;
use posduif::config;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use rsa::pkcs1::EncodeRsaPrivateKey as _;
use rsa::traits::PublicKeyParts as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::http::Api;

/// The audience of tokens for the engine under test.
pub(crate) const AUDIENCE: &str = "posduif";

/// A key that signs tokens.
#[derive(Clone)]
pub(crate) struct SigningKey {
    pub(crate) kid: String,
    algorithm: Algorithm,
    encoding: EncodingKey,
    pub(crate) jwk: Value,
}

impl SigningKey {
    pub(crate) fn new(kid: &str, algorithm: Algorithm) -> Self {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (encoding, mut jwk) = match algorithm {
            Algorithm::ES256 | Algorithm::ES384 => {
                let (generator, curve) = match algorithm {
                    Algorithm::ES256 => (&PKCS_ECDSA_P256_SHA256, "P-256"),
                    _ => (&PKCS_ECDSA_P384_SHA384, "P-384"),
                };
                let pair = KeyPair::generate_for(generator).unwrap();
                let (x, y) = pair.public_key_raw()[1..].split_at((pair.public_key_raw().len() - 1) / 2);
                let jwk = json!({"kty": "EC", "crv": curve, "x": text(x), "y": text(y)});
                (EncodingKey::from_ec_der(&pair.serialize_der()), jwk)
            }
            Algorithm::EdDSA => {
                let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
                let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": text(pair.public_key_raw())});
                (EncodingKey::from_ed_der(&pair.serialize_der()), jwk)
            }
            _ => {
                let private = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
                let [n, e] = [private.n(), private.e()].map(|number| text(&number.to_bytes_be()));
                let der = private.to_pkcs1_der().unwrap();
                (
                    EncodingKey::from_rsa_der(der.as_bytes()),
                    json!({"kty": "RSA", "n": n, "e": e}),
                )
            }
        };
        jwk["kid"] = kid.into();
        Self {
            kid: kid.to_owned(),
            algorithm,
            encoding,
            jwk,
        }
    }

    fn header(&self) -> Header {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.kid.clone());
        header
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        encode(&self.header(), claims, &self.encoding).unwrap()
    }

    /// A token with this header, signed with the key.
    pub(crate) fn sign_with(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &self.encoding, self.algorithm).unwrap();
        format!("{signed}.{signature}")
    }
}

/// How the provider responds.
#[derive(Clone)]
pub(crate) enum Reply {
    Keys(Value),
    Body(String),
    Status(u16),
    /// Only after [`Provider::release`].
    Late(Value),
}

/// A running provider.
pub(crate) struct Provider {
    pub(crate) issuer: String,
    address: String,
    reply: Arc<Mutex<Reply>>,
    requests: Arc<AtomicUsize>,
    /// Seconds by which its clock is ahead.
    clock: Arc<AtomicI64>,
    late: Arc<Notify>,
    _serving: AbortOnDropHandle<()>,
}

impl Provider {
    /// A provider with these keys.
    pub(crate) async fn start(keys: &[&SigningKey]) -> Self {
        Self::replying(Reply::Keys(jwks(keys))).await
    }

    pub(crate) async fn replying(reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (reply, requests, late) = (Arc::new(Mutex::new(reply)), Arc::default(), Arc::new(Notify::new()));
        let clock: Arc<AtomicI64> = Arc::default();
        let serving = {
            let (reply, requests, late) = (reply.clone(), Arc::clone(&requests), late.clone());
            let clock = clock.clone();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (reply, requests, late) = (reply.clone(), Arc::clone(&requests), late.clone());
                    let ahead = clock.load(Ordering::SeqCst);
                    tokio::spawn(async move { serve(stream, &reply, &requests, ahead, &late).await.ok() });
                }
            })
        };
        Self {
            clock,
            issuer: format!("https://{address}/"),
            address,
            reply,
            requests,
            late,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    /// The settings of an engine that accepts its tokens for the tenant `acme`.
    pub(crate) fn settings(&self) -> config::Provider {
        config::Provider {
            issuer: self.issuer.clone(),
            audience: AUDIENCE.into(),
            jwks: format!("http://{}/keys", self.address),
            tenant: "acme".into(),
            provision: true,
            ..config::Provider::default()
        }
    }

    pub(crate) fn reply(&self, reply: Reply) {
        *self.reply.lock() = reply;
    }

    pub(crate) fn rotate(&self, keys: &[&SigningKey]) {
        self.reply(Reply::Keys(jwks(keys)));
    }

    /// Sends the late responses.
    pub(crate) fn release(&self) {
        self.late.notify_waiters();
    }

    /// Sets its clock so many seconds ahead.
    pub(crate) fn set_clock(&self, ahead: i64) {
        self.clock.store(ahead, Ordering::SeqCst);
    }

    /// Received requests.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Claims of a token that is valid for an hour.
    pub(crate) fn claims(&self, subject: &str) -> Value {
        let now = Utc::now().timestamp();
        json!({"iss": self.issuer, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + 3600})
    }
}

/// Claims with changes; null removes one.
pub(crate) fn with(mut claims: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

pub(crate) fn jwks(keys: &[&SigningKey]) -> Value {
    json!({"keys": keys.iter().map(|key| &key.jwk).collect::<Vec<_>>()})
}

async fn serve(
    mut stream: TcpStream,
    reply: &Mutex<Reply>,
    requests: &AtomicUsize,
    ahead: i64,
    late: &Notify,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let reply = reply.lock().clone();
    let released = late.notified();
    tokio::pin!(released);
    released.as_mut().enable();
    requests.fetch_add(1, Ordering::SeqCst);
    let (status, body) = match reply {
        Reply::Keys(keys) => (200, keys.to_string()),
        Reply::Body(body) => (200, body),
        Reply::Status(status) => (status, String::new()),
        Reply::Late(keys) => {
            released.await;
            (200, keys.to_string())
        }
    };
    let date = (Utc::now() + Duration::seconds(ahead)).format("%a, %d %b %Y %H:%M:%S GMT");
    let response = format!(
        "HTTP/1.1 {status} X\r\ndate: {date}\r\ncontent-length: {}\r\nlocation: /elsewhere\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

impl Api {
    /// The same client with this access token.
    pub(crate) fn bearing(&self, token: &str) -> Self {
        self.with("authorization", &format!("Bearer {token}"))
    }
}
