//! Subjects: what another provider of identities calls its users, and the id that each has here.
//!
//! The id of a subject can be computed without a lookup, so that rows may hold the subject where a user's id is expected.
//! Both rules are part of the public contract and never change:
//!
//! - A UUID in its canonical form (lower case, with hyphens) is the id itself.
//! - The id of any other subject is the UUIDv5 (RFC 9562, section 5.5) of `<tenant>/<subject>` in [`NAMESPACE`]. The name of
//!   a tenant contains no slash, so that no two pairs have the same text.
//!
//! The provider is not part of it: a row holds a subject, not its provider. So that no provider identifies users of another,
//! providers of one tenant have different prefixes of subjects (`subject_prefix`), and each user remembers its provider.

use std::fmt;

use sha1::{Digest, Sha1};
use uuid::{Builder, Uuid};

use crate::core::tenant::Tenant;

/// The namespace of ids of subjects.
pub const NAMESPACE: Uuid = Uuid::from_u128(0x6772_58bb_7819_4414_933f_0685_a640_26e1);

/// Most bytes of a subject with its prefix. OpenID Connect allows 255 of the subject alone.
const BYTES_MAX: usize = 320;

/// A subject: the prefix of its provider, and what the provider calls the user.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject(Box<str>);

impl Subject {
    /// `None` for a text that is empty, too long, or has control characters.
    pub fn new(prefix: &str, text: &str) -> Option<Self> {
        let is_allowed = !text.is_empty() && prefix.len() + text.len() <= BYTES_MAX && !text.contains(char::is_control);
        is_allowed.then(|| Self(format!("{prefix}{text}").into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the user in this tenant.
    pub fn user_id(&self, tenant: &Tenant) -> Uuid {
        self.user_id_in(&tenant.name)
    }

    /// The id of the user in the tenant of this name.
    fn user_id_in(&self, tenant: &str) -> Uuid {
        if let Some(id) = canonical(&self.0) {
            return id;
        }
        let digest: [u8; 20] = Sha1::new()
            .chain_update(NAMESPACE)
            .chain_update(tenant)
            .chain_update("/")
            .chain_update(&*self.0)
            .finalize()
            .into();
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        Builder::from_sha1_bytes(first).into_uuid()
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The UUID of a text that is one in its canonical form.
fn canonical(text: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(text).ok()?;
    (*id.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *text).then_some(id)
}

/// How the values of a column name users.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum UserNames {
    /// By their ids.
    #[default]
    Ids,
    /// By subjects of the provider with this prefix.
    Subjects(String),
    /// By id, where the value is a UUID in its canonical form, else by a subject of the provider with this prefix.
    Both(String),
}

impl UserNames {
    /// The id of the user whom a value names in a tenant; `None` for a value that names no user.
    pub fn user_id(&self, tenant: &str, value: &[u8]) -> Option<Uuid> {
        let prefix = match self {
            Self::Ids => return Uuid::try_parse_ascii(value).ok(),
            Self::Subjects(prefix) | Self::Both(prefix) => prefix,
        };
        let text = std::str::from_utf8(value).ok()?;
        match canonical(text) {
            Some(id) if matches!(self, Self::Both(_)) => Some(id),
            _ => Some(Subject::new(prefix, text)?.user_id_in(tenant)),
        }
    }

    /// The values that name a user, who has this subject, preferred ones first.
    pub fn values(&self, user: Uuid, subject: Option<&str>) -> Vec<String> {
        let prefix = match self {
            Self::Ids => return vec![user.to_string()],
            Self::Subjects(prefix) | Self::Both(prefix) => prefix,
        };
        // A subject that is the id needs no entry.
        let by_id = (prefix.is_empty() || matches!(self, Self::Both(_))).then(|| user.to_string());
        let by_subject = subject.and_then(|subject| subject.strip_prefix(prefix.as_str()));
        let by_subject = by_subject.filter(|value| !value.is_empty() && (prefix.is_empty() || self.is_subject(value)));
        let mut values: Vec<String> = by_subject.map(str::to_owned).into_iter().collect();
        values.extend(by_id.filter(|id| !values.contains(id)));
        values
    }

    /// Whether a value is a subject and no id.
    fn is_subject(&self, value: &str) -> bool {
        matches!(self, Self::Subjects(_)) || canonical(value).is_none()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(tenant: &str, prefix: &str, text: &str) -> String {
        let tenant = Tenant::named(tenant).expect("a name");
        let subject = Subject::new(prefix, text).expect("a subject");
        subject.user_id(&tenant).to_string()
    }

    /// Frozen: own tables hold subjects, and devices hold ids.
    #[test]
    fn id_of_a_subject_never_changes() {
        for (tenant, prefix, text, expected) in [
            (
                "acme",
                "",
                "auth0|5f7c8ec7c33c6c004bbafe82",
                "e18d3da2-cea3-5d63-b7f1-936e2a96e889",
            ),
            ("acme", "", "42", "f25c5926-ee95-56a9-875f-19e3ede6e0a2"),
            ("globex", "", "42", "6c525966-e6fc-599d-8c6c-3427466f58a7"),
            ("acme", "kc:", "42", "10fa6802-f6bd-5371-a2c5-e8e613e32bd5"),
            (
                "acme",
                "",
                "jürgen@bücher.example",
                "a2aa8024-2146-52fe-9e8f-317ec45df45d",
            ),
        ] {
            assert_eq!(id(tenant, prefix, text), expected, "{tenant} {prefix}{text}");
        }
    }

    #[test]
    fn canonical_uuid_is_its_own_id_and_other_forms_are_not() {
        let canonical = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
        assert_eq!(id("acme", "", canonical), canonical);
        for other in [
            "7C9E6679-7425-40DE-944B-E07FC1F90AE7",
            "7c9e6679742540de944be07fc1f90ae7",
            "{7c9e6679-7425-40de-944b-e07fc1f90ae7}",
            "urn:uuid:7c9e6679-7425-40de-944b-e07fc1f90ae7",
        ] {
            assert_ne!(id("acme", "", other), canonical, "{other}");
        }
        assert_ne!(id("acme", "kc:", canonical), canonical);
    }

    #[test]
    fn empty_long_and_control_characters_are_no_subject() {
        for bad in ["", "a\0", "a\nb", "\u{7f}", &"x".repeat(BYTES_MAX + 1)] {
            assert_eq!(Subject::new("", bad), None, "{bad:?}");
        }
        assert_eq!(Subject::new("kc:", ""), None);
        assert!(Subject::new("", &"x".repeat(BYTES_MAX)).is_some());
        assert_eq!(Subject::new("kc:", &"x".repeat(BYTES_MAX)), None);
    }

    #[test]
    fn value_names_the_user_of_its_subject() {
        let tenant = Tenant::named("acme").expect("a name");
        let uuid = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
        let (ids, plain) = (UserNames::Ids, UserNames::Both(String::new()));
        let (both, subjects) = (UserNames::Both("kc:".into()), UserNames::Subjects("kc:".into()));
        let user = |names: &UserNames, value: &str| names.user_id("acme", value.as_bytes()).map(|id| id.to_string());
        let subject = |text: &str| Some(Subject::new("", text).expect("a subject").user_id(&tenant).to_string());
        assert_eq!((user(&ids, "42"), user(&ids, uuid)), (None, Some(uuid.into())));
        assert_eq!(
            (user(&plain, "42"), user(&plain, uuid)),
            (subject("42"), Some(uuid.into()))
        );
        assert_eq!(
            (user(&both, "42"), user(&both, uuid)),
            (subject("kc:42"), Some(uuid.into()))
        );
        assert_eq!(user(&subjects, uuid), subject(&format!("kc:{uuid}")));
        assert_eq!((user(&plain, ""), user(&plain, "a\n")), (None, None));
        // A subject of another provider is no value of this one.
        let other = Uuid::from_u128(7);
        assert_eq!(subjects.values(other, Some("1001")), [""; 0]);
    }

    proptest! {
        #[test]
        fn values_of_a_user_name_this_user(prefix in "(|[a-z]{1,3}:)", text in "[ -~]{1,40}", kind in 0..3) {
            let names = match kind {
                0 => UserNames::Ids,
                1 => UserNames::Subjects(prefix.clone()),
                _ => UserNames::Both(prefix.clone()),
            };
            let subject = Subject::new(&prefix, &text).expect("a subject");
            let user = subject.user_id(&Tenant::named("acme").expect("a name"));
            let values = names.values(user, Some(subject.as_str()));
            prop_assert!(!values.is_empty());
            for value in values {
                prop_assert_eq!(names.user_id("acme", value.as_bytes()), Some(user), "{}", value);
            }
        }

        #[test]
        fn different_subjects_and_tenants_have_different_ids(
            a in "[ -~]{1,40}", b in "[ -~]{1,40}", s in "[a-z][a-z0-9_]{0,10}", t in "[a-z][a-z0-9_]{0,10}",
        ) {
            let (first, second) = (id(&s, "", &a), id(&t, "", &b));
            prop_assert_eq!(first == second, a == b && s == t);
            prop_assert_eq!(first, id(&s, "", &a));
        }
    }
}
