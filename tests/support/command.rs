//! The program, run at a shell.

use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::process::Command;

use super::{TIMEOUT, World};

/// The program, without any setting of the surroundings.
pub(crate) fn posduif() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posduif"));
    command
        .current_dir(std::env::temp_dir())
        .env_remove("DATABASE_URL")
        .env_remove("REDIS_URL")
        .env_remove("POSDUIF_URL")
        .env_remove("POSDUIF_ADMIN_URL")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The program with a world's settings.
pub(crate) fn posduif_in(world: &World) -> Command {
    let config = &world.config;
    let mut command = posduif();
    command
        .env("POSDUIF__POSTGRES__URL", config.postgres.url.expose())
        .env("POSDUIF__REDIS__URL", config.redis.url.expose())
        .env("POSDUIF__REDIS__PREFIX", &config.redis.prefix)
        .env("POSDUIF__ADMIN__LISTEN", "127.0.0.1:0")
        .env("POSDUIF__REPLICATION__SLOT", &config.replication.slot)
        .env("POSDUIF__REPLICATION__PUBLICATION", &config.replication.publication)
        .env("POSDUIF__AUTH__ARGON2_MEMORY_KIB", "8192")
        .env("POSDUIF__AUTH__ARGON2_ITERATIONS", "1");
    command
}

/// What a command printed and how it ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The output of a command that must have worked.
    #[track_caller]
    pub(crate) fn text(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self.stdout
    }

    /// The output as JSON of a command that must have worked.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The complaint of a command that must have ended like this.
    #[track_caller]
    pub(crate) fn complaint(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "");
        assert!(
            !self.stderr.contains("backtrace") && !self.stderr.contains("panicked"),
            "{}",
            self.stderr
        );
        self.stderr
    }
}

/// Runs it to its end.
pub(crate) async fn run(command: &mut Command, arguments: &[&str]) -> Ended {
    let output = tokio::time::timeout(TIMEOUT, command.args(arguments).output());
    let Output { status, stdout, stderr } = output.await.expect("the command ends in time").unwrap();
    Ended {
        code: status.code(),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

/// Runs the program in a world with arguments that are separated by spaces.
pub(crate) async fn posduif_says(world: &World, arguments: &str) -> Ended {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    run(&mut posduif_in(world), &arguments).await
}
