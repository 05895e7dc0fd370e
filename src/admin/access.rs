//! Access to the console: links that open it once, and the sessions that they become.
//!
//! Both are texts with an authentication code under a key from `auth.jwt_secret`: the command line makes links without asking
//! Redis or Postgres, which may be what is broken, and a session outlives a restart of the engine. A link is for one process of
//! the engine, a session for one name of its host, so that it is worth nothing at another one.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::config::Config;

/// How long a link may be used, in seconds.
pub const LINK_SECONDS: u64 = 60;

/// How long a session lasts, in seconds.
pub const SESSION_SECONDS: u64 = 12 * 3600;

/// Tolerated difference between the clocks of the command line and the engine, in seconds.
const SKEW_SECONDS: u64 = 5;

/// The authentication code is truncated to 128 bits (RFC 2104, section 5).
const TAG_BYTES: usize = 16;

const NONCE_BYTES: usize = 16;

const TEXT_BYTES: usize = 8 + NONCE_BYTES + TAG_BYTES;

/// Used links and ended sessions that are remembered; a link is refused while there is no room.
const SPENT_MAX: usize = 10_000;

/// What the key of the console is derived for.
const PURPOSE: &[u8] = b"posduif console";

/// What a text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Link,
    Session,
    Csrf,
}

impl Use {
    fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Link => b"link\0",
            Self::Session => b"session\0",
            Self::Csrf => b"csrf\0",
        }
    }
}

/// An expiry and a random value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Grant {
    /// Seconds since 1970.
    expires_at: u64,
    nonce: [u8; NONCE_BYTES],
}

impl Grant {
    fn new(now: u64, lifetime: u64) -> Result<Self, getrandom::Error> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce)?;
        Ok(Self {
            expires_at: now + lifetime,
            nonce,
        })
    }
}

/// Makes and checks the texts.
#[derive(Clone)]
pub struct AccessKey(Hmac<Sha256>);

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessKey")
    }
}

impl AccessKey {
    /// The key of a configuration; `None` without `auth.jwt_secret`.
    pub fn of(config: &Config) -> Option<Self> {
        let secret = config.auth.jwt_secret.expose();
        (!secret.is_empty()).then(|| Self::derive(secret.as_bytes())).flatten()
    }

    /// A key that no other process has.
    ///
    /// # Errors
    /// When the operating system has no random bits.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        Self::derive(&secret).ok_or(getrandom::Error::UNSUPPORTED)
    }

    fn derive(secret: &[u8]) -> Option<Self> {
        // HMAC takes keys of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
        mac.update(PURPOSE);
        let key = mac.finalize().into_bytes();
        Some(Self(Hmac::new_from_slice(&key).ok()?))
    }

    fn tag(&self, purpose: Use, bound_to: &str, grant: &Grant) -> [u8; TAG_BYTES] {
        let mut mac = self.0.clone();
        mac.update(purpose.as_bytes());
        mac.update(bound_to.as_bytes());
        mac.update(b"\0");
        mac.update(&grant.expires_at.to_be_bytes());
        mac.update(&grant.nonce);
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&mac.finalize().into_bytes()[..TAG_BYTES]);
        tag
    }

    fn encode(&self, purpose: Use, bound_to: &str, grant: &Grant) -> String {
        let mut bytes = Vec::with_capacity(TEXT_BYTES);
        bytes.extend_from_slice(&grant.expires_at.to_be_bytes());
        bytes.extend_from_slice(&grant.nonce);
        bytes.extend_from_slice(&self.tag(purpose, bound_to, grant));
        BASE64.encode(bytes)
    }

    fn decode(&self, purpose: Use, bound_to: &str, text: &str, now: u64) -> Option<Grant> {
        let bytes: [u8; TEXT_BYTES] = BASE64.decode(text).ok()?.try_into().ok()?;
        let (expires_at, rest) = bytes.split_first_chunk::<8>()?;
        let (nonce, tag) = rest.split_first_chunk::<NONCE_BYTES>()?;
        let grant = Grant {
            expires_at: u64::from_be_bytes(*expires_at),
            nonce: *nonce,
        };
        let is_ours: bool = self.tag(purpose, bound_to, &grant).ct_eq(tag).into();
        (is_ours && grant.expires_at > now).then_some(grant)
    }

    /// The code of a link to the process `engine`.
    ///
    /// # Errors
    /// When the operating system has no random bits.
    pub fn link(&self, engine: &str, now: u64) -> Result<String, getrandom::Error> {
        Ok(self.encode(Use::Link, engine, &Grant::new(now, LINK_SECONDS)?))
    }
}

/// A session of the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The value of its cookie.
    pub cookie: String,
    /// What each change must carry beside the cookie.
    pub csrf: String,
    /// Seconds since 1970.
    pub expires_at: u64,
    nonce: [u8; NONCE_BYTES],
}

/// The door of one process.
#[derive(Debug)]
pub struct Door {
    key: AccessKey,
    engine: String,
    /// Used links and ended sessions, until they expire.
    spent: Mutex<HashMap<[u8; NONCE_BYTES], u64>>,
}

impl Door {
    /// The door of the process `engine`.
    pub fn new(key: AccessKey, engine: &str) -> Self {
        Self {
            key,
            engine: engine.to_owned(),
            spent: Mutex::default(),
        }
    }

    /// Makes the code of a link.
    ///
    /// # Errors
    /// When the operating system has no random bits.
    pub fn link(&self, now: u64) -> Result<String, getrandom::Error> {
        self.key.link(&self.engine, now)
    }

    /// Turns a link into a session for the host of this name; `None` for one that is not of this process, too old, or used.
    ///
    /// # Errors
    /// When the operating system has no random bits.
    pub fn open(&self, code: &str, host: &str, now: u64) -> Result<Option<Session>, getrandom::Error> {
        let Some(grant) = self.key.decode(Use::Link, &self.engine, code, now) else {
            return Ok(None);
        };
        if grant.expires_at > now + LINK_SECONDS + SKEW_SECONDS || !self.spend(grant, now) {
            return Ok(None);
        }
        self.session(host, now).map(Some)
    }

    /// A new session for the host of this name.
    ///
    /// # Errors
    /// When the operating system has no random bits.
    pub fn session(&self, host: &str, now: u64) -> Result<Session, getrandom::Error> {
        Ok(self.of_grant(host, &Grant::new(now, SESSION_SECONDS)?))
    }

    /// The session of a cookie that is sent to the host of this name.
    pub fn check(&self, cookie: &str, host: &str, now: u64) -> Option<Session> {
        let grant = self.key.decode(Use::Session, host, cookie, now)?;
        let is_ended = self.spent.lock().contains_key(&grant.nonce);
        (!is_ended).then(|| self.of_grant(host, &grant))
    }

    /// Ends a session, at this process.
    pub fn end(&self, session: &Session, now: u64) {
        let grant = Grant {
            expires_at: session.expires_at,
            nonce: session.nonce,
        };
        self.spend(grant, now);
    }

    fn of_grant(&self, host: &str, grant: &Grant) -> Session {
        Session {
            cookie: self.key.encode(Use::Session, host, grant),
            csrf: BASE64.encode(self.key.tag(Use::Csrf, host, grant)),
            expires_at: grant.expires_at,
            nonce: grant.nonce,
        }
    }

    /// Remembers a grant; false if it was spent before, or there is no room.
    fn spend(&self, grant: Grant, now: u64) -> bool {
        let mut spent = self.spent.lock();
        if spent.len() >= SPENT_MAX {
            spent.retain(|_, expires_at| *expires_at > now);
        }
        spent.len() < SPENT_MAX && spent.insert(grant.nonce, grant.expires_at).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn door(secret: &str, engine: &str) -> Door {
        Door::new(AccessKey::derive(secret.as_bytes()).expect("a key"), engine)
    }

    #[test]
    fn link_opens_its_process_once_and_in_time() {
        let here = door("secret", "a");
        let code = here.link(NOW).expect("a link");
        for (other, at) in [
            (door("secret", "b"), NOW),
            (door("other", "a"), NOW),
            (door("secret", "a"), NOW + 60),
        ] {
            assert_eq!(other.open(&code, "h", at).expect("random bits"), None);
        }
        assert!(here.open(&code, "h", NOW + 59).expect("random bits").is_some());
        assert_eq!(
            here.open(&code, "h", NOW + 59).expect("random bits"),
            None,
            "a second time"
        );
        for junk in ["", "x", &code[1..], &format!("{code}A")] {
            assert_eq!(here.open(junk, "h", NOW).expect("random bits"), None, "{junk}");
        }
    }

    #[test]
    fn link_with_a_far_expiry_is_refused() {
        let here = door("secret", "a");
        let grant = Grant::new(NOW, 3600).expect("random bits");
        let code = here.key.encode(Use::Link, "a", &grant);
        assert_eq!(here.open(&code, "h", NOW).expect("random bits"), None);
    }

    #[test]
    fn session_is_for_one_host_until_it_ends_and_outlives_a_restart() {
        let here = door("secret", "a");
        let session = here.session("localhost:1", NOW).expect("a session");
        assert_eq!(here.check(&session.cookie, "localhost:1", NOW), Some(session.clone()));
        assert_eq!(
            door("secret", "b").check(&session.cookie, "localhost:1", NOW),
            Some(session.clone())
        );
        assert_eq!(here.check(&session.cookie, "evil.example:1", NOW), None);
        assert_eq!(here.check(&session.cookie, "localhost:1", NOW + SESSION_SECONDS), None);
        assert_eq!(here.check(&session.csrf, "localhost:1", NOW), None);
        here.end(&session, NOW);
        assert_eq!(here.check(&session.cookie, "localhost:1", NOW), None);
    }

    #[test]
    fn link_is_no_session_and_session_no_link() {
        let here = door("secret", "a");
        let link = here.link(NOW).expect("a link");
        assert_eq!(here.check(&link, "a", NOW), None);
        let session = here.session("a", NOW).expect("a session");
        assert_eq!(here.open(&session.cookie, "a", NOW).expect("random bits"), None);
    }
}
