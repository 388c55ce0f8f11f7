//! The folder of the embedded server: what lies where, what may be wrong with its path, and its locks.
//!
//! | below `<state>/postgres` | what |
//! |---|---|
//! | `data` | the database; only ever a whole one |
//! | `data.new` | one that is being made |
//! | `socket` | the only way in, closed to everybody but the server's user and root |
//! | `log`, `log.old` | what the server says |
//! | `users.lock` | held shared by everybody who uses the server |
//! | `start.lock` | held by who looks whether the server runs, and starts it |
//! | `keeper.lock` | held by the keeper for its life; it also holds its word |
//! | `linger` | until when the server stays without users |
//!
//! The locks are the kernel's (`flock`), so they go with the process that holds them, however it ends. The files stay.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::account::Account;
use super::binaries::Search;
use super::{PORT, fault};
use crate::failure::Failure;

/// The kernel's limit of a socket's path, without the NUL at its end: the smaller one is the BSDs'.
const LONGEST_SOCKET: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// How long the server stays for somebody who was told its URL.
const LINGER: Duration = Duration::from_mins(1);

/// Where an embedded server lives, and where its programs are looked for. Nothing is made before it is started.
#[derive(Debug, Clone)]
pub struct ServerDirectory {
    state: PathBuf,
    folder: PathBuf,
    pub(super) search: Search,
}

impl ServerDirectory {
    /// The server of this state directory, which is absolute.
    pub fn new(state: &Path, search: Search) -> Self {
        Self { state: state.to_owned(), folder: state.join("postgres"), search }
    }

    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub(super) fn new_data(&self) -> PathBuf {
        self.folder.join("data.new")
    }

    pub(super) fn socket_folder(&self) -> PathBuf {
        self.folder.join("socket")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.socket_folder().join(format!(".s.PGSQL.{PORT}"))
    }

    pub(super) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub(super) fn users_lock(&self) -> PathBuf {
        self.folder.join("users.lock")
    }

    pub(super) fn start_lock(&self) -> PathBuf {
        self.folder.join("start.lock")
    }

    pub(super) fn keeper_lock(&self) -> PathBuf {
        self.folder.join("keeper.lock")
    }

    fn linger(&self) -> PathBuf {
        self.folder.join("linger")
    }

    /// Refuses a path with which the server or its clients could not work.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let socket = self.socket();
        let wrong = |why: String| Err(fault(why, "choose another folder for it: SYNCCTL_STATE_DIR"));
        let Some(path) = socket.to_str() else {
            return wrong(format!("the state directory {} is not UTF-8, as the server needs it", self.state.display()));
        };
        // A comma separates hosts in a URL, and the server's own files are made of lines.
        if path.chars().any(|c| c == ',' || c.is_control()) {
            let state = self.state.display().to_string();
            return wrong(format!(
                "the state directory {state:?} has a comma or a control character in its path, with which the \
                 database's socket cannot be named"
            ));
        }
        if path.len() > LONGEST_SOCKET {
            return wrong(format!(
                "the path of the database's socket would have {} bytes, and {LONGEST_SOCKET} are possible: {path}",
                path.len()
            ));
        }
        Ok(())
    }

    /// The first folder on the way up that is there.
    pub(super) fn nearest(&self) -> &Path {
        self.folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"))
    }

    /// Makes the folder. Only root's server is somebody else's, who has to get through.
    pub(super) fn create(&self) -> Result<(), Failure> {
        let (on_the_way, at_the_end) =
            if rustix::process::geteuid().is_root() { (0o755, 0o711) } else { (0o700, 0o700) };
        let missing: Vec<&Path> = self.folder.ancestors().take_while(|folder| !folder.is_dir()).collect();
        for (at, path) in missing.iter().enumerate().rev() {
            let mode = if at == 0 { at_the_end } else { on_the_way };
            let result = match DirBuilder::new().mode(mode).create(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
                // The mask of the process may have taken something away.
                result => result.and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode))),
            };
            if let Err(error) = result {
                // Those that are not empty are not ours alone.
                for path in &missing {
                    fs::remove_dir(path).ok();
                }
                return Err(broken("making the folder", path, &error));
            }
        }
        Ok(())
    }

    /// Makes the folder of the socket, with nothing in it: what an earlier server left would be taken for a living one.
    pub(super) fn clear_socket_folder(&self, account: Option<&Account>) -> Result<(), Failure> {
        let folder = self.socket_folder();
        let made = match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        };
        made.and_then(|()| fs::set_permissions(&folder, Permissions::from_mode(0o700)))
            .and_then(|()| account.map_or(Ok(()), |account| account.own(&folder)))
            .map_err(|error| broken("making the folder", &folder, &error))?;
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            fs::remove_file(entry.path()).ok();
        }
        Ok(())
    }

    /// Keeps the server for a while, though nobody uses it.
    pub(super) fn start_lingering(&self) -> Result<(), Failure> {
        let path = self.linger();
        open(&path)?.set_modified(SystemTime::now()).map_err(|error| broken("changing the time of", &path, &error))
    }

    pub(super) fn stop_lingering(&self) {
        fs::remove_file(self.linger()).ok();
    }

    pub(super) fn is_lingering(&self) -> bool {
        let since = fs::metadata(self.linger()).and_then(|linger| linger.modified()).ok();
        // A clock that was set back must not keep it for years.
        since.and_then(|since| since.elapsed().ok()).is_some_and(|since| since < LINGER)
    }
}

/// Opens a file of ours for reading and writing, and makes it if need be.
pub(super) fn open(path: &Path) -> Result<File, Failure> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| broken("opening", path, &error))
}

/// A failure of the file system.
pub(super) fn broken(doing: &str, path: &Path, error: &io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free space there, or choose another folder",
        _ => "see that the folder belongs to this user, or choose another one",
    };
    fault(
        format!("{doing} {} for the embedded database: {}", path.display(), plain(error)),
        &format!("{hint}: SYNCCTL_STATE_DIR"),
    )
}

/// The system's words without its number.
pub(super) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::{LONGEST_SOCKET, Search, ServerDirectory};
    use std::path::Path;

    fn home(state: &str) -> ServerDirectory {
        ServerDirectory::new(Path::new(state), Search::default())
    }

    #[test]
    fn a_path_is_refused_only_where_no_socket_can_be() {
        let longest = LONGEST_SOCKET - home("/").socket().to_str().expect("UTF-8").len() - 1;
        assert_eq!(home(&format!("/{}", "a".repeat(longest))).check(), Ok(()));
        for (label, state, part) in [
            ("too long", format!("/{}", "a".repeat(longest + 1)), format!("{} bytes", LONGEST_SOCKET + 1)),
            ("a comma", "/a,b".to_owned(), "comma".to_owned()),
            ("a line break", "/a\nb".to_owned(), "control character".to_owned()),
        ] {
            let failure = home(&state).check().expect_err(label);
            assert!(failure.text.contains(&part), "{label}: {failure}");
            assert!(failure.hint().is_some_and(|hint| hint.contains("SYNCCTL_STATE_DIR")), "{label}");
        }
        assert_eq!(home("/with blanks/ä\"'%").check(), Ok(()));
    }
}
