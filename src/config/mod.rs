//! Every setting: its meaning, unit, bounds and default.
//!
//! Settings come from three places, later ones winning: the defaults, the YAML file given by `--config`, and the
//! environment (`POSDUIF__SECTION__KEY`; also plain `DATABASE_URL` and `REDIS_URL`). A secret key may be in a file of its
//! own, which `POSDUIF__SECTION__KEY__FILE` names. An unknown or invalid key stops the
//! start; the error names the key, the value and what is allowed.
//!
//! Each section is a file here. It declares each field once, with its documentation, default and bounds (`section!`);
//! tests compare `config/config.yaml` and `.env.example` with these declarations. Conditions between fields are in the
//! section's `check`.

mod admin;
mod app;
mod audit;
mod auth;
mod cache;
mod certificate;
pub mod cluster;
mod enrollment;
mod environment;
pub mod group;
mod health;
pub mod lane;
mod limits;
mod live;
mod log;
mod mail;
mod messages;
mod network;
mod outbox;
pub mod placement;
mod postgres;
mod presence;
mod provider;
mod push;
mod rates;
mod redis;
mod replication;
pub mod rule;
mod secret;
mod section;
mod server;
mod state;
mod streams;
mod sync;
mod telemetry;
mod url;
mod webhook;
mod websocket;

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::admin::{Admin, OFF};
pub use self::app::{App, Widget};
pub use self::audit::Audit;
pub use self::auth::{Auth, DeviceAuth};
pub use self::cache::Cache;
pub use self::certificate::CertificateFiles;
pub use self::enrollment::Enrollment;
use self::group::{Group, Groups};
pub use self::health::Health;
use self::lane::{Lane, LaneName};
pub use self::limits::Limits;
pub use self::live::Live;
pub use self::log::{Log, LogFormat, parse_level};
pub use self::mail::Mail;
pub use self::messages::Messages;
pub use self::network::{Network, client_network};
pub use self::outbox::Outbox;
pub use self::postgres::Postgres;
pub use self::presence::Presence;
pub use self::provider::{Claims, JwksSource, NewUserType, Provider, SignatureAlgorithm, Texts};
pub use self::push::Push;
pub use self::rates::Rates;
pub use self::redis::Redis;
pub use self::replication::Replication;
use self::rule::Rule;
pub use self::secret::Secret;
use self::section::Section;
pub use self::server::Server;
pub use self::state::State;
pub use self::streams::Streams;
pub use self::sync::{ConflictStrategy, Sync};
pub use self::telemetry::Telemetry;
pub use self::url::{HttpUrl, InvalidUrl};
pub use self::webhook::{Webhook, WebhookSecret};
pub use self::websocket::WebSocket;
use crate::core::tenant::Tenant;

/// Prefix of environment variables that override keys.
const ENV_PREFIX: &str = "POSDUIF__";

/// Keys whose values are secret.
const SECRETS: [&str; 10] = [
    "admin.token",
    "telemetry.otlp_headers",
    "postgres.url",
    "redis.url",
    "auth.jwt_secret",
    "auth.jwt_previous_secrets",
    "push.webhook_secret",
    "push.webhook_previous_secrets",
    "mail.webhook_secret",
    "mail.webhook_previous_secrets",
];

/// Keys of former versions, and what they are called now. A section stands for all its keys.
const RENAMED: [(&str, &str); 6] = [
    ("sse", "live"),
    ("replication.wire_timeout_seconds", "replication.idle_timeout_seconds"),
    (
        "replication.sender_timeout_seconds",
        "replication.wal_sender_timeout_seconds",
    ),
    (
        "streams.acknowledged_keep_seconds",
        "streams.retention_after_ack_seconds",
    ),
    ("push.after_seconds", "push.offline_delay_seconds"),
    ("health.freshness_bound_seconds", "health.max_staleness_seconds"),
];

/// All settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub server: Server,
    pub admin: Admin,
    pub postgres: Postgres,
    pub redis: Redis,
    pub replication: Replication,
    pub streams: Streams,
    pub outbox: Outbox,
    pub auth: Auth,
    pub mail: Mail,
    pub audit: Audit,
    pub limits: Limits,
    pub rates: Rates,
    pub sync: Sync,
    pub messages: Messages,
    pub state: State,
    pub enrollment: Enrollment,
    pub live: Live,
    pub presence: Presence,
    pub push: Push,
    pub websocket: WebSocket,
    pub cache: Cache,
    pub app: App,
    pub health: Health,
    pub log: Log,
    pub telemetry: Telemetry,
    /// Lanes beside the main one.
    pub lanes: Vec<Lane>,
    /// Groups of users, to which rules may send rows.
    pub groups: Groups,
    /// Routing rules for the operator's own tables, in addition to the built-in ones.
    pub routes: Vec<Rule>,
    /// The lane of which these are the settings.
    #[serde(skip)]
    pub lane: LaneName,
}

impl Config {
    /// Reads the file (when given), then the process's environment, and checks the bounds.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        let text = match file {
            Some(path) => std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the configuration file {}", path.display()))?,
            None => String::new(),
        };
        Self::from_sources(&text, environment::of_process()?).with_context(|| match file {
            Some(path) => format!("configuration {}", path.display()),
            None => "configuration from the environment".to_owned(),
        })
    }

    /// Merges YAML text and environment variables over the defaults and checks the bounds.
    ///
    /// # Errors
    /// Names the key, its value unless it may hold a secret, and what is allowed.
    pub fn from_sources(yaml: &str, env: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let mut tree: Value = if yaml.trim().is_empty() {
            Value::Null
        } else {
            // Without the lines of the error, which may hold a secret.
            let options = serde_saphyr::options! { with_snippet: false };
            serde_saphyr::from_str_with_options(yaml, options).context("not valid YAML")?
        };
        if tree.is_null() {
            tree = Value::Object(serde_json::Map::new());
        }
        // A section without keys is present, and empty.
        if let Value::Object(sections) = &mut tree {
            sections.retain(|_, section| !section.is_null());
        }
        for (old, new) in RENAMED {
            if old.split('.').try_fold(&tree, |node, part| node.get(part)).is_some() {
                bail!("key `{old}` was renamed: use `{new}`");
            }
        }
        // The defaults define which keys exist and their types, so that a password of digits stays text.
        let defaults = serde_json::to_value(Self::default()).context("defaults")?;
        for (path, value) in environment::overrides(env)? {
            apply_override(&mut tree, &defaults, &path, &value)?;
        }
        let mut config: Self = serde_path_to_error::deserialize(&tree).map_err(|error| {
            let path = error.path().to_string();
            let found = path.split('.').try_fold(&tree, |node, part| node.get(part));
            refused(found, &path, &error.inner().to_string())
        })?;
        config.check()?;
        lane::read_files(&mut config.lanes)?;
        Ok(config)
    }

    /// All sections by name.
    fn sections(&self) -> [(&'static str, &dyn Section); 25] {
        [
            ("server", &self.server),
            ("admin", &self.admin),
            ("postgres", &self.postgres),
            ("redis", &self.redis),
            ("replication", &self.replication),
            ("streams", &self.streams),
            ("outbox", &self.outbox),
            ("auth", &self.auth),
            ("mail", &self.mail),
            ("audit", &self.audit),
            ("limits", &self.limits),
            ("rates", &self.rates),
            ("sync", &self.sync),
            ("messages", &self.messages),
            ("state", &self.state),
            ("enrollment", &self.enrollment),
            ("live", &self.live),
            ("presence", &self.presence),
            ("push", &self.push),
            ("websocket", &self.websocket),
            ("cache", &self.cache),
            ("app", &self.app),
            ("health", &self.health),
            ("log", &self.log),
            ("telemetry", &self.telemetry),
        ]
    }

    /// Checks the declared bounds, then the conditions of each section.
    fn check(&self) -> Result<()> {
        for (name, section) in self.sections() {
            for field in section.fields() {
                if let Some((bounds, value)) = field.bounded {
                    section::within(&format!("{name}.{}", field.name), value, &bounds)?;
                }
            }
        }
        self.server.check()?;
        self.admin.check()?;
        self.redis.check()?;
        self.replication.check()?;
        self.auth.check()?;
        self.mail.check()?;
        self.sync.check()?;
        self.push.check()?;
        self.log.check()?;
        self.telemetry.check()?;
        lane::check_all(self)?;
        group::check_all(&self.groups, &self.routes)?;
        rule::check_subjects(&self.routes, &self.groups, &self.auth.providers)?;
        rule::check_all(&self.routes, &self.groups)
    }

    /// The schema that has a tenant's rows of a table.
    pub fn schema_of<'a>(&'a self, table: &str, tenant: &'a Tenant) -> &'a str {
        let rules = self.routes.iter().map(Rule::placement);
        let mut places = rules.chain(self.groups.values().map(Group::placement));
        let place = places.find(|place| place.table == table);
        place.map_or(tenant.schema.as_str(), |place| place.schema(tenant))
    }

    /// The memory for request bodies: at least what the largest request needs, which could never succeed otherwise.
    pub fn body_memory_bytes(&self) -> usize {
        [
            self.server.body_memory_bytes_max,
            // Compressed and inflated.
            2 * self.sync.upload_bytes_max,
            self.server.body_bytes_max,
            self.state.batch_bytes_max,
        ]
        .into_iter()
        .max()
        .unwrap_or_default()
    }

    /// Refuses a missing or weak token secret. Every process that serves requests calls it.
    ///
    /// # Errors
    /// When `auth.jwt_secret`, or one of `auth.jwt_previous_secrets`, has fewer than 32 bytes or is a well-known example.
    pub fn check_secrets(&self) -> Result<()> {
        self.auth.check_secrets()
    }

    /// The base URL that clients use, without a trailing slash.
    pub fn public_url(&self) -> String {
        if self.server.public_url.is_empty() {
            format!("{}://{}:{}", self.server.scheme(), self.server.host, self.server.port)
        } else {
            self.server.public_url.trim_end_matches('/').to_owned()
        }
    }
}

/// What a key of a former version is called now.
fn renamed(path: &str) -> Option<String> {
    RENAMED.iter().find_map(|(old, new)| {
        let rest = path.strip_prefix(old)?;
        (rest.is_empty() || rest.starts_with('.')).then(|| format!("{new}{rest}"))
    })
}

fn variable(path: &str) -> String {
    format!("{ENV_PREFIX}{}", path.to_ascii_uppercase().replace('.', "__"))
}

/// Sets the leaf at a dotted path to a text from the environment, read as the type of the default.
fn apply_override(tree: &mut Value, defaults: &Value, path: &str, text: &str) -> Result<()> {
    let unknown = || match renamed(path) {
        Some(new) => anyhow!(
            "environment variable {} was renamed: use {}",
            variable(path),
            variable(&new)
        ),
        None => anyhow!("environment variable {}: no such key", variable(path)),
    };
    let mut like = defaults;
    let mut node = tree;
    let mut parts = path.split('.').peekable();
    while let Some(part) = parts.next() {
        like = like.get(part).ok_or_else(unknown)?;
        let map = node.as_object_mut().ok_or_else(unknown)?;
        if parts.peek().is_some() {
            node = map.entry(part).or_insert_with(|| Value::Object(serde_json::Map::new()));
            continue;
        }
        let value = match like {
            Value::String(_) => Value::String(text.to_owned()),
            _ => serde_saphyr::from_str(text)
                .map_err(|_| refused(Some(&text.into()), path, "not a value of its type"))?,
        };
        map.insert(part.to_owned(), value);
        return Ok(());
    }
    Err(unknown())
}

/// The error for a malformed key. It shows the value unless that may hold a secret; serde's text repeats the value and is
/// then omitted, too.
fn refused(found: Option<&Value>, path: &str, why: &str) -> anyhow::Error {
    let place = path.split('[').next().unwrap_or(path);
    let holds = |secret: &&str| **secret == *place || secret.starts_with(&format!("{path}."));
    if path == "." || path.starts_with("lanes") || SECRETS.iter().any(holds) {
        return anyhow!("key `{path}` = ***: not of its type (not shown, since it may hold a secret)");
    }
    match found {
        // An unknown key may be a misspelt secret.
        Some(leaf) if !leaf.is_object() && !leaf.is_array() && !why.starts_with("unknown field") => {
            anyhow!("key `{path}` = {leaf}: {why}")
        }
        _ => anyhow!("key `{path}`: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::section::Field;
    use super::*;

    const YAML: &str = include_str!("../../config/config.yaml");

    pub(super) fn load(yaml: &str, env: &[(&str, &str)]) -> Result<Config> {
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::from_sources(yaml, env)
    }

    pub(super) fn refusal(yaml: &str, env: &[(&str, &str)]) -> String {
        format!("{:#}", load(yaml, env).unwrap_err())
    }

    #[test]
    fn yaml_file_equals_the_defaults() {
        assert_eq!(load(YAML, &[]).unwrap(), Config::default());
        assert_eq!(load("", &[]).unwrap(), Config::default());
        assert_eq!(load("# nothing but a comment\n", &[]).unwrap(), Config::default());
    }

    #[test]
    fn yaml_file_shows_every_key() {
        fn keys(tree: &Value, path: &str, found: &mut Vec<String>) {
            for (key, value) in tree.as_object().into_iter().flatten() {
                let path = format!("{path}.{key}");
                keys(value, &path, found);
                found.push(path);
            }
        }
        let (mut shown, mut known) = (Vec::new(), Vec::new());
        keys(&serde_saphyr::from_str(YAML).unwrap(), "", &mut shown);
        keys(&serde_json::to_value(Config::default()).unwrap(), "", &mut known);
        shown.sort();
        known.sort();
        assert_eq!(shown, known);
    }

    /// A doc comment on one line, with the bounds as the shipped files show them.
    pub(super) fn comment(doc: &str, key: &str, bounds: Option<&std::ops::RangeInclusive<u64>>) -> String {
        let doc = doc.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        let Some(bounds) = bounds else { return doc };
        let number = |number: u64| match [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
            .into_iter()
            .find(|(unit, _)| key.contains("bytes") && number > 0 && number.is_multiple_of(*unit))
        {
            Some((unit, name)) => format!("{} {name}", number / unit),
            None => {
                let digits = number.to_string();
                let groups = digits.as_bytes().rchunks(3).rev();
                let groups: Vec<_> = groups.map(|group| std::str::from_utf8(group).unwrap()).collect();
                groups.join(",")
            }
        };
        let doc = doc.strip_suffix('.').unwrap();
        format!("{doc} ({} to {}).", number(*bounds.start()), number(*bounds.end()))
    }

    /// The comment above each key of a file, on one line.
    pub(super) fn comments(
        text: &str,
        mut key_of: impl FnMut(&str) -> Option<String>,
    ) -> std::collections::HashMap<String, String> {
        let (mut found, mut comment) = (std::collections::HashMap::new(), String::new());
        for line in text.lines() {
            if let Some(key) = key_of(line) {
                found.insert(key, std::mem::take(&mut comment).trim().to_owned());
            } else if let Some(text) = line.trim().strip_prefix("# ") {
                comment.push_str(text);
                comment.push(' ');
            } else {
                comment.clear();
            }
        }
        found
    }

    #[test]
    fn yaml_file_documents_every_key_as_declared() {
        let mut section = String::new();
        let shown = comments(YAML, |line| {
            let (key, _) = line.split_once(':').filter(|_| !line.trim().starts_with('#'))?;
            if key.starts_with(' ') {
                return Some(format!("{section}.{}", key.trim()));
            }
            section = key.to_owned();
            Some(section.clone())
        });
        for (name, section) in Config::default().sections() {
            assert_eq!(shown[name], comment(section.doc(), "", None));
            for field in section.fields() {
                let key = format!("{name}.{}", field.name);
                let expected = comment(field.doc, field.name, field.bounded.as_ref().map(|(bounds, _)| bounds));
                assert!(shown[&key].starts_with(&expected), "{key}: {expected}");
            }
        }
    }

    #[test]
    fn env_example_documents_every_key_as_declared() {
        let text = include_str!("../../.env.example");
        let joined = text.replace("\n# ", " ");
        let shown = comments(text, |line| {
            let (name, _) = line.trim_start_matches('#').split_once('=')?;
            name.starts_with(ENV_PREFIX).then(|| name.to_owned())
        });
        for (name, section) in Config::default().sections() {
            let headline = comment(section.doc(), "", None);
            assert!(joined.contains(&format!("---- {headline}\n")), "{headline}");
            for field in section.fields() {
                let key = format!("{name}.{}", field.name);
                // The URLs have plain names, and the widgets are best set in a file.
                if ["postgres.url", "redis.url", "app.widgets"].contains(&key.as_str()) {
                    continue;
                }
                let expected = comment(field.doc, field.name, field.bounded.as_ref().map(|(bounds, _)| bounds));
                let found = shown.get(&variable(&key)).map_or("", String::as_str);
                assert!(found.starts_with(&expected), "{key}: {expected}");
            }
        }
    }

    #[test]
    fn every_declared_bound_is_enforced() {
        let mut checked = 0;
        for (name, section) in Config::default().sections() {
            for Field { name: key, bounded, .. } in section.fields() {
                let Some((bounds, _)) = bounded else { continue };
                let is_allowed = |value: u64| load(&format!("{name}: {{{key}: {value}}}"), &[]).is_ok();
                let (low, high) = bounds.into_inner();
                // The default of `batch_size` must not exceed `batch_size_max`.
                assert!(key == "batch_size_max" || is_allowed(low), "{name}.{key}: {low}");
                assert!(is_allowed(high), "{name}.{key}: {high}");
                assert!(!is_allowed(high + 1), "{name}.{key}: {}", high + 1);
                assert!(low == 0 || !is_allowed(low - 1), "{name}.{key}: {}", low - 1);
                checked += 1;
            }
        }
        assert!(checked > 60, "{checked}");
    }

    #[test]
    fn renamed_key_is_refused_with_its_new_name() {
        for (old, new) in RENAMED {
            let yaml = match old.split_once('.') {
                Some((section, key)) => format!("{section}: {{{key}: 9}}"),
                None => format!("{old}: {{retry_ms: 9}}"),
            };
            let text = refusal(&yaml, &[]);
            assert_eq!(text, format!("key `{old}` was renamed: use `{new}`"));
        }
        let text = refusal("", &[("POSDUIF__SSE__RETRY_MS", "9")]);
        assert_eq!(
            text,
            "environment variable POSDUIF__SSE__RETRY_MS was renamed: use POSDUIF__LIVE__RETRY_MS"
        );
        let text = refusal("", &[("POSDUIF__PUSH__AFTER_SECONDS", "9")]);
        assert!(text.ends_with("use POSDUIF__PUSH__OFFLINE_DELAY_SECONDS"), "{text}");
    }

    #[test]
    fn unknown_key_is_refused_by_name() {
        for (yaml, key) in [
            ("sever: {port: 1}", "sever"),
            ("server: {prot: 1}", "server.prot"),
            (
                "app: {widgets: {inbox: {type: a, url: b, version: c, colour: d}}}",
                "app.widgets.inbox.colour",
            ),
            ("routes: [{table: orders, to: [user_id], evnt: x}]", "routes[0].evnt"),
        ] {
            let text = refusal(yaml, &[]);
            assert!(
                text.contains(&format!("key `{key}`")) && text.contains("unknown field"),
                "{text}"
            );
        }
    }

    #[test]
    fn section_without_keys_has_its_defaults() {
        assert_eq!(Config::from_sources("live:\n", []).unwrap(), Config::default());
    }

    #[test]
    fn wrong_type_is_refused_with_key_and_value() {
        for (yaml, key, value) in [
            ("server: {port: many}", "server.port", "\"many\""),
            ("server: {port: 70000}", "server.port", "70000"),
            ("server: {port: -1}", "server.port", "-1"),
            ("sync: {compression: 1}", "sync.compression", "1"),
            ("sync: {conflict_strategy: coin}", "sync.conflict_strategy", "\"coin\""),
            ("auth: {device_auth: both}", "auth.device_auth", "\"both\""),
        ] {
            let text = refusal(yaml, &[]);
            assert!(text.contains(&format!("key `{key}` = {value}:")), "{text}");
        }
    }

    #[test]
    fn value_out_of_bounds_is_refused_with_the_bounds() {
        for (yaml, expected) in [
            (
                "server: {request_timeout_seconds: 0}",
                "key `server.request_timeout_seconds` is 0: allowed is 1 to 600",
            ),
            (
                "streams: {retention_after_ack_seconds: 604801}",
                "key `streams.retention_after_ack_seconds` is 604801",
            ),
            (
                "streams: {inbox_entries_max: 99}",
                "key `streams.inbox_entries_max` is 99",
            ),
            (
                "sync: {batch_size: 11, batch_size_max: 10}",
                "key `sync.batch_size` is 11: allowed is 1 to 10",
            ),
            ("auth: {argon2_memory_kib: 8}", "key `auth.argon2_memory_kib` is 8"),
            ("replication: {slot: Main}", "key `replication.slot` is \"Main\""),
            ("redis: {prefix: 'a:b'}", "key `redis.prefix` is \"a:b\""),
            (
                "server: {trusted_proxies: [10.0.0.0/33]}",
                "key `server.trusted_proxies[0]`: must be an IP address",
            ),
            (
                "redis: {cert_file: a.crt}",
                "keys `redis.cert_file` and `redis.key_file`",
            ),
            (
                "server: {default_tenant: 9lives}",
                "key `server.default_tenant` is \"9lives\"",
            ),
            ("log: {level: '=,,='}", "key `log.level` is \"=,,=\""),
            ("routes: [{table: messages, to: [user_id]}]", "key `routes[0]`"),
        ] {
            let text = refusal(yaml, &[]);
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn environment_overrides_file_and_prefixed_names_override_plain() {
        let env = [
            ("POSDUIF__SERVER__PORT", "9000"),
            ("POSDUIF__POSTGRES__URL", "postgres://own"),
            ("DATABASE_URL", "postgres://plain"),
            ("REDIS_URL", "redis://plain"),
            ("POSDUIF__ROUTES", "[{table: orders, to: [user_id]}]"),
            ("POSDUIF__SYNC__CONFLICT_STRATEGY", "manual"),
            ("POSDUIF_URL", "not ours"),
            ("PATH", "/bin"),
        ];
        let config = load("server: {port: 1, host: '::1'}", &env).unwrap();
        assert_eq!((config.server.port, config.server.host.as_str()), (9000, "::1"));
        assert_eq!(config.postgres.url.expose(), "postgres://own");
        assert_eq!(config.redis.url.expose(), "redis://plain");
        assert_eq!(config.routes.len(), 1);
        assert_eq!(config.sync.conflict_strategy, ConflictStrategy::Manual);
    }

    #[test]
    fn text_from_the_environment_stays_text() {
        let env = [
            ("POSDUIF__AUTH__JWT_SECRET", "00420"),
            ("POSDUIF__REDIS__PREFIX", "1e3"),
            ("POSDUIF__APP__VERSION", "2.0"),
            ("POSDUIF__SERVER__DEFAULT_TENANT", "null"),
        ];
        let config = load("", &env).unwrap();
        assert_eq!(config.auth.jwt_secret.expose(), "00420");
        assert_eq!(config.redis.prefix, "1e3");
        assert_eq!(config.app.version, "2.0");
        assert_eq!(config.server.default_tenant, "null");
    }

    #[test]
    fn unknown_variable_is_refused_by_name() {
        for name in [
            "POSDUIF__SERVER__PROT",
            "POSDUIF__SEVER__PORT",
            "POSDUIF__SERVER__PORT__X",
            "POSDUIF__",
        ] {
            let text = refusal("", &[(name, "1")]);
            assert!(
                text.contains(&format!("environment variable {name}: no such key")),
                "{text}"
            );
        }
        let text = refusal("", &[("POSDUIF__SERVER__PORT", "many")]);
        assert!(text.contains("key `server.port` = \"many\""), "{text}");
    }

    #[test]
    fn secret_is_never_shown() {
        let config = load(
            "auth: {jwt_secret: hush-1, jwt_previous_secrets: [hush-4]}\npostgres: {url: 'postgres://a:hush-2@h/d'}\nredis: {url: 'redis://:hush-3@h'}",
            &[],
        )
        .unwrap();
        let shown = format!(
            "{config:?} {} {}",
            serde_json::to_string(&config).unwrap(),
            serde_saphyr::to_string(&config).unwrap()
        );
        assert!(!shown.contains("hush"), "{shown}");
        assert!(shown.contains("***"));
        // Whether one is set shows.
        assert_eq!(serde_json::to_value(Secret::new("")).unwrap(), "");
    }

    #[test]
    fn error_never_shows_a_possible_secret() {
        for (yaml, key) in [
            ("auth: {jwt_secret: 4711}", "auth.jwt_secret"),
            ("auth: {jwt_secret: [4711]}", "auth.jwt_secret"),
            ("auth: {jwt_previous_secrets: '4711'}", "auth.jwt_previous_secrets"),
            (
                "auth: {jwt_previous_secrets: [x, 4711]}",
                "auth.jwt_previous_secrets[1]",
            ),
            ("auth: {jwt_secert: 'x4711'}", "auth.jwt_secert"),
            ("redis: 'redis://:4711@h'", "redis"),
            ("postgres: {url: 4711}", "postgres.url"),
            ("4711", "."),
            ("auth:\n  jwt_secret: \"4711\n  jwt_issuer: a\n", "not valid YAML"),
            ("auth: {jwt_secret: '4711', jwt_secret: '4711'}", "not valid YAML"),
        ] {
            let text = refusal(yaml, &[]);
            assert!(text.contains(key) && !text.contains("4711"), "{text}");
        }
        for (name, key) in [("POSDUIF__AUTH", "auth"), ("POSDUIF__REDIS", "redis")] {
            let text = refusal("", &[(name, "{url: \"4711")]);
            assert!(
                text.contains(&format!("key `{key}`")) && !text.contains("4711"),
                "{text}"
            );
        }
    }

    #[test]
    fn token_secret_must_be_long_and_not_an_example() {
        for bad in ["", "tiny", "change-me-change-me-change-me-change-me"] {
            let text = format!(
                "{:#}",
                load("", &[("POSDUIF__AUTH__JWT_SECRET", bad)])
                    .unwrap()
                    .check_secrets()
                    .unwrap_err()
            );
            assert!(text.contains("key `auth.jwt_secret`"), "{text}");
            assert!(bad.is_empty() || !text.contains(bad), "{text}");
        }
        let good = "0123456789abcdef0123456789abcdef";
        let env = [
            ("POSDUIF__AUTH__JWT_SECRET", good),
            ("POSDUIF__AUTH__JWT_PREVIOUS_SECRETS", "[tiny]"),
        ];
        load("", &env[..1]).unwrap().check_secrets().unwrap();
        let text = format!("{:#}", load("", &env).unwrap().check_secrets().unwrap_err());
        assert!(text.contains("key `auth.jwt_previous_secrets[0]`"), "{text}");
    }
}
