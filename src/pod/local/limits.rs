//! How much of this machine a container of a task may use: control groups where this user may make some, else what a
//! process may allocate.
//!
//! Control groups are of the first kind (a tree for memory, another one for CPU) or of the second (one tree). Ours are
//! called after the task, so that they are found again after a `kill -9`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit};

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// The period in which a share of the CPU counts.
const PERIOD_MICROSECONDS: u64 = 100_000;
/// A group that is not empty yet cannot be removed: its last process may just be ending.
const REMOVAL: Duration = Duration::from_secs(2);

/// What one container may use; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a processor.
    pub cpu_millicores: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

/// The control groups of one container.
#[derive(Debug, Default)]
pub struct Group {
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
}

impl Group {
    /// Makes the groups that are needed and possible.
    pub fn make(task: &str, container: &str, limits: Limits) -> Self {
        let name = format!("{}{container}", prefix(task));
        let make = |controller: &str, files: &[(&str, String)]| -> Option<PathBuf> {
            let path = parent(controller)?.join(&name);
            std::fs::create_dir(&path).ok()?;
            let set = files.iter().all(|(file, value)| std::fs::write(path.join(file), value).is_ok());
            if !set {
                std::fs::remove_dir(&path).ok();
            }
            set.then_some(path)
        };
        let quota = limits.cpu_millicores * PERIOD_MICROSECONDS / 1000;
        let memory = limits.memory_bytes.to_string();
        if is_unified() {
            let mut files = Vec::new();
            if limits.memory_bytes > 0 {
                files.push(("memory.max", memory));
            }
            if limits.cpu_millicores > 0 {
                files.push(("cpu.max", format!("{quota} {PERIOD_MICROSECONDS}")));
            }
            let path = if files.is_empty() { None } else { make("", &files) };
            return Self { memory: path, cpu: None };
        }
        Self {
            memory: (limits.memory_bytes > 0).then(|| make("memory", &[("memory.limit_in_bytes", memory)])).flatten(),
            cpu: (limits.cpu_millicores > 0)
                .then(|| {
                    let files = [
                        ("cpu.cfs_period_us", PERIOD_MICROSECONDS.to_string()),
                        ("cpu.cfs_quota_us", quota.to_string()),
                    ];
                    make("cpu", &files)
                })
                .flatten(),
        }
    }

    /// Limits a process and what it starts from now on.
    pub fn add(&self, pid: u32, limits: Limits) {
        for group in [&self.memory, &self.cpu].into_iter().flatten() {
            if let Err(error) = std::fs::write(group.join("cgroup.procs"), pid.to_string()) {
                tracing::warn!(%error, group = %group.display(), "a limit does not hold");
            }
        }
        if self.memory.is_none()
            && limits.memory_bytes > 0
            && let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
        {
            // What a process may allocate, and not what it reserves: runtimes reserve much more than they ever use.
            let limit = Some(limits.memory_bytes);
            let limit = Rlimit { current: limit, maximum: limit };
            rustix::process::prlimit(Some(pid), Resource::Data, limit).ok();
        }
    }

    /// Whether the kernel has killed something for using too much memory.
    pub fn has_killed(&self) -> bool {
        let Some(group) = &self.memory else { return false };
        let file = if is_unified() { "memory.events" } else { "memory.oom_control" };
        let text = std::fs::read_to_string(group.join(file)).unwrap_or_default();
        text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
    }
}

/// Removes the groups of a task, whose processes have ended.
pub fn remove(task: &str) {
    let controllers: &[&str] = if is_unified() { &[""] } else { &["memory", "cpu"] };
    let deadline = Instant::now() + REMOVAL;
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

fn is_unified() -> bool {
    Path::new(MOUNT).join("cgroup.controllers").exists()
}

/// The group below which ours are made: the one that this process is in, where the mount shows it, or the topmost.
fn parent(controller: &str) -> Option<PathBuf> {
    let root = Path::new(MOUNT).join(controller);
    if is_unified() {
        // A group with processes in it hands no controllers on to groups below it; the topmost one may.
        let controllers = std::fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
        let hands_on = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
        return (hands_on("memory") && hands_on("cpu")).then_some(root);
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
    use super::{Group, Limits, remove};
    use std::process::Command;

    #[test]
    fn a_limit_of_memory_ends_who_uses_more() {
        let task = format!("test-{}", std::process::id());
        let limits = Limits { cpu_millicores: 0, memory_bytes: 32 << 20 };
        let group = Group::make(&task, "source", limits);
        // It waits for its limits as the wrapper waits for its pipes.
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
        // Without control groups it was refused the memory and ended by itself.
        assert_eq!(group.has_killed(), group.memory.is_some());
        remove(&task);
        assert!(group.memory.is_none_or(|path| !path.exists()));
    }
}
