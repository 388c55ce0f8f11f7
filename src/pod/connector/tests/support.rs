//! A machine for one test: the programs in PATH, the packages on the index, and a cache.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::super::{Connector, ConnectorRequest, ResolvedConnector, Runtime, resolve};
use super::wheel::Wheel;
use crate::failure::{Class, Failure};
use crate::task::Image;

/// The real Python.
pub fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let code = "import sys; print(sys.executable)";
        let output = Command::new("python3").args(["-c", code]).output().expect("a python3 in PATH");
        String::from_utf8(output.stdout).expect("a path").trim().to_owned()
    })
}

/// A virtual environment to copy, by links: installing pip into each one would take most of the tests' time.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        // Reused by the next run of the tests.
        let version = Command::new(python()).arg("--version").output().expect("a Python").stdout;
        let version = String::from_utf8_lossy(&version).trim().replace(' ', "-");
        let user = rustix::process::getuid().as_raw();
        let directory = std::env::temp_dir().join(format!("syncctl-test-venv-{version}-{user}"));
        if !directory.is_dir() {
            let new = tempfile::tempdir_in(std::env::temp_dir()).expect("a directory").keep();
            let made = Command::new(python()).args(["-I", "-m", "venv"]).arg(&new).stdout(Stdio::null()).status();
            assert!(made.expect("a Python").success(), "python3 -m venv works on this machine (python3-venv)");
            if std::fs::rename(&new, &directory).is_err() {
                // A concurrent run created it first.
                std::fs::remove_dir_all(&new).expect("it exists");
            }
        }
        directory
    })
}

/// The environment variable that marks the processes of a test.
pub const MARK: &str = "SYNCCTL_TEST_MARK";

pub struct Machine {
    directory: tempfile::TempDir,
    pub environment: Vec<(String, String)>,
}

impl Machine {
    /// A machine without programs and packages.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["bin", "wheels", "cache", "home"] {
            std::fs::create_dir(directory.path().join(name)).expect("a directory");
        }
        let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
        let environment = [
            ("PATH", path("bin")),
            ("HOME", path("home")),
            ("PIP_NO_INDEX", "1".to_owned()),
            ("PIP_FIND_LINKS", path("wheels")),
            (MARK, path("")),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Self { directory, environment }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(other, _)| other != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a shell script to PATH.
    pub fn program(self, name: &str, script: &str) -> Self {
        let path = self.path("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")).expect("a script");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("a script");
        self
    }

    /// Adds the real Python to PATH; its environments are copies of one.
    pub fn python(self) -> Self {
        self.python_that("")
    }

    /// The same, with more cases of the shell script before it.
    pub fn python_that(self, cases: &str) -> Self {
        let template = template().display();
        let python = python();
        let script = format!(
            r#"
            case "$*" in
            {cases}
            "-I -S -c "*) '{python}' "$@" | head -n 1; echo "$0"; exit ;;
            "-I -m venv "*) exec cp -al '{template}/.' "$4" ;;
            esac
            exec '{python}' "$@""#
        );
        self.program("python3", &script)
    }

    /// Adds a package to the index.
    pub fn wheel(self, wheel: Wheel<'_>) -> Self {
        wheel.write(&self.path("wheels"));
        self
    }

    /// Adds a package with one command.
    pub fn good(self, name: &str) -> Self {
        let script = name.split_once('-').map_or(name, |(_, script)| script);
        self.wheel(Wheel { name, python: None, requires: &[], scripts: &[script] })
    }

    /// Resolves `PACKAGE:1`.
    pub fn resolve_with(
        &self,
        package: &str,
        runtime: Runtime,
        on_progress: &mut dyn FnMut(&str),
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<ResolvedConnector, Failure> {
        let image = Image::new(package, "1").expect("an image");
        let request = ConnectorRequest {
            image: &image,
            exec: None,
            runtime,
            cache: &self.path("cache"),
            environment: &self.environment,
            working_directory: &self.path("home"),
            isolator: None,
        };
        resolve(&request, on_progress, is_cancelled)
    }

    pub fn resolve(&self, package: &str) -> Result<ResolvedConnector, Failure> {
        self.resolve_with(package, Runtime::Python, &mut |_| (), &|| false)
    }

    /// Asserts how a package fails, and that nothing is left.
    #[track_caller]
    pub fn fails(&self, package: &str, class: Class, parts: &[&str]) -> Failure {
        let failure = self.resolve(package).expect_err(package);
        assert_eq!(failure.class, class, "{failure}");
        for part in parts {
            assert!(failure.text.contains(part), "no {part:?} in {failure}");
        }
        let hint = failure.hint().expect("a hint");
        assert!(!hint.contains("cluster") && !hint.contains("node"), "{hint}");
        let environments: Vec<String> = self.cached();
        assert!(!environments.iter().any(|name| name.starts_with(&package.replace('/', "-"))), "{environments:?}");
        assert_eq!(self.processes(), Vec::<String>::new());
        failure
    }

    /// The entries of the environment cache.
    pub fn cached(&self) -> Vec<String> {
        let entries = self.path("cache/connectors").read_dir().into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The running processes of this test.
    pub fn processes(&self) -> Vec<String> {
        let mark = format!("{MARK}={}\0", self.path("").display());
        let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
        let marked = entries.filter(|entry| {
            entry.file_name() != std::process::id().to_string().as_str()
                && std::fs::read(entry.path().join("environ"))
                    .is_ok_and(|environment| String::from_utf8_lossy(&environment).contains(&mark))
        });
        marked.map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default()).collect()
    }

    #[track_caller]
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.cached(), Vec::<String>::new());
        assert_eq!(self.processes(), Vec::<String>::new());
    }
}

/// Runs a connector as `source.sh` does.
pub fn output(resolved: &ResolvedConnector, arguments: &[&str]) -> String {
    let Connector::Host { entrypoint, environment, .. } = &resolved.connector else { panic!("{resolved:?}") };
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "eval \"$AIRBYTE_ENTRYPOINT \\\"\\$@\\\"\"", "sh"]).args(arguments);
    command.env("AIRBYTE_ENTRYPOINT", entrypoint).envs(environment.iter().map(|(name, value)| (name, value)));
    let output = command.output().expect("a shell");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Waits for a condition.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(2);
    while !condition() {
        assert!(Instant::now() < deadline, "waiting until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
