//! A place in a stream as somebody names it: a stream ID, a position in the log, a time, `start` or `now`.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail};
use chrono::{DateTime, Utc};
use postgres_types::PgLsn;

use super::Bench;
use crate::admin::streams::{self, Found, rfc3339};
use crate::core::position::StreamId;

/// A place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The oldest entry that there is.
    Start,
    /// Behind the newest entry.
    Now,
    /// An entry, or where it would be.
    Id(StreamId),
    /// The first change of a transaction, by its commit LSN.
    Lsn(PgLsn),
    /// What was committed from a time on.
    Time(DateTime<Utc>),
    /// What was committed so long ago, or later.
    Ago(Duration),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "start" => return Ok(Self::Start),
            "now" => return Ok(Self::Now),
            _ => {}
        }
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        if let Ok(time) = DateTime::parse_from_rfc3339(text) {
            return Ok(Self::Time(time.to_utc()));
        }
        if let Some(ago) = ago(text) {
            return Ok(Self::Ago(ago));
        }
        if text.contains('/')
            && let Ok(lsn) = text.parse()
        {
            return Ok(Self::Lsn(lsn));
        }
        Err(
            "allowed are `start`, `now`, a stream ID such as 23445328-1, a commit LSN such as 0/165BF50, a time such as \
             2026-11-24T12:00:00Z, and how long ago, such as 90s, 10m, 2h or 3d"
                .to_owned(),
        )
    }
}

fn ago(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    // No stream is older than a hundred years.
    let seconds = number.checked_mul(seconds).filter(|seconds| *seconds < 3_200_000_000)?;
    Some(Duration::from_secs(seconds))
}

impl Place {
    /// The ID behind which the entries lie that are meant, in one stream.
    ///
    /// # Errors
    /// When the place lies beyond all that is published, where a reader would wait for nothing; when Redis fails.
    pub(super) async fn before(self, bench: &Bench<'_>, key: &str) -> Result<StreamId> {
        self.check(bench)?;
        Ok(match self {
            Self::Start => StreamId::ZERO,
            Self::Now => match streams::look(&bench.store, key, bench.positions()).await? {
                Found::Stream(shape) => shape.last_id,
                Found::Missing | Found::WrongType(_) => StreamId::ZERO,
            },
            Self::Id(id) => id.previous(),
            Self::Lsn(lsn) => {
                let base = bench.view.map_or(0, |view| view.base);
                let ms = u64::from(lsn).saturating_add(base);
                StreamId { ms, seq: 0 }.previous()
            }
            Self::Time(time) => streams::before_time(&bench.store, key, time).await?,
            Self::Ago(ago) => streams::before_time(&bench.store, key, Utc::now() - ago).await?,
        })
    }

    /// Refuses what nothing has come to yet: an ID of another kind is easily taken for one, and no entry would ever be
    /// said to be missing.
    fn check(self, bench: &Bench<'_>) -> Result<()> {
        if let Self::Time(time) = self
            && time > Utc::now()
        {
            bail!(
                "{} has not come yet; `now` means what is published from now on",
                rfc3339(time)
            );
        }
        // Without a checkpoint nothing is published, and what there is grows from its beginning.
        let Some(view) = bench.view else { return Ok(()) };
        let named = match self {
            // The next one is where a reader goes on that has all.
            Self::Id(id) if id > view.position.next() => id.to_string(),
            Self::Lsn(lsn) if u64::from(lsn).saturating_add(view.base) > view.position.ms => lsn.to_string(),
            _ => return Ok(()),
        };
        bail!(
            "{named} lies beyond what is published, which ends at {} (commit LSN {}); `now` means behind it",
            view.position,
            PgLsn::from(view.position.ms.saturating_sub(view.base))
        )
    }

    /// The time from which on changes are meant, where it is one.
    pub(super) fn time(self) -> Option<DateTime<Utc>> {
        match self {
            Self::Time(time) => Some(time),
            Self::Ago(ago) => Some(Utc::now() - ago),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_in_several_ways() {
        let place = |text: &str| text.parse::<Place>();
        assert_eq!(place("start"), Ok(Place::Start));
        assert_eq!(place("7-1"), Ok(Place::Id(StreamId { ms: 7, seq: 1 })));
        assert_eq!(place("10m"), Ok(Place::Ago(Duration::from_secs(600))));
        assert_eq!(place("0/165BF50"), Ok(Place::Lsn(PgLsn::from(0x0165_bf50))));
        assert!(matches!(place("2026-11-24T12:00:00+01:00"), Ok(Place::Time(_))));
        for bad in [
            "",
            "m",
            "10",
            "10y",
            "-1m",
            "yesterday",
            "99999999999999999999d",
            "9999999999d",
            "1/",
            "ä",
        ] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }
}
