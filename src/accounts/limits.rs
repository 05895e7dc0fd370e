//! Limits on how often somebody may be wrong, counted in Redis over fixed windows.
//!
//! A login has three counters. The tightest is of one user from one address, so that guessing ends soon and nobody but
//! the guesser is locked out. Those of a user from anywhere and of an address for anybody bound who has many addresses
//! or many names to guess with; they do not hold for a user at an address where that user has logged in before, so
//! that a flood from elsewhere locks out nobody at home. Only failures count.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::config;
use crate::feature::Error;
use crate::redis::store::Store;

/// Milliseconds until a login may be tried; 0 is now. Keys: user at address, user, address, whether known here; then
/// the limits of the first three.
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

/// Counts one more under each key. Argument: milliseconds of the window, which begins with the first.
const COUNT: &str = "\
for _, key in ipairs(KEYS) do
  redis.call('INCR', key)
  if redis.call('PTTL', key) < 0 then redis.call('PEXPIRE', key, ARGV[1]) end
end";

/// Counts one more unless the limit is reached; gives the milliseconds until the next may come, 0 when it was counted.
/// Arguments: the limit, milliseconds of the window.
const TAKE: &str = "\
if tonumber(redis.call('GET', KEYS[1]) or '0') >= tonumber(ARGV[1]) then
  return math.max(redis.call('PTTL', KEYS[1]), 1)
end
redis.call('INCR', KEYS[1])
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0";

/// What is counted by the address alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Registrations, all of them.
    Register,
    /// Failed refreshes.
    Refresh,
    /// Enrollments that were asked for or completed in vain.
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

/// A login that somebody tries.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Counters: user at address, user, address.
    counters: [String; 3],
    /// Exists where the user has logged in at the address.
    known: String,
}

/// Counts and refuses. Cloning shares the connection.
#[derive(Debug, Clone)]
pub struct Limits {
    store: Store,
    settings: config::Limits,
    /// For how long an address is remembered where a user has logged in.
    known_for: Duration,
}

impl Limits {
    /// Takes limits from the settings; an address is known for as long as a session lasts.
    pub fn new(store: Store, settings: &config::Config) -> Self {
        Self {
            store,
            settings: settings.limits.clone(),
            known_for: Duration::from_secs(settings.auth.session_expiry_seconds),
        }
    }

    /// A login under a name, which need not exist, as nothing here may tell whether it does.
    pub fn attempt(&self, tenant: &str, name: &str, address: IpAddr) -> Attempt {
        let name = name.to_lowercase();
        let address = network_of(address).to_string();
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

    /// Whether the login may be tried now.
    ///
    /// # Errors
    /// [`Error::Limited`] until a window ends, [`Error::Redis`].
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
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn failed(&self, attempt: &Attempt) -> Result<(), Error> {
        self.count_all(&attempt.counters).await
    }

    /// Remembers that the user has logged in at this address.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn succeeded(&self, attempt: &Attempt) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        pipe.set_ex(&attempt.known, 1, self.known_for.as_secs()).ignore();
        Ok(self.store.query(&pipe).await?)
    }

    /// Whether this address is below a limit.
    ///
    /// # Errors
    /// [`Error::Limited`] until the window ends, [`Error::Redis`].
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

    /// Counts one more from this address.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn count_address(&self, limit: Limit, address: IpAddr) -> Result<(), Error> {
        self.count_all(&[self.key(limit, address)]).await
    }

    /// Counts one more from this address unless it has reached the limit.
    ///
    /// # Errors
    /// [`Error::Limited`] until the window ends, [`Error::Redis`].
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
        let who = digest(&[&network_of(address).to_string()]);
        self.store.keys().limit(limit.name(), &who)
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

/// What is counted as one client: an IPv4 address, or the /64 that an IPv6 subscriber has at least (RFC 6177).
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// Names a counter: of bounded length, and without a user's name in it.
fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // Lengths keep the parts apart.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_its_address_or_its_network() {
        let network = |text: &str| network_of(text.parse().expect("an address")).to_string();
        assert_eq!(network("10.1.2.3"), "10.1.2.3");
        assert_eq!(network("::ffff:10.1.2.3"), "10.1.2.3");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }

    #[test]
    fn counters_of_different_things_have_different_names() {
        assert_ne!(digest(&["acme", "bob"]), digest(&["acmeb", "ob"]));
        assert_ne!(digest(&["acme"]), digest(&["acme", ""]));
        assert_eq!(digest(&["x".repeat(100_000).as_str()]).len(), 32);
    }
}
