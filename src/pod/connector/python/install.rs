//! One installation: a virtual environment, the package, and how it is started. With uv where there is one, else with pip.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::super::child::{self, Done, End, Surroundings};
use super::super::lock::Lock;
use super::interpreter::Interpreter;
use super::names::Package;
use super::progress::Progress;
use super::said::Refusal;
use super::shelf::{Note, Place, Start};

/// No installation takes that long; the user ends one that is too long for them.
const FOR_EVER: Duration = Duration::from_hours(24);

/// Bytes that an environment takes before there is anything in it, and a little more.
const LEAST_ROOM: u64 = 48 * 1024 * 1024;

/// Variables that would lead an installation elsewhere, or make it say other things than are read here.
const NOT_FOR_INSTALLERS: [&str; 27] = [
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONUSERBASE",
    "PYTHONPLATLIBDIR",
    "__PYVENV_LAUNCHER__",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "PIP_USER",
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_PYTHON",
    "PIP_DRY_RUN",
    "PIP_REPORT",
    "PIP_QUIET",
    "PIP_VERBOSE",
    "PIP_LOG",
    "PIP_COMPILE",
    "UV_PYTHON",
    "UV_SYSTEM_PYTHON",
    "UV_TARGET",
    "UV_PREFIX",
    "UV_WORKING_DIRECTORY",
    "FORCE_COLOR",
    "CLICOLOR_FORCE",
    "PY_COLORS",
    "TMPDIR",
];

/// What pip is told by variables, and uv by others of the same meaning.
const FOR_UV: [(&str, &str); 6] = [
    ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"),
    ("PIP_EXTRA_INDEX_URL", "UV_INDEX"),
    ("PIP_FIND_LINKS", "UV_FIND_LINKS"),
    ("PIP_NO_INDEX", "UV_NO_INDEX"),
    ("PIP_CONSTRAINT", "UV_CONSTRAINT"),
    ("PIP_CERT", "SSL_CERT_FILE"),
];

/// Tells what a package has that could be started, whatever the version of Python.
const LOOK: &str = "\
import importlib.metadata as m, json, sys
d = m.distribution(sys.argv[1])
print(json.dumps({
    'scripts': sorted(e.name for e in d.entry_points if e.group == 'console_scripts'),
    'modules': sorted(str(f) for f in d.files or [] if str(f).count('/') == 1 and str(f).endswith(('/run.py', '/__main__.py'))),
}))";

/// What is needed for any installation.
pub struct Workshop<'a> {
    /// The caller's environment.
    pub environment: &'a [(String, String)],
    /// The caller's folder: an index may be given by a relative path.
    pub folder: &'a Path,
    /// `uv`, where it is installed and runs.
    pub uv: Option<PathBuf>,
    /// Whether to give up.
    pub stop: &'a dyn Fn() -> bool,
}

/// Why there is no installed package.
#[derive(Debug)]
pub enum Trouble {
    /// The tool refused.
    Refused(Refusal),
    /// It is installed, and nothing of it can be started; what it has instead.
    NoCommand(Vec<String>),
    /// We were told to stop.
    Stopped,
    /// A file system or process error of our own.
    System(std::io::Error),
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self::System(error)
    }
}

/// Whether there is no room for the smallest connector.
fn is_full(place: &Place) -> bool {
    let disk = place.folder.parent().and_then(|folder| rustix::fs::statvfs(folder).ok());
    disk.is_some_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < LEAST_ROOM)
}

/// What a package has.
#[derive(Debug, Deserialize)]
struct Contents {
    scripts: Vec<String>,
    modules: Vec<String>,
}

impl Workshop<'_> {
    /// Installs a package into its place, which is empty again if that fails. The lock is held by all that runs.
    pub fn install(
        &self,
        package: &Package,
        python: &Interpreter,
        place: &Place,
        lock: &Lock,
        progress: &mut Progress<'_>,
    ) -> Result<Note, Trouble> {
        place.remove()?;
        if is_full(place) {
            return Err(Trouble::Refused(Refusal::DiskFull));
        }
        let installed = self.fill(package, python, place, lock, progress);
        // Python does not say why a part of its own that it has run did not end well.
        let installed = match installed {
            Err(Trouble::Refused(Refusal::Other(_))) if is_full(place) => Err(Trouble::Refused(Refusal::DiskFull)),
            other => other,
        };
        if installed.is_err() {
            // The first trouble is the one that is told.
            place.remove().ok();
        }
        installed
    }

    fn fill(
        &self,
        package: &Package,
        python: &Interpreter,
        place: &Place,
        lock: &Lock,
        progress: &mut Progress<'_>,
    ) -> Result<Note, Trouble> {
        std::fs::create_dir_all(place.scratch())?;
        let environment = self.environment_for(place);
        let surroundings =
            Surroundings { environment: &environment, folder: self.folder, holds: Some(lock.file()), limit: FOR_EVER };
        let tool = if self.uv.is_some() { "uv" } else { "pip" };
        progress.restart(format!("making an environment with Python {}, for {tool}", python.version));

        let made = self.make(python, place, surroundings, progress)?;
        if !made.is_ok() {
            return Err(Trouble::Refused(Refusal::of_venv(&made.lines)));
        }
        progress.fetch();
        let there = place.packages();
        let (program, arguments) = self.command(package, place);
        let done = self.run(&program, &arguments, surroundings, &mut |line| {
            if let Some(line) = line {
                progress.heard(line);
            }
            progress.look(|| place.packages().saturating_sub(there));
        })?;
        if !done.is_ok() {
            return Err(Trouble::Refused(Refusal::of(package, &done.lines)));
        }
        progress.complete();
        let start = self.start(package, place, surroundings)?;
        std::fs::remove_dir_all(place.scratch())?;
        let note = Note { requirement: package.requirement(), python: python.version.clone(), start };
        place.sign(&note)?;
        Ok(note)
    }

    fn make(
        &self,
        python: &Interpreter,
        place: &Place,
        surroundings: Surroundings<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<Done, Trouble> {
        let mut look = |_: Option<&str>| progress.look(|| 0);
        let folder = place.folder.as_path();
        if let Some(uv) = &self.uv {
            // The folder for temporary files is in there already.
            let arguments =
                ["venv".as_ref(), "--allow-existing".as_ref(), "--python".as_ref(), python.path.as_path(), folder];
            return self.run(uv, &arguments, surroundings, &mut look);
        }
        self.run(&python.path, &["-I".as_ref(), "-m".as_ref(), "venv".as_ref(), folder], surroundings, &mut look)
    }

    /// The command that installs. What is not compiled now is compiled at the first start, and only as much as that needs:
    /// two seconds then instead of twenty now.
    fn command(&self, package: &Package, place: &Place) -> (PathBuf, Vec<String>) {
        let requirement = package.requirement();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
        if let Some(uv) = &self.uv {
            // uv finds the environment by its variable.
            return (uv.clone(), words(&["pip", "install", "--no-progress", &requirement]));
        }
        let options = ["-I", "-m", "pip", "install", "--no-user", "--no-input", "--no-compile"];
        (place.python(), words(&[&options[..], &["--progress-bar", "off", &requirement]].concat()))
    }

    fn environment_for(&self, place: &Place) -> Vec<(String, String)> {
        let is_fit = |name: &str| !NOT_FOR_INSTALLERS.contains(&name);
        let mut environment: Vec<(String, String)> =
            self.environment.iter().filter(|(name, _)| is_fit(name)).cloned().collect();
        let mut set = |name: &str, value: &str| environment.push((name.to_owned(), value.to_owned()));
        set("TMPDIR", &place.scratch().to_string_lossy());
        set("VIRTUAL_ENV", &place.folder.to_string_lossy());
        set("NO_COLOR", "1");
        set("UV_PYTHON_DOWNLOADS", "never");
        set("PIP_DISABLE_PIP_VERSION_CHECK", "1");
        set("PIP_ROOT_USER_ACTION", "ignore");
        // pip does not say that nothing answers when it does not try twice.
        if child::variable(self.environment, "PIP_RETRIES") == Some("0") {
            set("PIP_RETRIES", "1");
        }
        if self.uv.is_some() {
            let is_set = |name: &str| child::variable(self.environment, name).is_some();
            for (pip, uv) in FOR_UV {
                let has_its_own = is_set(uv) || (pip.contains("INDEX_URL") && is_set("UV_INDEX_URL"));
                if let (Some(value), false) = (child::variable(self.environment, pip), has_its_own) {
                    // Lists of pip have blanks between their entries, this one of uv has commas.
                    set(uv, &if uv == "UV_FIND_LINKS" { value.replace(' ', ",") } else { value.to_owned() });
                }
            }
        }
        environment
    }

    /// How the installed package is started.
    fn start(&self, package: &Package, place: &Place, surroundings: Surroundings<'_>) -> Result<Start, Trouble> {
        let arguments = ["-I", "-c", LOOK, package.name.as_str()];
        let done = self.run(&place.python(), &arguments, surroundings, &mut |_| ())?;
        let contents: Contents = serde_json::from_str(done.last_line()).map_err(|_| {
            Trouble::Refused(Refusal::Other(format!("what was installed cannot be read: {}", done.last_line())))
        })?;
        contents.start(package).ok_or(Trouble::NoCommand(contents.scripts))
    }

    fn run<A: AsRef<std::ffi::OsStr>>(
        &self,
        program: &Path,
        arguments: &[A],
        surroundings: Surroundings<'_>,
        heard: &mut dyn FnMut(Option<&str>),
    ) -> Result<Done, Trouble> {
        let done = child::run(program, arguments, surroundings, self.stop, heard)?;
        if done.end == End::Stopped { Err(Trouble::Stopped) } else { Ok(done) }
    }
}

impl Contents {
    fn start(&self, package: &Package) -> Option<Start> {
        if self.scripts.contains(&package.command) {
            return Some(Start::Script(package.command.clone()));
        }
        if let [only] = self.scripts.as_slice() {
            return Some(Start::Script(only.clone()));
        }
        // How images start a connector without a script: `source_x.run`.
        let module = package.command.replace(['-', '.'], "_");
        let has = |file: &str| self.modules.contains(&format!("{module}/{file}"));
        match (has("run.py"), has("__main__.py")) {
            (true, _) => Some(Start::Run(format!("{module}.run"))),
            (false, true) => Some(Start::Module(module)),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Contents, Start};
    use crate::pod::connector::python::names::Package;

    #[test]
    fn a_package_is_started_by_the_script_of_its_name_else_by_what_else_there_is() {
        let package = Package { name: "o-source-x".into(), version: "1".into(), command: "source-x".into() };
        for (label, scripts, modules, expected) in [
            ("its name", &["other", "source-x"][..], &[][..], Some(Start::Script("source-x".into()))),
            ("the only one", &["x"], &["source_x/run.py"], Some(Start::Script("x".into()))),
            ("none", &[], &["source_x/run.py", "source_x/__main__.py"], Some(Start::Run("source_x.run".into()))),
            ("a program", &[], &["source_x/__main__.py"], Some(Start::Module("source_x".into()))),
            ("two others", &["a", "b"], &[], None),
            ("of another module", &[], &["source_y/run.py"], None),
        ] {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let contents = Contents { scripts: owned(scripts), modules: owned(modules) };
            assert_eq!(contents.start(&package), expected, "{label}");
        }
    }
}
