use std::borrow::Cow;

use anyhow::{Result, bail};

use super::certificate::CertificateFiles;
use super::cluster::Cluster;
use super::secret::Secret;
use super::section::section;
use crate::core::lane::MAIN;

section! {
    /// Redis, which stores the streams.
    pub struct Redis {
        /// Connection URL: `redis://user:password@host:port/database`, `rediss://` for TLS, `unix:///path` for a socket.
        pub url: Secret = Secret::new("redis://127.0.0.1:6379/0");
        /// File (PEM) with the certificate authority of a `rediss://` server; empty means those of the system.
        pub ca_file: String = String::new();
        /// File (PEM) with the client certificate for a `rediss://` server that requires one; empty means none.
        pub cert_file: String = String::new();
        /// File (PEM) with the private key of `cert_file`.
        pub key_file: String = String::new();
        /// Whether the server of `url` is a node of a Redis Cluster or Valkey Cluster.
        pub cluster: Cluster = Cluster::default();
        /// First part of every key. Each engine needs its own prefix.
        pub prefix: String = "posduif".into();
        /// Maximum time in seconds to wait for a reply.
        pub response_timeout_seconds: u64 = 5, 1..=60;
        /// Number of replicas that must acknowledge a write before it is confirmed to Postgres, so that a failover of
        /// Redis to one of them starts no epoch; 0 for none.
        pub replicas_min: u64 = 0, 0..=100;
    }
}

impl Redis {
    /// What every key of the lane begins with. In a cluster the main lane needs a hash tag, as the others have it.
    pub fn keys_prefix(&self) -> Cow<'_, str> {
        if self.cluster.is_on() && !self.prefix.contains('{') {
            format!("{}:{{{MAIN}}}", self.prefix).into()
        } else {
            self.prefix.as_str().into()
        }
    }

    /// The files of the client certificate, if any.
    pub fn certificate_files(&self) -> Option<CertificateFiles> {
        (!self.cert_file.is_empty()).then(|| CertificateFiles {
            certificate: self.cert_file.clone().into(),
            key: self.key_file.clone().into(),
        })
    }

    pub(super) fn check(&self) -> Result<()> {
        let prefix = &self.prefix;
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if prefix.is_empty() || prefix.len() > 64 || !prefix.bytes().all(is_allowed) {
            bail!("key `redis.prefix` is \"{prefix}\": allowed are 1 to 64 of a-z, A-Z, 0-9, _, - and .");
        }
        if self.cert_file.is_empty() != self.key_file.is_empty() {
            bail!("keys `redis.cert_file` and `redis.key_file`: set both or neither");
        }
        Ok(())
    }
}
