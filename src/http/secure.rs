//! HTTPS: the server's certificate, reloaded when its files change, so that a renewal needs no restart.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::CertificateFiles;
use crate::net::tls::{self, provider};

/// Interval of checking the files.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Accepts TLS connections. Clones share the certificate.
#[derive(Clone)]
pub struct Acceptor {
    acceptor: TlsAcceptor,
    certificate: Arc<Certificate>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// The certificate in use.
#[derive(Debug)]
struct Certificate {
    files: CertificateFiles,
    current: ArcSwap<CertifiedKey>,
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl Acceptor {
    /// Reads the files of the certificate and its key.
    pub fn new(files: CertificateFiles) -> Result<Self> {
        let certificate = Arc::new(Certificate {
            current: ArcSwap::from_pointee(read(&files)?),
            files,
        });
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .context("TLS versions")?
            .with_no_client_auth()
            .with_cert_resolver(certificate.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            certificate,
        })
    }

    /// Performs the handshake, without a timeout.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }

    /// Reloads the certificate whenever its files change; never returns. Invalid files leave the old one in use.
    pub async fn reload_on_change(self) {
        let Certificate { files, current } = &*self.certificate;
        let mut seen = stamps(files);
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            let now = stamps(files);
            if now == seen {
                continue;
            }
            match read(files) {
                Ok(key) => {
                    current.store(Arc::new(key));
                    seen = now;
                    tracing::info!(file = %files.certificate.display(), "certificate reloaded");
                }
                // One file may be replaced before the other: retry.
                Err(error) => tracing::warn!("cannot reload the certificate, the old one stays in use: {error:#}"),
            }
        }
    }
}

fn read(files: &CertificateFiles) -> Result<CertifiedKey> {
    let (certificates, key) = tls::read_pair(files)?;
    CertifiedKey::from_der(certificates, key, &provider()).with_context(|| tls::mismatch(files))
}

/// Modification time and length of both files.
fn stamps(files: &CertificateFiles) -> [Option<(SystemTime, u64)>; 2] {
    [&files.certificate, &files.key].map(|file| {
        let metadata = std::fs::metadata(file).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}
