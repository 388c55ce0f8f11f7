//! The throw-away users of root's connectors: an id of its own for each task, which has no name, no files and no rights.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// The ids of throw-away users and of their groups. Neither distributions nor container engines allocate these.
const IDS: Range<u32> = 1_900_000_000..1_900_065_536;
/// Where those do not exist, in the user namespace of a container: the ids that systemd gives to dynamic users.
const IDS_IN_CONTAINER: Range<u32> = 61_184..65_520;
/// The locks of the users in use on this machine.
const LOCKS: &str = "/run/syncctl/users";
/// How many ids to try: even with thousands of tasks the first few include a free one.
const ATTEMPTS: usize = 200;

/// A user that no other task has as long as this value lives.
#[derive(Debug)]
pub struct TaskUser {
    id: u32,
    path: PathBuf,
    _lock: File,
}

impl TaskUser {
    /// A new user if this process is root; `None` for others, whose connectors keep their user. An error is a reason.
    pub fn of_this_process() -> Result<Option<Self>, String> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let map =
            std::fs::read_to_string("/proc/self/uid_map").map_err(|error| format!("/proc/self/uid_map: {error}"))?;
        let ids = usable_ids(&map).ok_or("the user namespace of this container has no ids for other users")?;
        let user = Self::allocate(Path::new(LOCKS), &ids);
        user.map(Some).map_err(|error| format!("cannot choose a user for the connector: {LOCKS}: {error}"))
    }

    /// The user's id, and that of its group.
    pub fn id(&self) -> u32 {
        self.id
    }

    fn allocate(locks: &Path, ids: &Range<u32>) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(locks)?;
        for _ in 0..ATTEMPTS {
            // Any id: one that was used just now is unlikely.
            let random = Uuid::new_v4().as_u128() % u128::from(ids.end - ids.start);
            let id = ids.start + u32::try_from(random).unwrap_or_default();
            let path = locks.join(id.to_string());
            let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
            let is_current =
                || path.metadata().is_ok_and(|file| lock.metadata().is_ok_and(|ours| ours.ino() == file.ino()));
            // The previous user of the id may have removed the file in between: then the lock is another file by now.
            if lock.try_lock().is_ok() && is_current() {
                return Ok(Self { id, path, _lock: lock });
            }
        }
        Err(io::Error::new(ErrorKind::ResourceBusy, "every id is in use"))
    }
}

/// Makes a directory with all that is in it readable by all and writable by its owner alone, without set-user-ID bits; as
/// root, root is the owner then. The programs that wrote it have ended.
pub(super) fn take_back(path: &Path, is_root: bool) -> io::Result<()> {
    let metadata = path.symlink_metadata()?;
    if is_root {
        lchown(path, Some(0), Some(0))?;
    }
    if metadata.is_symlink() {
        return Ok(());
    }
    let mode = metadata.mode();
    let execute = if metadata.is_dir() || mode & 0o111 != 0 { 0o111 } else { 0 };
    std::fs::set_permissions(path, Permissions::from_mode(mode & 0o700 | 0o444 | execute))?;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path)? {
            take_back(&entry?.path(), is_root)?;
        }
    }
    Ok(())
}

impl Drop for TaskUser {
    fn drop(&mut self) {
        // Before the release of the lock, so that the removed file is never that of a later task.
        std::fs::remove_file(&self.path).ok();
    }
}

/// The ids of a user namespace, whose map has lines of its first id, the first id outside, and a count.
fn usable_ids(map: &str) -> Option<Range<u32>> {
    let has = |ids: &Range<u32>| {
        map.lines().any(|line| {
            let numbers: Vec<u64> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
            matches!(numbers[..], [first, _, count] if first <= ids.start.into() && first + count >= ids.end.into())
        })
    };
    [IDS, IDS_IN_CONTAINER].into_iter().find(has)
}

#[cfg(test)]
mod tests {
    use super::{IDS, IDS_IN_CONTAINER, TaskUser, usable_ids};

    #[test]
    fn two_tasks_never_have_the_same_user() {
        let locks = tempfile::tempdir().expect("a directory");
        let allocate = || TaskUser::allocate(locks.path(), &(7..10));
        let mut users = [allocate(), allocate(), allocate()].map(|user| user.expect("a free id"));
        let mut ids: Vec<u32> = users.iter().map(TaskUser::id).collect();
        ids.sort_unstable();
        assert_eq!(ids, [7, 8, 9]);
        allocate().expect_err("all are in use");
        let freed = users[0].id();
        users[0] = TaskUser { id: 0, path: locks.path().join("none"), _lock: tempfile::tempfile().expect("a file") };
        assert_eq!(allocate().expect("one is free").id(), freed);
    }

    #[test]
    fn the_ids_are_those_that_the_user_namespace_has() {
        for (label, map, expected) in [
            ("the machine", "         0          0 4294967295\n", Some(IDS)),
            ("a container", "0 1000 1\n1 100000 65536\n", Some(IDS_IN_CONTAINER)),
            ("a user alone", "0 1000 1\n", None),
        ] {
            assert_eq!(usable_ids(map), expected, "{label}");
        }
    }
}
