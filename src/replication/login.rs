//! The login of a replication connection: what each authentication request of Postgres is answered with. No IO.

use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ChannelBinding, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationMd5PasswordBody, AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tokio_postgres::config::ChannelBinding as Binding;

use super::connection::{Error, unexpected};

/// A login in progress.
pub(super) struct Login<'a> {
    config: &'a tokio_postgres::Config,
    user: &'a str,
    /// The digest of the server's certificate, to bind the login to the TLS channel; only where both sides can.
    end_point: Option<Vec<u8>>,
    /// The exchange that must still prove that the server has the password.
    scram: Option<ScramSha256>,
    is_bound: bool,
}

impl<'a> Login<'a> {
    pub(super) fn new(config: &'a tokio_postgres::Config, end_point: Option<Vec<u8>>) -> Result<Self, Error> {
        let user = config
            .get_user()
            .ok_or_else(|| Error::Authentication("the connection URL names no user".into()))?;
        Ok(Self {
            config,
            user,
            end_point: end_point.filter(|_| config.get_channel_binding() != Binding::Disable),
            scram: None,
            is_bound: false,
        })
    }

    /// Writes the startup message.
    pub(super) fn start(&self, sender_timeout: Duration, out: &mut BytesMut) -> Result<(), Error> {
        let timeout = sender_timeout.as_millis().to_string();
        // Column values arrive as text in a form that these settings determine: they override those of role and
        // database.
        let parameters = [
            ("user", self.user),
            ("database", self.config.get_dbname().unwrap_or(self.user)),
            ("replication", "database"),
            ("application_name", "posduif replicator"),
            ("client_encoding", "UTF8"),
            ("TimeZone", "UTC"),
            ("DateStyle", "ISO, YMD"),
            ("IntervalStyle", "postgres"),
            ("extra_float_digits", "1"),
            ("bytea_output", "hex"),
            ("wal_sender_timeout", &timeout),
        ];
        Ok(frontend::startup_message(parameters, out)?)
    }

    /// Answers an authentication request.
    pub(super) fn answer(&mut self, request: Message, out: &mut BytesMut) -> Result<(), Error> {
        match request {
            Message::AuthenticationOk => self.accept_ok(),
            Message::AuthenticationCleartextPassword => self.send_password(out),
            Message::AuthenticationMd5Password(body) => self.send_md5(&body, out),
            Message::AuthenticationSasl(body) => self.start_scram(&body, out),
            Message::AuthenticationSaslContinue(body) => self.continue_scram(body.data(), out),
            Message::AuthenticationSaslFinal(body) => self.finish_scram(body.data()),
            Message::AuthenticationGss
            | Message::AuthenticationKerberosV5
            | Message::AuthenticationScmCredential
            | Message::AuthenticationSspi => Err(Error::Authentication(
                "Postgres requires a login method other than password, MD5 or SCRAM-SHA-256".into(),
            )),
            _ => Err(unexpected("message during login")),
        }
    }

    fn must_bind(&self) -> bool {
        self.config.get_channel_binding() == Binding::Require
    }

    fn password(&self) -> Result<&'a [u8], Error> {
        self.config.get_password().ok_or_else(|| {
            Error::Authentication(format!(
                "Postgres requires a password for user {}, but the URL has none",
                self.user
            ))
        })
    }

    fn accept_ok(&self) -> Result<(), Error> {
        if self.scram.is_some() {
            return Err(Error::Authentication(
                "the server accepted the login without proof that it has the password".into(),
            ));
        }
        if self.must_bind() && !self.is_bound {
            return Err(unbound(
                "the server requires no login for this user (see its pg_hba.conf)",
            ));
        }
        Ok(())
    }

    /// Fails when the login must be bound to TLS, which only SCRAM can do.
    fn check_unbound_method(&self) -> Result<(), Error> {
        if self.must_bind() {
            return Err(unbound(
                "the server does not use SCRAM for this user (see its pg_hba.conf)",
            ));
        }
        Ok(())
    }

    fn send_password(&self, out: &mut BytesMut) -> Result<(), Error> {
        self.check_unbound_method()?;
        Ok(frontend::password_message(self.password()?, out)?)
    }

    fn send_md5(&self, body: &AuthenticationMd5PasswordBody, out: &mut BytesMut) -> Result<(), Error> {
        self.check_unbound_method()?;
        let hash = md5_hash(self.user.as_bytes(), self.password()?, body.salt());
        Ok(frontend::password_message(hash.as_bytes(), out)?)
    }

    fn start_scram(&mut self, body: &AuthenticationSaslBody, out: &mut BytesMut) -> Result<(), Error> {
        let offered: Vec<&str> = body.mechanisms().collect()?;
        let (mechanism, binding) = self.choose_mechanism(offered.contains(&sasl::SCRAM_SHA_256_PLUS));
        if self.must_bind() && !self.is_bound {
            return Err(unbound(
                "it requires TLS (sslmode=require or stronger) and a certificate whose signature names a hash",
            ));
        }
        if !offered.contains(&mechanism) {
            return Err(Error::Authentication(format!(
                "Postgres offers only {}; SCRAM-SHA-256 is required",
                offered.join(", ")
            )));
        }
        let exchange = ScramSha256::new(self.password()?, binding);
        frontend::sasl_initial_response(mechanism, exchange.message(), out)?;
        self.scram = Some(exchange);
        Ok(())
    }

    fn choose_mechanism(&mut self, offers_binding: bool) -> (&'static str, ChannelBinding) {
        match self.end_point.take() {
            Some(end_point) if offers_binding => {
                self.is_bound = true;
                (
                    sasl::SCRAM_SHA_256_PLUS,
                    ChannelBinding::tls_server_end_point(end_point),
                )
            }
            // The server refuses this if it offered binding and an attacker removed the offer.
            Some(_) => (sasl::SCRAM_SHA_256, ChannelBinding::unrequested()),
            None => (sasl::SCRAM_SHA_256, ChannelBinding::unsupported()),
        }
    }

    fn continue_scram(&mut self, data: &[u8], out: &mut BytesMut) -> Result<(), Error> {
        let exchange = self.scram.as_mut().ok_or_else(|| unexpected("SASL continuation"))?;
        exchange.update(data)?;
        Ok(frontend::sasl_response(exchange.message(), out)?)
    }

    fn finish_scram(&mut self, data: &[u8]) -> Result<(), Error> {
        let mut exchange = self.scram.take().ok_or_else(|| unexpected("SASL end"))?;
        Ok(exchange.finish(data)?)
    }
}

fn unbound(why: &str) -> Error {
    Error::Authentication(format!(
        "`channel_binding=require`, but the login cannot be bound to TLS: {why}"
    ))
}
