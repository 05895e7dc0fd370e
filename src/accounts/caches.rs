//! What is remembered of Postgres, so that the same question costs no statement, or a smaller one: how many messages a user
//! has and has not read, how many users a tenant has, messages, and users.
//!
//! The change stream keeps it right. Each change forgets what it touches, before any reader here is told of it: an answer
//! is never older than what the client has been told. Three things could break that, and none does:
//!
//! - The log tells of a commit before Postgres shows it, and what is read in between would stay. So a value is kept only if
//!   its snapshot sees every transaction that has touched its key.
//! - Somebody is handed a change out of a stream before it comes by the live tail. Until the tail has caught up with all that
//!   was read here, nothing is remembered and nothing is answered from memory. The same goes while the tail is cut off.
//! - A change comes by while Postgres is being asked. What has been written here, or may have been missed, since the question
//!   began is not kept.
//!
//! What this node writes itself is forgotten at once. Other nodes follow with the log. Beyond all that, nothing lives longer
//! than `cache.ttl_seconds`.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::sync::Cache;
use tokio::sync::watch;
use uuid::Uuid;

use crate::accounts::users::{self, User};
use crate::config;
use crate::contract::entry::Op;
use crate::core::page::Rows;
use crate::core::snapshot::Snapshot;
use crate::core::tenant::Tenant;
use crate::feature::Error;
use crate::live::tail::{ChangeListener, Freshness, Notice};
use crate::messages::{self, Message};
use crate::postgres::Database;
use crate::redis::store::Store;
use crate::telemetry::metrics::{self, Metrics};

/// How often a count looks again for a commit that is not visible yet.
const VISIBLE_TRIES: u32 = 5;

/// How long it waits between looks.
const VISIBLE_POLL: Duration = Duration::from_millis(10);

/// After changes were missed nothing is kept for so long: what was missed may not be visible yet.
const SETTLE: Duration = Duration::from_secs(1);

/// Slots among which keys are spread to note what has changed. Keys that share one make each other be read anew, no more.
const SLOTS: usize = 16_384;

/// What a message weighs beside its text, in bytes.
const MESSAGE_BYTES: usize = 320;

/// A tenant's name, and the id of a user or a message.
type Key = (String, Uuid);

/// Stands for the whole tenant in a key.
const WHOLE_TENANT: Uuid = Uuid::nil();

/// A page of a list, with its length if that was to be counted, and what was seen.
type Counted<T> = (Rows<T>, Snapshot);

fn key(tenant: &str, id: Uuid) -> Key {
    (tenant.to_owned(), id)
}

/// A value, and what its reader saw.
#[derive(Debug)]
struct CacheEntry<V> {
    value: V,
    snapshot: Snapshot,
}

/// When a question began, as memory counts.
#[derive(Debug, Clone, Copy)]
struct Ticket(u64);

/// What is remembered of one kind.
#[derive(Debug)]
struct RowCache<V: Send + Sync + 'static> {
    values: Cache<Key, Arc<CacheEntry<V>>>,
    changes: Mutex<Changes>,
    hasher: RandomState,
}

/// What has changed, as far as it matters for what is being read.
#[derive(Debug)]
struct Changes {
    /// Counts what was written here, and what was missed.
    clock: u64,
    /// When something was missed last.
    missed: u64,
    settled: Option<Instant>,
    slots: Box<[Slot]>,
}

/// What has changed under the keys of a slot.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// When something was written here last.
    written: u64,
    /// First and last transaction that the log told of, until a snapshot is known to see all between.
    xids: Option<(u32, u32)>,
}

impl<V: Send + Sync + 'static> RowCache<V> {
    fn new(weight_max: u64, weigh: fn(&V) -> usize, lifetime: Duration) -> Self {
        Self {
            values: Cache::builder()
                .max_capacity(weight_max)
                .weigher(move |_, kept: &Arc<CacheEntry<V>>| weigh(&kept.value).try_into().unwrap_or(u32::MAX))
                .time_to_live(lifetime)
                .build(),
            changes: Mutex::new(Changes {
                clock: 0,
                missed: 0,
                settled: None,
                slots: vec![Slot::default(); SLOTS].into(),
            }),
            hasher: RandomState::new(),
        }
    }

    fn slot(&self, key: &Key) -> usize {
        self.hasher.hash_one(key) as usize % SLOTS
    }

    fn changes(&self) -> std::sync::MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &Key) -> Option<Arc<CacheEntry<V>>> {
        self.values.get(key)
    }

    /// Before Postgres is asked.
    fn begin(&self) -> Ticket {
        Ticket(self.changes().clock)
    }

    /// Keeps what was read, unless a change that it may not show has come by.
    fn keep(&self, key: Key, kept: CacheEntry<V>, ticket: Ticket) {
        let slot = self.slot(&key);
        let mut changes = self.changes();
        if changes.settled.is_some_and(|settled| Instant::now() < settled) || changes.missed > ticket.0 {
            return;
        }
        let noted = &mut changes.slots[slot];
        if noted.written > ticket.0 {
            return;
        }
        if let Some((first, last)) = noted.xids {
            if !kept.snapshot.sees_all(first, last) {
                return;
            }
            noted.xids = None;
        }
        // Under the lock, so that no change comes between the look and this.
        self.values.insert(key, Arc::new(kept));
    }

    /// The log told that a transaction has touched a key.
    fn changed(&self, key: &Key, xid: u32) {
        let slot = self.slot(key);
        let mut changes = self.changes();
        let noted = &mut changes.slots[slot].xids;
        *noted = Some(match *noted {
            Some((first, last)) => (older(first, xid), newer(last, xid)),
            None => (xid, xid),
        });
        self.values.invalidate(key);
    }

    /// This node has written under a key, and its commit is visible.
    fn written(&self, key: &Key) {
        let slot = self.slot(key);
        let mut changes = self.changes();
        changes.clock += 1;
        changes.slots[slot].written = changes.clock;
        self.values.invalidate(key);
    }

    /// Changes were missed, or touch more than is named.
    fn forget(&self) {
        let mut changes = self.changes();
        changes.clock += 1;
        changes.missed = changes.clock;
        changes.settled = Some(Instant::now() + SETTLE);
        // Ids of another history mean nothing any more.
        changes.slots.iter_mut().for_each(|slot| slot.xids = None);
        self.values.invalidate_all();
    }
}

/// Transaction ids are compared around the wrap (Postgres chapter 25.1.5).
fn older(a: u32, b: u32) -> u32 {
    if a.wrapping_sub(b).cast_signed() < 0 { a } else { b }
}

fn newer(a: u32, b: u32) -> u32 {
    if a.wrapping_sub(b).cast_signed() < 0 { b } else { a }
}

/// What the live tail keeps right.
#[derive(Debug)]
struct CacheSet {
    unread: RowCache<i64>,
    messages_total: RowCache<i64>,
    users_total: RowCache<i64>,
    messages: RowCache<Message>,
    users: RowCache<User>,
    store: Store,
}

impl CacheSet {
    fn unread(&self) -> &RowCache<i64> {
        &self.unread
    }

    fn messages_total(&self) -> &RowCache<i64> {
        &self.messages_total
    }

    fn users_total(&self) -> &RowCache<i64> {
        &self.users_total
    }

    fn messages(&self) -> &RowCache<Message> {
        &self.messages
    }

    fn users(&self) -> &RowCache<User> {
        &self.users
    }
}

impl ChangeListener for CacheSet {
    fn changed(&self, tenant: &str, notice: &Notice, users: Option<&[Uuid]>) {
        let row = notice.row_id.as_ref().and_then(|id| Uuid::try_parse(id).ok());
        match (&*notice.table, users) {
            _ if notice.op == Op::Reset => self.lost(),
            ("messages", Some(users)) => {
                for user in users {
                    let key = key(tenant, *user);
                    self.unread.changed(&key, notice.xid);
                    self.messages_total.changed(&key, notice.xid);
                }
                match row {
                    Some(id) => self.messages.changed(&key(tenant, id), notice.xid),
                    None => self.messages.forget(),
                }
            }
            ("users", told) => {
                // Whom everybody is told of has come, gone, or changed visibly.
                if told.is_none() {
                    self.users_total.changed(&key(tenant, WHOLE_TENANT), notice.xid);
                }
                match row {
                    Some(id) => self.users.changed(&key(tenant, id), notice.xid),
                    None => self.users.forget(),
                }
            }
            // What a user is shown with.
            ("devices", Some(users)) => {
                for user in users {
                    self.users.changed(&key(tenant, *user), notice.xid);
                }
            }
            ("messages" | "devices" | "", None) => self.lost(),
            _ => {}
        }
    }

    fn lost(&self) {
        self.unread.forget();
        self.messages_total.forget();
        self.users_total.forget();
        self.messages.forget();
        self.users.forget();
        // Another history may count anew.
        self.store.forget_furthest();
    }
}

/// Answers from memory, or asks Postgres and remembers. Cloning shares the memory.
#[derive(Debug, Clone)]
pub struct Caches {
    database: Database,
    memories: Option<Arc<CacheSet>>,
    freshness: watch::Receiver<Freshness>,
    freshness_bound: Duration,
    metrics: Arc<Metrics>,
}

impl Caches {
    /// Takes bounds from the settings. What it remembers is right only as long as the hub has its [`Caches::listener`].
    pub fn new(
        database: Database,
        store: Store,
        settings: &config::Config,
        freshness: watch::Receiver<Freshness>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let cache = &settings.cache;
        let lifetime = Duration::from_secs(cache.ttl_seconds);
        Self {
            database,
            memories: (cache.ttl_seconds > 0).then(|| {
                Arc::new(CacheSet {
                    unread: RowCache::new(cache.entries_max, |_| 1, lifetime),
                    messages_total: RowCache::new(cache.entries_max, |_| 1, lifetime),
                    users_total: RowCache::new(cache.entries_max, |_| 1, lifetime),
                    messages: RowCache::new(
                        cache.messages_bytes_max,
                        |message| message.content.len() + MESSAGE_BYTES,
                        lifetime,
                    ),
                    users: RowCache::new(cache.entries_max, |_| 1, lifetime),
                    store,
                })
            }),
            freshness,
            freshness_bound: Duration::from_secs(settings.health.freshness_bound_seconds),
            metrics,
        }
    }

    /// What must hear of every change before anybody else does; nothing when nothing is remembered.
    pub fn listener(&self) -> Option<Arc<dyn ChangeListener>> {
        self.memories
            .clone()
            .map(|memories| memories as Arc<dyn ChangeListener>)
    }

    /// The memory, if it is as new as all that was told here.
    fn current(&self) -> Option<&Arc<CacheSet>> {
        let memories = self.memories.as_ref()?;
        let freshness = *self.freshness.borrow();
        let is_current = freshness.is_connected
            && freshness.age().is_some_and(|age| age <= self.freshness_bound)
            && freshness.position >= memories.store.furthest();
        is_current.then_some(memories)
    }

    async fn answer<V: Clone + Send + Sync + 'static>(
        &self,
        kind: metrics::Cache,
        memory: fn(&CacheSet) -> &RowCache<V>,
        (tenant, id): (&Tenant, Uuid),
        is_usable: impl Fn(&Snapshot) -> bool,
        ask: impl Future<Output = Result<(V, Option<Snapshot>), Error>>,
    ) -> Result<V, Error> {
        let Some(memories) = self.current() else {
            return Ok(ask.await?.0);
        };
        let (memory, key) = (memory(memories), key(&tenant.name, id));
        if let Some(kept) = memory.get(&key).filter(|kept| is_usable(&kept.snapshot)) {
            self.metrics.caches.lookup(kind, true);
            return Ok(kept.value.clone());
        }
        self.metrics.caches.lookup(kind, false);
        let ticket = memory.begin();
        let (value, snapshot) = ask.await?;
        if let Some(snapshot) = snapshot {
            let kept = CacheEntry {
                value: value.clone(),
                snapshot,
            };
            memory.keep(key, kept, ticket);
        }
        Ok(value)
    }

    /// How many messages to this user are unread.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn unread_count(&self, tenant: &Tenant, user: Uuid) -> Result<i64, Error> {
        let ask = async {
            let (count, snapshot) = messages::unread_count(&self.database, tenant, user).await?;
            Ok((count, Some(snapshot)))
        };
        self.answer(
            metrics::Cache::UnreadCount,
            CacheSet::unread,
            (tenant, user),
            |_| true,
            ask,
        )
        .await
    }

    /// How many messages to this user are unread, the one of transaction `xid` included.
    ///
    /// The log can bring a message before a snapshot sees it: by a hair on any server, for long while a commit waits for a
    /// standby. So the count waits a little for it, and then adds it.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn unread_count_including(&self, tenant: &Tenant, user: Uuid, xid: u32) -> Result<i64, Error> {
        let sees = |snapshot: &Snapshot| snapshot.sees_all(xid, xid);
        let ask = async {
            let mut tries = 0;
            loop {
                let (count, snapshot) = messages::unread_count(&self.database, tenant, user).await?;
                if sees(&snapshot) {
                    return Ok((count, Some(snapshot)));
                }
                if tries == VISIBLE_TRIES {
                    return Ok((count + 1, None));
                }
                tries += 1;
                tokio::time::sleep(VISIBLE_POLL).await;
            }
        };
        self.answer(metrics::Cache::UnreadCount, CacheSet::unread, (tenant, user), sees, ask)
            .await
    }

    /// A page of all messages that this user has sent and got, as [`Caches::counted`].
    ///
    /// # Errors
    /// Those of `ask`.
    pub(crate) async fn messages_page<T, F>(
        &self,
        tenant: &Tenant,
        user: Uuid,
        ask: impl Fn(bool) -> F,
    ) -> Result<Rows<T>, Error>
    where
        F: Future<Output = Result<Counted<T>, Error>>,
    {
        let kind = metrics::Cache::MessagesTotal;
        self.counted(kind, CacheSet::messages_total, (tenant, user), ask).await
    }

    /// A page of all mobile users of the tenant, as [`Caches::counted`].
    ///
    /// # Errors
    /// Those of `ask`.
    pub(crate) async fn users_page<T, F>(&self, tenant: &Tenant, ask: impl Fn(bool) -> F) -> Result<Rows<T>, Error>
    where
        F: Future<Output = Result<Counted<T>, Error>>,
    {
        let kind = metrics::Cache::UsersTotal;
        self.counted(kind, CacheSet::users_total, (tenant, WHOLE_TENANT), ask)
            .await
    }

    /// A page of a list whose length is remembered. `ask` reads it, and counts the list if it is to.
    async fn counted<T, F>(
        &self,
        kind: metrics::Cache,
        memory: fn(&CacheSet) -> &RowCache<i64>,
        key: (&Tenant, Uuid),
        ask: impl Fn(bool) -> F,
    ) -> Result<Rows<T>, Error>
    where
        F: Future<Output = Result<Counted<T>, Error>>,
    {
        // Who counts reads the page as well.
        let mut read = None;
        let total = self.answer(kind, memory, key, |_| true, async {
            let (page, snapshot) = ask(true).await?;
            let total = page.total.unwrap_or_default();
            read = Some(page);
            Ok((total, Some(snapshot)))
        });
        let total = total.await?;
        let mut page = match read {
            Some(page) => page,
            None => ask(false).await?.0,
        };
        page.total = Some(total);
        Ok(page)
    }

    /// One message, whoever asks.
    ///
    /// # Errors
    /// [`Error::NotFound`]; when Postgres cannot be asked.
    pub(crate) async fn message(&self, tenant: &Tenant, id: Uuid) -> Result<Message, Error> {
        let ask = async {
            let (message, snapshot) = messages::find(&self.database, tenant, id).await?;
            // That a message to oneself was synced is told to nobody.
            let is_told = message.sender_id != message.recipient_id;
            Ok((message, is_told.then_some(snapshot)))
        };
        self.answer(metrics::Cache::Message, CacheSet::messages, (tenant, id), |_| true, ask)
            .await
    }

    /// One user, as if nobody were here: that comes from presence, see [`User::set_presence`].
    ///
    /// # Errors
    /// [`Error::NotFound`] when it does not exist or is deleted; when Postgres cannot be asked.
    pub async fn user(&self, tenant: &Tenant, id: Uuid) -> Result<User, Error> {
        let ask = async {
            let (user, snapshot) = users::fetch(&self.database, tenant, id).await?;
            Ok((user, Some(snapshot)))
        };
        self.answer(metrics::Cache::User, CacheSet::users, (tenant, id), |_| true, ask)
            .await
    }

    /// This node has changed messages; who reads them here next sees it.
    pub fn invalidate_messages(&self, tenant: &str, ids: impl IntoIterator<Item = Uuid>) {
        if let Some(memories) = &self.memories {
            ids.into_iter()
                .for_each(|id| memories.messages.written(&key(tenant, id)));
        }
    }

    /// This node has changed which messages users have read, or have.
    pub fn invalidate_counts(&self, tenant: &str, users: impl IntoIterator<Item = Uuid>) {
        if let Some(memories) = &self.memories {
            for user in users {
                let key = key(tenant, user);
                memories.unread.written(&key);
                memories.messages_total.written(&key);
            }
        }
    }

    /// This node has changed a user, or their devices.
    pub fn invalidate_user(&self, tenant: &str, user: Uuid) {
        if let Some(memories) = &self.memories {
            memories.users.written(&key(tenant, user));
            memories.users_total.written(&key(tenant, WHOLE_TENANT));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> RowCache<i64> {
        RowCache::new(100, |_| 1, Duration::from_secs(60))
    }

    fn kept(value: i64, snapshot: &str) -> CacheEntry<i64> {
        CacheEntry {
            value,
            snapshot: Snapshot::parse(snapshot).expect("a snapshot"),
        }
    }

    fn value(memory: &RowCache<i64>, key: &Key) -> Option<i64> {
        memory.get(key).map(|kept| kept.value)
    }

    #[test]
    fn what_was_read_before_a_change_is_not_kept_after_it() {
        let (memory, key) = (memory(), key("demo", Uuid::from_u128(1)));
        let ticket = memory.begin();
        memory.keep(key.clone(), kept(1, "100:100:"), ticket);
        assert_eq!(value(&memory, &key), Some(1));
        memory.changed(&key, 100);
        assert_eq!(value(&memory, &key), None);
        // Read before the change was visible, whenever the question began.
        memory.keep(key.clone(), kept(1, "100:100:"), ticket);
        memory.keep(key.clone(), kept(1, "100:101:100"), memory.begin());
        assert_eq!(value(&memory, &key), None);
        // A later transaction is visible, an earlier one that was told of is not.
        memory.changed(&key, 102);
        memory.keep(key.clone(), kept(1, "100:103:100"), memory.begin());
        assert_eq!(value(&memory, &key), None);
        memory.keep(key.clone(), kept(2, "103:103:"), memory.begin());
        assert_eq!(value(&memory, &key), Some(2));
    }

    #[test]
    fn what_was_asked_before_an_own_write_is_not_kept_after_it() {
        let (memory, mine) = (memory(), key("demo", Uuid::from_u128(1)));
        let before = memory.begin();
        memory.written(&mine);
        memory.keep(mine.clone(), kept(1, "100:100:"), before);
        assert_eq!(value(&memory, &mine), None);
        memory.keep(mine.clone(), kept(2, "101:101:"), memory.begin());
        assert_eq!(value(&memory, &mine), Some(2));
        // Another tenant's row of the same id is another's.
        assert_eq!(value(&memory, &key("other", Uuid::from_u128(1))), None);
    }

    #[test]
    fn when_changes_were_missed_nothing_stays_and_for_a_moment_nothing_comes() {
        let (memory, key) = (memory(), key("demo", Uuid::from_u128(1)));
        let before = memory.begin();
        memory.keep(key.clone(), kept(1, "100:100:"), before);
        memory.forget();
        assert_eq!(value(&memory, &key), None);
        memory.keep(key.clone(), kept(1, "100:100:"), memory.begin());
        assert_eq!(value(&memory, &key), None);
        memory.changes().settled = None;
        memory.keep(key.clone(), kept(1, "100:100:"), before);
        assert_eq!(value(&memory, &key), None);
        memory.keep(key.clone(), kept(2, "100:100:"), memory.begin());
        assert_eq!(value(&memory, &key), Some(2));
    }

    #[test]
    fn transaction_ids_are_compared_around_the_wrap() {
        assert_eq!((older(1, 2), newer(1, 2)), (1, 2));
        assert_eq!((older(u32::MAX, 3), newer(u32::MAX, 3)), (u32::MAX, 3));
    }
}
