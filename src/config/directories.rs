//! Where this machine keeps what outlives a command: the state (with the embedded database) and the cache; and where the
//! programs of PostgreSQL are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{describe, ownership};
use crate::db::local_server::{ProgramSearch, ServerDirectory};
use crate::env::{self, Variable};
use crate::failure::{Class, Failure};

/// Our folder below a directory that other programs use, too.
const SUBDIRECTORY: &str = "syncctl";

/// Directories on this machine, unresolved.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Directories (each is also an environment variable)", mut_args(describe))]
pub struct DirectoryArgs {
    #[arg(long, env = env::STATE_DIR.name)]
    state_dir: Option<PathBuf>,
    #[arg(long, env = env::CACHE_DIR.name)]
    cache_dir: Option<PathBuf>,
    #[arg(long, env = env::POSTGRES_BIN.name)]
    postgres_bin: Option<PathBuf>,
}

/// Absolute paths; nothing is created here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// What must be kept.
    pub state: PathBuf,
    /// What can be fetched again.
    pub cache: PathBuf,
    /// Where the programs of PostgreSQL may be.
    pub postgres: ProgramSearch,
}

/// What the defaults depend on.
struct ProcessEnvironment {
    is_root: bool,
    home: Option<OsString>,
    state_home: Option<OsString>,
    cache_home: Option<OsString>,
    path: Option<OsString>,
}

impl ProcessEnvironment {
    fn current() -> Self {
        Self {
            is_root: rustix::process::geteuid().is_root(),
            home: std::env::var_os("HOME"),
            state_home: std::env::var_os("XDG_STATE_HOME"),
            cache_home: std::env::var_os("XDG_CACHE_HOME"),
            path: std::env::var_os("PATH"),
        }
    }
}

impl DirectoryArgs {
    /// Applies the defaults, and refuses directories that other users can change.
    pub fn resolve(self) -> Result<Directories, Failure> {
        let directories = self.resolve_in(ProcessEnvironment::current())?;
        ownership::check(&directories.state, &env::STATE_DIR)?;
        ownership::check(&directories.cache, &env::CACHE_DIR)?;
        Ok(directories)
    }

    fn resolve_in(self, environment: ProcessEnvironment) -> Result<Directories, Failure> {
        let Self { state_dir, cache_dir, postgres_bin } = self;
        let ProcessEnvironment { is_root, home, state_home, cache_home, path } = environment;
        let home = present(home);
        // The home of root is closed to the unprivileged account that runs the embedded database.
        let directory = |given: Option<PathBuf>, xdg, of_root: &str, of_user: &str, variable: &Variable| {
            if let Some(given) = given.filter(|path| !path.as_os_str().is_empty()) {
                return absolute(&given);
            }
            match (present(xdg).filter(|path| path.is_absolute()), is_root, &home) {
                (Some(xdg), _, _) => Ok(xdg.join(SUBDIRECTORY)),
                (None, true, _) => Ok(Path::new(of_root).join(SUBDIRECTORY)),
                (None, false, Some(home)) => absolute(&home.join(of_user).join(SUBDIRECTORY)),
                (None, false, None) => {
                    let text = format!("{} has no default because HOME is not set: set one of them", variable.name);
                    Err(Failure::new(Class::Usage, text))
                }
            }
        };
        let only = postgres_bin.filter(|path| !path.as_os_str().is_empty());
        Ok(Directories {
            state: directory(state_dir, state_home, "/var/lib", ".local/state", &env::STATE_DIR)?,
            cache: directory(cache_dir, cache_home, "/var/cache", ".cache", &env::CACHE_DIR)?,
            postgres: ProgramSearch {
                only: only.as_deref().map(absolute).transpose()?,
                path: path.iter().flat_map(std::env::split_paths).collect(),
            },
        })
    }
}

impl Directories {
    /// Where the embedded database is.
    pub fn database(&self) -> ServerDirectory {
        ServerDirectory::new(&self.state, self.postgres.clone())
    }
}

/// A path that counts as absent where it is empty.
fn present(value: Option<OsString>) -> Option<PathBuf> {
    value.filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::new(Class::Usage, format!("cannot resolve the path {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::{DirectoryArgs, ProcessEnvironment};
    use std::path::Path;

    fn environment(is_root: bool, home: Option<&str>, xdg: Option<&str>) -> ProcessEnvironment {
        let xdg = xdg.map(Into::into);
        let home = home.map(Into::into);
        ProcessEnvironment { is_root, home, state_home: xdg.clone(), cache_home: xdg, path: None }
    }

    #[test]
    fn an_explicit_directory_wins_over_xdg_and_xdg_over_the_default() {
        for (label, given, environment, expected) in [
            ("given", Some("/s"), environment(false, None, Some("/x")), "/s"),
            ("empty", Some(""), environment(false, Some("/home/a"), None), "/home/a/.local/state/syncctl"),
            ("XDG", None, environment(true, Some("/root"), Some("/x")), "/x/syncctl"),
            ("relative XDG", None, environment(true, Some("/root"), Some("x")), "/var/lib/syncctl"),
            ("empty XDG", None, environment(false, Some("/home/a"), Some("")), "/home/a/.local/state/syncctl"),
            ("root", None, environment(true, Some("/root"), None), "/var/lib/syncctl"),
        ] {
            let args = DirectoryArgs { state_dir: given.map(Into::into), ..DirectoryArgs::default() };
            let directories = args.resolve_in(environment).unwrap_or_else(|failure| panic!("{label}: {failure}"));
            assert_eq!(directories.state, Path::new(expected), "{label}");
        }
    }

    #[test]
    fn a_relative_directory_is_below_the_working_directory() {
        let args = DirectoryArgs { state_dir: Some("there".into()), ..DirectoryArgs::default() };
        let directories = args.resolve_in(environment(true, None, None)).expect("directories");
        assert_eq!(directories.state, std::env::current_dir().expect("a working directory").join("there"));
    }

    #[test]
    fn without_home_the_error_names_both_variables() {
        let failure = DirectoryArgs::default().resolve_in(environment(false, None, None)).expect_err("no HOME");
        assert!(failure.text.contains("HOME") && failure.text.contains("SYNCCTL_STATE_DIR"), "{failure}");
    }
}
