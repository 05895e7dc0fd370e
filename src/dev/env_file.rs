//! `dev.env`: one `KEY=value` per line, to be sourced by a POSIX shell or split at the first `=`.

use std::path::Path;

use anyhow::Result;

use super::folder::write_private;

/// Writes the variables to a file that only its owner may read, since URLs contain passwords.
pub fn write(path: &Path, variables: &[(&str, &str)]) -> Result<()> {
    let text: String = variables
        .iter()
        .map(|(key, value)| format!("{key}={}\n", quote(value)))
        .collect();
    write_private(path, &text)
}

/// Quotes a text as one word of a POSIX shell; plain words are unchanged.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_urls_are_not_quoted() {
        let url = "postgres://posduif:0a1b@127.0.0.1:20001/posduif";
        assert_eq!(quote(url), url);
    }

    #[test]
    fn shell_metacharacters_are_quoted() {
        assert_eq!(quote(""), "''");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("p$1&x=`id`;#"), "'p$1&x=`id`;#'");
        assert_eq!(quote("it's"), r"'it'\''s'");
    }

    #[test]
    fn shell_reads_back_written_values() {
        let folder = super::super::folder::create_temporary().unwrap();
        let path = folder.join("dev.env");
        let value = "postgres://u:p'a \"$HOME\" \\ &?*@h/db?options=-c%20x\ny";
        write(&path, &[("DATABASE_URL", value), ("OTHER", "1")]).unwrap();
        let output = std::process::Command::new("sh")
            .args(["-c", ". \"$1\"; printf %s \"$DATABASE_URL\"", "sh"])
            .arg(&path)
            .output()
            .unwrap();
        super::super::folder::remove_all(&folder).unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
    }
}
