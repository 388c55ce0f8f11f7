//! A machine of the test's own: what is in PATH, what is on the package index, and a cache.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::super::{Connector, ConnectorRequest, ResolvedConnector, Runtime, resolve};
use super::wheel::Wheel;
use crate::failure::{Class, Failure};
use crate::task::Image;

/// The Python that everything here is made with.
pub fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let code = "import sys; print(sys.executable)";
        let said = Command::new("python3").args(["-c", code]).output().expect("a python3 in PATH");
        String::from_utf8(said.stdout).expect("a path").trim().to_owned()
    })
}

/// A virtual environment to be copied, by links: pip's own installation into each one would take most of the tests' time.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        // One of this kind is kept for the next run of the tests.
        let version = Command::new(python()).arg("--version").output().expect("a Python").stdout;
        let version = String::from_utf8_lossy(&version).trim().replace(' ', "-");
        let user = rustix::process::getuid().as_raw();
        let folder = std::env::temp_dir().join(format!("syncctl-test-venv-{version}-{user}"));
        if !folder.is_dir() {
            let new = tempfile::tempdir_in(std::env::temp_dir()).expect("a folder").keep();
            let made = Command::new(python()).args(["-I", "-m", "venv"]).arg(&new).stdout(Stdio::null()).status();
            assert!(made.expect("a Python").success(), "python3 -m venv works on this machine (python3-venv)");
            if std::fs::rename(&new, &folder).is_err() {
                // Another run was faster.
                std::fs::remove_dir_all(&new).expect("a folder of ours");
            }
        }
        folder
    })
}

/// The environment variable by which processes of a test are found again.
pub const MARK: &str = "SYNCCTL_TEST_MARK";

pub struct Machine {
    pub folder: tempfile::TempDir,
    pub environment: Vec<(String, String)>,
}

impl Machine {
    /// With nothing in PATH, and an index without a package.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["bin", "wheels", "cache", "home"] {
            std::fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
        let environment = [
            ("PATH", path("bin")),
            ("HOME", path("home")),
            ("PIP_NO_INDEX", "1".to_owned()),
            ("PIP_FIND_LINKS", path("wheels")),
            (MARK, path("")),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Self { folder, environment }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(other, _)| other != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Puts a shell script into PATH.
    pub fn program(self, name: &str, script: &str) -> Self {
        let path = self.path("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")).expect("a script");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("a script of ours");
        self
    }

    /// Puts the real Python into PATH; its environments are copies of one.
    pub fn python(self) -> Self {
        self.python_that("")
    }

    /// The same with other answers before it.
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

    /// Puts a package on the index.
    pub fn wheel(self, wheel: Wheel<'_>) -> Self {
        wheel.write(&self.path("wheels"));
        self
    }

    /// A good package of one command.
    pub fn good(self, name: &str) -> Self {
        let script = name.split_once('-').map_or(name, |(_, script)| script);
        self.wheel(Wheel { name, python: None, requires: &[], scripts: &[script] })
    }

    /// Looks for `PACKAGE:1` and keeps what was told.
    pub fn find_with(
        &self,
        package: &str,
        runtime: Runtime,
        tell: &mut dyn FnMut(&str),
        stop: &dyn Fn() -> bool,
    ) -> Result<ResolvedConnector, Failure> {
        let image = Image::new(package, "1").expect("an image");
        let (cache, folder) = (self.path("cache"), self.path("home"));
        let wanted = ConnectorRequest {
            image: &image,
            exec: None,
            runtime,
            cache: &cache,
            environment: &self.environment,
            working_directory: &folder,
        };
        resolve(&wanted, tell, stop)
    }

    pub fn find(&self, package: &str) -> Result<ResolvedConnector, Failure> {
        self.find_with(package, Runtime::Python, &mut |_| (), &|| false)
    }

    /// Asserts what a search that fails says, and that it leaves nothing behind.
    #[track_caller]
    pub fn refuses(&self, package: &str, class: Class, parts: &[&str]) -> Failure {
        let failure = self.find(package).expect_err(package);
        assert_eq!(failure.class, class, "{failure}");
        for part in parts {
            assert!(failure.text.contains(part), "no {part:?} in {failure}");
        }
        assert!(!failure.text.contains('\n'), "more than a line: {failure}");
        let hint = failure.hint().expect("a hint");
        assert!(!hint.contains("cluster") && !hint.contains("node"), "{hint}");
        self.has_nothing_left();
        failure
    }

    /// What is on the shelf.
    pub fn shelf(&self) -> Vec<String> {
        let entries = self.path("cache/connectors").read_dir().into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Processes that were started for this test and still run.
    pub fn processes(&self) -> Vec<String> {
        let mark = format!("{MARK}={}\0", self.path("").display());
        let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
        let ours = entries.filter(|entry| {
            entry.file_name() != std::process::id().to_string().as_str()
                && std::fs::read(entry.path().join("environ"))
                    .is_ok_and(|environment| String::from_utf8_lossy(&environment).contains(&mark))
        });
        ours.map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default()).collect()
    }

    #[track_caller]
    pub fn has_nothing_left(&self) {
        assert_eq!(self.shelf(), Vec::<String>::new());
        assert_eq!(self.processes(), Vec::<String>::new());
    }
}

/// Runs a connector as the source's wrapper does.
pub fn output(found: &ResolvedConnector, arguments: &[&str]) -> String {
    let Connector::Host { entrypoint, environment } = &found.connector else { panic!("{found:?}") };
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "eval \"$AIRBYTE_ENTRYPOINT \\\"\\$@\\\"\"", "sh"]).args(arguments);
    command.env("AIRBYTE_ENTRYPOINT", entrypoint).envs(environment.iter().map(|(name, value)| (name, value)));
    let said = command.output().expect("a shell");
    format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr))
}

/// Waits until something is so.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}
