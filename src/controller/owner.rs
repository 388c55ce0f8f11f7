//! Which process follows a Pod, and whether it still lives.
//!
//! A one-off command that is killed cannot clean up after itself; the next one on the same machine can, if it knows
//! for certain that the first is dead. A process is named by what no other one ever shares with it.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::process;

/// A process of some machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// One run of one machine's kernel.
    boot: String,
    /// The namespace in which `pid` counts: another container has another one.
    pid_namespace: String,
    pid: u32,
    /// When it started, in clock ticks since boot: pids are used again.
    started: u64,
}

/// What can be said of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    Alive,
    /// It has ended.
    Dead,
    /// It runs, or ran, where we cannot look.
    Elsewhere,
}

impl Owner {
    /// This process; `None` on a machine without `/proc`.
    pub fn me() -> Option<Self> {
        let pid = std::process::id();
        Some(Self { boot: boot()?, pid_namespace: pid_namespace()?, pid, started: start_of(pid)? })
    }

    /// Whether it still lives.
    pub fn life(&self) -> Life {
        if boot().as_ref() != Some(&self.boot) || pid_namespace().as_ref() != Some(&self.pid_namespace) {
            return Life::Elsewhere;
        }
        if start_of(self.pid) == Some(self.started) {
            return Life::Alive;
        }
        // Not every process of others can be looked at (hidepid): then only the kernel's word that there is none counts.
        let hidden = !can_be_seen(self.pid) && is_there(self.pid);
        if hidden { Life::Elsewhere } else { Life::Dead }
    }
}

/// Who asked for a task of a one-off command: a process, so that its row can be closed when it was killed before it had
/// made a Pod.
pub fn started_by() -> Value {
    let mut by = json!({"type": "cli"});
    if let Some(me) = Owner::me() {
        by["process"] = json!(me.to_string());
    }
    by
}

fn is_there(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else { return false };
    rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

fn can_be_seen(pid: u32) -> bool {
    process::stat(pid).is_some()
}

fn boot() -> Option<String> {
    Some(std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

fn pid_namespace() -> Option<String> {
    std::fs::read_link("/proc/self/ns/pid").ok()?.into_os_string().into_string().ok()
}

/// When a process started; a zombie has ended.
fn start_of(pid: u32) -> Option<u64> {
    process::stat(pid).filter(|stat| !stat.is_zombie).map(|stat| stat.started)
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { boot, pid_namespace, pid, started } = self;
        write!(f, "{boot} {pid_namespace} {pid} {started}")
    }
}

impl FromStr for Owner {
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
    use super::{Life, Owner};

    #[test]
    fn a_process_is_alive_until_it_has_ended_and_unknown_elsewhere() {
        let me = Owner::me().expect("a /proc file system");
        assert_eq!(me.to_string().parse::<Owner>(), Ok(me.clone()));
        assert_eq!(me.life(), Life::Alive);
        assert_eq!(Owner { started: me.started + 1, ..me.clone() }.life(), Life::Dead);
        assert_eq!(Owner { boot: "another".to_owned(), ..me }.life(), Life::Elsewhere);
    }

    #[test]
    fn a_zombie_has_ended() {
        let mut child = std::process::Command::new("true").spawn().expect("a process");
        let pid = child.id();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while super::start_of(pid).is_some() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(super::start_of(pid), None);
        child.wait().expect("it has ended");
    }
}
