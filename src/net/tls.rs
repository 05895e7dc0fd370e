//! TLS by rustls: the client side, and what the server shares with it.
//!
//! A [`Connector`] holds what the server must prove and the client's certificate. Its [`Stream`] needs no explicit flush:
//! bytes that the socket did not accept at once are sent by the next read.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context, Result, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;

use crate::config::CertificateFiles;

/// What a server must prove before anything is sent to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Nothing: the connection is encrypted, but not authenticated.
    Anybody,
    /// That one of these authorities issued its certificate, for any name.
    Chain(Roots),
    /// That one of these authorities issued its certificate for the name of the connection.
    ChainAndName(Roots),
}

/// Certificate authorities of servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// Those of the operating system.
    System,
    /// Those in a PEM file.
    File(PathBuf),
}

/// Reads a certificate and its key.
///
/// # Errors
/// Names the file that cannot be read or has another content.
pub fn read_pair(files: &CertificateFiles) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let key = PrivateKeyDer::from_pem_file(&files.key).with_context(|| {
        format!(
            "{}: no private key in PEM form without a passphrase",
            files.key.display()
        )
    })?;
    Ok((read_certificates(&files.certificate)?, key))
}

/// The error for a certificate and a key that do not belong together.
pub fn mismatch(files: &CertificateFiles) -> String {
    format!(
        "the certificate {} and the key {} do not make a pair",
        files.certificate.display(),
        files.key.display()
    )
}

/// Opens encrypted connections. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
    checks_name: bool,
}

impl Connector {
    /// Reads the files. `client` is the client's certificate, `protocol` the name of the protocol (ALPN), if any.
    ///
    /// # Errors
    /// Names the file that cannot be read or has another content.
    pub fn new(trust: &Trust, client: Option<&CertificateFiles>, protocol: Option<&[u8]>) -> Result<Self> {
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .context("TLS versions")?;
        let builder = match trust {
            Trust::ChainAndName(roots) => builder.with_root_certificates(read_roots(roots)?),
            Trust::Chain(roots) => {
                let roots = Some(read_roots(roots)?);
                let verifier = Arc::new(NameBlind { roots, provider });
                builder.dangerous().with_custom_certificate_verifier(verifier)
            }
            Trust::Anybody => {
                let verifier = Arc::new(NameBlind { roots: None, provider });
                builder.dangerous().with_custom_certificate_verifier(verifier)
            }
        };
        let mut config = match client {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let (certificates, key) = read_pair(files)?;
                builder
                    .with_client_auth_cert(certificates, key)
                    .with_context(|| mismatch(files))?
            }
        };
        config.alpn_protocols.extend(protocol.map(<[u8]>::to_vec));
        Ok(Self {
            config: Arc::new(config),
            checks_name: matches!(trust, Trust::ChainAndName(_)),
        })
    }

    /// Performs the handshake. It has no timeout of its own.
    ///
    /// # Errors
    /// When the server does not prove what it must, or does not speak TLS; the error names the host.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(&self, host: &str, stream: S) -> io::Result<Stream<S>> {
        let name = match ServerName::try_from(host.to_owned()) {
            Ok(name) => name,
            // An unchecked name may be anything; an address is not sent to the server.
            Err(_) if !self.checks_name => ServerName::from(std::net::IpAddr::from([0, 0, 0, 0])),
            Err(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("TLS: {host:?} is not a host name that a certificate can have"),
                ));
            }
        };
        let connecting = TlsConnector::from(self.config.clone()).connect(name, stream);
        match connecting.await {
            Ok(inner) => Ok(Stream { inner, unsent: false }),
            Err(error) => Err(io::Error::new(
                error.kind(),
                format!("TLS handshake with {host} failed: {error}{}", remedy(&error)),
            )),
        }
    }
}

/// The cryptography provider of rustls.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The remedy for a failed handshake, appended to the error.
fn remedy(error: &io::Error) -> &'static str {
    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) else {
        return "";
    };
    match cause {
        rustls::Error::InvalidCertificate(cause) => match cause {
            CertificateError::UnknownIssuer => {
                "; configure a file with the authority that issued it (Postgres: `sslrootcert` in the URL, Redis: \
                 `redis.ca_file`)"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "; connect by a name in its subjectAltName (for Postgres, verify-ca does not check names)"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "; renew it, or correct the clock",
            CertificateError::Other(_) => {
                "; a certificate authority (CA:TRUE) cannot be used as a server certificate: issue one with CA:FALSE"
            }
            _ => "",
        },
        rustls::Error::InvalidMessage(_) => "; is it a TLS port?",
        rustls::Error::AlertReceived(_) => "; the server's log has the reason, often a missing client certificate",
        _ => "",
    }
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot read certificates from {}", file.display()))?;
    if certificates.is_empty() {
        bail!("{} contains no certificate in PEM form", file.display());
    }
    Ok(certificates)
}

fn read_roots(roots: &Roots) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::File(file) => {
            for certificate in read_certificates(file)? {
                store
                    .add(certificate)
                    .with_context(|| format!("{} contains an invalid certificate", file.display()))?;
            }
        }
        Roots::System => {
            let found = rustls_native_certs::load_native_certs();
            // The list of a system may contain certificates that are no longer parsable.
            let (added, _) = store.add_parsable_certificates(found.certs);
            if added == 0 {
                bail!(
                    "the system has no certificate authorities: install them (Debian, Ubuntu: apt-get install \
                     ca-certificates), set SSL_CERT_FILE, or configure a file with the server's authority"
                );
            }
        }
    }
    Ok(store)
}

/// Accepts a server under any name, if an authority issued its certificate (or, without authorities, any certificate). That
/// the server holds the key of its certificate is always verified.
#[derive(Debug)]
struct NameBlind {
    roots: Option<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl NameBlind {
    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.provider.signature_verification_algorithms
    }
}

impl ServerCertVerifier for NameBlind {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(certificate)?,
                roots,
                intermediates,
                now,
                self.algorithms().all,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, self.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, self.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
}

/// An encrypted stream.
#[derive(Debug)]
pub struct Stream<S> {
    inner: tokio_rustls::client::TlsStream<S>,
    /// Whether encrypted bytes may wait for the socket.
    unsent: bool,
}

impl<S> Stream<S> {
    /// The channel binding `tls-server-end-point` (RFC 5929) for a login; `None` if the signature of the server's certificate
    /// has no defined hash.
    pub fn server_end_point(&self) -> Option<Vec<u8>> {
        let (_, session) = self.inner.get_ref();
        end_point(session.peer_certificates()?.first()?)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // A caller that waits for a response must have sent its request.
        if self.unsent && Pin::new(&mut self.inner).poll_flush(cx)?.is_ready() {
            self.unsent = false;
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.unsent = true;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// The channel binding of a certificate: its digest by the hash of its signature, SHA-256 if that is weaker.
pub fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(match signature_hash(certificate)? {
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// The hash of a certificate's signature. A certificate is SEQUENCE { contents, algorithm, signature }, the algorithm
/// SEQUENCE { identifier, parameters }.
fn signature_hash(certificate: &[u8]) -> Option<Hash> {
    const SEQUENCE: u8 = 0x30;
    const IDENTIFIER: u8 = 0x06;
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
    let (body, _) = der_item(certificate, SEQUENCE)?;
    let (_, rest) = der_item(body, SEQUENCE)?;
    let (algorithm, _) = der_item(rest, SEQUENCE)?;
    let (identifier, parameters) = der_item(algorithm, IDENTIFIER)?;
    if let Some(kind) = identifier.strip_prefix(RSA) {
        return match kind {
            // RFC 5929 replaces MD5 and SHA-1 by SHA-256.
            [4 | 5 | 11] => Some(Hash::Sha256),
            [12] => Some(Hash::Sha384),
            [13] => Some(Hash::Sha512),
            // PSS: SEQUENCE { [0] SEQUENCE { hash }, ... }; without the field it is SHA-1.
            [10] => {
                const NIST: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];
                let (fields, _) = der_item(parameters, SEQUENCE)?;
                let Some((tagged, _)) = der_item(fields, 0xa0) else {
                    return Some(Hash::Sha256);
                };
                let (hash, _) = der_item(tagged, SEQUENCE)?;
                let (hash, _) = der_item(hash, IDENTIFIER)?;
                match hash.strip_prefix(NIST) {
                    Some([1]) => Some(Hash::Sha256),
                    Some([2]) => Some(Hash::Sha384),
                    Some([3]) => Some(Hash::Sha512),
                    _ => None,
                }
            }
            _ => None,
        };
    }
    match identifier.strip_prefix(ECDSA)? {
        // With SHA-1; with SHA-256, 384, 512.
        [1] | [3, 2] => Some(Hash::Sha256),
        [3, 3] => Some(Hash::Sha384),
        [3, 4] => Some(Hash::Sha512),
        _ => None,
    }
}

/// The contents of a DER item with this tag, and what follows it.
fn der_item(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // One to four bytes of length; certificates are not larger.
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = length
                .iter()
                .fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
            (length, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::ServerConfig;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// A server that reads `count` bytes and responds with one.
    async fn respond_after<S: AsyncRead + AsyncWrite + Unpin>(stream: S, count: usize) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).await.unwrap();
        stream.write_all(b"!").await.unwrap();
        stream.flush().await.unwrap();
    }

    #[tokio::test]
    async fn unsent_bytes_are_sent_while_the_response_is_awaited() {
        const COUNT: usize = 10_000;
        // A socket whose buffer is smaller than one record.
        let (ours, theirs) = tokio::io::duplex(512);
        let server = tokio::spawn(respond_after(theirs, COUNT));
        let connector = Connector::new(&Trust::Anybody, None, None).unwrap();
        let mut stream = connector.connect("server", ours).await.unwrap();
        // All bytes are accepted at once, without a flush.
        assert_eq!(stream.write(&[7; COUNT]).await.unwrap(), COUNT);
        let response = tokio::time::timeout(std::time::Duration::from_secs(20), stream.read_u8()).await;
        assert_eq!(response.unwrap().unwrap(), b'!');
        server.await.unwrap();
    }

    /// The outline of a certificate with this signature algorithm.
    fn outline(algorithm: &[u8]) -> Vec<u8> {
        let mut body = vec![0x30, 0x81, 0x80];
        body.extend([0; 0x80]);
        body.extend([0x30, algorithm.len() as u8]);
        body.extend(algorithm);
        body.extend([0x03, 0x01, 0x00]);
        let mut certificate = vec![0x30, 0x82, (body.len() >> 8) as u8, body.len() as u8];
        certificate.extend(body);
        certificate
    }

    #[test]
    fn signature_algorithm_determines_the_hash() {
        let rsa = |kind: u8| vec![6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, kind, 5, 0];
        let ecdsa = |kind: u8| vec![6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, kind];
        let pss = |hash: u8| {
            let mut bytes = rsa(10)[..11].to_vec();
            bytes.extend([
                0x30, 15, 0xa0, 13, 0x30, 11, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, hash,
            ]);
            bytes
        };
        let ed25519 = vec![6, 3, 0x2b, 0x65, 0x70];
        for (algorithm, hash) in [
            (rsa(5), Some(Hash::Sha256)),
            (rsa(11), Some(Hash::Sha256)),
            (rsa(12), Some(Hash::Sha384)),
            (rsa(13), Some(Hash::Sha512)),
            (rsa(99), None),
            (ecdsa(2), Some(Hash::Sha256)),
            (ecdsa(3), Some(Hash::Sha384)),
            (ecdsa(4), Some(Hash::Sha512)),
            (pss(1), Some(Hash::Sha256)),
            (pss(3), Some(Hash::Sha512)),
            (ed25519, None),
        ] {
            let certificate = outline(&algorithm);
            assert_eq!(signature_hash(&certificate), hash, "{algorithm:02x?}");
            // A certificate truncated before the signature is invalid.
            for end in 0..certificate.len() - 3 {
                assert_eq!(signature_hash(&certificate[..end]), None);
            }
        }
    }
}
