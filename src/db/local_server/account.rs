//! The user that the server runs as. PostgreSQL refuses to be root, so root's server is an unprivileged user's.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An unprivileged user that root becomes for the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

/// Who takes the server, in this order: the one that packages make for it, then one that owns nothing.
const NAMES: [&str; 3] = ["postgres", "_postgres", "nobody"];

/// `nobody` of a machine that does not list it.
const NOBODY: u32 = 65534;

/// Why the user of the server cannot work in a folder.
#[derive(Debug)]
pub(super) enum Barred {
    /// This folder on the way is closed to it.
    Closed(PathBuf),
    /// Something else.
    Other(io::Error),
}

impl Account {
    /// The account for a server with this data directory; `None` for one that is not root's.
    ///
    /// Data that is there already stays with its owner: it may come from a run as an ordinary user.
    pub(super) fn of(data: &Path) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let of_data = fs::metadata(data).ok().filter(|data| data.uid() != 0);
        let owner = of_data.map(|data| Self { name: name_of(&users, data.uid()), uid: data.uid(), gid: data.gid() });
        Some(owner.unwrap_or_else(|| unprivileged(&users)))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Makes a command run as this user, with no group but its own.
    pub(super) fn wear(&self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Gives a folder to this user.
    pub(super) fn own(&self, folder: &Path) -> io::Result<()> {
        chown(folder, Some(self.uid), Some(self.gid))
    }

    /// Runs a harmless program as this user in a folder: whether it gets there depends on more than the mode.
    pub(super) fn try_in(&self, folder: &Path, program: &Path) -> Result<(), Barred> {
        let mut command = Command::new(program);
        command.arg("-V").current_dir(folder);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.wear(&mut command);
        match command.status() {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let closed = self.closed_on_the_way(folder).or_else(|| self.closed_on_the_way(program));
                Err(closed.map_or(Barred::Other(error), Barred::Closed))
            }
            Err(error) => Err(Barred::Other(error)),
        }
    }

    /// The first folder on the way to a path that this user cannot pass.
    fn closed_on_the_way(&self, path: &Path) -> Option<PathBuf> {
        let mut folders: Vec<&Path> = path.ancestors().filter(|folder| folder.is_dir()).collect();
        folders.reverse();
        let closed = folders.into_iter().find(|folder| {
            fs::metadata(folder).is_ok_and(|folder| {
                let bit = match () {
                    () if folder.uid() == self.uid => 0o100,
                    () if folder.gid() == self.gid => 0o010,
                    () => 0o001,
                };
                folder.mode() & bit == 0
            })
        });
        closed.map(Path::to_owned)
    }
}

fn unprivileged(users: &str) -> Account {
    let found = NAMES.into_iter().find_map(|wanted| entries(users).find(|account| account.name == wanted));
    found.unwrap_or_else(|| Account { name: "nobody".to_owned(), uid: NOBODY, gid: NOBODY })
}

fn name_of(users: &str, uid: u32) -> String {
    entries(users).find(|account| account.uid == uid).map_or_else(|| uid.to_string(), |account| account.name)
}

/// The lines of `/etc/passwd`: `postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash`.
fn entries(users: &str) -> impl Iterator<Item = Account> {
    users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?.to_owned(), fields.next()?);
        Some(Account { name, uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    })
}

#[cfg(test)]
mod tests {
    use super::{Account, NOBODY, name_of, unprivileged};

    #[test]
    fn the_user_of_the_package_comes_before_nobody() {
        let nobody = "root:x:0:0:root:/root:/bin/sh\nnobody:x:99:98::/:/bin/false\n";
        let postgres = format!("{nobody}broken\npostgres:x:101:104::/var/lib/postgresql:/bin/bash\n");
        let account = |name: &str, uid, gid| Account { name: name.to_owned(), uid, gid };
        assert_eq!(unprivileged(&postgres), account("postgres", 101, 104));
        assert_eq!(unprivileged(nobody), account("nobody", 99, 98));
        assert_eq!(unprivileged(""), account("nobody", NOBODY, NOBODY));
        assert_eq!((name_of(&postgres, 101), name_of(&postgres, 7)), ("postgres".to_owned(), "7".to_owned()));
    }
}
