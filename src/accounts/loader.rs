//! Batches of lookups: concurrent requests share a statement.
//!
//! When tens of thousands of clients reconnect at once, the requests of some milliseconds cost one statement instead of one
//! each. A single request is processed immediately.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use crate::core::tenant::Tenant;
use crate::feature::Error;
use crate::postgres::{self, Database};

/// Shortest interval of statements.
const PAUSE: Duration = Duration::from_millis(20);

/// Most keys of a statement.
const BATCH_MAX: usize = 1000;

/// Values by key.
pub type Found<K, V> = Result<HashMap<K, V>, Error>;

type Fetch<K, V> = dyn Fn(Vec<K>) -> Pin<Box<dyn Future<Output = Found<K, V>> + Send>> + Send + Sync;

/// A key, and the channel of its caller.
type Request<K, V> = (K, oneshot::Sender<Result<Option<V>, Error>>);

/// Batches lookups. Cloning shares the queue, which holds one key for each request in progress and is therefore bounded by
/// `server.connections_max`.
pub struct Loader<K, V>(Arc<Shared<K, V>>);

struct Shared<K, V> {
    queue: Mutex<Queue<K, V>>,
    fetch: Box<Fetch<K, V>>,
}

struct Queue<K, V> {
    waiting: Vec<Request<K, V>>,
    /// Whether a task processes the queue.
    is_served: bool,
}

impl<K, V> Clone for Loader<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, V> fmt::Debug for Loader<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loader")
    }
}

impl<K, V> Loader<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + 'static,
{
    /// A loader that fetches values with `fetch`.
    pub fn new<F>(fetch: impl Fn(Vec<K>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Found<K, V>> + Send + 'static,
    {
        Self(Arc::new(Shared {
            queue: Mutex::new(Queue {
                waiting: Vec::new(),
                is_served: false,
            }),
            fetch: Box::new(move |keys| Box::pin(fetch(keys))),
        }))
    }

    /// The value of a key, fetched after this call began; `None` when there is none.
    pub async fn load(&self, key: K) -> Result<Option<V>, Error> {
        let (sender, value) = oneshot::channel();
        let starts = {
            let mut queue = self.0.lock();
            queue.waiting.push((key, sender));
            !std::mem::replace(&mut queue.is_served, true)
        };
        if starts {
            // A task of its own: the first caller may be cancelled before the others have their values.
            tokio::spawn(self.clone().serve());
        }
        value
            .await
            .unwrap_or_else(|_| Err(Error::Internal("a lookup was dropped".into())))
    }

    async fn serve(self) {
        loop {
            let batch = {
                let mut queue = self.0.lock();
                let count = queue.waiting.len().min(BATCH_MAX);
                let batch: Vec<_> = queue.waiting.drain(..count).collect();
                if batch.is_empty() {
                    queue.is_served = false;
                    queue.waiting = Vec::new();
                    return;
                }
                batch
            };
            let began = Instant::now();
            let keys: Vec<K> = batch.iter().map(|(key, _)| key.clone()).collect();
            let found = (self.0.fetch)(keys).await;
            for (key, sender) in batch {
                let value = match &found {
                    Ok(found) => Ok(found.get(&key).cloned()),
                    Err(error) => Err(copy_of(error)),
                };
                let _ = sender.send(value);
            }
            tokio::time::sleep_until(began + PAUSE).await;
        }
    }
}

/// Batches lookups of users, each tenant's by itself: a tenant whose table is locked or broken does not hold others.
/// Cloning shares the queues, one for each tenant that has been asked for.
pub struct TenantLoader<V>(Arc<Tenants<V>>);

struct Tenants<V> {
    loaders: Mutex<HashMap<Tenant, Loader<Uuid, V>>>,
    open: Box<dyn Fn(Tenant) -> Loader<Uuid, V> + Send + Sync>,
}

impl<V> Clone for TenantLoader<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<V> fmt::Debug for TenantLoader<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TenantLoader")
    }
}

impl<V> TenantLoader<V>
where
    V: Clone + Send + 'static,
{
    /// A loader that fetches values of a tenant's users with `fetch`.
    pub fn new<F>(database: Database, fetch: fn(Database, Tenant, Vec<Uuid>) -> F) -> Self
    where
        F: Future<Output = Found<Uuid, V>> + Send + 'static,
    {
        Self::open(move |tenant| {
            let database = database.clone();
            Loader::new(move |users| fetch(database.clone(), tenant.clone(), users))
        })
    }

    fn open(open: impl Fn(Tenant) -> Loader<Uuid, V> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Tenants {
            loaders: Mutex::default(),
            open: Box::new(open),
        }))
    }

    /// The value of a user, fetched after this call began; `None` when there is none.
    pub async fn load(&self, tenant: &Tenant, user: Uuid) -> Result<Option<V>, Error> {
        let loader = {
            let mut loaders = self.0.loaders.lock();
            match loaders.get(tenant) {
                Some(loader) => loader.clone(),
                None => loaders
                    .entry(tenant.clone())
                    .or_insert((self.0.open)(tenant.clone()))
                    .clone(),
            }
        };
        loader.load(user).await
    }
}

impl<K, V> Shared<K, V> {
    fn lock(&self) -> MutexGuard<'_, Queue<K, V>> {
        self.queue.lock()
    }
}

/// The error for each caller of a batch.
fn copy_of(error: &Error) -> Error {
    match error {
        Error::Database(postgres::Error::Unavailable { code, message }) => postgres::Error::Unavailable {
            code: code.clone(),
            message: message.clone(),
        }
        .into(),
        other => Error::Internal(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tenant_that_is_stuck_or_fails_holds_no_other() {
        let tenant = |name: &str| Tenant::named(name).expect("a name");
        let loader = TenantLoader::open(|tenant| {
            Loader::new(move |users: Vec<Uuid>| {
                let name = tenant.name.clone();
                async move {
                    match &*name {
                        "stuck" => std::future::pending().await,
                        "broken" => Err(postgres::Error::unavailable("away").into()),
                        _ => Ok(users.into_iter().map(|user| (user, user.as_u128())).collect()),
                    }
                }
            })
        });
        let (stuck, broken, good) = (tenant("stuck"), tenant("broken"), tenant("good"));
        let user = Uuid::from_u128(7);
        let waiting = loader.load(&stuck, user);
        let others = async { (loader.load(&broken, user).await, loader.load(&good, user).await) };
        tokio::select! {
            biased;
            _ = waiting => unreachable!("its statement never ends"),
            (failed, found) = others => {
                assert!(failed.is_err());
                assert_eq!(found.expect("an answer"), Some(7));
            }
        }
    }

    #[tokio::test]
    async fn concurrent_lookups_share_a_statement() {
        let asked: Arc<Mutex<Vec<usize>>> = Arc::default();
        let loader = {
            let asked = asked.clone();
            Loader::new(move |keys: Vec<u32>| {
                asked.lock().push(keys.len());
                async move {
                    if keys.contains(&13) {
                        return Err(postgres::Error::unavailable("away").into());
                    }
                    let even = keys.into_iter().filter(|key| key % 2 == 0);
                    Ok(even.map(|key| (key, key * 10)).collect())
                }
            })
        };
        assert_eq!(loader.load(2).await.expect("an answer"), Some(20));
        let together = (100..200).map(|key| loader.load(key));
        let answers = futures_util::future::join_all(together).await;
        for (key, answer) in (100..200).zip(answers) {
            assert_eq!(answer.expect("an answer"), (key % 2 == 0).then_some(key * 10));
        }
        assert_eq!(*asked.lock(), [1, 100]);
        let failed = futures_util::future::join_all([loader.load(13), loader.load(14)]).await;
        for answer in failed {
            assert!(matches!(answer, Err(Error::Database(error)) if error.is_retryable()));
        }
    }
}
