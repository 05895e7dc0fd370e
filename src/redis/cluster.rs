//! Which node of a Redis Cluster has a lane (Redis Cluster specification). All keys of a lane have one hash tag, so they are in one
//! hash slot, and transactions and scripts over them are possible. A connection is to the primary of that slot; one that is
//! refused because the slot has moved is replaced.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use redis::RedisError;
use tokio::time::timeout;

use super::connect;
use super::error::has_code;
use crate::config;
use crate::config::cluster::Node;
use crate::core::resp::{self, Reader, Value};
use crate::net;

/// Hash slots of a cluster.
const SLOTS: u16 = 16_384;

/// The code with which a node refuses all commands about a slot that it does not have.
pub const MOVED: &str = "MOVED";

/// Codes with which a node refuses commands about a slot that it does not have, or not all of.
const ELSEWHERE: [&str; 4] = [MOVED, "ASK", "TRYAGAIN", "CLUSTERDOWN"];

/// Whether an error says that the lane is, or may be, at another node.
pub fn is_elsewhere(error: &RedisError) -> bool {
    ELSEWHERE.iter().any(|code| has_code(error, code))
}

/// The hash slot of a key: that of what is in its first braces, or of the whole.
pub fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    let tag = tag.map(|(tag, _)| tag).filter(|tag| !tag.is_empty());
    crc16(tag.unwrap_or(key).as_bytes()) % SLOTS
}

/// CRC-16/XMODEM: polynomial 0x1021, no reflection, initial value 0.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => (crc << 1) ^ 0x1021,
        })
    })
}

/// Finds the node that has the lane, where Redis is a cluster. Returns whether it is another one than was known.
///
/// # Errors
/// When no node answers, or none has the slot.
pub async fn locate(config: &config::Redis) -> Result<bool, RedisError> {
    if !config.cluster.is_on() {
        return Ok(false);
    }
    let time = Duration::from_secs(config.response_timeout_seconds);
    let slot = slot_of(&config.keys_prefix());
    let mut last = None;
    let known = config.cluster.nodes().into_iter().map(Some);
    // `redis.url` comes behind the nodes that are known, and first when none is.
    for node in known.chain([None]) {
        match ask(config, node.as_ref(), slot, time).await {
            Ok((primary, nodes)) => return Ok(config.cluster.learn(primary, nodes)),
            Err(error) => last = Some(error),
        }
    }
    let text = last.map_or_else(
        || "no node is known".to_owned(),
        |error: anyhow::Error| format!("{error:#}"),
    );
    Err(io::Error::other(text).into())
}

/// What a node says about the slot: its primary, and all nodes.
async fn ask(config: &config::Redis, node: Option<&Node>, slot: u16, time: Duration) -> Result<(Node, Vec<Node>)> {
    let mut stream = connect::open_at(config, node, time).await?;
    let reply = timeout(time, connect::ask(&mut stream, &[b"CLUSTER", b"SLOTS"])).await;
    let reply = reply.context("no answer to CLUSTER SLOTS")??;
    let asked = match node {
        Some((host, _)) => host.clone(),
        None => net::redis::host(config).unwrap_or_default(),
    };
    let (primary, nodes) = parse(&reply, slot, &asked)?;
    let Some(primary) = primary else {
        bail!("no node of the Redis Cluster has the hash slot {slot}; `CLUSTER SHARDS` shows why");
    };
    Ok((primary, nodes))
}

/// Reads the reply to `CLUSTER SLOTS`. A node without a host is the one that was asked.
fn parse(reply: &[u8], slot: u16, asked: &str) -> Result<(Option<Node>, Vec<Node>)> {
    let mut reader = Reader::new(reply);
    let (mut primary, mut nodes) = (None, Vec::new());
    for _ in 0..reader.array()? {
        let parts = reader.array()?;
        let (first, last) = (reader.integer()?, reader.integer()?);
        for place in 2..parts {
            let length = reader.array()?;
            let host = match reader.next_value()? {
                Value::Text(host) if !host.is_empty() && host != b"?" => String::from_utf8_lossy(host).into_owned(),
                _ => asked.to_owned(),
            };
            let port = u16::try_from(reader.integer()?).context("a port")?;
            for _ in 2..length {
                skip(&mut reader)?;
            }
            let node = (host, port);
            if place == 2 && (first..=last).contains(&i64::from(slot)) {
                primary = Some(node.clone());
            }
            if !nodes.contains(&node) {
                nodes.push(node);
            }
        }
    }
    Ok((primary, nodes))
}

/// Passes over a value with all that it contains.
fn skip(reader: &mut Reader<'_>) -> Result<(), resp::RespError> {
    let mut left = 1_usize;
    while left > 0 {
        left -= 1;
        if let Value::Array(length) = reader.next_value()? {
            left = left.saturating_add(length);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(slot_of("foo"), 12_182);
        assert_eq!(slot_of("posduif:{foo}:{acme}:changes"), 12_182, "the first tag counts");
        assert_eq!(slot_of("a{}b"), crc16(b"a{}b") % SLOTS);
    }

    #[test]
    fn answer_names_the_primary_of_the_slot_and_all_nodes() {
        let reply = b"*2\r\n*4\r\n:0\r\n:8191\r\n*4\r\n$9\r\n127.0.0.1\r\n:7000\r\n$1\r\na\r\n*2\r\n$8\r\nhostname\r\n$1\r\nh\r\n\
                      *4\r\n$9\r\n127.0.0.1\r\n:7003\r\n$1\r\nd\r\n*0\r\n\
                      *3\r\n:8192\r\n:16383\r\n*4\r\n$0\r\n\r\n:7001\r\n$1\r\nb\r\n*0\r\n";
        let node = |host: &str, port| (host.to_owned(), port);
        let (primary, nodes) = parse(reply, 12_182, "here").unwrap();
        assert_eq!(primary, Some(node("here", 7001)));
        assert_eq!(
            nodes,
            [node("127.0.0.1", 7000), node("127.0.0.1", 7003), node("here", 7001)]
        );
        assert_eq!(parse(reply, 5, "here").unwrap().0, Some(node("127.0.0.1", 7000)));
        assert_eq!(parse(b"*0\r\n", 5, "here").unwrap(), (None, Vec::new()));
    }
}
