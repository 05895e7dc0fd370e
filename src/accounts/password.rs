//! Passwords: Argon2id, stored as PHC strings.
//!
//! A hash costs a core and some megabytes by design, so few are computed at once and others queue. Each runs on its own thread
//! at low priority, so that other requests take precedence. Verifying the password of an unknown user costs the same, so that
//! the time does not reveal whether a user exists.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::accounts::common_password;
use crate::config;
use crate::feature::Error;

/// Longest password in bytes.
const BYTES_MAX: usize = 1024;

/// Shortest new password in characters.
const CHARS_MIN: usize = 8;

/// Longest wait in the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(20);

/// The nice(2) value of a hash thread: under contention it gets about a tenth of a core.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Hashes and verifies passwords. Cloning shares the queue.
#[derive(Debug, Clone)]
pub struct Passwords {
    params: Params,
    permits: Arc<Semaphore>,
}

impl Passwords {
    pub fn new(settings: &config::Auth) -> anyhow::Result<Self> {
        let params = Params::new(settings.argon2_memory_kib, settings.argon2_iterations, 1, None)
            .map_err(|error| anyhow::anyhow!("keys `auth.argon2_*` are no valid Argon2 parameters: {error}"))?;
        let threads = match settings.hash_concurrency {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1)),
            threads => threads,
        };
        Ok(Self {
            params,
            permits: Arc::new(Semaphore::new(threads)),
        })
    }

    /// Waits in the queue.
    ///
    /// # Errors
    /// [`Error::Busy`] after the timeout.
    pub async fn turn(&self) -> Result<Turn, Error> {
        let permit = tokio::time::timeout(QUEUE_TIMEOUT, self.permits.clone().acquire_owned())
            .await
            .map_err(|_| Error::Busy("too many logins at once; try again in a moment"))?
            .map_err(|_| Error::Internal("the queue of password hashes is closed".into()))?;
        Ok(Turn {
            params: self.params.clone(),
            permit: Arc::new(permit),
        })
    }

    /// The PHC string of a new password for a user of this name.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is too short, too long or easily guessed, [`Error::Busy`] after the timeout of the queue.
    pub async fn hash(&self, password: &str, username: &str) -> Result<String, Error> {
        if password.chars().count() < CHARS_MIN || password.len() > BYTES_MAX {
            return Err(Error::invalid(
                "password",
                format!("must have at least {CHARS_MIN} characters and at most {BYTES_MAX} bytes"),
            ));
        }
        let lower = password.to_lowercase();
        let name = username.to_lowercase();
        if lower == name || name.split_once('@').is_some_and(|(local, _)| lower == local) {
            return Err(Error::invalid("password", "must not be the username"));
        }
        if common_password::is_common(&lower) {
            return Err(Error::invalid(
                "password",
                "is one of the most common passwords: choose another, such as several words",
            ));
        }
        let password = password.to_owned();
        let turn = self.turn().await?;
        turn.compute(move |argon2| hash(argon2, &password)).await?
    }
}

/// Permission to compute one hash at a time; dropping it admits the next caller.
#[derive(Debug)]
pub struct Turn {
    params: Params,
    permit: Arc<OwnedSemaphorePermit>,
}

impl Turn {
    /// The PHC string of a verified password at the configured cost; `None` when the stored one has that cost.
    pub async fn renew(&self, password: &str, stored: &str) -> Result<Option<String>, Error> {
        let has_cost = PasswordHash::new(stored)
            .ok()
            .and_then(|hash| Params::try_from(&hash).ok())
            .is_some_and(|params| {
                let cost = |params: &Params| (params.m_cost(), params.t_cost(), params.p_cost());
                cost(&params) == cost(&self.params)
            });
        if has_cost {
            return Ok(None);
        }
        let password = password.to_owned();
        self.compute(move |argon2| hash(argon2, &password)).await?.map(Some)
    }

    /// Whether the password matches the hash. Without a hash it takes as long and returns false.
    pub async fn verify(&self, password: &str, stored: Option<String>) -> Result<bool, Error> {
        if password.len() > BYTES_MAX {
            return Ok(false);
        }
        let password = password.to_owned();
        self.compute(move |argon2| match stored {
            Some(stored) => {
                let stored = PasswordHash::new(&stored)
                    .map_err(|error| Error::Internal(format!("a stored password hash is malformed: {error}")))?;
                Ok(argon2.verify_password(password.as_bytes(), &stored).is_ok())
            }
            None => hash(argon2, &password).map(|_| false),
        })
        .await?
    }

    /// Computes on a new thread, whose cost is negligible beside a hash.
    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Argon2<'_>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (params, permit) = (self.params.clone(), self.permit.clone());
        let (done, result) = oneshot::channel();
        std::thread::Builder::new()
            .name("password".into())
            .spawn(move || {
                lower_priority();
                let _ = done.send(work(&Argon2::new(Algorithm::Argon2id, Version::V0x13, params)));
                // Held until here also when the caller has gone: the core was busy.
                drop(permit);
            })
            .map_err(|error| Error::Internal(format!("cannot start a thread for a password hash: {error}")))?;
        result
            .await
            .map_err(|_| Error::Internal("hashing a password failed: its thread panicked".into()))
    }
}

/// Lowers the priority of this thread, where threads have their own: on Linux.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "thread priority not lowered");
    }
}

fn hash(argon2: &Argon2<'_>, password: &str) -> Result<String, Error> {
    argon2
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|error| Error::Internal(format!("hashing a password failed: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn password_matches_only_its_own_hash() {
        let passwords = Passwords::new(&config::Auth {
            argon2_memory_kib: 8192,
            argon2_iterations: 1,
            ..config::Auth::default()
        })
        .expect("valid settings");
        let stored = passwords.hash("posduif-demo", "bob").await.expect("a hash");
        assert!(stored.starts_with("$argon2id$v=19$m=8192,t=1,p=1$"), "{stored}");
        let verify = async |password, stored| {
            let turn = passwords.turn().await.expect("a turn");
            turn.verify(password, stored).await.expect("checked")
        };
        assert!(verify("posduif-demo", Some(stored.clone())).await);
        let turn = passwords.turn().await.expect("a turn");
        let renewed = turn.renew("posduif-demo", &stored).await.expect("looked at");
        assert_eq!(renewed, None, "the cost is the configured one");
        let older = stored.replace("m=8192", "m=4096");
        assert_ne!(turn.renew("posduif-demo", &older).await.expect("looked at"), None);
        drop(turn);
        assert!(!verify("posduif-dema", Some(stored)).await);
        assert!(!verify("posduif-demo", None).await);
        assert!(matches!(
            passwords.hash("short", "bob").await,
            Err(Error::Invalid { .. })
        ));
    }
}
