//! Notifies the supervisor of readiness and shutdown, as `sd_notify(3)` does. systemd passes a datagram socket to a unit
//! with `Type=notify` in `NOTIFY_SOCKET`; without it nothing is sent.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

pub(super) const READY: &str = "READY=1";

pub(super) const STOPPING: &str = "STOPPING=1";

/// Notifies the supervisor, if any. A failure is logged; the supervisor then runs into its own timeout.
pub(super) fn send(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else {
        return;
    };
    if let Err(error) = send_to(&socket, state) {
        tracing::warn!(socket = %socket.display(), state, %error, "cannot notify the supervisor");
    }
}

fn send_to(socket: &OsStr, state: &str) -> io::Result<()> {
    UnixDatagram::unbound()?
        .send_to_addr(state.as_bytes(), &address(socket)?)
        .map(|_| ())
}

/// A path, or with a leading `@` a name in the abstract namespace of Linux.
fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = socket.as_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt as _;
        return SocketAddr::from_abstract_name(name);
    }
    SocketAddr::from_pathname(socket)
}
