//! Resource limits of the processes of a task: control groups where this user may create them, else a limit on the memory
//! that a process may allocate.
//!
//! Version 1 has one tree for memory and another one for CPU, version 2 a single tree. Control groups are named after the
//! task, so that they are found again after a `kill -9`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit};

use super::process::to_pid;

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// The period of a CPU quota.
const PERIOD_MICROSECONDS: u64 = 100_000;
/// How long to retry the removal of a group whose last process is just ending.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(2);

/// The limits of one container; 0 means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a processor.
    pub cpu_millicores: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

/// The control groups of one container, as far as they are needed and possible. In version 2 `memory` limits the CPU too.
#[derive(Debug, Default)]
pub struct ControlGroup {
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
}

impl ControlGroup {
    /// Creates the control groups.
    pub fn create(task: &str, container: &str, limits: Limits) -> Self {
        let name = format!("{}{container}", prefix(task));
        let create = |controller: &str, files: &[(&str, String)]| -> Option<PathBuf> {
            if files.is_empty() {
                return None;
            }
            let path = parent(controller)?.join(&name);
            std::fs::create_dir(&path).ok()?;
            let is_set = files.iter().all(|(file, value)| std::fs::write(path.join(file), value).is_ok());
            if !is_set {
                std::fs::remove_dir(&path).ok();
            }
            is_set.then_some(path)
        };
        let quota = limits.cpu_millicores * PERIOD_MICROSECONDS / 1000;
        let (mut memory, mut cpu) = (Vec::new(), Vec::new());
        let v2 = is_v2();
        if limits.memory_bytes > 0 {
            let file = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
            memory.push((file, limits.memory_bytes.to_string()));
        }
        if limits.cpu_millicores > 0 && v2 {
            memory.push(("cpu.max", format!("{quota} {PERIOD_MICROSECONDS}")));
        } else if limits.cpu_millicores > 0 {
            cpu.push(("cpu.cfs_period_us", PERIOD_MICROSECONDS.to_string()));
            cpu.push(("cpu.cfs_quota_us", quota.to_string()));
        }
        Self { memory: create(if v2 { "" } else { "memory" }, &memory), cpu: create("cpu", &cpu) }
    }

    /// Limits a process and its future children.
    pub fn add(&self, pid: u32, limits: Limits) {
        for group in [&self.memory, &self.cpu].into_iter().flatten() {
            if let Err(error) = std::fs::write(group.join("cgroup.procs"), pid.to_string()) {
                tracing::warn!(%error, group = %group.display(), "cannot apply a resource limit");
            }
        }
        if self.memory.is_none()
            && limits.memory_bytes > 0
            && let Some(pid) = to_pid(pid)
        {
            // Of allocated memory, not of address space: runtimes reserve much more than they ever use.
            let limit = Some(limits.memory_bytes);
            let limit = Rlimit { current: limit, maximum: limit };
            rustix::process::prlimit(Some(pid), Resource::Data, limit).ok();
        }
    }

    /// Whether the kernel has killed a process that exceeded the memory limit.
    pub fn is_oom_killed(&self) -> bool {
        let Some(group) = &self.memory else { return false };
        let file = if is_v2() { "memory.events" } else { "memory.oom_control" };
        let text = std::fs::read_to_string(group.join(file)).unwrap_or_default();
        text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
    }
}

/// Removes the control groups of a task whose processes have ended.
pub fn remove(task: &str) {
    let controllers: &[&str] = if is_v2() { &[""] } else { &["memory", "cpu"] };
    let deadline = Instant::now() + REMOVAL_TIMEOUT;
    for controller in controllers {
        let entries = parent(controller).and_then(|parent| std::fs::read_dir(parent).ok()).into_iter().flatten();
        for entry in entries.flatten() {
            if !entry.file_name().to_string_lossy().starts_with(&prefix(task)) {
                continue;
            }
            while std::fs::remove_dir(entry.path()).is_err() && entry.path().exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn prefix(task: &str) -> String {
    format!("syncctl.{task}.")
}

fn is_v2() -> bool {
    Path::new(MOUNT).join("cgroup.controllers").exists()
}

/// The control group in which ours are created: that of this process if the mount shows it, else the root.
fn parent(controller: &str) -> Option<PathBuf> {
    let root = Path::new(MOUNT).join(controller);
    if is_v2() {
        // A control group with processes in it enables no controllers for its children; only the root may.
        let controllers = std::fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
        let is_enabled = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
        return (is_enabled("memory") && is_enabled("cpu")).then_some(root);
    }
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })?;
    let inside = root.join(own.trim_start_matches('/'));
    Some(if inside.is_dir() { inside } else { root })
}

#[cfg(test)]
mod tests {
    use super::{ControlGroup, Limits, remove};
    use std::process::Command;

    #[test]
    fn a_process_that_exceeds_its_memory_limit_ends() {
        let task = format!("test-{}", std::process::id());
        let limits = Limits { cpu_millicores: 0, memory_bytes: 32 << 20 };
        let group = ControlGroup::create(&task, "source", limits);
        // It waits until its limits are set.
        let mut child = Command::new("sh")
            .args(["-c", "read line; x=0123456789; while :; do x=$x$x; done"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("sh");
        group.add(child.id(), limits);
        drop(child.stdin.take());
        let ended = child.wait().expect("it ends");
        assert!(!ended.success());
        // Without control groups the allocation fails instead.
        assert_eq!(group.is_oom_killed(), group.memory.is_some());
        remove(&task);
        assert!(group.memory.is_none_or(|path| !path.exists()));
    }
}
