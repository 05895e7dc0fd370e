//! A position in a stream on the command line: a stream ID, a commit LSN, a time, `start` or `now`.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail};
use chrono::{DateTime, Utc};
use postgres_types::PgLsn;

use super::Context;
use crate::admin::streams::{self, Found, rfc3339};
use crate::core::position::StreamId;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamPosition {
    /// The oldest entry.
    Start,
    /// After the newest entry.
    Now,
    /// An entry, which need not exist.
    Id(StreamId),
    /// The first change of a transaction, by its commit LSN.
    Lsn(PgLsn),
    /// The first change committed at or after a time.
    Time(DateTime<Utc>),
    /// The first change committed since a duration ago.
    Ago(Duration),
}

impl FromStr for StreamPosition {
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
             2026-11-24T12:00:00Z, and a duration ago such as 90s, 10m, 2h or 3d"
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
    // At most a hundred years.
    let seconds = number.checked_mul(seconds).filter(|seconds| *seconds < 3_200_000_000)?;
    Some(Duration::from_secs(seconds))
}

impl StreamPosition {
    /// The ID that precedes the position in a stream: entries from the position on have greater IDs.
    ///
    /// # Errors
    /// When nothing is published at the position yet: a reader would wait without effect.
    pub(super) async fn before(self, context: &Context<'_>, key: &str) -> Result<StreamId> {
        self.check(context)?;
        Ok(match self {
            Self::Start => StreamId::ZERO,
            Self::Now => match streams::look(&context.store, key, context.positions()).await? {
                Found::Stream(shape) => shape.last_id,
                Found::Missing | Found::WrongType(_) => StreamId::ZERO,
            },
            Self::Id(id) => id.previous(),
            Self::Lsn(lsn) => {
                let base = context.view.map_or(0, |view| view.base);
                let ms = u64::from(lsn).saturating_add(base);
                StreamId { ms, seq: 0 }.previous()
            }
            Self::Time(time) => streams::before_time(&context.store, key, time).await?,
            Self::Ago(ago) => streams::before_time(&context.store, key, Utc::now() - ago).await?,
        })
    }

    /// Refuses a position beyond the end of publishing, which is most likely a mistaken ID.
    fn check(self, context: &Context<'_>) -> Result<()> {
        if let Self::Time(time) = self
            && time > Utc::now()
        {
            bail!(
                "{} is in the future; use `now` for changes published from now on",
                rfc3339(time)
            );
        }
        // Without a checkpoint nothing is published.
        let Some(view) = context.view else { return Ok(()) };
        let named = match self {
            // A reader of everything continues at the next ID.
            Self::Id(id) if id > view.position.next() => id.to_string(),
            Self::Lsn(lsn) if u64::from(lsn).saturating_add(view.base) > view.position.ms => lsn.to_string(),
            _ => return Ok(()),
        };
        bail!(
            "{named} is beyond what is published, which ends at {} (commit LSN {}); use `now` for the end",
            view.position,
            PgLsn::from(view.position.ms.saturating_sub(view.base))
        )
    }

    /// The time of a position given as one.
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
    fn position_parses_from_each_form() {
        let position = |text: &str| text.parse::<StreamPosition>();
        assert_eq!(position("start"), Ok(StreamPosition::Start));
        assert_eq!(position("7-1"), Ok(StreamPosition::Id(StreamId { ms: 7, seq: 1 })));
        assert_eq!(position("10m"), Ok(StreamPosition::Ago(Duration::from_secs(600))));
        assert_eq!(position("0/165BF50"), Ok(StreamPosition::Lsn(PgLsn::from(0x0165_bf50))));
        assert!(matches!(
            position("2026-11-24T12:00:00+01:00"),
            Ok(StreamPosition::Time(_))
        ));
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
            assert!(position(bad).is_err(), "{bad}");
        }
    }
}
