//! Runs external programs: pip, uv, docker, podman.
//!
//! A program runs in a process group of its own and never outlives this process, however that ends: a watchdog in the
//! group waits for the end of a pipe whose other end only this process holds.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, test_kill_process_group, waitpgid};

use crate::pod::isolation::Sandbox;
use crate::process;

/// The interval between calls of `is_cancelled`.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long a program may take to end after TERM: some remove their temporary files.
const TERM_GRACE: Duration = Duration::from_millis(500);
/// How long to wait for the end of a killed group.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// The number of a program's last output lines in memory.
const MAX_LINES: usize = 1000;
/// A longer line counts as several.
const MAX_LINE_BYTES: u64 = 64 * 1024;
/// The longest excerpt of a program's output in an error, in characters.
const MAX_EXCERPT: usize = 2000;

/// Runs `$@` with the watchdog. stdin is the pipe that ends with this process. stderr is no output but the lock file that
/// the program inherits as descriptor 4.
const GUARD_SCRIPT: &str = r#"exec 3<&0 4>&2 2>&1 </dev/null
(read -r nothing <&3; kill -KILL 0) >/dev/null 2>&1 4>&- &
exec 3<&-
exec "$@""#;

/// What a program gets besides its arguments.
#[derive(Clone, Copy)]
pub struct ProcessEnvironment<'a> {
    /// All of its environment variables.
    pub variables: &'a [(String, String)],
    /// Its working directory.
    pub working_directory: &'a Path,
    /// A lock file that stays locked while the program lives, even if this process is killed.
    pub lock: Option<&'a File>,
    /// After this time the program is ended.
    pub timeout: Duration,
    /// The program is ended once this returns true.
    pub is_cancelled: &'a dyn Fn() -> bool,
    /// Isolates the program, which is foreign code or runs some.
    pub sandbox: Option<&'a Sandbox>,
}

impl<'a> ProcessEnvironment<'a> {
    /// The value of a variable.
    pub fn variable(&self, name: &str) -> Option<&'a str> {
        // Of duplicates a process gets the last one.
        self.variables.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The end of a program.
#[derive(Debug, Clone)]
pub struct Output {
    /// `None` after a signal, a timeout or a cancellation.
    pub exit_code: Option<i32>,
    /// The last lines of stdout and stderr, in the order of their arrival.
    pub lines: Vec<String>,
}

impl Output {
    /// Whether the program ended with code 0.
    pub fn is_success(&self) -> bool {
        self.exit_code == Some(0)
    }

    /// The last line that is not blank.
    pub fn last_line(&self) -> &str {
        self.lines.iter().rev().map(|line| line.trim()).find(|line| !line.is_empty()).unwrap_or("no output")
    }

    /// The last lines that are not blank, for an error message; without the credentials in URLs.
    pub fn excerpt(&self, max_lines: usize) -> String {
        let lines: Vec<&str> = self.lines.iter().map(|line| line.trim_end()).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() {
            return "no output".to_owned();
        }
        let text = mask_credentials(&lines[lines.len().saturating_sub(max_lines)..].join("\n"));
        let excess = text.chars().count().saturating_sub(MAX_EXCERPT);
        match text.char_indices().nth(excess) {
            Some((start, _)) if excess > 0 => format!("…{}", &text[start..]),
            _ => text,
        }
    }
}

/// Runs a program to its end. Calls `on_line` with each line of its output.
pub fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: &[A],
    environment: ProcessEnvironment<'_>,
    on_line: &mut dyn FnMut(&str),
) -> std::io::Result<Output> {
    let ProcessEnvironment { variables, working_directory, lock, timeout, is_cancelled, sandbox } = environment;
    let variables = variables.iter().map(|(name, value)| (name, value));
    let mut command = if let Some(sandbox) = sandbox {
        // Its launcher is the watchdog.
        let sandbox = Sandbox { follows_stdin: true, holds_lock: true, ..sandbox.clone() };
        sandbox.command(None, Some(program), arguments, variables)
    } else {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", GUARD_SCRIPT, "sh"]).arg(program).args(arguments).env_clear().envs(variables);
        command
    };
    command.current_dir(working_directory);
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.stderr(match lock {
        Some(lock) => Stdio::from(lock.try_clone()?),
        None => Stdio::null(),
    });
    let mut child = command.spawn()?;
    // The watchdog kills the group when this is dropped.
    let mut watchdog = child.stdin.take();
    if sandbox.is_some()
        && let Some(start) = &mut watchdog
    {
        start.write_all(b"\n").ok();
    }
    let output = read_lines(child.stdout.take().expect("stdout is piped"));
    let mut group = ProcessGroup { child, watchdog, has_ended: false };
    let deadline = Instant::now() + timeout;
    let mut lines = VecDeque::new();
    let mut add = |line: String| {
        on_line(&line);
        if lines.len() == MAX_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    };
    let exit_code = loop {
        match output.recv_timeout(POLL_INTERVAL) {
            Ok(line) => add(line),
            Err(RecvTimeoutError::Timeout) => {}
            // It closed its output and may still run.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL_INTERVAL / 10),
        }
        if is_cancelled() || Instant::now() >= deadline {
            break None;
        }
        if let Some(status) = group.child.try_wait()? {
            break status.code();
        }
    };
    group.end();
    // The pipe may hold more output. A process that left the group may keep it open for ever.
    let deadline = Instant::now() + KILL_TIMEOUT;
    while let Ok(line) = output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        add(line);
    }
    Ok(Output { exit_code, lines: lines.into() })
}

/// Runs a program that answers a question; `None` if it fails.
pub fn query(program: &Path, arguments: &[&str], environment: ProcessEnvironment<'_>) -> Option<Output> {
    run(program, arguments, environment, &mut |_| ()).ok().filter(Output::is_success)
}

/// The lines of a pipe, from a thread that ends with it.
fn read_lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = sync_channel(256);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    let text = String::from_utf8_lossy(&line);
                    // A progress bar overwrites its line.
                    let text = text.trim_end_matches(['\n', '\r']).rsplit('\r').next().unwrap_or_default();
                    if sender.send(text.to_owned()).is_err() {
                        return;
                    }
                }
            }
        }
    });
    receiver
}

/// Ends its processes when it is dropped, even in a panic.
struct ProcessGroup {
    child: Child,
    /// Ends the group when it is closed.
    watchdog: Option<ChildStdin>,
    has_ended: bool,
}

impl ProcessGroup {
    /// Ends all processes of the group and waits until they are gone.
    fn end(&mut self) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let group = Pid::from_child(&self.child);
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may end between the two calls.
            kill_process_group(group, Signal::TERM).ok();
            self.wait(TERM_GRACE);
            // The launcher of a sandbox returns only after all that runs in it.
            self.watchdog = None;
            self.wait(KILL_TIMEOUT);
        }
        kill_process_group(group, Signal::KILL).ok();
        self.child.wait().ok();
        // Where this process is a subreaper, it must reap the rest of the group.
        let deadline = Instant::now() + KILL_TIMEOUT;
        while test_kill_process_group(group).is_ok() && has_running_process(group) && Instant::now() < deadline {
            while let Ok(Some(_)) = waitpgid(group, WaitOptions::NOHANG) {}
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl ProcessGroup {
    /// Waits for the leader to end, for some time.
    fn wait(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.end();
    }
}

/// Zombies do not count: a container without an init process never reaps them.
fn has_running_process(group: Pid) -> bool {
    let group = group.as_raw_nonzero().get().unsigned_abs();
    process::ids().filter_map(process::stat).any(|stat| !stat.is_zombie && stat.group == group)
}

/// The directories of `PATH`.
pub fn path_directories(environment: ProcessEnvironment<'_>) -> Vec<PathBuf> {
    let path = environment.variable("PATH").unwrap_or("/usr/local/bin:/usr/bin:/bin");
    let directories = std::env::split_paths(&OsString::from(path)).collect::<Vec<_>>();
    directories.into_iter().map(|directory| environment.working_directory.join(directory)).collect()
}

/// The path of a program in `PATH`.
pub fn find_program(name: &str, environment: ProcessEnvironment<'_>) -> Option<PathBuf> {
    path_directories(environment).into_iter().map(|directory| directory.join(name)).find(|path| is_executable(path))
}

/// Whether it is a file with execute permission.
pub fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Replaces user name and password in URLs: the URL of a package index may contain them.
fn mask_credentials(text: &str) -> String {
    let mut masked = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        masked.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "'\"<>`".contains(c)).unwrap_or(after.len());
        let (url, after_url) = after.split_at(end);
        // The last one: a password that is not percent-encoded may contain any character.
        match url.rfind('@') {
            Some(at) => masked.extend(["***", &url[at..]]),
            None => masked.push_str(url),
        }
        rest = after_url;
    }
    masked + rest
}

#[cfg(test)]
mod tests {
    use super::{Output, mask_credentials};

    #[test]
    fn credentials_in_urls_are_masked() {
        for (text, expected) in [
            ("nothing to hide", "nothing to hide"),
            ("at https://user:pass@host/simple and http://host/x", "at https://***@host/simple and http://host/x"),
            ("'https://token@host'", "'https://***@host'"),
            ("https://user:p@ss/word@host/x https://b@c", "https://***@host/x https://***@c"),
        ] {
            assert_eq!(mask_credentials(text), expected);
        }
    }

    #[test]
    fn an_excerpt_has_the_last_lines_without_blank_ones() {
        let excerpt = |lines: &[&str]| {
            Output { exit_code: Some(1), lines: lines.iter().map(|line| (*line).to_owned()).collect() }.excerpt(2)
        };
        assert_eq!(excerpt(&["a", "", "  b ", "\t", "c", ""]), "  b\nc");
        assert_eq!(excerpt(&["", " "]), "no output");
        assert_eq!(excerpt(&["at http://a:b@c"]), "at http://***@c");
        let long = excerpt(&["x", &"ä".repeat(3000)]);
        assert_eq!(long, format!("…{}", "ä".repeat(2000)));
    }
}
