//! The holder of the server: the process that stops it after its last user, even if that user was killed.
//!
//! A user that is killed cannot stop the server, so this takes a process that outlives every user. Nothing depends on
//! it while the server is in use: if the holder is killed, the next user to start or end starts another one.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::directory::{HOLDER_LOCK, ProgramSearch, START_LOCK, ServerDirectory, USERS_LOCK};
use super::errors::reason;
use super::server::{self, State};
use super::{client, launch};
use crate::failure::{Class, Failure};

/// The hidden command that calls [`hold`]; its arguments are the state directory and the directory of the programs.
const HOLD_COMMAND: [&str; 2] = ["db", "hold"];

/// How often the holder checks users and server …
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// … and how long it waits after a start that has failed.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Starts the holder, which inherits the lock, so that it holds it from its first moment.
pub(super) fn spawn(directory: &ServerDirectory, lock: File, programs: &Path) -> Result<(), Failure> {
    let start = || {
        let program = std::env::current_exe()?;
        // The kernel still has the file if it was replaced meanwhile.
        let mut command = Command::new(if program.exists() { &program } else { Path::new("/proc/self/exe") });
        command.arg0("syncctl").args(HOLD_COMMAND).arg(&directory.state).arg(programs);
        command.current_dir("/").stdin(lock).stdout(Stdio::null()).stderr(Stdio::null());
        launch::detach(&mut command);
        server::reap(command.spawn()?);
        Ok(())
    };
    start().map_err(|error: io::Error| {
        Failure::new(Class::Internal, format!("cannot start the holder of the embedded database: {}", reason(&error)))
    })
}

/// Runs the holder until the server has stopped. Only [`spawn`] calls the command of this function.
pub fn hold(state: &Path, programs: &Path) -> Result<(), Failure> {
    let directory = ServerDirectory::new(state, ProgramSearch::default());
    let holder_lock = inherited_lock(&directory).ok_or_else(|| {
        Failure::new(Class::Usage, "this command is internal: syncctl starts it together with the embedded database")
    })?;
    let mut pause = POLL_INTERVAL;
    loop {
        std::thread::sleep(pause);
        pause = POLL_INTERVAL;
        let Some(_start_lock) = directory.try_lock(START_LOCK)? else { continue };
        if let Some(_users_lock) = lock_unused(&directory)? {
            server::stop(&directory)?;
            // Before the start lock, so that the next start finds no holder.
            holder_lock.unlock().ok();
            return Ok(());
        }
        let is_running = matches!(State::of(&directory)?, State::Running { .. });
        if !is_running && server::start(&directory, programs).is_err() {
            pause = RETRY_DELAY;
        }
        launch::rotate_log(&directory.log());
    }
}

/// The lock of the users, taken exclusively, if the server is not in use. The caller holds the start lock.
pub(super) fn lock_unused(directory: &ServerDirectory) -> Result<Option<File>, Failure> {
    let users_lock = directory.try_lock(USERS_LOCK)?;
    Ok(users_lock.filter(|_| !directory.is_lingering() && !client::has_clients(directory)))
}

/// The lock of the holder, which is this process's stdin.
fn inherited_lock(directory: &ServerDirectory) -> Option<File> {
    let lock = File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
    let identity = |file: Metadata| (file.dev(), file.ino());
    let expected = std::fs::metadata(directory.path.join(HOLDER_LOCK)).ok().map(identity)?;
    (identity(lock.metadata().ok()?) == expected && lock.try_lock().is_ok()).then_some(lock)
}
