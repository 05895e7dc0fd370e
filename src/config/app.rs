use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::section::section;

/// A remote widget of the app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Widget {
    /// Kind of widget.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where the app fetches it.
    pub url: String,
    pub version: String,
}

section! {
    /// Contents of `GET /api/app-instructions`.
    pub struct App {
        /// Version of the instructions.
        pub version: String = "1.0.0".into();
        /// Remote widgets by name.
        pub widgets: BTreeMap<String, Widget> = BTreeMap::new();
    }
}
