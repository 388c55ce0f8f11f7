//! Processes that a keeper before us has left: which of them are the server of this data, and their end.
//!
//! A process id alone proves nothing, as ids are used again. On a machine with `/proc` a process of the server is known
//! by its program and by the folder it works in; elsewhere by its answer on the socket.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::process;

/// Whether processes can be looked at here.
fn can_look() -> bool {
    Path::new("/proc/self/stat").exists()
}

/// Whether there is a process of this number, and it is none of the server's.
pub(super) fn is_somebody_else(pid: Pid, data: &Path) -> bool {
    can_look() && test_kill_process(pid) != Err(rustix::io::Errno::SRCH) && !works_in(pid, data)
}

/// Whether this is a process of the server of this data directory.
pub(super) fn is_server(pid: Pid, data: &Path, socket: &Path) -> bool {
    if can_look() {
        return works_in(pid, data) && is_program(pid, &["postgres"]);
    }
    test_kill_process(pid) != Err(rustix::io::Errno::SRCH) && std::os::unix::net::UnixStream::connect(socket).is_ok()
}

/// Whether it has the same folder as its working directory, by whatever name.
fn works_in(pid: Pid, folder: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|folder| (folder.dev(), folder.ino())).ok();
    let cwd = identity(Path::new(&format!("/proc/{}/cwd", pid.as_raw_pid())));
    cwd.is_some() && cwd == identity(folder)
}

/// A program that was replaced meanwhile is called `postgres (deleted)`.
fn is_program(pid: Pid, names: &[&str]) -> bool {
    let program = fs::read_link(format!("/proc/{}/exe", pid.as_raw_pid())).unwrap_or_default();
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    names.contains(&name.trim_end_matches(" (deleted)"))
}

/// Kills what works on these folders without a keeper: children that outlived their server, and an initdb that was
/// not waited for. Waits until they are gone, because the next server refuses to start beside them.
pub(super) fn end_orphans(folders: &[&Path], patience: Duration) {
    let deadline = Instant::now() + patience;
    loop {
        let orphans = orphans(folders);
        if orphans.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in orphans {
            kill_process(pid, Signal::KILL).ok();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn orphans(folders: &[&Path]) -> Vec<Pid> {
    let pids = process::ids().filter_map(|id| Pid::from_raw(i32::try_from(id).ok()?));
    pids.filter(|pid| folders.iter().any(|folder| works_in(*pid, folder)) && is_program(*pid, &["postgres", "initdb"]))
        .collect()
}
