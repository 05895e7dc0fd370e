//! The declaration of a section: each field with its documentation, default and bounds in one place.

use std::ops::RangeInclusive;

use anyhow::{Result, bail};

/// Bytes of a kibibyte.
pub(super) const KIB: u64 = 1024;
/// Bytes of a mebibyte.
pub(super) const MIB: u64 = 1024 * KIB;
/// Bytes of a gibibyte.
pub(super) const GIB: u64 = 1024 * MIB;

/// A field of a section.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    /// Its doc comment, one line each.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests compare it with the shipped files"))]
    pub(super) doc: &'static str,
    /// For a bounded number: its bounds and its value.
    pub(super) bounded: Option<(RangeInclusive<u64>, u64)>,
}

/// A section of the configuration.
pub(super) trait Section {
    /// Its doc comment, one line each.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests compare it with the shipped files"))]
    fn doc(&self) -> &'static str;

    fn fields(&self) -> Vec<Field>;
}

/// Declares a section: the struct, its [`Default`], and the table of its fields ([`Section`]).
///
/// ```ignore
/// section! {
///     /// What the section is for.
///     pub struct Streams {
///         /// What the field means; the shipped files append the bounds.
///         pub changes_entries_max: u64 = 1_000_000, 100..=1_000_000_000;
///     }
/// }
/// ```
macro_rules! section {
    (
        $(#[doc = $section_doc:literal])+
        pub struct $Section:ident {
            $(
                $(#[doc = $doc:literal])+
                pub $field:ident: $type:ty = $default:expr $(, $bounds:expr)?;
            )+
        }
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Debug, Clone, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $Section {
            $(
                $(#[doc = $doc])+
                $(#[doc = concat!("\n\nAllowed: `", stringify!($bounds), "`.")])?
                pub $field: $type,
            )+
        }

        impl Default for $Section {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $crate::config::section::Section for $Section {
            fn doc(&self) -> &'static str {
                concat!($($section_doc, "\n",)+)
            }

            fn fields(&self) -> Vec<$crate::config::section::Field> {
                vec![$(
                    $crate::config::section::Field {
                        name: stringify!($field),
                        doc: concat!($($doc, "\n",)+),
                        bounded: [$(($bounds, $crate::config::section::number(self.$field)))?].into_iter().next(),
                    },
                )+]
            }
        }
    };
}
pub(super) use section;

/// A number of any type as bounds are declared.
pub(super) fn number(value: impl TryInto<u64>) -> u64 {
    value.try_into().unwrap_or(u64::MAX)
}

/// Checks that a number lies within its bounds.
pub(super) fn within(key: &str, value: u64, bounds: &RangeInclusive<u64>) -> Result<()> {
    if !bounds.contains(&value) {
        bail!(
            "key `{key}` is {value}: allowed is {} to {}",
            bounds.start(),
            bounds.end()
        );
    }
    Ok(())
}
