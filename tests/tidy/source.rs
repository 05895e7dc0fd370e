//! Rust files as the checks read them: without comments and tests, as tokens, paths and literals.

use std::collections::BTreeMap;
use std::path::Path;

/// A text file of the repository.
pub(super) struct File {
    /// Its path from the root of the repository.
    pub(super) path: String,
    pub(super) text: String,
}

impl File {
    pub(super) fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    /// The lines, from 1.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// The module that the file is, as names below `crate`.
    pub(super) fn module(&self) -> Vec<&str> {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let path = path.trim_end_matches("/mod");
        if path == "lib" || path == "main" {
            Vec::new()
        } else {
            path.split('/').collect()
        }
    }

    /// The first name of the module, which is the folder, or the file beside the folders.
    pub(super) fn folder(&self) -> &str {
        self.module().first().copied().unwrap_or_default()
    }
}

/// All text files below the given folders and all given files, in order of their paths.
pub(super) fn files(places: &[&str], extensions: &[&str]) -> Vec<File> {
    fn walk(root: &Path, path: &str, extensions: &[&str], found: &mut Vec<File>) {
        let whole = root.join(path);
        if whole.is_dir() {
            for entry in std::fs::read_dir(&whole).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if !matches!(name.as_str(), "target" | "corpus" | "data" | "node_modules" | "dist") {
                    walk(root, &format!("{path}/{name}"), extensions, found);
                }
            }
        } else if extensions.is_empty() || extensions.iter().any(|extension| path.ends_with(extension)) {
            // Pictures are no text.
            if let Ok(text) = std::fs::read_to_string(&whole) {
                found.push(File::new(path, &text));
            }
        }
    }
    let mut found = Vec::new();
    for place in places {
        walk(Path::new(env!("CARGO_MANIFEST_DIR")), place, extensions, &mut found);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The Rust files of `src`.
pub(super) fn sources() -> Vec<File> {
    files(&["src"], &[".rs"])
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A name or a keyword.
    Name(String),
    /// The text of a string literal, escapes as they are written.
    Literal(String),
    /// `::`
    PathSeparator,
    /// Any other character.
    Mark(char),
}

/// The tokens of Rust code and their lines, without comments, lifetimes, numbers, and whatever is `#[cfg(test)]`.
pub(super) fn tokens(text: &str) -> Vec<(usize, Token)> {
    without_tests(lex(text))
}

fn lex(text: &str) -> Vec<(usize, Token)> {
    let mut tokens = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let literal = if matches!(first, 'b' | 'c' | 'r' | '"') {
            string(rest)
        } else {
            None
        };
        let (length, token) = if first.is_whitespace() {
            (rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len()), None)
        } else if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), None)
        } else if rest.starts_with("/*") {
            (rest.find("*/").map_or(rest.len(), |end| end + 2), None)
        } else if let Some((length, literal)) = literal {
            (length, Some(Token::Literal(literal.to_owned())))
        } else if let Some(length) = character(rest) {
            (length, None)
        } else if first.is_alphanumeric() || first == '_' {
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            let is_name = !first.is_ascii_digit();
            (end, is_name.then(|| Token::Name(rest[..end].to_owned())))
        } else if rest.starts_with("::") {
            (2, Some(Token::PathSeparator))
        } else {
            (first.len_utf8(), Some(Token::Mark(first)))
        };
        tokens.extend(token.map(|token| (line, token)));
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

/// A string literal at the beginning: its length, and what is between its quotes.
fn string(text: &str) -> Option<(usize, &str)> {
    let prefix = ["br", "cr", "r", "b", "c", ""].into_iter().find(|prefix| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with(['"', '#']))
    })?;
    let hashes = text[prefix.len()..].chars().take_while(|c| *c == '#').count();
    let start = prefix.len() + hashes + 1;
    if !text[prefix.len() + hashes..].starts_with('"') || (hashes > 0 && !prefix.ends_with('r')) {
        return None;
    }
    let end = if prefix.ends_with('r') {
        start + text[start..].find(&format!("\"{}", "#".repeat(hashes)))?
    } else {
        let mut is_escaped = false;
        start
            + text[start..].find(|c| {
                let ends = c == '"' && !is_escaped;
                is_escaped = c == '\\' && !is_escaped;
                ends
            })?
    };
    Some((end + 1 + hashes, &text[start..end]))
}

/// The length of a character literal or a lifetime at the beginning.
fn character(text: &str) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    let mut characters = rest.char_indices();
    let (_, first) = characters.next()?;
    if first == '\\' {
        return Some(3 + rest[2..].find('\'')?);
    }
    match characters.next() {
        Some((at, '\'')) => Some(at + 2),
        _ => Some(
            1 + rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len()),
        ),
    }
}

/// Leaves out the items under `#[cfg(test)]`.
fn without_tests(tokens: Vec<(usize, Token)>) -> Vec<(usize, Token)> {
    let attribute = ['#', '[', 'c', '(', 't', ')', ']'];
    let is_attribute = |at: &[(usize, Token)]| {
        at.len() >= attribute.len()
            && at.iter().zip(attribute).all(|((_, token), expected)| match token {
                Token::Name(name) => (expected == 'c' && name == "cfg") || (expected == 't' && name == "test"),
                token => *token == Token::Mark(expected),
            })
    };
    let mut left = Vec::new();
    let mut rest = tokens.as_slice();
    while !rest.is_empty() {
        if is_attribute(rest) {
            rest = &rest[attribute.len()..];
            rest = &rest[end_of_item(rest)..];
        } else {
            left.push(rest[0].clone());
            rest = &rest[1..];
        }
    }
    left
}

/// The number of tokens of an item: up to `;`, or to the end of its braces.
fn end_of_item(tokens: &[(usize, Token)]) -> usize {
    let mut depth = 0_usize;
    let is_use = tokens.iter().take_while(|(_, token)| *token != Token::Mark('{'));
    let is_use = is_use.into_iter().any(|(_, token)| *token == Token::Name("use".into()));
    for (index, (_, token)) in tokens.iter().enumerate() {
        match token {
            Token::Mark('{' | '(' | '[') => depth += 1,
            Token::Mark('}' | ')' | ']') => {
                depth = depth.saturating_sub(1);
                if depth == 0 && *token == Token::Mark('}') && !is_use {
                    return index + 1;
                }
            }
            Token::Mark(';') if depth == 0 => return index + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// The paths of a file to its own crate, with their lines: those after `crate`, and those after `super`, `self` or the
/// name of a module below the file, resolved.
pub(super) fn paths(file: &File, modules: &BTreeMap<Vec<String>, String>) -> Vec<(usize, Vec<String>)> {
    let here: Vec<String> = file.module().iter().map(|name| (*name).to_owned()).collect();
    let tokens = tokens(&file.text);
    let mut found = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        let is_path = matches!(tokens.get(index + 1), Some((_, Token::PathSeparator)));
        let is_behind = index > 0 && tokens[index - 1].1 == Token::PathSeparator;
        match &tokens[index].1 {
            Token::Name(name) if name == "use" => {
                index = tree(&tokens, index + 1, &[], &mut found);
                continue;
            }
            Token::Name(name) if is_path && !is_behind && matches!(name.as_str(), "crate" | "super" | "self") => {
                index = tree(&tokens, index, &[], &mut found);
                continue;
            }
            _ => index += 1,
        }
    }
    let resolve = |path: Vec<String>| {
        let up = path.iter().take_while(|name| *name == "super").count();
        let is_own = path[0] == "self" || up > 0;
        let base = match path[0].as_str() {
            "crate" => return Some(path[1..].to_vec()),
            _ if is_own => &here[..here.len().saturating_sub(up)],
            _ => here.as_slice(),
        };
        let rest = &path[if path[0] == "self" { 1 } else { up }..];
        let whole = [base, rest].concat();
        (is_own || modules.contains_key(&whole[..=here.len()])).then_some(whole)
    };
    let resolved = found
        .into_iter()
        .filter_map(|(line, path)| Some((line, resolve(path)?)));
    resolved.collect()
}

/// Reads the tree of a `use`, or a path; returns where it ends.
fn tree(
    tokens: &[(usize, Token)],
    mut index: usize,
    prefix: &[String],
    found: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let mut path = prefix.to_vec();
    let line = tokens.get(index).map_or(0, |(line, _)| *line);
    loop {
        match tokens.get(index).map(|(_, token)| token) {
            Some(Token::Name(name)) => path.push(name.clone()),
            Some(Token::Mark('{')) => {
                index += 1;
                while index < tokens.len() && tokens[index].1 != Token::Mark('}') {
                    let next = tree(tokens, index, &path, found);
                    // Past the name behind `as`, and the comma.
                    index = next.max(index + 1);
                    while !matches!(
                        tokens.get(index).map(|(_, token)| token),
                        None | Some(Token::Mark('}') | Token::Name(_))
                    ) {
                        index += 1;
                    }
                }
                return index + 1;
            }
            _ => break,
        }
        index += 1;
        if !matches!(tokens.get(index), Some((_, Token::PathSeparator))) {
            break;
        }
        index += 1;
    }
    if path.len() > prefix.len() {
        found.push((line, path));
    }
    if matches!(tokens.get(index), Some((_, Token::Name(name))) if name == "as") {
        index += 2;
    }
    index
}
