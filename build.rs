//! Gives the program its version and the commit that it was built from.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The commit of an archive of the sources: `git archive` substitutes it (.gitattributes). In a repository it stays a pattern.
const ARCHIVED: &str = "$Format:%H$";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=POSDUIF_COMMIT");
    let (version, commit) = (env::var("CARGO_PKG_VERSION").unwrap_or_default(), commit());
    let built_from = if commit.is_empty() { "commit unknown" } else { &commit };
    println!("cargo::rustc-env=POSDUIF_COMMIT={commit}");
    println!("cargo::rustc-env=POSDUIF_VERSION={version} ({built_from})");
}

/// The commit: `POSDUIF_COMMIT` for builds without the repository (a container), else that of the archive, else that of git, else
/// nothing. Debug builds in a repository have none: each commit would recompile the whole crate.
fn commit() -> String {
    let given = env::var("POSDUIF_COMMIT").unwrap_or_default();
    if !given.trim().is_empty() {
        return given.trim().to_owned();
    }
    if let Some(commit) = ARCHIVED.get(..12).filter(|commit| !commit.starts_with('$')) {
        return commit.to_owned();
    }
    if env::var("PROFILE").as_deref() != Ok("release") {
        return String::new();
    }
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return String::new();
    };
    // HEAD and its branch; a worktree has them outside .git.
    for name in ["HEAD", "index", "packed-refs"]
        .map(String::from)
        .into_iter()
        .chain(git(&["symbolic-ref", "-q", "HEAD"]))
    {
        if let Some(path) = git(&["rev-parse", "--git-path", &name])
            && Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if !changes.is_empty() => commit + "-modified",
        _ => commit,
    }
}

/// The output of git; `None` without git, and in the repository of another project that contains these sources.
fn git(arguments: &[&str]) -> Option<String> {
    let run = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let top = PathBuf::from(run(&["rev-parse", "--show-toplevel"])?);
    let own = env::var_os("CARGO_MANIFEST_DIR")?;
    if top.canonicalize().ok()? != Path::new(&own).canonicalize().ok()? {
        return None;
    }
    run(arguments)
}
