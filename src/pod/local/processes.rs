//! Finding and killing the processes of a task, however they have hidden.
//!
//! While its supervisor lives all of them are its descendants: it adopts what loses its parent. Afterwards they are known
//! by a mark that each of them inherits.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::process;

/// The variable that marks the processes of a task: its value is the task's folder. Not even a connector under
/// development gets another one of ours.
pub const MARK: &str = "SYNCCTL_TASK";
/// A process that is stuck in the kernel cannot be waited for; that is rare, and the next sweep tries again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// Sends a signal; it is no error that the process is gone.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = raw(pid) {
        rustix::process::kill_process(pid, signal).ok();
    }
}

/// Kills what is left of a process group.
pub fn kill_group(leader: u32) {
    if let Some(leader) = raw(leader) {
        rustix::process::kill_process_group(leader, Signal::KILL).ok();
    }
}

/// Kills everything below a process of ours but those, and what is below those.
pub fn kill_descendants(of: u32, but: &[u32]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = descendants(of, but);
        if left.is_empty() || Instant::now() >= deadline {
            return;
        }
        for pid in left {
            signal(pid, Signal::KILL);
        }
        // What we have adopted is gone for good only once somebody has asked how it ended.
        while but.is_empty()
            && rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
                .is_ok_and(|ended| ended.is_some())
        {}
        std::thread::sleep(LOOK);
    }
}

/// Kills every process that carries the mark of this folder. Says whether none is left.
pub fn kill_marked(folder: &Path) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = marked(folder);
        if left.is_empty() {
            return true;
        }
        if Instant::now() >= deadline {
            tracing::warn!(?left, folder = %folder.display(), "processes of a task do not end");
            return false;
        }
        for pid in left {
            signal(pid, Signal::KILL);
        }
        std::thread::sleep(LOOK);
    }
}

/// What one process has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    /// CPU time in nanoseconds, with that of its children which have ended.
    pub nanoseconds: u64,
    /// Resident memory in pages.
    pub pages: u64,
}

/// What a process and everything below it uses.
pub fn usage(of: u32) -> Use {
    let mut all = descendants(of, &[]);
    all.push(of);
    let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    all.into_iter().fold(Use::default(), |sum, pid| {
        let Some(stat) = process::stat(pid) else { return sum };
        // A short process has used no whole tick yet; this is exact, but of its first thread alone.
        let exact = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
        let exact = exact.split(' ').next().and_then(|time| time.parse().ok()).unwrap_or_default();
        let nanoseconds = (stat.ticks * tick).max(exact) + stat.ended_ticks * tick;
        Use { nanoseconds: sum.nanoseconds + nanoseconds, pages: sum.pages + stat.pages }
    })
}

fn raw(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// All processes whose ancestor this one is and none of those is. Zombies are no processes any more.
fn descendants(of: u32, but: &[u32]) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for pid in process::ids() {
        if let Some(stat) = process::stat(pid).filter(|stat| !stat.is_zombie) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![of];
    while let Some(pid) = next.pop() {
        for child in children.get(&pid).into_iter().flatten().filter(|child| !but.contains(child)) {
            found.push(*child);
            next.push(*child);
        }
    }
    found
}

fn marked(folder: &Path) -> Vec<u32> {
    let folder = folder.as_os_str().as_encoded_bytes();
    let mark = [MARK.as_bytes(), b"=", folder].concat();
    let me = std::process::id();
    // Ours do not let others look into their environment: they say it in an argument.
    let is_marked = |pid: &u32| {
        let has = |file: &str, word: &[u8]| {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            text.split(|byte| *byte == 0).any(|part| part == word)
        };
        has("environ", &mark) || has("cmdline", &mark)
    };
    process::ids()
        .filter(|pid| *pid != me && process::stat(*pid).is_some_and(|stat| !stat.is_zombie))
        .filter(is_marked)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{MARK, descendants, kill_marked, marked, usage};
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn a_marked_process_is_found_and_killed_and_no_other() {
        let folder = Path::new("/nonexistent/task-one");
        let start = |folder: &str| {
            Command::new("sh")
                .args(["-c", "sleep 60; true"])
                .env(MARK, folder)
                .stdout(Stdio::null())
                .spawn()
                .expect("sh")
        };
        let (mut mine, mut other) = (start("/nonexistent/task-one"), start("/nonexistent/task-one-more"));
        let deadline = Instant::now() + Duration::from_secs(5);
        while marked(folder).len() < 2 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(kill_marked(folder));
        assert!(mine.wait().expect("it was killed").code().is_none());
        assert_eq!(other.try_wait().expect("a child"), None);
        other.kill().expect("a child");
        other.wait().expect("it was killed");
    }

    #[test]
    fn descendants_are_found_over_generations_and_their_use_is_summed() {
        let mut child = Command::new("sh").args(["-c", "sh -c 'sleep 60; true'; true"]).spawn().expect("sh");
        let deadline = Instant::now() + Duration::from_secs(5);
        while descendants(child.id(), &[]).len() < 2 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let below = descendants(child.id(), &[]);
        assert_eq!(below.len(), 2, "{below:?}");
        assert!(usage(child.id()).pages > usage(below[1]).pages);
        assert!(descendants(child.id(), &below[..1]).is_empty());
        for pid in below {
            super::signal(pid, rustix::process::Signal::KILL);
        }
        child.wait().expect("it has ended");
    }
}
