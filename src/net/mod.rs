//! Byte streams to servers over TCP, Unix sockets and TLS.
//!
//! - [`tls`]: what a server must prove, and the encrypted stream.
//! - [`postgres`]: the connection URL of Postgres with libpq's parameters for TLS, shared by the pool and the replication
//!   connection.
//! - [`redis`]: the same for Redis, shared by the publisher's own connection and the `redis` crate.
//! - [`http`]: the only HTTP client.
//! - [`webhook`]: signed requests to a webhook of the operator.

pub mod http;
pub mod postgres;
pub mod redis;
pub mod tls;
pub mod webhook;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// A byte stream in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Makes the stream readable only when this many bytes are available or the peer has closed (`SO_RCVLOWAT`, socket(7)).
    /// It saves wake-ups for incomplete messages. Streams that do not support it are readable with every byte.
    fn set_receive_low_water(&self, _bytes: usize) {}
}

impl Stream for TcpStream {
    #[cfg(target_os = "linux")]
    fn set_receive_low_water(&self, bytes: usize) {
        // It is an optimization only.
        let _ = nix::sys::socket::setsockopt(self, low_water::ReceiveLowWater, &bytes);
    }
}

impl Stream for UnixStream {}

// The socket does not show how many bytes a record has.
impl Stream for tls::Stream<BoxStream> {}

#[cfg(target_os = "linux")]
mod low_water {
    use nix::{libc, setsockopt_impl, sockopt_impl};

    sockopt_impl!(
        /// Bytes from which a socket counts as readable.
        ReceiveLowWater,
        SetOnly,
        libc::SOL_SOCKET,
        libc::SO_RCVLOWAT,
        usize
    );
}

/// A byte stream of any kind.
pub type BoxStream = Box<dyn Stream>;

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tcp(String, u16),
    /// Path of a Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Connects within a timeout. The error names the address.
pub async fn connect(address: &Address, timeout: Duration) -> io::Result<BoxStream> {
    let connecting = async {
        let stream: BoxStream = match address {
            Address::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                // Batches and acknowledgements are complete writes: Nagle's algorithm would only add latency.
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        Ok::<_, io::Error>(stream)
    };
    match tokio::time::timeout(timeout, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(io::Error::new(
            error.kind(),
            format!("cannot connect to {address}: {error}"),
        )),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "cannot connect to {address}: no response within {} s",
                timeout.as_secs()
            ),
        )),
    }
}
