//! Providers of external identities: whose tokens are accepted, and what their claims mean here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::section::{KIB, MIB, Section as _, section, within};
use super::url::HttpUrl;
use crate::core::tenant::is_valid_name;

/// Most names in the path of a claim.
const CLAIM_DEPTH_MAX: usize = 8;

/// Most bytes of a text of a provider: an issuer, an audience, a name of a claim.
const TEXT_BYTES_MAX: usize = 2048;

/// One text, or a list of texts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OneOrMany", into = "Vec<String>")]
pub struct Texts(Vec<String>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a text or a list of texts")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Texts {
    fn from(texts: OneOrMany) -> Self {
        match texts {
            OneOrMany::One(text) if text.is_empty() => Self::default(),
            OneOrMany::One(text) => Self(vec![text]),
            OneOrMany::Many(texts) => Self(texts),
        }
    }
}

impl From<Texts> for Vec<String> {
    fn from(texts: Texts) -> Self {
        texts.0
    }
}

impl From<&str> for Texts {
    fn from(text: &str) -> Self {
        OneOrMany::One(text.to_owned()).into()
    }
}

impl From<&[&str]> for Texts {
    fn from(texts: &[&str]) -> Self {
        Self(texts.iter().map(|text| (*text).to_owned()).collect())
    }
}

impl std::ops::Deref for Texts {
    type Target = [String];

    fn deref(&self) -> &[String] {
        &self.0
    }
}

/// How a token is signed. Symmetric algorithms and `none` do not exist here: a public key must never act as a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SignatureAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

/// The kind of a user that a first token creates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NewUserType {
    Web,
    Mobile,
}

section! {
    /// Names of claims. A list is a path into nested objects; an empty text is no claim.
    pub struct Claims {
        /// The user: a text or an integer that the provider never gives to another user.
        pub user: Texts = "sub".into();
        /// The tenant, unless `tenant` names one for all tokens.
        pub tenant: Texts = Texts::default();
        /// The role: a text or a list of texts.
        pub role: Texts = Texts::default();
        /// The username of a user who is created.
        pub name: Texts = "name".into();
        /// The email of a user who is created, if `email_verified` is true.
        pub email: Texts = "email".into();
        /// Whether the provider has verified the email.
        pub email_verified: Texts = "email_verified".into();
        /// The audience, for providers that put it into another claim than `aud`.
        pub audience: Texts = "aud".into();
    }
}

section! {
    /// A provider of external identities, which signs access tokens (JWT) of its own.
    pub struct Provider {
        /// `iss` of its tokens, exactly as they have it.
        pub issuer: String = String::new();
        /// Audiences of this server, one or several: a token must have one of them.
        pub audience: Texts = Texts::default();
        /// URL of its public keys (JWKS), https except on this machine, or the path of a file with them.
        pub jwks: String = String::new();
        /// File (PEM) with the certificate authority of that URL; empty means those of the system.
        pub ca_file: String = String::new();
        /// Signature algorithms that are accepted: `RS256`, `RS384`, `RS512`, `PS256`, `PS384`, `PS512`, `ES256`, `ES384`
        /// and `EdDSA`.
        pub algorithms: Vec<SignatureAlgorithm> =
            vec![SignatureAlgorithm::RS256, SignatureAlgorithm::ES256, SignatureAlgorithm::EdDsa];
        /// Tolerated difference in seconds between its clock and this one.
        pub leeway_seconds: u64 = 30, 0..=300;
        /// Maximum seconds from `iat` to `exp` of a token.
        pub token_lifetime_seconds_max: u64 = 86_400, 60..=2_592_000;
        /// Maximum bytes of a token.
        pub token_bytes_max: usize = 8192, 256..=65_536;
        /// The tenant of all its users; empty if a claim names it.
        pub tenant: String = String::new();
        /// Tenants by value of the claim: only these are accepted. Without any, the value is the tenant's name.
        pub tenants: BTreeMap<String, String> = BTreeMap::new();
        /// Names of claims.
        pub claims: Claims = Claims::default();
        /// Values of the role that mean an admin; all others mean a member.
        pub admin_roles: Vec<String> = Vec::new();
        /// Whether the first token of a user creates the user; otherwise the user must exist.
        pub provision: bool = false;
        /// Type of users who are created: `web` or `mobile`.
        pub user_type: NewUserType = NewUserType::Web;
        /// Text before the subject, which keeps the users of two providers of one tenant apart, for example `kc:`.
        pub subject_prefix: String = String::new();
        /// Seconds between two reads of the keys.
        pub jwks_refresh_seconds: u64 = 300, 1..=86_400;
        /// Minimum seconds between two reads: tokens with an unknown key cause at most one in this time.
        pub jwks_cooldown_seconds: u64 = 30, 1..=3600;
        /// Seconds for which keys are used after they should have been read again; then tokens get 503.
        pub jwks_stale_seconds: u64 = 86_400, 1..=2_592_000;
        /// Maximum time in seconds of a read.
        pub jwks_timeout_seconds: u64 = 5, 1..=30;
        /// Maximum bytes of the keys.
        pub jwks_bytes_max: usize = 256 * KIB as usize, KIB..=MIB;
    }
}

/// Where the keys of a provider are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwksSource {
    Url(HttpUrl),
    File(String),
}

impl Provider {
    /// Where its keys are.
    ///
    /// # Errors
    /// For a URL of another form than allowed.
    pub fn jwks_source(&self) -> Result<JwksSource> {
        if !self.jwks.contains("://") {
            return Ok(JwksSource::File(self.jwks.clone()));
        }
        match self.jwks.parse::<HttpUrl>() {
            Ok(url) if !self.jwks.contains(['@', '#']) && (url.is_secure || is_loopback(&url.host)) => {
                Ok(JwksSource::Url(url))
            }
            // Without the URL, which may hold a key of the API.
            _ => bail!(
                "jwks must be an https URL without user, password or fragment (http on 127.0.0.1, ::1 and localhost only), \
                 or the path of a file"
            ),
        }
    }

    /// The conditions of one provider.
    fn check(&self) -> Result<()> {
        check_text("issuer", &self.issuer)?;
        if self.audience.is_empty() {
            bail!(
                "audience must name the audience of this server: without one, tokens for other services would be accepted"
            );
        }
        check_texts("audience", &self.audience)?;
        check_text("jwks", &self.jwks)?;
        self.jwks_source()?;
        if self.algorithms.is_empty() {
            bail!("algorithms must name at least one");
        }
        if self.subject_prefix.len() > 64 || self.subject_prefix.contains(char::is_control) {
            bail!("subject_prefix must have at most 64 bytes and no control characters");
        }
        self.check_claims()?;
        self.check_tenants()
    }

    fn check_claims(&self) -> Result<()> {
        let claims = &self.claims;
        for (name, path) in [
            ("claims.user", &claims.user),
            ("claims.tenant", &claims.tenant),
            ("claims.role", &claims.role),
            ("claims.name", &claims.name),
            ("claims.email", &claims.email),
            ("claims.email_verified", &claims.email_verified),
            ("claims.audience", &claims.audience),
        ] {
            if path.len() > CLAIM_DEPTH_MAX {
                bail!("{name} has {} names: allowed are {CLAIM_DEPTH_MAX}", path.len());
            }
            check_texts(name, path)?;
        }
        if claims.user.is_empty() || claims.audience.is_empty() {
            bail!("claims.user and claims.audience must name a claim");
        }
        if claims.role.is_empty() != self.admin_roles.is_empty() {
            bail!("claims.role and admin_roles must be set together: the claim, and its values that mean an admin");
        }
        check_texts("admin_roles", &self.admin_roles)
    }

    fn check_tenants(&self) -> Result<()> {
        match (self.tenant.as_str(), self.claims.tenant.is_empty()) {
            ("", true) => bail!("tenant or claims.tenant must name the tenant of a token"),
            ("", false) => {}
            (_, false) => bail!("tenant and claims.tenant exclude each other"),
            (tenant, true) if !is_valid_name(tenant) => {
                bail!("tenant is {tenant:?}: allowed are a letter and up to 47 of a-z, 0-9 and _")
            }
            (_, true) if !self.tenants.is_empty() => {
                bail!("tenants maps the values of claims.tenant, which is not set")
            }
            (_, true) => {}
        }
        within("tenants (their number)", self.tenants.len() as u64, &(0..=10_000))?;
        for (value, tenant) in &self.tenants {
            check_text("tenants", value)?;
            if !is_valid_name(tenant) {
                bail!("tenants.{value:?} is {tenant:?}: allowed are a letter and up to 47 of a-z, 0-9 and _");
            }
        }
        Ok(())
    }

    /// The tenants that its tokens may name; `None` for all.
    fn allowed_tenants(&self) -> Option<BTreeSet<&str>> {
        match self.tenant.as_str() {
            "" if self.tenants.is_empty() => None,
            "" => Some(self.tenants.values().map(String::as_str).collect()),
            tenant => Some(BTreeSet::from([tenant])),
        }
    }

    /// Whether tokens of both may name one tenant.
    pub fn shares_a_tenant_with(&self, other: &Self) -> bool {
        match (self.allowed_tenants(), other.allowed_tenants()) {
            (Some(own), Some(others)) => !own.is_disjoint(&others),
            _ => true,
        }
    }
}

fn check_text(name: &str, text: &str) -> Result<()> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX || text.contains(char::is_control) {
        bail!("{name} must have 1 to {TEXT_BYTES_MAX} bytes and no control characters");
    }
    Ok(())
}

fn check_texts(name: &str, texts: &[String]) -> Result<()> {
    within(&format!("{name} (their number)"), texts.len() as u64, &(0..=100))?;
    texts.iter().try_for_each(|text| check_text(name, text))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Checks all providers, and that none can identify users of another.
pub(super) fn check_all(providers: &[Provider], own_issuer: &str) -> Result<()> {
    within("auth.providers (their number)", providers.len() as u64, &(0..=32))?;
    for (index, provider) in providers.iter().enumerate() {
        for field in provider.fields() {
            if let Some((bounds, value)) = field.bounded {
                within(&format!("auth.providers[{index}].{}", field.name), value, &bounds)?;
            }
        }
        provider
            .check()
            .map_err(|why| anyhow!("key `auth.providers[{index}]`: {why:#}"))?;
        if provider.issuer == own_issuer {
            bail!("key `auth.providers[{index}].issuer` is that of `auth.jwt_issuer`: the issuers must differ");
        }
        for (other, earlier) in providers[..index].iter().enumerate() {
            if provider.issuer == earlier.issuer {
                bail!(
                    "key `auth.providers[{index}].issuer` is that of `auth.providers[{other}]`: list a provider once"
                );
            }
            if provider.subject_prefix == earlier.subject_prefix && provider.shares_a_tenant_with(earlier) {
                bail!(
                    "key `auth.providers[{index}].subject_prefix` is that of `auth.providers[{other}]`, and tokens of both \
                     may name one tenant: give one of them a prefix, so that neither identifies users of the other"
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::super::tests::{comment, comments, load, refusal};
    use super::*;

    const GOOD: &str = "issuer: https://id.example.com, audience: posduif, jwks: https://id.example.com/keys";

    fn yaml(providers: &[&str]) -> String {
        let list: Vec<String> = providers.iter().map(|one| format!("{{{one}}}")).collect();
        format!("auth: {{providers: [{}]}}", list.join(", "))
    }

    #[test]
    fn provider_has_one_audience_or_several_and_nested_claims() {
        let text = "issuer: i, audience: [a, b], jwks: keys.json, claims: {user: id, tenant: [org, slug], role: \
                    'https://example.com/roles'}, admin_roles: [owner]";
        let config = load(&yaml(&[text]), &[]).unwrap();
        let provider = &config.auth.providers[0];
        assert_eq!(*provider.audience, ["a", "b"]);
        assert_eq!(*provider.claims.tenant, ["org", "slug"]);
        assert_eq!(*provider.claims.role, ["https://example.com/roles"]);
        assert_eq!(*provider.claims.name, ["name"]);
        assert_eq!(provider.jwks_source().unwrap(), JwksSource::File("keys.json".into()));
        // What `config show` prints is read as the same.
        let shown = serde_saphyr::to_string(&config.auth.providers).unwrap();
        let again: Vec<Provider> = serde_saphyr::from_str(&shown).unwrap();
        assert_eq!(again, config.auth.providers);
    }

    #[test]
    fn provider_from_the_environment_is_that_of_the_file() {
        let list = format!("[{{{GOOD}, tenant: acme}}]");
        let by_variable = load("", &[("POSDUIF__AUTH__PROVIDERS", &list)]).unwrap();
        assert_eq!(
            by_variable,
            load(&yaml(&[&format!("{GOOD}, tenant: acme")]), &[]).unwrap()
        );
        assert_ne!(by_variable, Config::default());
    }

    #[test]
    fn weak_algorithms_are_refused() {
        for bad in ["HS256", "HS384", "HS512", "none", "None", "ES512", "rs256"] {
            let text = refusal(&yaml(&[&format!("{GOOD}, tenant: acme, algorithms: [{bad}]")]), &[]);
            assert!(text.contains("algorithms[0]`") && text.contains("`EdDSA`"), "{text}");
        }
    }

    #[test]
    fn incomplete_or_contradictory_provider_is_refused_with_the_reason() {
        for (text, expected) in [
            ("tenant: acme, issuer: ''".to_owned(), "issuer must have"),
            ("issuer: i, jwks: f, tenant: acme".to_owned(), "audience must name"),
            ("issuer: i, audience: a, tenant: acme".to_owned(), "jwks must have"),
            (GOOD.to_owned(), "tenant or claims.tenant"),
            (format!("{GOOD}, tenant: Acme"), "tenant is \"Acme\""),
            (
                format!("{GOOD}, tenant: acme, claims: {{tenant: org}}"),
                "exclude each other",
            ),
            (format!("{GOOD}, tenant: acme, tenants: {{a: b}}"), "which is not set"),
            (
                format!("{GOOD}, claims: {{tenant: org}}, tenants: {{a: B}}"),
                "tenants.\"a\" is \"B\"",
            ),
            (
                format!("{GOOD}, tenant: acme, claims: {{user: ''}}"),
                "claims.user and claims.audience",
            ),
            (
                format!("{GOOD}, tenant: acme, claims: {{role: role}}"),
                "must be set together",
            ),
            (
                format!("{GOOD}, tenant: acme, admin_roles: [owner]"),
                "must be set together",
            ),
            (format!("{GOOD}, tenant: acme, algorithms: []"), "at least one"),
            (
                format!("{GOOD}, tenant: acme, leeway_seconds: 301"),
                "leeway_seconds` is 301",
            ),
            (
                format!("{GOOD}, tenant: acme, claims: {{name: [a, b, c, d, e, f, g, h, i]}}"),
                "allowed are 8",
            ),
            (
                format!("{GOOD}, tenant: acme, subject_prefix: \"a\\tb\""),
                "subject_prefix",
            ),
        ] {
            let text = refusal(&yaml(&[&text]), &[]);
            assert!(
                text.contains("`auth.providers[0]") && text.contains(expected),
                "{expected}: {text}"
            );
        }
        let text = refusal(
            "auth: {jwt_issuer: i, providers: [{issuer: i, audience: a, jwks: f, tenant: acme}]}",
            &[],
        );
        assert!(text.contains("`auth.jwt_issuer`"), "{text}");
    }

    #[test]
    fn keys_over_plain_http_are_allowed_on_this_machine_only() {
        let source = |jwks: &str| {
            let provider = Provider {
                jwks: jwks.into(),
                ..Provider::default()
            };
            provider.jwks_source().is_ok()
        };
        for good in [
            "https://id.example.com/keys?v=1",
            "http://127.0.0.1:1/k",
            "http://[::1]/k",
            "http://localhost/k",
        ] {
            assert!(source(good), "{good}");
        }
        for bad in [
            "http://id.example.com/keys",
            "http://localhost.example.com/keys",
            "http://127.0.0.1.example.com/keys",
            "http://127.0.0.1@id.example.com/keys",
            "https://me:hush@id.example.com/keys",
            "ftp://id.example.com/keys",
            "https://",
        ] {
            assert!(!source(bad), "{bad}");
        }
    }

    #[test]
    fn providers_that_could_identify_each_others_users_are_refused() {
        let one = "issuer: i, audience: a, jwks: f";
        let two = "issuer: j, audience: a, jwks: f";
        let pair = |a: &str, b: &str| load(&yaml(&[&format!("{one}, {a}"), &format!("{two}, {b}")]), &[]);
        for (a, b) in [
            ("tenant: acme", "tenant: acme"),
            ("tenant: acme", "claims: {tenant: org}"),
            ("tenant: acme", "claims: {tenant: org}, tenants: {x: acme}"),
            ("tenant: acme, subject_prefix: p", "tenant: acme, subject_prefix: p"),
        ] {
            let text = format!("{:#}", pair(a, b).unwrap_err());
            assert!(text.contains("`auth.providers[1].subject_prefix`"), "{text}");
        }
        for (a, b) in [
            ("tenant: acme", "tenant: globex"),
            ("tenant: acme", "tenant: acme, subject_prefix: p"),
            ("tenant: acme", "claims: {tenant: org}, tenants: {x: globex}"),
        ] {
            pair(a, b).unwrap();
        }
        let twice = refusal(
            &yaml(&[&format!("{one}, tenant: a"), &format!("{one}, tenant: b")]),
            &[],
        );
        assert!(twice.contains("list a provider once"), "{twice}");
    }

    /// The example in the shipped file, without the marks of its comment.
    fn example() -> String {
        let lines = include_str!("../../config/config.yaml").lines();
        let lines = lines
            .skip_while(|line| !line.contains("(docs/external-logins.md)"))
            .skip(1);
        let block = lines.take_while(|line| !line.starts_with("  providers:"));
        let text: Vec<&str> = block.map(|line| line.strip_prefix("  # ").unwrap()).collect();
        text.join("\n")
    }

    #[test]
    fn example_in_the_yaml_file_documents_every_key_as_declared() {
        let mut is_claim = false;
        let shown = comments(&example(), |line| {
            let (key, _) = line.split_once(':').filter(|_| !line.trim().starts_with('#'))?;
            let key = key.trim_start_matches([' ', '-']).to_owned();
            is_claim &= line.starts_with("      ");
            let name = if is_claim { format!("claims.{key}") } else { key.clone() };
            is_claim |= key == "claims";
            Some(name)
        });
        let provider = Provider::default();
        for (prefix, fields) in [("", provider.fields()), ("claims.", provider.claims.fields())] {
            for field in fields {
                let key = format!("{prefix}{}", field.name);
                let expected = comment(field.doc, field.name, field.bounded.as_ref().map(|(bounds, _)| bounds));
                assert_eq!(shown.get(&key), Some(&expected), "{key}");
            }
        }
    }

    #[test]
    fn example_in_the_yaml_file_is_a_provider_with_the_defaults() {
        let list: Vec<Provider> = serde_saphyr::from_str(&example()).unwrap();
        let [example] = &list[..] else { panic!("one provider") };
        check_all(&list, "posduif").unwrap();
        let own = Provider {
            issuer: example.issuer.clone(),
            audience: example.audience.clone(),
            jwks: example.jwks.clone(),
            tenant: example.tenant.clone(),
            ..Provider::default()
        };
        assert_eq!(*example, own);
    }

    #[test]
    fn server_without_any_login_is_refused() {
        let text = refusal("auth: {passwords: false}", &[]);
        assert!(
            text.contains("`auth.passwords`") && text.contains("`auth.providers`"),
            "{text}"
        );
        load(
            &yaml(&[&format!("{GOOD}, tenant: acme")]).replace("{providers", "{passwords: false, providers"),
            &[],
        )
        .unwrap();
    }
}
