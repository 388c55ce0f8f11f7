//! The processes of the server: what runs, how it starts and how it stops. Callers that start or stop it hold the start
//! lock.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::directory::{SERVER_LOCK, ServerDirectory};
use super::launch::{Launched, launch};
use crate::failure::Failure;
use crate::process;

/// How long a start may take: after a crash the server recovers first.
const START_TIMEOUT: Duration = Duration::from_mins(15);
/// How long a stop may take, with the last signal of [`stop_signal`].
const STOP_TIMEOUT: Duration = Duration::from_secs(80);

/// Which processes of the server run.
enum State {
    /// None. The lock of the server is free, and now held by this value.
    Stopped(File),
    /// The main process runs.
    Running { pid: Pid, is_ready: bool },
    /// Others run without it: the main process was killed, or has written no pid file yet, or initdb runs.
    Orphaned,
}

impl State {
    fn of(directory: &ServerDirectory) -> Result<Self, Failure> {
        if let Some(lock) = directory.try_lock(SERVER_LOCK)? {
            return Ok(Self::Stopped(lock));
        }
        // The process id is in the first line, the status in the eighth.
        let file = fs::read_to_string(pid_file(directory)).unwrap_or_default();
        let is_ready = file.lines().nth(7).is_some_and(|status| status.trim() == "ready");
        Ok(main_process(&file, directory).map_or(Self::Orphaned, |pid| Self::Running { pid, is_ready }))
    }
}

/// Whether the main process runs.
pub(super) fn is_running(directory: &ServerDirectory) -> bool {
    matches!(State::of(directory), Ok(State::Running { .. }))
}

/// Starts the server unless it runs, and returns when it takes connections.
pub(super) fn start(directory: &ServerDirectory, programs: &Path) -> Result<(), Failure> {
    let mut launched: Option<Launched> = None;
    let step = || {
        launched.as_mut().map_or(Ok(()), |launched| launched.check(directory))?;
        match State::of(directory)? {
            State::Running { is_ready, .. } => return Ok(is_ready.then_some(())),
            State::Stopped(lock) if launched.is_none() => {
                remove_stale_pid_file(directory);
                launched = Some(launch(directory, programs, &lock)?);
            }
            State::Orphaned if launched.is_none() => kill_orphans(directory),
            State::Stopped(_) | State::Orphaned => {}
        }
        Ok(None)
    };
    directory.poll(START_TIMEOUT, "starting", step)?;
    if let Some(launched) = launched {
        reap(launched.child);
    }
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

/// The main process, if the process with the id in the pid file is that: ids are used again.
fn main_process(pid_file: &str, directory: &ServerDirectory) -> Option<Pid> {
    let pid = Pid::from_raw(pid_file.lines().next()?.trim().parse().ok()?)?;
    let is_ours = match fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(path) => fs::canonicalize(directory.data()).is_ok_and(|data| data == path),
        // There is no such process, or it is a zombie.
        Err(error) if error.kind() == io::ErrorKind::NotFound && Path::new("/proc/self").exists() => false,
        Err(_) => test_kill_process(pid).is_ok(),
    };
    is_ours.then_some(pid)
}

/// Removes the pid file of a server that was killed: the server refuses to start if another process has its id now. The
/// file stays if its server runs: then somebody else runs it on the data directory.
fn remove_stale_pid_file(directory: &ServerDirectory) {
    let path = pid_file(directory);
    if fs::read_to_string(&path).is_ok_and(|file| main_process(&file, directory).is_none()) {
        fs::remove_file(&path).ok();
    }
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
