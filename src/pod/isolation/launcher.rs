//! The launcher: enters the namespaces and starts the init, whose exit code it returns.
//!
//! It runs in a process of its own with one thread: only such a process can enter a user namespace. It stays outside of the
//! new PID namespace, so that nothing in there can reach it.

use std::ffi::OsString;
use std::io::{BufRead, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

use super::init::{self, Work};
use super::{COMMAND, EXIT_NOT_ISOLATED, Sandbox};
use crate::process::{self, this_program};

/// Runs a program as the sandbox says, to its end; returns the exit code.
pub fn run(sandbox: &Sandbox, program: Vec<OsString>) -> u8 {
    if sandbox.follows_stdin && !matches!(std::io::stdin().lock().read_line(&mut String::new()), Ok(1..)) {
        return EXIT_NOT_ISOLATED;
    }
    let lock = sandbox.holds_lock.then(hold_lock).transpose();
    match lock.map_err(|error| format!("the lock: {error}")).and_then(|lock| Ok((start(sandbox, program)?, lock))) {
        Ok(((child, wakeups), _lock)) => follow(child, &wakeups, sandbox.follows_stdin),
        Err(reason) => {
            eprintln!("cannot isolate the connector: {reason}");
            EXIT_NOT_ISOLATED
        }
    }
}

/// Takes the lock file that stderr is, which the program does not inherit, and makes stdout the stderr.
fn hold_lock() -> std::io::Result<OwnedFd> {
    let lock = std::io::stderr().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stderr(std::io::stdout())?;
    Ok(lock)
}

fn start(sandbox: &Sandbox, program: Vec<OsString>) -> Result<(Child, Wakeups), String> {
    enter_namespaces(sandbox.user.is_none())?;
    process::hide();
    // Before the child exists: its end must not be missed.
    let wakeups = Wakeups::new().map_err(|error| format!("no signals: {error}"))?;
    let mut command = this_program();
    command.args([COMMAND, "--init"]).stdin(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("the init cannot be started: {error}"))?;
    let arguments = program.into_iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let work = Work { sandbox: sandbox.clone(), arguments };
    let text = serde_json::to_string(&work).map_err(|error| error.to_string())?;
    // The init ends with the other end of this pipe, which the child keeps.
    match child.stdin.as_mut().map(|pipe| pipe.write_all(format!("{text}\n").as_bytes())) {
        Some(Ok(())) => Ok((child, wakeups)),
        _ => Err("the init has ended".to_owned()),
    }
}

#[expect(deprecated, reason = "it is unsafe for file descriptors alone, which stay shared here")]
fn enter_namespaces(with_user: bool) -> Result<(), String> {
    use UnshareFlags as Flags;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let flags = Flags::NEWNS | Flags::NEWPID | Flags::NEWIPC | Flags::NEWUTS;
    let user = if with_user { Flags::NEWUSER } else { Flags::empty() };
    rustix::thread::unshare(flags | user).map_err(|error| {
        let kind = if with_user { "user namespaces are not allowed here" } else { "namespaces are not allowed here" };
        format!("{kind}: {error}")
    })?;
    if with_user {
        // The same ids as outside: files show their owner.
        for (file, text) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("{uid} {uid} 1")),
            ("gid_map", format!("{gid} {gid} 1")),
        ] {
            std::fs::write(format!("/proc/self/{file}"), text)
                .map_err(|error| format!("the user namespace is not usable: {file}: {error}"))?;
        }
        init::keep_capabilities().map_err(|error| format!("the user namespace gives no rights: {error}"))?;
    }
    Ok(())
}

/// What wakes the launcher. Without threads: a process whose children are in another PID namespace cannot have any.
struct Wakeups {
    /// Readable after a signal that ends the program.
    terminations: UnixStream,
    /// Readable after the end of a child.
    children: UnixStream,
}

impl Wakeups {
    fn new() -> std::io::Result<Self> {
        let stream = |signals: &[i32]| {
            let (here, handler) = UnixStream::pair()?;
            here.set_nonblocking(true)?;
            for signal in signals {
                signal_hook::low_level::pipe::register(*signal, handler.try_clone()?)?;
            }
            Ok::<_, std::io::Error>(here)
        };
        Ok(Self { terminations: stream(&[SIGTERM, SIGINT, SIGHUP])?, children: stream(&[SIGCHLD])? })
    }
}

/// Forwards signals to the init until it ends.
fn follow(mut child: Child, wakeups: &Wakeups, mut follows_stdin: bool) -> u8 {
    let pid = Pid::from_child(&child);
    let stdin = std::io::stdin();
    let is_readable = |stream: &UnixStream| matches!((&*stream).read(&mut [0; 64]), Ok(1..));
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
                return u8::try_from(code).unwrap_or(EXIT_NOT_ISOLATED);
            }
            Ok(None) => {}
            Err(_) => return EXIT_NOT_ISOLATED,
        }
        let mut events =
            vec![PollFd::new(&wakeups.terminations, PollFlags::IN), PollFd::new(&wakeups.children, PollFlags::IN)];
        if follows_stdin {
            events.push(PollFd::new(&stdin, PollFlags::IN));
        }
        rustix::event::poll(&mut events, None).ok();
        let is_stdin_ready = events.get(2).is_some_and(|stdin| !stdin.revents().is_empty());
        is_readable(&wakeups.children);
        if is_readable(&wakeups.terminations) {
            rustix::process::kill_process(pid, Signal::TERM).ok();
        }
        // Nothing is ever written: this is its end.
        if is_stdin_ready && !matches!(stdin.lock().read(&mut [0; 64]), Ok(1..)) {
            follows_stdin = false;
            rustix::process::kill_process(pid, Signal::KILL).ok();
        }
    }
}
