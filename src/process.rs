//! The processes of this machine, as `/proc` shows them. Without `/proc` nothing is known of them.

use std::fmt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::str::FromStr;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, test_kill_process};

/// `/proc/PID/stat` of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// It has ended, and its parent has not waited for it.
    pub is_zombie: bool,
    /// Its parent, or the process that adopted it.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// CPU time in clock ticks.
    pub ticks: u64,
    /// CPU time of its children that have ended, in clock ticks.
    pub ended_ticks: u64,
    /// Its start, in clock ticks since boot.
    pub started: u64,
    /// Resident memory in pages.
    pub pages: u64,
}

/// A command that runs this program, even if its file was replaced by a newer version.
pub fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("syncctl");
    command
}

/// Makes memory, variables and open files of this process inaccessible to other processes of its user, and lets it leave no
/// core. All processes of this program call it: each has secrets, or is started by one that has.
pub fn hide() {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).ok();
}

/// Reads the stat of a process; `None` if it does not exist or is hidden.
pub fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses, which may contain blanks.
    let (_, after_name) = text.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat {
        is_zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        ticks: number(11)? + number(12)?,
        ended_ticks: number(13)? + number(14)?,
        started: number(19)?,
        pages: number(21)?,
    })
}

/// The ids of all visible processes.
pub fn ids() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Identifies a process of any machine, also after its pid is reused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessId {
    /// The boot id of the kernel.
    boot: String,
    /// The namespace of the pid: containers have their own.
    pid_namespace: String,
    pid: u32,
    /// Its start, in clock ticks since boot.
    started: u64,
}

/// Whether a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It runs.
    Running,
    /// It has ended.
    Ended,
    /// It belongs to another machine or container, or is hidden.
    Unknown,
}

impl ProcessId {
    /// This process; `None` without `/proc`.
    pub fn current() -> Option<Self> {
        let pid = std::process::id();
        Some(Self { boot: boot_id()?, pid_namespace: pid_namespace()?, pid, started: start_of(pid)? })
    }

    /// Whether it still runs.
    pub fn liveness(&self) -> Liveness {
        if boot_id().as_ref() != Some(&self.boot) || pid_namespace().as_ref() != Some(&self.pid_namespace) {
            return Liveness::Unknown;
        }
        if start_of(self.pid) == Some(self.started) {
            return Liveness::Running;
        }
        // Processes of other users may be hidden (hidepid): then only ESRCH proves the end.
        let is_hidden = stat(self.pid).is_none() && exists(self.pid);
        if is_hidden { Liveness::Unknown } else { Liveness::Ended }
    }
}

fn exists(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

fn boot_id() -> Option<String> {
    Some(std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

fn pid_namespace() -> Option<String> {
    std::fs::read_link("/proc/self/ns/pid").ok()?.into_os_string().into_string().ok()
}

/// When a process started; `None` for a zombie, which has ended.
fn start_of(pid: u32) -> Option<u64> {
    stat(pid).filter(|stat| !stat.is_zombie).map(|stat| stat.started)
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { boot, pid_namespace, pid, started } = self;
        write!(f, "{boot} {pid_namespace} {pid} {started}")
    }
}

impl FromStr for ProcessId {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let parts: Vec<&str> = text.split(' ').collect();
        let [boot, pid_namespace, pid, started] = parts[..] else { return Err(()) };
        Ok(Self {
            boot: boot.to_owned(),
            pid_namespace: pid_namespace.to_owned(),
            pid: pid.parse().map_err(|_| ())?,
            started: started.parse().map_err(|_| ())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Liveness, ProcessId, ids, stat};
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    /// A child that has ended and was not waited for.
    fn zombie() -> Child {
        let child = Command::new("true").spawn().expect("a process");
        let deadline = Instant::now() + Duration::from_mins(5);
        while stat(child.id()).is_some_and(|stat| !stat.is_zombie) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        child
    }

    #[test]
    fn a_child_is_a_zombie_of_this_process_until_it_is_waited_for() {
        let pid = std::process::id();
        assert!(ids().any(|id| id == pid) && stat(pid).is_some_and(|stat| !stat.is_zombie && stat.pages > 0));
        let mut child = zombie();
        assert!(stat(child.id()).is_some_and(|stat| stat.is_zombie && stat.parent == pid));
        child.wait().expect("it has ended");
        assert_eq!(stat(child.id()), None);
    }

    #[test]
    fn liveness_is_running_until_the_end_and_unknown_on_other_machines() {
        let current = ProcessId::current().expect("a /proc file system");
        assert_eq!(current.to_string().parse::<ProcessId>(), Ok(current.clone()));
        assert_eq!(current.liveness(), Liveness::Running);
        assert_eq!(ProcessId { started: current.started + 1, ..current.clone() }.liveness(), Liveness::Ended);
        assert_eq!(ProcessId { boot: "another".to_owned(), ..current }.liveness(), Liveness::Unknown);
    }

    #[test]
    fn a_zombie_has_ended() {
        let mut child = zombie();
        assert_eq!(super::start_of(child.id()), None);
        child.wait().expect("it has ended");
    }
}
