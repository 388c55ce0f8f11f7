//! The embedded database: a private PostgreSQL server below the state directory, run from the programs installed on this
//! machine for as long as a process uses it.
//!
//! Owns everything below [`ServerDirectory`], the server's process and the [holder](holder)'s. Knows nothing of tasks, nor
//! of tables other than the schema that they are created in.
//!
//! | process | what it does | lock |
//! |---|---|---|
//! | user | a command of syncctl, or the psql that it has become | `users.lock`, shared with other users |
//! | server | PostgreSQL; initdb before it | `server.lock`, inherited by all its processes |
//! | holder | stops the server after the last user, starts it again after a crash | `holder.lock` |
//!
//! A process that starts or stops the server holds `start.lock` meanwhile. The locks are `flock`s: the kernel releases a
//! lock when the last process that holds it ends, however it ends. So after `kill -9` of any process the next one that
//! takes `start.lock` sees from the other locks what still runs.

mod account;
mod client;
mod directory;
mod errors;
mod holder;
mod installation;
mod launch;
mod names;
mod rows;
mod server;

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use directory::HOLDER_LOCK;

use crate::failure::Failure;

pub use directory::{PORT, ProgramSearch, ServerDirectory};
pub use holder::hold;
pub use names::{DATA_SCHEMA, DATABASE, LOADER, OWN_SCHEMA, SCHEMA, USER};

/// One user of the server, which runs at least as long as this value lives.
#[derive(Debug)]
pub struct LocalServer {
    directory: ServerDirectory,
    users_lock: File,
}

/// The result of [`stop`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopOutcome {
    /// The server has stopped.
    Stopped,
    /// It was not running.
    NotRunning,
    /// It is in use and keeps running.
    InUse,
}

impl LocalServer {
    /// Starts the server unless it runs; creates its data directory, database and schema where they are missing.
    pub fn start(directory: &ServerDirectory) -> Result<Self, Failure> {
        directory.check_path()?;
        if !directory.path.is_dir() {
            // A machine without PostgreSQL gets no directory.
            installation::programs(directory)?;
        }
        directory.create()?;
        let _start_lock = directory.lock_start()?;
        let users_lock = directory.lock_users()?;
        let user = Self { directory: directory.clone(), users_lock };
        let holder_lock = directory.try_lock(HOLDER_LOCK)?;
        if holder_lock.is_none() && client::prepare(directory).is_ok() {
            return Ok(user);
        }
        let programs = installation::programs(directory)?;
        if let Some(lock) = holder_lock {
            // Before the server, so that it stops even if this process is killed while it waits for it.
            holder::spawn(directory, lock, &programs)?;
        }
        server::start(directory, &programs)?;
        client::prepare(directory)?;
        Ok(user)
    }

    /// The URL of the database, for every client on this machine that may enter the directory of the socket.
    pub fn url(&self) -> String {
        client::url(&self.directory, DATABASE)
    }

    /// The same for results alone, whatever tables of rows there are.
    pub fn results_url(&self) -> String {
        format!("{}?search_path={SCHEMA}", self.url())
    }

    /// The directory of the socket, which clients accept as the host.
    pub fn socket_directory(&self) -> PathBuf {
        self.directory.socket_directory()
    }

    /// A client program of the server's own version, if it is installed next to the server.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        // The command line of the server: `/usr/lib/postgresql/15/bin/postgres "-D" …`.
        let options = std::fs::read_to_string(self.directory.data().join("postmaster.opts")).ok()?;
        let server = options.split(" \"").next()?;
        Some(Path::new(server).with_file_name(name)).filter(|path| path.exists())
    }

    /// Keeps the server running for a minute after its last user, for clients that get the URL.
    pub fn linger(&self) -> Result<(), Failure> {
        self.directory.start_lingering()
    }

    /// Replaces this process by another program, which then uses the server instead. Returns only if that fails.
    pub fn become_program(self, command: &mut Command) -> io::Error {
        match rustix::io::fcntl_setfd(&self.users_lock, rustix::io::FdFlags::empty()) {
            Ok(()) => command.exec(),
            Err(error) => error.into(),
        }
    }
}

impl Drop for LocalServer {
    /// Replaces a holder that was killed: otherwise the server would run on until the next command.
    fn drop(&mut self) {
        if let Ok(Some(lock)) = self.directory.try_lock(HOLDER_LOCK)
            && let Ok(programs) = installation::programs(&self.directory)
        {
            holder::spawn(&self.directory, lock, &programs).ok();
        }
    }
}

/// Prepares the running server for a read: the role of rows owns what it may load into, and tables of rows that an earlier
/// version has loaded next to the results are moved. Returns lines for the user.
pub fn hand_over_rows(directory: &ServerDirectory) -> Result<Vec<String>, Failure> {
    client::hand_over_rows(directory)
}

/// Stops the server unless it is in use.
pub fn stop(directory: &ServerDirectory) -> Result<StopOutcome, Failure> {
    if !directory.path.is_dir() {
        return Ok(StopOutcome::NotRunning);
    }
    directory.stop_lingering();
    let _start_lock = directory.lock_start()?;
    Ok(match holder::lock_unused(directory)? {
        None => StopOutcome::InUse,
        Some(_users_lock) if server::stop(directory)? => StopOutcome::Stopped,
        Some(_) => StopOutcome::NotRunning,
    })
}
