//! Which transactions a snapshot of Postgres sees.

use tokio_postgres::Row;

/// What `pg_current_snapshot()` saw (Postgres table 9.83).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// All transactions below have ended.
    pub xmin: u64,
    /// None from here on had ended.
    pub xmax: u64,
    /// Those between that were still under way.
    pub in_progress: Vec<u64>,
}

impl Snapshot {
    /// Reads `xmin:xmax:xip,xip,…`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let xmin = parts.next()?.parse().ok()?;
        let xmax = parts.next()?.parse().ok()?;
        let in_progress = parts
            .next()?
            .split(',')
            .filter(|xid| !xid.is_empty())
            .map(|xid| xid.parse().ok())
            .collect::<Option<_>>()?;
        Some(Self {
            xmin,
            xmax,
            in_progress,
        })
    }

    /// Reads the column `snapshot`; one that cannot be read sees nothing.
    ///
    /// # Errors
    /// When there is no such column.
    pub fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self::parse(row.try_get("snapshot")?).unwrap_or_default())
    }

    /// Whether the snapshot sees every transaction of a range of 32-bit ids; doubt counts as no.
    pub fn sees_all(&self, low: u32, high: u32) -> bool {
        let (low, high) = (self.widen(low), self.widen(high));
        high < self.xmin || (high < self.xmax && !self.in_progress.iter().any(|xid| (low..=high).contains(xid)))
    }

    /// The 64-bit id that is nearest to the snapshot's; the log carries the lower half only.
    fn widen(&self, xid: u32) -> u64 {
        let distance = xid.wrapping_sub(self.xmax as u32).cast_signed();
        self.xmax.saturating_add_signed(distance.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_ended_before_it() {
        let snapshot = Snapshot::parse("100:110:100,105").unwrap();
        assert!(snapshot.sees_all(1, 99));
        assert!(snapshot.sees_all(101, 104));
        assert!(!snapshot.sees_all(100, 104));
        assert!(!snapshot.sees_all(104, 106));
        assert!(!snapshot.sees_all(109, 110));
        assert!(Snapshot::parse("1:2:").unwrap().in_progress.is_empty());
        assert!(Snapshot::parse("1:2").is_none());
        assert!(Snapshot::parse("a:2:").is_none());
    }

    #[test]
    fn transaction_ids_are_widened_across_the_wrap() {
        let epoch = 1_u64 << 32;
        let snapshot = Snapshot {
            xmin: epoch + 5,
            xmax: epoch + 10,
            in_progress: vec![epoch + 5],
        };
        assert!(snapshot.sees_all(u32::MAX - 3, u32::MAX));
        assert!(snapshot.sees_all(u32::MAX - 3, 4));
        assert!(!snapshot.sees_all(5, 5));
        assert!(!snapshot.sees_all(12, 12));
    }
}
