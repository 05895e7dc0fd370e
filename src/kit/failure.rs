//! Why a case did not pass.

use super::driver;

/// Why a case did not pass.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The client broke a rule: of this heading, else of the heading of the case.
    #[error("{text}")]
    Broken {
        heading: Option<&'static str>,
        text: String,
    },
    #[error(transparent)]
    Driver(#[from] driver::Error),
    /// The kit itself failed.
    #[error("{0}")]
    Kit(String),
}

/// The client broke a rule of the case's heading.
pub fn broken(text: impl Into<String>) -> Failure {
    Failure::Broken {
        heading: None,
        text: text.into(),
    }
}
