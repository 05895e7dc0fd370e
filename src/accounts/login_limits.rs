//! Limits of attempts, counted in Redis over fixed windows.
//!
//! A login has three counters of failures. The lowest limit is that of one user from one address: it ends guessing early and locks out
//! only the guessing client. The counters of a user from any address and of an address for any user bound a client with many
//! addresses or many names. They do not apply to a user at an address where that user has logged in before, so that attempts
//! from other addresses do not lock the user out. A window that became full doubles the next one, up to a day. A fourth counter
//! is of all attempts of a user from one address within a minute, right ones too: each costs a hash computation.
//!
//! Codes of a second factor have counters of their own, of the same three kinds. Who tries them knows the password, so the
//! limit of a user is lower. An attempt is counted before the code is checked and taken back when it is right, so that no
//! more codes are tried than the limits allow, however many requests there are at once on however many nodes.

use std::net::IpAddr;
use std::time::Duration;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::config::{self, client_network};
use crate::core::slots::{Slot, Slots};
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

/// Increments a key. Argument: milliseconds of the window, which starts with the first increment.
const COUNT: &str = "\
redis.call('INCR', KEYS[1])
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end";

/// Counts a failed login. Keys: three counters, then for each how many of its windows became full lately. Arguments:
/// milliseconds of a window, most milliseconds of one, the limits. A window starts with its first failure; when it becomes
/// full, it starts again, and is twice as long for each full one before.
const FAILED: &str = "\
for index = 1, 3 do
  local counter, full = KEYS[index], KEYS[index + 3]
  local count = redis.call('INCR', counter)
  if redis.call('PTTL', counter) < 0 then redis.call('PEXPIRE', counter, ARGV[1]) end
  if count == tonumber(ARGV[index + 2]) then
    local before = math.min(redis.call('INCR', full), 32) - 1
    local window = math.min(ARGV[1] * 2 ^ before, math.max(ARGV[2], ARGV[1]))
    redis.call('PEXPIRE', counter, string.format('%.0f', window))
    redis.call('PEXPIRE', full, string.format('%.0f', window + ARGV[2]))
  end
end";

/// Counts a code as a failed one, unless a limit is reached. Keys: those of [`FAILED`], then the mark of an earlier login with
/// a code; arguments: those of [`FAILED`]. Returns the milliseconds until a code is allowed, 0 for one that was counted.
const TAKE_CODE: &str = "\
local ms = 0
local known = redis.call('EXISTS', KEYS[7]) == 1
for index = 1, 3 do
  if index == 1 or not known then
    if tonumber(redis.call('GET', KEYS[index]) or '0') >= tonumber(ARGV[index + 2]) then
      ms = math.max(ms, redis.call('PTTL', KEYS[index]), 1)
    end
  end
end
if ms > 0 then return ms end
for index = 1, 3 do
  local counter, full = KEYS[index], KEYS[index + 3]
  local count = redis.call('INCR', counter)
  if redis.call('PTTL', counter) < 0 then redis.call('PEXPIRE', counter, ARGV[1]) end
  if count == tonumber(ARGV[index + 2]) then
    local before = math.min(redis.call('INCR', full), 32) - 1
    local window = math.min(ARGV[1] * 2 ^ before, math.max(ARGV[2], ARGV[1]))
    redis.call('PEXPIRE', counter, string.format('%.0f', window))
    redis.call('PEXPIRE', full, string.format('%.0f', window + ARGV[2]))
  end
end
return 0";

/// Takes the count of a right code back. Keys: three counters, the mark; argument: lifetime of the mark in seconds.
const RIGHT_CODE: &str = "\
for index = 1, 3 do
  local count = tonumber(redis.call('GET', KEYS[index]) or '0')
  if count > 0 then redis.call('SET', KEYS[index], count - 1, 'KEEPTTL') end
end
redis.call('SETEX', KEYS[4], ARGV[1], 1)";

/// Increments the key unless the limit is reached. Returns the milliseconds until the window ends, 0 after an increment.
/// Arguments: the limit, milliseconds of the window.
const TAKE: &str = "\
if tonumber(redis.call('GET', KEYS[1]) or '0') >= tonumber(ARGV[1]) then
  return math.max(redis.call('PTTL', KEYS[1]), 1)
end
redis.call('INCR', KEYS[1])
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0";

/// Longest window of failed logins in seconds.
const LONGEST_WINDOW_SECONDS: u64 = 86_400;

/// Window of `limits.login_attempts_max` in seconds.
const ATTEMPTS_WINDOW_SECONDS: u64 = 60;

/// A limit per address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// All registrations.
    Register,
    /// Refreshes with a token of no session.
    Refresh,
    /// Refreshes with a text that is no token.
    MalformedRefresh,
    /// Failed reads and completions of enrollments.
    Enrollment,
    /// Requests to reset a password.
    Reset,
}

impl Limit {
    fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Refresh => "refresh",
            Self::MalformedRefresh => "refresh-malformed",
            Self::Enrollment => "enrollment",
            Self::Reset => "reset",
        }
    }
}

/// An attempt to log in.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Counters: user at address, user, address.
    counters: [String; 3],
    /// How many windows of each became full.
    full: [String; 3],
    /// Counter of all attempts: user at address.
    attempts: String,
    /// The key of the mark that the user has logged in at the address.
    known: String,
}

/// An attempt to find a code, which was counted as a wrong one.
#[derive(Debug)]
pub struct CodeAttempt(Attempt);

/// Whose login an attempt is.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// A user, by whichever name.
    User(Uuid),
    /// A name that no user has, as names are compared.
    Name(&'a str),
}

/// The limits. Cloning shares the connection.
#[derive(Debug, Clone)]
pub struct Limits {
    store: Store,
    settings: config::Limits,
    /// Lifetime of the mark of a login at an address.
    known_for: Duration,
    /// `mail.user_max`.
    mails_max: u64,
    /// Logins in progress, by address.
    in_progress: Slots<IpAddr>,
}

impl Limits {
    /// The mark of a login lasts as long as a session.
    pub fn new(store: Store, settings: &config::Config) -> Self {
        Self {
            store,
            settings: settings.limits.clone(),
            known_for: Duration::from_secs(settings.auth.session_expiry_seconds),
            mails_max: settings.mail.user_max,
            in_progress: Slots::new(settings.limits.login_waiting_max),
        }
    }

    /// Admits a login of an address to the queue of password hashes.
    ///
    /// # Errors
    /// [`Error::Busy`] while the address has `limits.login_waiting_max` there.
    pub fn wait_at(&self, address: IpAddr) -> Result<Slot<IpAddr>, Error> {
        self.in_progress.take(client_network(address)).ok_or(Error::Busy(
            "too many logins at once from this address; try again in a moment",
        ))
    }

    /// An attempt of a user or under a name that no user has: the response must not reveal which.
    pub fn attempt(&self, tenant: &str, subject: Subject<'_>, address: IpAddr) -> Attempt {
        self.attempt_of("login", tenant, subject, address)
    }

    /// An attempt to find a code of a user's second factor.
    fn code_attempt(&self, tenant: &str, user: Uuid, address: IpAddr) -> Attempt {
        self.attempt_of("code", tenant, Subject::User(user), address)
    }

    fn attempt_of(&self, kind: &str, tenant: &str, subject: Subject<'_>, address: IpAddr) -> Attempt {
        let name = match subject {
            Subject::User(user) => format!("user {user}"),
            Subject::Name(name) => format!("name {name}"),
        };
        let address = client_network(address).to_string();
        let keys = self.store.keys();
        let digests = [
            digest(&[tenant, &name, &address]),
            digest(&[tenant, &name]),
            digest(&[&address]),
        ];
        let [at_address, user, anyone] = &digests;
        Attempt {
            counters: [
                keys.limit(&format!("{kind}-user-address"), at_address),
                keys.limit(&format!("{kind}-user"), user),
                keys.limit(&format!("{kind}-address"), anyone),
            ],
            full: [
                keys.limit(&format!("{kind}-user-address-full"), at_address),
                keys.limit(&format!("{kind}-user-full"), user),
                keys.limit(&format!("{kind}-address-full"), anyone),
            ],
            attempts: keys.limit(&format!("{kind}-attempts"), at_address),
            known: keys.limit(&format!("{kind}-known"), at_address),
        }
    }

    /// Counts an attempt, and checks whether it is allowed.
    ///
    /// # Errors
    /// [`Error::Limited`] until the window ends.
    pub async fn begin(&self, attempt: &Attempt) -> Result<(), Error> {
        self.check(attempt).await?;
        self.take_key(
            &attempt.attempts,
            self.settings.login_attempts_max,
            ATTEMPTS_WINDOW_SECONDS * 1000,
        )
        .await
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
        let limits = &self.settings;
        let mut pipe = redis::pipe();
        pipe.cmd("EVAL")
            .arg(FAILED)
            .arg(6)
            .arg(&attempt.counters)
            .arg(&attempt.full)
            .arg(&[
                self.window_ms(),
                LONGEST_WINDOW_SECONDS * 1000,
                limits.login_user_address_max,
                limits.login_user_max,
                limits.login_address_max,
            ])
            .ignore();
        Ok(self.store.query(&pipe).await?)
    }

    /// Marks that the user has logged in at this address.
    pub async fn succeeded(&self, attempt: &Attempt) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        pipe.set_ex(&attempt.known, 1, self.known_for.as_secs()).ignore();
        Ok(self.store.query(&pipe).await?)
    }

    /// Counts a code of a second factor as a wrong one, before it is checked.
    ///
    /// # Errors
    /// [`Error::Limited`] until the window ends.
    pub async fn take_code(&self, tenant: &str, user: Uuid, address: IpAddr) -> Result<CodeAttempt, Error> {
        let attempt = self.code_attempt(tenant, user, address);
        let limits = &self.settings;
        let mut pipe = redis::pipe();
        pipe.cmd("EVAL")
            .arg(TAKE_CODE)
            .arg(7)
            .arg(&attempt.counters)
            .arg(&attempt.full)
            .arg(&attempt.known)
            .arg(&[
                self.window_ms(),
                LONGEST_WINDOW_SECONDS * 1000,
                limits.login_user_address_max,
                limits.code_user_max,
                limits.login_address_max,
            ]);
        let (ms,): (u64,) = self.store.query(&pipe).await?;
        admit(ms)?;
        Ok(CodeAttempt(attempt))
    }

    /// The code was right: it does not count, and other addresses do not lock the user out of this one.
    pub async fn right_code(&self, attempt: CodeAttempt) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("EVAL")
            .arg(RIGHT_CODE)
            .arg(4)
            .arg(&attempt.0.counters)
            .arg(&attempt.0.known)
            .arg(self.known_for.as_secs())
            .ignore();
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
        let mut pipe = redis::pipe();
        pipe.cmd("EVAL")
            .arg(COUNT)
            .arg(1)
            .arg(self.key(limit, address))
            .arg(self.window_ms())
            .ignore();
        Ok(self.store.query(&pipe).await?)
    }

    /// Increments the counter of this address unless it has reached the limit.
    ///
    /// # Errors
    /// [`Error::Limited`] until the window ends.
    pub async fn take(&self, limit: Limit, address: IpAddr) -> Result<(), Error> {
        self.take_key(&self.key(limit, address), self.most(limit), self.window_ms())
            .await
    }

    /// Counts a mail to a user, unless the user has had as many as `mail.user_max` permits.
    ///
    /// # Errors
    /// [`Error::Limited`] until the window ends.
    pub async fn take_mail(&self, tenant: &str, user: Uuid) -> Result<(), Error> {
        let name = digest(&[tenant, &user.to_string()]);
        let key = self.store.keys().limit("mail", &name);
        self.take_key(&key, self.mails_max, self.window_ms()).await
    }

    /// Counts a mail to verify an address, unless the user, or the address for whichever users, has had as many as
    /// `mail.user_max` permits.
    ///
    /// # Errors
    /// [`Error::Limited`] until the window ends.
    pub async fn take_verification(&self, tenant: &str, user: Uuid, email: &str) -> Result<(), Error> {
        let user = digest(&[tenant, &user.to_string()]);
        let address = digest(&[&email.to_lowercase()]);
        for (limit, name) in [("mail-verification", user), ("mail-address", address)] {
            let key = self.store.keys().limit(limit, &name);
            self.take_key(&key, self.mails_max, self.window_ms()).await?;
        }
        Ok(())
    }

    async fn take_key(&self, key: &str, most: u64, window_ms: u64) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("EVAL").arg(TAKE).arg(1).arg(key).arg(most).arg(window_ms);
        let (ms,): (u64,) = self.store.query(&pipe).await?;
        admit(ms)
    }

    fn key(&self, limit: Limit, address: IpAddr) -> String {
        let client = digest(&[&client_network(address).to_string()]);
        self.store.keys().limit(limit.name(), &client)
    }

    fn most(&self, limit: Limit) -> u64 {
        match limit {
            Limit::Register => self.settings.register_address_max,
            Limit::Refresh | Limit::MalformedRefresh => self.settings.refresh_address_max,
            Limit::Enrollment => self.settings.enrollment_address_max,
            Limit::Reset => self.settings.reset_address_max,
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
