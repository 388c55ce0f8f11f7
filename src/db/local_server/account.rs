//! The user that runs the server of root: PostgreSQL refuses to run as root.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::errors::{reason, unavailable};
use crate::failure::Failure;

/// An unprivileged user who runs the server of root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

/// In order of preference: the user that packages create for it, then the one without files.
const NAMES: [&str; 3] = ["postgres", "_postgres", "nobody"];

/// The id of the last one on a machine that does not list it.
const NOBODY_ID: u32 = 65534;

impl Account {
    /// The user for a data directory; `None` unless this process is root.
    ///
    /// An existing data directory keeps its owner: an ordinary user may have created it.
    pub(super) fn of(data: &Path) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let owner = fs::metadata(data).ok().map(|data| (data.uid(), data.gid())).filter(|(uid, _)| *uid != 0);
        Some(choose(&users, owner))
    }

    /// Makes a command run as this user, without supplementary groups.
    pub(super) fn run_as(&self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    pub(super) fn take_ownership(&self, path: &Path) -> io::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
    }

    /// Checks that this user can run a program in a directory: runs it, since that depends on more than the mode.
    pub(super) fn check_access(&self, directory: &Path, program: &Path) -> Result<(), Failure> {
        let mut command = Command::new(program);
        command.arg("-V").current_dir(directory).stdin(Stdio::null());
        self.run_as(&mut command);
        let Err(error) = command.output() else { return Ok(()) };
        let closed = [directory, program].into_iter().find_map(|path| self.closed_parent(path));
        let problem = match closed.filter(|_| error.kind() == io::ErrorKind::PermissionDenied) {
            Some(closed) => format!("cannot enter {}", closed.display()),
            None => format!("cannot run {}: {}", program.display(), reason(&error)),
        };
        let text = format!("root's embedded database runs as the user {:?}, who {problem}", self.name);
        Err(unavailable(text, "choose directories that this user can enter: SYNCCTL_STATE_DIR, SYNCCTL_POSTGRES_BIN"))
    }

    /// The first directory of a path that this user cannot enter.
    fn closed_parent(&self, path: &Path) -> Option<PathBuf> {
        let is_closed = |path: &&Path| {
            let is_others = |path: &Metadata| path.uid() != self.uid && path.gid() != self.gid;
            fs::metadata(path).is_ok_and(|path| path.is_dir() && is_others(&path) && path.mode() & 0o001 == 0)
        };
        path.ancestors().filter(is_closed).last().map(Path::to_owned)
    }
}

/// The owner of the data directory, else the preferred user.
fn choose(users: &str, owner: Option<(u32, u32)>) -> Account {
    if let Some((uid, gid)) = owner {
        let name = users_in(users).find(|user| user.uid == uid).map_or_else(|| uid.to_string(), |user| user.name);
        return Account { name, uid, gid };
    }
    let preferred = NAMES.into_iter().find_map(|name| users_in(users).find(|user| user.name == name));
    preferred.unwrap_or_else(|| Account { name: "nobody".to_owned(), uid: NOBODY_ID, gid: NOBODY_ID })
}

/// The lines of `/etc/passwd`: `postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash`.
fn users_in(users: &str) -> impl Iterator<Item = Account> {
    users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?.to_owned(), fields.next()?);
        Some(Account { name, uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    })
}

#[cfg(test)]
mod tests {
    use super::{Account, NOBODY_ID, choose};

    #[test]
    fn choose_takes_the_owner_then_the_user_of_the_package() {
        let nobody = "root:x:0:0:root:/root:/bin/sh\nnobody:x:99:98::/:/bin/false\n";
        let postgres = format!("{nobody}broken\npostgres:x:101:104::/var/lib/postgresql:/bin/bash\n");
        let account = |name: &str, uid, gid| Account { name: name.to_owned(), uid, gid };
        assert_eq!(choose(&postgres, None), account("postgres", 101, 104));
        assert_eq!(choose(nobody, None), account("nobody", 99, 98));
        assert_eq!(choose("", None), account("nobody", NOBODY_ID, NOBODY_ID));
        assert_eq!(choose(&postgres, Some((101, 5))), account("postgres", 101, 5));
        assert_eq!(choose(&postgres, Some((7, 5))), account("7", 7, 5));
    }
}
