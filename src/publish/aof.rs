//! Queries Redis about its append-only file and its replicas, on a connection of its own, so that `WAITAOF` and `WAIT`
//! do not block the publisher.

use std::time::Duration;

use postgres_types::PgLsn;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError};
use tokio::sync::{mpsc, watch};

use super::durability::{AofState, Observation, Persistence, has_waitaof};
use crate::config;
use crate::contract::keys::Keys;
use crate::net;
use crate::redis::info::Info;

/// Pause between two queries.
const INTERVAL: Duration = Duration::from_millis(500);

/// The longest `WAITAOF` or `WAIT`, and the part (1/n) of the response timeout that it may take: a sync comes about once a
/// second.
const WAIT: (Duration, u32) = (Duration::from_secs(2), 2);

/// An observation, and what had been written before the query.
#[derive(Debug, Clone)]
pub struct Reading {
    pub observation: Observation,
    /// How many replicas have acknowledged what was written; 0 if none are required.
    pub replicas: u64,
    /// What protects Redis' memory now.
    pub persistence: Persistence,
    /// Identity of the Redis process.
    pub run_id: String,
    pub written: Written,
}

/// What `EXEC`s have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Everything up to here is published.
    pub published: PgLsn,
    /// `acknowledged` in the checkpoint.
    pub acknowledged: PgLsn,
}

/// Queries in a loop until the receiver is dropped.
pub async fn watch(config: config::Redis, written: watch::Receiver<Written>, readings: mpsc::Sender<Reading>) {
    let Ok(client) = net::redis::client(&config) else {
        return;
    };
    let timeout = Duration::from_secs(config.response_timeout_seconds);
    let settings = AsyncConnectionConfig::new().set_response_timeout(Some(timeout));
    let key = Keys::new(&config.keys_prefix()).aof();
    let replicas_min = config.replicas_min;
    let (mut has_refused, mut has_refused_replicas, mut hides_policy) = (false, false, false);
    let mut connection = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = readings.closed() => return,
        }
        let before = *written.borrow();
        let reading = async {
            let held = match &mut connection {
                Some(held) => held,
                None => connection.insert(client.get_multiplexed_async_connection_with_config(&settings).await?),
            };
            let server: String = redis::cmd("INFO").arg("server").query_async(held).await?;
            let server = Info::parse(&server);
            let run_id = server.get("run_id").to_owned();
            let state = aof_state(held).await?;
            let policy = match hides_policy {
                true => String::new(),
                false => match policy(held).await {
                    // Managed servers may forbid it, and would note each refusal.
                    Err(error) if error.code().is_some() => {
                        hides_policy = true;
                        String::new()
                    }
                    policy => policy?,
                },
            };
            let persistence = Persistence::of(state.enabled, &policy);
            if persistence == Persistence::EverySecond && has_waitaof(&server) {
                match wait_aof(held, &key, before.published, replicas_min, timeout).await {
                    Ok((observation, replicas)) => return Ok((run_id, persistence, observation, replicas)),
                    // Redis is full, for example, or its ACL forbids it: the state of the file shows the same, only
                    // later.
                    Err(error) if error.code().is_some() => {
                        if !std::mem::replace(&mut has_refused, true) {
                            tracing::info!(%error, "Redis refuses WAITAOF; using INFO persistence instead");
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            let mut replicas = 0;
            if replicas_min > 0 {
                replicas = match wait_replicas(held, &key, before.published, replicas_min, timeout).await {
                    Err(error) if error.code().is_some() => {
                        if !std::mem::replace(&mut has_refused_replicas, true) {
                            tracing::warn!(
                                %error,
                                "Redis refuses WAIT, which redis.replicas_min needs; nothing is confirmed to Postgres"
                            );
                        }
                        0
                    }
                    replicas => replicas?,
                };
            }
            Ok::<_, RedisError>((run_id, persistence, Observation::State(state), replicas))
        };
        match tokio::time::timeout(timeout, reading).await {
            Ok(Ok((run_id, persistence, observation, replicas))) => {
                let reading = Reading {
                    observation,
                    replicas,
                    persistence,
                    run_id,
                    written: before,
                };
                if readings.send(reading).await.is_err() {
                    return;
                }
            }
            // The publisher's own connection reports the error.
            _ => connection = None,
        }
    }
}

async fn aof_state(connection: &mut MultiplexedConnection) -> Result<AofState, RedisError> {
    let info: String = redis::cmd("INFO").arg("persistence").query_async(connection).await?;
    Ok(AofState::parse(&info))
}

/// The setting `appendfsync`.
async fn policy(connection: &mut MultiplexedConnection) -> Result<String, RedisError> {
    let mut command = redis::cmd("CONFIG");
    let pair: Vec<String> = command.arg(&["GET", "appendfsync"]).query_async(connection).await?;
    Ok(pair.into_iter().nth(1).unwrap_or_default())
}

/// Waits until Redis' file, and those of as many replicas, hold everything written before now; gives how many do.
async fn wait_aof(
    connection: &mut MultiplexedConnection,
    key: &str,
    published: PgLsn,
    replicas_min: u64,
    timeout: Duration,
) -> Result<(Observation, u64), RedisError> {
    mark(connection, key, published).await?;
    let arguments = [1, replicas_min, wait_ms(timeout)];
    let (synced, replicas): (i64, u64) = redis::cmd("WAITAOF").arg(&arguments).query_async(connection).await?;
    Ok((Observation::of_waitaof(synced), replicas))
}

/// Waits until as many replicas have received everything written before now; gives how many have.
async fn wait_replicas(
    connection: &mut MultiplexedConnection,
    key: &str,
    published: PgLsn,
    replicas_min: u64,
    timeout: Duration,
) -> Result<u64, RedisError> {
    // Without a write of its own, a connection waits for nothing, and all replicas count.
    mark(connection, key, published).await?;
    let arguments = [replicas_min, wait_ms(timeout)];
    redis::cmd("WAIT").arg(&arguments).query_async(connection).await
}

/// Redis waits for the last write of the calling connection, so one must follow the publisher's.
async fn mark(connection: &mut MultiplexedConnection, key: &str, published: PgLsn) -> Result<(), RedisError> {
    let mark = published.to_string();
    let mut command = redis::cmd("HSET");
    let _: i64 = command.arg(&[key, "published", &mark]).query_async(connection).await?;
    Ok(())
}

fn wait_ms(timeout: Duration) -> u64 {
    let (longest, part) = WAIT;
    (timeout / part).min(longest).as_millis() as u64
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Secret;

    /// The replies of a mock server of another version.
    #[derive(Default)]
    struct Script {
        version: &'static str,
        replicas_min: u64,
        waitaof: &'static [&'static str],
        wait: &'static [&'static str],
    }

    /// Watches a mock server for a number of readings; gives these and the commands that it received, without the
    /// handshake.
    async fn watch_mock(script: Script, times: usize) -> (Vec<Reading>, Vec<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let config = config::Redis {
            url: Secret::new(format!("redis://{}", listener.local_addr().expect("an address"))),
            replicas_min: script.replicas_min,
            ..config::Redis::default()
        };
        let position = Written {
            published: 48.into(),
            acknowledged: 32.into(),
        };
        let (_written, view) = watch::channel(position);
        let (sender, mut readings) = mpsc::channel(1);
        tokio::spawn(watch(config, view, sender));
        let serve = tokio::spawn(serve(listener, script));
        let mut received = Vec::new();
        while received.len() < times {
            received.extend(readings.recv().await);
        }
        drop(readings);
        (received, serve.await.expect("no panic"))
    }

    async fn serve(listener: TcpListener, script: Script) -> Vec<String> {
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut stream = BufReader::new(stream);
        let mut commands = Vec::new();
        let (mut waitaof, mut wait) = (script.waitaof.iter(), script.wait.iter());
        while let Some(command) = read_command(&mut stream).await {
            let bulk = |text: String| format!("${}\r\n{text}\r\n", text.len());
            let answer = match command.as_str() {
                "INFO server" => bulk(format!("redis_version:{}\r\nrun_id:abc", script.version)),
                "CONFIG GET appendfsync" => "*2\r\n$11\r\nappendfsync\r\n$8\r\neverysec\r\n".into(),
                "INFO persistence" => bulk("aof_enabled:1\r\naof_buffer_length:0\r\naof_pending_bio_fsync:0".into()),
                command if command.starts_with("HSET") => ":0\r\n".into(),
                command if command.starts_with("WAIT ") => (*wait.next().expect("an answer")).into(),
                command if command.starts_with("WAITAOF") => (*waitaof.next().expect("an answer")).into(),
                _ => "+OK\r\n".into(),
            };
            if answer != "+OK\r\n" {
                commands.push(command);
            }
            if stream.write_all(answer.as_bytes()).await.is_err() {
                break;
            }
        }
        commands
    }

    async fn read_command(stream: &mut BufReader<tokio::net::TcpStream>) -> Option<String> {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let count: usize = line.trim().strip_prefix('*')?.parse().ok()?;
        let mut words = Vec::new();
        for _ in 0..count {
            line.clear();
            stream.read_line(&mut line).await.ok()?;
            let length: usize = line.trim().strip_prefix('$')?.parse().ok()?;
            let mut word = vec![0; length + 2];
            stream.read_exact(&mut word).await.ok()?;
            words.push(String::from_utf8_lossy(&word[..length]).into_owned());
        }
        Some(words.join(" "))
    }

    const QUERY: [&str; 3] = ["INFO server", "INFO persistence", "CONFIG GET appendfsync"];
    const WAIT_AOF: [&str; 2] = ["HSET posduif:aof published 0/30", "WAITAOF 1 0 2000"];

    #[tokio::test]
    async fn waitaof_follows_a_write_of_the_same_connection() {
        let script = Script {
            version: "7.2.4",
            waitaof: &["*2\r\n:0\r\n:0\r\n", "*2\r\n:1\r\n:0\r\n"],
            ..Script::default()
        };
        let (readings, commands) = watch_mock(script, 2).await;
        let observations: Vec<Observation> = readings.iter().map(|reading| reading.observation).collect();
        assert_eq!(observations, [Observation::NotYet, Observation::Synced]);
        assert_eq!(readings[1].run_id, "abc");
        assert_eq!(readings[1].written.published, 48.into());
        assert_eq!(commands, [&QUERY[..], &WAIT_AOF, &QUERY, &WAIT_AOF].concat());
    }

    #[tokio::test]
    async fn refused_waitaof_falls_back_to_info_and_is_retried() {
        let script = Script {
            version: "8.0.1",
            waitaof: &["-NOPERM this user has no permissions\r\n", "*2\r\n:1\r\n:3\r\n"],
            ..Script::default()
        };
        let (readings, commands) = watch_mock(script, 2).await;
        assert!(matches!(
            readings[0].observation,
            Observation::State(AofState { enabled: true, .. })
        ));
        assert_eq!(readings[1].observation, Observation::Synced);
        assert_eq!(commands, [&QUERY[..], &WAIT_AOF, &QUERY, &WAIT_AOF].concat());
    }

    #[tokio::test]
    async fn older_server_is_queried_by_info_only() {
        let script = Script {
            version: "7.0.15",
            ..Script::default()
        };
        let (readings, commands) = watch_mock(script, 1).await;
        assert!(matches!(readings[0].observation, Observation::State(_)));
        assert_eq!(commands, QUERY);
    }

    #[tokio::test]
    async fn required_replicas_are_waited_for_by_either_command() {
        let script = Script {
            version: "7.2.4",
            replicas_min: 2,
            waitaof: &["*2\r\n:1\r\n:1\r\n", "-NOPERM this user has no permissions\r\n"],
            wait: &[":2\r\n"],
        };
        let (readings, commands) = watch_mock(script, 2).await;
        let found: Vec<(bool, u64)> = readings
            .iter()
            .map(|reading| (reading.observation == Observation::Synced, reading.replicas))
            .collect();
        assert_eq!(found, [(true, 1), (false, 2)]);
        let [mark, _] = WAIT_AOF;
        let wait_aof = [mark, "WAITAOF 1 2 2000"];
        let expected = [&QUERY[..], &wait_aof, &QUERY, &wait_aof, &[mark, "WAIT 2 2000"]].concat();
        assert_eq!(commands, expected);
    }

    #[tokio::test]
    async fn replicas_count_as_missing_while_wait_is_refused() {
        let script = Script {
            version: "7.0.15",
            replicas_min: 1,
            wait: &["-NOPERM this user has no permissions\r\n", ":1\r\n"],
            ..Script::default()
        };
        let (readings, _) = watch_mock(script, 2).await;
        let replicas: Vec<u64> = readings.iter().map(|reading| reading.replicas).collect();
        assert_eq!(replicas, [0, 1]);
    }
}
