//! Questions to Postgres that come at about the same time, asked as one.
//!
//! When tens of thousands of clients come back at once, what each must know costs a statement for all who ask within some
//! milliseconds, not one for each. Who asks alone is answered at once.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use crate::core::tenant::Tenant;
use crate::feature::Error;
use crate::postgres::{self, Database};

/// Least time between two statements.
const PAUSE: Duration = Duration::from_millis(20);

/// Most questions in one statement.
const BATCH_MAX: usize = 1000;

/// Answers by their questions.
pub type Found<K, V> = Result<HashMap<K, V>, Error>;

type Fetch<K, V> = dyn Fn(Vec<K>) -> Pin<Box<dyn Future<Output = Found<K, V>> + Send>> + Send + Sync;

/// A question, and who waits for its answer.
type Asked<K, V> = (K, oneshot::Sender<Result<Option<V>, Error>>);

/// Gathers questions. Cloning shares it. Its queue holds one question for each request under way, so that
/// `server.connections_max` bounds it.
pub struct Loader<K, V>(Arc<Shared<K, V>>);

struct Shared<K, V> {
    queue: Mutex<Queue<K, V>>,
    fetch: Box<Fetch<K, V>>,
}

struct Queue<K, V> {
    waiting: Vec<Asked<K, V>>,
    /// Somebody answers.
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
    /// A loader that finds answers by this.
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

    /// The answer to one question, found after it was asked; `None` when there is none.
    ///
    /// # Errors
    /// When it could not be looked for.
    pub async fn load(&self, key: K) -> Result<Option<V>, Error> {
        let (sender, answer) = oneshot::channel();
        let begins = {
            let mut queue = self.0.lock();
            queue.waiting.push((key, sender));
            !std::mem::replace(&mut queue.is_served, true)
        };
        if begins {
            // A task of its own: whoever began it may go away before others have their answers.
            tokio::spawn(self.clone().serve());
        }
        answer
            .await
            .unwrap_or_else(|_| Err(Error::Internal("a question was dropped".into())))
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
                let answer = match &found {
                    Ok(found) => Ok(found.get(&key).cloned()),
                    Err(error) => Err(same(error)),
                };
                let _nobody_waits = sender.send(answer);
            }
            tokio::time::sleep_until(began + PAUSE).await;
        }
    }
}

impl<V> Loader<(Tenant, Uuid), V>
where
    V: Clone + Send + 'static,
{
    /// A loader that finds answers about the users of one tenant by this.
    pub fn by_tenant<F>(database: Database, fetch: fn(Database, Tenant, Vec<Uuid>) -> F) -> Self
    where
        F: Future<Output = Found<Uuid, V>> + Send + 'static,
    {
        Self::new(move |asked: Vec<(Tenant, Uuid)>| {
            let database = database.clone();
            async move {
                let mut by_tenant: HashMap<Tenant, Vec<Uuid>> = HashMap::new();
                for (tenant, user) in asked {
                    by_tenant.entry(tenant).or_default().push(user);
                }
                let mut found = HashMap::new();
                for (tenant, users) in by_tenant {
                    let answers = fetch(database.clone(), tenant.clone(), users).await?;
                    found.extend(
                        answers
                            .into_iter()
                            .map(|(user, answer)| ((tenant.clone(), user), answer)),
                    );
                }
                Ok(found)
            }
        })
    }
}

impl<K, V> Shared<K, V> {
    fn lock(&self) -> MutexGuard<'_, Queue<K, V>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error for another one who asked.
fn same(error: &Error) -> Error {
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
    async fn who_asks_at_the_same_time_is_answered_together_and_who_asks_alone_at_once() {
        let asked: Arc<Mutex<Vec<usize>>> = Arc::default();
        let loader = {
            let asked = asked.clone();
            Loader::new(move |keys: Vec<u32>| {
                asked.lock().unwrap_or_else(PoisonError::into_inner).push(keys.len());
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
        assert_eq!(*asked.lock().unwrap_or_else(PoisonError::into_inner), [1, 100]);
        let failed = futures_util::future::join_all([loader.load(13), loader.load(14)]).await;
        for answer in failed {
            assert!(matches!(answer, Err(Error::Database(error)) if error.is_retryable()));
        }
    }
}
