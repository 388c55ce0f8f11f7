//! The directory of the embedded database: its paths, what may be wrong with them, and its locks.
//!
//! | below `<state>/postgres` | what |
//! |---|---|
//! | `data` | the data directory; complete if it exists |
//! | `data.new` | one that initdb is creating |
//! | `socket` | the directory of the socket, accessible to the server's user and root alone |
//! | `log`, `log.old` | the log of the server |
//! | `*.lock` | the locks; the files stay |
//! | `linger` | modified when the server was last asked to run on without users |

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::errors::{storage_failure, unavailable};
use crate::failure::Failure;

/// Held exclusively by a process that starts or stops the server.
pub(super) const START_LOCK: &str = "start.lock";
/// Held shared by each user of the server.
pub(super) const USERS_LOCK: &str = "users.lock";
/// Held by all processes of the server.
pub(super) const SERVER_LOCK: &str = "server.lock";
/// Held by the holder.
pub(super) const HOLDER_LOCK: &str = "holder.lock";

/// The kernel's limit of a socket's path, without the NUL at its end; BSD has the smaller one.
const MAX_SOCKET_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// How long the server runs on without users for clients that got its URL …
const LINGER_TIME: Duration = Duration::from_mins(1);
/// … since this file was modified.
const LINGER_FILE: &str = "linger";

/// How long another process may hold the start lock: a server that recovers from a crash, and then stops.
const LOCK_TIMEOUT: Duration = Duration::from_mins(20);

/// The port: only a part of the socket's name, because nothing listens on the network.
pub const PORT: u16 = 5432;

/// Where to look for the programs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgramSearch {
    /// The only directory, if there is one.
    pub only: Option<PathBuf>,
    /// The directories of PATH.
    pub path: Vec<PathBuf>,
}

/// The directory of one embedded database, and where to look for the programs that run it.
#[derive(Debug, Clone)]
pub struct ServerDirectory {
    pub(super) state: PathBuf,
    pub(super) path: PathBuf,
    pub(super) search: ProgramSearch,
}

impl ServerDirectory {
    /// The one in this state directory, which is an absolute path. Creates nothing.
    pub fn new(state: &Path, search: ProgramSearch) -> Self {
        Self { state: state.to_owned(), path: state.join("postgres"), search }
    }

    pub(super) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    pub(super) fn socket_directory(&self) -> PathBuf {
        self.path.join("socket")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Refuses a path with which the server or its clients cannot work.
    pub(super) fn check_path(&self) -> Result<(), Failure> {
        let socket = self.socket_directory().join(format!(".s.PGSQL.{PORT}")).display().to_string();
        // A comma separates hosts in a URL, and a line break the lines in the server's files.
        let is_impossible = |c: char| c == ',' || c.is_control() || c == char::REPLACEMENT_CHARACTER;
        let problem = if socket.contains(is_impossible) {
            "has a comma, a control character or invalid UTF-8 in its path".to_owned()
        } else if socket.len() > MAX_SOCKET_PATH {
            format!("is too long: the path of the socket has {} bytes of {MAX_SOCKET_PATH} possible", socket.len())
        } else {
            return Ok(());
        };
        let text = format!("the state directory {:?} {problem}", self.state.display().to_string());
        Err(unavailable(text, "choose another state directory: SYNCCTL_STATE_DIR"))
    }

    /// Creates the directory and its parents. Root's server runs as another user, who must be able to enter them.
    pub(super) fn create(&self) -> Result<(), Failure> {
        let missing: Vec<&Path> = self.path.ancestors().take_while(|path| !path.is_dir()).collect();
        let mode = if rustix::process::geteuid().is_root() { 0o755 } else { 0o700 };
        let created = DirBuilder::new().recursive(true).mode(mode).create(&self.path);
        // The umask of the process may have removed permissions.
        let set_mode = |path: &&Path| fs::set_permissions(path, Permissions::from_mode(mode));
        let created = created.and_then(|()| missing.iter().try_for_each(set_mode));
        created.map_err(|error| storage_failure("create", &self.path, &error))
    }

    /// Takes a lock; `None` if another process holds it.
    pub(super) fn try_lock(&self, name: &str) -> Result<Option<File>, Failure> {
        let file = self.open(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(storage_failure("lock", &self.path.join(name), &error)),
        }
    }

    /// Takes the start lock, which other processes hold only while they start or stop the server.
    pub(super) fn lock_start(&self) -> Result<File, Failure> {
        self.poll(LOCK_TIMEOUT, "waiting for another start or stop of", || self.try_lock(START_LOCK))
    }

    /// Takes the lock of the users as one of them. The caller holds the start lock: without that no process takes it
    /// exclusively.
    pub(super) fn lock_users(&self) -> Result<File, Failure> {
        let file = self.open(USERS_LOCK)?;
        let locked = file.lock_shared().map(|()| file);
        locked.map_err(|error| storage_failure("lock", &self.path.join(USERS_LOCK), &error))
    }

    fn open(&self, name: &str) -> Result<File, Failure> {
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.open(&path).map_err(|error| storage_failure("open", &path, &error))
    }

    /// Calls a function every few milliseconds until it returns a value or an error.
    pub(super) fn poll<T>(
        &self,
        limit: Duration,
        action: &str,
        mut function: impl FnMut() -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(value) = function()? {
                return Ok(value);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(self.failure(format!("{action} the embedded database took longer than {} s", limit.as_secs())))
    }

    pub(super) fn start_lingering(&self) -> Result<(), Failure> {
        let path = self.path.join(LINGER_FILE);
        fs::write(&path, "").map_err(|error| storage_failure("write", &path, &error))
    }

    pub(super) fn stop_lingering(&self) {
        fs::remove_file(self.path.join(LINGER_FILE)).ok();
    }

    pub(super) fn is_lingering(&self) -> bool {
        let since = fs::metadata(self.path.join(LINGER_FILE)).and_then(|file| file.modified()).ok();
        // A time in the future, of a clock that was set back, does not count.
        since.and_then(|since| since.elapsed().ok()).is_some_and(|since| since < LINGER_TIME)
    }

    /// A failure that the log may explain.
    pub(super) fn failure(&self, text: String) -> Failure {
        unavailable(text, format!("see {}", self.log().display()))
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_SOCKET_PATH, ProgramSearch, ServerDirectory};
    use std::path::Path;

    fn directory(state: &str) -> ServerDirectory {
        ServerDirectory::new(Path::new(state), ProgramSearch::default())
    }

    #[test]
    fn check_path_refuses_only_impossible_sockets() {
        let longest = MAX_SOCKET_PATH - "//postgres/socket/.s.PGSQL.5432".len();
        assert_eq!(directory(&format!("/{}", "a".repeat(longest))).check_path(), Ok(()));
        for (label, state, part) in [
            ("too long", format!("/{}", "a".repeat(longest + 1)), format!("{} bytes", MAX_SOCKET_PATH + 1)),
            ("a comma", "/a,b".to_owned(), "comma".to_owned()),
            ("a line break", "/a\nb".to_owned(), "control character".to_owned()),
        ] {
            let failure = directory(&state).check_path().expect_err(label);
            assert!(failure.text.contains(&part), "{label}: {failure}");
            assert!(failure.hint().is_some_and(|hint| hint.contains("SYNCCTL_STATE_DIR")), "{label}");
        }
        assert_eq!(directory("/with blanks/ä\"'%").check_path(), Ok(()));
    }
}
