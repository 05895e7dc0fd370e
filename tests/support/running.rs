//! A command of the program that runs until it is stopped or its output is closed.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout};

use super::command::posduif_in;
use super::{TIMEOUT, World, send_signal};

/// A command that runs until it is stopped.
pub(crate) struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    errors: BufReader<ChildStderr>,
}

impl Running {
    /// Starts `posduif` with arguments that are separated by spaces.
    pub(crate) fn start(world: &World, arguments: &str) -> Self {
        let mut child = posduif_in(world)
            .args(arguments.split(' '))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            errors: BufReader::new(child.stderr.take().unwrap()),
            child,
        }
    }

    /// The next line that it prints.
    pub(crate) async fn line(&mut self) -> String {
        let line = tokio::time::timeout(TIMEOUT, self.lines.next_line()).await;
        line.expect("a line comes in time").unwrap().expect("it goes on")
    }

    /// The next line that it prints, as JSON.
    pub(crate) async fn json(&mut self) -> Value {
        let line = self.line().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Waits for a line on stderr that holds this.
    pub(crate) async fn says(&mut self, what: &str) {
        let waiting = async {
            let mut line = String::new();
            while !line.contains(what) {
                line.clear();
                let read = self.errors.read_line(&mut line).await.unwrap();
                assert!(read > 0, "it ended before it said {what:?}");
            }
        };
        let waited = tokio::time::timeout(TIMEOUT, waiting).await;
        assert!(waited.is_ok(), "it did not say {what:?} in time");
    }

    /// Closes what it prints to, as `head` does when it has enough.
    pub(crate) fn close_stdout(self) -> Unread {
        Unread {
            child: self.child,
            errors: self.errors,
        }
    }

    /// Ends it by a signal and gives its exit code.
    pub(crate) async fn end(mut self, signal: Signal) -> Option<i32> {
        send_signal(self.child.id().unwrap(), signal);
        let ended = tokio::time::timeout(TIMEOUT, self.child.wait()).await;
        ended.expect("it ends in time").unwrap().code()
    }

    /// Waits until it ends by itself, and gives its exit code.
    pub(crate) async fn ended(mut self) -> Option<i32> {
        let ended = tokio::time::timeout(TIMEOUT, self.child.wait()).await;
        ended.expect("it ends in time").unwrap().code()
    }
}

/// A command whose output is closed.
pub(crate) struct Unread {
    child: Child,
    errors: BufReader<ChildStderr>,
}

impl Unread {
    /// Waits until it ends, and returns its exit code and what it printed on stderr from now on.
    pub(crate) async fn ended(mut self, timeout: Duration) -> (Option<i32>, String) {
        let ended = tokio::time::timeout(timeout, self.child.wait()).await;
        let code = ended.expect("it ends in time").unwrap().code();
        let mut errors = String::new();
        self.errors.read_to_string(&mut errors).await.unwrap();
        (code, errors)
    }
}
