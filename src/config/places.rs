//! Where this machine keeps what outlives a command: the state (a database among it) and the cache; and where it has
//! the programs of PostgreSQL.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::failure::{Class, Failure};

/// The folder of ours below a place that other programs use, too.
const OURS: &str = "syncctl";

/// Folders on this machine.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Places on this machine (each is also an environment variable)")]
pub struct PlacesArgs {
    /// Folder of what has to be kept, the embedded database among it [default: $XDG_STATE_HOME/syncctl, else
    /// ~/.local/state/syncctl, for root /var/lib/syncctl]
    #[arg(long, env = "SYNCCTL_STATE_DIR", value_name = "FOLDER")]
    state_dir: Option<PathBuf>,
    /// Folder of what can be fetched again [default: $XDG_CACHE_HOME/syncctl, else ~/.cache/syncctl, for root
    /// /var/cache/syncctl]
    #[arg(long, env = "SYNCCTL_CACHE_DIR", value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,
}

/// The folders, absolute. Nothing is made here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// What has to be kept.
    pub state: PathBuf,
    /// What can be fetched again.
    pub cache: PathBuf,
}

/// What the defaults are made of.
struct Surroundings {
    root: bool,
    home: Option<OsString>,
    state_home: Option<OsString>,
    cache_home: Option<OsString>,
}

impl Surroundings {
    fn of_this_process() -> Self {
        Self {
            root: rustix::process::geteuid().is_root(),
            home: std::env::var_os("HOME"),
            state_home: std::env::var_os("XDG_STATE_HOME"),
            cache_home: std::env::var_os("XDG_CACHE_HOME"),
        }
    }
}

impl PlacesArgs {
    /// Finds out where everything is.
    pub fn resolve(self) -> Result<Places, Failure> {
        self.resolve_in(Surroundings::of_this_process())
    }

    fn resolve_in(self, around: Surroundings) -> Result<Places, Failure> {
        let Self { state_dir, cache_dir } = self;
        let Surroundings { root, home, state_home, cache_home } = around;
        let home = present(home);
        // Root's own folder is closed to the user without rights that the server of the database has to be.
        let place = |given: Option<PathBuf>, xdg: Option<OsString>, of_root: &str, of_user: &str, variable: &str| {
            if let Some(given) = given.filter(|path| !path.as_os_str().is_empty()) {
                return absolute(&given);
            }
            match (present(xdg).filter(|path| path.is_absolute()), root, &home) {
                (Some(xdg), _, _) => Ok(xdg.join(OURS)),
                (None, true, _) => Ok(Path::new(of_root).join(OURS)),
                (None, false, Some(home)) => absolute(&home.join(of_user).join(OURS)),
                (None, false, None) => {
                    let text = format!("HOME is not set, so there is no default for {variable}: set one of them");
                    Err(Failure::new(Class::Usage, text))
                }
            }
        };
        Ok(Places {
            state: place(state_dir, state_home, "/var/lib", ".local/state", "SYNCCTL_STATE_DIR")?,
            cache: place(cache_dir, cache_home, "/var/cache", ".cache", "SYNCCTL_CACHE_DIR")?,
        })
    }
}

/// An empty variable counts as absent.
fn present(value: Option<OsString>) -> Option<PathBuf> {
    value.filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::new(Class::Usage, format!("finding the folder {}: {error}", path.display())))
}

