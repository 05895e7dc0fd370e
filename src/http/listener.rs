//! The listening socket.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

use crate::config;

/// Listens at the host and port of these settings with a backlog of `backlog` connections. An error names the `keys` that
/// have the address.
pub async fn listen(settings: &config::Server, keys: &str) -> io::Result<TcpListener> {
    listen_at_first(settings).await.map_err(|error| {
        let address = format!("{}:{}", settings.host, settings.port);
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}; see {keys}"))
    })
}

/// Listens at the first usable address of the host.
async fn listen_at_first(settings: &config::Server) -> io::Result<TcpListener> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in tokio::net::lookup_host((settings.host.as_str(), settings.port)).await? {
        match listen_at(address, settings.backlog) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn listen_at(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart does not wait for connections in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}
