//! HTTPS: the server's certificate, taken anew from its files when they change, so that a renewal needs no restart.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::CertificateFiles;
use crate::net::tls::{self, provider};

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Accepts encrypted connections. Cloning shares the certificate.
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

/// The certificate in force.
#[derive(Debug)]
struct Certificate {
    files: CertificateFiles,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Acceptor {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file that cannot be read or holds something else.
    pub fn new(files: CertificateFiles) -> Result<Self> {
        let certificate = Arc::new(Certificate {
            current: RwLock::new(Arc::new(read(&files)?)),
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

    /// Shakes hands. There is no timeout here.
    ///
    /// # Errors
    /// When the client breaks off, or speaks no TLS.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }

    /// Takes the certificate anew whenever its files change, for ever. Files that do not fit leave the old one in force.
    pub async fn follow_files(self) {
        let Certificate { files, current } = &*self.certificate;
        let mut seen = stamps(files);
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let now = stamps(files);
            if now == seen {
                continue;
            }
            match read(files) {
                Ok(key) => {
                    *current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
                    seen = now;
                    tracing::info!(file = %files.certificate.display(), "the certificate was taken anew");
                }
                // Perhaps one file is there already and the other is not: look again.
                Err(error) => tracing::warn!("the certificate stays the old one: {error:#}"),
            }
        }
    }
}

fn read(files: &CertificateFiles) -> Result<CertifiedKey> {
    let (certificates, key) = tls::read_pair(files)?;
    CertifiedKey::from_der(certificates, key, &provider()).with_context(|| tls::mismatch(files))
}

/// What tells that a file is another one.
fn stamps(files: &CertificateFiles) -> [Option<(SystemTime, u64)>; 2] {
    [&files.certificate, &files.key].map(|file| {
        let metadata = std::fs::metadata(file).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}
