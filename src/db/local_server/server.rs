//! The processes of the server: what runs, how it starts and how it stops. Callers that start or stop it hold the start
//! lock.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::directory::{SERVER_LOCK, ServerDirectory};
use super::launch::launch;
use crate::failure::Failure;
use crate::process;

/// How long a start may take: after a crash the server recovers first.
const START_TIMEOUT: Duration = Duration::from_mins(15);
/// How long a stop may take, with the last signal of [`stop_signal`].
const STOP_TIMEOUT: Duration = Duration::from_secs(80);

/// Which processes of the server run.
pub(super) enum State {
    /// None. The lock of the server is free, and now held by this value.
    Stopped(File),
    /// The main process runs.
    Running { pid: Pid, is_ready: bool },
    /// Others run without it: the main process was killed, or has written no pid file yet, or initdb runs.
    Orphaned,
}

impl State {
    pub(super) fn of(directory: &ServerDirectory) -> Result<Self, Failure> {
        if let Some(lock) = directory.try_lock(SERVER_LOCK)? {
            return Ok(Self::Stopped(lock));
        }
        Ok(main_process(directory).map_or(Self::Orphaned, |(pid, is_ready)| Self::Running { pid, is_ready }))
    }
}

/// Starts the server unless it runs, and returns when it takes connections.
pub(super) fn start(directory: &ServerDirectory, programs: &Path) -> Result<(), Failure> {
    let step = || match State::of(directory)? {
        State::Running { is_ready, .. } => Ok(is_ready.then_some(None)),
        State::Stopped(lock) => {
            if main_process(directory).is_none() {
                // The server refuses to start if another process has the id of a server that was killed.
                fs::remove_file(pid_file(directory)).ok();
            }
            Ok(Some(Some(launch(directory, programs, &lock)?)))
        }
        State::Orphaned => {
            kill_orphans(directory);
            Ok(None)
        }
    };
    let Some(mut launched) = directory.poll(START_TIMEOUT, "starting", step)? else { return Ok(()) };
    directory.poll(START_TIMEOUT, "starting", || {
        launched.check(directory)?;
        // If another server runs on the data directory, this one will end.
        let is_ours = |pid| pid == Pid::from_child(&launched.child);
        Ok(matches!(State::of(directory)?, State::Running { pid, is_ready: true } if is_ours(pid)).then_some(()))
    })?;
    reap(launched.child);
    Ok(())
}

/// Stops the server; returns whether it was running.
pub(super) fn stop(directory: &ServerDirectory) -> Result<bool, Failure> {
    let started = Instant::now();
    let mut was_running = false;
    let step = || {
        match State::of(directory)? {
            State::Stopped(_) => return Ok(Some(was_running)),
            // The server ignores a signal that it has got already.
            State::Running { pid, .. } => _ = kill_process(pid, stop_signal(started.elapsed())),
            State::Orphaned => kill_orphans(directory),
        }
        was_running = true;
        Ok(None)
    };
    directory.poll(STOP_TIMEOUT, "stopping", step)
}

/// For a stop in order, then at once, then by force.
fn stop_signal(elapsed: Duration) -> Signal {
    match elapsed.as_secs() {
        0..60 => Signal::INT,
        60..70 => Signal::QUIT,
        _ => Signal::KILL,
    }
}

/// Waits for a child in the background, so that it is no zombie if it ends before this process.
pub(super) fn reap(mut child: Child) {
    std::thread::spawn(move || child.wait());
}

fn pid_file(directory: &ServerDirectory) -> PathBuf {
    directory.data().join("postmaster.pid")
}

/// The process in the pid file if it works in the data directory, since ids are used again; and whether it is ready.
///
/// That may also be a server that was not started here. A zombie is none.
fn main_process(directory: &ServerDirectory) -> Option<(Pid, bool)> {
    let file = fs::read_to_string(pid_file(directory)).ok()?;
    let pid = Pid::from_raw(file.lines().next()?.trim().parse().ok()?)?;
    let is_ours = match fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(path) => fs::canonicalize(directory.data()).is_ok_and(|data| data == path),
        // A zombie, or a process of another user; or there is no `/proc`.
        Err(_) => process::stat(pid.as_raw_pid().cast_unsigned())
            .map_or_else(|| test_kill_process(pid).is_ok(), |stat| !stat.is_zombie),
    };
    is_ours.then(|| (pid, file.lines().nth(7).is_some_and(|status| status.trim() == "ready")))
}

/// Kills the processes of the server and of initdb. Needs `/proc`; elsewhere they end by themselves unless they are busy.
fn kill_orphans(directory: &ServerDirectory) {
    let Ok(path) = fs::canonicalize(&directory.path) else { return };
    for id in process::ids() {
        let link = |name: &str| fs::read_link(format!("/proc/{id}/{name}")).unwrap_or_default();
        // Of a package that was upgraded meanwhile it is `postgres (deleted)`.
        let program = link("exe").file_name().unwrap_or_default().to_string_lossy().into_owned();
        if ["postgres", "initdb"].contains(&program.trim_end_matches(" (deleted)")) && link("cwd").starts_with(&path) {
            Pid::from_raw(id.cast_signed()).map(|pid| kill_process(pid, Signal::KILL));
        }
    }
}
