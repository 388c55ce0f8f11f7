//! Installs a package into an environment: with uv if there is one, else with pip.
//!
//! Decides by exit codes and structured output alone; what the installers print for people only goes into errors.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::super::FILE_VARIABLES;
use super::super::subprocess::{self, Output, ProcessEnvironment};
use super::cache::{Environment, Manifest};
use super::interpreter::Interpreter;
use super::package::{Contents, Package};
use crate::pod::isolation::{Isolator, Sandbox};

/// Only the user decides that an installation takes too long.
const INSTALL_TIMEOUT: Duration = Duration::from_hours(24);
/// The time limit of [`INDEX_SCRIPT`].
const INDEX_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the first start of a connector may take, which compiles its modules.
const FIRST_START_TIMEOUT: Duration = Duration::from_mins(1);
/// The number of the installer's last output lines in an error.
const EXCERPT_LINES: usize = 20;
/// Prints an [`IndexAnswer`].
const INDEX_SCRIPT: &str = include_str!("index.py");
/// Prints the [`Contents`] of an installed package.
const CONTENTS_SCRIPT: &str = include_str!("contents.py");

/// Variables that would make an installer use another interpreter or directory, print less, or not install at all.
const REMOVED_VARIABLES: &str = "PYTHONHOME PYTHONPATH PYTHONUSERBASE PYTHONPLATLIBDIR __PYVENV_LAUNCHER__ CONDA_PREFIX \
    PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_DRY_RUN PIP_REPORT PIP_QUIET \
    UV_PYTHON UV_SYSTEM_PYTHON UV_TARGET UV_PREFIX UV_WORKING_DIRECTORY";

/// The user's settings of pip and uv, below the directory of settings.
const USER_SETTINGS: [&str; 2] = ["pip/pip.conf", "uv/uv.toml"];
/// Those of the machine.
const SYSTEM_SETTINGS: [&str; 3] = ["/etc/pip.conf", "/etc/xdg/pip", "/etc/uv"];

/// pip's variables and uv's of the same meaning.
const UV_VARIABLES: [(&str, &str); 6] = [
    ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"),
    ("PIP_EXTRA_INDEX_URL", "UV_INDEX"),
    ("PIP_FIND_LINKS", "UV_FIND_LINKS"),
    ("PIP_NO_INDEX", "UV_NO_INDEX"),
    ("PIP_CONSTRAINT", "UV_CONSTRAINT"),
    ("PIP_CERT", "SSL_CERT_FILE"),
];

/// Why a package is not installed.
#[derive(Debug)]
pub enum InstallError {
    /// The index does not have the version; its newest ones, oldest first. Empty: it does not have the package.
    NotFound(Vec<String>),
    /// The index cannot be read: why, and the installer's last lines.
    IndexUnreachable(String, String),
    /// The installer failed for another reason: its last lines. Another interpreter may do.
    Failed(String),
    /// Nothing of the installed package can be started; the names of its scripts.
    NoEntryPoint(Vec<String>),
    /// Files or processes of our own.
    Io(std::io::Error),
}

impl From<std::io::Error> for InstallError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// The output of `index.py`.
#[derive(Deserialize)]
struct IndexAnswer {
    has_version: bool,
    newest: Vec<String>,
    error: Option<String>,
}

/// uv or pip with the user's settings.
pub struct Installer<'a> {
    /// uv, if it is installed and works.
    pub uv: Option<PathBuf>,
    process: ProcessEnvironment<'a>,
    isolator: Option<&'a Isolator>,
}

impl<'a> Installer<'a> {
    /// Everything that it runs inherits the lock of `process`.
    pub fn new(process: ProcessEnvironment<'a>, isolator: Option<&'a Isolator>) -> Self {
        let uv = subprocess::find_program("uv", process)
            .filter(|uv| subprocess::query(uv, &["--version"], process).is_some());
        Self { uv, process: ProcessEnvironment { timeout: INSTALL_TIMEOUT, ..process }, isolator }
    }

    /// Installs a package. After an error nothing is left of the environment.
    pub fn install(
        &self,
        package: &Package,
        python: &Interpreter,
        environment: &Environment,
    ) -> Result<Manifest, InstallError> {
        let disk_full = || InstallError::Io(std::io::ErrorKind::StorageFull.into());
        environment.remove()?;
        if environment.is_disk_full() {
            return Err(disk_full());
        }
        let installed = self
            .try_install(package, python, environment)
            .map_err(|error| if environment.is_disk_full() { disk_full() } else { error });
        if installed.is_err() {
            // The first error is the one to report.
            environment.remove().ok();
        }
        installed
    }

    fn try_install(
        &self,
        package: &Package,
        python: &Interpreter,
        environment: &Environment,
    ) -> Result<Manifest, InstallError> {
        std::fs::create_dir_all(environment.scratch())?;
        let mut variables = self.variables(environment);
        let sandbox = self.isolator.map(|isolator| self.isolate(isolator, python, environment, &mut variables));
        let sandbox = sandbox.transpose()?;
        let process = ProcessEnvironment { variables: &variables, sandbox: sandbox.as_ref(), ..self.process };
        let (program, directory) = (python.path.to_string_lossy(), environment.directory.to_string_lossy());
        let created = match &self.uv {
            // The directory exists already.
            Some(uv) => run(uv, &["venv", "--allow-existing", "--python", &program, &directory], process)?,
            None => run(&python.path, &["-I", "-m", "venv", &directory], process)?,
        };
        if !created.is_success() {
            return Err(InstallError::Failed(created.excerpt(EXCERPT_LINES)));
        }
        let requirement = package.requirement();
        // Modules are compiled at their first import: two seconds then instead of twenty now.
        let installed = if let Some(uv) = &self.uv {
            run(uv, &["pip", "install", "--no-progress", &requirement], process)?
        } else {
            let options = ["-I", "-m", "pip", "install", "--no-user", "--no-input", "--no-compile"];
            run(&environment.python(), &[&options[..], &["--progress-bar", "off", &requirement]].concat(), process)?
        };
        if !installed.is_success() {
            let lines = installed.excerpt(EXCERPT_LINES);
            return Err(match self.ask_index(package, environment, process) {
                Some(IndexAnswer { has_version: false, newest, error: None }) => InstallError::NotFound(newest),
                Some(IndexAnswer { has_version: false, error: Some(error), .. }) => {
                    InstallError::IndexUnreachable(error, lines)
                }
                _ => InstallError::Failed(lines),
            });
        }
        let output = run(&environment.python(), &["-I", "-c", CONTENTS_SCRIPT, &package.name], process)?;
        let contents: Contents = serde_json::from_str(output.last_line())
            .map_err(|_| InstallError::Failed(output.excerpt(EXCERPT_LINES)))?;
        let start = contents.entry_point(package).ok_or(InstallError::NoEntryPoint(contents.scripts))?;
        if let Some(isolator) = self.isolator {
            // The modules that it imports are compiled now: later tasks cannot write to the environment.
            let arguments = [environment.arguments(&start), vec!["spec".to_owned()]].concat();
            let process = ProcessEnvironment { timeout: FIRST_START_TIMEOUT, ..process };
            subprocess::run(&environment.python(), &arguments, process, &mut |_| ()).ok();
            isolator.take_back(&environment.directory)?;
        }
        std::fs::remove_dir_all(environment.scratch())?;
        let manifest = Manifest {
            requirement,
            python: python.version.clone(),
            start,
            interpreter: Some(python.path.clone()),
            is_sealed: self.isolator.is_some(),
        };
        environment.write_manifest(&manifest)?;
        Ok(manifest)
    }

    /// Asks the package index what it has, after a failure: both installers use one exit code for all failures.
    fn ask_index(
        &self,
        package: &Package,
        environment: &Environment,
        process: ProcessEnvironment<'_>,
    ) -> Option<IndexAnswer> {
        let installer = if self.uv.is_some() { "uv" } else { "pip" };
        let arguments = ["-I", "-c", INDEX_SCRIPT, installer, &package.name, &package.version];
        let process = ProcessEnvironment { timeout: INDEX_TIMEOUT, ..process };
        let output = subprocess::query(&environment.python(), &arguments, process)?;
        serde_json::from_str(output.last_line()).ok()
    }

    /// Isolates an installation, which runs code of packages: it writes to the environment alone, with a home and caches in
    /// there, and sees the user's settings of pip and uv.
    fn isolate(
        &self,
        isolator: &Isolator,
        python: &Interpreter,
        environment: &Environment,
        variables: &mut Vec<(String, String)>,
    ) -> std::io::Result<Sandbox> {
        let home = environment.scratch().join("home");
        std::fs::create_dir(&home)?;
        let user_home = self.process.variable("HOME").map(PathBuf::from).unwrap_or_default();
        let user_config = self.process.variable("XDG_CONFIG_HOME").map(PathBuf::from);
        let user_config = user_config.unwrap_or_else(|| user_home.join(".config"));
        let settings = USER_SETTINGS.map(|name| (user_config.join(name), home.join(".config").join(name)));
        let old = (user_home.join(".pip/pip.conf"), home.join(".pip/pip.conf"));
        for (from, to) in settings.iter().chain([&old]) {
            // A copy: another user cannot enter the home directory of root.
            let Ok(text) = std::fs::read(from) else { continue };
            let directory = to.parent().unwrap_or(&home);
            std::fs::create_dir_all(directory)?;
            std::fs::write(to, text)?;
        }
        for path in std::iter::once(environment.directory.clone()).chain(below(&environment.directory)?) {
            isolator.give(&path)?;
        }
        let mut view = isolator.view(&home);
        for directory in python.directories() {
            view.interpreter(&directory);
        }
        for path in self.uv.iter().map(PathBuf::as_path).chain(SYSTEM_SETTINGS.map(Path::new)) {
            view.read_only(path);
        }
        let is_setting =
            |name: &str| name.starts_with("PIP_") || name.starts_with("UV_") || FILE_VARIABLES.contains(&name);
        view.named_files(variables.iter().filter(|(name, _)| is_setting(name)).map(|(_, value)| value.as_str()));
        view.writable(&environment.directory);
        variables.retain(|(name, _)| !name.starts_with("XDG_"));
        let mut set = |name: &str, path: &Path| variables.push((name.to_owned(), path.to_string_lossy().into_owned()));
        set("HOME", &home);
        // What one installation stores must not get into another one.
        set("PIP_CACHE_DIR", &environment.scratch().join("pip"));
        set("UV_CACHE_DIR", &environment.scratch().join("uv"));
        Ok(view.into_sandbox())
    }

    fn variables(&self, environment: &Environment) -> Vec<(String, String)> {
        let is_removed = |name: &str| REMOVED_VARIABLES.split_whitespace().any(|removed| removed == name);
        let mut variables: Vec<(String, String)> =
            self.process.variables.iter().filter(|(name, _)| !is_removed(name)).cloned().collect();
        let mut set = |name: &str, value: &str| variables.push((name.to_owned(), value.to_owned()));
        set("TMPDIR", &environment.scratch().to_string_lossy());
        // uv finds the environment by this variable.
        set("VIRTUAL_ENV", &environment.directory.to_string_lossy());
        set("NO_COLOR", "1");
        set("PIP_NO_COLOR", "1");
        set("PIP_DISABLE_PIP_VERSION_CHECK", "1");
        set("PIP_ROOT_USER_ACTION", "ignore");
        set("UV_PYTHON_DOWNLOADS", "never");
        let is_set = |name: &str| self.process.variable(name).is_some();
        for (pip, uv) in UV_VARIABLES {
            let has_uv_value = is_set(uv) || (pip.contains("INDEX_URL") && is_set("UV_INDEX_URL"));
            if let (Some(value), Some(_), false) = (self.process.variable(pip), &self.uv, has_uv_value) {
                // pip separates entries by spaces; uv separates these by commas.
                set(uv, &if uv == "UV_FIND_LINKS" { value.replace(' ', ",") } else { value.to_owned() });
            }
        }
        variables
    }
}

/// All files and directories in a directory.
fn below(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(below(&path)?);
        }
        found.push(path);
    }
    Ok(found)
}

fn run(program: &Path, arguments: &[&str], process: ProcessEnvironment<'_>) -> std::io::Result<Output> {
    subprocess::run(program, arguments, process, &mut |_| ())
}
