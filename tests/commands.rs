//! Every command of clap's tree, so that none is missed: wrong usage, and unreachable servers.

use std::time::Duration;

use clap::{Arg, ArgAction, Command as Described, CommandFactory as _};
use futures_util::StreamExt as _;
use posduif::cli::Cli;

use crate::support::World;
use crate::support::command::{Ended, posduif, posduif_in, posduif_says, run};

/// Commands that ask nobody.
const ALONE: [&[&str]; 5] = [
    &["config", "check"],
    &["config", "show"],
    &["completions"],
    &["man"],
    &["kit", "list"],
];

/// Commands that need a case or a driver, and no server: tests/kit.rs has them.
const OF_THE_KIT: [&[&str]; 2] = [&["kit", "explain"], &["kit", "run"]];

/// Commands that run until they are stopped, also without Redis.
const ENDLESS: [&[&str]; 3] = [&["serve"], &["dev"], &["audit", "tail"]];

/// Every command without further ones below it, as the words that call it.
fn verbs() -> Vec<Vec<String>> {
    fn below(command: &Described, words: &[String], found: &mut Vec<Vec<String>>) {
        let mut has_verbs = false;
        for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
            has_verbs = true;
            let words = [words, &[verb.get_name().to_owned()]].concat();
            below(verb, &words, found);
        }
        if !has_verbs {
            found.push(words.to_vec());
        }
    }
    let mut found = Vec::new();
    below(&Cli::command(), &[], &mut found);
    found
}

fn described(words: &[String]) -> Described {
    let mut command = Cli::command();
    for word in words {
        command = command.find_subcommand(word).unwrap().clone();
    }
    command
}

/// Whether clap takes these words.
fn is_taken(words: &[String]) -> Result<(), clap::Error> {
    let all = [&["posduif".to_owned()], words].concat();
    Cli::command().try_get_matches_from(all).map(|_| ())
}

/// Arguments that a verb needs, and `--yes`, `--count` where it has them, so that it does something and comes to an end.
fn with_arguments(words: &[String]) -> Vec<String> {
    /// One of these is a value that any argument takes.
    const VALUES: [&str; 7] = [
        "acme",
        "1",
        "1-1",
        "0/1",
        "tenant_acme",
        "00000000-0000-4000-8000-000000000000",
        "changes",
    ];
    let command = described(words);
    let mut given = words.to_vec();
    let add = |given: &mut Vec<String>, arg: &Arg| {
        let possible: Vec<String> = arg
            .get_possible_values()
            .iter()
            .map(|value| value.get_name().to_owned())
            .collect();
        let values = if possible.is_empty() {
            VALUES.map(str::to_owned).to_vec()
        } else {
            possible
        };
        let before = given.clone();
        for value in values {
            given.clone_from(&before);
            if let Some(name) = arg.get_long() {
                given.push(format!("--{name}"));
            }
            given.push(value);
            // What else is missing comes after; only this value must be right.
            match is_taken(given) {
                Err(error)
                    if matches!(
                        error.kind(),
                        clap::error::ErrorKind::ValueValidation | clap::error::ErrorKind::InvalidValue
                    ) => {}
                _ => return,
            }
        }
        panic!("no value for {arg} of {before:?}");
    };
    // Whose `--count` is for `--watch` alone; without either it looks once.
    let may_watch = command.get_arguments().any(|arg| arg.get_id() == "watch");
    for arg in command.get_arguments() {
        let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
        if arg.is_required_set() && takes_value {
            add(&mut given, arg);
        } else if arg.get_id() == "yes" {
            given.push("--yes".to_owned());
        } else if arg.get_id() == "count" && arg.get_long().is_some() && !may_watch {
            given.extend(["--count".to_owned(), "1".to_owned()]);
        }
    }
    // One of several that exclude each other: a switch where there is one.
    for group in command.get_groups().filter(|group| group.is_required_set()) {
        let mut args: Vec<&Arg> = command
            .get_arguments()
            .filter(|arg| group.get_args().any(|id| id == arg.get_id()))
            .collect();
        args.sort_by_key(|arg| !matches!(arg.get_action(), ArgAction::SetTrue));
        match args[0].get_action() {
            ArgAction::SetTrue => given.push(format!("--{}", args[0].get_long().unwrap())),
            _ => add(&mut given, args[0]),
        }
    }
    is_taken(&given).unwrap_or_else(|error| panic!("{given:?}: {error}"));
    given
}

fn is_one_of(words: &[String], list: &[&[&str]]) -> bool {
    list.iter().any(|listed| words.iter().eq(listed.iter()))
}

/// Whether an end is one that a person can do something with.
fn is_plain(words: &[String], ended: &Ended) {
    let all = format!("{}{}", ended.stdout, ended.stderr);
    for bad in ["panicked", "stack backtrace", "RUST_BACKTRACE", "Caused by", "hidden"] {
        assert!(!all.contains(bad), "{words:?}: {all}");
    }
}

#[tokio::test]
async fn every_command_has_usage() {
    let verbs = verbs();
    assert!(verbs.len() > 30, "{verbs:?}");
    // Of each noun, and of the whole, a word less is wrong usage.
    let mut nouns: Vec<Vec<String>> = verbs
        .iter()
        .filter(|verb| verb.len() > 1)
        .map(|verb| verb[..1].to_vec())
        .collect();
    nouns.dedup();
    assert!(nouns.len() >= 7, "{nouns:?}");
    for noun in &nouns {
        let error = is_taken(noun).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{noun:?}");
        assert!(error.to_string().contains("Usage: posduif"), "{error}");
    }
    for verb in &verbs {
        for wrong in [&["--nonsense"][..], &["surely", "too", "many", "words"]] {
            let words = [verb.clone(), wrong.iter().map(|&word| word.to_owned()).collect()].concat();
            let error = is_taken(&words).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{words:?}");
            let message = error.to_string();
            assert!(
                (message.contains("Usage: posduif") || message.contains("invalid value")) && message.contains("--help"),
                "{error}"
            );
        }
        let full = with_arguments(verb);
        if full
            .iter()
            .any(|word| !verb.contains(word) && !["--yes", "--count", "1"].contains(&word.as_str()))
        {
            let error = is_taken(verb).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{verb:?} needs arguments");
            assert!(error.to_string().contains("required"), "{error}");
        }
        let mut command = described(verb);
        let help = command.render_long_help().to_string();
        assert!(
            command.get_about().is_some() && help.contains("Usage:"),
            "{verb:?}: {help}"
        );
        assert!(
            command
                .get_arguments()
                .all(|arg| arg.get_id() == "help" || arg.get_id() == "version" || arg.get_help().is_some()),
            "{verb:?} has an argument without a word about it"
        );
    }
    // What the program does with all that, once.
    let ended = run(&mut posduif(), &["slot", "drop"]).await.complaint(2);
    assert!(ended.contains("Usage: posduif slot drop"), "{ended}");
}

#[tokio::test]
async fn every_command_reports_unreachable_servers() {
    let folder = std::env::temp_dir().join(format!("posduif-away-{}", uuid::Uuid::new_v4().simple()));
    let check = async |verb: Vec<String>| {
        let mut words = with_arguments(&verb);
        if verb[0] == "dev" {
            words.extend(["--data".to_owned(), folder.to_str().unwrap().to_owned()]);
        }
        let mut command = posduif();
        command
            .env("DATABASE_URL", "postgres://nobody:hidden@127.0.0.1:1/nothing")
            .env("REDIS_URL", "redis://:hidden@127.0.0.1:1/0")
            .env("POSDUIF_PASSWORD", "long enough")
            .env("POSDUIF_URL", "http://127.0.0.1:1")
            .env("POSDUIF__SERVER__DEFAULT_TENANT", "acme")
            .env("POSDUIF__AUTH__JWT_SECRET", "a very secret secret of 32 bytes!!")
            .env("POSDUIF__LOG__LEVEL", "error")
            .env("RUST_BACKTRACE", "1");
        let arguments: Vec<&str> = words.iter().map(String::as_str).collect();
        let ended = run(&mut command, &arguments).await;
        is_plain(&words, &ended);
        if is_one_of(&verb, &ALONE) {
            assert_eq!(ended.code, Some(0), "{words:?}: {}", ended.stderr);
            return;
        }
        assert_eq!(ended.code, Some(1), "{words:?}: {}{}", ended.stdout, ended.stderr);
        let complaint = ended.stderr.to_lowercase();
        let names = ["postgres", "redis", "no engine answers", "failed"];
        assert!(
            complaint.starts_with("posduif: ") && names.iter().any(|name| complaint.contains(name)),
            "{words:?}: {complaint}"
        );
    };
    // A few at a time: each is a process.
    let verbs = verbs().into_iter().filter(|verb| !is_one_of(verb, &OF_THE_KIT));
    futures_util::stream::iter(verbs).for_each_concurrent(4, check).await;
    let _ = std::fs::remove_dir_all(&folder);
}

#[tokio::test]
async fn every_command_without_redis_works_or_reports_it() {
    let world = World::new().await;
    posduif_says(&world, "migrate up").await.text();
    posduif_says(&world, "tenant create acme").await.text();
    posduif_says(
        &world,
        "user create --tenant acme --username acme --type web --password long-enough",
    )
    .await
    .text();
    let mut sorted = verbs();
    // Those that take something away come last.
    sorted.sort_by_key(|verb| {
        ["drop", "down", "force"]
            .iter()
            .any(|last| verb.last().is_some_and(|word| word == last))
    });
    let left_out = [&ENDLESS[..], &OF_THE_KIT].concat();
    for verb in sorted.into_iter().filter(|verb| !is_one_of(verb, &left_out)) {
        let words = with_arguments(&verb);
        let mut command = posduif_in(&world);
        command
            .env("POSDUIF__REDIS__URL", "redis://:hidden@127.0.0.1:1/0")
            .env("POSDUIF__SERVER__DEFAULT_TENANT", "acme")
            .env("POSDUIF__SERVER__PUBLIC_URL", "http://127.0.0.1:1")
            .env("POSDUIF_URL", "http://127.0.0.1:1")
            .env("POSDUIF_PASSWORD", "long enough")
            .env("POSDUIF__LOG__LEVEL", "error");
        let arguments: Vec<&str> = words.iter().map(String::as_str).collect();
        let ended = tokio::time::timeout(Duration::from_secs(15), run(&mut command, &arguments));
        let ended = ended.await.unwrap_or_else(|_| panic!("{words:?} does not end"));
        is_plain(&words, &ended);
        assert!(
            matches!(ended.code, Some(0 | 1)),
            "{words:?}: {:?} {}",
            ended.code,
            ended.stderr
        );
        if ended.code == Some(1) {
            assert!(ended.stderr.starts_with("posduif: "), "{words:?}: {}", ended.stderr);
        }
        for (needs, called) in [
            ("tenant", "show"),
            ("tenant", "drop"),
            ("user", "passwd"),
            ("", "status"),
        ] {
            let is_it = verb.last().is_some_and(|last| last == called) && (needs.is_empty() || verb[0] == needs);
            assert!(
                !is_it
                    || verb[0] == "migrate"
                    || (ended.code == Some(1) && ended.stderr.contains("Redis at 127.0.0.1:1")),
                "{words:?}: {}",
                ended.stderr
            );
        }
    }
}
