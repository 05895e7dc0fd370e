//! Folders and files that belong to one process and one user.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The sole use of a folder, until dropped.
///
/// The lock is on the folder itself, so no lock file is left behind, and it ends with the process however that ends.
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

/// Makes a folder that only its owner may enter, with its parents; one that exists stays as it is.
pub(super) fn create_private(folder: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// Replaces a file by one that only its owner may read; readers see the old text or the new one, never a part.
pub(super) fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".new");
    let partial = PathBuf::from(partial);
    let write = || -> std::io::Result<()> {
        // A leftover of an interrupted write may have other permissions; a new file has those asked for.
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

/// Removes a folder with all that is in it; one that is not there is as good as removed.
pub(super) fn remove_all(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove the folder {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// An empty folder under the system's place for temporary files. Whoever calls this removes it.
///
/// Others may pass through it but not list it: the unprivileged user that runs Postgres for root must reach its data.
pub(super) fn create_temporary() -> Result<PathBuf> {
    let name = format!("posduif-{}", super::random_hex::<8>()?);
    let folder = std::env::temp_dir().join(name);
    DirBuilder::new()
        .mode(0o711)
        .create(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_has_one_user_at_a_time_and_no_lock_file() {
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
    fn a_private_file_is_readable_by_its_owner_only_also_when_it_replaces_another() {
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
