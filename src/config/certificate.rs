//! Certificates.

use std::path::PathBuf;

/// Two PEM files: a certificate, followed by its intermediate certificates, and its private key without a passphrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}
