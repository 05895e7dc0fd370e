//! A driver: a program that controls a client, and speaks JSON lines on its standard input and output.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

use super::case::Feature;

/// How long a driver may take for one command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);

/// Bytes of a line.
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How long the standard error of a driver that has ended is waited for; its own children may hold it open.
const STDERR_TIMEOUT: Duration = Duration::from_secs(5);

/// Lines of its standard error that a report shows.
const STDERR_LINES: usize = 20;

/// A failure of the driver itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot start the driver `{command}`: {cause}")]
    Start { command: String, cause: std::io::Error },
    #[error("the driver ended during `{during}`{stderr}")]
    Ended { during: String, stderr: String },
    #[error("the driver did not answer `{during}` within {} s{stderr}", COMMAND_TIMEOUT.as_secs())]
    Silent { during: String, stderr: String },
    #[error("the driver answered `{during}` with {line:?}, which is not a JSON object with the `n` of the command")]
    Malformed { during: String, line: String },
}

/// What a driver says of itself.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Introduction {
    /// The name of the client.
    #[serde(default)]
    pub client: String,
    #[serde(default)]
    pub features: Vec<String>,
    /// Cases that are known to fail.
    #[serde(default)]
    pub known: Vec<Known>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Known {
    pub case: String,
    pub reason: String,
}

impl Introduction {
    pub fn has(&self, feature: Feature) -> bool {
        self.features.iter().any(|name| name == feature.name())
    }
}

/// A running driver.
#[derive(Debug)]
pub struct Driver {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Answers that came before they were asked for.
    early: BTreeMap<u64, Value>,
    /// The part of a line that was read so far.
    line: Vec<u8>,
    next: u64,
    stderr: Arc<Mutex<VecDeque<String>>>,
    stderr_reader: JoinHandle<()>,
}

/// A command whose answer is not there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    id: u64,
    what: String,
}

impl Driver {
    /// Starts a command of the shell.
    ///
    /// # Errors
    /// When there is no shell.
    pub fn start(command: &str) -> Result<Self, Error> {
        let failed = |cause| Error::Start {
            command: command.to_owned(),
            cause,
        };
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!("exec {command}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let missing = || failed(std::io::ErrorKind::BrokenPipe.into());
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = child.stdout.take().ok_or_else(missing)?;
        let errors = child.stderr.take().ok_or_else(missing)?;
        let stderr = Arc::new(Mutex::new(VecDeque::new()));
        let kept = stderr.clone();
        let stderr_reader = tokio::spawn(async move {
            let mut lines = BufReader::new(errors.take(LINE_BYTES_MAX)).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let mut kept = kept.lock();
                if kept.len() == STDERR_LINES {
                    kept.pop_front();
                }
                kept.push_back(line);
            }
        });
        Ok(Self {
            child,
            input,
            output: BufReader::new(output),
            early: BTreeMap::new(),
            line: Vec::new(),
            next: 1,
            stderr,
            stderr_reader,
        })
    }

    /// Sends a command without waiting for its answer.
    ///
    /// # Errors
    /// When the driver has ended.
    pub async fn begin(&mut self, name: &str, mut command: Value) -> Result<Pending, Error> {
        let id = self.next;
        self.next += 1;
        command["do"] = name.into();
        command["n"] = id.into();
        let line = format!("{command}\n");
        let written = async {
            self.input.write_all(line.as_bytes()).await?;
            self.input.flush().await
        };
        match tokio::time::timeout(COMMAND_TIMEOUT, written).await {
            Ok(Ok(())) => Ok(Pending {
                id,
                what: name.to_owned(),
            }),
            Ok(Err(_)) => Err(self.ended(name).await),
            Err(_) => Err(Error::Silent {
                during: name.to_owned(),
                stderr: self.stderr(),
            }),
        }
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// When the driver ends, is silent, or answers something else.
    pub async fn finish(&mut self, pending: &Pending) -> Result<Value, Error> {
        let answer = tokio::time::timeout(COMMAND_TIMEOUT, self.read(pending)).await;
        answer.unwrap_or_else(|_| {
            Err(Error::Silent {
                during: pending.what.clone(),
                stderr: self.stderr(),
            })
        })
    }

    /// Reads until the answer is there. May be cancelled: what was read of a line is kept.
    async fn read(&mut self, pending: &Pending) -> Result<Value, Error> {
        loop {
            if let Some(answer) = self.early.remove(&pending.id) {
                return Ok(answer);
            }
            let room = LINE_BYTES_MAX.saturating_sub(self.line.len() as u64);
            let read = (&mut self.output).take(room).read_until(b'\n', &mut self.line).await;
            let line = std::mem::take(&mut self.line);
            if read.is_err() || line.last() != Some(&b'\n') {
                return Err(self.ended(&pending.what).await);
            }
            let answer: Option<Value> = serde_json::from_slice(&line).ok();
            let id = answer.as_ref().and_then(|answer| answer["n"].as_u64());
            let (Some(answer), Some(id)) = (answer, id) else {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                return Err(Error::Malformed {
                    during: pending.what.clone(),
                    line,
                });
            };
            self.early.insert(id, answer);
        }
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// When the driver ends, is silent, or answers something else.
    pub async fn call(&mut self, name: &str, command: Value) -> Result<Value, Error> {
        let pending = self.begin(name, command).await?;
        self.finish(&pending).await
    }

    /// The first command: which server, which storage.
    ///
    /// # Errors
    /// When the driver ends, is silent, or answers something else.
    pub async fn init(&mut self, url: &str, store: &Path, seed: u64) -> Result<Introduction, Error> {
        let command = json!({
            "url": url, "store": store.to_string_lossy(), "seed": seed, "tables": super::history::TABLES,
            "features": Feature::ALL,
        });
        let answer = self.call("init", command).await?;
        let line = answer.to_string();
        serde_json::from_value(answer).map_err(|_| Error::Malformed {
            during: "init".to_owned(),
            line,
        })
    }

    /// Ends the process at once: what is not stored is lost.
    pub async fn kill(mut self) {
        self.child.start_kill().ok();
        self.child.wait().await.ok();
    }

    /// Ends the process in order.
    pub async fn stop(mut self) {
        let said = self.begin("bye", json!({})).await;
        if said.is_ok() && tokio::time::timeout(COMMAND_TIMEOUT, self.child.wait()).await.is_ok() {
            return;
        }
        self.kill().await;
    }

    async fn ended(&mut self, during: &str) -> Error {
        tokio::time::timeout(COMMAND_TIMEOUT, self.child.wait()).await.ok();
        if !self.stderr_reader.is_finished() {
            // The end of the process can be seen before its last lines are read.
            tokio::time::timeout(STDERR_TIMEOUT, &mut self.stderr_reader).await.ok();
        }
        Error::Ended {
            during: during.to_owned(),
            stderr: self.stderr(),
        }
    }

    fn stderr(&self) -> String {
        let lines = self.stderr.lock();
        if lines.is_empty() {
            return String::new();
        }
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        format!("; its standard error ends with:\n{}", lines.join("\n"))
    }
}
