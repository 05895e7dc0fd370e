//! The connection URL of Postgres, with libpq's parameters for TLS.
//!
//! tokio-postgres' parser supports neither `sslmode=verify-ca` nor `sslrootcert`, so these are taken out of the URL here.
//! They apply to the pool of ordinary connections ([`MakeTlsConnect`]) and to the replication connection
//! ([`Server::secure`]).

use std::io;
use std::pin::Pin;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, SslNegotiation, TargetSessionAttrs};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};

use crate::config::CertificateFiles;
use crate::net::tls::{Connector, Roots, Stream, Trust};
use crate::net::{Address, BoxStream};

/// The message `SSLRequest`: a length, and a code in place of the protocol's version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// The name of the protocol (ALPN), which direct TLS requires.
const PROTOCOL: &[u8] = b"postgresql";

/// `sslmode` of libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// A Postgres server, or several alternatives.
#[derive(Debug, Clone)]
pub struct Server {
    config: Config,
    connector: Connector,
}

/// A byte stream to Postgres, ready for the login.
pub struct Secured {
    pub stream: BoxStream,
    pub is_encrypted: bool,
    /// The channel binding for a login.
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
    /// Parses a connection URL and reads the certificates that it names.
    ///
    /// # Errors
    /// When the URL is malformed or has conflicting parameters, or a file cannot be read. The error shows neither user nor
    /// password.
    pub fn parse(url: &str) -> Result<Self> {
        let (url, ours) = split(url)?;
        let mut config = Config::from_str(&url)
            .context("not a connection URL of the form postgres://user:password@host:port/database")?;
        let mode = match (ours.mode.as_deref(), ours.root_cert.as_deref()) {
            (Some(mode), _) => parse_mode(mode)?,
            // As in libpq: trust in all public authorities requires a check of the name.
            (None, Some("system")) => Mode::VerifyFull,
            // From the key=value form, which tokio-postgres has parsed.
            (None, _) => match config.get_ssl_mode() {
                SslMode::Disable => Mode::Disable,
                SslMode::Require => Mode::Require,
                _ => Mode::Prefer,
            },
        };
        let trust = trust(mode, ours.root_cert.as_deref())?;
        let client = match (ours.cert, ours.key) {
            (Some(certificate), Some(key)) => Some(CertificateFiles {
                certificate: certificate.into(),
                key: key.into(),
            }),
            (None, None) => None,
            _ => bail!("a client certificate requires both `sslcert` and `sslkey`"),
        };
        let is_direct = config.get_ssl_negotiation() == SslNegotiation::Direct;
        if is_direct && mode < Mode::Require {
            bail!("`sslnegotiation=direct` requires `sslmode=require` or stronger");
        }
        let is_local = |host: &Host| matches!(host, Host::Unix(_));
        let hosts = config.get_hosts();
        let has_alternatives = hosts.len().max(config.get_hostaddrs().len()) > 1;
        let mode = if !hosts.is_empty() && hosts.iter().all(is_local) {
            // As in libpq: Unix sockets are local and have no TLS.
            Mode::Disable
        } else if mode >= Mode::Require && hosts.iter().any(is_local) {
            bail!("a Unix socket has no TLS: use TCP hosts only, or a weaker `sslmode`");
        } else {
            mode
        };
        config.ssl_mode(match mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            _ => SslMode::Require,
        });
        // Of several servers only the primary has the slot and takes writes.
        if has_alternatives {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let connector = Connector::new(&trust, client.as_ref(), Some(PROTOCOL))?;
        Ok(Self { config, connector })
    }

    /// The remaining parameters of the URL.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Addresses of the servers and the names in their certificates, in the order of the URL.
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

    /// Requests TLS and performs the handshake, as the URL requires. It has no timeout of its own.
    ///
    /// # Errors
    /// When the server lacks required TLS, does not prove its identity, or sent unencrypted bytes after its response.
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
            // Room for more than the one byte: unencrypted bytes that follow it must not count as encrypted
            // (CVE-2021-23222).
            let mut response = [0_u8; 2];
            match (stream.read(&mut response).await?, response[0]) {
                (0, _) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "Postgres closed the connection on the request for TLS",
                    ));
                }
                (1, b'S') => {}
                (1, b'N') if mode == SslMode::Prefer => return Ok(plain(stream)),
                (1, b'N') => {
                    return Err(refused(
                        "Postgres has no TLS, which `sslmode` requires: enable it there (ssl = on), or set \
                         `sslmode=disable` on a trusted network",
                    ));
                }
                (1, b'E') => return Err(refused("Postgres refused the request for TLS with an error")),
                (1, _) => return Err(refused("the server is not Postgres")),
                _ => return Err(refused("unencrypted bytes follow the response to the request for TLS")),
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
                "`sslrootcert=system` requires `sslmode=verify-full`: public authorities issue certificates to anybody"
            )
        }
        // As in libpq: with an authority, `require` verifies it.
        (Mode::Require | Mode::VerifyCa, Some(file)) => Trust::Chain(Roots::File(file.into())),
        (Mode::VerifyCa, None) => {
            bail!(
                "`sslmode=verify-ca` requires `sslrootcert=<file>` with the authority that issued the server's certificate"
            )
        }
        // libpq continues unencrypted when the verification fails, so that it has no effect.
        (Mode::Prefer, Some(_)) => {
            bail!("`sslrootcert` has no effect with `sslmode=prefer`: set verify-full, verify-ca or require")
        }
        (Mode::Disable, _) | (Mode::Prefer | Mode::Require, None) => Trust::Anybody,
    })
}

/// The parameters that are read here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ours {
    mode: Option<String>,
    root_cert: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

/// Takes our parameters out of a URL. The key=value form stays unchanged.
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
            .with_context(|| format!("`{name}` is not UTF-8"))?;
        if value.is_empty() {
            bail!("`{name}` is empty");
        }
        *place = Some(value.into_owned());
    }
    Ok((format!("{base}{theirs}"), ours))
}

/// TLS of a pooled connection.
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

    #[test]
    fn several_hosts_need_the_primary() {
        let wanted = |url| Server::parse(url).unwrap().config().get_target_session_attrs();
        assert_eq!(wanted("postgres://u@a/x"), TargetSessionAttrs::Any);
        assert_eq!(wanted("postgres://u@a,b/x"), TargetSessionAttrs::ReadWrite);
        assert_eq!(
            wanted("postgres://u@a:1,b:2/x?target_session_attrs=any"),
            TargetSessionAttrs::ReadWrite
        );
    }

    fn refusal(url: &str) -> String {
        format!("{:#}", Server::parse(url).unwrap_err())
    }

    #[test]
    fn tls_parameters_are_taken_out_and_others_stay() {
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
    fn sslmode_becomes_that_of_tokio_postgres() {
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
    fn conflicting_parameters_are_refused_with_a_remedy() {
        for (query, expected) in [
            (
                "sslmode=allow",
                "allowed are disable, prefer, require, verify-ca and verify-full",
            ),
            ("sslmode=", "`sslmode` is empty"),
            ("sslmode=verify-ca", "requires `sslrootcert=<file>`"),
            ("sslmode=require&sslrootcert=system", "requires `sslmode=verify-full`"),
            ("sslrootcert=/etc/ca.crt", "has no effect with `sslmode=prefer`"),
            ("sslcert=a.crt", "requires both `sslcert` and `sslkey`"),
            ("sslnegotiation=direct", "requires `sslmode=require` or stronger"),
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
    fn addresses_keep_order_and_names() {
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
