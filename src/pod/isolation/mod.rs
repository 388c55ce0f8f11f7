//! Isolation of foreign code on this machine: connectors that are Python packages, and their installation.
//!
//! The [`launcher`] enters new namespaces, builds a root file system of what a [`Sandbox`] lists, and starts the [`init`],
//! the first process of the new PID namespace, which runs the program. As root the program runs as a user of its own
//! ([`user`]), otherwise as the same user without capabilities in a user namespace. Whatever the program started ends with
//! the init, and the init ends with the launcher. Knows nothing of tasks, pipes and documents.

mod init;
mod landlock;
mod launcher;
mod root;
mod user;
mod view;

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::process::this_program;

pub use init::run as run_init;
pub use launcher::run as launch;
pub use user::TaskUser;
pub use view::View;

/// The hidden command of the launcher.
pub const COMMAND: &str = "isolate";
/// Configures this program's allocator.
const ALLOCATOR_SETTINGS: &str = "_RJEM_MALLOC_CONF";
/// The exit code of a launcher that cannot isolate; its last line on stderr is the reason.
pub const EXIT_NOT_ISOLATED: u8 = 125;

/// What an isolated program can access, besides the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The user and group that it runs as; `None`: the user of this process, in a user namespace.
    pub user: Option<u32>,
    /// In the order of their creation: a later one may be inside of an earlier one.
    pub mounts: Vec<Mount>,
    /// Symbolic links: path and target.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Small files: path and text.
    pub files: Vec<(PathBuf, String)>,
    /// The working directory, as the program sees it.
    pub working_directory: PathBuf,
    /// Whether the program starts once a line arrives on stdin and ends with the end of stdin, rather than only with the
    /// launcher.
    pub follows_stdin: bool,
    /// Whether stderr is a lock file, which stays open as long as the program runs; its stderr is its stdout then.
    pub holds_lock: bool,
}

/// A file or directory that the program sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Its path for the program.
    pub target: PathBuf,
    /// What is there.
    pub content: Content,
}

/// The content of a [`Mount`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// A file or directory of this machine, by its path without symbolic links.
    ReadOnly(PathBuf),
    /// The same, with the permissions that its mode gives.
    Writable(PathBuf),
    /// A device of this machine.
    Device(PathBuf),
    /// An empty directory, in place of what must not be seen.
    Empty,
}

/// Isolates the programs of one task.
#[derive(Debug)]
pub struct Isolator {
    user: Option<TaskUser>,
    private: Vec<PathBuf>,
}

impl Isolator {
    /// Chooses the user of the task. `private` are directories that no program sees, even inside of others.
    pub fn new(private: &[&Path]) -> Result<Self, String> {
        let private = private.iter().map(|path| path.to_path_buf()).collect();
        Ok(Self { user: TaskUser::of_this_process()?, private })
    }

    /// What every program of the task sees, with this home directory.
    pub fn view(&self, home: &Path) -> View {
        let mut view = View::of_system();
        view.hide(&self.private);
        view.run_as(self.user.as_ref(), home);
        view
    }

    /// Makes the programs of the task the owners of a file or directory.
    pub fn give(&self, path: &Path) -> std::io::Result<()> {
        let Some(user) = &self.user else { return Ok(()) };
        std::os::unix::fs::lchown(path, Some(user.id()), Some(user.id()))
    }

    /// Takes a directory with all that is in it back from the programs of the task: later tasks, which have other users, can
    /// read and execute it, and no task can change it.
    pub fn take_back(&self, directory: &Path) -> std::io::Result<()> {
        user::take_back(directory, self.user.is_some())
    }
}

/// Whether this machine can isolate, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// It can.
    Available {
        /// The version of Landlock in the kernel; 0 if it has none.
        landlock: u32,
    },
    /// It cannot: why.
    Unavailable(String),
}

impl Isolation {
    /// Isolates a process that does nothing.
    pub fn probe() -> Self {
        let probe = || -> Result<u32, String> {
            let user = TaskUser::of_this_process()?;
            let mut view = View::of_system();
            view.run_as(user.as_ref(), Path::new("/"));
            let mut command = view.into_sandbox().command(None, None, &[""; 0], [("", ""); 0]);
            command.stdin(Stdio::null());
            let output = command.output().map_err(|error| error.to_string())?;
            let text =
                |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().lines().last().unwrap_or_default().to_owned();
            match output.status.code() {
                Some(0) => text(&output.stdout).parse().map_err(|_| "the probe has printed no version".to_owned()),
                _ => Err(text(&output.stderr)),
            }
        };
        match probe() {
            Ok(landlock) => Self::Available { landlock },
            Err(reason) => Self::Unavailable(reason),
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Available { landlock: 0 } => {
                write!(f, "namespaces, without Landlock, which this kernel does not have")
            }
            Self::Available { landlock } => write!(f, "namespaces and Landlock (ABI {landlock})"),
            Self::Unavailable(reason) => write!(f, "none: {reason}"),
        }
    }
}

impl Sandbox {
    /// A command that runs a program isolated, with these variables alone. Without a program it prints the version of
    /// Landlock. `mark` identifies the launcher among other processes.
    pub fn command<A: AsRef<OsStr>, V: AsRef<OsStr>>(
        &self,
        mark: Option<&str>,
        program: Option<&Path>,
        arguments: &[A],
        variables: impl IntoIterator<Item = (V, V)>,
    ) -> Command {
        let mut command = this_program();
        command.arg(COMMAND);
        if let Some(mark) = mark {
            command.arg("--mark").arg(mark);
        }
        // Paths alone: no secrets. Without this text, which a path that is not UTF-8 prevents, the launcher starts nothing.
        let sandbox = serde_json::to_string(self).unwrap_or_default();
        command.arg("--sandbox").arg(sandbox).arg("--").args(program).args(arguments);
        // With the background threads of the allocator the process could not enter a user namespace.
        command.env_clear().envs(variables).env(ALLOCATOR_SETTINGS, "background_thread:false");
        command
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::Sandbox;

    #[test]
    fn a_path_that_is_not_utf_8_gives_the_launcher_no_sandbox() {
        let sandbox = Sandbox { working_directory: OsStr::from_bytes(b"/\xff").into(), ..Sandbox::default() };
        let command = sandbox.command(None, None, &[""; 0], [("", ""); 0]);
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(arguments[..3], ["isolate", "--sandbox", ""]);
    }
}
