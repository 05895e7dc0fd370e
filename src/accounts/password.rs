//! Passwords: Argon2id, kept as PHC strings.
//!
//! A hash costs a core and some megabytes on purpose, so few are computed at once and others wait in line. Each has a
//! thread of its own at low priority: where there are fewer cores than work, requests that wait for their answer go
//! before it. Checking a password for a user who does not exist costs the same, so that time tells nothing.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::config;
use crate::feature::Error;

/// Longest password in bytes; Argon2 hashes any length, but a request need not.
const BYTES_MAX: usize = 1024;

/// Fewest characters of a new password.
const CHARS_MIN: usize = 8;

/// How long a check may wait in line before the caller is told to come back.
const PATIENCE: Duration = Duration::from_secs(20);

/// How far a hash stands back behind the rest of the process, in the units of nice(2): it gets about a tenth of a core
/// that others want, too.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Hashes and checks passwords. Cloning shares the line.
#[derive(Debug, Clone)]
pub struct Passwords {
    params: Params,
    permits: Arc<Semaphore>,
}

impl Passwords {
    /// Takes cost and concurrency from the settings.
    ///
    /// # Errors
    /// When Argon2 refuses the cost, which the bounds of the settings rule out.
    pub fn new(settings: &config::Auth) -> anyhow::Result<Self> {
        let params = Params::new(settings.argon2_memory_kib, settings.argon2_iterations, 1, None)
            .map_err(|error| anyhow::anyhow!("keys `auth.argon2_*` make no Argon2 parameters: {error}"))?;
        let threads = match settings.hash_concurrency {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1)),
            threads => threads,
        };
        Ok(Self {
            params,
            permits: Arc::new(Semaphore::new(threads)),
        })
    }

    /// Waits in line.
    ///
    /// # Errors
    /// [`Error::Busy`] when the line is too long.
    pub async fn turn(&self) -> Result<Turn, Error> {
        let permit = tokio::time::timeout(PATIENCE, self.permits.clone().acquire_owned())
            .await
            .map_err(|_| Error::Busy("too many logins at once; try again in a moment"))?
            .map_err(|_| Error::Internal("the line for password hashes is closed".into()))?;
        Ok(Turn {
            params: self.params.clone(),
            permit: Arc::new(permit),
        })
    }

    /// The PHC string of a new password.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is too short or too long, [`Error::Busy`] when the line is too long.
    pub async fn hash(&self, password: &str) -> Result<String, Error> {
        if password.chars().count() < CHARS_MIN || password.len() > BYTES_MAX {
            return Err(Error::invalid(
                "password",
                format!("must have at least {CHARS_MIN} characters and at most {BYTES_MAX} bytes"),
            ));
        }
        let password = password.to_owned();
        let turn = self.turn().await?;
        turn.compute(move |argon2| hash(argon2, &password)).await?
    }
}

/// Leave to compute one hash at a time; dropping it lets the next in.
#[derive(Debug)]
pub struct Turn {
    params: Params,
    permit: Arc<OwnedSemaphorePermit>,
}

impl Turn {
    /// The PHC string of a password that was right, at the present cost; `None` where the stored one has that already.
    ///
    /// # Errors
    /// When no thread can be started.
    pub async fn renew(&self, password: &str, stored: &str) -> Result<Option<String>, Error> {
        let is_present = PasswordHash::new(stored)
            .ok()
            .and_then(|hash| Params::try_from(&hash).ok())
            .is_some_and(|params| {
                let cost = |params: &Params| (params.m_cost(), params.t_cost(), params.p_cost());
                cost(&params) == cost(&self.params)
            });
        if is_present {
            return Ok(None);
        }
        let password = password.to_owned();
        self.compute(move |argon2| hash(argon2, &password)).await?.map(Some)
    }

    /// Whether the password is the one that was hashed. Without a hash it takes as long and gives false.
    ///
    /// # Errors
    /// When the stored hash is malformed or no thread can be started.
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

    /// Computes on a thread of its own, which costs next to nothing beside a hash.
    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Argon2<'_>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (params, permit) = (self.params.clone(), self.permit.clone());
        let (done, result) = oneshot::channel();
        std::thread::Builder::new()
            .name("password".into())
            .spawn(move || {
                stand_back();
                let _nobody_waits = done.send(work(&Argon2::new(Algorithm::Argon2id, Version::V0x13, params)));
                // Held until here also when nobody waits for the result any more: the core is busy all the same.
                drop(permit);
            })
            .map_err(|error| Error::Internal(format!("no thread for a password's hash: {error}")))?;
        result
            .await
            .map_err(|_| Error::Internal("hashing a password failed: its thread died".into()))
    }
}

/// Lowers the priority of this thread, which on Linux alone can have one of its own.
fn stand_back() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "a password is hashed at full priority");
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
    async fn a_password_fits_its_own_hash_only() {
        let passwords = Passwords::new(&config::Auth {
            argon2_memory_kib: 8192,
            argon2_iterations: 1,
            ..config::Auth::default()
        })
        .expect("valid settings");
        let stored = passwords.hash("posduif-demo").await.expect("a hash");
        assert!(stored.starts_with("$argon2id$v=19$m=8192,t=1,p=1$"), "{stored}");
        let verify = async |password, stored| {
            let turn = passwords.turn().await.expect("a turn");
            turn.verify(password, stored).await.expect("checked")
        };
        assert!(verify("posduif-demo", Some(stored.clone())).await);
        let turn = passwords.turn().await.expect("a turn");
        let renewed = turn.renew("posduif-demo", &stored).await.expect("looked at");
        assert_eq!(renewed, None, "the cost is the present one");
        let older = stored.replace("m=8192", "m=4096");
        assert_ne!(turn.renew("posduif-demo", &older).await.expect("looked at"), None);
        drop(turn);
        assert!(!verify("posduif-dema", Some(stored)).await);
        assert!(!verify("posduif-demo", None).await);
        assert!(matches!(passwords.hash("short").await, Err(Error::Invalid { .. })));
    }
}
