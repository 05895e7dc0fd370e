//! Query strings: pairs, numbers within bounds, pages.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::error::{Code, Error};
use super::percent;
use crate::core::page::{Page, Start};

/// Largest page of a list.
pub const PAGE_MAX: i64 = 1000;

/// Default page of a list.
pub const PAGE_ROWS: i64 = 50;

/// The decoded pairs of a query string.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes a query string, without its question mark. `+` is a space.
    ///
    /// # Errors
    /// 400 for malformed percent-encoding and NUL.
    pub fn parse(text: &str) -> Result<Self, Error> {
        text.split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let decoded = |text: &str| percent::decode(&text.replace('+', " "));
                match (decoded(key), decoded(value)) {
                    (Some(key), Some(value)) => Ok((key, value)),
                    _ => Err(Error::new(
                        Code::VALIDATION_ERROR,
                        "the query string must be valid percent-encoded UTF-8 without NUL",
                    )),
                }
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The first value of a key; an empty one counts as absent.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// A value parsed as some type; `allowed` describes it in the error.
    pub fn parsed<T: FromStr>(&self, key: &str, allowed: &str) -> Result<Option<T>, Error> {
        self.get(key)
            .map(|text| {
                text.parse()
                    .map_err(|_| Error::invalid(key, format!("must be {allowed}")))
            })
            .transpose()
    }

    /// The page that `limit` (1 to 1,000) and one of `offset`, `before` and `after` select.
    pub fn page(&self, limit: i64) -> Result<Page, Error> {
        let offset = self.number("offset", 0, 0..=i64::MAX)?;
        let start = match (self.get("before"), self.get("after")) {
            (None, None) => Start::Offset(offset),
            (Some(_), Some(_)) => return Err(Error::invalid("before", "must not be combined with after")),
            (_, _) if self.get("offset").is_some() => {
                return Err(Error::invalid("offset", "must not be combined with before or after"));
            }
            (Some(id), None) => Start::Before(id.to_owned()),
            (None, Some(id)) => Start::After(id.to_owned()),
        };
        Ok(Page {
            limit: self.number("limit", limit, 1..=PAGE_MAX)?,
            start,
        })
    }

    /// A whole number within bounds.
    pub fn number<T>(&self, key: &str, default: T, bounds: RangeInclusive<T>) -> Result<T, Error>
    where
        T: FromStr + PartialOrd + Display,
    {
        let allowed = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        match self.parsed(key, &allowed)? {
            None => Ok(default),
            Some(number) if bounds.contains(&number) => Ok(number),
            Some(_) => Err(Error::invalid(key, format!("must be {allowed}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_numbers_are_parsed_within_bounds() {
        let query = Query::parse("limit=7&filter=a+b%2B&empty=&flag&limit=8").expect("a query");
        assert_eq!(query.get("filter"), Some("a b+"));
        assert_eq!(query.get("empty"), None);
        assert_eq!(query.number("limit", 50, 1..=1000).expect("a number"), 7);
        assert_eq!(query.number("offset", 50, 1..=1000).expect("a number"), 50);
        for bad in [
            "limit=0",
            "limit=1001",
            "limit=x",
            "limit=-1",
            "limit=99999999999999999999",
        ] {
            let query = Query::parse(bad).expect("a query");
            assert!(query.number("limit", 50, 1..=1000).is_err(), "{bad}");
        }
        assert!(Query::parse("a=%").is_err());
    }
}
