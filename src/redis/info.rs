//! The reply to `INFO`.

use std::collections::HashMap;

use crate::redis::store::{Error, Store};

/// The fields of one or more sections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info(pub HashMap<String, String>);

impl Info {
    /// Reads lines of `name:value`; others are headings.
    pub fn parse(text: &str) -> Self {
        let fields = text.lines().filter_map(|line| line.trim().split_once(':'));
        Self(
            fields
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    /// A field, empty when it is missing.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// A numeric field.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name).parse().ok()
    }
}

/// The server's version and how many bytes it uses.
pub async fn version_and_memory(store: &Store) -> Result<(String, u64), Error> {
    let mut pipe = redis::pipe();
    pipe.cmd("INFO").arg("server").cmd("INFO").arg("memory");
    let (server, memory): (String, String) = store.query(&pipe).await?;
    let used = Info::parse(&memory).number("used_memory").unwrap_or_default();
    Ok((Info::parse(&server).get("redis_version").to_owned(), used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_has_fields_of_all_sections_and_no_headings() {
        let info = Info::parse("# Server\r\nredis_version:8.0.1\r\nrun_id:a:b\r\n\r\n# Memory\r\nused_memory:17\r\n");
        assert_eq!((info.get("redis_version"), info.get("run_id")), ("8.0.1", "a:b"));
        assert_eq!((info.number("used_memory"), info.get("# Server")), (Some(17), ""));
        assert_eq!(info.number("run_id"), None);
    }
}
