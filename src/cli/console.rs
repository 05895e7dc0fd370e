//! `posduif console`: a link that opens the console of an engine, once.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::Global;
use super::output::{self, Render, Text, outln};
use crate::admin::access::{AccessKey, LINK_SECONDS};
use crate::core::time::unix_micros;
use crate::net::http;

/// How long the engine may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Console {
    /// Base URL of the engine's admin listener [default: `admin.listen`]
    #[arg(long, env = "POSDUIF_ADMIN_URL")]
    admin_url: Option<String>,
}

#[derive(Serialize)]
struct Link {
    url: String,
    expires_in_seconds: u64,
    /// Of the admin listener.
    #[serde(skip)]
    authority: String,
}

impl Console {
    pub(super) async fn run(self, global: &Global) -> Result<()> {
        let config = global.load()?;
        let named = self.admin_url.filter(|url| !url.is_empty());
        let Some(admin) = named.or_else(|| config.admin.url()) else {
            bail!(
                "the engine's admin listener is not known: set `admin.listen` to an address with a port, or name its URL in \
                 --admin-url"
            );
        };
        let admin = admin.trim_end_matches('/');
        let Some(key) = AccessKey::of(&config) else {
            bail!("key `auth.jwt_secret` is not set: links are made with the same value as the engine's");
        };
        let about = http::get(&format!("{admin}/admin/api/about"), TIMEOUT)
            .await
            .with_context(|| {
                format!("no engine answers at its admin listener {admin}; check that it runs, and `admin.listen`")
            })?;
        let body: Value = serde_json::from_slice(&about.body).unwrap_or_default();
        let Some(engine) = body["engine"].as_str() else {
            bail!(
                "{admin} is not the admin listener of an engine with a console: it returned {}",
                about.status
            );
        };
        let now = u64::try_from(unix_micros() / 1_000_000).context("the clock is before 1970")?;
        let code = key.link(engine, now).context("no random bits")?;
        let link = Link {
            url: format!("{admin}/console/#link={code}"),
            expires_in_seconds: LINK_SECONDS,
            authority: admin.split_once("://").map_or(admin, |(_, rest)| rest).to_owned(),
        };
        output::print(global, &link)
    }
}

impl Render for Link {
    fn text(&self, out: &mut Text) {
        outln!(out, "{}", self.url);
        let port = self.authority.rsplit(':').next().unwrap_or_default();
        outln!(
            out,
            "Open it within {} s, once. On another machine, forward the port before: ssh -L {port}:{} <host>",
            self.expires_in_seconds,
            self.authority
        );
    }
}
