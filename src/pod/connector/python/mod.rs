//! Resolves the connector's Python package: the one of the same name and version as the image, installed once.
//!
//! Owns `connectors` in syncctl's cache directory. Knows nothing of tasks.

mod cache;
mod installer;
mod interpreter;
mod package;

use std::io::ErrorKind;
use std::path::Path;

use cache::{Environment, EnvironmentCache, Lock, Manifest};
use installer::{InstallError, Installer};
use interpreter::Interpreter;
use package::Package;

use super::subprocess::ProcessEnvironment;
use super::{Connector, InstalledPackage, ResolvedConnector};
use crate::failure::{Class, Failure};
use crate::pod::isolation::Isolator;
use crate::task::Image;

/// The command that installs Python with its `venv` module, by the `ID` or `ID_LIKE` of `/etc/os-release`.
const INSTALL_COMMANDS: [(&str, &str); 5] = [
    ("debian", "apt install python3 python3-venv"),
    ("fedora", "dnf install python3"),
    ("alpine", "apk add python3"),
    ("arch", "pacman -S python"),
    ("suse", "zypper install python3"),
];

/// Removes what killed installations left behind.
pub fn remove_incomplete(cache: &Path) {
    EnvironmentCache::new(cache).remove_incomplete();
}

/// Finds the package in the environment cache, or installs it.
pub fn resolve(
    image: &Image,
    cache: &Path,
    process: ProcessEnvironment<'_>,
    isolator: Option<&Isolator>,
    on_progress: &mut dyn FnMut(&str),
) -> Result<ResolvedConnector, Failure> {
    let package = Package::of(image)
        .map_err(|why| Failure::new(Class::ImageNotFound, why).with_hint("name the connector by its version"))?;
    Resolver { package, cache: EnvironmentCache::new(cache), process, isolator }.resolve(on_progress)
}

struct Resolver<'a> {
    package: Package,
    cache: EnvironmentCache,
    process: ProcessEnvironment<'a>,
    isolator: Option<&'a Isolator>,
}

impl Resolver<'_> {
    fn resolve(&self, on_progress: &mut dyn FnMut(&str)) -> Result<ResolvedConnector, Failure> {
        if let Some(resolved) = self.cached() {
            return resolved;
        }
        quote(&self.cache.directory)?;
        let mut reported = None;
        let mut on_wait = |holder: Option<u32>| {
            if reported.replace(holder) != Some(holder) {
                let holder = holder.map_or("another process".to_owned(), |pid| format!("process {pid}"));
                on_progress(&format!("Waiting for {holder}, which is installing {}", self.package.requirement()));
            }
        };
        let lock = self
            .cache
            .lock(&self.package, self.process.is_cancelled, &mut on_wait)
            .map_err(|error| self.failure(error.into(), &[]))?
            .ok_or_else(|| Failure::new(Class::Cancelled, "cancelled while waiting for another installation"))?;
        // The previous holder of the lock may have installed it.
        if let Some(resolved) = self.cached() {
            return resolved;
        }
        self.install(&lock, on_progress)
    }

    fn cached(&self) -> Option<Result<ResolvedConnector, Failure>> {
        let (environment, manifest, python) = self.cache.find(&self.package, self.process)?;
        if let Some(isolator) = self.isolator.filter(|_| !manifest.is_sealed) {
            // Of an older version: the user of this task may be unable to read it.
            let manifest = Manifest { is_sealed: true, ..manifest.clone() };
            let sealed =
                isolator.take_back(&environment.directory).and_then(|()| environment.write_manifest(&manifest));
            if let Err(error) = sealed {
                tracing::debug!(%error, "another task seals the environment");
            }
        }
        Some(self.resolved(&environment, &manifest, &python, "cached in"))
    }

    /// Installs with the first interpreter that succeeds.
    fn install(&self, lock: &Lock, on_progress: &mut dyn FnMut(&str)) -> Result<ResolvedConnector, Failure> {
        let process = ProcessEnvironment { lock: Some(&lock.file), ..self.process };
        let installer = Installer::new(process, self.isolator);
        let requirement = self.package.requirement();
        let mut tried: Vec<Interpreter> = Vec::new();
        let mut first_error = None;
        let mut without_venv = None;
        for python in Interpreter::all(installer.uv.as_deref(), self.process) {
            if tried.iter().any(|other| other.minor() == python.minor()) {
                continue;
            }
            if installer.uv.is_none() && !python.has_venv(self.process) {
                without_venv = without_venv.or(Some(python.version));
                continue;
            }
            on_progress(&format!("Installing {requirement} with Python {}", python.version));
            let environment = self.cache.environment(&self.package, &python);
            let result = installer.install(&self.package, &python, &environment);
            if let Ok(manifest) = result {
                return self.resolved(&environment, &manifest, &python, "installed in");
            }
            tried.push(python);
            match result {
                Ok(_) => {}
                Err(error @ InstallError::Failed(_)) => drop(first_error.get_or_insert(error)),
                Err(error) => return Err(self.failure(error, &tried)),
            }
            if (self.process.is_cancelled)() {
                break;
            }
        }
        Err(match (first_error, without_venv) {
            (Some(error), _) => self.failure(error, &tried),
            (None, Some(version)) => missing_python(&format!(
                "installing {requirement} from PyPI requires the module venv, which Python {version} does not have"
            )),
            (None, None) => {
                missing_python(&format!("installing {requirement} from PyPI requires Python 3, which is not in PATH"))
            }
        })
    }

    fn resolved(
        &self,
        environment: &Environment,
        manifest: &Manifest,
        python: &Interpreter,
        origin: &str,
    ) -> Result<ResolvedConnector, Failure> {
        let package =
            InstalledPackage { environment: environment.directory.clone(), interpreter: python.directories() };
        let program = std::iter::once(quote(&environment.python()));
        let words = environment.arguments(&manifest.start).into_iter().map(|word| quote(Path::new(&word)));
        let entrypoint = program.chain(words).collect::<Result<Vec<_>, _>>()?.join(" ");
        let directory = abbreviate_home(&environment.directory, self.process.variable("HOME"));
        let Manifest { requirement, python, .. } = manifest;
        Ok(ResolvedConnector {
            connector: Connector::Host {
                entrypoint,
                environment: vec![("LANG".to_owned(), "C.UTF-8".to_owned())],
                package: Some(package),
            },
            summary: format!("connector: {requirement} from PyPI, {origin} {directory} (Python {python})"),
        })
    }

    fn failure(&self, error: InstallError, tried: &[Interpreter]) -> Failure {
        let requirement = self.package.requirement();
        let Package { name, version, command } = &self.package;
        let directory = self.cache.directory.display();
        let (class, text, hint) = match error {
            InstallError::NotFound(newest) if newest.is_empty() => {
                (Class::ImageNotFound, format!("PyPI has no package {name}"), "check the name of the connector")
            }
            InstallError::NotFound(newest) => (
                Class::ImageNotFound,
                format!("PyPI has no version {version} of {name} (newest: {})", newest.join(", ")),
                "choose another version",
            ),
            InstallError::IndexUnreachable(reason, output) => (
                Class::ImagePull,
                format!("cannot fetch {requirement}: the Python package index does not answer: {reason}\n{output}"),
                "check the network and the proxy of this machine, and PIP_INDEX_URL if it is set",
            ),
            InstallError::Failed(output) => {
                let versions: Vec<&str> = tried.iter().map(|python| python.version.as_str()).collect();
                let versions = versions.join(", ");
                (
                    Class::StartError,
                    format!("installing {requirement} with Python {versions} failed:\n{output}"),
                    "install what is missing, choose another version, or run the image with Docker or Podman",
                )
            }
            InstallError::NoEntryPoint(scripts) if scripts.is_empty() => (
                Class::StartError,
                format!("{requirement} from PyPI has no command"),
                "check that the package is a connector, or run it with --exec",
            ),
            InstallError::NoEntryPoint(scripts) => (
                Class::StartError,
                format!("{requirement} from PyPI has no command {command}, but {}", scripts.join(", ")),
                "run the one that is the connector with --exec",
            ),
            InstallError::Io(error) => (
                Class::StartError,
                format!("cannot install {requirement} in {directory}: {error}"),
                match error.kind() {
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space: connectors take up to 1 GB",
                    _ => "make the directory writable for this user, or set SYNCCTL_CACHE_DIR to another one",
                },
            ),
        };
        Failure::new(class, text).with_hint(hint)
    }
}

fn start_error(text: impl Into<String>, hint: &str) -> Failure {
    Failure::new(Class::StartError, text).with_hint(hint)
}

fn missing_python(text: &str) -> Failure {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let mut ids = release.lines().filter(|line| line.starts_with("ID=") || line.starts_with("ID_LIKE="));
    let command = ids.find_map(|line| INSTALL_COMMANDS.iter().find(|(id, _)| line.contains(id)));
    let command = command.map_or("your package manager".to_owned(), |(_, command)| format!("`{command}`"));
    start_error(format!("{text}: install it with {command}"), "or install uv, Docker or Podman")
}

/// A path as a word of a shell command.
fn quote(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().ok_or_else(|| {
        let text = format!("the cache directory's name is not UTF-8: {}", path.display());
        start_error(text, "set SYNCCTL_CACHE_DIR to another directory")
    })?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

/// A path for messages: `~` for the home directory.
fn abbreviate_home(path: &Path, home: Option<&str>) -> String {
    let home = home.filter(|home| !home.is_empty() && *home != "/");
    match home.and_then(|home| path.strip_prefix(home).ok()) {
        Some(rest) => format!("~/{}", rest.display()),
        None => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{abbreviate_home, quote};
    use std::path::Path;

    #[test]
    fn a_quoted_path_is_one_shell_word() {
        assert_eq!(quote(Path::new("/a b/it's $HOME")).expect("UTF-8"), r"'/a b/it'\''s $HOME'");
    }

    #[test]
    fn the_home_directory_is_abbreviated() {
        assert_eq!(abbreviate_home(Path::new("/home/me/.cache/x"), Some("/home/me")), "~/.cache/x");
        assert_eq!(abbreviate_home(Path::new("/home/mean"), Some("/home/me")), "/home/mean");
    }
}
