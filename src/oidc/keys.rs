//! The keys of a provider, read in the background.
//!
//! One task per provider reads them: at the start, every `jwks_refresh_seconds`, and when a token names a key that is not
//! known. After each attempt it rests for `jwks_cooldown_seconds`, so that no number of tokens causes more requests. Requests
//! of clients never fetch; one with an unknown key waits for an attempt in progress, within its timeout. While the provider is
//! away, the last keys are used for `jwks_stale_seconds` more.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use hyper::Request;
use hyper::header::{ACCEPT, DATE, USER_AGENT};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::jwks::{Key, KeySet};
use crate::config::{JwksSource, Provider, SignatureAlgorithm};
use crate::net::http::Client;
use crate::net::tls::Roots;
use crate::telemetry::metrics::{Auth, KeyRead};

/// How much longer than a read a request waits for one.
const WAIT_MARGIN: Duration = Duration::from_secs(1);

/// What a read has given.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub keys: KeySet,
    /// The provider's clock, if it is a server that shows one.
    pub date: Option<DateTime<Utc>>,
}

/// Where keys are read.
#[derive(Debug)]
enum Place {
    Server { client: Client, path: String },
    File(String),
}

/// Reads the keys of a provider.
#[derive(Debug)]
pub struct Reader {
    place: Place,
    timeout: Duration,
    bytes_max: usize,
}

impl Reader {
    /// # Errors
    /// When the URL is malformed, the authorities cannot be read, or the file of the keys has none.
    pub fn new(settings: &Provider) -> Result<Self> {
        let timeout = Duration::from_secs(settings.jwks_timeout_seconds);
        let place = match settings.jwks_source()? {
            JwksSource::File(path) => {
                // A file is not away for a while, as a server may be: it is wrong.
                if read_file(&path, settings.jwks_bytes_max)?.is_empty() {
                    bail!("{path} has no usable key");
                }
                Place::File(path)
            }
            JwksSource::Url(url) => {
                let roots = match settings.ca_file.as_str() {
                    "" => Roots::System,
                    file => Roots::File(file.into()),
                };
                let path = url.path.clone();
                let client = Client::new(url, roots, timeout)
                    .context("ca_file")?
                    .with_body_bytes_max(settings.jwks_bytes_max);
                Place::Server { client, path }
            }
        };
        Ok(Self {
            place,
            timeout,
            bytes_max: settings.jwks_bytes_max,
        })
    }

    /// Reads the keys.
    ///
    /// # Errors
    /// When the provider does not respond in time with a JWK Set of an allowed size.
    pub async fn read(&self) -> Result<Fetched> {
        match &self.place {
            Place::Server { client, path } => {
                let request = Request::get(path)
                    .header(ACCEPT, "application/json, application/jwk-set+json")
                    .header(USER_AGENT, concat!("posduif/", env!("CARGO_PKG_VERSION")))
                    .body(Bytes::new())?;
                let response = client.send(request).await?;
                // A redirect counts as a failure: the keys come from the configured URL only.
                if response.status().as_u16() != 200 {
                    bail!("it responded with {}", response.status());
                }
                let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
                let date = date.and_then(|date| DateTime::parse_from_rfc2822(date).ok());
                Ok(Fetched {
                    keys: KeySet::parse(response.body())?,
                    date: date.map(|date| date.to_utc()),
                })
            }
            Place::File(path) => {
                let (path, bytes_max) = (path.clone(), self.bytes_max);
                let reading = tokio::task::spawn_blocking(move || read_file(&path, bytes_max));
                let keys = tokio::time::timeout(self.timeout, reading).await;
                Ok(Fetched {
                    keys: keys.context("the file was not read in time")???,
                    date: None,
                })
            }
        }
    }
}

fn read_file(path: &str, bytes_max: usize) -> Result<KeySet> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().with_context(|| format!("cannot read {path}"))?;
    if bytes.len() > bytes_max {
        bail!("{path} has more than {bytes_max} bytes");
    }
    KeySet::parse(&bytes).with_context(|| path.to_owned())
}

/// What the last reads have given.
#[derive(Debug, Clone, Default)]
struct State {
    /// The last keys, when they were read, and how often they have changed.
    keys: Option<(Arc<KeySet>, Instant)>,
    version: u64,
    /// Ended attempts.
    attempts: u64,
    /// When the last attempt ended, and whether it failed.
    last: Option<(Instant, bool)>,
    is_reading: bool,
}

/// Why there is no key for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoKey {
    /// The provider does not have it.
    Unknown,
    /// The provider is away, and its keys may have changed.
    Unavailable(Duration),
}

/// The keys of a provider.
#[derive(Debug)]
pub(super) struct Keys {
    reader: Reader,
    issuer: String,
    refresh: Duration,
    cooldown: Duration,
    /// Maximum age of keys in use.
    age_max: Duration,
    state: watch::Sender<State>,
    /// A token names an unknown key.
    wanted: Notify,
    metrics: Arc<Auth>,
}

impl Keys {
    pub(super) fn new(settings: &Provider, metrics: Arc<Auth>) -> Result<Self> {
        Ok(Self {
            reader: Reader::new(settings)?,
            issuer: settings.issuer.clone(),
            refresh: Duration::from_secs(settings.jwks_refresh_seconds),
            cooldown: Duration::from_secs(settings.jwks_cooldown_seconds),
            age_max: Duration::from_secs(settings.jwks_refresh_seconds + settings.jwks_stale_seconds),
            state: watch::Sender::default(),
            wanted: Notify::new(),
            metrics,
        })
    }

    /// Reads the keys until `stop`.
    pub(super) async fn run(&self, stop: CancellationToken) {
        let work = async {
            let mut logged = None;
            loop {
                self.state.send_modify(|state| state.is_reading = true);
                let result = self.reader.read().await;
                let has_failed = result.is_err();
                self.log(&result, &mut logged);
                self.store(result);
                // Also after a failure: the provider may be overloaded.
                tokio::time::sleep(self.cooldown).await;
                let pause = if has_failed {
                    Duration::ZERO
                } else {
                    self.refresh.saturating_sub(self.cooldown)
                };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.wanted.notified() => {}
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    fn store(&self, result: Result<Fetched>) {
        let now = Instant::now();
        self.metrics.key_read(match result {
            Ok(_) => KeyRead::Read,
            Err(_) => KeyRead::Failed,
        });
        self.state.send_modify(|state| {
            state.is_reading = false;
            state.attempts += 1;
            state.last = Some((now, result.is_err()));
            if let Ok(Fetched { keys, .. }) = result {
                let is_same = state.keys.as_ref().is_some_and(|(known, _)| **known == keys);
                if !is_same {
                    state.version += 1;
                }
                state.keys = Some((Arc::new(keys), now));
            }
        });
    }

    fn log(&self, result: &Result<Fetched>, logged: &mut Option<String>) {
        let issuer = &self.issuer;
        match result {
            Ok(fetched) if logged.take().is_some() || self.state.borrow().keys.is_none() => {
                let (keys, ignored) = (fetched.keys.len(), fetched.keys.ignored());
                tracing::info!(issuer, keys, ignored, "keys of the identity provider read");
            }
            Ok(_) => {}
            Err(error) => {
                let cause = format!("{error:#}");
                if logged.as_ref() != Some(&cause) {
                    tracing::warn!(issuer, cause, "keys of the identity provider not read; retrying");
                    *logged = Some(cause);
                }
            }
        }
    }

    /// How often the keys have changed; `None` while there are none that may be used.
    pub(super) fn version(&self) -> Option<u64> {
        let state = self.state.borrow();
        self.usable(&state).map(|_| state.version)
    }

    fn usable(&self, state: &State) -> Option<Arc<KeySet>> {
        let (keys, read_at) = state.keys.as_ref()?;
        (read_at.elapsed() <= self.age_max).then(|| keys.clone())
    }

    /// The keys that may have signed a token with this header, and their version. Waits for a read if none is known.
    pub(super) async fn candidates(
        &self,
        kid: Option<&str>,
        algorithm: SignatureAlgorithm,
    ) -> Result<(Vec<Key>, u64), NoKey> {
        let mut states = self.state.subscribe();
        let before = {
            let state = states.borrow_and_update();
            match self.find(&state, kid, algorithm) {
                Ok(found) => return Ok(found),
                Err(no_key) if self.is_resting(&state) => return Err(no_key),
                Err(_) => {
                    // An attempt in progress needs no further one after it.
                    if !state.is_reading {
                        self.wanted.notify_one();
                    }
                    state.attempts
                }
            }
        };
        let ended = states.wait_for(|state| state.attempts > before);
        // The reader is dropped only with the engine, and a read that takes too long has failed.
        let state = tokio::time::timeout(self.reader.timeout + WAIT_MARGIN, ended).await;
        match state {
            Ok(Ok(state)) => self.find(&state, kid, algorithm),
            _ => Err(NoKey::Unavailable(self.cooldown)),
        }
    }

    /// Whether no attempt is in progress or allowed.
    fn is_resting(&self, state: &State) -> bool {
        let has_just_read = state.last.is_some_and(|(at, _)| at.elapsed() < self.cooldown);
        has_just_read && !state.is_reading
    }

    fn find(&self, state: &State, kid: Option<&str>, algorithm: SignatureAlgorithm) -> Result<(Vec<Key>, u64), NoKey> {
        let rest = state
            .last
            .map_or(self.cooldown, |(at, _)| self.cooldown.saturating_sub(at.elapsed()));
        let Some(keys) = self.usable(state) else {
            return Err(NoKey::Unavailable(rest));
        };
        let found: Vec<Key> = keys.candidates(kid, algorithm).into_iter().cloned().collect();
        match state.last {
            _ if !found.is_empty() => Ok((found, state.version)),
            Some((_, true)) => Err(NoKey::Unavailable(rest)),
            _ => Err(NoKey::Unknown),
        }
    }
}
