//! The init: the first process of the new PID namespace. It builds the root file system, gives up all rights, runs
//! the program, forwards signals to it, reaps orphans, and ends with it. The kernel kills what is left in the namespace then.

use std::io::{BufRead, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{DumpableBehavior, Gid, Pid, Resource, Rlimit, Signal, Uid, WaitOptions};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{ALLOCATOR_SETTINGS, EXIT_NOT_ISOLATED, Sandbox, landlock, root};

/// What the launcher writes as a line to the init's stdin.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Work {
    /// What the program can access.
    pub(super) sandbox: Sandbox,
    /// The program and its arguments; empty for a probe.
    pub(super) arguments: Vec<String>,
}

/// The number of processes and threads of one program, where they can be counted.
const PROCESSES: u64 = 4096;
/// The exit code after the launcher has ended.
const KILLED: i32 = 137;

/// Runs the program that stdin describes, to its end; returns the exit code.
pub fn run() -> u8 {
    match start() {
        Ok(Started::Program(pid, signals)) => follow(pid, signals),
        Ok(Started::Probe(abi)) => {
            println!("{abi}");
            0
        }
        Err(reason) => {
            eprintln!("cannot isolate the connector: {reason}");
            EXIT_NOT_ISOLATED
        }
    }
}

enum Started {
    Program(Pid, Signals),
    /// The version of Landlock.
    Probe(u32),
}

fn start() -> Result<Started, String> {
    // The program has the same user: it must not read or change this process.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| error.to_string())?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|error| error.to_string())?;
    let Work { sandbox, arguments } = serde_json::from_str(&line).map_err(|error| error.to_string())?;
    root::enter(&sandbox)?;
    give_up_rights(sandbox.user).map_err(|error| format!("cannot give up rights: {error}"))?;
    // A change of the user makes a process dumpable or not.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| error.to_string())?;
    let abi = landlock::restrict(&root::writable(&sandbox)).map_err(|error| format!("Landlock: {error}"))?;
    let Some((name, arguments)) = arguments.split_first() else { return Ok(Started::Probe(abi)) };
    // Before the program exists: its end must not be missed.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGCHLD]).map_err(|error| format!("no signals: {error}"))?;
    let mut command = Command::new(name);
    command.args(arguments).current_dir(&sandbox.working_directory).stdin(Stdio::null()).env_remove(ALLOCATOR_SETTINGS);
    // A program that signals its process group does not reach this process.
    command.process_group(0);
    let child = command.spawn().map_err(|error| format!("{}: {error}", Path::new(name).display()))?;
    let pid = Pid::from_child(&child);
    std::thread::spawn(|| {
        // The launcher holds the other end until it ends.
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        std::process::exit(KILLED);
    });
    Ok(Started::Program(pid, signals))
}

/// Makes the next program that this process executes keep the right to mount, which an ordinary user has in the user
/// namespace that this process has created.
pub(super) fn keep_capabilities() -> rustix::io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.inheritable = CapabilitySet::SYS_ADMIN;
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::configure_capability_in_ambient_set(CapabilitySet::SYS_ADMIN, true)
}

/// Leaves no right that the program could use. This process has one thread.
fn give_up_rights(user: Option<u32>) -> rustix::io::Result<()> {
    let limit = |resource, value: u64| {
        let value = Some(value);
        rustix::process::setrlimit(resource, Rlimit { current: value, maximum: value })
    };
    // A core is a file with the configuration in it.
    limit(Resource::Core, 0)?;
    if let Some(id) = user {
        // The kernel counts them for each user.
        limit(Resource::Nproc, PROCESSES)?;
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_gid(Gid::from_raw(id))?;
        rustix::thread::set_thread_uid(Uid::from_raw(id))?;
    }
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    rustix::thread::set_no_new_privs(true)?;
    // Without a controlling terminal, into which it could type.
    rustix::process::setsid().map(drop)
}

fn follow(program: Pid, mut signals: Signals) -> u8 {
    loop {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == program {
                let signal = || status.terminating_signal().map_or(KILLED, |signal| 128 + signal);
                return u8::try_from(status.exit_status().unwrap_or_else(signal)).unwrap_or(EXIT_NOT_ISOLATED);
            }
        }
        if signals.wait().any(|signal| signal != SIGCHLD) {
            rustix::process::kill_process(program, Signal::TERM).ok();
        }
    }
}
