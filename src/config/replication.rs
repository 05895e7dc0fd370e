use anyhow::{Result, bail};

use super::section::{KIB, MIB, section};

section! {
    /// Reading the write-ahead log and publishing it.
    pub struct Replication {
        /// Name of the logical replication slot; created if missing.
        pub slot: String = "posduif".into();
        /// Name of the publication; created if missing, before the slot.
        pub publication: String = "posduif".into();
        /// Milliseconds between heartbeats, transactional messages from which freshness is measured.
        pub heartbeat_interval_ms: u64 = 1000, 100..=10_000;
        /// Seconds between looks at the catalogs for changes of tables that the log does not have; 0 disables them.
        pub catalog_interval_seconds: u64 = 5, 0..=3600;
        /// Seconds without data from Postgres after which the connection is closed, unless its walsender is at work; at
        /// least half of `wal_sender_timeout_seconds` applies.
        pub idle_timeout_seconds: u64 = 8, 2..=300;
        /// `wal_sender_timeout` of the session in seconds: without a reply for this long, Postgres releases the slot of a
        /// failed engine.
        pub wal_sender_timeout_seconds: u64 = 6, 2..=300;
        /// Maximum size in bytes of a change in the log, with the old row. A larger one is not read: it goes to the
        /// quarantine, and where a rule covers its table, all devices of the tenant take a snapshot.
        pub row_bytes_max: usize = 64 * 1024 * 1024, MIB..=384 * MIB;
        /// Maximum number of changes in one batch to Redis.
        pub batch_changes_max: usize = 500, 1..=100_000;
        /// Bytes of commands at which a batch is full; one change may exceed it.
        pub batch_bytes_max: usize = 1024 * 1024, 4 * KIB..=64 * MIB;
    }
}

impl Replication {
    pub(super) fn check(&self) -> Result<()> {
        check_name("replication.slot", &self.slot)?;
        check_name("replication.publication", &self.publication)
    }
}

/// Checks the name of a slot or publication. Postgres allows these in slot names (chapter 27.2.6); publications use the same, so
/// that no identifier needs quotes.
pub(super) fn check_name(key: &str, name: &str) -> Result<()> {
    let is_allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_');
    if name.is_empty() || name.len() > 63 || !name.bytes().all(is_allowed) {
        bail!("key `{key}` is \"{name}\": allowed are 1 to 63 of a-z, 0-9 and _");
    }
    Ok(())
}
