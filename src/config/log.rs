use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use super::section::section;

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    /// One JSON object per line.
    Json,
}

section! {
    /// Logging.
    pub struct Log {
        /// Level or filter directives, for example `info` or `info,posduif::publish=debug`.
        pub level: String = "info".into();
        /// Form of log lines: `text` or `json`.
        pub format: LogFormat = LogFormat::Text;
    }
}

impl Log {
    pub(super) fn check(&self) -> Result<()> {
        parse_level(&self.level).map(drop)
    }
}

/// The filter of `log.level`.
pub fn parse_level(level: &str) -> Result<EnvFilter> {
    let Ok(filter) = EnvFilter::try_new(level) else {
        bail!(
            "key `log.level` is \"{level}\": allowed are a level or directives, for example info or \
             info,posduif::publish=debug"
        );
    };
    Ok(filter)
}
