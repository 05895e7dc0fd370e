//! The program, run at a shell.

use std::process::{Output, Stdio};

use posduif::config::Config;
use serde_json::{Value, json};
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
        .env_remove("POSDUIF_CONFIG")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The program with a world's settings, but for those of the server, such as the default tenant.
pub(crate) fn posduif_in(world: &World) -> Command {
    let mut command = posduif();
    let variables = variables(&world.config).into_iter();
    command.envs(variables.filter(|(name, _)| !name.starts_with("POSDUIF__SERVER__")));
    command
}

/// The settings that differ from the defaults, lists apart, as variables of the environment.
pub(crate) fn variables(config: &Config) -> Vec<(String, String)> {
    let (ours, defaults) = (json!(config), json!(Config::default()));
    let mut variables = Vec::new();
    for (section, keys) in ours.as_object().unwrap() {
        for (key, value) in keys.as_object().into_iter().flatten() {
            let text = match value {
                _ if *value == defaults[section][key] => continue,
                Value::Array(_) | Value::Object(_) | Value::Null => continue,
                Value::String(text) if text == "***" => continue,
                Value::String(text) => text.clone(),
                value => value.to_string(),
            };
            variables.push((format!("POSDUIF__{section}__{key}").to_uppercase(), text));
        }
    }
    // Serialized as asterisks.
    let secrets = [
        ("POSDUIF__POSTGRES__URL", &config.postgres.url),
        ("POSDUIF__REDIS__URL", &config.redis.url),
        ("POSDUIF__AUTH__JWT_SECRET", &config.auth.jwt_secret),
    ];
    variables.extend(secrets.map(|(name, secret)| (name.to_owned(), secret.expose().to_owned())));
    variables
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
