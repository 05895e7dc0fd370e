//! Files shipped beside the program: the image, the compose file, the systemd unit, and notifications to systemd.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use posduif::config::Config;
use serde_json::Value;

use crate::support::{TIMEOUT, World};

const DOCKERFILE: &str = include_str!("../Dockerfile");
const COMPOSE: &str = include_str!("../docker-compose.yml");
const UNIT: &str = include_str!("../config/posduif.service");

/// The next notification that a supervisor receives.
async fn notification(socket: &tokio::net::UnixDatagram) -> String {
    let mut text = [0; 100];
    let read = tokio::time::timeout(TIMEOUT, socket.recv(&mut text)).await;
    let length = read.expect("the supervisor is notified in time").unwrap();
    String::from_utf8(text[..length].to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn supervisor_is_notified_of_start_and_stop() {
    let world = World::new().await;
    let path = std::env::temp_dir().join(format!("posduif-notify-{}", uuid::Uuid::new_v4().simple()));
    // Tenant a path, systemd may give a name in Linux' abstract namespace.
    let mut places = vec![(UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned())];
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt as _;
        let name = format!("posduif-notify-{}", uuid::Uuid::new_v4().simple());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        places.push((UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}")));
    }
    for (socket, place) in places {
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::UnixDatagram::from_std(socket).unwrap();
        let process = world
            .process_under("all", &world.config, None, &[("NOTIFY_SOCKET", &place)], None)
            .await;
        assert_eq!(notification(&socket).await, "READY=1");
        assert_eq!(process.api().get("/health").await.status, 200);
        process.signal(Signal::SIGTERM);
        assert_eq!(notification(&socket).await, "STOPPING=1");
        assert_eq!(process.terminate().await, Some(0));
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn image_build_has_a_stub_for_each_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let metadata = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let paths: BTreeSet<&str> = metadata["packages"][0]["targets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|target| Path::new(target["src_path"].as_str().unwrap()))
        .map(|path| path.strip_prefix(root).unwrap().to_str().unwrap())
        .collect();
    assert!(paths.contains("benches/live/main.rs"), "{paths:?}");
    // Once for the dependencies' layer, once for what is not copied into the last one.
    let (dependencies, rest) = DOCKERFILE.split_once("\nCOPY build.rs").unwrap();
    for path in paths {
        assert!(dependencies.contains(path), "the dependencies' layer has no {path}");
        let is_copied = ["build.rs", "src/", "examples/"]
            .iter()
            .any(|copied| path.starts_with(copied));
        assert!(is_copied || rest.contains(path), "the build has no {path}");
    }
}

#[test]
fn every_shipped_setting_exists() {
    let known = include_str!("../.env.example");
    let mut seen = 0;
    for (name, text) in [
        ("Dockerfile", DOCKERFILE),
        ("docker-compose.yml", COMPOSE),
        ("posduif.service", UNIT),
    ] {
        let words =
            text.split(|letter: char| !(letter.is_ascii_uppercase() || letter.is_ascii_digit() || letter == '_'));
        for word in words.filter(|word| word.starts_with("POSDUIF__")) {
            let is_known = known
                .lines()
                .any(|line| line.trim_start_matches('#').split('=').next() == Some(word));
            assert!(is_known, "{name}: {word}");
            seen += 1;
        }
    }
    assert!(seen > 5, "{seen}");
}

/// Each setting of `.env.example`, with the comment above it.
fn settings() -> Vec<(&'static str, &'static str, String)> {
    let (mut settings, mut comment) = (Vec::new(), String::new());
    for line in include_str!("../.env.example").lines() {
        match line.trim_start_matches('#').split_once('=') {
            Some((name, value)) if !line.starts_with("# ") => {
                settings.push((name, value, std::mem::take(&mut comment)));
            }
            _ if line.is_empty() => comment.clear(),
            _ => comment.push_str(&line[1..]),
        }
    }
    settings
}

/// The settings in force in a shell that has read such a file as the example says.
fn sourced(text: &str) -> Value {
    let file = std::env::temp_dir().join(format!("posduif-env-{}", uuid::Uuid::new_v4().simple()));
    std::fs::write(&file, text).unwrap();
    let script = r#"set -e; set -a; . "$0"; set +a; exec "$1" config show --json"#;
    let output = Command::new("sh")
        .args(["-c", script])
        .args([&file, Path::new(env!("CARGO_BIN_EXE_posduif"))])
        .current_dir(std::env::temp_dir())
        .env_clear()
        .output()
        .unwrap();
    std::fs::remove_file(&file).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{text}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn env_example_matches_configuration() {
    let whole = include_str!("../.env.example").replace("\n#POSDUIF", "\nPOSDUIF");
    let defaults = sourced("");
    assert_eq!(sourced(&whole), defaults);
    let (mut examples, mut bounds) = (0, 0);
    for (name, value, comment) in settings() {
        let Some(path) = name.strip_prefix("POSDUIF__") else {
            continue;
        };
        let pointer = format!("/{}", path.to_ascii_lowercase().replace("__", "/"));
        // Lists, as a shell takes them.
        for example in comment.split('`').skip(1).step_by(2).filter(|text| text.contains('[')) {
            let shown = sourced(&format!("{name}={example}\n"));
            let list = shown.pointer(&pointer).unwrap();
            let entries = example.matches(',').count() + 1;
            assert!(
                list.as_array().map_or(list == "***", |list| list.len() == entries),
                "{name}={example}: {list}"
            );
            examples += 1;
        }
        // And the value lies within the bounds.
        let number = |text: &str| text.replace(',', "").parse::<f64>();
        if let Some((low, high)) = comment.split(['(', ')']).find_map(|text| {
            Some((
                number(text.split_once(" to ")?.0).ok()?,
                number(text.split_once(" to ")?.1).ok()?,
            ))
        }) {
            let value: f64 = value.parse().unwrap();
            assert!((low..=high).contains(&value), "{name} is {value}, of {low} to {high}");
            bounds += 1;
        }
    }
    assert!(examples >= 2 && bounds > 40, "{examples} {bounds}");
}

#[test]
fn supervisor_timeouts_exceed_those_of_the_engine() {
    let config = Config::default();
    let number = |text: &str, before: &str| -> u64 {
        let rest = text.split_once(before).unwrap_or_else(|| panic!("no {before}")).1;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    let grace = Duration::from_secs(config.server.shutdown_grace_seconds);
    for seconds in [
        number(UNIT, "\nTimeoutStopSec="),
        number(COMPOSE, "stop_grace_period: "),
    ] {
        assert!(Duration::from_secs(seconds) > grace, "{seconds}");
    }
    for descriptors in [number(UNIT, "\nLimitNOFILE="), number(COMPOSE, "nofile: {soft: ")] {
        assert!(
            descriptors > config.server.connections_max as u64 + 100,
            "{descriptors}"
        );
    }
}
