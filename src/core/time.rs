//! Times as the API prints them.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Datelike, Timelike, Utc};
use postgres_types::{FromSql, Type};
use serde::{Serialize, Serializer};

/// A time as the API prints it: RFC 3339 in UTC with `Z`, microseconds without trailing zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub DateTime<Utc>);

impl Timestamp {
    /// This moment.
    pub fn now() -> Self {
        Self(Utc::now())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand: lists have hundreds of them, and chrono parses its format for each.
        let (date, time) = (self.0.date_naive(), self.0.time());
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            date.year(),
            date.month(),
            date.day(),
            time.hour(),
            time.minute(),
            time.second()
        )?;
        // A leap second is the second before it, beyond its end.
        let mut micros = time.nanosecond() / 1000 % 1_000_000;
        if micros > 0 {
            let mut digits = 6;
            while micros.is_multiple_of(10) {
                micros /= 10;
                digits -= 1;
            }
            write!(f, ".{micros:0digits$}")?;
        }
        f.write_str("Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'a> FromSql<'a> for Timestamp {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        DateTime::<Utc>::from_sql(ty, raw).map(Self)
    }

    fn accepts(ty: &Type) -> bool {
        <DateTime<Utc> as FromSql<'_>>::accepts(ty)
    }
}

/// The time in µs since 1970.
pub fn unix_micros() -> i64 {
    i64::try_from(since_1970().as_micros()).unwrap_or(i64::MAX)
}

/// How long ago a time in µs since 1970 was, zero for one to come: the clocks of two machines may differ.
pub fn age_of(unix_micros: i64) -> Duration {
    since_1970().saturating_sub(Duration::from_micros(unix_micros.unsigned_abs()))
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Milliseconds of a duration, at most `i64::MAX`, so that they fit Redis, Postgres and Lua.
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_have_no_trailing_zeros() {
        for (text, printed) in [
            ("2024-01-15T10:30:00Z", "2024-01-15T10:30:00Z"),
            ("2024-01-15T10:30:20.120000Z", "2024-01-15T10:30:20.12Z"),
            ("2024-01-15T12:30:00.000001+02:00", "2024-01-15T10:30:00.000001Z"),
            ("2024-01-15T10:30:00.1234567Z", "2024-01-15T10:30:00.123456Z"),
        ] {
            let time = DateTime::parse_from_rfc3339(text).expect("a timestamp").to_utc();
            assert_eq!(Timestamp(time).to_string(), printed);
        }
    }
}
