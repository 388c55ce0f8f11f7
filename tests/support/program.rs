//! The program under test as a process: what it is given, how it ended, what it said.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// No command of a test takes longer; one that does hangs.
const PATIENCE: Duration = Duration::from_mins(2);

/// The program with arguments and an environment.
#[derive(Clone)]
pub struct Program {
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    stdin: String,
    folder: Option<PathBuf>,
}

/// What a process has done.
pub struct Done {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

/// A process that was started.
pub struct Running {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
    started: Instant,
}

impl Program {
    /// With nothing of this process's environment but what every process needs.
    pub fn new<A: AsRef<str>>(arguments: &[A]) -> Self {
        let arguments = arguments.iter().map(|argument| argument.as_ref().to_owned()).collect();
        let environment = ["PATH", "HOME", "TMPDIR"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
            .collect();
        Self { arguments, environment, stdin: String::new(), folder: None }
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

    /// What the program reads from stdin.
    pub fn stdin(mut self, text: &str) -> Self {
        text.clone_into(&mut self.stdin);
        self
    }

    /// Where it runs.
    pub fn current_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Starts it.
    pub fn start(&self) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_syncctl"));
        command.args(&self.arguments).env_clear().envs(&self.environment);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        let started = Instant::now();
        let mut child = command.spawn().expect("the program under test starts");
        // A program that does not look at its stdin may be gone by now.
        child.stdin.take().expect("it is piped").write_all(self.stdin.as_bytes()).ok();
        let stdout = gather(child.stdout.take().expect("it is piped"));
        let stderr = gather(child.stderr.take().expect("it is piped"));
        Running { child, stdout: Some(stdout), stderr: Some(stderr), started }
    }

    /// Runs it to its end.
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
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("the process is there until it was waited for");
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_some()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Done {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                break status;
            }
            if Instant::now() >= deadline {
                self.child.kill().ok();
                self.child.wait().ok();
                let (stdout, stderr) = self.said();
                panic!("the program did not end within {} s\n{stdout}\n{stderr}", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let took = self.started.elapsed();
        let (stdout, stderr) = self.said();
        Done { code: status.code(), stdout, stderr, took }
    }

    fn said(&mut self) -> (String, String) {
        let join =
            |thread: Option<JoinHandle<String>>| thread.and_then(|thread| thread.join().ok()).unwrap_or_default();
        (join(self.stdout.take()), join(self.stderr.take()))
    }
}

impl Drop for Running {
    /// A failed test leaves no process behind.
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

    /// Asserts a failure told in full: exit code, class, and parts of its one sentence on stdout and stderr.
    #[track_caller]
    pub fn fails(&self, code: i32, class: &str, parts: &[&str]) -> &Self {
        self.code(code);
        let document = self.json();
        assert_eq!(document["status"], "FAILED", "{self}");
        assert_eq!(document["class"], class, "{self}");
        let error = document["error"].as_str().unwrap_or_else(|| panic!("no text\n{self}"));
        assert!(self.stderr.contains(&format!("error: {class}: ")), "stderr does not tell it\n{self}");
        for part in parts {
            assert!(error.contains(part), "the error does not name {part:?}\n{self}");
        }
        self
    }

    /// Asserts that it ended in time.
    #[track_caller]
    pub fn within(&self, limit: Duration) -> &Self {
        assert!(self.took <= limit, "it took longer than {} s\n{self}", limit.as_secs());
        self
    }

    /// Asserts that a secret is nowhere in what was said.
    #[track_caller]
    pub fn keeps(&self, secret: &str) -> &Self {
        assert!(!self.stdout.contains(secret) && !self.stderr.contains(secret), "a secret was told\n{self}");
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

/// Writes a line past the test harness, which would keep the output of a passed test to itself.
pub fn tell(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).ok();
}
