//! The connector as a Python package: the same name and version as the image, installed once.
//!
//! Owns what is under `<cache>/connectors`. Knows nothing of tasks.

mod install;
mod interpreter;
mod names;
mod progress;
mod said;
mod shelf;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use install::{Trouble, Workshop};
use interpreter::{Interpreter, Interpreters};
use names::Package;
use progress::Progress;
use said::{Refusal, shortened};
use shelf::{Note, Place, Shelf, Start};

use super::child::{self, Surroundings};
use super::lock::Lock;
use super::{Connector, ConnectorRequest, ResolvedConnector};
use crate::failure::{Class, Failure};

/// How long a Python or uv may take to say what it is.
const ANSWER: Duration = Duration::from_secs(10);
/// The most versions that an error lists.
const VERSIONS: usize = 6;

/// Removes what killed installations left behind.
pub fn sweep(cache: &Path) {
    Shelf::of(cache).sweep();
}

/// Finds the package in the cache, or installs it.
pub fn find(
    wanted: &ConnectorRequest<'_>,
    tell: &mut dyn FnMut(&str),
    stop: &dyn Fn() -> bool,
) -> Result<ResolvedConnector, Failure> {
    let package = Package::of(wanted.image).map_err(|why| not_found(why, "name the connector by its version"))?;
    Search { wanted, package, shelf: Shelf::of(wanted.cache), stop }.run(tell)
}

struct Search<'a> {
    wanted: &'a ConnectorRequest<'a>,
    package: Package,
    shelf: Shelf,
    stop: &'a dyn Fn() -> bool,
}

impl Search<'_> {
    fn surroundings(&self) -> Surroundings<'_> {
        let ConnectorRequest { environment, working_directory: folder, .. } = self.wanted;
        Surroundings { environment, folder, holds: None, limit: ANSWER }
    }

    fn run(&self, tell: &mut dyn FnMut(&str)) -> Result<ResolvedConnector, Failure> {
        if let Some((place, note)) = self.shelf.find(&self.package, self.surroundings()) {
            return self.found(&place, &note, "as installed in");
        }
        quoted(self.shelf.folder())?;
        std::fs::create_dir_all(self.shelf.folder()).map_err(|error| self.system(&error))?;
        let requirement = self.package.requirement();
        let mut told = None;
        let mut waits = |holder: Option<u32>| {
            if told.replace(holder) != Some(holder) {
                let who = holder.map_or("another syncctl".to_owned(), |pid| format!("the syncctl of process {pid}"));
                tell(&format!("waiting for {who}, which is installing {requirement}"));
            }
        };
        let lock = Lock::take(&self.shelf.lock(&self.package), self.stop, &mut waits)
            .map_err(|error| self.system(&error))?
            .ok_or_else(cancelled)?;
        // Somebody else may have been faster.
        if let Some((place, note)) = self.shelf.find(&self.package, self.surroundings()) {
            return self.found(&place, &note, "as installed in");
        }
        self.install(&lock, tell)
    }

    /// Installs with the first Python that the package takes.
    fn install(&self, lock: &Lock, tell: &mut dyn FnMut(&str)) -> Result<ResolvedConnector, Failure> {
        let requirement = self.package.requirement();
        let ConnectorRequest { environment, working_directory: folder, .. } = *self.wanted;
        let uv = child::program("uv", environment, folder)
            .filter(|uv| child::ask(uv, &["--version"], self.surroundings()).is_some());
        let workshop = Workshop { environment, folder, uv, stop: self.stop };
        let mut progress = Progress::new(&requirement, tell);
        let mut tried: Vec<Interpreter> = Vec::new();
        let mut no_venv: Option<Interpreter> = None;
        let mut unfit: Option<(String, String)> = None;

        let in_path = Interpreters::of_path(self.surroundings());
        let of_uv = std::iter::once_with(|| self.python_of_uv(workshop.uv.as_deref())).flatten();
        for python in in_path.chain(of_uv) {
            if (self.stop)() {
                return Err(cancelled());
            }
            if tried.iter().any(|other| other.short() == python.short()) {
                continue;
            }
            tried.push(python.clone());
            if let Some((_, wants)) = &unfit
                && said::accepts(wants, &python.version) == Some(false)
            {
                continue;
            }
            let place = self.shelf.place(&self.package, &python);
            match workshop.install(&self.package, &python, &place, lock, &mut progress) {
                Ok(note) => return self.found(&place, &note, "installed in"),
                Err(Trouble::Refused(Refusal::OtherPython { package, wants })) => unfit = Some((package, wants)),
                Err(Trouble::Refused(Refusal::NoVenv)) => no_venv = no_venv.or(Some(python)),
                Err(trouble) => return Err(self.told(trouble)),
            }
        }
        Err(match (unfit, no_venv) {
            (_, Some(python)) => without_venv(&python, &requirement),
            (Some((package, wants)), None) => self.needs_python(&package, &wants, &tried),
            (None, None) => without_python(&requirement),
        })
    }

    /// A Python that uv has installed, and `PATH` does not show.
    fn python_of_uv(&self, uv: Option<&Path>) -> Vec<Interpreter> {
        let arguments = ["python", "list", "--only-installed", "--no-python-downloads"];
        let Some(done) = uv.and_then(|uv| child::ask(uv, &arguments, self.surroundings())) else { return Vec::new() };
        // `cpython-3.12.1-linux-x86_64-gnu    /path/of/python3.12 -> …`
        let paths = done.lines.iter().filter_map(|line| line.split_whitespace().nth(1)).map(PathBuf::from);
        paths
            .filter(|path| path.is_absolute())
            .filter_map(|path| Interpreter::ask(&path, self.surroundings()))
            .collect()
    }

    fn found(&self, place: &Place, note: &Note, where_from: &str) -> Result<ResolvedConnector, Failure> {
        let python = quoted(&place.python())?;
        let start = match &note.start {
            Start::Script(name) => quoted(&place.script(name))?,
            Start::Run(module) => format!("-c 'from {module} import run; run()'"),
            Start::Module(module) => format!("-m {module}"),
        };
        // Isolated from what the user's shell sets for Python; `-u`, as images do it, lets every message out at once.
        let entrypoint = format!("{python} -I -u -X utf8 {start}");
        let folder = shown(&place.folder, self.wanted.environment);
        let summary =
            format!("connector: {} from PyPI, {where_from} {folder} (Python {})", note.requirement, note.python);
        let environment = vec![("LANG".to_owned(), "C.UTF-8".to_owned())];
        Ok(ResolvedConnector { connector: Connector::Host { entrypoint, environment }, summary })
    }

    fn told(&self, trouble: Trouble) -> Failure {
        let requirement = self.package.requirement();
        let name = &self.package.name;
        match trouble {
            Trouble::Stopped => cancelled(),
            Trouble::System(error) => self.system(&error),
            Trouble::NoCommand(scripts) if scripts.is_empty() => start_error(
                format!("{requirement} from PyPI has no command that could be run"),
                "check that the package is a connector, or run it with --exec",
            ),
            Trouble::NoCommand(scripts) => start_error(
                format!("{requirement} from PyPI has no command {}, but {}", self.package.command, scripts.join(", ")),
                "run the one that is the connector with --exec",
            ),
            Trouble::Refused(refusal) => match refusal {
                Refusal::Network(why) => Failure::new(
                    Class::ImagePull,
                    format!("{requirement} cannot be fetched, as the Python package index does not answer: {why}"),
                )
                .with_hint("check the network and the proxy of this machine, and PIP_INDEX_URL if it is set"),
                Refusal::NoPackage => {
                    not_found(format!("PyPI has no package {name}"), "check the name of the connector")
                }
                Refusal::NoVersion(versions) => not_found(
                    format!("PyPI has no version {} of {name}{}", self.package.version, latest(&versions)),
                    "choose another version",
                ),
                Refusal::DiskFull => self.full(),
                Refusal::NotBuilt { package, why } => start_error(
                    format!("installing {requirement} failed, as its part {package} cannot be built here: {why}"),
                    "install what the build asks for, or run the image with Docker or Podman",
                ),
                Refusal::NoDependency(what) => start_error(
                    format!("{requirement} cannot be installed, as it needs {what}, which is not to be had"),
                    "choose another version of the connector, or run the image with Docker or Podman",
                ),
                Refusal::OtherPython { package, wants } => self.needs_python(&package, &wants, &[]),
                Refusal::NoVenv => {
                    start_error(format!("no virtual environment can be made for {requirement}"), "install uv")
                }
                Refusal::Other(why) => start_error(
                    format!("installing {requirement} failed: {why}"),
                    "choose another version of the connector, or run the image with Docker or Podman",
                ),
            },
        }
    }

    fn needs_python(&self, package: &str, wants: &str, tried: &[Interpreter]) -> Failure {
        let requirement = self.package.requirement();
        let who = if names::normalized(package) == names::normalized(&self.package.name) {
            format!("{requirement} needs")
        } else {
            format!("{requirement} cannot be installed: its part {package} needs")
        };
        let versions: Vec<&str> = tried.iter().map(|python| python.version.as_str()).collect();
        start_error(
            format!("{who} Python {wants}, and PATH has {}", versions.join(", ")),
            "install such a Python and put it into PATH, or run the image with Docker or Podman",
        )
    }

    fn system(&self, error: &std::io::Error) -> Failure {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        if matches!(error.kind(), StorageFull | QuotaExceeded) {
            return self.full();
        }
        start_error(
            format!(
                "the cache folder {} cannot be used: {}",
                self.shelf.folder().display(),
                shortened(&error.to_string())
            ),
            "make it writable for this user, or choose another cache folder",
        )
    }

    fn full(&self) -> Failure {
        start_error(
            format!(
                "the disk is full: {} cannot be installed in {}",
                self.package.requirement(),
                self.shelf.folder().display()
            ),
            "free some space there: connectors take up to 1 GB",
        )
    }
}

fn not_found(text: impl Into<String>, hint: &str) -> Failure {
    Failure::new(Class::ImageNotFound, text).with_hint(hint)
}

fn start_error(text: impl Into<String>, hint: &str) -> Failure {
    Failure::new(Class::StartError, text).with_hint(hint)
}

/// What is told when the user has had enough.
pub fn cancelled() -> Failure {
    Failure::new(Class::Cancelled, "cancelled while the connector was looked for")
}

/// The newest versions, in words. Previews count only where there is nothing else.
fn latest(versions: &[String]) -> String {
    let is_release = |version: &&String| version.chars().all(|c| c.is_ascii_digit() || c == '.');
    let releases: Vec<&String> = versions.iter().filter(is_release).collect();
    let all: Vec<&String> = if releases.is_empty() { versions.iter().collect() } else { releases };
    let mut newest: Vec<&str> = all.iter().rev().take(VERSIONS).map(|version| version.as_str()).collect();
    newest.reverse();
    if newest.is_empty() {
        return String::new();
    }
    let mut text = format!(", but {}", newest.join(", "));
    if versions.len() > newest.len() {
        write!(text, " and {} others", versions.len() - newest.len()).expect("a String takes any text");
    }
    text
}

/// How packages are installed on this machine: the command, with a blank at its end, and the name of Python's `venv`.
fn package_manager() -> Option<(&'static str, &'static str)> {
    if cfg!(target_os = "macos") {
        return Some(("brew install ", ""));
    }
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let likes = release.lines().filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")));
    let likes: Vec<&str> = likes.flat_map(|names| names.trim_matches('"').split(' ')).collect();
    likes.iter().find_map(|name| match *name {
        "debian" | "ubuntu" => Some(("apt install ", "-venv")),
        "fedora" | "rhel" | "centos" => Some(("dnf install ", "")),
        "alpine" => Some(("apk add ", "")),
        "arch" => Some(("pacman -S ", "")),
        "suse" | "opensuse" => Some(("zypper install ", "")),
        _ => None,
    })
}

fn without_python(requirement: &str) -> Failure {
    let how = match package_manager() {
        Some((command, "")) => format!("`{command}python3`"),
        Some((command, venv)) => format!("`{command}python3 python3{venv}`"),
        None => "your system's packages".to_owned(),
    };
    start_error(
        format!("{requirement} from PyPI needs Python 3, which is not in PATH: install it with {how}"),
        "or install uv, Docker or Podman",
    )
}

fn without_venv(python: &Interpreter, requirement: &str) -> Failure {
    let short = python.short();
    let how = match package_manager() {
        Some((command, venv)) => format!("`{command}python{short}{venv}`"),
        None => "your system's packages".to_owned(),
    };
    start_error(
        format!(
            "Python {short} has no venv module, which installing {requirement} from PyPI needs: install it with {how}"
        ),
        "or install uv, Docker or Podman",
    )
}

/// A path as a word of a shell command.
fn quoted(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().ok_or_else(|| {
        start_error(format!("the cache folder's name is no UTF-8: {}", path.display()), "choose another cache folder")
    })?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

/// A path for people: `~` for the home folder.
fn shown(path: &Path, environment: &[(String, String)]) -> String {
    let home = child::variable(environment, "HOME").filter(|home| !home.is_empty() && *home != "/");
    match home.and_then(|home| path.strip_prefix(home).ok()) {
        Some(rest) => format!("~/{}", rest.display()),
        None => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{latest, quoted, shown};
    use std::path::Path;

    #[test]
    fn of_many_versions_the_newest_releases_are_told() {
        let versions = |list: &[&str]| list.iter().map(|version| (*version).to_owned()).collect::<Vec<_>>();
        assert_eq!(latest(&[]), "");
        assert_eq!(latest(&versions(&["1", "2"])), ", but 1, 2");
        assert_eq!(latest(&versions(&["1rc1"])), ", but 1rc1");
        let many = versions(&["1", "2", "3rc1", "3", "4", "5", "6", "7", "8.dev1"]);
        assert_eq!(latest(&many), ", but 2, 3, 4, 5, 6, 7 and 3 others");
    }

    #[test]
    fn a_path_is_one_word_of_a_shell_whatever_is_in_it() {
        assert_eq!(quoted(Path::new("/a b/it's $HOME")).expect("UTF-8"), r"'/a b/it'\''s $HOME'");
    }

    #[test]
    fn the_home_folder_is_shown_as_a_tilde() {
        let environment = [("HOME".to_owned(), "/home/me".to_owned())];
        assert_eq!(shown(Path::new("/home/me/.cache/x"), &environment), "~/.cache/x");
        assert_eq!(shown(Path::new("/home/mean"), &environment), "/home/mean");
    }
}
