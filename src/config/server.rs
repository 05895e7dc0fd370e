use std::path::PathBuf;

use anyhow::{Result, bail};

use super::certificate::CertificateFiles;
use super::network::Network;
use super::section::{GIB, KIB, MIB, section};
use super::url::{self, HttpUrl};

section! {
    /// The HTTP server.
    pub struct Server {
        /// Address to listen on.
        pub host: String = "127.0.0.1".into();
        /// TCP port; 0 selects any free port.
        pub port: u16 = 8080;
        /// Base URL under which clients reach this server; empty means `http://<host>:<port>`.
        pub public_url: String = String::new();
        /// URL to which `/` redirects; empty means a page that says what this server is.
        pub home_url: String = String::new();
        /// Tenant of a login that does not name one; empty means that each login must name its tenant.
        pub default_tenant: String = String::new();
        /// Maximum duration of a request in seconds, event streams excepted.
        pub request_timeout_seconds: u64 = 30, 1..=600;
        /// Maximum time in seconds in which a client must send its request head.
        pub header_timeout_seconds: u64 = 10, 1..=120;
        /// Maximum time in seconds without progress in writing a response to a client that does not read it.
        pub write_timeout_seconds: u64 = 30, 1..=600;
        /// Maximum size of a request body in bytes, uploads excepted.
        pub body_bytes_max: usize = 1024 * 1024, KIB..=64 * MIB;
        /// Maximum number of bytes of request bodies in memory at once, at least the largest; requests beyond it get 503.
        pub body_memory_bytes_max: usize = 256 * 1024 * 1024, MIB..=64 * GIB;
        /// Maximum number of connections at once.
        pub connections_max: usize = 19_000, 1..=1_000_000;
        /// Maximum number of connections at once from one address (IPv6: one /64), trusted proxies excepted; more are
        /// closed at once.
        pub connections_per_address_max: usize = 2000, 1..=1_000_000;
        /// Maximum number of connections that wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
        pub backlog: u32 = 4096, 16..=65_535;
        /// Seconds that a shutdown waits for requests in progress.
        pub shutdown_grace_seconds: u64 = 10, 0..=300;
        /// File (PEM) with the server's certificate and its intermediate certificates; empty means plain HTTP.
        pub tls_cert_file: String = String::new();
        /// File (PEM) with the private key of `tls_cert_file`.
        pub tls_key_file: String = String::new();
        /// Origins whose pages may call the API, for example `https://app.example.com`, or `*` for all; empty allows
        /// none.
        pub cors_origins: Vec<String> = Vec::new();
        /// Proxies whose `X-Forwarded-For` and `traceparent` are trusted: addresses or networks such as `10.0.0.0/8` or
        /// `::1`.
        pub trusted_proxies: Vec<Network> = Vec::new();
    }
}

impl Server {
    /// The files of the certificate to serve with, if any.
    pub fn certificate_files(&self) -> Option<CertificateFiles> {
        self.is_secure().then(|| CertificateFiles {
            certificate: PathBuf::from(&self.tls_cert_file),
            key: PathBuf::from(&self.tls_key_file),
        })
    }

    /// The scheme of its URLs.
    pub fn scheme(&self) -> &'static str {
        if self.is_secure() { "https" } else { "http" }
    }

    /// Whether the server speaks HTTPS.
    pub fn is_secure(&self) -> bool {
        !self.tls_cert_file.is_empty()
    }

    pub(super) fn check(&self) -> Result<()> {
        if !self.default_tenant.is_empty() && !crate::core::tenant::is_valid_name(&self.default_tenant) {
            bail!(
                "key `server.default_tenant` is \"{}\": allowed are a letter and up to 47 of a-z, 0-9 and _",
                self.default_tenant
            );
        }
        if self.tls_cert_file.is_empty() != self.tls_key_file.is_empty() {
            bail!("keys `server.tls_cert_file` and `server.tls_key_file`: set both or neither");
        }
        if !self.public_url.is_empty() && !url::is_base(&self.public_url) {
            bail!(
                "key `server.public_url` is {:?}: must be a URL such as https://app.example.com, or empty",
                self.public_url
            );
        }
        if !self.home_url.is_empty() && self.home_url.parse::<HttpUrl>().is_err() {
            bail!(
                "key `server.home_url` is {:?}: must be a URL such as https://app.example.com/start, or empty",
                self.home_url
            );
        }
        if let Some(origin) = self.cors_origins.iter().find(|origin| !url::is_origin(origin)) {
            bail!(
                "key `server.cors_origins` has {origin:?}: allowed are * and origins such as https://app.example.com, \
                 without a path or a slash at the end"
            );
        }
        Ok(())
    }
}
