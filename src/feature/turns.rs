//! Turns: work of one user waits in a line of its own before it takes a connection of the pool, so that users who wait for
//! each other inside Postgres do not hold the connections that others need. Nor do those of one tenant: tenants share what
//! such work may take of the pool ([`crate::postgres::shares`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::Error;
use crate::core::tenant::Tenant;
use crate::postgres::shares::{Share, Shares};

/// Work of one user at once.
const USER_MAX: usize = 2;

/// Work of one user that waits.
const WAITING_MAX: usize = 16;

/// The lines. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Turns {
    users: Arc<Mutex<HashMap<Uuid, Arc<Line>>>>,
    /// What this work may take of the pool.
    connections: Shares,
}

/// The line of a user.
#[derive(Debug)]
struct Line {
    turns: Arc<Semaphore>,
    /// In work or waiting.
    present: AtomicUsize,
}

impl Turns {
    /// Turns for three quarters of a pool of this size.
    pub fn new(pool_size: usize) -> Self {
        Self {
            users: Arc::default(),
            connections: Shares::new(pool_size * 3 / 4),
        }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// [`Error::Busy`] with `what` when the user's line is full.
    pub async fn take(&self, tenant: &Tenant, user: Uuid, what: &'static str) -> Result<Turn, Error> {
        let line = {
            let mut users = self.users.lock();
            let line = users.entry(user).or_insert_with(|| {
                Arc::new(Line {
                    turns: Arc::new(Semaphore::new(USER_MAX)),
                    present: AtomicUsize::new(0),
                })
            });
            if line.present.load(Ordering::Relaxed) >= USER_MAX + WAITING_MAX {
                return Err(Error::Busy(what));
            }
            line.present.fetch_add(1, Ordering::Relaxed);
            line.clone()
        };
        let place = Place {
            turns: self.clone(),
            user,
            line,
        };
        let closed = |_| Error::Internal("the turns of users are closed".into());
        let own = place.line.turns.clone().acquire_owned().await.map_err(closed)?;
        Ok(Turn {
            _connection: self.connections.take(&tenant.name).await,
            _own: own,
            _place: place,
        })
    }
}

/// A place in a user's line.
#[derive(Debug)]
struct Place {
    turns: Turns,
    user: Uuid,
    line: Arc<Line>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.turns.users.lock();
        if self.line.present.fetch_sub(1, Ordering::Relaxed) == 1 {
            users.remove(&self.user);
        }
    }
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _connection: Share,
    _own: OwnedSemaphorePermit,
    _place: Place,
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn line_of_a_user_is_bounded_and_others_go_on() {
        let turns = Turns::new(4);
        let tenant = Tenant::named("acme").expect("a valid name");
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let first = turns.take(&tenant, one, "busy").await.expect("a turn");
        let second = turns.take(&tenant, one, "busy").await.expect("a turn");
        let mut waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| Box::pin(turns.take(&tenant, one, "busy")))
            .collect();
        for turn in &mut waiting {
            assert!(turn.now_or_never().is_none());
        }
        assert!(matches!(
            turns.take(&tenant, one, "busy").await,
            Err(Error::Busy("busy"))
        ));
        // One connection is left of three, and a quarter of the pool for other work.
        let other = turns.take(&tenant, two, "busy").await.expect("a turn");
        assert!(turns.take(&tenant, two, "busy").now_or_never().is_none());
        drop((first, other));
        waiting.remove(0).await.expect("a turn");
        waiting.clear();
        drop(second);
        assert!(turns.users.lock().is_empty());
    }
}
