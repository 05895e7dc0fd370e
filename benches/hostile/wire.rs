//! A connection from a chosen address that asks one thing after the other.

use std::io::{Error, ErrorKind, Result};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// How long anything may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// A request as it goes over the wire.
pub(crate) fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = match body.len() {
        0 => String::new(),
        length => format!("content-type: application/json\r\ncontent-length: {length}\r\n"),
    };
    let head = format!("{method} {path} HTTP/1.1\r\nhost: bench\r\n{headers}{length}\r\n");
    [head.as_bytes(), body].concat()
}

/// Opens a connection from an address of 127.0.0.0/8.
pub(crate) async fn connect(from: Ipv4Addr, to: SocketAddr, small_window: bool) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if small_window {
        socket.set_recv_buffer_size(2048)?;
    }
    socket.bind((from, 0).into())?;
    let stream = tokio::time::timeout(TIMEOUT, socket.connect(to)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// An open connection.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(from: Ipv4Addr, to: SocketAddr) -> Result<Self> {
        Ok(Self {
            stream: connect(from, to, false).await?,
            buffer: Vec::new(),
        })
    }

    /// Status and body of an answer.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> Result<(u16, Vec<u8>)> {
        self.buffer.clear();
        self.stream.write_all(request).await?;
        loop {
            if let Some((status, start, length)) = self.head()?
                && self.buffer.len() >= start + length
            {
                return Ok((status, self.buffer[start..start + length].to_vec()));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The status, where the body begins, and its length; `None` while the head is incomplete.
    fn head(&self) -> Result<Option<(u16, usize, usize)>> {
        let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") else {
            return Ok(None);
        };
        let malformed = || Error::from(ErrorKind::InvalidData);
        let head = std::str::from_utf8(&self.buffer[..end]).map_err(|_| malformed())?;
        let status = head
            .get(9..12)
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(malformed)?;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(Some(0), |digits| digits.parse().ok())
            .ok_or_else(malformed)?;
        Ok(Some((status, end + 4, length)))
    }
}
