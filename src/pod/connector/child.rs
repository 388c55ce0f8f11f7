//! Programs of others that are run to find a connector: pip, uv, docker, podman.
//!
//! A program runs in a process group of its own and never outlives this process, whatever ends it: a watcher in the
//! group waits for the end of a pipe that only this process holds. Knows nothing of what the programs say.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, test_kill_process_group, waitpgid};

use crate::process;

/// How often `stop` is asked.
const STEP: Duration = Duration::from_millis(50);
/// How long a program may take to end after TERM: some remove their temporary files.
const GRACE: Duration = Duration::from_millis(500);
/// How long the rest of a killed group may take to be gone.
const BURIAL: Duration = Duration::from_secs(2);
/// What is kept of a program's output: enough for any reason that it gives.
const LINES: usize = 1000;
/// The longest line that counts in full: pip lists all versions of a package in one.
const LONGEST_LINE: u64 = 64 * 1024;

/// Runs `$@` with a watcher beside it. stdin is the pipe that ends with the caller; stderr is not for messages but a file
/// that the program is to hold open, a lock.
const GUARDED: &str = r#"exec 3<&0 4>&2 2>&1 </dev/null
(read -r nothing <&3; kill -KILL 0) >/dev/null 2>&1 4>&- &
exec 3<&-
exec "$@""#;

/// What a program is given besides its arguments.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// All of its environment.
    pub environment: &'a [(String, String)],
    /// Where it runs.
    pub folder: &'a Path,
    /// A lock that is to stay taken as long as the program lives, even when this process is killed.
    pub holds: Option<&'a File>,
    /// How long it may take.
    pub limit: Duration,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code; `None` after a signal.
    Exited(Option<i32>),
    /// Because it was told to.
    Stopped,
    /// Because it took too long.
    TookTooLong,
}

/// What a program has done.
#[derive(Debug, Clone)]
pub struct Done {
    /// How it ended.
    pub end: End,
    /// The last lines that it wrote, stdout and stderr as they came.
    pub lines: Vec<String>,
}

impl Done {
    /// Whether it says that all is well.
    pub fn is_ok(&self) -> bool {
        self.end == End::Exited(Some(0))
    }

    /// The last line that says anything.
    pub fn last_line(&self) -> &str {
        self.lines.iter().rev().map(|line| line.trim()).find(|line| !line.is_empty()).unwrap_or_default()
    }
}

/// Runs a program to its end, or until `stop` says true or its time is over. `heard` is called with each line, and with
/// `None` at least every 50 ms.
pub fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: &[A],
    surroundings: Surroundings<'_>,
    stop: &dyn Fn() -> bool,
    heard: &mut dyn FnMut(Option<&str>),
) -> std::io::Result<Done> {
    let Surroundings { environment, folder, holds, limit } = surroundings;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", GUARDED, "sh"]).arg(program).args(arguments);
    command.env_clear().envs(environment.iter().map(|(name, value)| (name, value))).current_dir(folder);
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.stderr(match holds {
        Some(lock) => Stdio::from(lock.try_clone()?),
        None => Stdio::null(),
    });
    let mut child = command.spawn()?;
    // Its end is the program's end, so it lives as long as this function.
    let _leash = child.stdin.take();
    let said = listen(child.stdout.take().expect("it is piped"));
    let mut group = Group { child, is_over: false };
    let deadline = Instant::now() + limit;
    let mut kept = VecDeque::new();
    let mut keep = |line: String| {
        if kept.len() == LINES {
            kept.pop_front();
        }
        kept.push_back(line);
    };
    let end = loop {
        match said.recv_timeout(STEP) {
            Ok(line) => {
                heard(Some(&line));
                keep(line);
            }
            Err(RecvTimeoutError::Timeout) => heard(None),
            // It may have closed its output and live on.
            Err(RecvTimeoutError::Disconnected) => {
                heard(None);
                std::thread::sleep(STEP / 10);
            }
        }
        if stop() {
            break End::Stopped;
        }
        if let Some(status) = group.ended()? {
            break End::Exited(status.code());
        }
        if Instant::now() >= deadline {
            break End::TookTooLong;
        }
    };
    group.end();
    // What it said before its end is in the pipe; a process that left the group may hold that open for ever.
    let patience = Instant::now() + BURIAL;
    while let Ok(line) = said.recv_timeout(patience.saturating_duration_since(Instant::now())) {
        heard(Some(&line));
        keep(line);
    }
    Ok(Done { end, lines: kept.into() })
}

/// What a program answers within a moment; `None` when it does not, or says no.
pub fn ask(program: &Path, arguments: &[&str], surroundings: Surroundings<'_>) -> Option<Done> {
    run(program, arguments, surroundings, &|| false, &mut |_| ()).ok().filter(Done::is_ok)
}

/// The lines of a pipe, from a thread that ends with it.
fn listen(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (tell, said) = sync_channel(256);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    let text = String::from_utf8_lossy(&line);
                    // A progress bar overwrites its line.
                    let text = text.trim_end_matches(['\n', '\r']).rsplit('\r').next().unwrap_or_default();
                    if tell.send(text.to_owned()).is_err() {
                        return;
                    }
                }
            }
        }
    });
    said
}

/// A process group of ours. It is over when the value is dropped, even in a panic.
struct Group {
    child: Child,
    is_over: bool,
}

impl Group {
    fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    fn id(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Ends all that is left of the group and waits until it is gone.
    fn end(&mut self) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may be gone in this moment.
            kill_process_group(self.id(), Signal::TERM).ok();
            let deadline = Instant::now() + GRACE;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        kill_process_group(self.id(), Signal::KILL).ok();
        self.child.wait().ok();
        // The rest of the group becomes ours to bury where this process adopts orphans.
        let deadline = Instant::now() + BURIAL;
        while test_kill_process_group(self.id()).is_ok() && has_living(self.id()) && Instant::now() < deadline {
            while let Ok(Some(_)) = waitpgid(self.id(), WaitOptions::NOHANG) {}
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether anything of a group still runs. In a container the dead may stay unburied for ever.
fn has_living(group: Pid) -> bool {
    let group = group.as_raw_nonzero().get().unsigned_abs();
    process::ids().filter_map(process::stat).any(|stat| !stat.is_zombie && stat.group == group)
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

/// The value of a variable.
pub fn variable<'a>(environment: &'a [(String, String)], name: &str) -> Option<&'a str> {
    // The last one of a name is the one that a child gets.
    environment.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// The folders of `PATH`, relative ones from `folder`.
pub fn path_folders(environment: &[(String, String)], folder: &Path) -> Vec<PathBuf> {
    let path = variable(environment, "PATH").unwrap_or("/usr/local/bin:/usr/bin:/bin");
    std::env::split_paths(&OsString::from(path)).map(|entry| folder.join(entry)).collect()
}

/// Where a program is.
pub fn program(name: &str, environment: &[(String, String)], folder: &Path) -> Option<PathBuf> {
    path_folders(environment, folder).into_iter().map(|entry| entry.join(name)).find(|path| is_executable(path))
}

/// Whether it is a file that somebody may run.
pub fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}
