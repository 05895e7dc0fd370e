use super::secret::Secret;
use super::section::section;

section! {
    /// Ordinary SQL connections; the replication connection uses the same URL.
    pub struct Postgres {
        /// Connection URL, `postgres://user:password@host:port/database`, or `postgres:///database?host=/folder` for a
        /// Unix socket. TLS parameters are those of libpq: `?sslmode=` disable, prefer (default), require, verify-ca or
        /// verify-full, `sslrootcert=` file or system, `sslcert=` and `sslkey=` for a client certificate,
        /// `channel_binding=`. See docs/operations.md.
        pub url: Secret = Secret::new("postgres://posduif@127.0.0.1:5432/posduif");
        /// Maximum number of pooled connections.
        pub pool_size: usize = 16, 1..=1000;
        /// Maximum time in seconds to obtain a connection, opening it included.
        pub connect_timeout_seconds: u64 = 5, 1..=60;
        /// Seconds after which Postgres cancels a statement.
        pub query_timeout_seconds: u64 = 15, 1..=600;
        /// Maximum time in seconds that a statement waits for a lock.
        pub lock_timeout_seconds: u64 = 5, 1..=600;
        /// Maximum number of prepared statements per pooled connection, for all tenants; 0 behind a pooler that does not
        /// support prepared statements.
        pub prepared_statements_max: usize = 256, 0..=10_000;
    }
}
