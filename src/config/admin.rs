use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};

use super::secret::Secret;
use super::section::section;
use super::server::Server;

/// The value of `listen` without a listener.
pub const OFF: &str = "off";

/// Connections of the admin listener at once.
const CONNECTIONS_MAX: usize = 100;

/// Fewest bytes of `token`.
const TOKEN_BYTES_MIN: usize = 32;

section! {
    /// The admin listener: `/health`, `/ready` with all details and `/metrics`, which need no authentication, and the
    /// operator's console, which does. It has no TLS: open the console by localhost or a tunnel.
    pub struct Admin {
        /// Address and TCP port to listen on, for example `10.0.0.5:8081`; port 0 selects any free port, `off` disables
        /// it.
        pub listen: String = "127.0.0.1:8081".into();
        /// Token of the admin API for programs, at least 32 bytes; empty means that only links of `posduif console` open it.
        pub token: Secret = Secret::new("");
        /// Whether the console may change something; otherwise it only shows.
        pub actions: bool = false;
    }
}

impl Admin {
    /// The address to listen on; `None` without a listener.
    ///
    /// # Errors
    /// When it is no address.
    pub fn address(&self) -> Result<Option<SocketAddr>> {
        if self.listen == OFF {
            return Ok(None);
        }
        match self.listen.parse() {
            Ok(address) => Ok(Some(address)),
            Err(_) => bail!(
                "key `admin.listen` is {:?}: allowed are an IP address and a port such as 127.0.0.1:8081, and off",
                self.listen
            ),
        }
    }

    /// The base URL at which a process on this machine reaches the listener, if it is known.
    pub fn url(&self) -> Option<String> {
        let mut address = self.address().ok()??;
        if address.port() == 0 {
            return None;
        }
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
                IpAddr::V6(_) => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
            });
        }
        Some(format!("http://{address}"))
    }

    /// The settings of its server, with the timeouts of the public one.
    pub fn server(&self, address: SocketAddr, public: &Server) -> Server {
        Server {
            host: address.ip().to_string(),
            port: address.port(),
            connections_max: CONNECTIONS_MAX,
            connections_per_address_max: CONNECTIONS_MAX,
            tls_cert_file: String::new(),
            tls_key_file: String::new(),
            cors_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            ..public.clone()
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let token = self.token.expose();
        if !token.is_empty() && token.len() < TOKEN_BYTES_MIN {
            bail!(
                "key `admin.token` has {} bytes: at least {TOKEN_BYTES_MIN} are required, or none; `openssl rand -hex 32` \
                 prints a good one",
                token.len()
            );
        }
        self.address().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(listen: &str) -> Option<String> {
        listening(listen).url()
    }

    fn listening(listen: &str) -> Admin {
        Admin {
            listen: listen.into(),
            ..Admin::default()
        }
    }

    #[test]
    fn admin_url_is_reachable_from_this_machine() {
        assert_eq!(url("10.0.0.5:8081").as_deref(), Some("http://10.0.0.5:8081"));
        assert_eq!(url("0.0.0.0:9000").as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!(url("[::]:9000").as_deref(), Some("http://[::1]:9000"));
        assert_eq!(url("127.0.0.1:0"), None);
        assert_eq!(url("off"), None);
    }

    #[test]
    fn admin_listen_accepts_addresses_and_off() {
        let is_valid = |listen: &str| listening(listen).check().is_ok();
        for listen in ["127.0.0.1:8081", "[::1]:0", "off"] {
            assert!(is_valid(listen), "{listen}");
        }
        for listen in ["", "8081", "localhost", "localhost:8081", "127.0.0.1", "OFF"] {
            assert!(!is_valid(listen), "{listen}");
        }
    }

    #[test]
    fn admin_token_is_empty_or_long() {
        let is_valid = |token: String| {
            Admin {
                token: Secret::new(token),
                ..Admin::default()
            }
            .check()
            .is_ok()
        };
        assert!(is_valid(String::new()) && is_valid("x".repeat(32)));
        assert!(!is_valid("x".repeat(31)));
    }
}
