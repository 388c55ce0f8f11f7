//! The processes of a task: starting this program again, finding and killing everything a task has started, and measuring
//! what the connector uses.
//!
//! While the supervisor lives, all of them are its descendants: it adopts every orphan. Later they are found by a mark that
//! each of them inherits.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::contract::METRICS_FILE;
use crate::process;
use crate::retry::Backoff;
use crate::shared_folder::SharedFolder;

/// The variable that marks the processes of a task; its value is the task's directory. The only `SYNCCTL_` variable that a
/// connector of `--exec` gets.
pub const MARK: &str = "SYNCCTL_TASK";
/// How long to kill again and again. A process that is stuck in the kernel is left to the next cleanup.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
const KILL_POLL: Duration = Duration::from_millis(5);
/// Between two samples of the resource usage: early once, for short tasks, then as often as the sidecar reads.
const SAMPLE_DELAYS: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));

/// The variables of this process.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// An argument that marks a process of this program, whose environment other processes cannot read.
pub fn mark(task_directory: &Path) -> String {
    format!("{MARK}={}", task_directory.display())
}

/// Sends a signal; it is no error if the process is gone.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = to_pid(pid) {
        rustix::process::kill_process(pid, signal).ok();
    }
}

/// Kills a process group.
pub fn kill_group(leader: u32) {
    if let Some(leader) = to_pid(leader) {
        rustix::process::kill_process_group(leader, Signal::KILL).ok();
    }
}

/// Kills all descendants of a process except some of them with their own descendants.
pub fn kill_descendants(ancestor: u32, except: &[u32]) {
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        let remaining = descendants(ancestor, except);
        if remaining.is_empty() || Instant::now() >= deadline {
            return;
        }
        for pid in remaining {
            signal(pid, Signal::KILL);
        }
        // An adopted process is a zombie until it is waited for.
        while except.is_empty()
            && rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
                .is_ok_and(|ended| ended.is_some())
        {}
        std::thread::sleep(KILL_POLL);
    }
}

/// Kills every process with the mark of this task. Returns whether none is left.
pub fn kill_marked(task_directory: &Path) -> bool {
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        let remaining = marked(task_directory);
        if remaining.is_empty() {
            return true;
        }
        if Instant::now() >= deadline {
            tracing::warn!(?remaining, directory = %task_directory.display(), "cannot kill processes of a task");
            return false;
        }
        for pid in remaining {
            signal(pid, Signal::KILL);
        }
        std::thread::sleep(KILL_POLL);
    }
}

/// Waits until a child has ended, and leaves it as a zombie.
pub fn wait_for_exit(pid: u32) {
    let Some(pid) = to_pid(pid) else { return };
    while let Err(rustix::io::Errno::INTR) =
        rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
    {}
}

pub fn to_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// Without zombies.
fn descendants(ancestor: u32, except: &[u32]) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for pid in process::ids() {
        if let Some(stat) = process::stat(pid).filter(|stat| !stat.is_zombie) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut parents = vec![ancestor];
    while let Some(parent) = parents.pop() {
        for child in children.get(&parent).into_iter().flatten().filter(|child| !except.contains(child)) {
            found.push(*child);
            parents.push(*child);
        }
    }
    found
}

fn marked(task_directory: &Path) -> Vec<u32> {
    let mark = [MARK.as_bytes(), b"=", task_directory.as_os_str().as_encoded_bytes()].concat();
    let own_pid = std::process::id();
    // Processes of this program carry the mark as an argument, all others in their environment.
    let is_marked = |pid: &u32| {
        let has_mark = |file: &str| {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            text.split(|byte| *byte == 0).any(|part| part == mark)
        };
        has_mark("environ") || has_mark("cmdline")
    };
    process::ids()
        .filter(|pid| *pid != own_pid && process::stat(*pid).is_some_and(|stat| !stat.is_zombie))
        .filter(is_marked)
        .collect()
}

/// Writes the resource usage of a process and its descendants into the file that the script of a container would write:
/// without a control group of its own there is no other source. Clones share the peak memory.
#[derive(Clone)]
pub struct UsageSampler {
    pid: u32,
    /// `None`: it cannot be opened, and the task works without its usage.
    reports: Option<SharedFolder>,
    delays: Backoff,
    next: Instant,
    peak_bytes: Arc<AtomicU64>,
}

impl UsageSampler {
    /// For a process that has just started.
    pub fn new(pid: u32, reports: &Path) -> Self {
        let mut delays = SAMPLE_DELAYS;
        let next = Instant::now() + delays.next_delay();
        Self { pid, reports: SharedFolder::open(reports).ok(), delays, next, peak_bytes: Arc::default() }
    }

    /// Writes a sample if the last one is old enough.
    pub fn sample_if_due(&mut self) {
        if Instant::now() >= self.next {
            self.next = Instant::now() + self.delays.next_delay();
            let (nanoseconds, bytes) = self.measure();
            self.write(nanoseconds, bytes);
        }
    }

    /// Writes the peak memory, for a process that has ended but was not waited for yet.
    pub fn sample_last(&self) {
        let (nanoseconds, _) = self.measure();
        self.write(nanoseconds, self.peak_bytes.load(Ordering::Relaxed));
    }

    /// CPU time in nanoseconds, and resident memory in bytes.
    fn measure(&self) -> (u64, u64) {
        let (nanoseconds, pages) = usage(self.pid);
        let bytes = pages * rustix::param::page_size() as u64;
        self.peak_bytes.fetch_max(bytes, Ordering::Relaxed);
        (nanoseconds, bytes)
    }

    fn write(&self, nanoseconds: u64, bytes: u64) {
        if let Some(reports) = &self.reports {
            // Errors are ignored: a task works without metrics.
            reports.replace(METRICS_FILE, format!("{nanoseconds} {bytes}\n").as_bytes(), 0o644).ok();
        }
    }
}

/// CPU time in nanoseconds and resident pages of a process and its descendants.
fn usage(ancestor: u32) -> (u64, u64) {
    let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    let pids = std::iter::once(ancestor).chain(descendants(ancestor, &[]));
    pids.filter_map(|pid| Some((pid, process::stat(pid)?))).fold((0, 0), |(nanoseconds, pages), (pid, stat)| {
        // A short process has not used a whole tick yet. This value is exact, but only of the first thread.
        let exact = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
        let exact = exact.split(' ').next().and_then(|time| time.parse().ok()).unwrap_or_default();
        (nanoseconds + (stat.ticks * tick).max(exact) + stat.ended_ticks * tick, pages + stat.pages)
    })
}

#[cfg(test)]
mod tests {
    use super::{MARK, descendants, kill_marked, marked, usage};
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    /// The deadline only means "hangs".
    fn wait_for(mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_mins(5);
        while !condition() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn only_marked_processes_are_killed() {
        let directory = Path::new("/nonexistent/task-one");
        let start = |directory: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", "sleep 600; true"]).env(MARK, directory).stdout(Stdio::null()).spawn().expect("sh")
        };
        let (mut mine, mut other) = (start("/nonexistent/task-one"), start("/nonexistent/task-one-more"));
        wait_for(|| marked(directory).len() == 2);
        assert!(kill_marked(directory));
        assert!(mine.wait().expect("it was killed").code().is_none());
        assert_eq!(other.try_wait().expect("a child"), None);
        other.kill().expect("a child");
        other.wait().expect("it was killed");
    }

    #[test]
    fn descendants_are_found_over_generations_and_their_usage_is_added_up() {
        let mut child = Command::new("sh").args(["-c", "sh -c 'sleep 600; true'; true"]).spawn().expect("sh");
        wait_for(|| descendants(child.id(), &[]).len() == 2);
        let below = descendants(child.id(), &[]);
        assert_eq!(below.len(), 2, "{below:?}");
        assert!(usage(child.id()).1 > usage(below[1]).1);
        assert!(descendants(child.id(), &below[..1]).is_empty());
        for pid in below {
            super::signal(pid, rustix::process::Signal::KILL);
        }
        child.wait().expect("it has ended");
    }
}
