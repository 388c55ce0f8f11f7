//! The processes of Pods: on the cluster that the tests bring up they are processes of this machine.

use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};

/// The role of a process in a task's Pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The connector, where it is a shell script.
    Connector,
    /// The first process of the connector's container.
    Wrapper,
    Sidecar,
}

/// Sends SIGKILL; `false` where there is no such process.
pub fn kill(pid: i32) -> bool {
    let pid = Pid::from_raw(pid).expect("a process id");
    kill_process(pid, Signal::KILL).is_ok()
}

/// The sidecar of a task.
pub fn sidecar_of(task: &str) -> Option<i32> {
    let variable = format!("TASK_ID={task}\0");
    processes().find(|pid| file(*pid, "environ").contains(&variable))
}

/// Bytes of private memory of a process, without mapped files.
pub fn memory_of(pid: i32) -> u64 {
    let status = file(pid, "status");
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok());
    kilobytes.map_or(0, |kilobytes: u64| kilobytes * 1024)
}

/// A process of a task's Pod.
pub fn of_task(task: &str, role: Role) -> Option<i32> {
    let sidecar = sidecar_of(task)?;
    if role == Role::Sidecar {
        return Some(sidecar);
    }
    let pod = pod_of(sidecar)?;
    processes().filter(|pid| *pid != sidecar && pod_of(*pid).as_ref() == Some(&pod)).find(|pid| is(*pid, role))
}

fn is(pid: i32, role: Role) -> bool {
    let command = file(pid, "cmdline");
    match role {
        Role::Connector => command.starts_with("/bin/sh\0/connector.sh\0"),
        // The process that holds the Pod's network is the first of its container, too.
        Role::Wrapper => command.contains("\0-c\0") && is_first(pid),
        Role::Sidecar => false,
    }
}

/// Whether it is the first process in the innermost of its namespaces.
fn is_first(pid: i32) -> bool {
    let status = file(pid, "status");
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.is_some_and(|ids| ids.split_whitespace().last() == Some("1"))
}

/// The part of a control group's path that belongs to one Pod.
fn pod_of(pid: i32) -> Option<String> {
    let groups = file(pid, "cgroup");
    groups.split(['/', '\n']).find(|part| part.starts_with("pod")).map(str::to_owned)
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").expect("a Linux");
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A file of `/proc/PID`; empty where the process has ended.
fn file(pid: i32, name: &str) -> String {
    let path: PathBuf = ["/proc", &pid.to_string(), name].iter().collect();
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Processes with this text in their arguments or environment, such as those of a task folder on this machine.
pub fn with(text: &str) -> Vec<(i32, String)> {
    let me = std::process::id().cast_signed();
    let holds = |pid: &i32| *pid != me && ["cmdline", "environ"].iter().any(|name| file(*pid, name).contains(text));
    processes().filter(holds).map(|pid| (pid, file(pid, "cmdline").replace('\0', " "))).collect()
}

/// Kills the processes that [`with`] finds.
pub fn kill_all(text: &str) {
    for (pid, _) in with(text) {
        kill(pid);
    }
}
