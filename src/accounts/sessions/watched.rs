//! Sessions with open streams in this process.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use uuid::Uuid;

use crate::accounts::standing::StampProof;
use crate::core::tenant::Tenant;

/// A session as its access tokens name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionClaim {
    pub tenant: Tenant,
    pub user: Uuid,
    pub session: Uuid,
    /// The security stamp when the token was issued, or that time.
    pub proof: StampProof,
}

/// The open streams of a session.
#[derive(Debug)]
struct WatchedSession {
    claim: SessionClaim,
    ended: CancellationToken,
    count: usize,
}

/// Sessions with open streams.
#[derive(Debug, Default)]
pub(super) struct WatchedSessions {
    sessions: HashMap<Uuid, WatchedSession>,
    by_user: HashMap<(Tenant, Uuid), HashSet<Uuid>>,
}

impl WatchedSessions {
    /// Signals the end of a session that a further stream has.
    fn add(&mut self, claim: SessionClaim) -> CancellationToken {
        let of_user = self.by_user.entry((claim.tenant.clone(), claim.user)).or_default();
        of_user.insert(claim.session);
        let session = self.sessions.entry(claim.session).or_insert_with(|| WatchedSession {
            claim: claim.clone(),
            ended: CancellationToken::new(),
            count: 0,
        });
        session.count += 1;
        // A later token has the later stamp.
        session.claim = claim;
        session.ended.clone()
    }

    fn remove(&mut self, session: Uuid) {
        let Some(watched) = self.sessions.get_mut(&session) else {
            return;
        };
        watched.count -= 1;
        if watched.count > 0 {
            return;
        }
        let user = (watched.claim.tenant.clone(), watched.claim.user);
        self.sessions.remove(&session);
        if let Some(of_user) = self.by_user.get_mut(&user) {
            of_user.remove(&session);
            if of_user.is_empty() {
                self.by_user.remove(&user);
            }
        }
    }

    /// The sessions.
    pub(super) fn ids(&self) -> Vec<Uuid> {
        self.sessions.keys().copied().collect()
    }

    /// Those that have an entry in Redis: tokens of other providers have none.
    pub(super) fn stored_ids(&self) -> Vec<Uuid> {
        let sessions = self.sessions.iter();
        let stored = sessions.filter(|(_, session)| matches!(session.claim.proof, StampProof::Stamp(_)));
        stored.map(|(id, _)| *id).collect()
    }

    /// Their users.
    pub(super) fn users(&self) -> Vec<(Tenant, Uuid)> {
        self.by_user.keys().cloned().collect()
    }

    /// Signals the end of a session to its streams.
    pub(super) fn end(&self, session: Uuid) {
        if let Some(watched) = self.sessions.get(&session) {
            watched.ended.cancel();
        }
    }

    pub(super) fn of_user(&self, user: &(Tenant, Uuid)) -> Vec<SessionClaim> {
        let sessions = self.by_user.get(user).into_iter().flatten();
        sessions
            .filter_map(|session| Some(self.sessions.get(session)?.claim.clone()))
            .collect()
    }
}

pub(super) type Watched = Arc<Mutex<WatchedSessions>>;

/// Signals the end of a session; dropping it stops the watch.
#[derive(Debug)]
pub struct Watch {
    session: Uuid,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    watched: Watched,
}

impl Watch {
    /// Watches a session from now on.
    pub(super) fn begin(watched: &Watched, claim: SessionClaim) -> Self {
        let session = claim.session;
        let ended = watched.lock().add(claim);
        Self {
            session,
            ended: Box::pin(ended.cancelled_owned()),
            watched: watched.clone(),
        }
    }

    /// The session's id.
    pub fn session(&self) -> Uuid {
        self.session
    }

    /// Ready when the session has ended.
    pub fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.ended.as_mut().poll(context)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.watched.lock().remove(self.session);
    }
}
