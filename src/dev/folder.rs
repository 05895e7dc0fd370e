//! Folders and files for exclusive use by one process and one user.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The exclusive use of a folder, until dropped.
///
/// The lock is on the folder itself, so that no lock file is left behind, and ends with the process.
#[derive(Debug)]
pub(super) struct FolderLock {
    _folder: File,
}

impl FolderLock {
    /// Locks the folder.
    ///
    /// # Errors
    /// When another process has it.
    pub(super) fn take(folder: &Path) -> Result<Self> {
        let file = File::open(folder).with_context(|| format!("cannot open the folder {}", folder.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _folder: file }),
            Err(TryLockError::WouldBlock) => bail!(
                "the folder {} is in use by another running posduif: stop that one or choose another folder with --data",
                folder.display()
            ),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock the folder {}", folder.display()))
            }
        }
    }
}

/// Creates a folder that only its owner may enter, with its parents; an existing one is unchanged.
pub(super) fn create_private(folder: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot create the folder {}", folder.display()))
}

/// Replaces a file by one that only its owner may read; readers see the old text or the new one, never a part.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".new");
    let partial = PathBuf::from(partial);
    let write = || -> std::io::Result<()> {
        // A partial file of an interrupted write may have other permissions.
        remove_file_if_any(&partial)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn remove_file_if_any(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a folder with its content, if it exists.
pub(super) fn remove_all(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove the folder {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Creates an empty folder for temporary files, which the caller removes.
///
/// Other users may traverse but not list it: the unprivileged user that runs Postgres for root must reach its data.
pub(super) fn create_temporary() -> Result<PathBuf> {
    let name = format!("posduif-{}", super::allocate::random_hex::<8>()?);
    let folder = std::env::temp_dir().join(name);
    DirBuilder::new()
        .mode(0o711)
        .create(&folder)
        .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn folder_lock_is_exclusive_and_leaves_no_file() {
        let folder = create_temporary().unwrap();
        let first = FolderLock::take(&folder).unwrap();
        let refusal = FolderLock::take(&folder).unwrap_err().to_string();
        assert!(refusal.contains(folder.to_str().unwrap()), "{refusal}");
        drop(first);
        // A process that another test has just forked holds the lock until it executes its program.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while FolderLock::take(&folder).is_err() {
            assert!(std::time::Instant::now() < deadline, "still locked");
        }
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        remove_all(&folder).unwrap();
    }

    #[test]
    fn private_file_replaces_another_with_mode_0600() {
        let folder = create_temporary().unwrap();
        let path = folder.join("secret");
        std::fs::write(&path, "old").unwrap();
        write_private(&path, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        remove_all(&folder).unwrap();
    }
}
