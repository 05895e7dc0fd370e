//! Detecting which version of HTTP a connection uses.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

/// Pause before peeking again at an incomplete preface.
const PEEK_PAUSE: Duration = Duration::from_millis(5);

/// The beginning of HTTP/2's connection preface; no method of HTTP/1 starts like this.
const PREFACE: &[u8; 4] = b"PRI ";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    /// The protocol that TLS negotiated (ALPN, RFC 7301).
    pub fn negotiated(alpn: Option<&[u8]>) -> Self {
        if alpn == Some(b"h2") { Self::Http2 } else { Self::Http1 }
    }

    /// Detects HTTP/2 with prior knowledge (RFC 9113, section 3.3) from the first bytes, without consuming them.
    pub async fn peek(stream: &TcpStream) -> io::Result<Self> {
        loop {
            let mut first = [0; PREFACE.len()];
            let count = stream.peek(&mut first).await?;
            if count == 0 || !PREFACE.starts_with(&first[..count]) {
                return Ok(Self::Http1);
            }
            if count == PREFACE.len() {
                return Ok(Self::Http2);
            }
            // Peeked bytes stay in the socket, so waiting for readiness would return at once.
            tokio::time::sleep(PEEK_PAUSE).await;
        }
    }
}
