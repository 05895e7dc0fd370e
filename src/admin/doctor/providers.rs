//! Checks of the providers of external identities: their keys, and their clocks.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::admin::doctor::{Check, SKEW_SECONDS, skew};
use crate::config::{self, Config};
use crate::oidc::{Fetched, Reader};

/// Half of the resolution of the header `Date`.
const DATE_HALF: Duration = Duration::from_millis(500);

/// Reads the keys of each provider.
pub(crate) async fn examine(config: &Config) -> Vec<Check> {
    let checks = config.auth.providers.iter().map(examine_one);
    futures_util::future::join_all(checks).await.concat()
}

async fn examine_one(provider: &config::Provider) -> Vec<Check> {
    const NAME: &str = "auth.provider_keys";
    let began = Instant::now();
    let read = match Reader::new(provider) {
        Ok(reader) => reader.read().await,
        Err(error) => Err(error),
    };
    match read {
        Ok(fetched) => {
            let mut checks = vec![keys(provider, &fetched)];
            checks.extend(fetched.date.map(|date| clock(provider, date, began)));
            checks
        }
        Err(error) => vec![Check::fail(
            NAME,
            format!("{}: {error:#}", provider.issuer),
            "Its access tokens cannot be verified: they get 503 when the last keys are too old (`jwks_stale_seconds`). \
             Check `jwks` of the provider and the network from this machine",
        )],
    }
}

fn keys(provider: &config::Provider, fetched: &Fetched) -> Check {
    const NAME: &str = "auth.provider_keys";
    let found = format!(
        "{}: {} usable, {} ignored",
        provider.issuer,
        fetched.keys.len(),
        fetched.keys.ignored()
    );
    if fetched.keys.is_empty() {
        return Check::fail(
            NAME,
            found,
            "Its access tokens are refused. Usable are RSA keys of 2048 to 4096 bits, P-256, P-384 and Ed25519, for \
             signatures. Check `jwks` of the provider",
        );
    }
    if !provider
        .algorithms
        .iter()
        .any(|algorithm| fetched.keys.has_key_for(*algorithm))
    {
        return Check::fail(
            NAME,
            found,
            "None of its keys verifies one of `algorithms` of the provider: its access tokens are refused",
        );
    }
    Check::ok(NAME, found)
}

fn clock(provider: &config::Provider, date: DateTime<Utc>, began: Instant) -> Check {
    clock_check(&provider.issuer, skew(date + DATE_HALF, began), provider.leeway_seconds)
}

fn clock_check(issuer: &str, skew_seconds: f64, leeway_seconds: u64) -> Check {
    const NAME: &str = "auth.provider_clock";
    let direction = if skew_seconds < 0.0 { "behind" } else { "ahead" };
    let found = format!("{issuer}: {:.1} s {direction}", skew_seconds.abs());
    let meaning = format!(
        "The clocks of the provider and of this machine differ. Tokens are refused that are issued more than \
         {leeway_seconds} s in the future (`leeway_seconds`), and an end of all sessions does not end tokens of a clock that \
         is ahead. Run this where the clock is wrong"
    );
    #[expect(clippy::cast_precision_loss, reason = "at most 300")]
    let leeway = leeway_seconds as f64;
    let check = match skew_seconds.abs() {
        skew if skew <= SKEW_SECONDS => return Check::ok(NAME, found),
        skew if skew < leeway => Check::warn(NAME, found, meaning),
        _ => Check::fail(NAME, found, meaning),
    };
    check.fix("timedatectl set-ntp true")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::doctor::Level;

    #[test]
    fn provider_clock_level_follows_the_leeway() {
        let level = |skew, leeway| clock_check("i", skew, leeway).level;
        assert_eq!(
            [
                level(0.9, 30),
                level(-20.0, 30),
                level(20.0, 30),
                level(30.0, 30),
                level(1.5, 0)
            ],
            [Level::Ok, Level::Warn, Level::Warn, Level::Fail, Level::Fail]
        );
    }
}
