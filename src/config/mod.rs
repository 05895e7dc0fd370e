//! Every setting: its meaning, unit, bounds and default.
//!
//! Settings come from three places, later ones winning: the defaults below, the YAML file given by `--config`, and
//! the environment (`POSDUIF__SECTION__KEY`; also plain `DATABASE_URL` and `REDIS_URL`). An unknown or invalid key
//! stops the start and names the key, the value and what is allowed. `config/config.yaml` shows all keys and is
//! tested to equal [`Config::default`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::net::tls::Identity;
use crate::route::rule::Rule;

/// Prefix of environment variables that override keys.
const ENV_PREFIX: &str = "POSDUIF__";

/// Keys whose values are secret.
const SECRETS: [&str; 7] = [
    "telemetry.otlp_headers",
    "postgres.url",
    "redis.url",
    "auth.jwt_secret",
    "auth.jwt_previous_secrets",
    "push.webhook_secret",
    "push.webhook_previous_secrets",
];

/// A value that must not appear in logs, errors or `config show`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself; the only way to read it, so that uses are easy to find.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.is_empty() { "" } else { "***" })
    }
}

/// An IP address, or a network of them by its length in bits: `10.0.0.0/8`, `::1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    /// Whether an address is in it. One of IPv4 in IPv6's clothes (`::ffff:a.b.c.d`) is taken as what it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        fn same(one: u128, other: u128, width: u32, bits: u32) -> bool {
            (one ^ other).checked_shr(width - bits).unwrap_or(0) == 0
        }
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                same(network.to_bits().into(), address.to_bits().into(), 32, self.bits)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => same(network.to_bits(), address.to_bits(), 128, self.bits),
            _ => false,
        }
    }
}

impl TryFrom<String> for Network {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const ALLOWED: &str = "must be an IP address or a network such as 10.0.0.0/8";
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text.as_str(), None),
        };
        let address: IpAddr = address.parse().map_err(|_| ALLOWED)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(width), str::parse).map_err(|_| ALLOWED)?;
        if bits > width {
            return Err(ALLOWED);
        }
        Ok(Self { address, bits })
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        format!("{}/{}", network.address, network.bits)
    }
}

/// All settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The HTTP server.
    pub server: Server,
    /// Ordinary SQL connections; the replication connection uses the same URL.
    pub postgres: Postgres,
    /// Redis, which holds the streams.
    pub redis: Redis,
    /// Reading the write-ahead log and publishing it.
    pub replication: Replication,
    /// How much history the streams keep.
    pub streams: Streams,
    /// Who gets in.
    pub auth: Auth,
    /// How often somebody may be wrong.
    pub limits: Limits,
    /// Batches to and from devices.
    pub sync: Sync,
    /// Messages.
    pub messages: Messages,
    /// Encrypted state.
    pub state: State,
    /// Enrollment of devices.
    pub enrollment: Enrollment,
    /// Live events, by SSE and WebSocket.
    pub sse: Sse,
    /// Who is here.
    pub presence: Presence,
    /// Waking devices that are away.
    pub push: Push,
    /// What clients say over WebSockets.
    pub websocket: WebSocket,
    /// What API processes remember of Postgres.
    pub cache: Cache,
    /// What `GET /api/app-instructions` tells an app.
    pub app: App,
    /// Readiness.
    pub health: Health,
    /// Logging.
    pub log: Log,
    /// Traces for OpenTelemetry.
    pub telemetry: Telemetry,
    /// Routing rules for the operator's own tables, beside the built-in ones for messages, users and encrypted state.
    pub routes: Vec<Rule>,
}

/// The HTTP server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Address to listen on.
    pub host: String,
    /// TCP port, 0 for any free one.
    pub port: u16,
    /// Base URL under which clients reach this server; empty means `http://<host>:<port>`.
    pub public_url: String,
    /// Tenant of a login that names none; empty means that a login must name one.
    pub default_tenant: String,
    /// Seconds that one request may take, streams excepted (1 to 600).
    pub request_timeout_seconds: u64,
    /// Seconds in which a client must have sent its request head (1 to 120).
    pub header_timeout_seconds: u64,
    /// Largest request body in bytes, uploads excepted (1 KiB to 64 MiB).
    pub body_bytes_max: usize,
    /// Most connections at once (1 to 1,000,000).
    pub connections_max: usize,
    /// Connections that may wait to be accepted; the system's bound (`net.core.somaxconn`) counts, too (16 to 65,535).
    pub backlog: u32,
    /// Seconds that a stop waits for requests under way (0 to 300).
    pub shutdown_grace_seconds: u64,
    /// File (PEM) with the server's certificate and those that link it to an authority; empty means plain HTTP.
    pub tls_cert_file: String,
    /// File (PEM) with the private key of `tls_cert_file`.
    pub tls_key_file: String,
    /// Origins whose pages may call the API, `https://app.example.com` for example, or `*` for all; empty means none.
    pub cors_origins: Vec<String>,
    /// Proxies whose `X-Forwarded-For` is believed: addresses or networks, such as `10.0.0.0/8` or `::1`.
    pub trusted_proxies: Vec<Network>,
}

impl Server {
    /// The certificate to serve with, if any.
    pub fn identity(&self) -> Option<Identity> {
        self.is_secure().then(|| Identity {
            certificate: PathBuf::from(&self.tls_cert_file),
            key: PathBuf::from(&self.tls_key_file),
        })
    }

    /// The scheme of its URLs.
    pub fn scheme(&self) -> &'static str {
        if self.is_secure() { "https" } else { "http" }
    }

    /// Whether it speaks HTTPS.
    pub fn is_secure(&self) -> bool {
        !self.tls_cert_file.is_empty()
    }
}

impl Default for Server {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8080,
            public_url: String::new(),
            default_tenant: String::new(),
            request_timeout_seconds: 30,
            header_timeout_seconds: 10,
            body_bytes_max: 1024 * 1024,
            connections_max: 19_000,
            backlog: 4096,
            shutdown_grace_seconds: 10,
            tls_cert_file: String::new(),
            tls_key_file: String::new(),
            cors_origins: Vec::new(),
            trusted_proxies: Vec::new(),
        }
    }
}

/// Ordinary SQL connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Postgres {
    /// Connection URL, `postgres://user:password@host:port/database`, `postgres:///database?host=/folder` for a Unix
    /// socket. For TLS, as in libpq: `?sslmode=` disable, prefer (default), require, verify-ca or verify-full,
    /// `sslrootcert=` file or system, `sslcert=` and `sslkey=` for a certificate of our own, `channel_binding=`.
    pub url: Secret,
    /// Most pooled connections (1 to 1,000).
    pub pool_size: usize,
    /// Seconds to wait for a connection, its making included (1 to 60).
    pub connect_timeout_seconds: u64,
    /// Seconds after which Postgres ends a statement (1 to 600).
    pub query_timeout_seconds: u64,
    /// Seconds that a statement waits for a lock of another one (1 to 600).
    pub lock_timeout_seconds: u64,
    /// Most statements that a pooled connection keeps prepared, for all tenants (0 to 10,000). 0 behind a pooler that does
    /// not know of them.
    pub prepared_statements_max: usize,
}

impl Default for Postgres {
    fn default() -> Self {
        Self {
            url: Secret::new("postgres://posduif@127.0.0.1:5432/posduif"),
            pool_size: 16,
            connect_timeout_seconds: 5,
            query_timeout_seconds: 15,
            lock_timeout_seconds: 5,
            prepared_statements_max: 256,
        }
    }
}

/// Redis, which holds the streams.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// Connection URL, `redis://user:password@host:port/database`, `rediss://` for TLS, `unix:///path` for a socket.
    pub url: Secret,
    /// File (PEM) with the authority that vouches for a `rediss://` server; empty means those of the system.
    pub ca_file: String,
    /// File (PEM) with a certificate of our own for a `rediss://` server that wants one; empty means none.
    pub cert_file: String,
    /// File (PEM) with the private key of `cert_file`.
    pub key_file: String,
    /// First part of every key. One engine, one prefix.
    pub prefix: String,
    /// Seconds to wait for a reply (1 to 60).
    pub response_timeout_seconds: u64,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: Secret::new("redis://127.0.0.1:6379/0"),
            ca_file: String::new(),
            cert_file: String::new(),
            key_file: String::new(),
            prefix: "posduif".into(),
            response_timeout_seconds: 5,
        }
    }
}

/// Reading the write-ahead log and publishing it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Replication {
    /// Name of the logical replication slot; made when missing.
    pub slot: String,
    /// Name of the publication; made when missing, before the slot.
    pub publication: String,
    /// Milliseconds between heartbeats, the transactional messages whose age is the freshness (100 to 10,000).
    pub heartbeat_interval_ms: u64,
    /// Seconds without a byte from Postgres after which the connection counts as dead (2 to 300); more than half of
    /// `sender_timeout_seconds` in any case.
    pub wire_timeout_seconds: u64,
    /// Seconds without a reply after which Postgres lets a dead engine's slot go (2 to 300).
    pub sender_timeout_seconds: u64,
    /// Most changes in one batch to Redis (1 to 100,000).
    pub batch_changes_max: usize,
    /// Bytes of commands at which a batch is full; one change may overshoot it (4 KiB to 64 MiB).
    pub batch_bytes_max: usize,
}

impl Default for Replication {
    fn default() -> Self {
        Self {
            slot: "posduif".into(),
            publication: "posduif".into(),
            heartbeat_interval_ms: 1000,
            wire_timeout_seconds: 8,
            sender_timeout_seconds: 6,
            batch_changes_max: 500,
            batch_bytes_max: 1024 * 1024,
        }
    }
}

/// How much history the streams keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Streams {
    /// Most entries of one user's inbox; a device behind them takes a snapshot (100 to 100,000,000).
    pub inbox_entries_max: u64,
    /// Most entries of a tenant's shared stream (100 to 100,000,000).
    pub shared_entries_max: u64,
    /// Most entries of a tenant's log of all changes (100 to 1,000,000,000).
    pub changes_entries_max: u64,
    /// Most entries of a live stream, one a batch (100 to 1,000,000).
    pub live_entries_max: u64,
    /// Seconds that an entry stays after all devices have acknowledged it, for live readers that resume (0 to 604,800).
    pub acknowledged_keep_seconds: u64,
    /// Seconds between two looks at what can be trimmed (1 to 3,600).
    pub trim_interval_seconds: u64,
    /// Days after which a silent device no longer holds back trimming (1 to 3,650).
    pub device_idle_days: u64,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            inbox_entries_max: 50_000,
            shared_entries_max: 50_000,
            changes_entries_max: 1_000_000,
            live_entries_max: 10_000,
            acknowledged_keep_seconds: 600,
            trim_interval_seconds: 10,
            device_idle_days: 30,
        }
    }
}

/// How devices prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceAuth {
    /// `X-Device-ID` and `Authorization: Bearer <device_token>`.
    Token,
    /// `X-Device-ID` alone. A device ID is guessable: for closed networks and old clients only.
    Id,
}

/// Who gets in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// Key of access tokens and cursors, at least 32 bytes; `posduif dev` makes one, all else must set it.
    pub jwt_secret: Secret,
    /// Former values of `jwt_secret`, whose access tokens and cursors are still taken, at least 32 bytes each.
    pub jwt_previous_secrets: Vec<Secret>,
    /// `iss` of access tokens.
    pub jwt_issuer: String,
    /// `aud` of access tokens.
    pub jwt_audience: String,
    /// Seconds that an access token lives (60 to 86,400).
    pub token_expiry_seconds: u64,
    /// Seconds after its last login or refresh at which a session ends (300 to 31,536,000).
    pub session_expiry_seconds: u64,
    /// Most sessions of one user; a further login forgets the one that was used least recently (1 to 1,000).
    pub sessions_max: usize,
    /// Seconds in which a refresh may be repeated with the same token when its answer was lost (0 to 300).
    pub refresh_retry_seconds: u64,
    /// Devices of one user up to which logins may name new ones (1 to 1,000).
    pub devices_max: usize,
    /// Whether anybody may register in any tenant; else only in tenants whose own registration is open.
    pub registration_open: bool,
    /// How devices prove who they are: `token` or `id`.
    pub device_auth: DeviceAuth,
    /// Seconds for which a checked device token is trusted without asking Postgres again (0 to 3,600). The log tells
    /// of revocations within moments; while what it tells is not fresh, nothing is trusted.
    pub device_cache_seconds: u64,
    /// Argon2id memory in KiB (8,192 to 1,048,576).
    pub argon2_memory_kib: u32,
    /// Argon2id passes (1 to 10).
    pub argon2_iterations: u32,
    /// Most password hashes computed at once, each with a core, at low priority, and the memory above; 0 means one fewer
    /// than there are cores, and at least one (0 to 64).
    pub hash_concurrency: usize,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            jwt_secret: Secret::new(""),
            jwt_previous_secrets: Vec::new(),
            jwt_issuer: "posduif".into(),
            jwt_audience: "posduif".into(),
            token_expiry_seconds: 3600,
            session_expiry_seconds: 2_592_000,
            sessions_max: 100,
            refresh_retry_seconds: 30,
            devices_max: 100,
            registration_open: false,
            device_auth: DeviceAuth::Token,
            device_cache_seconds: 600,
            argon2_memory_kib: 19_456,
            argon2_iterations: 2,
            hash_concurrency: 0,
        }
    }
}

/// How often somebody may be wrong. All are counted in Redis over the same window; behind it one begins anew. An IPv6
/// client is counted by its /64.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Seconds of a window (1 to 86,400).
    pub window_seconds: u64,
    /// Failed logins as one user from one address (1 to 1,000,000).
    pub login_user_address_max: u64,
    /// Failed logins as one user from all addresses but those where that user has logged in before (1 to 1,000,000).
    pub login_user_max: u64,
    /// Failed logins from one address; who has logged in there before is let in all the same (1 to 1,000,000).
    pub login_address_max: u64,
    /// Registrations from one address, successful or not (1 to 1,000,000).
    pub register_address_max: u64,
    /// Failed refreshes from one address (1 to 1,000,000).
    pub refresh_address_max: u64,
    /// Enrollments that were asked for or completed in vain from one address (1 to 1,000,000).
    pub enrollment_address_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window_seconds: 900,
            login_user_address_max: 10,
            login_user_max: 100,
            login_address_max: 200,
            register_address_max: 100,
            refresh_address_max: 1000,
            enrollment_address_max: 1000,
        }
    }
}

/// What happens when both sides changed the same message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConflictStrategy {
    /// The later arrival at Postgres wins; the other version is kept in `message_conflicts`.
    LastWriteWins,
    /// The server's version stays until somebody resolves the conflict.
    Manual,
}

/// Batches to and from devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sync {
    /// Rows in a batch when the device does not say (1 to `batch_size_max`).
    pub batch_size: usize,
    /// Most rows in a batch (1 to 10,000).
    pub batch_size_max: usize,
    /// Bytes of rows at which a batch ends early; one row may overshoot it (64 KiB to 64 MiB).
    pub batch_bytes_max: usize,
    /// Most items in one upload (1 to 10,000).
    pub upload_items_max: usize,
    /// Largest upload in bytes after inflating (64 KiB to 256 MiB).
    pub upload_bytes_max: usize,
    /// Answer with gzip when the client accepts it.
    pub compression: bool,
    /// Bytes from which an answer is worth compressing (0 to 1 GiB).
    pub compression_threshold_bytes: usize,
    /// gzip level (1 fastest to 9 smallest).
    pub compression_level: u32,
    /// Seconds between two syncs that apps are advised to keep without events (10 to 86,400).
    pub interval_seconds: u64,
    /// What happens when both sides changed the same message: `last_write_wins` or `manual`.
    pub conflict_strategy: ConflictStrategy,
    /// Seconds between two bulk writes of the devices' last sync times to Postgres (1 to 3,600).
    pub metadata_interval_seconds: u64,
}

impl Default for Sync {
    fn default() -> Self {
        Self {
            batch_size: 100,
            batch_size_max: 1000,
            batch_bytes_max: 4 * 1024 * 1024,
            upload_items_max: 1000,
            upload_bytes_max: 8 * 1024 * 1024,
            compression: true,
            compression_threshold_bytes: 1024,
            compression_level: 4,
            interval_seconds: 300,
            conflict_strategy: ConflictStrategy::LastWriteWins,
            metadata_interval_seconds: 10,
        }
    }
}

/// Messages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Messages {
    /// Longest content in characters (1 to 1,000,000).
    pub content_chars_max: usize,
}

impl Default for Messages {
    fn default() -> Self {
        Self {
            content_chars_max: 10_000,
        }
    }
}

/// Encrypted state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// Longest encrypted state in bytes, before base64 (1 to 16 MiB).
    pub bytes_max: usize,
    /// Longest nonce in bytes (1 to 1,024).
    pub nonce_bytes_max: usize,
    /// Most keys of one user; of deleted ones as many are remembered (1 to 100,000).
    pub keys_max: usize,
    /// Most items in one batch (1 to 1,000).
    pub batch_items_max: usize,
    /// Largest body of a batch in bytes (64 KiB to 64 MiB).
    pub batch_bytes_max: usize,
}

impl State {
    /// Bytes of a body that holds one state and its nonce in base64.
    pub fn body_bytes_max(&self) -> usize {
        // Four characters for three bytes, and room for names, quotes and spaces.
        (self.bytes_max + self.nonce_bytes_max) * 4 / 3 + 4096
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            bytes_max: 64 * 1024,
            nonce_bytes_max: 64,
            keys_max: 1000,
            batch_items_max: 100,
            batch_bytes_max: 8 * 1024 * 1024,
        }
    }
}

/// Enrollment of devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Enrollment {
    /// Seconds that an enrollment token is valid (60 to 2,592,000).
    pub expiry_seconds: u64,
    /// Seconds in which the same device may complete again when the answer was lost (0 to 3,600).
    pub retry_seconds: u64,
}

impl Default for Enrollment {
    fn default() -> Self {
        Self {
            expiry_seconds: 86_400,
            retry_seconds: 600,
        }
    }
}

/// What API processes remember of Postgres: unread counts, messages, users. The change stream keeps it right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// Seconds that anything is remembered at most, in case that the change stream missed something; 0 for nothing (0 to
    /// 3,600).
    pub ttl_seconds: u64,
    /// Most counts of each kind, and most users, that one process remembers (100 to 10,000,000).
    pub entries_max: u64,
    /// Bytes of messages that one process remembers (64 KiB to 4 GiB).
    pub messages_bytes_max: u64,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            ttl_seconds: 60,
            entries_max: 100_000,
            messages_bytes_max: 16 * 1024 * 1024,
        }
    }
}

/// Server-sent events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sse {
    /// Seconds between comment heartbeats (1 to 300).
    pub heartbeat_seconds: u64,
    /// Milliseconds that a client is advised to wait before it reconnects; up to as much again is added at random (100 to 60,000).
    pub retry_ms: u64,
    /// Seconds that a reader may take nothing of what is sent before it is cut; it resumes without loss (1 to 300).
    pub write_timeout_seconds: u64,
    /// Events that may wait for one slow reader before it is cut; it resumes without loss (16 to 100,000).
    pub queue_events_max: usize,
    /// Events replayed one by one after a resume; beyond them one `sync_required` sums up (1 to 100,000).
    pub replay_events_max: usize,
}

impl Default for Sse {
    fn default() -> Self {
        Self {
            heartbeat_seconds: 15,
            retry_ms: 1000,
            write_timeout_seconds: 20,
            queue_events_max: 256,
            replay_events_max: 1000,
        }
    }
}

/// Who is here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Presence {
    /// Seconds after its last stream has closed at which a device or page is offline (0 to 60).
    pub grace_seconds: u64,
    /// Milliseconds between two looks at what has changed, which go out as one event (100 to 10,000).
    pub tick_ms: u64,
    /// Seconds that changes wait at most when there is much to tell; what takes longer is not told one by one (1 to 300).
    pub tick_seconds_max: u64,
    /// Most users in one event; beyond them it says only that clients must ask (10 to 1,000).
    pub entries_max: usize,
    /// Bytes of events a second that one process tells, over all its streams; each event counts 256 more (64 KiB to 1 GiB).
    pub fanout_bytes_per_second: u64,
    /// Seconds between two bulk writes of last seen times to Postgres (1 to 3,600).
    pub last_seen_interval_seconds: u64,
}

impl Default for Presence {
    fn default() -> Self {
        Self {
            grace_seconds: 10,
            tick_ms: 1000,
            tick_seconds_max: 10,
            entries_max: 200,
            fanout_bytes_per_second: 8 * 1024 * 1024,
            last_seen_interval_seconds: 60,
        }
    }
}

/// Waking devices that are away: an entry in the tenant's stream `push`, and a webhook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Push {
    /// Seconds without a stream after which a device for which something waits is woken (1 to 3,600).
    pub after_seconds: u64,
    /// Live events that wake; `*` for all. None means that nobody is woken.
    pub events: Vec<String>,
    /// Seconds between two looks at all devices, for what was missed (10 to 86,400).
    pub sweep_interval_seconds: u64,
    /// Most users who are remembered because something waits for them; beyond them the next look at all finds the others (100 to 10,000,000).
    pub candidates_max: usize,
    /// About how many entries a tenant's stream `push` keeps (100 to 1,000,000).
    pub stream_entries_max: u64,
    /// Where each entry is told, `https://push.example.com/posduif` for example; empty means nowhere.
    pub webhook_url: String,
    /// Key that signs what is told: `whsec_` and the base64 of 24 to 64 random bytes.
    pub webhook_secret: Secret,
    /// Former values of `webhook_secret`, which sign beside it.
    pub webhook_previous_secrets: Vec<Secret>,
    /// File (PEM) with the authority that vouches for the webhook's server; empty means those of the system.
    pub webhook_ca_file: String,
    /// Seconds that the webhook may take to answer (1 to 60).
    pub webhook_timeout_seconds: u64,
    /// How often one entry is told before it is given up (1 to 100).
    pub webhook_attempts_max: u32,
    /// Most entries that are told at once (1 to 64).
    pub webhook_concurrency: usize,
}

impl Default for Push {
    fn default() -> Self {
        Self {
            after_seconds: 60,
            events: vec!["new_message".into()],
            sweep_interval_seconds: 300,
            candidates_max: 100_000,
            stream_entries_max: 10_000,
            webhook_url: String::new(),
            webhook_secret: Secret::new(""),
            webhook_previous_secrets: Vec::new(),
            webhook_ca_file: String::new(),
            webhook_timeout_seconds: 10,
            webhook_attempts_max: 12,
            webhook_concurrency: 8,
        }
    }
}

impl Push {
    /// Checks texts and secrets.
    fn check(&self) -> Result<()> {
        for event in &self.events {
            if event != "*" && !crate::route::rule::is_event_name(event) {
                bail!("key `push.events` has {event:?}: allowed are * and names of 1 to 64 of a-z, 0-9 and _");
            }
        }
        if self.webhook_url.is_empty() {
            return Ok(());
        }
        if let Err(why) = crate::push::webhook::Target::parse(&self.webhook_url) {
            bail!("key `push.webhook_url`: {why}");
        }
        let secrets = std::iter::once((None, &self.webhook_secret));
        let previous = self.webhook_previous_secrets.iter().enumerate();
        for (index, secret) in secrets.chain(previous.map(|(index, secret)| (Some(index), secret))) {
            if crate::push::webhook::decode_secret(secret.expose()).is_none() {
                let key = match index {
                    None => "push.webhook_secret".to_owned(),
                    Some(index) => format!("push.webhook_previous_secrets[{index}]"),
                };
                bail!(
                    "key `{key}` is {}: allowed is whsec_ and the base64 of 24 to 64 random bytes, for example \
                     POSDUIF__PUSH__WEBHOOK_SECRET=whsec_$(openssl rand -base64 32)",
                    if secret.expose().is_empty() {
                        "not set"
                    } else {
                        "no such key"
                    }
                );
            }
        }
        Ok(())
    }
}

/// What clients say over WebSockets. For what they are told, [`Sse`] holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebSocket {
    /// Largest message of a client in bytes, in one frame or several (1 KiB to 16 MiB).
    pub message_bytes_max: usize,
    /// Most items in one message (1 to 1000).
    pub items_max: usize,
}

impl Default for WebSocket {
    fn default() -> Self {
        Self {
            message_bytes_max: 256 * 1024,
            items_max: 100,
        }
    }
}

/// One remote widget of the app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Widget {
    /// Kind of widget.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where the app finds it.
    pub url: String,
    /// Its version.
    pub version: String,
}

/// What `GET /api/app-instructions` tells an app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct App {
    /// Version of the instructions.
    pub version: String,
    /// Remote widgets by name.
    pub widgets: BTreeMap<String, Widget>,
}

impl Default for App {
    fn default() -> Self {
        Self {
            version: "1.0.0".into(),
            widgets: BTreeMap::new(),
        }
    }
}

/// Readiness.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// Seconds of age of what clients can see beyond which `/ready` answers 503 (2 to 3,600).
    pub freshness_bound_seconds: u64,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            freshness_bound_seconds: 10,
        }
    }
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Level or filter directives, for example `info` or `info,posduif::publish=debug`.
    pub level: String,
    /// Form of log lines: `text` or `json`.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}

/// Traces for OpenTelemetry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Where a collector takes OTLP over HTTP, for example `http://127.0.0.1:4318`; empty means no traces.
    pub otlp_endpoint: String,
    /// Headers for the collector, `name=value` with commas between; some want a key.
    pub otlp_headers: Secret,
    /// What this system is called in traces.
    pub service_name: String,
    /// Part of the traces that is sent (0 to 1). A client that sends `traceparent` decides for its request.
    pub sample_ratio: f64,
    /// Most spans that wait to be sent; those beyond are dropped (64 to 1,000,000).
    pub queue_spans_max: usize,
    /// Milliseconds between two sendings (100 to 60,000).
    pub export_interval_ms: u64,
}

impl Telemetry {
    /// Where spans are sent: the endpoint with the path that the protocol has for traces, unless it has one itself.
    pub fn traces_url(&self) -> String {
        let endpoint = self.otlp_endpoint.trim_end_matches('/');
        match endpoint.split_once("://") {
            Some((_, place)) if place.contains('/') => endpoint.to_owned(),
            _ => format!("{endpoint}/v1/traces"),
        }
    }

    /// The headers for the collector, by name.
    ///
    /// # Errors
    /// When one has no `=`. The value is not told.
    pub fn headers(&self) -> Result<Vec<(String, String)>> {
        let pairs = self
            .otlp_headers
            .expose()
            .split(',')
            .filter(|pair| !pair.trim().is_empty());
        pairs
            .map(|pair| {
                let (name, value) = pair.split_once('=').ok_or_else(|| {
                    anyhow!("key `telemetry.otlp_headers` must be of the form name=value, with commas between")
                })?;
                Ok((name.trim().to_owned(), value.trim().to_owned()))
            })
            .collect()
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            otlp_endpoint: String::new(),
            otlp_headers: Secret::new(""),
            service_name: "posduif".into(),
            sample_ratio: 0.01,
            queue_spans_max: 8192,
            export_interval_ms: 2000,
        }
    }
}

impl Config {
    /// Reads the file (when given), then the process's environment, and checks the bounds.
    ///
    /// # Errors
    /// Names the key, its value and what is allowed.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        let text = match file {
            Some(path) => std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the configuration file {}", path.display()))?,
            None => String::new(),
        };
        Self::from_sources(&text, environment()?).with_context(|| match file {
            Some(path) => format!("configuration {}", path.display()),
            None => "configuration from the environment".to_owned(),
        })
    }

    /// Merges YAML text and environment variables over the defaults and checks the bounds.
    ///
    /// # Errors
    /// Names the key, its value and what is allowed.
    pub fn from_sources(yaml: &str, env: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let mut tree: Value = if yaml.trim().is_empty() {
            Value::Object(serde_json::Map::new())
        } else {
            // Without the lines at fault, which may hold a secret.
            let options = serde_saphyr::options! { with_snippet: false };
            serde_saphyr::from_str_with_options(yaml, options).context("not valid YAML")?
        };
        if tree.is_null() {
            tree = Value::Object(serde_json::Map::new());
        }
        // A section without keys is there, and empty.
        if let Value::Object(sections) = &mut tree {
            sections.retain(|_, section| !section.is_null());
        }
        // The defaults tell which keys exist and of which type each is, so that a password of digits stays text.
        let defaults = serde_json::to_value(Self::default()).context("defaults")?;
        let mut overrides: Vec<(String, String)> = Vec::new();
        for (name, value) in env {
            match name.as_str() {
                "DATABASE_URL" => overrides.insert(0, ("postgres.url".into(), value)),
                "REDIS_URL" => overrides.insert(0, ("redis.url".into(), value)),
                _ => {
                    if let Some(path) = name.strip_prefix(ENV_PREFIX) {
                        overrides.push((path.to_ascii_lowercase().replace("__", "."), value));
                    }
                }
            }
        }
        for (path, value) in overrides {
            apply_override(&mut tree, &defaults, &path, &value)?;
        }
        let config: Self = serde_path_to_error::deserialize(&tree).map_err(|error| {
            let path = error.path().to_string();
            let found = path.split('.').try_fold(&tree, |node, part| node.get(part));
            refused(found, &path, &error.inner().to_string())
        })?;
        config.check()?;
        Ok(config)
    }

    /// Checks that every number lies within its bounds and texts have their form.
    fn check(&self) -> Result<()> {
        fn within(key: &str, value: u64, low: u64, high: u64) -> Result<()> {
            if value < low || value > high {
                bail!("key `{key}` is {value}: allowed is {low} to {high}");
            }
            Ok(())
        }
        const KIB: u64 = 1024;
        const MIB: u64 = 1024 * KIB;
        let (s, p, r) = (&self.server, &self.postgres, &self.replication);
        within("server.request_timeout_seconds", s.request_timeout_seconds, 1, 600)?;
        within("server.header_timeout_seconds", s.header_timeout_seconds, 1, 120)?;
        within("server.body_bytes_max", s.body_bytes_max as u64, KIB, 64 * MIB)?;
        within("server.connections_max", s.connections_max as u64, 1, 1_000_000)?;
        within("server.backlog", s.backlog.into(), 16, 65_535)?;
        within("server.shutdown_grace_seconds", s.shutdown_grace_seconds, 0, 300)?;
        within("postgres.pool_size", p.pool_size as u64, 1, 1000)?;
        within("postgres.connect_timeout_seconds", p.connect_timeout_seconds, 1, 60)?;
        within("postgres.query_timeout_seconds", p.query_timeout_seconds, 1, 600)?;
        within("postgres.lock_timeout_seconds", p.lock_timeout_seconds, 1, 600)?;
        within(
            "postgres.prepared_statements_max",
            p.prepared_statements_max as u64,
            0,
            10_000,
        )?;
        within(
            "redis.response_timeout_seconds",
            self.redis.response_timeout_seconds,
            1,
            60,
        )?;
        within(
            "replication.heartbeat_interval_ms",
            r.heartbeat_interval_ms,
            100,
            10_000,
        )?;
        within("replication.wire_timeout_seconds", r.wire_timeout_seconds, 2, 300)?;
        within("replication.sender_timeout_seconds", r.sender_timeout_seconds, 2, 300)?;
        within("replication.batch_changes_max", r.batch_changes_max as u64, 1, 100_000)?;
        within(
            "replication.batch_bytes_max",
            r.batch_bytes_max as u64,
            4 * KIB,
            64 * MIB,
        )?;
        let t = &self.streams;
        within("streams.inbox_entries_max", t.inbox_entries_max, 100, 100_000_000)?;
        within("streams.shared_entries_max", t.shared_entries_max, 100, 100_000_000)?;
        within("streams.changes_entries_max", t.changes_entries_max, 100, 1_000_000_000)?;
        within("streams.live_entries_max", t.live_entries_max, 100, 1_000_000)?;
        within(
            "streams.acknowledged_keep_seconds",
            t.acknowledged_keep_seconds,
            0,
            604_800,
        )?;
        within("streams.trim_interval_seconds", t.trim_interval_seconds, 1, 3600)?;
        within("streams.device_idle_days", t.device_idle_days, 1, 3650)?;
        let a = &self.auth;
        within("auth.token_expiry_seconds", a.token_expiry_seconds, 60, 86_400)?;
        within("auth.session_expiry_seconds", a.session_expiry_seconds, 300, 31_536_000)?;
        within("auth.sessions_max", a.sessions_max as u64, 1, 1000)?;
        within("auth.refresh_retry_seconds", a.refresh_retry_seconds, 0, 300)?;
        within("auth.devices_max", a.devices_max as u64, 1, 1000)?;
        within("auth.device_cache_seconds", a.device_cache_seconds, 0, 3600)?;
        within("auth.argon2_memory_kib", a.argon2_memory_kib.into(), 8192, 1_048_576)?;
        within("auth.argon2_iterations", a.argon2_iterations.into(), 1, 10)?;
        within("auth.hash_concurrency", a.hash_concurrency as u64, 0, 64)?;
        let l = &self.limits;
        within("limits.window_seconds", l.window_seconds, 1, 86_400)?;
        for (key, most) in [
            ("limits.login_user_address_max", l.login_user_address_max),
            ("limits.login_user_max", l.login_user_max),
            ("limits.login_address_max", l.login_address_max),
            ("limits.register_address_max", l.register_address_max),
            ("limits.refresh_address_max", l.refresh_address_max),
            ("limits.enrollment_address_max", l.enrollment_address_max),
        ] {
            within(key, most, 1, 1_000_000)?;
        }
        let o = &self.telemetry;
        within("telemetry.queue_spans_max", o.queue_spans_max as u64, 64, 1_000_000)?;
        within("telemetry.export_interval_ms", o.export_interval_ms, 100, 60_000)?;
        if !(0.0..=1.0).contains(&o.sample_ratio) {
            bail!("key `telemetry.sample_ratio` is {}: allowed is 0 to 1", o.sample_ratio);
        }
        if !o.otlp_endpoint.is_empty()
            && !["http://", "https://"]
                .iter()
                .any(|scheme| o.otlp_endpoint.starts_with(scheme))
        {
            bail!(
                "key `telemetry.otlp_endpoint` is \"{}\": must be a URL such as http://127.0.0.1:4318, or empty",
                o.otlp_endpoint
            );
        }
        o.headers()?;
        let y = &self.sync;
        within("cache.ttl_seconds", self.cache.ttl_seconds, 0, 3600)?;
        within("cache.entries_max", self.cache.entries_max, 100, 10_000_000)?;
        within(
            "cache.messages_bytes_max",
            self.cache.messages_bytes_max,
            64 * KIB,
            4096 * MIB,
        )?;
        within("sync.batch_size_max", y.batch_size_max as u64, 1, 10_000)?;
        within("sync.batch_size", y.batch_size as u64, 1, y.batch_size_max as u64)?;
        within("sync.batch_bytes_max", y.batch_bytes_max as u64, 64 * KIB, 64 * MIB)?;
        within("sync.upload_items_max", y.upload_items_max as u64, 1, 10_000)?;
        within("sync.upload_bytes_max", y.upload_bytes_max as u64, 64 * KIB, 256 * MIB)?;
        within(
            "sync.compression_threshold_bytes",
            y.compression_threshold_bytes as u64,
            0,
            1024 * MIB,
        )?;
        within("sync.compression_level", y.compression_level.into(), 1, 9)?;
        within("sync.interval_seconds", y.interval_seconds, 10, 86_400)?;
        within("sync.metadata_interval_seconds", y.metadata_interval_seconds, 1, 3600)?;
        within(
            "messages.content_chars_max",
            self.messages.content_chars_max as u64,
            1,
            1_000_000,
        )?;
        within(
            "enrollment.expiry_seconds",
            self.enrollment.expiry_seconds,
            60,
            2_592_000,
        )?;
        let t = &self.state;
        within("state.bytes_max", t.bytes_max as u64, 1, 16 * MIB)?;
        within("state.nonce_bytes_max", t.nonce_bytes_max as u64, 1, 1024)?;
        within("state.keys_max", t.keys_max as u64, 1, 100_000)?;
        within("state.batch_items_max", t.batch_items_max as u64, 1, 1000)?;
        within("state.batch_bytes_max", t.batch_bytes_max as u64, 64 * KIB, 64 * MIB)?;
        within("enrollment.retry_seconds", self.enrollment.retry_seconds, 0, 3600)?;
        let e = &self.sse;
        within("sse.heartbeat_seconds", e.heartbeat_seconds, 1, 300)?;
        within("sse.retry_ms", e.retry_ms, 100, 60_000)?;
        within("sse.write_timeout_seconds", e.write_timeout_seconds, 1, 300)?;
        within("sse.queue_events_max", e.queue_events_max as u64, 16, 100_000)?;
        within("sse.replay_events_max", e.replay_events_max as u64, 1, 100_000)?;
        let k = &self.websocket;
        within("websocket.message_bytes_max", k.message_bytes_max as u64, KIB, 16 * MIB)?;
        within("websocket.items_max", k.items_max as u64, 1, 1000)?;
        let h = &self.presence;
        within("presence.grace_seconds", h.grace_seconds, 0, 60)?;
        within("presence.tick_ms", h.tick_ms, 100, 10_000)?;
        within("presence.tick_seconds_max", h.tick_seconds_max, 1, 300)?;
        within("presence.entries_max", h.entries_max as u64, 10, 1000)?;
        within(
            "presence.fanout_bytes_per_second",
            h.fanout_bytes_per_second,
            64 * KIB,
            1024 * MIB,
        )?;
        within(
            "presence.last_seen_interval_seconds",
            h.last_seen_interval_seconds,
            1,
            3600,
        )?;
        let w = &self.push;
        within("push.after_seconds", w.after_seconds, 1, 3600)?;
        within("push.sweep_interval_seconds", w.sweep_interval_seconds, 10, 86_400)?;
        within("push.candidates_max", w.candidates_max as u64, 100, 10_000_000)?;
        within("push.stream_entries_max", w.stream_entries_max, 100, 1_000_000)?;
        within("push.webhook_timeout_seconds", w.webhook_timeout_seconds, 1, 60)?;
        within("push.webhook_attempts_max", w.webhook_attempts_max.into(), 1, 100)?;
        within("push.webhook_concurrency", w.webhook_concurrency as u64, 1, 64)?;
        within("push.events (their number)", w.events.len() as u64, 0, 200)?;
        w.check()?;
        within(
            "health.freshness_bound_seconds",
            self.health.freshness_bound_seconds,
            2,
            3600,
        )?;

        // Slot names: Postgres chapter 27.2.6; the same form keeps keys and identifiers free of quoting.
        for (key, name) in [
            ("replication.slot", &r.slot),
            ("replication.publication", &r.publication),
        ] {
            if name.is_empty()
                || name.len() > 63
                || !name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
            {
                bail!("key `{key}` is \"{name}\": allowed are 1 to 63 of a-z, 0-9 and _");
            }
        }
        let prefix = &self.redis.prefix;
        if prefix.is_empty()
            || prefix.len() > 64
            || !prefix
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.'))
        {
            bail!("key `redis.prefix` is \"{prefix}\": allowed are 1 to 64 of a-z, A-Z, 0-9, _, - and .");
        }
        if self.redis.cert_file.is_empty() != self.redis.key_file.is_empty() {
            bail!("keys `redis.cert_file` and `redis.key_file`: one of them is empty; a certificate needs its key");
        }
        if !s.default_tenant.is_empty() && !crate::core::tenant::is_valid_name(&s.default_tenant) {
            bail!(
                "key `server.default_tenant` is \"{}\": allowed are a letter and up to 47 of a-z, 0-9 and _",
                s.default_tenant
            );
        }
        if s.tls_cert_file.is_empty() != s.tls_key_file.is_empty() {
            bail!(
                "keys `server.tls_cert_file` and `server.tls_key_file`: one of them is empty; a certificate needs its key"
            );
        }
        if !s.public_url.is_empty() && !is_base_url(&s.public_url) {
            bail!(
                "key `server.public_url` is {:?}: must be a URL such as https://app.example.com, or empty",
                s.public_url
            );
        }
        for origin in &s.cors_origins {
            if !is_origin(origin) {
                bail!(
                    "key `server.cors_origins` has {origin:?}: allowed are * and origins such as https://app.example.com, \
                     without a path or a slash at the end"
                );
            }
        }
        within("routes (their number)", self.routes.len() as u64, 0, 200)?;
        if tracing_subscriber::EnvFilter::try_new(&self.log.level).is_err() {
            bail!(
                "key `log.level` is \"{}\": allowed are a level or directives, for example info or \
                 info,posduif::publish=debug",
                self.log.level
            );
        }
        for (index, rule) in self.routes.iter().enumerate() {
            rule.check().map_err(|why| anyhow!("key `routes[{index}]`: {why}"))?;
            let has_upload = |other: &Rule| other.table == rule.table && other.upload.is_some();
            if rule.upload.is_some() && self.routes[..index].iter().any(has_upload) {
                bail!(
                    "key `routes[{index}].upload`: the table {:?} has one in another rule",
                    rule.table
                );
            }
        }
        Ok(())
    }

    /// Refuses a missing or short token secret; called by whatever serves requests.
    ///
    /// # Errors
    /// When `auth.jwt_secret`, or one of `auth.jwt_previous_secrets`, has fewer than 32 bytes or is a well-known example.
    pub fn check_secrets(&self) -> Result<()> {
        fn is_weak(secret: &str) -> bool {
            secret.len() < 32 || secret.to_ascii_lowercase().contains("change")
        }
        let secret = self.auth.jwt_secret.expose();
        let mut previous = self.auth.jwt_previous_secrets.iter();
        if let Some(index) = previous.position(|secret| is_weak(secret.expose())) {
            bail!("key `auth.jwt_previous_secrets[{index}]` is too short or an example: it would let forged tokens in");
        }
        if is_weak(secret) {
            bail!(
                "key `auth.jwt_secret` is {}: set at least 32 random bytes, for example \
                 POSDUIF__AUTH__JWT_SECRET=$(openssl rand -hex 32)",
                if secret.is_empty() {
                    "not set"
                } else {
                    "too short or an example"
                }
            );
        }
        Ok(())
    }

    /// The base URL that clients use, without a trailing slash.
    pub fn public_url(&self) -> String {
        if self.server.public_url.is_empty() {
            format!("{}://{}:{}", self.server.scheme(), self.server.host, self.server.port)
        } else {
            self.server.public_url.trim_end_matches('/').to_owned()
        }
    }
}

/// Whether paths can be appended to a text so that it is the URL of something that HTTP serves.
fn is_base_url(text: &str) -> bool {
    text.parse::<hyper::Uri>().is_ok_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.host().is_some_and(|host| !host.is_empty())
            && url.query().is_none()
            && !text.contains('#')
    })
}

/// Whether a text is an origin as browsers send it (RFC 6454, section 6.2), or the star.
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    text == "*"
        || host.is_some_and(|host| {
            !host.is_empty()
                && host.bytes().all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b':' | b'[' | b']')
                })
        })
}

/// Sets the leaf at a dotted path to a text from the environment, read as the type that the defaults have there.
fn apply_override(tree: &mut Value, defaults: &Value, path: &str, text: &str) -> Result<()> {
    let unknown = || {
        anyhow!(
            "environment variable {ENV_PREFIX}{}: no such key",
            path.to_ascii_uppercase().replace('.', "__")
        )
    };
    let mut like = defaults;
    let mut node = tree;
    let mut parts = path.split('.').peekable();
    while let Some(part) = parts.next() {
        like = like.get(part).ok_or_else(unknown)?;
        let map = node.as_object_mut().ok_or_else(unknown)?;
        if parts.peek().is_some() {
            node = map.entry(part).or_insert_with(|| Value::Object(serde_json::Map::new()));
            continue;
        }
        let value = match like {
            Value::String(_) => Value::String(text.to_owned()),
            _ => serde_saphyr::from_str(text)
                .map_err(|_| refused(Some(&text.into()), path, "not a value of its type"))?,
        };
        map.insert(part.to_owned(), value);
        return Ok(());
    }
    Err(unknown())
}

/// The error for a key that is not what it should be. The value is told unless it may hold a secret; serde's words
/// repeat it, so they are left out then too.
fn refused(found: Option<&Value>, path: &str, why: &str) -> anyhow::Error {
    let place = path.split('[').next().unwrap_or(path);
    let holds = |secret: &&str| **secret == *place || secret.starts_with(&format!("{path}."));
    if path == "." || SECRETS.iter().any(holds) {
        return anyhow!("key `{path}` = ***: not of its type (not shown, since it may hold a secret)");
    }
    match found {
        // A key that nobody knows may be a secret's, misspelt.
        Some(leaf) if !leaf.is_object() && !leaf.is_array() && !why.starts_with("unknown field") => {
            anyhow!("key `{path}` = {leaf}: {why}")
        }
        _ => anyhow!("key `{path}`: {why}"),
    }
}

/// The process's environment; variables of others may be what they like.
fn environment() -> Result<Vec<(String, String)>> {
    std::env::vars_os()
        .filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let is_ours = name.starts_with(ENV_PREFIX) || matches!(name.as_str(), "DATABASE_URL" | "REDIS_URL");
            is_ours.then(|| match value.into_string() {
                Ok(value) => Ok((name, value)),
                Err(_) => Err(anyhow!("environment variable {name} is not UTF-8")),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = include_str!("../../config/config.yaml");

    fn load(yaml: &str, env: &[(&str, &str)]) -> Result<Config> {
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::from_sources(yaml, env)
    }

    fn refusal(yaml: &str, env: &[(&str, &str)]) -> String {
        format!("{:#}", load(yaml, env).unwrap_err())
    }

    #[test]
    fn the_file_in_the_repository_says_what_the_defaults_are() {
        assert_eq!(load(YAML, &[]).unwrap(), Config::default());
        assert_eq!(load("", &[]).unwrap(), Config::default());
        assert_eq!(load("# nothing but a comment\n", &[]).unwrap(), Config::default());
    }

    #[test]
    fn the_file_in_the_repository_shows_every_key() {
        fn keys(tree: &Value, path: &str, found: &mut Vec<String>) {
            for (key, value) in tree.as_object().into_iter().flatten() {
                let path = format!("{path}.{key}");
                keys(value, &path, found);
                found.push(path);
            }
        }
        let (mut shown, mut known) = (Vec::new(), Vec::new());
        keys(&serde_saphyr::from_str(YAML).unwrap(), "", &mut shown);
        keys(&serde_json::to_value(Config::default()).unwrap(), "", &mut known);
        shown.sort();
        known.sort();
        assert_eq!(shown, known);
    }

    #[test]
    fn a_network_holds_its_addresses_and_no_others() {
        let holds = |network: &str, address: &str| {
            let network = Network::try_from(network.to_owned()).unwrap();
            network.contains(address.parse().unwrap())
        };
        assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("10.0.0.0/8", "::ffff:10.1.2.3") && !holds("10.0.0.0/8", "::1"));
        assert!(holds("127.0.0.1", "127.0.0.1") && !holds("127.0.0.1", "127.0.0.2"));
        assert!(holds("0.0.0.0/0", "1.2.3.4") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("2001:db8::/32", "2001:db8:1::1") && !holds("2001:db8::/32", "2001:db9::"));
        assert!(holds("::/0", "::1") && holds("::1", "::1") && !holds("::1", "::2"));
        for bad in [
            "",
            "ten",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/-1",
            "10.0.0.0/",
            "10.0.0/8",
        ] {
            assert!(Network::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        for (yaml, key) in [
            ("sever: {port: 1}", "sever"),
            ("server: {prot: 1}", "server.prot"),
            (
                "app: {widgets: {inbox: {type: a, url: b, version: c, colour: d}}}",
                "app.widgets.inbox.colour",
            ),
            ("routes: [{table: orders, to: [user_id], evnt: x}]", "routes[0].evnt"),
        ] {
            let text = refusal(yaml, &[]);
            assert!(
                text.contains(&format!("key `{key}`")) && text.contains("unknown field"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_section_without_keys_has_its_defaults() {
        assert_eq!(Config::from_sources("sse:\n", []).unwrap(), Config::default());
    }

    #[test]
    fn wrong_types_are_refused_with_key_and_value() {
        for (yaml, key, value) in [
            ("server: {port: many}", "server.port", "\"many\""),
            ("server: {port: 70000}", "server.port", "70000"),
            ("server: {port: -1}", "server.port", "-1"),
            ("sync: {compression: 1}", "sync.compression", "1"),
            ("sync: {conflict_strategy: coin}", "sync.conflict_strategy", "\"coin\""),
            ("auth: {device_auth: both}", "auth.device_auth", "\"both\""),
        ] {
            let text = refusal(yaml, &[]);
            assert!(text.contains(&format!("key `{key}` = {value}:")), "{text}");
        }
    }

    #[test]
    fn values_out_of_bounds_are_refused_with_what_is_allowed() {
        for (yaml, expected) in [
            (
                "server: {request_timeout_seconds: 0}",
                "key `server.request_timeout_seconds` is 0: allowed is 1 to 600",
            ),
            (
                "streams: {acknowledged_keep_seconds: 604801}",
                "key `streams.acknowledged_keep_seconds` is 604801",
            ),
            (
                "streams: {inbox_entries_max: 99}",
                "key `streams.inbox_entries_max` is 99",
            ),
            (
                "sync: {batch_size: 11, batch_size_max: 10}",
                "key `sync.batch_size` is 11: allowed is 1 to 10",
            ),
            ("auth: {argon2_memory_kib: 8}", "key `auth.argon2_memory_kib` is 8"),
            ("replication: {slot: Main}", "key `replication.slot` is \"Main\""),
            ("redis: {prefix: 'a:b'}", "key `redis.prefix` is \"a:b\""),
            (
                "server: {trusted_proxies: [10.0.0.0/33]}",
                "key `server.trusted_proxies[0]`: must be an IP address",
            ),
            (
                "redis: {cert_file: a.crt}",
                "keys `redis.cert_file` and `redis.key_file`",
            ),
            (
                "server: {default_tenant: 9lives}",
                "key `server.default_tenant` is \"9lives\"",
            ),
            ("log: {level: '=,,='}", "key `log.level` is \"=,,=\""),
            ("routes: [{table: messages, to: [user_id]}]", "key `routes[0]`"),
        ] {
            let text = refusal(yaml, &[]);
            assert!(text.contains(expected), "{text}");
        }
    }

    /// The bounds that the comments in the YAML file name are those that are checked.
    #[test]
    fn bounds_are_as_the_file_in_the_repository_tells_them() {
        let (mut section, mut comment, mut checked) = (String::new(), String::new(), 0);
        for line in YAML.lines() {
            match line.trim().strip_prefix('#') {
                Some(text) => comment = text.to_owned(),
                None if line.starts_with(char::is_alphabetic) => section = line.trim_end_matches(':').to_owned(),
                None => {
                    let Some((key, _)) = line.trim().split_once(':') else {
                        continue;
                    };
                    let bounds = comment
                        .rsplit_once('(')
                        .and_then(|(_, bounds)| bounds.split_once(" to "));
                    let number = |text: &str| -> Option<u64> {
                        let text = text.trim_end_matches([')', '.']);
                        let (digits, unit) = text.split_once(' ').unwrap_or((text, ""));
                        let unit = match unit {
                            "" => 1,
                            "KiB" => 1 << 10,
                            "MiB" => 1 << 20,
                            "GiB" => 1 << 30,
                            _ => return None,
                        };
                        digits.replace(',', "").parse::<u64>().ok().map(|number| number * unit)
                    };
                    let Some((low, high)) = bounds.and_then(|(low, high)| Some((number(low)?, number(high)?))) else {
                        continue;
                    };
                    let is_allowed = |value: u64| load(&format!("{section}: {{{key}: {value}}}"), &[]).is_ok();
                    // A default batch must fit into the largest one, so that one has a higher lower bound here.
                    assert!(
                        key == "batch_size_max" || is_allowed(low),
                        "{section}.{key}: {low} is not allowed"
                    );
                    assert!(is_allowed(high), "{section}.{key}: {high} is not allowed");
                    assert!(!is_allowed(high + 1), "{section}.{key}: {} is allowed", high + 1);
                    assert!(
                        low == 0 || !is_allowed(low - 1),
                        "{section}.{key}: {} is allowed",
                        low - 1
                    );
                    checked += 1;
                }
            }
        }
        assert!(checked > 30, "only {checked} keys with bounds were found");
    }

    #[test]
    fn the_environment_wins_over_the_file_and_its_own_names_over_plain_ones() {
        let env = [
            ("POSDUIF__SERVER__PORT", "9000"),
            ("POSDUIF__POSTGRES__URL", "postgres://own"),
            ("DATABASE_URL", "postgres://plain"),
            ("REDIS_URL", "redis://plain"),
            ("POSDUIF__ROUTES", "[{table: orders, to: [user_id]}]"),
            ("POSDUIF__SYNC__CONFLICT_STRATEGY", "manual"),
            ("POSDUIF_URL", "not ours"),
            ("PATH", "/bin"),
        ];
        let config = load("server: {port: 1, host: '::1'}", &env).unwrap();
        assert_eq!((config.server.port, config.server.host.as_str()), (9000, "::1"));
        assert_eq!(config.postgres.url.expose(), "postgres://own");
        assert_eq!(config.redis.url.expose(), "redis://plain");
        assert_eq!(config.routes.len(), 1);
        assert_eq!(config.sync.conflict_strategy, ConflictStrategy::Manual);
    }

    #[test]
    fn texts_from_the_environment_stay_texts() {
        let env = [
            ("POSDUIF__AUTH__JWT_SECRET", "00420"),
            ("POSDUIF__REDIS__PREFIX", "1e3"),
            ("POSDUIF__APP__VERSION", "2.0"),
            ("POSDUIF__SERVER__DEFAULT_TENANT", "null"),
        ];
        let config = load("", &env).unwrap();
        assert_eq!(config.auth.jwt_secret.expose(), "00420");
        assert_eq!(config.redis.prefix, "1e3");
        assert_eq!(config.app.version, "2.0");
        assert_eq!(config.server.default_tenant, "null");
    }

    #[test]
    fn unknown_variables_are_refused_by_name() {
        for name in [
            "POSDUIF__SERVER__PROT",
            "POSDUIF__SEVER__PORT",
            "POSDUIF__SERVER__PORT__X",
            "POSDUIF__",
        ] {
            let text = refusal("", &[(name, "1")]);
            assert!(
                text.contains(&format!("environment variable {name}: no such key")),
                "{text}"
            );
        }
        let text = refusal("", &[("POSDUIF__SERVER__PORT", "many")]);
        assert!(text.contains("key `server.port` = \"many\""), "{text}");
    }

    #[test]
    fn secrets_are_never_shown() {
        let config = load(
            "auth: {jwt_secret: hush-1, jwt_previous_secrets: [hush-4]}\npostgres: {url: 'postgres://a:hush-2@h/d'}\nredis: {url: 'redis://:hush-3@h'}",
            &[],
        )
        .unwrap();
        let shown = format!(
            "{config:?} {} {}",
            serde_json::to_string(&config).unwrap(),
            serde_saphyr::to_string(&config).unwrap()
        );
        assert!(!shown.contains("hush"), "{shown}");
        assert!(shown.contains("***"));
        // Whether one is set shows.
        assert_eq!(serde_json::to_value(Secret::new("")).unwrap(), "");
    }

    #[test]
    fn errors_never_show_what_may_be_a_secret() {
        for (yaml, key) in [
            ("auth: {jwt_secret: 4711}", "auth.jwt_secret"),
            ("auth: {jwt_secret: [4711]}", "auth.jwt_secret"),
            ("auth: {jwt_previous_secrets: '4711'}", "auth.jwt_previous_secrets"),
            (
                "auth: {jwt_previous_secrets: [x, 4711]}",
                "auth.jwt_previous_secrets[1]",
            ),
            ("auth: {jwt_secert: 'x4711'}", "auth.jwt_secert"),
            ("redis: 'redis://:4711@h'", "redis"),
            ("postgres: {url: 4711}", "postgres.url"),
            ("4711", "."),
            ("auth:\n  jwt_secret: \"4711\n  jwt_issuer: a\n", "not valid YAML"),
            ("auth: {jwt_secret: '4711', jwt_secret: '4711'}", "not valid YAML"),
        ] {
            let text = refusal(yaml, &[]);
            assert!(text.contains(key) && !text.contains("4711"), "{text}");
        }
        for (name, key) in [("POSDUIF__AUTH", "auth"), ("POSDUIF__REDIS", "redis")] {
            let text = refusal("", &[(name, "{url: \"4711")]);
            assert!(
                text.contains(&format!("key `{key}`")) && !text.contains("4711"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_token_secret_must_be_long_and_no_example() {
        for bad in ["", "tiny", "change-me-change-me-change-me-change-me"] {
            let text = format!(
                "{:#}",
                load("", &[("POSDUIF__AUTH__JWT_SECRET", bad)])
                    .unwrap()
                    .check_secrets()
                    .unwrap_err()
            );
            assert!(text.contains("key `auth.jwt_secret`"), "{text}");
            assert!(bad.is_empty() || !text.contains(bad), "{text}");
        }
        let good = "0123456789abcdef0123456789abcdef";
        let env = [
            ("POSDUIF__AUTH__JWT_SECRET", good),
            ("POSDUIF__AUTH__JWT_PREVIOUS_SECRETS", "[tiny]"),
        ];
        load("", &env[..1]).unwrap().check_secrets().unwrap();
        let text = format!("{:#}", load("", &env).unwrap().check_secrets().unwrap_err());
        assert!(text.contains("key `auth.jwt_previous_secrets[0]`"), "{text}");
    }
}
