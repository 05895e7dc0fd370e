//! Gives the program its version, the commit that it was built from, and the files of its web pages.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// The commit of an archive of the sources: `git archive` substitutes it (.gitattributes). In a repository it stays a pattern.
const ARCHIVED: &str = "$Format:%H$";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=POSDUIF_COMMIT");
    let (version, commit) = (env::var("CARGO_PKG_VERSION").unwrap_or_default(), commit());
    let built_from = if commit.is_empty() { "commit unknown" } else { &commit };
    println!("cargo::rustc-env=POSDUIF_COMMIT={commit}");
    println!("cargo::rustc-env=POSDUIF_VERSION={version} ({built_from})");
    embed_web();
}

/// Where `scripts/web` writes the pages.
const WEB: &str = "web/dist";

/// The pages, each a folder of [`WEB`].
const PAGES: [&str; 2] = ["console", "demo"];

/// Writes the list of the files of the web pages, which `src/http/assets.rs` includes.
fn embed_web() {
    println!("cargo::rerun-if-changed={WEB}");
    let mut list = String::from("&[\n");
    if env::var_os("CARGO_FEATURE_WEB").is_some() {
        let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join(WEB);
        for page in PAGES {
            let folder = root.join(page);
            let files = files_of(&folder);
            if !files.iter().any(|file| file.ends_with("index.html")) {
                eprintln!(
                    "error: {WEB}/{page}/index.html is missing: run scripts/web, which needs Node 20 or newer and npm, or \
                     build without the web pages (--no-default-features)"
                );
                exit(1);
            }
            for file in files {
                let name = file.strip_prefix(&root).unwrap_or(&file);
                let _ = writeln!(list, "    ({:?}, include_bytes!({:?})),", name.to_string_lossy(), file);
            }
        }
    }
    list.push_str("]\n");
    let target = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("web.rs");
    if let Err(error) = fs::write(&target, list) {
        eprintln!("error: cannot write {}: {error}", target.display());
        exit(1);
    }
}

/// The files of a folder, sorted; none if it cannot be read.
fn files_of(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
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
