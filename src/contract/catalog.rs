//! Every key with its type and fields, as docs/redis.md describes them.

use super::{checkpoint, device_state, entry, members, meta, notice, push, quarantine};

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyFormat {
    /// Its name under the prefix `posduif`, with `<…>` for what varies.
    pub pattern: &'static str,
    /// The type of its value.
    pub kind: &'static str,
    /// Names of the fields of a hash or of a stream's entries. Empty where the fields are data.
    pub fields: &'static [&'static [&'static str]],
}

const fn key(pattern: &'static str, kind: &'static str, fields: &'static [&'static [&'static str]]) -> KeyFormat {
    KeyFormat { pattern, kind, fields }
}

/// All keys.
pub const KEYS: [KeyFormat; 35] = [
    key("posduif:checkpoint", "hash", &[&checkpoint::FIELDS]),
    key("posduif:terms", "hash", &[]),
    key("posduif:window", "hash", &[]),
    key("posduif:stopped", "hash", &[]),
    key("posduif:exceeded", "hash", &[]),
    key("posduif:aof", "hash", &[&["published"]]),
    key("posduif:probe:<random>:stream", "stream", &[&["n"]]),
    key("posduif:probe:<random>:mark", "hash", &[&["n"]]),
    key("posduif:live:<lane>", "stream", &[&notice::FIELDS]),
    key("posduif:{<tenant>}:changes", "stream", &[&entry::CHANGES_FIELDS]),
    key("posduif:{<tenant>}:shared", "stream", &[&entry::DELIVERED_FIELDS]),
    key("posduif:{<tenant>}:inbox:<user>", "stream", &[&entry::DELIVERED_FIELDS]),
    key(
        "posduif:{<tenant>}:group:<group>:<id>",
        "stream",
        &[&entry::DELIVERED_FIELDS],
    ),
    key("posduif:{<tenant>}:groups", "set", &[]),
    key("posduif:{<tenant>}:groups:<user>", "hash", &[&members::FIELDS]),
    key("posduif:{<tenant>}:memberships", "sorted set", &[]),
    key(
        "posduif:{<tenant>}:quarantine",
        "stream",
        &[&quarantine::FIELDS, &entry::QUARANTINED_FIELDS],
    ),
    key("posduif:{<tenant>}:meta", "hash", &[&meta::FIELDS]),
    key("posduif:{<tenant>}:device:<device>", "hash", &[&device_state::FIELDS]),
    key("posduif:{<tenant>}:push", "stream", &[&push::FIELDS]),
    key("posduif:{<tenant>}:push:due", "sorted set", &[]),
    key("posduif:{<tenant>}:push:tries", "hash", &[]),
    key("posduif:{<tenant>}:presence", "sorted set", &[]),
    key("posduif:{<tenant>}:presence:users", "hash", &[]),
    key("posduif:{<tenant>}:presence:changed", "sorted set", &[]),
    key("posduif:{<tenant>}:presence:gone", "sorted set", &[]),
    key("posduif:{<tenant>}:presence:seen", "sorted set", &[]),
    key("posduif:{<tenant>}:presence:unwritten", "set", &[]),
    key("posduif:presence:carrier", "string", &[]),
    key("posduif:session:<session>", "hash", &[]),
    key("posduif:sessions:ended:until", "sorted set", &[]),
    key("posduif:account:<user>:sessions", "set", &[]),
    key("posduif:proxy:unlisted", "string", &[]),
    key("posduif:ticket:<digest>", "string", &[]),
    key("posduif:limit:<limit>:<digest>", "string", &[]),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use uuid::Uuid;

    use super::*;
    use crate::contract::keys::Keys;

    const DOCUMENT: &str = include_str!("../../docs/redis.md");

    #[test]
    fn patterns_are_the_names_of_keys() {
        let (keys, user) = (Keys::new("posduif"), Uuid::nil());
        let named = |name: String| {
            name.replace(&user.to_string(), "<user>")
                .replace("live:0", "live:<lane>")
        };
        let tenant = "<tenant>";
        let part = |part: &str| keys.presence_part(tenant, part);
        let [probe_stream, probe_mark] = keys.probe("<random>");
        let names: BTreeSet<String> = [
            keys.checkpoint(),
            keys.terms(),
            keys.window(),
            keys.stopped(),
            keys.exceeded(),
            keys.aof(),
            probe_stream,
            probe_mark,
            keys.live(0),
            keys.changes(tenant),
            keys.shared(tenant),
            keys.inbox(tenant, "<user>"),
            keys.group(tenant, &"group:42".parse().expect("a group"))
                .replace("group:group:42", "group:<group>:<id>"),
            keys.groups(tenant),
            keys.members(tenant, "<user>"),
            keys.memberships(tenant),
            keys.quarantine(tenant),
            keys.meta(tenant),
            keys.device(tenant, "<device>"),
            keys.push(tenant),
            keys.push_due(tenant),
            keys.push_tries(tenant),
            keys.presence(tenant),
            part("users"),
            part("changed"),
            part("gone"),
            part("seen"),
            part("unwritten"),
            keys.presence_carrier(),
            keys.session(user).replace(&user.to_string(), "<session>"),
            keys.ended_sessions(),
            keys.account_sessions(user),
            keys.unlisted_proxy(),
            keys.ticket("<digest>"),
            keys.limit("<limit>", "<digest>"),
        ]
        .map(named)
        .into();
        assert_eq!(
            KEYS.map(|key| key.pattern.to_owned())
                .into_iter()
                .collect::<BTreeSet<_>>(),
            names
        );
    }

    /// The text of the section of each key: `### ` and the pattern, then the type and perhaps a table of fields.
    fn sections() -> Vec<(&'static str, &'static str)> {
        let sections = DOCUMENT.split("\n### `").skip(1);
        sections.filter_map(|section| section.split_once('`')).collect()
    }

    #[test]
    fn document_describes_every_key_with_its_type_and_fields() {
        let documented: BTreeSet<&str> = sections().into_iter().map(|(pattern, _)| pattern).collect();
        let known: BTreeSet<&str> = KEYS.iter().map(|key| key.pattern).collect();
        assert_eq!(documented, known, "the keys of docs/redis.md");
        for (pattern, text) in sections() {
            let text = text.split("\n## ").next().unwrap_or_default();
            let key = KEYS.iter().find(|key| key.pattern == pattern).expect("a known key");
            let kind = text
                .lines()
                .find_map(|line| line.strip_prefix("Type: "))
                .expect("a type");
            assert_eq!(kind.trim_end_matches('.'), key.kind, "{pattern}");
            let rows = text
                .lines()
                .filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
            let documented: BTreeSet<&str> = rows.map(|(field, _)| field).collect();
            let known: BTreeSet<&str> = key.fields.iter().copied().flatten().copied().collect();
            assert_eq!(documented, known, "{pattern}");
        }
    }

    /// Byte strings are what code that writes entries or parses replies contains.
    #[test]
    fn names_of_entry_fields_are_only_in_contract() {
        let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        while let Some(folder) = folders.pop() {
            for found in std::fs::read_dir(folder).expect("a folder of sources") {
                let path = found.expect("an entry of a folder").path();
                if path.is_dir() {
                    folders.extend((!path.ends_with("contract")).then_some(path));
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                for name in entry::FIELDS.iter().chain(&quarantine::FIELDS).chain(&notice::FIELDS) {
                    assert!(!text.contains(&format!("b\"{name}\"")), "{name} in {}", path.display());
                }
            }
        }
    }
}
