//! Opening connections that speak RESP without the `redis` crate: the byte stream and the login.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::cluster;
use crate::config;
use crate::config::cluster::Node;
use crate::core::resp::{self, Extent, Reader, RespError};
use crate::net::{self, BoxStream};

/// Connects and logs in as `redis.url` says; in a cluster, to the node that has the lane.
///
/// # Errors
/// The text names the key to check when Redis refuses the login.
pub async fn open(config: &config::Redis, timeout: Duration) -> Result<BoxStream> {
    cluster::locate(config).await?;
    let node = config.cluster.node();
    open_at(config, node.as_deref(), timeout).await
}

/// [`open`] to this node, or to the server of `redis.url`.
pub(super) async fn open_at(config: &config::Redis, node: Option<&Node>, timeout: Duration) -> Result<BoxStream> {
    let (mut stream, login) = net::redis::open(config, node, timeout).await?;
    if let Some(password) = login.password() {
        let user = login.username().unwrap_or("default");
        let auth: [&[u8]; 3] = [b"AUTH", user.as_bytes(), password.as_bytes()];
        request(&mut stream, timeout, &auth).await.with_context(|| {
            format!("Redis refuses the login of user {user}: check `redis.url` (or REDIS_URL) and its ACL")
        })?;
    }
    if login.db() != 0 {
        let database = login.db().to_string();
        let select: [&[u8]; 2] = [b"SELECT", database.as_bytes()];
        request(&mut stream, timeout, &select).await.context("Redis")?;
    }
    Ok(stream)
}

/// The reply to one command, which may be an error.
pub(super) async fn ask(stream: &mut BoxStream, command: &[&[u8]]) -> io::Result<Bytes> {
    let mut buffer = BytesMut::new();
    resp::command(&mut buffer, command);
    stream.write_all_buf(&mut buffer).await?;
    read_replies(stream, &mut buffer, 1).await
}

async fn request(stream: &mut BoxStream, timeout: Duration, command: &[&[u8]]) -> io::Result<()> {
    let reply = tokio::time::timeout(timeout, ask(stream, command))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Reader::new(&reply).next_value()?;
    Ok(())
}

/// Reads so many replies, and nothing behind them, into an empty buffer.
pub(super) async fn read_replies(stream: &mut BoxStream, buffer: &mut BytesMut, replies: u64) -> io::Result<Bytes> {
    let mut extent = Extent::new(replies);
    while !extent.advance(buffer)? {
        buffer.reserve(READ_BYTES_MIN);
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    if extent.end() != buffer.len() {
        return Err(RespError::Malformed("more replies than commands").into());
    }
    Ok(buffer.split().freeze())
}

/// Smallest room for a read.
pub(super) const READ_BYTES_MIN: usize = 4 * 1024;
