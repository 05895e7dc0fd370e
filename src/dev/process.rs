//! Processes: supervised ones, and ones orphaned by a supervisor that was killed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// Interval of polling conditions outside this process.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// Log lines in an error.
const TAIL_LINES: usize = 15;

/// The signals of a stop, each with its timeout.
pub(super) type Escalation = [(Signal, Duration)];

/// A child process whose output goes to a log file.
#[derive(Debug)]
pub struct Supervised {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Supervised {
    /// Starts the command in its own process group, so that the terminal's Ctrl-C does not reach it.
    ///
    /// Dropping the value kills the process; [`Self::stop`] stops it in order.
    pub(super) fn spawn(name: &'static str, mut command: Command, log: &Path) -> Result<Self> {
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write the log of {name}, {}", log.display()))?;
        let errors = output.try_clone().context("log file")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", command.as_std().get_program().display()))?;
        Ok(Self {
            name,
            child,
            log: log.to_owned(),
        })
    }

    /// `None` after its exit was observed.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The error to report after an unexpected exit; `None` while it runs.
    pub(super) fn ended(&mut self) -> Result<Option<anyhow::Error>> {
        let status = self.child.try_wait().context("child process")?;
        Ok(status.map(|status| self.report(status)))
    }

    /// Waits for an unexpected exit and returns the error to report. Cancel safe.
    pub(super) async fn end(&mut self) -> anyhow::Error {
        match self.child.wait().await {
            Ok(status) => self.report(status),
            Err(error) => anyhow::Error::new(error).context(format!("cannot wait for {}", self.name)),
        }
    }

    fn report(&self, status: ExitStatus) -> anyhow::Error {
        anyhow!(
            "{} exited unexpectedly ({status}). The end of {}:\n{}",
            self.name,
            self.log.display(),
            tail(&self.log)
        )
    }

    /// Sends the signals one after the other until the process has exited.
    pub(super) async fn stop(&mut self, escalation: &Escalation) -> Result<()> {
        stop(self.name, &mut self.child, escalation).await
    }

    /// Sends SIGKILL and waits for the exit.
    pub(super) async fn kill(&mut self) -> Result<()> {
        self.child
            .kill()
            .await
            .with_context(|| format!("cannot kill {}", self.name))
    }
}

/// Sends the signals to a child one after the other until it has exited.
pub(super) async fn stop(name: &str, child: &mut Child, escalation: &Escalation) -> Result<()> {
    for (signal, limit) in escalation {
        let Some(pid) = child.id() else { return Ok(()) };
        send(pid, *signal);
        // After SIGSTOP a process handles only SIGKILL until it continues.
        send(pid, Signal::SIGCONT);
        if let Ok(status) = timeout(*limit, child.wait()).await {
            status.with_context(|| format!("cannot wait for {name}"))?;
            return Ok(());
        }
    }
    bail!("{name} does not exit, not even by SIGKILL")
}

/// Stops a process that is not a child of this one.
pub(super) async fn stop_stray(name: &str, pid: u32, escalation: &Escalation) -> Result<()> {
    for (signal, limit) in escalation {
        send(pid, *signal);
        send(pid, Signal::SIGCONT);
        let deadline = Instant::now() + *limit;
        while is_alive(pid) && Instant::now() < deadline {
            sleep(POLL).await;
        }
        if !is_alive(pid) {
            return Ok(());
        }
    }
    bail!("{name} with process id {pid}, orphaned by an earlier run, does not exit: stop it manually")
}

/// Sends a signal; the process may have exited.
pub(super) fn send(pid: u32, signal: Signal) {
    if let Some(pid) = signed(pid) {
        kill(pid, signal).ok();
    }
}

/// Whether a process runs under this id. A zombie does not.
pub(super) fn is_alive(pid: u32) -> bool {
    let Some(target) = signed(pid) else { return false };
    // EPERM means that it runs as another user.
    if kill(target, None) == Err(nix::errno::Errno::ESRCH) {
        return false;
    }
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the name, which is in parentheses and may contain any character.
        Ok(stat) => !stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    }
}

/// The id for system calls; 0 and negative values would address process groups.
fn signed(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().filter(|pid| *pid > 1).map(Pid::from_raw)
}

/// The arguments of a process; empty if unknown.
pub(super) async fn arguments(pid: u32) -> Vec<String> {
    if let Ok(bytes) = std::fs::read(format!("/proc/{pid}/cmdline")) {
        return split_arguments(&bytes);
    }
    // Without /proc (macOS): `ps` joins the arguments by spaces, so one that contains spaces comes in pieces.
    let output = Command::new("ps")
        .args(["-o", "command=", "-p", &pid.to_string()])
        .output()
        .await;
    match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
        Err(_) => Vec::new(),
    }
}

/// Splits what `/proc/<pid>/cmdline` holds: arguments ended by NUL bytes.
fn split_arguments(bytes: &[u8]) -> Vec<String> {
    bytes
        .split(|byte| *byte == 0)
        .filter(|argument| !argument.is_empty())
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

/// Processes whose working folder was this one when it was deleted. Without /proc (macOS) none is found.
pub(super) fn working_in_deleted(folder: &Path) -> Vec<u32> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut name = folder.as_os_str().to_owned();
    name.push(" (deleted)");
    processes
        .flatten()
        .filter(|entry| std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.as_os_str() == name))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The process id on the first line of a pid file; `None` when there is no file or no id in it.
pub(super) fn read_pid(file: &Path) -> Option<u32> {
    parse_pid(&std::fs::read_to_string(file).ok()?)
}

fn parse_pid(text: &str) -> Option<u32> {
    text.lines().next()?.trim().parse().ok().filter(|pid| *pid > 1)
}

/// The last lines of a log file.
pub(super) fn tail(log: &Path) -> String {
    const BYTES: u64 = 8192;
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => last_lines(&text, TAIL_LINES),
        Err(error) => format!("  (cannot be read: {error})"),
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(count);
    lines[first..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_is_the_first_line_of_its_file() {
        assert_eq!(parse_pid("4711\n/some/folder\n5432\n"), Some(4711));
        assert_eq!(parse_pid("4711"), Some(4711));
    }

    #[test]
    fn pid_of_several_processes_is_refused() {
        for text in ["", "\n", "0\n", "1\n", "-1\n", "pid\n", "99999999999\n"] {
            assert_eq!(parse_pid(text), None, "{text:?}");
        }
        assert!(!is_alive(0));
        assert!(!is_alive(u32::MAX));
    }

    #[test]
    fn split_arguments_keeps_spaces() {
        assert_eq!(
            split_arguments(b"/usr/bin/postgres\0-D\0/a folder/data\0"),
            ["/usr/bin/postgres", "-D", "/a folder/data"]
        );
        assert!(split_arguments(b"").is_empty());
    }

    #[test]
    fn last_lines_returns_the_tail() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "  b\n  c");
        assert_eq!(last_lines("a", 2), "  a");
        assert_eq!(last_lines("", 2), "");
    }

    #[tokio::test]
    async fn unexpected_exit_is_reported_with_the_log() {
        let log = std::env::temp_dir().join(format!("posduif-process-{}.log", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "echo out of memory; exit 7"]);
        let mut process = Supervised::spawn("sh", command, &log).unwrap();
        let error = process.end().await.to_string();
        std::fs::remove_file(&log).unwrap();
        assert!(
            error.contains("exit status: 7") && error.contains("out of memory"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn stop_escalates_and_continues_a_stopped_process() {
        let log = std::env::temp_dir().join(format!("posduif-trap-{}.log", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; echo trapped; while :; do sleep 0.05; done"]);
        let mut process = Supervised::spawn("sh", command, &log).unwrap();
        while !tail(&log).contains("trapped") {
            sleep(POLL).await;
        }
        let pid = process.pid().unwrap();
        send(pid, Signal::SIGSTOP);
        let escalation = [
            (Signal::SIGTERM, Duration::from_millis(100)),
            (Signal::SIGKILL, Duration::from_secs(5)),
        ];
        process.stop(&escalation).await.unwrap();
        std::fs::remove_file(&log).unwrap();
        assert!(!is_alive(pid));
    }
}
