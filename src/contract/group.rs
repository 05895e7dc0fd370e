//! Groups: the id of one, and what an entry of an inbox says about memberships.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::config::group::USER;
use crate::core::event::{GROUP_JOINED, GROUP_LEFT};

/// Longest id of a group in bytes.
pub const ID_BYTES_MAX: usize = 128;

/// One group: the name under which the configuration declares its kind, and the id that its rows have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId {
    name: Arc<str>,
    id: Arc<str>,
}

/// An id that no group can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no id of a group: it must be 1 to {ID_BYTES_MAX} printable ASCII characters without spaces")]
pub struct InvalidId(String);

impl GroupId {
    /// # Errors
    /// For an id that could not be a word of a command.
    pub fn new(name: &Arc<str>, id: &[u8]) -> Result<Self, InvalidId> {
        let text = std::str::from_utf8(id).ok().filter(|text| is_valid_id(text));
        let invalid = || InvalidId(String::from_utf8_lossy(&id[..id.len().min(64)]).into_owned());
        Ok(Self {
            name: name.clone(),
            id: text.ok_or_else(invalid)?.into(),
        })
    }

    /// The name of its kind.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }
}

fn is_valid_id(text: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.id)
    }
}

impl FromStr for GroupId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match text.split_once(':') {
            Some((name, id)) if !name.is_empty() => Self::new(&name.into(), id.as_bytes()),
            _ => Err(InvalidId(text.chars().take(64).collect())),
        }
    }
}

/// A user's membership begins or ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    Join(GroupId),
    Leave(GroupId),
}

impl Membership {
    /// The group.
    pub fn group(&self) -> &GroupId {
        match self {
            Self::Join(group) | Self::Leave(group) => group,
        }
    }

    /// The operation of a batch.
    pub fn operation(&self) -> &'static str {
        match self {
            Self::Join(_) => "join",
            Self::Leave(_) => "leave",
        }
    }

    /// The name of the live event.
    pub fn event(&self) -> &'static str {
        match self {
            Self::Join(_) => GROUP_JOINED,
            Self::Leave(_) => GROUP_LEFT,
        }
    }

    /// Reads an event and its [`Self::payload`]; `None` for other events.
    pub fn from_event(event: &str, payload: &str) -> Option<Self> {
        if !is_about_membership(event) {
            return None;
        }
        serde_json::from_str::<Payload>(payload).ok()?.membership(event)
    }

    /// What live events contain, JSON.
    pub fn payload(&self) -> String {
        let group = self.group();
        serde_json::json!({"group": group.name(), "id": group.id()}).to_string()
    }
}

#[derive(serde::Deserialize)]
struct Payload {
    group: String,
    id: String,
    /// Where it is one of several.
    #[serde(default)]
    event: String,
}

impl Payload {
    fn membership(&self, event: &str) -> Option<Membership> {
        let membership = match event {
            GROUP_JOINED => Membership::Join,
            GROUP_LEFT => Membership::Leave,
            _ => return None,
        };
        GroupId::new(&self.group.as_str().into(), self.id.as_bytes())
            .ok()
            .map(membership)
    }
}

/// Whether an event is about memberships.
pub fn is_about_membership(event: &str) -> bool {
    matches!(event, GROUP_JOINED | GROUP_LEFT)
}

/// What a notice contains of the memberships that one change begins and ends, JSON: of one what live events contain, of several
/// an array of that, each with its event. `None` without any.
pub fn payload(memberships: &[Membership]) -> Option<String> {
    match memberships {
        [] => None,
        [membership] => Some(membership.payload()),
        several => {
            let payloads = several.iter().map(|membership| {
                let group = membership.group();
                serde_json::json!({"event": membership.event(), "group": group.name(), "id": group.id()})
            });
            Some(serde_json::Value::from_iter(payloads).to_string())
        }
    }
}

/// What live events about a message contain of the group to which it goes, JSON.
pub fn message_payload(group: &GroupId) -> String {
    serde_json::json!({"group": {"name": group.name(), "id": group.id()}}).to_string()
}

/// The group among the audiences of a message, which are a JSON array.
pub fn of_message(via: &str) -> Option<GroupId> {
    let audiences: Vec<&str> = serde_json::from_str(via).ok()?;
    let group: GroupId = audiences.first()?.parse().ok()?;
    (group.name() != USER).then_some(group)
}

/// Reads a notice's event and its [`payload()`]; empty for other events.
pub fn of_notice(event: &str, payload: &str) -> Vec<Membership> {
    if !is_about_membership(event) {
        return Vec::new();
    }
    if !payload.starts_with('[') {
        return Membership::from_event(event, payload).into_iter().collect();
    }
    let payloads: Vec<Payload> = serde_json::from_str(payload).unwrap_or_default();
    payloads.iter().filter_map(|one| one.membership(&one.event)).collect()
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join(group) => write!(f, "+{group}"),
            Self::Leave(group) => write!(f, "-{group}"),
        }
    }
}

impl FromStr for Membership {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(group), _) => Ok(Self::Join(group.parse()?)),
            (_, Some(group)) => Ok(Self::Leave(group.parse()?)),
            _ => Err(InvalidId(text.chars().take(64).collect())),
        }
    }
}

/// Memberships as the text of an entry's field: words, those that end first.
pub fn write(memberships: &[Membership]) -> String {
    let words: Vec<String> = memberships.iter().map(Membership::to_string).collect();
    words.join(" ")
}

/// Reads the text of [`write()`]; malformed words are left out.
pub fn read(text: &str) -> Vec<Membership> {
    text.split(' ').filter_map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn memberships_read_as_written(parts in proptest::collection::vec((any::<bool>(), "[a-z_]{1,8}", "[!-~]{1,128}"), 0..5)) {
            let memberships: Vec<Membership> = parts
                .iter()
                .map(|(joins, name, id)| {
                    let group = GroupId::new(&name.as_str().into(), id.as_bytes()).unwrap();
                    if *joins { Membership::Join(group) } else { Membership::Leave(group) }
                })
                .collect();
            prop_assert_eq!(&read(&write(&memberships)), &memberships);
            if let Some(last) = memberships.last() {
                let payload = payload(&memberships).unwrap();
                prop_assert_eq!(&of_notice(last.event(), &payload), &memberships);
                prop_assert_eq!(of_notice("new_message", &payload), []);
            }
            for membership in &memberships {
                let read = Membership::from_event(membership.event(), &membership.payload());
                prop_assert_eq!(read.as_ref(), Some(membership));
                let group = membership.group();
                prop_assert_eq!(&group.to_string().parse::<GroupId>().unwrap(), group);
            }
        }

        #[test]
        fn any_text_reads_without_panic(text in ".{0,80}") {
            read(&text);
            of_notice(GROUP_JOINED, &text);
            let _: Result<GroupId, _> = text.parse();
        }
    }

    #[test]
    fn group_of_a_message_is_the_first_of_its_audiences() {
        let group = of_message(r#"["list:4:2","user:6adcb195-0000-0000-0000-000000000000"]"#).unwrap();
        assert_eq!((group.name(), group.id()), ("list", "4:2"));
        assert_eq!(message_payload(&group), r#"{"group":{"id":"4:2","name":"list"}}"#);
        for other in [
            r#"["user:6adcb195-0000-0000-0000-000000000000"]"#,
            r#"["tenant"]"#,
            "[]",
            "",
            "{}",
        ] {
            assert_eq!(of_message(other), None, "{other}");
        }
    }

    #[test]
    fn ids_with_spaces_or_beyond_the_bound_are_refused() {
        let name: Arc<str> = "list".into();
        for bad in ["", "a b", "a\n", "\u{e9}", &"x".repeat(129)] {
            assert!(GroupId::new(&name, bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(GroupId::new(&name, &[0xff]).is_err());
        assert!("list".parse::<GroupId>().is_err());
        assert!(":1".parse::<GroupId>().is_err());
    }
}
