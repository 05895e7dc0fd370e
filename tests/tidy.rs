//! The rules of the house, as far as reading files can check them: which folder may import which, words, lengths, and the
//! invariants that `src/lib.rs` states. Each failure names a file, a line and the fix.
//!
//! What breaks a rule today is listed in `tests/tidy/exceptions.rs`. A list may only become shorter: an exception that is not
//! needed fails, too.

mod exceptions;
mod links;
mod source;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use self::source::{File, Token, files, paths, sources, tokens};

/// Lines of Markdown and names of tests are at most this long, files of `src` have at most so many lines.
const MARKDOWN_WIDTH: usize = 120;
const TEST_NAME_WIDTH: usize = 70;
const FILE_LINES: usize = 800;
/// The most files that may import each other in a circle.
const CIRCLE: usize = 3;

/// Every folder may import these, but for themselves: their own rows say what they may.
const BASE: [&str; 3] = ["core", "config", "telemetry"];

/// What breaks a rule: under which exception it may stand, and what is printed.
type Finding<K> = (K, String);

/// Fails with what no exception covers, and with exceptions that cover nothing.
fn check<K: Ord + Clone + Debug>(findings: &[Finding<K>], exceptions: &[K]) {
    let failures = failures(findings, exceptions);
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}

fn failures<K: Ord + Clone + Debug>(findings: &[Finding<K>], exceptions: &[K]) -> Vec<String> {
    let found: BTreeSet<&K> = findings.iter().map(|(key, _)| key).collect();
    let excepted: BTreeSet<&K> = exceptions.iter().collect();
    let failing = findings.iter().filter(|(key, _)| !excepted.contains(key));
    let unneeded = excepted.difference(&found);
    failing
        .map(|(_, text)| text.clone())
        .chain(unneeded.map(|key| {
            format!("tests/tidy/exceptions.rs: {key:?} is not needed any more. Fix: remove it from its list")
        }))
        .collect()
}

fn owned(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

// Imports.

/// The folders of `src` in the order of the table in `lib.rs`, with the folders that each may import.
fn arrows(lib: &str) -> Vec<(String, BTreeSet<String>)> {
    let mut rows: Vec<(String, BTreeSet<String>)> = Vec::new();
    for line in lib.lines().filter_map(|line| line.strip_prefix("//! | `")) {
        let Some((folder, targets)) = line.split_once("` | ") else {
            continue;
        };
        let targets = targets.trim_end_matches(" |");
        let mut allowed: BTreeSet<String> = match targets {
            "nothing" => BTreeSet::new(),
            "everything above" => rows.iter().map(|(name, _)| name.clone()).collect(),
            targets => targets
                .split(", ")
                .map(|name| name.trim_matches('`').to_owned())
                .collect(),
        };
        if !BASE.contains(&folder) {
            allowed.extend(BASE.map(str::to_owned));
        }
        rows.push((folder.to_owned(), allowed));
    }
    rows
}

/// Imports against the arrows.
fn reversed(arrows: &[(String, BTreeSet<String>)], sources: &[File]) -> Vec<Finding<(String, String)>> {
    let modules = modules(sources);
    let allowed: BTreeMap<&str, &BTreeSet<String>> = arrows
        .iter()
        .map(|(folder, targets)| (folder.as_str(), targets))
        .collect();
    let mut findings = Vec::new();
    for file in sources.iter().filter(|file| !file.module().is_empty()) {
        let from = file.folder();
        for (line, path) in paths(file, &modules) {
            let Some(to) = path
                .first()
                .filter(|to| *to != from && allowed.contains_key(to.as_str()))
            else {
                continue;
            };
            if !allowed.get(from).is_some_and(|targets| targets.contains(to)) {
                let text = format!(
                    "{}:{line}: `{from}` imports `{}`, but the table in src/lib.rs has no arrow from `{from}` to `{to}`. \
                     Fix: move the item down, or register a listener from `engine` or `api`",
                    file.path,
                    path.join("::")
                );
                findings.push(((from.to_owned(), to.clone()), text));
            }
        }
    }
    findings
}

fn modules(sources: &[File]) -> BTreeMap<Vec<String>, String> {
    let own = |file: &File| file.module().iter().map(|name| (*name).to_owned()).collect();
    let files = sources.iter().filter(|file| file.path != "src/main.rs");
    files.map(|file| (own(file), file.path.clone())).collect()
}

/// The files that a file imports, and those that they import, and so on.
fn reachable<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &'a str) -> BTreeSet<&'a str> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(file) = next.pop() {
        next.extend(
            edges
                .get(file)
                .into_iter()
                .flatten()
                .filter(|target| seen.insert(**target)),
        );
    }
    seen
}

/// Circles of files that import each other, larger than allowed; `http` and `api` may have one.
fn circles(sources: &[File]) -> Vec<Vec<String>> {
    let modules = modules(sources);
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for file in sources {
        let targets = edges.entry(&file.path).or_default();
        for (_, mut path) in paths(file, &modules) {
            while !path.is_empty() && !modules.contains_key(&path) {
                path.pop();
            }
            targets.extend(
                modules
                    .get(&path)
                    .filter(|target| !path.is_empty() && **target != file.path)
                    .map(String::as_str),
            );
        }
    }
    let reached: BTreeMap<&str, BTreeSet<&str>> = edges.keys().map(|file| (*file, reachable(&edges, file))).collect();
    let mut circles = BTreeSet::new();
    for (file, targets) in &reached {
        let circle: Vec<String> = targets
            .iter()
            .filter(|target| reached[**target].contains(file))
            .map(|target| (*target).to_owned())
            .collect();
        let is_excepted = circle
            .iter()
            .all(|file| file.starts_with("src/api/") || file.starts_with("src/http/"));
        if circle.len() > CIRCLE && !is_excepted {
            circles.insert(circle);
        }
    }
    circles.into_iter().collect()
}

#[test]
fn folders_import_along_the_arrows_of_lib_rs_only() {
    let sources = sources();
    let arrows = arrows(include_str!("../src/lib.rs"));
    let mut above = BTreeSet::from(BASE.map(str::to_owned));
    for (folder, targets) in &arrows {
        let below: Vec<_> = targets.difference(&above).collect();
        assert!(
            below.is_empty(),
            "src/lib.rs: the row of `{folder}` names {below:?}, which are not above it. Fix: order the rows so that arrows point up"
        );
        above.insert(folder.clone());
    }
    let declared: BTreeSet<&str> = arrows.iter().map(|(folder, _)| folder.as_str()).collect();
    let folders: BTreeSet<&str> = sources
        .iter()
        .map(File::folder)
        .filter(|folder| !folder.is_empty())
        .collect();
    assert_eq!(
        declared, folders,
        "src/lib.rs: its table has not the folders of src. Fix: add or remove rows"
    );

    let known: Vec<(String, String)> = exceptions::ARROWS
        .iter()
        .map(|(from, to)| ((*from).into(), (*to).into()))
        .collect();
    check(&reversed(&arrows, &sources), &known);
}

#[test]
fn import_circles_have_at_most_three_files() {
    let circles = circles(&sources());
    let sizes: Vec<usize> = circles.iter().map(Vec::len).collect();
    assert_eq!(
        sizes,
        exceptions::CIRCLES,
        "\nthese files import each other in circles:\n{}\nFix: move what both need into a file that imports neither; \
         when a circle is gone, remove it from CIRCLES in tests/tidy/exceptions.rs",
        circles
            .iter()
            .map(|circle| circle.join(" "))
            .collect::<Vec<_>>()
            .join("\n")
    );
}

// Words.

/// The folder of `src` or the file to which an exception of words belongs.
fn place(path: &str) -> String {
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["src", folder, _, ..] => format!("src/{folder}"),
        _ => path.to_owned(),
    }
}

fn banned(file: &File) -> Vec<Finding<String>> {
    let mut findings = Vec::new();
    let possible = words::possible(&format!("{}\n{}", file.path, file.text));
    for (line, text) in std::iter::once((0, file.path.as_str())).chain(file.lines()) {
        for (phrase, instead) in words::phrases(text, &possible) {
            let text = format!("{}:{line}: \"{phrase}\". Fix: write {instead}", file.path);
            findings.push((place(&file.path), text));
        }
    }
    if file.path.ends_with(".rs") && words::NAMES.iter().any(|(name, _)| file.text.contains(name)) {
        for (line, token) in tokens(&file.text) {
            let Token::Name(name) = token else { continue };
            if let Some((_, instead)) = words::NAMES.iter().find(|(banned, _)| *banned == name) {
                let text = format!("{}:{line}: the name `{name}`. Fix: use {instead}", file.path);
                findings.push((place(&file.path), text));
            }
        }
    }
    findings
}

#[test]
fn phrases_of_the_glossary_are_not_used() {
    // Not the migrations: those that were released do not change.
    let places = [
        "src",
        "tests",
        "benches",
        "fuzz",
        "docs",
        "config",
        "deploy",
        "scripts",
        "examples",
        "sql",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Cargo.toml",
        "Dockerfile",
        "docker-compose.yml",
    ];
    let files = files(&places, &[]);
    let findings: Vec<_> = files
        .iter()
        .filter(|file| !file.path.starts_with("tests/tidy"))
        .flat_map(banned)
        .collect();
    check(&findings, &owned(exceptions::WORDS));
}

// Shapes.

/// Lines of Markdown that are too long; tables, code blocks and lines of a single link may be.
fn wide(file: &File) -> Vec<Finding<String>> {
    let mut findings = Vec::new();
    let mut is_code = false;
    for (line, text) in file.lines() {
        let trimmed = text.trim_start();
        is_code ^= trimmed.starts_with("```");
        let is_link = !trimmed.trim_start_matches(['-', '*', '>']).trim().contains(' ')
            || trimmed.starts_with('[') && trimmed.contains("]: ");
        let width = text.chars().count();
        if width > MARKDOWN_WIDTH && !is_code && !trimmed.starts_with('|') && !is_link {
            let text = format!(
                "{}:{line}: {width} characters. Fix: break the line at {MARKDOWN_WIDTH}",
                file.path
            );
            findings.push((file.path.clone(), text));
        }
    }
    findings
}

#[test]
fn markdown_lines_fit_120_characters() {
    let files = files(&["docs", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"], &[".md"]);
    let findings: Vec<_> = files.iter().flat_map(wide).collect();
    check(&findings, &owned(exceptions::WIDE_MARKDOWN));
}

#[test]
fn links_of_documents_lead_to_files_and_headings() {
    let documents = files(
        &[
            "docs",
            "README.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "clients/typescript/README.md",
            "examples",
        ],
        &[".md"],
    );
    let findings: Vec<_> = documents.iter().flat_map(links::broken).collect();
    check(&findings, &[]);
}

#[test]
fn source_files_have_at_most_800_lines() {
    let long = sources().into_iter().filter_map(|file| {
        let lines = file.text.lines().count();
        let text = format!(
            "{}: {lines} lines. Fix: split it so that each part has at most {FILE_LINES}",
            file.path
        );
        (lines > FILE_LINES).then_some((file.path, text))
    });
    check(&long.collect::<Vec<_>>(), &owned(exceptions::LONG_FILES));
}

/// The names of a file's tests, with their lines.
fn tests_of(file: &File) -> Vec<(usize, String)> {
    let mut names = Vec::new();
    let mut is_test = false;
    for (line, text) in file.lines() {
        let text = text.trim_start();
        let declaration = text.strip_prefix("async ").unwrap_or(text);
        match declaration.strip_prefix("fn ").and_then(|rest| rest.split_once('(')) {
            Some((name, _)) => {
                if std::mem::take(&mut is_test) {
                    names.push((line, name.to_owned()));
                }
            }
            None => is_test |= text.starts_with("#[test]") || text.starts_with("#[tokio::test"),
        }
    }
    names
}

#[test]
fn test_names_fit_70_characters() {
    let findings: Vec<Finding<String>> = files(&["src", "tests", "benches"], &[".rs"])
        .iter()
        .flat_map(|file| tests_of(file).into_iter().map(|(line, name)| (line, name, file.path.clone())))
        .filter(|(_, name, _)| name.len() > TEST_NAME_WIDTH)
        .map(|(line, name, path)| {
            let text = format!(
                "{path}:{line}: the name of the test has {} characters. Fix: name it subject_condition_outcome in at most \
                 {TEST_NAME_WIDTH}",
                name.len()
            );
            (place(&path), text)
        })
        .collect();
    check(&findings, &owned(exceptions::LONG_TEST_NAMES));
}

#[test]
fn tests_add_no_sleep() {
    let count = |file: &File| {
        let tokens = tokens(&file.text);
        tokens
            .iter()
            .filter(|(_, token)| *token == Token::Name("sleep".into()))
            .count()
    };
    let sleeping: Vec<(String, usize)> = files(&["tests"], &[".rs"])
        .iter()
        .map(|file| (file.path.clone(), count(file)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let known: Vec<(String, usize)> = exceptions::SLEEPS
        .iter()
        .map(|(path, count)| ((*path).into(), *count))
        .collect();
    assert_eq!(
        sleeping, known,
        "\nFix: wait for what must happen by `support::eventually`; where a sleep is gone, lower the count in \
         tests/tidy/exceptions.rs"
    );
}

// Invariants of `src/lib.rs`.

fn inside(places: &'static [&'static str]) -> impl Fn(&str) -> bool {
    move |path| places.iter().any(|place| path.starts_with(place))
}

fn outside(places: &'static [&'static str]) -> impl Fn(&str) -> bool {
    move |path| !inside(places)(path)
}

/// The places of code that match, in the files of `src` that are to be checked and contain one of `texts`.
fn matching(
    is_checked: impl Fn(&str) -> bool,
    texts: &[&str],
    fix: &str,
    is_match: impl Fn(&[(usize, Token)]) -> bool,
) -> Vec<Finding<String>> {
    let mut findings = Vec::new();
    for file in sources() {
        if !is_checked(&file.path) || !texts.iter().any(|text| file.text.contains(text)) {
            continue;
        }
        let tokens = tokens(&file.text);
        for index in (0..tokens.len()).filter(|index| is_match(&tokens[*index..])) {
            findings.push((file.path.clone(), format!("{}:{}: {fix}", file.path, tokens[index].0)));
        }
    }
    findings
}

fn is_name(tokens: &[(usize, Token)], names: &[&str]) -> bool {
    matches!(tokens.first(), Some((_, Token::Name(name))) if names.contains(&name.as_str()))
}

fn is_literal(tokens: &[(usize, Token)], texts: &[&str]) -> bool {
    matches!(tokens.first(), Some((_, Token::Literal(text))) if texts.contains(&text.as_str()))
}

/// The fields of an entry of a tenant's streams, of the pushes, and of the checkpoint.
const FIELDS: [&str; 9] = ["op", "schema", "table", "ts", "xid", "event", "row", "old", "unchanged"];

/// Whether a field's name stands in a call that reads or writes an entry.
fn is_entry_field(tokens: &[(usize, Token)]) -> bool {
    let is_call = is_name(tokens, &["field", "argument"])
        // `fields.get("…")`, `entry.get("…")`, with or without a type.
        || is_name(tokens, &["fields", "entry"]) && matches!(tokens.get(2), Some((_, Token::Name(name))) if name == "get");
    is_call
        && tokens
            .iter()
            .take_while(|(_, token)| !matches!(token, Token::Mark(')' | ';')))
            .any(|token| is_literal(std::slice::from_ref(token), &FIELDS))
}

#[test]
fn entry_fields_are_written_in_contract_only() {
    let fix = "the name of a field of a stream's entry. Fix: use its constant or accessor in src/contract/entry.rs";
    check(
        &matching(
            outside(&["src/contract/"]),
            &["field", "argument", "entry"],
            fix,
            is_entry_field,
        ),
        &owned(&[exceptions::ENTRY_FIELDS, exceptions::UPLOADS].concat()),
    );
    let fix = "XADD outside src/contract, src/publish and src/redis. Fix: add entries through one of them";
    check(
        &matching(
            outside(&["src/contract/", "src/publish/", "src/redis/"]),
            &["XADD"],
            fix,
            |tokens| is_literal(tokens, &["XADD"]),
        ),
        &[],
    );
}

#[test]
fn replication_protocol_is_spoken_in_replication_only() {
    let is_start = |tokens: &[(usize, Token)]| matches!(tokens.first(), Some((_, Token::Literal(text))) if text.contains("START_REPLICATION"));
    let fix = "START_REPLICATION outside src/replication. Fix: read the log through `replication`";
    check(
        &matching(outside(&["src/replication/"]), &["START_REPLICATION"], fix, is_start),
        &[],
    );
}

#[test]
fn status_codes_are_named_in_http_and_api_only() {
    let fix = "an HTTP status code outside src/http and src/api. Fix: return a typed error, and map it in src/api";
    check(
        &matching(outside(&["src/http/", "src/api/"]), &["StatusCode"], fix, |tokens| {
            is_name(tokens, &["StatusCode"])
        }),
        &owned(exceptions::STATUS_CODES),
    );
}

#[test]
fn redis_connections_are_opened_in_redis_and_publish_only() {
    let opens = [
        "get_multiplexed_async_connection",
        "get_multiplexed_async_connection_with_config",
        "get_async_pubsub",
    ];
    let is_open = |tokens: &[(usize, Token)]| {
        let is_path = is_name(tokens, &["redis"]) && matches!(tokens.get(1), Some((_, Token::PathSeparator)));
        is_name(tokens, &opens) || is_path && is_name(&tokens[2..], &["open", "client", "Client"])
    };
    let fix = "opens a connection to Redis. Fix: take one from `redis`";
    check(
        &matching(
            outside(&["src/net/", "src/redis/", "src/publish/"]),
            &["redis::", "get_"],
            fix,
            is_open,
        ),
        &owned(&[exceptions::REDIS_CONNECTIONS, exceptions::REDIS_BY_ITSELF].concat()),
    );
}

#[test]
fn pure_folders_do_no_io() {
    let pure = inside(&[
        "src/core/",
        "src/contract/",
        "src/decode/",
        "src/route/",
        "src/publish/progress.rs",
    ]);
    let texts = ["await", "tokio", "std::fs", "std::net", "std::process", "std::{"];
    let is_io = |tokens: &[(usize, Token)]| {
        let is_std = is_name(tokens, &["std"]) && tokens.len() > 2 && is_name(&tokens[2..], &["fs", "net", "process"]);
        is_name(tokens, &["await", "tokio"]) || is_std
    };
    let fix = "does IO in a folder that is pure. Fix: pass the value in, and do the IO in the caller";
    check(&matching(pure, &texts, fix, is_io), &[]);
}

#[test]
fn queues_have_bounds() {
    let fix = "a queue without a bound. Fix: use a bounded channel, with the bound in src/config";
    let is_unbounded = |tokens: &[(usize, Token)]| is_name(tokens, &["unbounded_channel", "unbounded"]);
    check(&matching(|_| true, &["unbounded"], fix, is_unbounded), &[]);
}

#[test]
fn paths_in_lib_rs_exist() {
    let lib = include_str!("../src/lib.rs");
    let paths = lib
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .flat_map(|line| line.split('`').skip(1).step_by(2));
    for path in paths.filter(|path| path.starts_with("src/") || path.starts_with("sql/")) {
        let whole = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        assert!(
            whole.exists(),
            "src/lib.rs: `{path}` does not exist. Fix: name the file that took its place"
        );
    }
}

// The checks themselves.

fn folders(rows: &[(&str, &str)]) -> Vec<(String, BTreeSet<String>)> {
    let row = |(folder, targets): &(&str, &str)| format!("//! | `{folder}` | {targets} |\n");
    arrows(&rows.iter().map(row).collect::<String>())
}

#[test]
fn arrow_check_reports_a_reversed_import() {
    let arrows = folders(&[
        ("core", "nothing"),
        ("redis", "nothing"),
        ("live", "`redis`"),
        ("admin", "everything above"),
    ]);
    let found = |path: &str, text: &str| {
        let sources = [
            "src/core/mod.rs",
            "src/redis/mod.rs",
            "src/live/mod.rs",
            "src/admin/mod.rs",
        ]
        .map(|path| File::new(path, ""));
        let sources: Vec<File> = sources
            .into_iter()
            .filter(|file| file.path != path)
            .chain([File::new(path, text)])
            .collect();
        let keys = reversed(&arrows, &sources)
            .into_iter()
            .map(|((from, to), _)| format!("{from} {to}"));
        keys.collect::<Vec<_>>()
    };
    assert_eq!(found("src/live/mod.rs", "use crate::redis::Store;"), [""; 0]);
    assert_eq!(found("src/redis/mod.rs", "use crate::live::Hub;"), ["redis live"]);
    assert_eq!(
        found("src/redis/mod.rs", "use crate::{core::A, live::{B, C as D}, admin};"),
        ["redis live", "redis live", "redis admin"]
    );
    assert_eq!(
        found("src/redis/store.rs", "use super::super::live::Hub;"),
        ["redis live"]
    );
    assert_eq!(
        found(
            "src/redis/mod.rs",
            "fn f() -> crate::live::Hub<'static> { crate::admin::g::<u8>() }"
        ),
        ["redis live", "redis admin"]
    );
    assert_eq!(found("src/core/mod.rs", "pub(crate) use crate::redis;"), ["core redis"]);
    assert_eq!(
        found("src/admin/mod.rs", "use crate::{live, redis::{self, A}, core::*};"),
        [""; 0]
    );
    // Comments, strings and tests are no imports.
    let no_import = "// use crate::live;\n/* crate::live::A */ const A: &str = \"crate::live::A\"; const B: &str = r#\"\"crate::live\"#;\n\
                     const C: char = '\"'; #[cfg(test)]\nuse crate::live::{A, B};\n#[cfg(test)]\nmod tests { use crate::live::A; fn a() {} }";
    assert_eq!(found("src/redis/mod.rs", no_import), [""; 0]);
    assert_eq!(
        found("src/redis/mod.rs", &format!("{no_import}\nuse crate::live::A;")),
        ["redis live"]
    );
}

#[test]
fn circle_check_reports_a_circle_of_four() {
    let circle = |last: &str| {
        let own = |path: &str, text: &str| File::new(path, text);
        circles(&[
            own("src/a/mod.rs", "use crate::b::B;"),
            own("src/b.rs", "use crate::c::C;"),
            own("src/c/mod.rs", "mod d; use d::D;"),
            own("src/c/d.rs", last),
        ])
    };
    assert_eq!(circle("use super::C;"), [[""; 0]; 0]);
    assert_eq!(
        circle("use crate::a::A;"),
        [["src/a/mod.rs", "src/b.rs", "src/c/d.rs", "src/c/mod.rs"]]
    );
}

#[test]
fn word_check_reports_phrases_and_names() {
    let found = |text: &str| banned(&File::new("src/live/hub.rs", text)).len();
    let banned = [
        "is told",
        "IsTold",
        "was_told",
        "Whoever asks",
        "waited in vain",
        "in_vain",
        "reborn",
        "fn born()",
        "Outlet",
    ];
    assert_eq!(banned.map(found), [1; 9]);
    let allowed = [
        "stubborn",
        "untold",
        "newborn",
        "a letter",
        "// Outlet",
        "revain",
        "forever",
        "letter: Letters",
    ];
    assert_eq!(allowed.map(found), [0; 8]);
}

#[test]
fn field_check_reports_entry_fields() {
    let found = |text: &str| {
        let tokens = tokens(text);
        (0..tokens.len())
            .filter(|index| is_entry_field(&tokens[*index..]))
            .count()
    };
    let written = [
        "entry.field(\"op\")",
        "resp::argument(&mut commands, b\"op\");",
        "fields.get(\"row\")",
        "entry.get::<i64>(\"ts\")",
    ];
    assert_eq!(written.map(found), [1; 4]);
    let other = [
        "json!({\"op\": 1})",
        "item.get(\"op\")",
        "entry.field(entry::OP)",
        "entry.field(\"user_id\"); f(\"op\")",
    ];
    assert_eq!(other.map(found), [0; 4]);
}

#[test]
fn exception_check_reports_unneeded_exceptions() {
    let findings = [("a", "a.rs:1".to_owned()), ("b", "b.rs:1".to_owned())];
    assert_eq!(failures(&findings, &["a", "b"]), [""; 0]);
    assert_eq!(failures(&findings, &["a"]), ["b.rs:1"]);
    assert_eq!(failures(&findings, &["a", "b", "c"]).len(), 1);
}

#[test]
fn markdown_check_excepts_tables_code_and_links() {
    let long = "word ".repeat(30);
    let link = format!("https://example.com/{}", "a".repeat(120));
    let text = format!("| {long} |\n```\n{long}\n```\n{link}\n- {link}\n[a]: {link} \"x\"\n{long}\n");
    let lines: Vec<String> = wide(&File::new("docs/a.md", &text))
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("docs/a.md:8: 150 characters"), "{lines:?}");
}
