//! Servers of a test's own, which it may kill, fill up and restart. Dropping them removes their data.

use std::path::{Path, PathBuf};
use std::process::Command;

use posduif::config::Secret;
use posduif::dev::{PostgresOptions, PrivatePostgres, PrivateRedis, RedisOptions};
use uuid::Uuid;

/// A server and the folder of its data.
pub(crate) struct Own<S> {
    pub(crate) server: S,
    // After the server, which is killed when dropped.
    folder: Folder,
}

/// A Redis of one's own.
pub(crate) async fn redis() -> Own<PrivateRedis> {
    redis_with(|_, options| options).await
}

/// A Redis of one's own with further settings, which may name files in its folder.
pub(crate) async fn redis_with(change: impl FnOnce(&Path, RedisOptions) -> RedisOptions) -> Own<PrivateRedis> {
    let folder = Folder::new();
    let options = change(&folder.0, RedisOptions::new().unwrap());
    let server = PrivateRedis::start(&folder.0.join("redis"), options).await.unwrap();
    Own { server, folder }
}

/// A Postgres of one's own. It does not sync, which a killed process does not need.
pub(crate) async fn postgres() -> Own<PrivatePostgres> {
    postgres_with(|_, options| options).await
}

/// A Postgres of one's own with further settings, which may name its folder.
pub(crate) async fn postgres_with(
    change: impl FnOnce(&Path, PostgresOptions) -> PostgresOptions,
) -> Own<PrivatePostgres> {
    let folder = Folder::new();
    let options = change(&folder.0, PostgresOptions::new().unwrap().setting("fsync", "off"));
    let server = PrivatePostgres::start(&folder.0.join("postgres"), options)
        .await
        .unwrap();
    Own { server, folder }
}

/// A standby that follows a primary, which must not run while its folder is copied, by this physical slot of the primary's.
/// `change` adds to the settings of the copy.
pub(crate) async fn standby_of(
    primary: &mut Own<PrivatePostgres>,
    slot: &str,
    change: impl FnOnce(PostgresOptions) -> PostgresOptions,
) -> Own<PrivatePostgres> {
    let folder = Folder::new();
    let home = folder.0.join("postgres");
    let from = primary.folder().join("postgres").canonicalize().unwrap();
    primary.server.stop().await.unwrap();
    let status = Command::new("cp").arg("-a").arg(from).arg(&home).status().unwrap();
    assert!(status.success());
    primary.server.restart().await.unwrap();
    // As by pg_basebackup, which copies no slots.
    for slot in std::fs::read_dir(home.join("data/pg_replslot")).unwrap() {
        std::fs::remove_dir_all(slot.unwrap().path()).unwrap();
    }
    std::fs::write(home.join("data/standby.signal"), "").unwrap();
    let url = primary.server.url();
    let (_, password) = url.split_once('@').unwrap().0.rsplit_once(':').unwrap();
    let options = PostgresOptions {
        password: Secret::new(password),
        ..PostgresOptions::new().unwrap()
    };
    let options = options
        .setting("fsync", "off")
        .setting("primary_conninfo", &url)
        .setting("primary_slot_name", slot);
    let server = PrivatePostgres::start(&home, change(options)).await.unwrap();
    Own { server, folder }
}

impl<S> Own<S> {
    /// The folder below which the data are.
    pub(crate) fn folder(&self) -> &std::path::Path {
        &self.folder.0
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        use std::os::unix::fs::DirBuilderExt;
        let name = format!("posduif-test-{}", Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        // The unprivileged user that runs Postgres for root must reach its data.
        std::fs::DirBuilder::new().mode(0o711).create(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What was killed just now may be writing until it has ended.
        for _ in 0..100 {
            if std::fs::remove_dir_all(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
