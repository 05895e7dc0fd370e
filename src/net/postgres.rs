//! How Postgres is reached: its connection URL, with libpq's parameters for TLS.
//!
//! tokio-postgres' parser knows neither `sslmode=verify-ca` nor `sslrootcert`, so that these are taken out of the URL
//! here. The pool of ordinary connections ([`MakeTlsConnect`]) and the replication connection ([`Server::secure`])
//! then do the same with them.

use std::io;
use std::pin::Pin;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};

use crate::net::tls::{Connector, Identity, Roots, Stream, Trust};
use crate::net::{Address, BoxStream};

/// How a server is asked for TLS: a length and a code where otherwise the protocol's version stands.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// The name of the protocol inside (ALPN), which direct TLS needs.
const PROTOCOL: &[u8] = b"postgresql";

/// `sslmode`, as libpq has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// A Postgres, or several that stand in for each other.
#[derive(Debug, Clone)]
pub struct Server {
    config: Config,
    connector: Connector,
}

/// A byte stream to Postgres, ready for the login.
pub struct Secured {
    /// The stream.
    pub stream: BoxStream,
    /// Whether it is encrypted.
    pub is_encrypted: bool,
    /// What a login over it can be bound to.
    pub end_point: Option<Vec<u8>>,
}

impl std::fmt::Debug for Secured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secured")
            .field("is_encrypted", &self.is_encrypted)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Understands a connection URL and reads the certificates that it names.
    ///
    /// # Errors
    /// When the URL is malformed, asks for what does not go together, or a file cannot be read. The error shows neither
    /// user nor password.
    pub fn parse(url: &str) -> Result<Self> {
        let (url, ours) = split(url)?;
        let mut config = Config::from_str(&url)
            .context("it is no connection URL of the form postgres://user:password@host:port/database")?;
        let mode = match (ours.mode.as_deref(), ours.root_cert.as_deref()) {
            (Some(mode), _) => parse_mode(mode)?,
            // As in libpq: who trusts all public authorities must look at the name.
            (None, Some("system")) => Mode::VerifyFull,
            // From words instead of a URL, which tokio-postgres has read.
            (None, _) => match config.get_ssl_mode() {
                SslMode::Disable => Mode::Disable,
                SslMode::Require => Mode::Require,
                _ => Mode::Prefer,
            },
        };
        let trust = trust(mode, ours.root_cert.as_deref())?;
        let identity = match (ours.cert, ours.key) {
            (Some(certificate), Some(key)) => Some(Identity {
                certificate: certificate.into(),
                key: key.into(),
            }),
            (None, None) => None,
            _ => bail!("a client certificate needs both `sslcert` and `sslkey`"),
        };
        let is_direct = config.get_ssl_negotiation() == SslNegotiation::Direct;
        if is_direct && mode < Mode::Require {
            bail!("`sslnegotiation=direct` needs `sslmode=require` or stronger, else nobody says what to do without");
        }
        let is_local = |host: &Host| matches!(host, Host::Unix(_));
        let hosts = config.get_hosts();
        let mode = if !hosts.is_empty() && hosts.iter().all(is_local) {
            // As in libpq: there is no TLS on Unix sockets, and nobody in between.
            Mode::Disable
        } else if mode >= Mode::Require && hosts.iter().any(is_local) {
            bail!("a Unix socket has no TLS: give other hosts, or take it out of those that `sslmode` is for");
        } else {
            mode
        };
        config.ssl_mode(match mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            _ => SslMode::Require,
        });
        let connector = Connector::new(&trust, identity.as_ref(), Some(PROTOCOL))?;
        Ok(Self { config, connector })
    }

    /// All else that the URL says.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the servers listen and what their certificates call them, in the URL's order.
    pub fn addresses(&self) -> Vec<(Address, String)> {
        let (hosts, numbers, ports) = (
            self.config.get_hosts(),
            self.config.get_hostaddrs(),
            self.config.get_ports(),
        );
        let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        (0..hosts.len().max(numbers.len()))
            .filter_map(|index| {
                let number = numbers.get(index).map(ToString::to_string);
                match (hosts.get(index), number) {
                    (Some(Host::Unix(folder)), None) => {
                        let path = folder.join(format!(".s.PGSQL.{}", port(index)));
                        Some((Address::Unix(path), String::new()))
                    }
                    (Some(Host::Tcp(host)), number) => {
                        let address = Address::Tcp(number.unwrap_or_else(|| host.clone()), port(index));
                        Some((address, host.clone()))
                    }
                    (_, Some(number)) => Some((Address::Tcp(number.clone(), port(index)), number)),
                    (None, None) => None,
                }
            })
            .collect()
    }

    /// Asks a server for TLS and shakes hands, as the URL wants it. There is no timeout here.
    ///
    /// # Errors
    /// When the server has no TLS and must, does not prove who it is, or sent more than it was asked for.
    pub async fn secure(&self, mut stream: BoxStream, name: &str) -> io::Result<Secured> {
        let mode = self.config.get_ssl_mode();
        let plain = |stream| Secured {
            stream,
            is_encrypted: false,
            end_point: None,
        };
        if mode == SslMode::Disable {
            return Ok(plain(stream));
        }
        if self.config.get_ssl_negotiation() != SslNegotiation::Direct {
            stream.write_all(&SSL_REQUEST).await?;
            // Room for more than the one byte: what somebody put behind it in the clear must not count as encrypted
            // (CVE-2021-23222).
            let mut answer = [0_u8; 2];
            match (stream.read(&mut answer).await?, answer[0]) {
                (0, _) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "postgres closed the connection when it was asked for TLS",
                    ));
                }
                (1, b'S') => {}
                (1, b'N') if mode == SslMode::Prefer => return Ok(plain(stream)),
                (1, b'N') => {
                    return Err(refused(
                        "postgres has no TLS, which `sslmode` requires: switch it on there (ssl = on), or set \
                         `sslmode=disable` on a network that you trust",
                    ));
                }
                (1, b'E') => return Err(refused("postgres answered the question for TLS with an error")),
                (1, _) => return Err(refused("what listens there is no postgres")),
                _ => return Err(refused("unencrypted bytes behind the answer to the question for TLS")),
            }
        }
        let stream = self.connector.connect(name, stream).await?;
        Ok(Secured {
            end_point: stream.server_end_point(),
            stream: Box::new(stream),
            is_encrypted: true,
        })
    }
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn parse_mode(text: &str) -> Result<Mode> {
    Ok(match text {
        "disable" => Mode::Disable,
        "prefer" => Mode::Prefer,
        "require" => Mode::Require,
        "verify-ca" => Mode::VerifyCa,
        "verify-full" => Mode::VerifyFull,
        _ => bail!("`sslmode={text}`: allowed are disable, prefer, require, verify-ca and verify-full"),
    })
}

fn trust(mode: Mode, root_cert: Option<&str>) -> Result<Trust> {
    Ok(match (mode, root_cert) {
        (Mode::VerifyFull, None | Some("system")) => Trust::ChainAndName(Roots::System),
        (Mode::VerifyFull, Some(file)) => Trust::ChainAndName(Roots::File(file.into())),
        (Mode::Require | Mode::VerifyCa, Some("system")) => {
            bail!(
                "`sslrootcert=system` needs `sslmode=verify-full`: anybody can have a certificate from a public authority"
            )
        }
        // As in libpq: with an authority, require checks it.
        (Mode::Require | Mode::VerifyCa, Some(file)) => Trust::Chain(Roots::File(file.into())),
        (Mode::VerifyCa, None) => {
            bail!(
                "`sslmode=verify-ca` needs `sslrootcert=<file>` with the authority that issued the server's certificate"
            )
        }
        // libpq goes on unencrypted where the check fails, so that it checks for nothing.
        (Mode::Prefer, Some(_)) => {
            bail!("`sslrootcert` checks nothing under `sslmode=prefer`: set verify-full, verify-ca or require")
        }
        (Mode::Disable, _) | (Mode::Prefer | Mode::Require, None) => Trust::Anybody,
    })
}

/// The parameters that we read ourselves.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ours {
    mode: Option<String>,
    root_cert: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

/// Takes our parameters out of a URL. What is no URL stays as it is.
fn split(url: &str) -> Result<(String, Ours)> {
    let mut ours = Ours::default();
    let is_url = url.starts_with("postgres://") || url.starts_with("postgresql://");
    // A password may hold question marks; it ends at the first @.
    let after_password = url.find('@').unwrap_or(0);
    let Some(question) = url[after_password..].find('?').filter(|_| is_url) else {
        return Ok((url.to_owned(), ours));
    };
    let (base, query) = url.split_at(after_password + question);
    let mut theirs = String::new();
    for parameter in query[1..].split('&') {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let place = match name {
            "sslmode" => &mut ours.mode,
            "sslrootcert" => &mut ours.root_cert,
            "sslcert" => &mut ours.cert,
            "sslkey" => &mut ours.key,
            _ => {
                theirs.push(if theirs.is_empty() { '?' } else { '&' });
                theirs.push_str(parameter);
                continue;
            }
        };
        let value = percent_decode_str(value)
            .decode_utf8()
            .with_context(|| format!("`{name}` is no text"))?;
        if value.is_empty() {
            bail!("`{name}` is empty");
        }
        *place = Some(value.into_owned());
    }
    Ok((format!("{base}{theirs}"), ours))
}

/// TLS of one connection of the pool.
#[derive(Debug)]
pub struct Handshake {
    connector: Connector,
    host: String,
}

impl<S> MakeTlsConnect<S> for Server
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Handshake> {
        Ok(Handshake {
            connector: self.connector.clone(),
            host: host.to_owned(),
        })
    }
}

impl<S> TlsConnect<S> for Handshake
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move { self.connector.connect(&self.host, stream).await })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> tokio_postgres::tls::TlsStream for Stream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.server_end_point()
            .map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        format!("{:#}", Server::parse(url).unwrap_err())
    }

    #[test]
    fn our_parameters_are_taken_out_and_the_others_stay() {
        let url = "postgres://a:b?sslmode=x@h/d?application_name=n&sslmode=verify-full&sslrootcert=%2Fetc%2Fca&port=1";
        let (rest, ours) = split(url).unwrap();
        assert_eq!(rest, "postgres://a:b?sslmode=x@h/d?application_name=n&port=1");
        assert_eq!(ours.mode.as_deref(), Some("verify-full"));
        assert_eq!(ours.root_cert.as_deref(), Some("/etc/ca"));
        for unchanged in ["postgres://h/d", "host=h sslmode=require", "postgres://a:b?c@h"] {
            assert_eq!(split(unchanged).unwrap(), (unchanged.to_owned(), Ours::default()));
        }
    }

    #[test]
    fn modes_become_those_of_tokio_postgres() {
        for (url, mode) in [
            ("postgres://u@h/d", SslMode::Prefer),
            ("postgres://u@h/d?sslmode=disable", SslMode::Disable),
            ("postgres://u@h/d?sslmode=require", SslMode::Require),
            ("host=h sslmode=require", SslMode::Require),
            ("postgres://u@%2Ftmp/d?sslmode=require", SslMode::Disable),
            ("postgres:///d?host=/tmp&sslmode=require", SslMode::Disable),
        ] {
            assert_eq!(Server::parse(url).unwrap().config().get_ssl_mode(), mode, "{url}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused_with_its_remedy() {
        for (query, expected) in [
            (
                "sslmode=allow",
                "allowed are disable, prefer, require, verify-ca and verify-full",
            ),
            ("sslmode=", "`sslmode` is empty"),
            ("sslmode=verify-ca", "needs `sslrootcert=<file>`"),
            ("sslmode=require&sslrootcert=system", "needs `sslmode=verify-full`"),
            ("sslrootcert=/etc/ca.crt", "checks nothing under `sslmode=prefer`"),
            ("sslcert=a.crt", "needs both `sslcert` and `sslkey`"),
            ("sslnegotiation=direct", "needs `sslmode=require` or stronger"),
            ("sslmode=require&host=/tmp", "a Unix socket has no TLS"),
            (
                "sslmode=verify-full&sslrootcert=/no/such",
                "cannot read certificates from /no/such",
            ),
            ("sslcrl=x", "sslcrl"),
        ] {
            let text = refusal(&format!("postgres://u:hush@h/d?{query}"));
            assert!(text.contains(expected) && !text.contains("hush"), "{text}");
        }
    }

    #[test]
    fn addresses_keep_the_order_and_the_names() {
        let server = Server::parse("postgres://u@a:1,b/d?hostaddr=10.0.0.1,10.0.0.2").unwrap();
        assert_eq!(
            server.addresses(),
            [
                (Address::Tcp("10.0.0.1".into(), 1), "a".to_owned()),
                (Address::Tcp("10.0.0.2".into(), 5432), "b".to_owned()),
            ]
        );
        let server = Server::parse("postgres://u@%2Frun%2Fpg:6543/d").unwrap();
        assert_eq!(
            server.addresses(),
            [(Address::Unix("/run/pg/.s.PGSQL.6543".into()), String::new())]
        );
    }
}
