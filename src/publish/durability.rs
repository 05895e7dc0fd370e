//! When Redis can no longer lose what it holds. The state machine is pure; [`super::aof`] queries Redis.
//!
//! With `appendonly yes` and `appendfsync everysec` a reply only means "in memory". Redis writes its AOF buffer to the
//! file before it goes back to sleep, and syncs the file about once a second on another thread. So a batch is on disk
//! when `INFO persistence` showed `aof_buffer_length:0` after it and, at least two seconds later, showed
//! `aof_pending_bio_fsync:0`. A plain wait is not enough, because a sync can take longer than any wait.
//!
//! A server with `WAITAOF` (Redis 7.2, Valkey) reports the same earlier and without assumptions about its internals: it
//! waits until its file holds the last write of the calling connection, and all writes before that one.
//!
//! Where `redis.replicas_min` requires replicas, a position is durable when as many of them have acknowledged it, too.

use crate::redis::info::Info;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use postgres_types::PgLsn;

/// The sync that ends may have begun before the buffer was empty; the next begins within two seconds.
const SYNC_INTERVAL: Duration = Duration::from_secs(2);

/// What protects Redis' memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing: a crash of Redis resets all devices.
    Off,
    /// The AOF, synced about once a second.
    EverySecond,
    /// The AOF, synced before each reply.
    Always,
}

impl Persistence {
    /// By whether the AOF is enabled, and the setting `appendfsync`. Managed servers may keep that secret, which is an
    /// empty text; the slower rule is safe with all policies.
    pub fn of(is_enabled: bool, policy: &str) -> Self {
        match policy {
            _ if !is_enabled => Self::Off,
            "always" => Self::Always,
            "no" => Self::Off,
            _ => Self::EverySecond,
        }
    }
}

/// How long published changes may stay out of Redis' file before that counts as a fault.
const STALL: Duration = Duration::from_secs(30);

/// Notices that Redis publishes, but no longer writes to its disk.
#[derive(Debug, Default)]
pub struct StallWatch {
    /// Where durability stands while it is behind, and since when.
    stands: Option<(PgLsn, Instant)>,
}

impl StallWatch {
    /// Records where both stand; true when changes were published, and none became durable for long.
    pub fn is_stalled(&mut self, published: PgLsn, durable: PgLsn, now: Instant) -> bool {
        if durable >= published {
            self.stands = None;
            return false;
        }
        match self.stands {
            Some((at, since)) if at == durable => now.duration_since(since) >= STALL,
            _ => {
                self.stands = Some((durable, now));
                false
            }
        }
    }
}

/// The AOF's part of `INFO persistence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AofState {
    pub enabled: bool,
    /// Bytes not yet written to the file.
    pub buffer_length: u64,
    /// Syncs in progress.
    pub pending_fsync: u64,
    /// The last write to the file succeeded.
    pub last_write_ok: bool,
}

impl AofState {
    pub fn parse(info: &str) -> Self {
        let info = Info::parse(info);
        Self {
            enabled: info.number("aof_enabled") == Some(1),
            // A missing field counts as busy.
            buffer_length: info.number("aof_buffer_length").unwrap_or(u64::MAX),
            pending_fsync: info.number("aof_pending_bio_fsync").unwrap_or(u64::MAX),
            last_write_ok: matches!(info.get("aof_last_write_status"), "" | "ok"),
        }
    }
}

/// An observation of Redis' append-only file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    State(AofState),
    /// The file holds all that was written before the query.
    Synced,
    /// It did not within the given time.
    NotYet,
}

impl Observation {
    /// Reads the first number of the reply to `WAITAOF`, which concerns the server's own file; replicas do not count.
    pub fn of_waitaof(synced_locally: i64) -> Self {
        if synced_locally >= 1 {
            Self::Synced
        } else {
            Self::NotYet
        }
    }
}

/// Whether the server has `WAITAOF`, by its `INFO server`. Valkey also reports Redis 7.2 there.
pub fn has_waitaof(info: &Info) -> bool {
    let mut parts = info.get("redis_version").split('.').map(str::parse::<u32>);
    matches!((parts.next(), parts.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (7, 2))
}

/// A published position on its way to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    durable: Durable,
    /// When the file was first seen to hold it.
    written_at: Instant,
}

/// Follows published positions to the disk.
#[derive(Debug)]
pub struct Durability {
    persistence: Persistence,
    /// Oldest first; each observation adds one, and each leaves after some seconds, so there are few.
    candidates: VecDeque<Candidate>,
    replicas: Option<Replicas>,
}

/// How far Redis itself and its replicas are, where replicas are required.
#[derive(Debug, Default)]
struct Replicas {
    /// What Redis itself can no longer lose.
    local: Option<Durable>,
    /// What enough replicas have acknowledged.
    acknowledged: Option<Durable>,
}

impl Replicas {
    /// What both have.
    fn meet(&self) -> Option<Durable> {
        let (local, replicas) = self.local.zip(self.acknowledged)?;
        Some(Durable {
            published: local.published.min(replicas.published),
            acknowledged: local.acknowledged.min(replicas.acknowledged),
        })
    }
}

/// What has become durable: a position, and the checkpoint's `acknowledged` at that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durable {
    /// Everything up to here is on disk.
    pub published: PgLsn,
    /// The checkpoint on disk allows to acknowledge up to here.
    pub acknowledged: PgLsn,
}

impl Durability {
    pub fn new(persistence: Persistence, needs_replicas: bool) -> Self {
        Self {
            persistence,
            candidates: VecDeque::new(),
            replicas: needs_replicas.then(Replicas::default),
        }
    }

    /// Records that enough replicas have what an `EXEC` had written before the query.
    pub fn replicated(&mut self, published: PgLsn, acknowledged: PgLsn) -> Option<Durable> {
        let replicas = self.replicas.as_mut()?;
        replicas.acknowledged = Some(Durable {
            published,
            acknowledged,
        });
        replicas.meet()
    }

    /// What is durable, now that Redis itself can no longer lose this.
    fn reach(&mut self, local: Durable) -> Option<Durable> {
        match &mut self.replicas {
            Some(replicas) => {
                replicas.local = Some(local);
                replicas.meet()
            }
            None => Some(local),
        }
    }

    /// Follows a change of Redis' settings; gives what protected its memory before, when that is another thing.
    pub fn adapt(&mut self, persistence: Persistence) -> Option<Persistence> {
        let before = std::mem::replace(&mut self.persistence, persistence);
        if before == persistence {
            return None;
        }
        self.candidates.clear();
        Some(before)
    }

    /// Records a successful `EXEC`. Without a sync to wait for, the position is at once as durable as it will be.
    pub fn published(&mut self, published: PgLsn, acknowledged: PgLsn) -> Option<Durable> {
        match self.persistence {
            Persistence::Off | Persistence::Always => self.reach(Durable {
                published,
                acknowledged,
            }),
            Persistence::EverySecond => None,
        }
    }

    /// Records an observation. `published` and `acknowledged` are what an `EXEC` had written before the query.
    pub fn observe(
        &mut self,
        observation: Observation,
        published: PgLsn,
        acknowledged: PgLsn,
        now: Instant,
    ) -> Option<Durable> {
        if self.persistence != Persistence::EverySecond {
            return None;
        }
        let state = match observation {
            Observation::State(state) => state,
            Observation::Synced => {
                // All candidates are older.
                self.candidates.clear();
                return self.reach(Durable {
                    published,
                    acknowledged,
                });
            }
            Observation::NotYet => return None,
        };
        if !state.enabled || !state.last_write_ok {
            self.candidates.clear();
            return None;
        }
        let mut reached = None;
        if state.pending_fsync == 0 {
            while let Some(candidate) = self.candidates.front()
                && now.duration_since(candidate.written_at) >= SYNC_INTERVAL
            {
                reached = Some(candidate.durable);
                self.candidates.pop_front();
            }
        }
        let durable = Durable {
            published,
            acknowledged,
        };
        if state.buffer_length == 0 && self.candidates.back().is_none_or(|last| last.durable != durable) {
            self.candidates.push_back(Candidate {
                durable,
                written_at: now,
            });
        }
        self.reach(reached?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aof(buffer_length: u64, pending_fsync: u64) -> AofState {
        AofState {
            enabled: true,
            buffer_length,
            pending_fsync,
            last_write_ok: true,
        }
    }

    fn state(buffer_length: u64, pending_fsync: u64) -> Observation {
        Observation::State(aof(buffer_length, pending_fsync))
    }

    #[test]
    fn waitaof_exists_from_redis_7_2_on() {
        let has = |info: &str| has_waitaof(&Info::parse(info));
        let of = |version: &str| format!("# Server\r\nredis_version:{version}\r\nos:Linux\r\n");
        for version in ["7.2.0", "7.2.4", "7.10.1", "8.0.0", "10.0"] {
            assert!(has(&of(version)), "{version}");
        }
        for version in ["7.0.15", "6.3.4", "2.8", "", "7", "x.y", "255"] {
            assert!(!has(&of(version)), "{version}");
        }
        assert!(!has("valkey_version:8.0.1"));
        assert!(has(
            "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\n"
        ));
    }

    #[test]
    fn waitaof_confirms_at_once_or_not_at_all() {
        let mut durability = Durability::new(Persistence::EverySecond, false);
        let now = Instant::now();
        assert_eq!(Observation::of_waitaof(0), Observation::NotYet);
        assert_eq!(durability.observe(Observation::NotYet, 10.into(), 1.into(), now), None);
        let durable = Durable {
            published: 20.into(),
            acknowledged: 2.into(),
        };
        assert_eq!(
            durability.observe(Observation::of_waitaof(1), 20.into(), 2.into(), now),
            Some(durable)
        );
    }

    #[test]
    fn refused_waitaof_falls_back_to_the_state_and_never_goes_back() {
        let mut durability = Durability::new(Persistence::EverySecond, false);
        let start = Instant::now();
        assert_eq!(durability.observe(state(0, 0), 10.into(), 1.into(), start), None);
        let synced = durability.observe(Observation::Synced, 20.into(), 2.into(), start);
        assert_eq!(synced.map(|durable| durable.published), Some(20.into()));
        // The observation at 10 is old enough by now, but it is behind the synced position.
        let later = start + 2 * SYNC_INTERVAL;
        assert_eq!(durability.observe(state(0, 0), 30.into(), 3.into(), later), None);
        let reached = durability.observe(state(0, 0), 40.into(), 4.into(), later + SYNC_INTERVAL);
        assert_eq!(reached.map(|durable| durable.published), Some(30.into()));
    }

    #[test]
    fn missing_info_fields_count_as_busy() {
        let info = "# Persistence\r\naof_enabled:1\r\naof_last_write_status:ok\r\naof_buffer_length:0\r\naof_pending_bio_fsync:1\r\n";
        assert_eq!(AofState::parse(info), aof(0, 1));
        assert_eq!(AofState::parse("aof_enabled:1").buffer_length, u64::MAX);
        assert!(!AofState::parse("").enabled);
    }

    #[test]
    fn position_is_durable_after_empty_buffer_and_one_whole_sync() {
        let mut durability = Durability::new(Persistence::EverySecond, false);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_millis(seconds);
        assert_eq!(durability.published(10.into(), 1.into()), None);
        assert_eq!(durability.observe(state(5, 0), 10.into(), 1.into(), at(0)), None);
        assert_eq!(durability.observe(state(0, 1), 20.into(), 2.into(), at(100)), None);
        assert_eq!(durability.observe(state(0, 0), 30.into(), 3.into(), at(2000)), None);
        assert_eq!(durability.observe(state(0, 1), 30.into(), 3.into(), at(2200)), None);
        assert_eq!(
            durability.observe(state(7, 0), 30.into(), 3.into(), at(2300)),
            Some(Durable {
                published: 20.into(),
                acknowledged: 2.into()
            })
        );
    }

    #[test]
    fn change_of_persistence_is_followed_in_both_directions() {
        assert_eq!(Persistence::of(false, "always"), Persistence::Off);
        assert_eq!(Persistence::of(true, "no"), Persistence::Off);
        assert_eq!(Persistence::of(true, "always"), Persistence::Always);
        assert_eq!(Persistence::of(true, ""), Persistence::EverySecond);
        let mut durability = Durability::new(Persistence::EverySecond, false);
        let start = Instant::now();
        assert_eq!(durability.observe(state(0, 0), 10.into(), 1.into(), start), None);
        assert_eq!(durability.adapt(Persistence::EverySecond), None);
        assert_eq!(durability.adapt(Persistence::Off), Some(Persistence::EverySecond));
        assert!(durability.published(20.into(), 2.into()).is_some());
        assert_eq!(durability.adapt(Persistence::EverySecond), Some(Persistence::Off));
        assert_eq!(durability.published(30.into(), 3.into()), None);
        // What was seen before does not count: the file is another one.
        let later = start + 2 * SYNC_INTERVAL;
        assert_eq!(durability.observe(state(0, 0), 30.into(), 3.into(), later), None);
        assert!(
            durability
                .observe(state(0, 0), 30.into(), 3.into(), later + SYNC_INTERVAL)
                .is_some()
        );
    }

    #[test]
    fn required_replicas_and_the_file_must_both_have_a_position() {
        let durable = |published: u64, acknowledged: u64| {
            Some(Durable {
                published: published.into(),
                acknowledged: acknowledged.into(),
            })
        };
        let now = Instant::now();
        let mut durability = Durability::new(Persistence::EverySecond, true);
        let synced = |durability: &mut Durability, published: u64, acknowledged: u64| {
            durability.observe(Observation::Synced, published.into(), acknowledged.into(), now)
        };
        assert_eq!(synced(&mut durability, 10, 1), None);
        assert_eq!(durability.replicated(20.into(), 2.into()), durable(10, 1));
        assert_eq!(synced(&mut durability, 30, 3), durable(20, 2));
        assert_eq!(durability.replicated(40.into(), 4.into()), durable(30, 3));
        let mut durability = Durability::new(Persistence::Off, true);
        assert_eq!(durability.published(10.into(), 1.into()), None);
        assert_eq!(durability.replicated(10.into(), 1.into()), durable(10, 1));
        assert_eq!(durability.published(20.into(), 2.into()), durable(10, 1));
        // What is not required delays nothing.
        let mut durability = Durability::new(Persistence::Off, false);
        assert_eq!(durability.replicated(10.into(), 1.into()), None);
        assert_eq!(durability.published(20.into(), 2.into()), durable(20, 2));
    }

    #[test]
    fn stall_needs_publishing_without_durable_progress_for_long() {
        let mut watch = StallWatch::default();
        let start = Instant::now();
        assert!(!watch.is_stalled(10.into(), 10.into(), start));
        assert!(!watch.is_stalled(20.into(), 10.into(), start + STALL));
        assert!(!watch.is_stalled(30.into(), 20.into(), start + STALL * 2));
        assert!(watch.is_stalled(40.into(), 20.into(), start + STALL * 3));
        assert!(!watch.is_stalled(40.into(), 40.into(), start + STALL * 4));
    }

    #[test]
    fn failing_write_restarts_the_wait() {
        let mut durability = Durability::new(Persistence::EverySecond, false);
        let start = Instant::now();
        durability.observe(state(0, 0), 10.into(), 1.into(), start);
        let failing = Observation::State(AofState {
            last_write_ok: false,
            ..aof(0, 0)
        });
        assert_eq!(
            durability.observe(failing, 10.into(), 1.into(), start + SYNC_INTERVAL),
            None
        );
        assert_eq!(
            durability.observe(state(0, 0), 10.into(), 1.into(), start + 2 * SYNC_INTERVAL),
            None
        );
    }
}
