//! The tasks of this machine on disk.
//!
//! `tasks/NAME.json` is the [`TaskRecord`] of a task, `tasks/NAME/` a private directory that is removed when the task ends.
//! The supervisor of a task holds a lock in its directory for its whole life, and the kernel releases the lock whatever the
//! supervisor died of: a directory whose lock is free belongs to no process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::record::TaskRecord;
use crate::failure::{Class, Failure};
use crate::pod::{PodError, TaskPod};

/// The directory of all tasks. Clones refer to the same one.
#[derive(Debug, Clone)]
pub struct TaskStore {
    root: PathBuf,
}

/// The private directory of one task.
#[derive(Debug, Clone)]
pub struct TaskDirectory {
    path: PathBuf,
}

/// Locked shared while a task directory is being created, so that a cleanup does not remove it half-made.
const CREATION_LOCK: &str = ".making";
/// The supervisor's lock.
const LOCK: &str = "lock";
/// The folder of the FIFOs, which exist before anything foreign runs. The connector may not write to it.
pub const PIPES: &str = "pipes";
/// The folder that the connector's container reports to: the only one that it may write to and that others read.
pub const REPORTS: &str = "reports";
/// The folder of the connector's documents. The connector may not write to it.
pub const CONFIG: &str = "config";
/// The home folder of a connector that is no image.
pub const HOME: &str = "home";
/// Its folder of temporary files.
pub const TMP: &str = "tmp";
/// A request to end the task: the grace period of its containers in seconds, or nothing for that of the Pod.
const DELETION: &str = "delete";

impl TaskStore {
    /// In the directory of this user's state.
    pub fn new(state: &Path) -> Self {
        Self { root: state.join("tasks") }
    }

    /// Creates the directory.
    pub fn create(&self) -> io::Result<()> {
        // Not the parents: the server of the embedded database, another user, must be able to pass through them.
        let create = |path| std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
        self.root.parent().map_or(Ok(()), create)?;
        private_directory(&self.root)
    }

    /// Where the records are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file of a task's record.
    pub fn record_path(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.json"))
    }

    /// The directory of one task.
    pub fn directory(&self, name: &str) -> TaskDirectory {
        TaskDirectory { path: self.root.join(name) }
    }

    /// The names of all tasks with a record.
    pub fn names(&self) -> Result<Vec<String>, Failure> {
        let failure = |error| io_failure("read", &self.root, &error);
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failure)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            if let Some(name) = entry.map_err(failure)?.file_name().to_str().and_then(|name| name.strip_suffix(".json"))
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// The record of a task; `None` if there is none.
    pub fn read(&self, name: &str) -> Result<Option<TaskRecord>, Failure> {
        let path = self.record_path(name);
        let record = std::fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?));
        match record {
            Ok(record) => Ok(Some(record)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_failure("read", &path, &error)),
        }
    }

    /// Replaces the record of a task atomically.
    pub fn write(&self, name: &str, record: &TaskRecord) -> Result<(), Failure> {
        let path = self.record_path(name);
        let new = path.with_extension("json.new");
        let write = || {
            let mut file = private_file(&new)?;
            // A cleanup removes files without a lock: their writer was killed.
            file.lock_shared()?;
            file.write_all(&serde_json::to_vec(record)?)?;
            std::fs::rename(&new, &path)
        };
        let written = match write() {
            // A cleanup came between the creation of the file and its lock.
            Err(error) if error.kind() == ErrorKind::NotFound => write(),
            written => written,
        };
        written.map_err(|error| io_failure("write", &path, &error))
    }

    /// Removes the record of a task.
    pub fn remove(&self, name: &str) -> Result<(), Failure> {
        let path = self.record_path(name);
        ignore_missing(std::fs::remove_file(&path)).map_err(|error| io_failure("remove", &path, &error))
    }

    /// A snapshot of one task; `None` if there is none.
    pub fn task(&self, name: &str) -> Result<Option<TaskPod>, PodError> {
        // Before the record is read: a supervisor that ends in order updates the record first.
        let is_supervised = self.directory(name).is_supervised();
        Ok(self.read(name)?.map(|record| record.snapshot(is_supervised)))
    }

    /// Snapshots of all tasks, except those whose record cannot be read.
    pub fn tasks(&self) -> Result<Vec<TaskPod>, PodError> {
        let mut tasks = Vec::new();
        for name in self.names()? {
            match self.task(&name) {
                Ok(task) => tasks.extend(task),
                Err(error) => tracing::warn!(%error, "skipping a task"),
            }
        }
        Ok(tasks)
    }

    /// Creates the directory of a task, fills it and returns its lock. An error of kind `AlreadyExists`: there is a
    /// directory of this name.
    pub fn create_directory(
        &self,
        name: &str,
        fill: impl FnOnce(&TaskDirectory) -> io::Result<()>,
    ) -> io::Result<File> {
        let creation = self.creation_lock()?;
        creation.lock_shared()?;
        // Two processes may create a task of one name: the first to rename wins.
        let new = TaskDirectory { path: self.root.join(format!(".{name}.{}.new", Uuid::new_v4().simple())) };
        let created = private_directory(&new.path).and_then(|()| {
            let lock = private_file(&new.path.join(LOCK))?;
            lock.lock()?;
            fill(&new)?;
            match std::fs::rename(&new.path, self.directory(name).path) {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Err(ErrorKind::AlreadyExists.into()),
                renamed => renamed.map(|()| lock),
            }
        });
        if created.is_err() {
            new.remove().ok();
        }
        created
    }

    /// Prevents the creation of directories until it is dropped.
    pub fn block_creation(&self) -> io::Result<File> {
        let creation = self.creation_lock()?;
        creation.lock()?;
        Ok(creation)
    }

    /// The directories without a supervisor, and temporary files of records without a writer. To be called while creation
    /// is blocked.
    pub fn abandoned(&self) -> io::Result<(Vec<TaskDirectory>, Vec<PathBuf>)> {
        let (mut directories, mut files) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(&self.root)? {
            let entry = entry?;
            let directory = TaskDirectory { path: entry.path() };
            if entry.file_type()?.is_dir() {
                directories.extend(Some(directory).filter(|directory| !directory.is_supervised()));
            } else if entry.path().extension().is_some_and(|extension| extension == "new")
                && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok())
            {
                files.push(entry.path());
            }
        }
        Ok((directories, files))
    }

    fn creation_lock(&self) -> io::Result<File> {
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(self.root.join(CREATION_LOCK))
    }
}

impl TaskDirectory {
    /// An existing directory.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The name of the task.
    pub fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// The path on this machine of a path in the Pod, whose volumes are directories in this one.
    pub fn on_host(&self, in_pod: &str) -> String {
        self.path.join(in_pod.trim_start_matches('/')).display().to_string()
    }

    /// Whether the task has a supervisor.
    pub fn is_supervised(&self) -> bool {
        let Ok(lock) = File::open(self.join(LOCK)) else { return false };
        // Shared, so that two processes that test the lock do not see each other as the supervisor.
        matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// Asks the supervisor to end the task. `None`: with the Pod's own grace period.
    pub fn request_deletion(&self, grace: Option<Duration>) -> Result<(), Failure> {
        let text = grace.map(|grace| grace.as_secs().to_string()).unwrap_or_default();
        let (new, file) = (self.join("delete.new"), self.join(DELETION));
        // A directory that is missing was removed just now.
        ignore_missing(std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &file)))
            .map_err(|error| io_failure("write", &file, &error))
    }

    /// Takes the grace period of a [requested deletion](Self::request_deletion). An error: none was requested.
    pub fn take_deletion_request(&self) -> io::Result<Option<Duration>> {
        let file = self.join(DELETION);
        let text = std::fs::read_to_string(&file)?;
        std::fs::remove_file(&file).ok();
        Ok(text.trim().parse().ok().map(Duration::from_secs))
    }

    /// Removes it with its content.
    pub fn remove(&self) -> io::Result<()> {
        ignore_missing(std::fs::remove_dir_all(&self.path))
    }
}

/// Creates or truncates a file that only this user can read.
pub fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)
}

/// Creates a directory that only this user may use, if it is missing.
pub fn private_directory(path: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        created => created,
    }
}

/// "cannot {action} {path}: {error}".
pub fn io_failure(action: &str, path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::new(Class::LocalError, format!("cannot {action} {}: {error}", path.display()));
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            failure.with_hint("free disk space, or set SYNCCTL_STATE_DIR to a directory on another disk")
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            failure.with_hint("set SYNCCTL_STATE_DIR to a writable directory")
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
