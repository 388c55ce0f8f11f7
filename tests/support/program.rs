//! The program under test as a process: its arguments and environment, its exit code and output.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A command that runs longer hangs.
const TIMEOUT: Duration = Duration::from_mins(5);

/// A command line and its environment.
#[derive(Clone)]
pub struct Program {
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    stdin: String,
    folder: Option<PathBuf>,
    /// Another user, and a copy of the program that this one can execute.
    user: Option<(u32, PathBuf)>,
    /// A command line that runs the program, as its last arguments.
    wrapper: Vec<String>,
}

/// A process that has ended.
pub struct Done {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

/// A running process.
pub struct Running {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
    started: Instant,
}

impl Program {
    /// The environment holds only PATH, HOME and TMPDIR of this process.
    pub fn new<A: AsRef<str>>(arguments: &[A]) -> Self {
        let arguments = arguments.iter().map(|argument| argument.as_ref().to_owned()).collect();
        let environment = ["PATH", "HOME", "TMPDIR"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
            .collect();
        Self { arguments, environment, stdin: String::new(), folder: None, user: None, wrapper: Vec::new() }
    }

    /// Adds arguments.
    pub fn with<A: AsRef<str>>(mut self, arguments: &[A]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets the content of stdin.
    pub fn stdin(mut self, text: &str) -> Self {
        text.clone_into(&mut self.stdin);
        self
    }

    /// Sets the working directory.
    pub fn current_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Runs a copy of the program as another user.
    pub fn user(mut self, id: u32, program: &Path) -> Self {
        self.user = Some((id, program.to_owned()));
        self
    }

    /// Runs it through another command.
    pub fn through(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|argument| (*argument).to_owned()).collect();
        self
    }

    /// Starts it.
    pub fn start(&self) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_syncctl"));
        if let [program, arguments @ ..] = self.wrapper.as_slice() {
            command = Command::new(program);
            command.args(arguments).arg(env!("CARGO_BIN_EXE_syncctl"));
        }
        if let Some((user, program)) = &self.user {
            command = Command::new(program);
            command.uid(*user).gid(*user);
        }
        command.args(&self.arguments).env_clear().envs(&self.environment);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        let started = Instant::now();
        let mut child = command.spawn().expect("the program under test starts");
        // A program that does not read its stdin may have ended already.
        child.stdin.take().expect("it is piped").write_all(self.stdin.as_bytes()).ok();
        let stdout = gather(child.stdout.take().expect("it is piped"));
        let stderr = gather(child.stderr.take().expect("it is piped"));
        Running { child, stdout: Some(stdout), stderr: Some(stderr), started }
    }

    /// Starts it and waits for its end.
    pub fn run(&self) -> Done {
        self.start().wait()
    }
}

fn gather(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).ok();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Running {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("the process was not waited for");
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_some()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Done {
        let deadline = Instant::now() + TIMEOUT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                break status;
            }
            if Instant::now() >= deadline {
                self.child.kill().ok();
                self.child.wait().ok();
                let (stdout, stderr) = self.output();
                panic!("the program did not end within {} s\n{stdout}\n{stderr}", TIMEOUT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let took = self.started.elapsed();
        let (stdout, stderr) = self.output();
        Done { code: status.code(), stdout, stderr, took }
    }

    fn output(&mut self) -> (String, String) {
        let join =
            |thread: Option<JoinHandle<String>>| thread.and_then(|thread| thread.join().ok()).unwrap_or_default();
        (join(self.stdout.take()), join(self.stderr.take()))
    }
}

impl Drop for Running {
    /// Ends the process of a failed test.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

impl Done {
    /// Asserts the exit code.
    #[track_caller]
    pub fn code(&self, expected: i32) -> &Self {
        assert_eq!(self.code, Some(expected), "the exit code of\n{self}");
        self
    }

    /// stdout as one JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("stdout is no JSON: {error}\n{self}"))
    }

    /// Asserts a failure: exit code and class, on stdout and stderr, and parts of its text.
    #[track_caller]
    pub fn fails(&self, code: i32, class: &str, parts: &[&str]) -> &Self {
        self.code(code);
        let document = self.json();
        assert_eq!(document["status"], "FAILED", "{self}");
        assert_eq!(document["class"], class, "{self}");
        let error = document["error"].as_str().unwrap_or_else(|| panic!("no text\n{self}"));
        assert!(self.stderr.contains(&format!("error: {class}: ")), "stderr has no such error\n{self}");
        for part in parts {
            assert!(error.contains(part), "the error does not name {part:?}\n{self}");
        }
        self
    }

    /// Asserts that the output does not contain a secret.
    #[track_caller]
    pub fn hides(&self, secret: &str) -> &Self {
        assert!(!self.stdout.contains(secret) && !self.stderr.contains(secret), "the output contains a secret\n{self}");
        self
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, stdout, stderr, took } = self;
        let took = took.as_secs_f64();
        write!(f, "exit code {code:?} after {took:.1} s\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---")
    }
}

/// Writes a line to stderr past the test harness, which hides the output of tests that pass.
pub fn print_line(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).ok();
}
