//! A running `posduif dev`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Child;
use uuid::Uuid;

use super::TIMEOUT;
use super::command::posduif;
use super::http::Api;

/// A folder for `dev` that goes with the test.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(std::env::temp_dir().join(format!("posduif-cli-test-{}", Uuid::new_v4().simple())))
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// Processes that work in the folder or name it.
    pub(crate) fn processes(&self) -> Vec<String> {
        let numbered = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let entry = entry.ok()?;
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            (pid != std::process::id()).then(|| entry.path())
        });
        let names = |process: &Path| -> Option<String> {
            let line = std::fs::read(process.join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let works_here = std::fs::read_link(process.join("cwd")).is_ok_and(|folder| folder.starts_with(&self.0));
            (works_here || line.contains(self.path())).then_some(line)
        };
        numbered.filter_map(|process| names(&process)).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running `posduif dev`.
pub(crate) struct Dev {
    pub(crate) child: Child,
    pub(crate) url: String,
    /// Host and port of the demo's server.
    demo: String,
    stderr: tokio::task::JoinHandle<String>,
}

impl Dev {
    pub(crate) async fn start(folder: &Folder) -> Self {
        let mut command = posduif();
        command
            .args(["dev", "--port", "0", "--data", folder.path(), "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut log = child.stderr.take().unwrap();
        let stderr = tokio::spawn(async move {
            let mut text = String::new();
            let _ = log.read_to_string(&mut text).await;
            text
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line())
            .await
            .expect("dev is ready in time");
        let Some(line) = line.unwrap() else {
            panic!("dev ended: {}", stderr.await.unwrap());
        };
        let ready: Value = serde_json::from_str(&line).unwrap();
        Self {
            child,
            url: ready["ready"].as_str().unwrap().to_owned(),
            demo: ready["demo"].as_str().unwrap()["http://".len()..].replace("/demo/", ""),
            stderr,
        }
    }

    pub(crate) fn api(&self) -> Api {
        Api::new(self.url.strip_prefix("http://").unwrap())
    }

    /// A client of the demo's server, which sends what a page of it sends.
    pub(crate) fn demo(&self) -> Api {
        let origin = format!("http://{}", self.demo);
        Api::new(&self.demo).undescribed().with("origin", &origin)
    }

    /// Runs SQL as the owner of the private Postgres.
    pub(crate) async fn sql(&self, folder: &Folder, statement: &str) {
        let environment = std::fs::read_to_string(folder.0.join("dev.env")).unwrap();
        let url = environment
            .lines()
            .find_map(|line| line.strip_prefix("DATABASE_URL="))
            .unwrap();
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(statement).await.unwrap();
    }

    /// The process of the engine; `None` while there is none.
    pub(crate) fn engine_pid(&self) -> Option<i32> {
        let parent = format!("PPid:\t{}", self.child.id()?);
        let processes = std::fs::read_dir("/proc").unwrap();
        processes.flatten().find_map(|entry| {
            let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
            let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
            let is_engine = status.lines().any(|line| line == parent) && line.split('\0').any(|word| word == "serve");
            is_engine.then(|| entry.file_name().to_str()?.parse().ok())?
        })
    }

    /// Sends a signal and waits for the end.
    pub(crate) async fn end(mut self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().unwrap().cast_signed()), signal).unwrap();
        let status = tokio::time::timeout(TIMEOUT, self.child.wait())
            .await
            .expect("dev ends in time")
            .unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.stderr.await.unwrap());
    }
}
