//! Links of documents to files of the repository and to headings.

use std::path::{Component, Path, PathBuf};

use super::source::File;

/// The links of a document that lead nowhere.
pub(super) fn broken(document: &File) -> Vec<(String, String)> {
    let folder = Path::new(&document.path).parent().unwrap_or(Path::new(""));
    let links = links(document);
    let broken = links.into_iter().filter_map(|(line, link)| {
        let (path, heading) = link.split_once('#').unwrap_or((&link, ""));
        let target = match path {
            "" => PathBuf::from(&document.path),
            path => normal(&folder.join(path)),
        };
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(&target);
        let cause = if !file.exists() {
            "leads to no file"
        } else if heading.is_empty() {
            return None;
        } else {
            let anchors = match path {
                "" => anchors(&document.text),
                _ => anchors(&std::fs::read_to_string(&file).unwrap_or_default()),
            };
            if anchors.iter().any(|anchor| anchor == heading) {
                return None;
            }
            "leads to no heading"
        };
        let path = &document.path;
        Some((
            path.clone(),
            format!("{path}:{line}: {link} {cause}. Fix: correct the link"),
        ))
    });
    broken.collect()
}

/// Links without a host, with their lines. Code has none.
fn links(document: &File) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut is_code = false;
    for (line, text) in document.lines() {
        is_code ^= text.trim_start().starts_with("```");
        if is_code {
            continue;
        }
        for part in text.split("](").skip(1) {
            let link = part.split([')', ' ']).next().unwrap_or_default();
            if !link.contains("://") && !link.starts_with("mailto:") {
                found.push((line, link.to_owned()));
            }
        }
    }
    found
}

/// The anchors of headings, as code hosts make them: words in lower case with hyphens between them, and a number behind one
/// that was there before.
fn anchors(document: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    let mut is_code = false;
    for line in document.lines() {
        is_code ^= line.trim_start().starts_with("```");
        let title = line.trim_start_matches('#');
        if is_code || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        // Of a link only its text is in the anchor.
        let mut text = String::new();
        for (index, part) in title.trim().split("](").enumerate() {
            text += match index {
                0 => part,
                _ => part.split_once(')').map_or("", |(_, rest)| rest),
            };
        }
        let anchor: String = text
            .to_lowercase()
            .chars()
            .filter_map(|char| match char {
                ' ' => Some('-'),
                '-' | '_' => Some(char),
                char => char.is_alphanumeric().then_some(char),
            })
            .collect();
        let same = anchors
            .iter()
            .filter(|other| {
                let rest = other.strip_prefix(&anchor).map(|rest| rest.trim_start_matches('-'));
                rest.is_some_and(|rest| rest.chars().all(|char| char.is_ascii_digit()))
            })
            .count();
        anchors.push(match same {
            0 => anchor,
            same => format!("{anchor}-{same}"),
        });
    }
    anchors
}

/// The path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}

#[test]
fn link_check_finds_missing_files_and_headings() {
    let text = "[a](README.md#posduif) [b](docs/absent.md)\n```\n[c](absent.md)\n```\n[d](#two-words) [e](#absent)\n\
                # Two `words`\n[f](https://example.com/absent) [g](README.md#absent)\n";
    let document = File::new("CONTRIBUTING.md", text);
    let anchors = anchors("# A b\n## A b\n### [L](x.md) of\n");
    assert_eq!(anchors, ["a-b", "a-b-1", "l-of"]);
    let lines: Vec<String> = broken(&document).into_iter().map(|(_, text)| text).collect();
    let expected = [
        "1: docs/absent.md leads to no file",
        "5: #absent",
        "7: README.md#absent",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.contains(&format!("CONTRIBUTING.md:{expected}")), "{line}");
    }
}
