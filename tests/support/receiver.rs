//! A server that receives webhooks.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use posduif::http::secure::Acceptor;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::either::Either;

use super::eventually;

/// A key for signatures.
pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";

/// A request that a receiver got.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Bytes,
}

impl Delivery {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What a receiver answers with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reply {
    Status(u16),
    /// 429, and the seconds of `Retry-After`.
    Later(u64),
    Redirect,
    Silence,
}

/// A server that receives the webhook.
#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) address: String,
    pub(crate) deliveries: Arc<Mutex<Vec<Delivery>>>,
}

impl Receiver {
    /// One that answers so, and then by 204.
    pub(crate) async fn start(replies: &[Reply]) -> Self {
        Self::start_with(replies, None).await
    }

    /// The same, over HTTPS if it has a certificate.
    pub(crate) async fn start_with(replies: &[Reply], acceptor: Option<Acceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let deliveries: Arc<Mutex<Vec<Delivery>>> = Arc::default();
        let replies = Arc::new(Mutex::new(VecDeque::from(replies.to_vec())));
        let (shared, here) = (deliveries.clone(), address.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let stream = match &acceptor {
                    None => Either::Left(stream),
                    Some(acceptor) => match acceptor.accept(stream).await {
                        Ok(stream) => Either::Right(stream),
                        // The client does not like the certificate.
                        Err(_) => continue,
                    },
                };
                let (deliveries, replies, here) = (shared.clone(), replies.clone(), here.clone());
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (deliveries, replies, here) = (deliveries.clone(), replies.clone(), here.clone());
                    async move {
                        assert_eq!(request.uri().path(), "/hook", "a redirect was followed");
                        let headers = request.headers().iter();
                        let headers =
                            headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
                        let headers = headers.collect();
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        deliveries.lock().unwrap().push(Delivery { headers, body });
                        let reply = replies.lock().unwrap().pop_front().unwrap_or(Reply::Status(204));
                        let response = Response::builder();
                        let response = match reply {
                            Reply::Status(status) => response.status(status),
                            Reply::Later(seconds) => response.status(429).header("retry-after", seconds),
                            Reply::Redirect => response.status(302).header("location", format!("http://{here}/else")),
                            Reply::Silence => std::future::pending().await,
                        };
                        Ok::<_, Infallible>(response.body(Full::new(Bytes::new())).unwrap())
                    }
                });
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        Self { address, deliveries }
    }

    /// Waits for this many deliveries.
    pub(crate) async fn received(&self, count: usize) -> Vec<Delivery> {
        eventually(&format!("the webhook received {count} requests"), || async {
            let deliveries = self.deliveries.lock().unwrap().clone();
            (deliveries.len() >= count).then_some(deliveries)
        })
        .await
    }
}
