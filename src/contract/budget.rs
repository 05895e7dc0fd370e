//! The hash `exceeded`: tenants that use more than their budget of bytes, as the publisher has found them last. API nodes
//! refuse their writes.

use std::fmt;
use std::str::FromStr;

/// Most tenants in the hash.
pub const TENANTS_MAX: usize = 1000;

/// What a tenant uses, and what it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exceeded {
    /// Bytes of its streams.
    pub used: u64,
    /// `streams.tenant_bytes_max`.
    pub budget: u64,
}

/// `<used> <budget>`.
impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.used, self.budget)
    }
}

/// A value that is no [`Exceeded`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl FromStr for Exceeded {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (used, budget) = text.split_once(' ').ok_or(Malformed)?;
        Ok(Self {
            used: used.parse().map_err(|_| Malformed)?,
            budget: budget.parse().map_err(|_| Malformed)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exceeded_budget_is_read_as_written(used in any::<u64>(), budget in any::<u64>()) {
            let exceeded = Exceeded { used, budget };
            prop_assert_eq!(exceeded.to_string().parse(), Ok(exceeded));
        }
    }

    #[test]
    fn malformed_exceeded_budget_is_refused() {
        for text in ["", "1", "1 x", "-1 2", "1 2 3"] {
            assert_eq!(text.parse::<Exceeded>(), Err(Malformed), "{text:?}");
        }
    }
}
