use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::section::{GIB, KIB, MIB, number, section, within};

/// What happens when both sides changed the same message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConflictStrategy {
    /// The later arrival at Postgres wins; the other version is kept in `message_conflicts`.
    LastWriteWins,
    /// The server's version stays until the conflict is resolved by a request.
    Manual,
}

section! {
    /// Batches to and from devices.
    pub struct Sync {
        /// Rows in a batch unless the device requests a number (1 to `batch_size_max`).
        pub batch_size: usize = 100;
        /// Maximum number of rows in a batch.
        pub batch_size_max: usize = 1000, 1..=10_000;
        /// Bytes of rows at which a batch ends early; one row may exceed it.
        pub batch_bytes_max: usize = 4 * 1024 * 1024, 64 * KIB..=64 * MIB;
        /// Maximum number of items in an upload.
        pub upload_items_max: usize = 1000, 1..=10_000;
        /// Maximum size of an upload in bytes after decompression.
        pub upload_bytes_max: usize = 8 * 1024 * 1024, 64 * KIB..=256 * MIB;
        /// Whether responses are compressed with gzip when the client accepts it.
        pub compression: bool = true;
        /// Minimum size in bytes of a response that is compressed.
        pub compression_threshold_bytes: usize = 1024, 0..=GIB;
        /// Level of gzip; 1 is the fastest, 9 the smallest.
        pub compression_level: u32 = 4, 1..=9;
        /// Recommended seconds between two syncs of an app that receives no events.
        pub interval_seconds: u64 = 300, 10..=86_400;
        /// What happens when both sides changed the same message: `last_write_wins` or `manual`.
        pub conflict_strategy: ConflictStrategy = ConflictStrategy::LastWriteWins;
        /// Seconds between two bulk writes of the devices' last sync times to Postgres.
        pub metadata_interval_seconds: u64 = 10, 1..=3600;
    }
}

impl Sync {
    pub(super) fn check(&self) -> Result<()> {
        within(
            "sync.batch_size",
            number(self.batch_size),
            &(1..=number(self.batch_size_max)),
        )
    }
}
