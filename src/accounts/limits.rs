//! Limits of failed attempts, counted in Redis over fixed windows.
//!
//! A login has three counters. The lowest limit is that of one user from one address: it ends guessing early and locks out
//! only the guessing client. The counters of a user from any address and of an address for any user bound a client with many
//! addresses or many names. They do not apply to a user at an address where that user has logged in before, so that attempts
//! from other addresses do not lock the user out. Only failures count.

use std::net::IpAddr;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::config::{self, client_network};
use crate::feature::Error;
use crate::redis::store::Store;

/// Returns the milliseconds until a login is allowed, 0 for now. Keys: user at address, user, address, mark of an earlier
/// login; arguments: the limits of the first three.
const LOGIN_WAIT: &str = "\
local function wait(key, most)
  if tonumber(redis.call('GET', key) or '0') < tonumber(most) then return 0 end
  return math.max(redis.call('PTTL', key), 1)
end
local ms = wait(KEYS[1], ARGV[1])
if redis.call('EXISTS', KEYS[4]) == 0 then
  ms = math.max(ms, wait(KEYS[2], ARGV[2]), wait(KEYS[3], ARGV[3]))
end
return ms";

/// Increments each key. Argument: milliseconds of the window, which starts with the first increment.
const COUNT: &str = "\
for _, key in ipairs(KEYS) do
  redis.call('INCR', key)
  if redis.call('PTTL', key) < 0 then redis.call('PEXPIRE', key, ARGV[1]) end
end";

/// Increments the key unless the limit is reached. Returns the milliseconds until the window ends, 0 after an increment.
/// Arguments: the limit, milliseconds of the window.
const TAKE: &str = "\
if tonumber(redis.call('GET', KEYS[1]) or '0') >= tonumber(ARGV[1]) then
  return math.max(redis.call('PTTL', KEYS[1]), 1)
end
redis.call('INCR', KEYS[1])
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0";

/// A limit per address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// All registrations.
    Register,
    /// Failed refreshes.
    Refresh,
    /// Failed reads and completions of enrollments.
    Enrollment,
}

impl Limit {
    fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Refresh => "refresh",
            Self::Enrollment => "enrollment",
        }
    }
}

/// An attempt to log in.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Counters: user at address, user, address.
    counters: [String; 3],
    /// The key of the mark that the user has logged in at the address.
    known: String,
}

/// The limits. Cloning shares the connection.
#[derive(Debug, Clone)]
pub struct Limits {
    store: Store,
    settings: config::Limits,
    /// Lifetime of the mark of a login at an address.
    known_for: Duration,
}

impl Limits {
    /// The mark of a login lasts as long as a session.
    pub fn new(store: Store, settings: &config::Config) -> Self {
        Self {
            store,
            settings: settings.limits.clone(),
            known_for: Duration::from_secs(settings.auth.session_expiry_seconds),
        }
    }

    /// An attempt under a name, which need not exist: the response must not reveal whether it does.
    pub fn attempt(&self, tenant: &str, name: &str, address: IpAddr) -> Attempt {
        let name = name.to_lowercase();
        let address = client_network(address).to_string();
        let keys = self.store.keys();
        let at_address = digest(&[tenant, &name, &address]);
        Attempt {
            counters: [
                keys.limit("login-user-address", &at_address),
                keys.limit("login-user", &digest(&[tenant, &name])),
                keys.limit("login-address", &digest(&[&address])),
            ],
            known: keys.limit("login-known", &at_address),
        }
    }

    /// Checks whether the attempt is allowed.
    ///
    /// # Errors
    /// [`Error::Limited`] until the window ends.
    pub async fn check(&self, attempt: &Attempt) -> Result<(), Error> {
        let limits = &self.settings;
        let mut pipe = redis::pipe();
        pipe.cmd("EVAL")
            .arg(LOGIN_WAIT)
            .arg(4)
            .arg(&attempt.counters)
            .arg(&attempt.known)
            .arg(&[
                limits.login_user_address_max,
                limits.login_user_max,
                limits.login_address_max,
            ]);
        let (ms,): (u64,) = self.store.query(&pipe).await?;
        admit(ms)
    }

    /// Counts a failed login.
    pub async fn failed(&self, attempt: &Attempt) -> Result<(), Error> {
        self.count_all(&attempt.counters).await
    }

    /// Marks that the user has logged in at this address.
    pub async fn succeeded(&self, attempt: &Attempt) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        pipe.set_ex(&attempt.known, 1, self.known_for.as_secs()).ignore();
        Ok(self.store.query(&pipe).await?)
    }

    /// Checks that this address is below a limit.
    ///
    /// # Errors
    /// [`Error::Limited`] until the window ends.
    pub async fn check_address(&self, limit: Limit, address: IpAddr) -> Result<(), Error> {
        let key = self.key(limit, address);
        let mut pipe = redis::pipe();
        pipe.atomic().get(&key).pttl(&key);
        let (count, ms): (Option<u64>, i64) = self.store.query(&pipe).await?;
        if count.unwrap_or(0) < self.most(limit) {
            return Ok(());
        }
        admit(u64::try_from(ms).unwrap_or(0).max(1))
    }

    /// Increments the counter of this address.
    pub async fn count_address(&self, limit: Limit, address: IpAddr) -> Result<(), Error> {
        self.count_all(&[self.key(limit, address)]).await
    }

    /// Increments the counter of this address unless it has reached the limit.
    ///
    /// # Errors
    /// [`Error::Limited`] until the window ends.
    pub async fn take(&self, limit: Limit, address: IpAddr) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("EVAL")
            .arg(TAKE)
            .arg(1)
            .arg(self.key(limit, address))
            .arg(self.most(limit))
            .arg(self.window_ms());
        let (ms,): (u64,) = self.store.query(&pipe).await?;
        admit(ms)
    }

    async fn count_all(&self, keys: &[String]) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("EVAL")
            .arg(COUNT)
            .arg(keys.len())
            .arg(keys)
            .arg(self.window_ms())
            .ignore();
        Ok(self.store.query(&pipe).await?)
    }

    fn key(&self, limit: Limit, address: IpAddr) -> String {
        let client = digest(&[&client_network(address).to_string()]);
        self.store.keys().limit(limit.name(), &client)
    }

    fn most(&self, limit: Limit) -> u64 {
        match limit {
            Limit::Register => self.settings.register_address_max,
            Limit::Refresh => self.settings.refresh_address_max,
            Limit::Enrollment => self.settings.enrollment_address_max,
        }
    }

    fn window_ms(&self) -> u64 {
        self.settings.window_seconds * 1000
    }
}

fn admit(wait_ms: u64) -> Result<(), Error> {
    match wait_ms {
        0 => Ok(()),
        ms => Err(Error::Limited(Duration::from_millis(ms))),
    }
}

/// The name of a counter, of bounded length and without a user's name.
fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // Lengths separate the parts.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_different_parts_have_different_names() {
        assert_ne!(digest(&["acme", "bob"]), digest(&["acmeb", "ob"]));
        assert_ne!(digest(&["acme"]), digest(&["acme", ""]));
        assert_eq!(digest(&["x".repeat(100_000).as_str()]).len(), 32);
    }
}
