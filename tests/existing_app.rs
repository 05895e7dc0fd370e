//! The tutorial for an existing application, carried out to the letter.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::process::Command;

use crate::support::World;
use crate::support::command::variables;

const TEXT: &str = include_str!("../docs/existing-app.md");

/// The blocks of the page in a language, one after the other.
fn blocks(language: &str) -> String {
    let mut parts = TEXT.split("```");
    let mut found = String::new();
    while let (Some(_), Some(block)) = (parts.next(), parts.next()) {
        found += block.strip_prefix(&format!("{language}\n")).unwrap_or_default();
    }
    found
}

/// A port that was free a moment ago.
async fn port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn documented_existing_app_syncs_as_the_page_says() {
    let world = World::new().await;
    let folder = std::env::temp_dir().join(format!("posduif-app-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir(&folder).unwrap();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_posduif"));
    let path = format!(
        "{}:{}",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let port = port().await;
    let script = format!(
        "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{}",
        blocks("sh")
    );
    let mut command = Command::new("bash");
    command
        .args(["-c", &script])
        .current_dir(&folder)
        .envs(variables(&world.config))
        .env_remove("POSDUIF__AUTH__JWT_SECRET")
        .env("PATH", path)
        .env("POSDUIF__SERVER__PORT", port.to_string())
        .env("POSDUIF__REPLICATION__HEARTBEAT_INTERVAL_MS", "100")
        .env("POSDUIF_URL", format!("http://127.0.0.1:{port}"))
        .env("DATABASE_URL", world.config.postgres.url.expose())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(120), command.output())
        .await
        .unwrap()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    let log = std::fs::read_to_string(folder.join("posduif.log")).unwrap_or_default();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(output.status.success(), "{printed}\n{complaint}\n{log}");
    assert_eq!(printed, blocks("text"), "{complaint}\n{log}");
}
