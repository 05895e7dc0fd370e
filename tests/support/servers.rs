//! Servers of a test's own, which it may kill, fill up and restart. Dropping them removes their data.

use std::path::PathBuf;

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
    redis_of(RedisOptions::new().unwrap()).await
}

/// A Redis of one's own with one more setting.
pub(crate) async fn redis_with(name: &str, value: &str) -> Own<PrivateRedis> {
    redis_of(RedisOptions::new().unwrap().setting(name, value)).await
}

async fn redis_of(options: RedisOptions) -> Own<PrivateRedis> {
    let folder = Folder::new();
    let server = PrivateRedis::start(&folder.0.join("redis"), options).await.unwrap();
    Own { server, folder }
}

/// A Postgres of one's own. It does not sync, which a killed process does not need.
pub(crate) async fn postgres() -> Own<PrivatePostgres> {
    postgres_with(PostgresOptions::new().unwrap()).await
}

/// A Postgres of one's own with these settings.
pub(crate) async fn postgres_with(options: PostgresOptions) -> Own<PrivatePostgres> {
    let folder = Folder::new();
    let options = options.setting("fsync", "off");
    let server = PrivatePostgres::start(&folder.0.join("postgres"), options)
        .await
        .unwrap();
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
