//! Removing what a task leaves behind: processes, a container, control groups, its directory. Used by the supervisor at the
//! end of a task, and by the next process for tasks whose supervisor was killed.

use super::store::{TaskDirectory, TaskStore, io_failure};
use super::{cgroup, process};
use crate::failure::Failure;
use crate::pod::connector::ContainerEngine;

/// Cleans up after all tasks without a supervisor. Their records stay until their outcome is stored.
pub fn remove_abandoned(store: &TaskStore) -> Result<(), Failure> {
    let failure = |error| io_failure("read", store.root(), &error);
    // Until everything is removed: a new task may have the name of an abandoned one.
    let _creation = store.block_creation().map_err(failure)?;
    let (directories, files) = store.abandoned().map_err(failure)?;
    for directory in directories {
        remove_task(store, &directory);
    }
    for file in files {
        std::fs::remove_file(file).ok();
    }
    Ok(())
}

/// Ends and removes everything of a task without a supervisor except its record.
pub fn remove_task(store: &TaskStore, directory: &TaskDirectory) {
    let name = directory.name();
    if let Ok(Some(record)) = store.read(name)
        && let Some(engine) = record.container
    {
        let engine = ContainerEngine { environment: process::environment(), ..engine };
        if let Err(error) = engine.remove(name) {
            tracing::warn!(error, container = name, "cannot remove the container of a task");
        }
    }
    process::kill_marked(directory.path());
    remove_files(directory);
}

/// Removes the control groups and the directory of a task whose processes have ended.
pub fn remove_files(directory: &TaskDirectory) {
    cgroup::remove(directory.name());
    if let Err(error) = directory.remove() {
        tracing::warn!(%error, directory = %directory.path().display(), "cannot remove the directory of a task");
    }
}

#[cfg(test)]
mod tests {
    use super::remove_abandoned;
    use crate::pod::local::record::TaskRecord;
    use crate::pod::local::store::{TaskDirectory, TaskStore};
    use std::io::ErrorKind;

    fn store() -> (tempfile::TempDir, TaskStore) {
        let state = tempfile::tempdir().expect("a directory");
        let store = TaskStore::new(state.path());
        store.create().expect("a directory");
        (state, store)
    }

    #[test]
    fn a_task_is_created_once_and_removed_when_its_lock_is_free() {
        let (_state, store) = store();
        let fill = |directory: &TaskDirectory| std::fs::write(directory.join("content"), "x");
        let lock = store.create_directory("t", fill).expect("a task");
        assert!(store.directory("t").is_supervised());
        let again = store.create_directory("t", |_| Ok(())).expect_err("it exists");
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(store.directory("t").join("content")).expect("a file"), "x");
        remove_abandoned(&store).expect("a cleanup");
        assert!(store.directory("t").path().exists(), "it is supervised");
        store.write("t", &TaskRecord::default()).expect("a record");
        drop(lock);
        remove_abandoned(&store).expect("a cleanup");
        assert!(!store.directory("t").path().exists());
        assert_eq!(store.names().expect("a list"), ["t"], "its outcome is not stored yet");
        let left = std::fs::read_dir(store.root()).expect("a directory").count();
        assert_eq!(left, 2, "the record and the creation lock");
    }

    #[test]
    fn links_in_a_task_directory_are_removed_and_not_followed() {
        let (_state, store) = store();
        let host = tempfile::tempdir().expect("a directory");
        std::fs::write(host.path().join("file"), "x").expect("a file");
        let lock = store.create_directory("t", |directory| {
            std::fs::create_dir(directory.join("reports"))?;
            std::os::unix::fs::symlink(host.path().join("file"), directory.join("reports/exit_code"))?;
            std::os::unix::fs::symlink(host.path(), directory.join("reports/folder"))?;
            std::os::unix::fs::symlink(host.path(), directory.join("secrets"))
        });
        drop(lock.expect("a task"));
        remove_abandoned(&store).expect("a cleanup");
        assert!(!store.directory("t").path().exists());
        assert!(host.path().join("file").exists());
    }

    #[test]
    fn a_half_written_record_is_removed_unless_its_writer_lives() {
        let (_state, store) = store();
        let half = store.root().join("t.json.new");
        let writer = std::fs::File::create(&half).expect("a file");
        writer.lock_shared().expect("a lock");
        remove_abandoned(&store).expect("a cleanup");
        assert!(half.exists(), "it is being written");
        drop(writer);
        remove_abandoned(&store).expect("a cleanup");
        assert!(!half.exists());
    }

    #[test]
    fn a_task_that_cannot_be_filled_leaves_nothing() {
        let (_state, store) = store();
        let full = store.create_directory("t", |_| Err(ErrorKind::StorageFull.into())).expect_err("no space");
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        assert_eq!(std::fs::read_dir(store.root()).expect("a directory").count(), 1);
    }
}
