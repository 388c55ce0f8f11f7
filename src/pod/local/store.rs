//! The tasks of this machine on its disk: a file that tells, and a private folder, for each.
//!
//! `tasks/NAME.json` is the [`Record`]; `tasks/NAME/` holds what only this user may see and goes when the task ends. The
//! supervisor of a task holds a lock in its folder for as long as it lives, so whoever gets the lock knows that nobody
//! looks after the task. The kernel gives locks back, whatever a process died of.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::containers;
use super::limits;
use super::processes;
use super::record::Record;
use crate::failure::{Class, Failure};
use crate::pod::connector::ContainerEngine;
use crate::pod::{PodError, TaskPod};

/// Where the tasks are. Clones mean the same place.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// The private folder of one task.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

/// Held while a folder is made, so that nobody takes a half-made one for an abandoned one.
const MAKING: &str = ".making";
/// No record takes longer to be written.
const HALF_A_RECORD: Duration = Duration::from_mins(1);
/// The supervisor's lock.
const LOCK: &str = "lock";

impl Store {
    /// Below the folder of this user's states.
    pub fn new(state: &Path) -> Self {
        Self { root: state.join("tasks") }
    }

    /// Makes the folder.
    pub fn ready(&self) -> io::Result<()> {
        // Others may have to pass through what is above: the server of the embedded database is another user's.
        self.root.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        private_folder(&self.root)
    }

    /// Where records are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The record of one task.
    pub fn record(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.json"))
    }

    /// The folder of one task.
    pub fn folder(&self, name: &str) -> Folder {
        Folder { path: self.root.join(name) }
    }

    /// The names of all tasks that have a record.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            if let Some(name) = entry?.file_name().to_str().and_then(|name| name.strip_suffix(".json")) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Reads one record; `None`: there is none. One that cannot be read is none of ours.
    pub fn read(&self, name: &str) -> io::Result<Option<Record>> {
        match Record::read(&self.record(name)) {
            Ok(record) => Ok(Some(record)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One task as it is now; `None`: there is none.
    pub fn task(&self, name: &str) -> Result<Option<TaskPod>, PodError> {
        // Asked for before the record is read: a supervisor that ends in order leaves a record that says so.
        let supervised = self.folder(name).is_supervised();
        match self.read(name) {
            Ok(record) => Ok(record.map(|record| record.snapshot(supervised))),
            Err(error) => Err(trouble("reading", &self.record(name), &error).into()),
        }
    }

    /// All tasks. A record that cannot be read is told and passed over.
    pub fn tasks(&self) -> Result<Vec<TaskPod>, PodError> {
        let names = self.names().map_err(|error| trouble("looking through", &self.root, &error))?;
        let mut tasks = Vec::new();
        for name in names {
            match self.task(&name) {
                Ok(task) => tasks.extend(task),
                Err(error) => tracing::warn!(%error, "a task is not known"),
            }
        }
        Ok(tasks)
    }

    /// Makes the folder of a task, fills it, and takes its lock; an error of kind `AlreadyExists`: there is one.
    pub fn make(&self, name: &str, fill: impl FnOnce(&Folder) -> io::Result<()>) -> io::Result<File> {
        let making = self.making()?;
        making.lock_shared()?;
        // Two may be making a task of one name: the first one has it.
        let new = Folder { path: self.root.join(format!(".{name}.{}.new", Uuid::new_v4().simple())) };
        let made = private_folder(&new.path).and_then(|()| {
            let lock = private_file(&new.path.join(LOCK))?;
            lock.lock()?;
            fill(&new)?;
            let folder = self.folder(name);
            match std::fs::rename(&new.path, &folder.path) {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Err(ErrorKind::AlreadyExists.into()),
                renamed => renamed.map(|()| lock),
            }
        });
        if made.is_err() {
            new.remove().ok();
        }
        made
    }

    /// Removes what tasks have left that nobody looks after: processes, folders. Their records stay for who reads them,
    /// and tell how they ended.
    pub fn sweep(&self) -> io::Result<()> {
        let making = self.making()?;
        making.lock()?;
        for entry in std::fs::read_dir(&self.root)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                let folder = Folder { path: entry.path() };
                if !folder.is_supervised() {
                    self.clear(&folder);
                }
            } else if entry.path().extension().is_some_and(|ending| ending == "new") {
                // Half a record. Its writer was killed, unless it is just writing it.
                let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
                if age > HALF_A_RECORD {
                    std::fs::remove_file(entry.path()).ok();
                }
            }
        }
        Ok(())
    }

    /// Ends and removes everything of a task that nobody looks after, but its record.
    pub fn clear(&self, folder: &Folder) {
        let name = folder.name();
        if let Ok(Some(record)) = self.read(name)
            && let Some(tool) = record.container
        {
            let tool = ContainerEngine { environment: containers::inherited(), ..tool };
            if let Err(error) = tool.remove(name) {
                tracing::warn!(error, container = name, "the container of a task could not be removed");
            }
        }
        processes::kill_marked(&folder.path);
        limits::remove(name);
        if let Err(error) = folder.remove() {
            tracing::warn!(%error, folder = %folder.path.display(), "the folder of a task could not be removed");
        }
    }

    /// Forgets a task.
    pub fn forget(&self, name: &str) -> io::Result<()> {
        ignore_missing(std::fs::remove_file(self.record(name)))
    }

    fn making(&self) -> io::Result<File> {
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(self.root.join(MAKING))
    }
}

impl Folder {
    /// One that exists, by its path.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Something in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The task's.
    pub fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// What a path of the Pod is on this machine: its volumes are folders of this one.
    pub fn on_host(&self, in_pod: &str) -> String {
        self.path.join(in_pod.trim_start_matches('/')).display().to_string()
    }

    /// Whether somebody looks after the task.
    pub fn is_supervised(&self) -> bool {
        let Ok(lock) = File::open(self.join(LOCK)) else { return false };
        // Shared, so that two who ask at the same time do not take each other for the supervisor.
        matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// Removes it with all that is in it.
    pub fn remove(&self) -> io::Result<()> {
        ignore_missing(std::fs::remove_dir_all(&self.path))
    }
}

/// A new file that only this user can read.
pub fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)
}

/// A folder that only this user can look into.
fn private_folder(path: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

/// What this machine does not let us do, told with where.
pub fn trouble(doing: &str, path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::new(Class::LocalError, format!("{doing} {}: {error}", path.display()));
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            failure.with_hint("free some space, or set SYNCCTL_STATE_DIR to a folder on another disk")
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            failure.with_hint("set SYNCCTL_STATE_DIR to a folder that you may write to")
        }
        _ => failure,
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::{ErrorKind, Folder, Store};
    use crate::pod::local::record::Record;

    #[test]
    fn a_task_is_made_once_and_supervised_as_long_as_its_lock_is_held() {
        let state = tempfile::tempdir().expect("a folder");
        let store = Store::new(state.path());
        store.ready().expect("a folder");
        let fill = |folder: &Folder| std::fs::write(folder.join("content"), "x");
        let lock = store.make("t", fill).expect("a task");
        assert!(store.folder("t").is_supervised());
        let again = store.make("t", |_| Ok(())).expect_err("it is there");
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(store.folder("t").join("content")).expect("the first one's"), "x");
        store.sweep().expect("a look");
        assert!(store.folder("t").path().exists(), "somebody looks after it");
        Record::default().write(&store.record("t")).expect("a record");
        drop(lock);
        store.sweep().expect("a look");
        assert!(!store.folder("t").path().exists());
        assert_eq!(store.names().expect("a list"), ["t"], "how it ended is not known yet");
        let left = std::fs::read_dir(store.root()).expect("a folder").count();
        assert_eq!(left, 2, "the record, and the lock of those who make tasks");
    }

    #[test]
    fn a_task_that_cannot_be_filled_leaves_nothing() {
        let state = tempfile::tempdir().expect("a folder");
        let store = Store::new(state.path());
        store.ready().expect("a folder");
        let full = store.make("t", |_| Err(ErrorKind::StorageFull.into())).expect_err("no space");
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        assert_eq!(std::fs::read_dir(store.root()).expect("a folder").count(), 1);
    }
}
