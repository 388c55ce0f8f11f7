//! The script of the source container, run on this machine in every supported shell.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::SOURCE_SCRIPT;
use crate::contract::{EXIT_CODE_FILE, METRICS_FILE, READY_FILE};
use crate::process;

/// A deadline that only means "hangs".
const DEADLINE: Duration = Duration::from_mins(5);

/// Where the script reads the container's control group.
const GROUPS: &str = "/sys/fs/cgroup";

/// The script with files in place of the pipes, next to its reports, and the folder `groups` in place of the control group.
fn source(shell: &[&str], entrypoint: Option<&str>, folder: &Path) -> Command {
    source_with_reports(shell, entrypoint, folder, folder)
}

fn source_with_reports(shell: &[&str], entrypoint: Option<&str>, folder: &Path, reports: &Path) -> Command {
    std::fs::write(folder.join("ready"), "").expect("a file");
    assert!(SOURCE_SCRIPT.contains(GROUPS));
    let script = SOURCE_SCRIPT.replace(GROUPS, &folder.join("groups").display().to_string());
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).arg("-c").arg(script).arg("sh").args([folder, reports]);
    command.args(["check", "--config", "/a b"]).env_remove("AIRBYTE_ENTRYPOINT").stdin(Stdio::null());
    // The script sends TERM to its whole process group, which must not be the test's.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    if let Some(entrypoint) = entrypoint {
        command.env("AIRBYTE_ENTRYPOINT", entrypoint);
    }
    command
}

/// The control group of a container: files and their content.
type Group<'a> = &'a [(&'a str, &'a str)];

/// Old kernels have no peak.
const V1: Group = &[("cpuacct/cpuacct.usage", "2500000000\n"), ("memory/memory.usage_in_bytes", "4096\n")];
const V1_JOINED: Group = &[("cpu,cpuacct/cpuacct.usage", "2500000000\n"), ("memory/memory.usage_in_bytes", "4096\n")];
const V2: Group = &[("cpu.stat", "usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n"), ("memory.current", "4096\n")];
const V1_PEAK: Group = &[V1[0], V1[1], ("memory/memory.max_usage_in_bytes", "8192\n")];
const V2_PEAK: Group = &[V2[0], V2[1], ("memory.peak", "8192\n")];
const SAMPLE: &str = "2500000000 4096\n";
const PEAK: &str = "2500000000 8192\n";

fn create(group: Group, folder: &Path) {
    for (file, content) in group {
        let path = folder.join("groups").join(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, content).expect("a file");
    }
}

/// The command lines of the processes of a process group. Zombies do not count.
fn running(group: u32) -> Vec<String> {
    let processes = process::ids().filter(|id| process::stat(*id).is_some_and(|s| !s.is_zombie && s.group == group));
    let commands = processes.map(|id| std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default());
    commands.map(|command| command.replace('\0', " ").trim().to_owned()).collect()
}

#[track_caller]
fn wait_for(label: &dyn std::fmt::Debug, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{label:?} hangs");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
fn wait_until_all_ended(group: u32, label: &dyn std::fmt::Debug) {
    wait_for(&(label, "the end of all processes"), || running(group).is_empty());
}

fn shells() -> Vec<Vec<&'static str>> {
    let all = [vec!["dash"], vec!["bash"], vec!["busybox", "sh"]];
    let there = |shell: &Vec<&str>| Command::new(shell[0]).arg("-c").arg("true").output().is_ok();
    let found: Vec<_> = all.into_iter().filter(there).collect();
    assert!(!found.is_empty(), "no shell to test with");
    found
}

#[test]
fn the_script_forwards_arguments_output_and_exit_code() {
    for shell in shells() {
        for (label, entrypoint, code, stdout) in [
            ("several words", Some("printf '%s|' one"), 0, "one|check|--config|/a b|"),
            ("a failed command", Some("sh -c 'exit 7'"), 7, ""),
            ("a variable before it", Some("X=1 sh -c 'echo $X'"), 0, "1\n"),
            ("no entrypoint", None, 127, ""),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let mut child = source(&shell, entrypoint, folder.path()).spawn().expect("a shell");
            let status = child.wait().expect("it ends");
            assert_eq!(status.code(), Some(code), "{shell:?}: {label}");
            wait_until_all_ended(child.id(), &(&shell, label));
            let file = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("a file");
            assert_eq!(file("stdout"), stdout, "{shell:?}: {label}");
            assert_eq!(file("exit_code").trim(), code.to_string(), "{shell:?}: {label}");
            let is_reported = file("stderr").contains("AIRBYTE_ENTRYPOINT is not set");
            assert_eq!(is_reported, entrypoint.is_none(), "{shell:?}: {label}");
        }
    }
}

#[test]
fn whatever_the_connector_leaves_in_the_reports_is_replaced() {
    for shell in shells() {
        for name in ["exit_code", "exit_code.new", "metrics", "metrics.last"] {
            for attack in ["mkfifo $1", "ln -s $2 $1", "ln -s $2.none $1", "ln -s $(dirname $2) $1", "mkdir -p $1/a/b"]
            {
                let (folder, host) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
                create(V2_PEAK, folder.path());
                let (target, host) = (folder.path().join(name), host.path().join("file"));
                std::fs::write(&host, "host").expect("a file");
                let connector = format!("sh -c '{attack}' sh {} {}", target.display(), host.display());
                let status = source(&shell, Some(&connector), folder.path()).status().expect("a shell");
                assert_eq!(status.code(), Some(0), "{shell:?}: {name}: {attack}");
                let file = |name: &str| std::fs::read_to_string(folder.path().join(name)).ok();
                let reports = (file("exit_code"), file("metrics"));
                assert_eq!(reports, (Some("0\n".to_owned()), Some(PEAK.to_owned())), "{shell:?}: {name}: {attack}");
                assert_eq!(std::fs::read_to_string(&host).expect("a file"), "host", "{shell:?}: {name}: {attack}");
                assert!(!host.with_extension("none").exists() && !host.with_file_name("exit_code.new").exists());
            }
        }
    }
}

#[test]
fn term_reaches_the_connector_and_waits_for_its_end() {
    for shell in shells() {
        let folder = tempfile::tempdir().expect("a folder");
        let connector = "trap 'sleep 0.3; echo bye; exit 3' TERM; echo hello; while :; do sleep 0.05; done";
        let entrypoint = format!("sh -c \"{connector}\"");
        let mut child = source(&shell, Some(&entrypoint), folder.path()).spawn().expect("a shell");
        let stdout = || {
            let mut text = String::new();
            let file = std::fs::File::open(folder.path().join("stdout"));
            file.and_then(|mut file| file.read_to_string(&mut text)).map_or(String::new(), |_| text)
        };
        wait_for(&shell, || !stdout().is_empty());
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a process");
        let status = child.wait().expect("it ends");
        // The connector's own code, 3, would hide that it was terminated.
        assert_eq!((status.code(), stdout().as_str()), (Some(143), "hello\nbye\n"), "{shell:?}");
        wait_until_all_ended(child.id(), &shell);
    }
}

#[test]
fn the_last_usage_sample_is_written_if_the_control_group_is_readable() {
    for shell in shells() {
        for (label, group, sample) in [
            ("version 1", V1, Some(SAMPLE)),
            ("version 1, joined controllers", V1_JOINED, Some(SAMPLE)),
            ("version 2", V2, Some(SAMPLE)),
            ("version 1 with a peak", V1_PEAK, Some(PEAK)),
            ("version 2 with a peak", V2_PEAK, Some(PEAK)),
            ("memory alone", &V1[1..], None),
            ("CPU alone", &V1[..1], None),
            ("no control group", &[], None),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            create(group, folder.path());
            let status = source(&shell, Some("sh -c 'exit 7'"), folder.path()).status().expect("a shell");
            assert_eq!(status.code(), Some(7), "{shell:?}: {label}");
            let file = |name: &str| std::fs::read_to_string(folder.path().join(name)).ok();
            assert_eq!(file("metrics").as_deref(), sample, "{shell:?}: {label}");
            assert_eq!(
                (file("stderr").as_deref(), file("stdout").as_deref()),
                (Some(""), Some("")),
                "{shell:?}: {label}"
            );
        }
    }
}

#[test]
fn usage_is_sampled_early_and_no_longer_after_a_failed_write() {
    let cases: Vec<_> = shells().into_iter().flat_map(|shell| [(shell.clone(), true), (shell, false)]).collect();
    let mut running_cases = Vec::new();
    // All at the same time: the first sample comes two seconds after the start, the next one ten seconds later.
    for (shell, writable) in &cases {
        let folder = tempfile::tempdir().expect("a folder");
        create(V2_PEAK, folder.path());
        let reports = if *writable { folder.path() } else { Path::new("/nonexistent") };
        let connector = format!("while [ ! -e {}/stop ]; do sleep 0.1; done; :", folder.path().display());
        let command = source_with_reports(shell, Some(&connector), folder.path(), reports).spawn();
        let child = command.expect("a shell");
        running_cases.push((shell, *writable, folder, child));
    }
    let metrics = |folder: &tempfile::TempDir| std::fs::read_to_string(folder.path().join("metrics")).ok();
    let sleepers = |group: u32, seconds: u32| {
        let sleeper = format!("sleep {seconds}");
        running(group).iter().filter(|command| command.ends_with(&sleeper)).count()
    };
    for (shell, _, _, child) in &running_cases {
        wait_for(shell, || sleepers(child.id(), 2) == 1);
    }
    for (shell, writable, folder, child) in &running_cases {
        let label = format!("{shell:?}, writable: {writable}");
        if *writable {
            wait_for(&label, || metrics(folder).as_deref() == Some(SAMPLE) && sleepers(child.id(), 10) == 1);
        } else {
            wait_for(&label, || sleepers(child.id(), 2) == 0);
            std::thread::sleep(Duration::from_millis(200));
            assert_eq!((metrics(folder), sleepers(child.id(), 10)), (None, 0), "{label}");
        }
    }
    for (shell, writable, folder, child) in &mut running_cases {
        let label = format!("{shell:?}, writable: {writable}");
        std::fs::write(folder.path().join("stop"), "").expect("a file");
        assert_eq!(child.wait().expect("it ends").code(), Some(0), "{label}");
        assert_eq!(metrics(folder).as_deref(), writable.then_some(PEAK), "{label}: at the end");
        let stderr = std::fs::read_to_string(folder.path().join("stderr")).expect("a file");
        assert!(stderr.is_empty() == *writable && !stderr.contains("metrics"), "{label}: {stderr}");
        wait_until_all_ended(child.id(), &label);
    }
}

#[test]
fn the_kubelet_expands_nothing_in_the_script() {
    // In a command the kubelet replaces `$$` by `$` and `$(NAME)` by a variable. Arithmetic names no variable.
    let script = SOURCE_SCRIPT.replace("$((", "");
    assert!(!script.contains("$$") && !script.contains("$("));
}

#[test]
fn the_script_uses_the_file_names_of_the_contract() {
    assert!(SOURCE_SCRIPT.contains(&format!("\"$pipes/{READY_FILE}\"")));
    for report in [EXIT_CODE_FILE, METRICS_FILE] {
        assert!(SOURCE_SCRIPT.contains(&format!("report {report} ")), "{report}");
    }
}
