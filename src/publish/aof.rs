//! Asks Redis about its append-only file, on a connection that may wait while the publisher's goes on.

use std::time::Duration;

use postgres_types::PgLsn;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError};
use tokio::sync::{mpsc, watch};

use super::durability::{AofState, Sight, knows_waitaof};
use crate::config;
use crate::contract::keys::Keys;
use crate::net;

/// Pause between two questions.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long one `WAITAOF` may take at most, and which part of Redis' patience: a sync comes about once a second.
const WAIT: (Duration, u32) = (Duration::from_secs(2), 2);

/// What Redis told, and what had been written before it was asked.
#[derive(Debug, Clone)]
pub struct Reading {
    /// What it told.
    pub sight: Sight,
    /// Identity of the Redis process that told it.
    pub run_id: String,
    /// What an `EXEC` had written before.
    pub written: Written,
}

/// What `EXEC`s have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// All up to here.
    pub published: PgLsn,
    /// What the checkpoint says that Postgres may have been told.
    pub acknowledged: PgLsn,
}

/// Asks again and again, until nobody wants to know any more.
pub async fn watch(config: config::Redis, written: watch::Receiver<Written>, readings: mpsc::Sender<Reading>) {
    let Ok(client) = net::redis::client(&config) else {
        return;
    };
    let timeout = Duration::from_secs(config.response_timeout_seconds);
    let settings = AsyncConnectionConfig::new().set_response_timeout(Some(timeout));
    let key = Keys::new(&config.prefix).aof();
    let mut has_refused = false;
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
            let run_id = server.lines().find_map(|line| line.trim().strip_prefix("run_id:"));
            let run_id = run_id.unwrap_or_default().to_owned();
            if knows_waitaof(&server) {
                match wait_aof(held, &key, before.published, timeout).await {
                    Ok(sight) => return Ok((run_id, sight)),
                    // Redis is full, say, or its ACL forbids it: how the file stands tells the same, only later.
                    Err(error) if error.code().is_some() => {
                        if !std::mem::replace(&mut has_refused, true) {
                            tracing::info!(%error, "Redis refuses WAITAOF; asking for the state of its file instead");
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            let persistence: String = redis::cmd("INFO").arg("persistence").query_async(held).await?;
            Ok::<_, RedisError>((run_id, Sight::State(AofState::parse(&persistence))))
        };
        match tokio::time::timeout(timeout, reading).await {
            Ok(Ok((run_id, sight))) => {
                let reading = Reading {
                    sight,
                    run_id,
                    written: before,
                };
                if readings.send(reading).await.is_err() {
                    return;
                }
            }
            // The publisher's own connection tells what is wrong.
            _ => connection = None,
        }
    }
}

/// Waits until Redis' file holds all that was written before now.
async fn wait_aof(
    connection: &mut MultiplexedConnection,
    key: &str,
    published: PgLsn,
    timeout: Duration,
) -> Result<Sight, RedisError> {
    // Redis waits for the last write of the connection that asks. So there must be one, behind the publisher's.
    let mark = published.to_string();
    let _: i64 = redis::cmd("HSET")
        .arg(&[key, "published", &mark])
        .query_async(connection)
        .await?;
    let (longest, part) = WAIT;
    let wait = (timeout / part).min(longest).as_millis() as u64;
    let (synced, _replicas): (i64, i64) = redis::cmd("WAITAOF").arg(&[1, 0, wait]).query_async(connection).await?;
    Ok(Sight::of_waitaof(synced))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Secret;

    /// What a stand-in for servers that we do not have was asked, and what it answers.
    struct Script {
        version: &'static str,
        waitaof: &'static [&'static str],
    }

    /// Asks a stand-in until it has told so often; gives what it told and what it was asked, greetings left out.
    async fn ask(script: Script, times: usize) -> (Vec<Reading>, Vec<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let config = config::Redis {
            url: Secret::new(format!("redis://{}", listener.local_addr().expect("an address"))),
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
        let mut told = Vec::new();
        while told.len() < times {
            told.extend(readings.recv().await);
        }
        drop(readings);
        (told, serve.await.expect("no panic"))
    }

    async fn serve(listener: TcpListener, script: Script) -> Vec<String> {
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut stream = BufReader::new(stream);
        let mut asked = Vec::new();
        let mut waitaof = script.waitaof.iter();
        while let Some(command) = read_command(&mut stream).await {
            let bulk = |text: String| format!("${}\r\n{text}\r\n", text.len());
            let answer = match command.as_str() {
                "INFO server" => bulk(format!("redis_version:{}\r\nrun_id:abc", script.version)),
                "INFO persistence" => bulk("aof_enabled:1\r\naof_buffer_length:0\r\naof_pending_bio_fsync:0".into()),
                command if command.starts_with("HSET") => ":0\r\n".into(),
                command if command.starts_with("WAITAOF") => (*waitaof.next().expect("an answer")).into(),
                _ => "+OK\r\n".into(),
            };
            if answer != "+OK\r\n" {
                asked.push(command);
            }
            if stream.write_all(answer.as_bytes()).await.is_err() {
                break;
            }
        }
        asked
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

    const ROUND: [&str; 3] = ["INFO server", "HSET posduif:aof published 0/30", "WAITAOF 1 0 2000"];

    #[tokio::test]
    async fn a_mark_is_written_and_waited_for_where_waitaof_is_known() {
        let script = Script {
            version: "7.2.4",
            waitaof: &["*2\r\n:0\r\n:0\r\n", "*2\r\n:1\r\n:0\r\n"],
        };
        let (told, asked) = ask(script, 2).await;
        let sights: Vec<Sight> = told.iter().map(|reading| reading.sight).collect();
        assert_eq!(sights, [Sight::NotYet, Sight::Synced]);
        assert_eq!(told[1].run_id, "abc");
        assert_eq!(told[1].written.published, 48.into());
        assert_eq!(asked, [ROUND, ROUND].concat());
    }

    #[tokio::test]
    async fn a_refused_waitaof_falls_back_to_the_state_of_the_file_and_is_tried_again() {
        let script = Script {
            version: "8.0.1",
            waitaof: &["-NOPERM this user has no permissions\r\n", "*2\r\n:1\r\n:3\r\n"],
        };
        let (told, asked) = ask(script, 2).await;
        assert!(matches!(told[0].sight, Sight::State(AofState { enabled: true, .. })));
        assert_eq!(told[1].sight, Sight::Synced);
        assert_eq!(asked, [&ROUND[..], &["INFO persistence"], &ROUND[..]].concat());
    }

    #[tokio::test]
    async fn an_older_server_is_only_asked_for_the_state_of_its_file() {
        let script = Script {
            version: "7.0.15",
            waitaof: &[],
        };
        let (told, asked) = ask(script, 1).await;
        assert!(matches!(told[0].sight, Sight::State(_)));
        assert_eq!(asked, ["INFO server", "INFO persistence"]);
    }
}
