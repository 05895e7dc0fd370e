//! Settings from the environment, and secrets from the files that it names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;

use anyhow::{Context as _, Result, anyhow, bail};

use super::{ENV_PREFIX, SECRETS, variable};

/// Ends the names of variables that name a file with the value.
const FILE_SUFFIX: &str = "__file";

/// Largest file with a secret.
const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

/// The dotted paths of keys and their values, later ones winning.
///
/// # Errors
/// When a file with a secret cannot be read, and when a key is set twice.
pub(super) fn overrides(env: impl IntoIterator<Item = (String, String)>) -> Result<Vec<(String, String)>> {
    let mut plain: Vec<(String, String)> = Vec::new();
    let mut overrides: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in env {
        let path = match name.as_str() {
            "DATABASE_URL" => {
                plain.push(("postgres.url".into(), value));
                continue;
            }
            "REDIS_URL" => {
                plain.push(("redis.url".into(), value));
                continue;
            }
            _ => match name.strip_prefix(ENV_PREFIX) {
                Some(path) => path.to_ascii_lowercase(),
                None => continue,
            },
        };
        let (path, value) = match path.strip_suffix(FILE_SUFFIX) {
            Some(path) => {
                let path = path.replace("__", ".");
                let value = secret_of_file(&name, &path, &value)?;
                (path, value)
            }
            None => (path.replace("__", "."), value),
        };
        if overrides.contains_key(&path) {
            let name = variable(&path);
            bail!("key `{path}` is set twice: {name} or {name}__FILE, not both");
        }
        overrides.insert(path, value);
    }
    // The prefixed names win.
    Ok(plain.into_iter().chain(overrides).collect())
}

/// The value of a secret key in the file that a variable names, without the line break at its end.
fn secret_of_file(name: &str, path: &str, file: &str) -> Result<String> {
    if !SECRETS.contains(&path) {
        bail!(
            "environment variable {name}: only secret keys are read from files: {}",
            SECRETS.join(", ")
        );
    }
    read_secret(&format!("environment variable {name}"), file)
}

/// A secret in a file, without the line break at its end. `named_by` is what names the file.
pub(super) fn read_secret(named_by: &str, file: &str) -> Result<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(file)?
            .take(SECRET_FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().with_context(|| format!("{named_by}: cannot read {file}"))?;
    if bytes.len() as u64 > SECRET_FILE_BYTES_MAX {
        bail!("{named_by}: {file} has more than {SECRET_FILE_BYTES_MAX} bytes");
    }
    // Without the error, which has the bytes.
    let Ok(text) = String::from_utf8(bytes) else {
        bail!("{named_by}: {file} is not UTF-8");
    };
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

/// The variables of the process that are settings. Other variables need not be UTF-8.
pub(super) fn of_process() -> Result<Vec<(String, String)>> {
    std::env::vars_os()
        .filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let is_ours = name.starts_with(ENV_PREFIX) || matches!(name.as_str(), "DATABASE_URL" | "REDIS_URL");
            is_ours.then(|| match value.into_string() {
                Ok(value) => Ok((name, value)),
                Err(_) => Err(anyhow!("environment variable {name} is not UTF-8")),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::super::tests::{load, refusal};
    use super::*;

    /// A file with these bytes, removed when it is dropped.
    struct SecretFile(std::path::PathBuf);

    impl SecretFile {
        fn new(bytes: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("posduif-secret-{}", uuid::Uuid::new_v4().simple()));
            std::fs::write(&path, bytes).unwrap();
            Self(path)
        }

        fn name(&self) -> &str {
            self.0.to_str().unwrap()
        }
    }

    impl Drop for SecretFile {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).unwrap();
        }
    }

    #[test]
    fn every_secret_key_is_read_from_a_file() {
        for key in SECRETS {
            let value = match key {
                _ if key.ends_with("previous_secrets") => "[\"whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3\"]",
                "push.webhook_secret" => "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3",
                "telemetry.otlp_headers" => "key=value",
                _ => "a value: of its own, which is long",
            };
            let file = SecretFile::new(format!("{value}\n").as_bytes());
            let name = variable(key);
            let by_file = load("", &[(&format!("{name}__FILE"), file.name())]).unwrap();
            assert_eq!(by_file, load("", &[(&name, value)]).unwrap(), "{key}");
            assert_ne!(by_file, Config::default(), "{key}");
        }
    }

    #[test]
    fn secret_of_a_file_wins_over_the_plain_variable_and_keeps_inner_lines() {
        let file = SecretFile::new(b"postgres://of-file\r\n");
        let env = [
            ("POSDUIF__POSTGRES__URL__FILE", file.name()),
            ("DATABASE_URL", "postgres://plain"),
        ];
        let config = load("postgres: {url: 'postgres://yaml'}", &env).unwrap();
        assert_eq!(config.postgres.url.expose(), "postgres://of-file");
        let file = SecretFile::new(b" a\nb \n\n");
        let config = load("", &[("POSDUIF__AUTH__JWT_SECRET__FILE", file.name())]).unwrap();
        assert_eq!(config.auth.jwt_secret.expose(), " a\nb \n");
    }

    #[test]
    fn unusable_secret_file_is_refused_by_name_without_its_content() {
        let [good, binary, large] = [
            SecretFile::new(b"hush"),
            SecretFile::new(b"hush\xff"),
            SecretFile::new(&[b'h'; 65 * 1024]),
        ];
        for (name, file, expected) in [
            (
                "POSDUIF__AUTH__JWT_SECRET__FILE",
                "/nonexistent/secret",
                "cannot read /nonexistent/secret",
            ),
            ("POSDUIF__AUTH__JWT_SECRET__FILE", "", "cannot read"),
            ("POSDUIF__AUTH__JWT_SECRET__FILE", binary.name(), "is not UTF-8"),
            ("POSDUIF__AUTH__JWT_SECRET__FILE", large.name(), "more than 65536 bytes"),
            ("POSDUIF__SERVER__PORT__FILE", good.name(), "only secret keys"),
            ("POSDUIF__NOTHING__FILE", good.name(), "only secret keys"),
        ] {
            let text = refusal("", &[(name, file)]);
            assert!(
                text.contains(name) && text.contains(expected) && !text.contains("hush"),
                "{text}"
            );
        }
        for pair in [
            ["POSDUIF__AUTH__JWT_SECRET", "POSDUIF__AUTH__JWT_SECRET__FILE"],
            ["POSDUIF__AUTH__JWT_SECRET__FILE", "POSDUIF__AUTH__JWT_SECRET"],
        ] {
            let value = |name: &str| if name.ends_with("FILE") { good.name() } else { "other" };
            let text = refusal("", &[(pair[0], value(pair[0])), (pair[1], value(pair[1]))]);
            assert!(text.contains("is set twice"), "{text}");
        }
    }
}
