//! What the claims of a verified token mean here.

use serde_json::{Map, Value};

use crate::config::Provider;
use crate::core::subject::Subject;
use crate::core::tenant::Tenant;

/// The claims of a token.
pub(super) type Claims = Map<String, Value>;

/// Most characters of a name or an email that are kept.
const TEXT_CHARS_MAX: usize = 255;

/// A claim that is refused although the signature is right: the provider, or the mapping of its claims, is misconfigured,
/// or its user wants more than granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedClaim {
    /// It has no subject that can be used.
    User,
    /// Its subject begins with the prefix of another provider.
    Prefix,
    /// It names no tenant, or none that the provider may name.
    Tenant,
    /// Its role is neither a text nor a list of texts.
    Role,
}

impl RefusedClaim {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user_claim",
            Self::Prefix => "subject_prefix",
            Self::Tenant => "tenant_claim",
            Self::Role => "role_claim",
        }
    }
}

/// What a token says of its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) tenant: Tenant,
    pub(super) subject: Subject,
    /// Whether the role means an admin; `None` where the provider has no claim for it.
    pub(super) is_admin: Option<bool>,
    pub(super) name: Option<String>,
    /// Only if the provider has verified it.
    pub(super) email: Option<String>,
}

/// Maps the claims of a provider's token. `prefixes` are those of the other providers.
pub(super) fn map(claims: &Claims, settings: &Provider, prefixes: &[String]) -> Result<Mapped, RefusedClaim> {
    let names = &settings.claims;
    let tenant = tenant(claims, settings).ok_or(RefusedClaim::Tenant)?;
    let user = find(claims, &names.user)
        .and_then(identifier)
        .ok_or(RefusedClaim::User)?;
    let own = settings.subject_prefix.as_str();
    let subject = Subject::new(own, &user).ok_or(RefusedClaim::User)?;
    // Of two prefixes that both fit, the longer one is the provider's whose users have it.
    if prefixes
        .iter()
        .any(|prefix| prefix.len() > own.len() && subject.as_str().starts_with(prefix))
    {
        return Err(RefusedClaim::Prefix);
    }
    let is_verified = find(claims, &names.email_verified) == Some(&Value::Bool(true));
    let text = |path: &[String]| find(claims, path).and_then(Value::as_str).and_then(short);
    Ok(Mapped {
        tenant,
        subject,
        is_admin: is_admin(claims, settings)?,
        name: text(&names.name),
        email: text(&names.email).filter(|_| is_verified),
    })
}

/// A claim by its path.
pub(super) fn find<'a>(claims: &'a Claims, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(claims.get(first)?, |value, name| value.get(name))
}

/// A text, or an integer as text.
fn identifier(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

fn tenant(claims: &Claims, settings: &Provider) -> Option<Tenant> {
    if !settings.tenant.is_empty() {
        return Tenant::named(&settings.tenant);
    }
    let value = find(claims, &settings.claims.tenant).and_then(identifier)?;
    if settings.tenants.is_empty() {
        return Tenant::named(&value);
    }
    settings.tenants.get(&value).and_then(|name| Tenant::named(name))
}

fn is_admin(claims: &Claims, settings: &Provider) -> Result<Option<bool>, RefusedClaim> {
    if settings.claims.role.is_empty() {
        return Ok(None);
    }
    let is_listed = |role: &str| settings.admin_roles.iter().any(|admin| admin == role);
    match find(claims, &settings.claims.role) {
        None | Some(Value::Null) => Ok(Some(false)),
        Some(Value::String(role)) => Ok(Some(is_listed(role))),
        Some(Value::Array(roles)) => {
            let roles: Option<Vec<&str>> = roles.iter().map(Value::as_str).collect();
            let roles = roles.ok_or(RefusedClaim::Role)?;
            Ok(Some(roles.into_iter().any(is_listed)))
        }
        Some(_) => Err(RefusedClaim::Role),
    }
}

/// A text of allowed length.
fn short(text: &str) -> Option<String> {
    let text = text.trim();
    let is_short = text.chars().nth(TEXT_CHARS_MAX).is_none() && !text.contains(char::is_control);
    (is_short && !text.is_empty()).then(|| text.to_owned())
}

/// Whether one of the audiences of a token is among the provider's.
pub(super) fn has_audience(claims: &Claims, settings: &Provider) -> bool {
    let is_listed = |audience: &str| settings.audience.iter().any(|own| own == audience);
    match find(claims, &settings.claims.audience) {
        Some(Value::String(audience)) => is_listed(audience),
        Some(Value::Array(audiences)) => audiences.iter().filter_map(Value::as_str).any(is_listed),
        _ => false,
    }
}

/// Seconds since 1970 (`NumericDate`, RFC 7519, section 2).
pub(super) fn seconds(claims: &Claims, name: &str) -> Option<i64> {
    /// Far beyond any time, and far from where sums overflow.
    const BOUND: i64 = 1_000_000_000_000;
    let value = claims.get(name)?;
    let fraction = value.as_f64().filter(|seconds| seconds.abs() < BOUND as f64);
    #[expect(clippy::cast_possible_truncation, reason = "within the bound")]
    let seconds = value.as_i64().or(fraction.map(|seconds| seconds.floor() as i64));
    seconds.filter(|seconds| (-BOUND..=BOUND).contains(seconds))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::config::Texts;

    fn claims(value: Value) -> Claims {
        serde_json::from_value(value).expect("an object")
    }

    fn provider() -> Provider {
        Provider {
            tenant: "acme".into(),
            audience: "posduif".into(),
            ..Provider::default()
        }
    }

    fn mapped(settings: &Provider, value: Value) -> Result<Mapped, RefusedClaim> {
        map(&claims(value), settings, &[])
    }

    #[test]
    fn claim_is_found_by_name_with_dots_or_by_path() {
        let claims = claims(json!({"https://example.com/role": "a", "realm": {"roles": ["b"]}, "text": "c"}));
        let found = |path: &[&str]| find(&claims, &Texts::from(path)).cloned();
        assert_eq!(found(&["https://example.com/role"]), Some(json!("a")));
        assert_eq!(found(&["realm", "roles"]), Some(json!(["b"])));
        for missing in [
            &["realm.roles"][..],
            &["realm", "x"],
            &["text", "roles"],
            &["realm", "roles", "0"],
            &[],
        ] {
            assert_eq!(found(missing), None, "{missing:?}");
        }
    }

    #[test]
    fn user_is_a_text_or_an_integer() {
        for (value, expected) in [
            (json!("auth0|1"), "auth0|1"),
            (json!(42), "42"),
            (json!(u64::MAX), "18446744073709551615"),
        ] {
            let subject = mapped(&provider(), json!({ "sub": value })).expect("mapped").subject;
            assert_eq!(subject.as_str(), expected);
        }
        for bad in [
            json!(null),
            json!(1.5),
            json!(true),
            json!(["a"]),
            json!({"a": 1}),
            json!(""),
            json!("a\0"),
        ] {
            assert_eq!(
                mapped(&provider(), json!({ "sub": bad })),
                Err(RefusedClaim::User),
                "{bad}"
            );
        }
        assert_eq!(mapped(&provider(), json!({})), Err(RefusedClaim::User));
    }

    #[test]
    fn subject_with_the_prefix_of_another_provider_is_refused() {
        let settings = |prefix: &str| Provider {
            subject_prefix: prefix.into(),
            ..provider()
        };
        let subject = |prefix: &str, sub: &str, others: &[&str]| {
            let others: Vec<String> = others.iter().map(|other| (*other).to_owned()).collect();
            let mapped = map(&claims(json!({ "sub": sub })), &settings(prefix), &others);
            mapped.map(|mapped| mapped.subject.to_string())
        };
        assert_eq!(subject("", "42", &["kc:"]), Ok("42".into()));
        assert_eq!(subject("", "kc:42", &["kc:"]), Err(RefusedClaim::Prefix));
        assert_eq!(subject("kc:", "42", &["", "ad:"]), Ok("kc:42".into()));
        assert_eq!(subject("k", "c:42", &["kc:"]), Err(RefusedClaim::Prefix));
        assert_eq!(subject("kc:", "ad:42", &["ad:"]), Ok("kc:ad:42".into()));
    }

    #[test]
    fn tenant_is_constant_claimed_or_mapped() {
        let tenant = |settings: &Provider, value: Value| mapped(settings, value).map(|mapped| mapped.tenant.name);
        assert_eq!(
            tenant(&provider(), json!({"sub": "a", "org": "globex"})),
            Ok("acme".into())
        );
        let mut settings = provider();
        settings.tenant.clear();
        settings.claims.tenant = Texts::from(&["org", "slug"][..]);
        let named = |name: Value| json!({"sub": "a", "org": {"slug": name}});
        assert_eq!(tenant(&settings, named(json!("globex"))), Ok("globex".into()));
        for bad in [
            json!("Globex"),
            json!("a/b"),
            json!(""),
            json!(7),
            json!(null),
            json!(["acme"]),
        ] {
            assert_eq!(
                tenant(&settings, named(bad.clone())),
                Err(RefusedClaim::Tenant),
                "{bad}"
            );
        }
        settings.tenants = [
            ("org_2Zk".to_owned(), "acme".to_owned()),
            ("7".to_owned(), "seven".to_owned()),
        ]
        .into();
        assert_eq!(tenant(&settings, named(json!("org_2Zk"))), Ok("acme".into()));
        assert_eq!(tenant(&settings, named(json!(7))), Ok("seven".into()));
        assert_eq!(tenant(&settings, named(json!("acme"))), Err(RefusedClaim::Tenant));
    }

    #[test]
    fn role_is_admin_for_listed_values_only() {
        let mut settings = provider();
        let role =
            |settings: &Provider, role: Value| mapped(settings, json!({"sub": "a", "role": role})).map(|m| m.is_admin);
        assert_eq!(role(&settings, json!("owner")), Ok(None));
        settings.claims.role = "role".into();
        settings.admin_roles = vec!["owner".into(), "admin".into()];
        for (value, expected) in [
            (json!("owner"), true),
            (json!(["reader", "admin"]), true),
            (json!("Owner"), false),
            (json!("owner admin"), false),
            (json!([]), false),
            (json!(null), false),
        ] {
            assert_eq!(role(&settings, value.clone()), Ok(Some(expected)), "{value}");
        }
        for bad in [json!(1), json!(true), json!({"owner": true}), json!(["owner", 1])] {
            assert_eq!(role(&settings, bad.clone()), Err(RefusedClaim::Role), "{bad}");
        }
        assert_eq!(
            mapped(&settings, json!({"sub": "a"})).map(|m| m.is_admin),
            Ok(Some(false))
        );
    }

    #[test]
    fn email_counts_only_if_the_provider_has_verified_it() {
        let email = |extra: Value| {
            let mut value = json!({"sub": "a", "email": "ann@example.com", "name": " Ann "});
            value["email_verified"] = extra;
            let mapped = mapped(&provider(), value).expect("mapped");
            assert_eq!(mapped.name.as_deref(), Some("Ann"));
            mapped.email
        };
        assert_eq!(email(json!(true)).as_deref(), Some("ann@example.com"));
        for unverified in [json!(false), json!(null), json!("true"), json!(1)] {
            assert_eq!(email(unverified), None);
        }
    }

    #[test]
    fn audience_is_a_text_or_in_a_list() {
        let has = |audience: Value| has_audience(&claims(json!({ "aud": audience })), &provider());
        assert!(has(json!("posduif")) && has(json!(["other", "posduif"])));
        for bad in [
            json!("other"),
            json!("posduif "),
            json!([]),
            json!([["posduif"]]),
            json!({"posduif": 1}),
            json!(null),
        ] {
            assert!(!has(bad.clone()), "{bad}");
        }
        assert!(!has_audience(&Claims::new(), &provider()));
    }

    #[test]
    fn times_are_bounded_numbers() {
        let claims = claims(json!({"a": 7, "b": 7.9, "c": "7", "d": 1e300, "e": i64::MIN, "f": -1.5}));
        let found = ["a", "b", "c", "d", "e", "f", "g"].map(|name| seconds(&claims, name));
        assert_eq!(found, [Some(7), Some(7), None, None, None, Some(-2), None]);
    }

    proptest! {
        #[test]
        fn any_claims_are_mapped_or_refused(sub in ".{0,400}", role in ".{0,20}", number in any::<f64>(), depth in 0..60_usize) {
            let mut nested = json!(number);
            for _ in 0..depth {
                nested = json!({"role": nested});
            }
            let mut settings = provider();
            settings.claims.role = Texts::from(&["role"; 8][..]);
            settings.admin_roles = vec![role.clone()];
            for value in [json!({"sub": sub, "role": role}), json!({"sub": sub, "role": nested})] {
                if let Ok(mapped) = mapped(&settings, value) {
                    prop_assert_eq!(mapped.subject.as_str(), sub.as_str());
                }
            }
        }
    }
}
