//! Adds a token to the tokens file.

use std::fs::{File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use uuid::Uuid;

use super::entries::{Entry, append};
use super::file::{MAX_FILE_BYTES, read};

/// The mode of a new file: it holds hashes.
const MODE: Mode = Mode::from_raw_mode(0o600);

/// Adds an entry at the end of the file, which is created if missing. Everything else in it stays as it is, and so do its
/// owner and its mode. A service that reads it sees either the old version or the new one. The error names the file.
pub fn add(path: &Path, entry: &Entry) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot write {}: {error}", path.display());
    // What a symbolic link names is replaced, not the link.
    let target = match std::fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            std::path::absolute(path).map_err(|error| failed(&error))?
        }
        target => target.map_err(|error| failed(&error))?,
    };
    let folder = target.parent().unwrap_or(Path::new("/"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder_file = rustix::fs::open(folder, flags, Mode::empty()).map_err(|error| failed(&error))?;
    // Of several at the same time each adds its entry to what the one before has written.
    rustix::fs::flock(&folder_file, FlockOperation::LockExclusive).map_err(|error| failed(&error))?;
    let existing = match std::fs::metadata(&target) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        metadata => Some(metadata.map_err(|error| failed(&error))?),
    };
    let text = existing.as_ref().map_or_else(|| Ok(String::new()), |_| read(&target))?;
    let text = append(&text, entry).map_err(|error| format!("{}: {error}", path.display()))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(failed(&format!("it would be larger than {MAX_FILE_BYTES} bytes")));
    }
    let new = NewFile(folder.join(format!(".syncctl-{}", Uuid::new_v4())));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(&new.0, flags, MODE).map_err(|error| failed(&error))?);
    let mut write = || {
        file.write_all(text.as_bytes())?;
        if let Some(existing) = &existing {
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (existing.uid(), existing.gid()) {
                std::os::unix::fs::fchown(&file, Some(existing.uid()), Some(existing.gid()))?;
            }
            file.set_permissions(Permissions::from_mode(existing.mode() & 0o777))?;
        }
        file.sync_all()?;
        std::fs::rename(&new.0, &target)
    };
    write().map_err(|error| failed(&error))
}

/// A file that is removed unless it was renamed.
struct NewFile(PathBuf);

impl Drop for NewFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, add};
    use crate::server::auth::file::read as read_file;
    use crate::server::auth::hashed;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn entry(name: &str) -> Entry {
        let hashed = hashed("token", "salt", &"secret".into());
        Entry { name: name.to_owned(), hashed, ..Entry::default() }
    }

    #[test]
    fn a_file_is_created_for_its_owner_alone_and_keeps_its_mode_and_its_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens.yaml");
        let mode = || fs::metadata(&path).expect("a file").permissions().mode() & 0o777;
        add(&path, &entry("a")).expect("a new file");
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("our file");
        let link = folder.path().join("link");
        symlink("tokens.yaml", &link).expect("a link");
        add(&link, &entry("b")).expect("a file");
        assert_eq!(mode(), 0o640);
        assert!(fs::symlink_metadata(&link).expect("a link").is_symlink());
        let text = read_file(&path).expect("a file");
        assert!(text.contains("\"a\"") && text.contains("\"b\""), "{text}");
        let error = add(&path, &entry("a")).expect_err("the name is taken");
        assert!(error.contains("a token of the name \"a\" exists"), "{error}");
        fs::write(&path, "- name: hunter2\n").expect("our file");
        assert!(add(&path, &entry("c")).expect_err("it is not valid").contains("line 1: [0]: missing field"));
        assert_eq!(read_file(&path).expect("a file"), "- name: hunter2\n");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 2, "nothing else is left");
        assert!(add(&folder.path().join("no/tokens.yaml"), &entry("a")).is_err());
        assert!(add(folder.path(), &entry("a")).is_err());
    }

    #[test]
    fn entries_that_are_added_at_the_same_time_are_all_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens.yaml");
        std::thread::scope(|scope| {
            for index in 0..16 {
                let path = &path;
                scope.spawn(move || add(path, &entry(&format!("token-{index}"))).expect("a file"));
            }
        });
        assert_eq!(read_file(&path).expect("a file").matches("- name: ").count(), 16);
    }
}
