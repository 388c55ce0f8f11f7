//! Where this machine keeps what outlives a command: the state (a database among it) and the cache; and where it has
//! the programs of PostgreSQL.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::db::local_server::{Search, ServerDirectory};
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
    /// Folder of the programs postgres and initdb; no other one is looked at then [default: PATH, then where packages
    /// put them]
    #[arg(long, env = "SYNCCTL_POSTGRES_BIN", value_name = "FOLDER")]
    postgres_bin: Option<PathBuf>,
}

/// The folders, absolute. Nothing is made here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// What has to be kept.
    pub state: PathBuf,
    /// What can be fetched again.
    pub cache: PathBuf,
    /// Where the programs of PostgreSQL are looked for.
    pub postgres: Search,
}

/// What the defaults are made of.
struct Surroundings {
    root: bool,
    home: Option<OsString>,
    state_home: Option<OsString>,
    cache_home: Option<OsString>,
    path: Option<OsString>,
}

impl Surroundings {
    fn of_this_process() -> Self {
        Self {
            root: rustix::process::geteuid().is_root(),
            home: std::env::var_os("HOME"),
            state_home: std::env::var_os("XDG_STATE_HOME"),
            cache_home: std::env::var_os("XDG_CACHE_HOME"),
            path: std::env::var_os("PATH"),
        }
    }
}

impl PlacesArgs {
    /// Finds out where everything is.
    pub fn resolve(self) -> Result<Places, Failure> {
        self.resolve_in(Surroundings::of_this_process())
    }

    fn resolve_in(self, around: Surroundings) -> Result<Places, Failure> {
        let Self { state_dir, cache_dir, postgres_bin } = self;
        let Surroundings { root, home, state_home, cache_home, path } = around;
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
        let only = postgres_bin.filter(|path| !path.as_os_str().is_empty());
        Ok(Places {
            state: place(state_dir, state_home, "/var/lib", ".local/state", "SYNCCTL_STATE_DIR")?,
            cache: place(cache_dir, cache_home, "/var/cache", ".cache", "SYNCCTL_CACHE_DIR")?,
            postgres: Search {
                only: only.as_deref().map(absolute).transpose()?,
                path: path.iter().flat_map(std::env::split_paths).collect(),
            },
        })
    }
}

impl Places {
    /// Where the embedded database lives.
    pub fn database(&self) -> ServerDirectory {
        ServerDirectory::new(&self.state, self.postgres.clone())
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

#[cfg(test)]
mod tests {
    use super::{PlacesArgs, Surroundings};
    use std::path::Path;

    fn around(root: bool, home: Option<&str>, xdg: Option<&str>) -> Surroundings {
        let xdg = xdg.map(Into::into);
        Surroundings { root, home: home.map(Into::into), state_home: xdg.clone(), cache_home: xdg, path: None }
    }

    #[test]
    fn a_place_is_what_was_given_else_what_the_desktop_says_else_the_users() {
        for (label, given, around, expected) in [
            ("given", Some("/s"), around(false, None, Some("/x")), "/s"),
            ("given as nothing", Some(""), around(false, Some("/home/a"), None), "/home/a/.local/state/syncctl"),
            ("XDG", None, around(true, Some("/root"), Some("/x")), "/x/syncctl"),
            ("XDG that is not absolute", None, around(true, Some("/root"), Some("x")), "/var/lib/syncctl"),
            ("empty XDG", None, around(false, Some("/home/a"), Some("")), "/home/a/.local/state/syncctl"),
            ("root", None, around(true, Some("/root"), None), "/var/lib/syncctl"),
        ] {
            let args = PlacesArgs { state_dir: given.map(Into::into), ..PlacesArgs::default() };
            let places = args.resolve_in(around).unwrap_or_else(|failure| panic!("{label}: {failure}"));
            assert_eq!(places.state, Path::new(expected), "{label}");
        }
    }

    #[test]
    fn a_relative_place_counts_from_here() {
        let args = PlacesArgs { state_dir: Some("there".into()), ..PlacesArgs::default() };
        let places = args.resolve_in(around(true, None, None)).expect("places");
        assert_eq!(places.state, std::env::current_dir().expect("a folder").join("there"));
    }

    #[test]
    fn without_a_home_both_ways_out_are_named() {
        let failure = PlacesArgs::default().resolve_in(around(false, None, None)).expect_err("no home");
        assert!(failure.text.contains("HOME") && failure.text.contains("SYNCCTL_STATE_DIR"), "{failure}");
    }
}
