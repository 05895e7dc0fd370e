//! What a supervisor is told: readiness and the beginning of the stop, by `sd_notify(3)`. systemd hands a datagram socket to a
//! unit with `Type=notify` in `NOTIFY_SOCKET`; elsewhere there is none, and nothing is told.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The engine listens.
pub(super) const READY: &str = "READY=1";

/// The engine ends.
pub(super) const STOPPING: &str = "STOPPING=1";

/// Tells the supervisor, if there is one. Failing to do so ends nothing: the supervisor then gives up by itself.
pub(super) fn tell(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else {
        return;
    };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(socket = %socket.display(), %error, "NOTIFY_SOCKET cannot be told `{state}`");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    UnixDatagram::unbound()?
        .send_to_addr(state.as_bytes(), &address(socket)?)
        .map(|_| ())
}

/// A path, or with a leading `@` a name in Linux' abstract namespace.
fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = socket.as_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt as _;
        return SocketAddr::from_abstract_name(name);
    }
    SocketAddr::from_pathname(socket)
}
