//! Resolves what to run on this machine for a connector: the command of `--exec`, else the connector's image in Docker or
//! Podman, else the Python package of the same name and version.
//!
//! Reads no environment variable of this process: the caller passes all. Whenever it is cancelled or killed, only complete
//! results stay on disk. Knows nothing of tasks and pipes.

pub mod container;
mod image;
mod python;
mod subprocess;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use container::{ContainerEngine, EngineKind};
use image::ImageError;
use subprocess::ProcessEnvironment;

use crate::failure::{Class, Failure};
use crate::pod::isolation::{Isolator, View};
use crate::task::Image;

/// Where a connector may come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Runtime {
    /// The first of the following that has it.
    #[default]
    Auto,
    /// Its image in Docker.
    Docker,
    /// Its image in Podman.
    Podman,
    /// Its package on the Python package index.
    Python,
}

/// The connector to resolve.
pub struct ConnectorRequest<'a> {
    /// The connector.
    pub image: &'a Image,
    /// A shell command that runs the connector; replaces image and package.
    pub exec: Option<&'a str>,
    /// Where to look; an explicit choice never falls back to another one.
    pub runtime: Runtime,
    /// syncctl's cache directory; `connectors` in it is used.
    pub cache: &'a Path,
    /// The caller's environment variables; subprocesses get no others.
    pub environment: &'a [(String, String)],
    /// The caller's working directory, absolute; subprocesses run in it.
    pub working_directory: &'a Path,
    /// Isolates installations, which run code of the package; `None` where that is not possible.
    pub isolator: Option<&'a Isolator>,
}

/// How to run a connector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connector {
    /// As a process of this machine.
    Host {
        /// Shell text that takes the place of an image's `AIRBYTE_ENTRYPOINT`.
        entrypoint: String,
        /// Variables that it needs besides the caller's.
        environment: Vec<(String, String)>,
        /// What it needs of this machine, as foreign code; `None` for the user's own.
        package: Option<InstalledPackage>,
    },
    /// In a container.
    Container {
        /// What runs it.
        engine: ContainerEngine,
        /// The image's name in that engine.
        image: String,
    },
}

/// The files of a connector that is a Python package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledPackage {
    /// Its environment.
    pub environment: PathBuf,
    /// The directories of the interpreter's installation.
    pub interpreter: Vec<PathBuf>,
}

impl InstalledPackage {
    /// Shows it to a program, read-only.
    pub fn show(&self, view: &mut View) {
        for directory in &self.interpreter {
            view.interpreter(directory);
        }
        view.read_only(&self.environment);
    }
}

/// A connector that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedConnector {
    /// How to run it.
    pub connector: Connector,
    /// One line for users: what was chosen.
    pub summary: String,
}

/// Variables with paths of files that a connector or an installer needs: certificates and libraries.
pub const FILE_VARIABLES: [&str; 7] =
    ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "JAVA_HOME", "LD_LIBRARY_PATH", "NIX_LD"];
/// The time limit of a program that reports about itself. An engine that takes longer counts as not running.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// Resolves the connector, which may take minutes: pulls its image or installs its package if necessary. Calls
/// `on_progress` with each step that it begins. Once `is_cancelled` returns true, ends the processes that it started, removes
/// what is incomplete and fails with [`Class::Cancelled`].
pub fn resolve(
    request: &ConnectorRequest<'_>,
    on_progress: &mut dyn FnMut(&str),
    is_cancelled: &dyn Fn() -> bool,
) -> Result<ResolvedConnector, Failure> {
    let was_cancelled = Cell::new(false);
    let is_cancelled = || {
        was_cancelled.set(was_cancelled.get() || is_cancelled());
        was_cancelled.get()
    };
    let process = ProcessEnvironment {
        variables: request.environment,
        working_directory: request.working_directory,
        lock: None,
        timeout: QUERY_TIMEOUT,
        is_cancelled: &is_cancelled,
        sandbox: None,
    };
    python::remove_incomplete(request.cache);
    let resolved = match request.exec {
        Some(command) => resolve_command(command, process),
        None => resolve_runtime(request, process, on_progress),
    };
    match resolved {
        Err(_) if was_cancelled.get() => Err(Failure::new(Class::Cancelled, "cancelled while resolving the connector")),
        resolved => resolved,
    }
}

fn resolve_runtime(
    request: &ConnectorRequest<'_>,
    process: ProcessEnvironment<'_>,
    on_progress: &mut dyn FnMut(&str),
) -> Result<ResolvedConnector, Failure> {
    let ConnectorRequest { image, runtime, cache, .. } = *request;
    let engines: &[EngineKind] = match runtime {
        Runtime::Auto => &[EngineKind::Docker, EngineKind::Podman],
        Runtime::Docker => &[EngineKind::Docker],
        Runtime::Podman => &[EngineKind::Podman],
        Runtime::Python => &[],
    };
    let mut errors = Vec::new();
    for &kind in engines {
        match image::resolve(kind, image, process, on_progress) {
            Ok(resolved) => return Ok(resolved),
            Err(error) if runtime != Runtime::Auto => return Err(error.failure),
            Err(error) => errors.push(error),
        }
    }
    python::resolve(image, cache, process, request.isolator, on_progress)
        .map_err(|failure| combine(image, errors, failure))
}

/// One failure for all attempts, in their order. An engine that is not installed matters only if nothing else failed.
fn combine(image: &Image, mut errors: Vec<ImageError>, last: Failure) -> Failure {
    let join = |errors: Vec<ImageError>, last: String| {
        errors.into_iter().map(|error| error.failure.text).chain([last]).collect::<Vec<_>>().join("; ")
    };
    if last.class != Class::ImageNotFound {
        errors.retain(|error| !error.is_engine_missing && error.failure.class != Class::ImageNotFound);
        let hint = last.hint().unwrap_or_default().to_owned();
        return Failure::new(last.class, join(errors, last.text)).with_hint(hint);
    }
    // A registry that was not reached may have the image.
    let is_unreachable = |error: &ImageError| error.failure.class == Class::ImagePull;
    let class = if errors.iter().any(is_unreachable) { Class::ImagePull } else { Class::ImageNotFound };
    Failure::new(class, format!("connector {image} not found: {}", join(errors, last.text)))
        .with_hint("check its name and version, start Docker or Podman, or give its command with --exec")
}

/// Takes the command of `--exec` as it is if its program exists.
fn resolve_command(command: &str, process: ProcessEnvironment<'_>) -> Result<ResolvedConnector, Failure> {
    let Some(program) = command.split_whitespace().next() else {
        return Err(Failure::new(Class::Usage, "--exec is empty: expected the connector's command")
            .with_hint("for example --exec 'python main.py'"));
    };
    // An assignment, a quoted word or an expansion is left to the shell.
    if program.chars().all(|c| c.is_alphanumeric() || "._-/+@:,%".contains(c)) {
        check_program(program, process).map_err(|(reason, hint)| {
            Failure::new(Class::StartError, format!("cannot run the command of --exec: {reason}")).with_hint(hint)
        })?;
    }
    Ok(ResolvedConnector {
        connector: Connector::Host { entrypoint: command.to_owned(), environment: Vec::new(), package: None },
        summary: format!("connector: the command {command}"),
    })
}

/// The error is the reason and the hint.
fn check_program(program: &str, process: ProcessEnvironment<'_>) -> Result<(), (String, &'static str)> {
    if !program.contains('/') {
        // A builtin of the shell is in no directory.
        let builtin = ["-c", r#"command -v -- "$1""#, "sh", program];
        let exists = subprocess::find_program(program, process).is_some()
            || subprocess::query(Path::new("/bin/sh"), &builtin, process).is_some();
        let error = || (format!("{program} is not in PATH"), "give its path, or add its directory to PATH");
        return exists.then_some(()).ok_or_else(error);
    }
    let path = process.working_directory.join(program);
    match path.metadata() {
        _ if subprocess::is_executable(&path) => Ok(()),
        Ok(metadata) if metadata.is_dir() => {
            Err((format!("{program} is a directory"), "give the path of the program in it"))
        }
        Ok(_) => Err((
            format!("{program} is not executable"),
            "make it executable with chmod +x, or name its interpreter: --exec 'python main.py'",
        )),
        Err(error) => Err((
            format!("{program} in {}: {error}", process.working_directory.display()),
            "relative paths start at the directory where syncctl was started",
        )),
    }
}
