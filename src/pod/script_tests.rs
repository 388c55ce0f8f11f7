//! The source container's script, run on this machine in every shell that it has to work in.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::SOURCE_SCRIPT;
use crate::contract::{EXIT_CODE_FILE, METRICS_FILE, READY_FILE};

/// Where the script looks for the container's control group.
const GROUPS: &str = "/sys/fs/cgroup";

/// Runs the source container's script with the pipes replaced by files, and the control group by the folder `groups`.
fn source(shell: &[&str], entrypoint: Option<&str>, folder: &Path) -> Command {
    std::fs::write(folder.join("ready"), "").expect("a file");
    assert!(SOURCE_SCRIPT.contains(GROUPS));
    let script = SOURCE_SCRIPT.replace(GROUPS, &folder.join("groups").display().to_string());
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).arg("-c").arg(script).arg("sh").arg(folder);
    command.args(["check", "--config", "/a b"]).env_remove("AIRBYTE_ENTRYPOINT").stdin(Stdio::null());
    // TERM goes to the whole process group: it must not be the test's own.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    if let Some(entrypoint) = entrypoint {
        command.env("AIRBYTE_ENTRYPOINT", entrypoint);
    }
    command
}

/// The control group of a container: files, and what is in them.
type Group<'a> = &'a [(&'a str, &'a str)];

/// Without the most memory that there ever was, which old kernels do not tell.
const V1: Group = &[("cpuacct/cpuacct.usage", "2500000000\n"), ("memory/memory.usage_in_bytes", "4096\n")];
const V1_JOINED: Group = &[("cpu,cpuacct/cpuacct.usage", "2500000000\n"), ("memory/memory.usage_in_bytes", "4096\n")];
const V2: Group = &[("cpu.stat", "usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n"), ("memory.current", "4096\n")];
const V1_PEAK: Group = &[V1[0], V1[1], ("memory/memory.max_usage_in_bytes", "8192\n")];
const V2_PEAK: Group = &[V2[0], V2[1], ("memory.peak", "8192\n")];
const SAMPLE: &str = "2500000000 4096\n";
const PEAK: &str = "2500000000 8192\n";

fn make(group: Group, folder: &Path) {
    for (file, content) in group {
        let path = folder.join("groups").join(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, content).expect("a file");
    }
}

/// Commands that run in a process group; the dead that nobody has buried yet do not count.
fn running(group: u32) -> Vec<String> {
    let mut commands = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc") {
        let path = entry.expect("an entry").path();
        let Ok(stat) = std::fs::read_to_string(path.join("stat")) else { continue };
        let fields: Vec<&str> = stat.rsplit_once(") ").map_or(stat.as_str(), |(_, fields)| fields).split(' ').collect();
        if fields[0] != "Z" && fields.get(2) == Some(&group.to_string().as_str()) {
            let command = std::fs::read_to_string(path.join("cmdline")).unwrap_or_default();
            commands.push(command.replace('\0', " ").trim().to_owned());
        }
    }
    commands
}

/// Who was told to end needs a moment; a watcher that was not yet there when it was told, two seconds.
#[track_caller]
fn assert_nobody_runs(group: u32, label: &dyn std::fmt::Debug) {
    let begin = Instant::now();
    while !running(group).is_empty() && begin.elapsed() < Duration::from_secs(4) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(running(group), [""; 0], "{label:?}: left behind");
}

fn shells() -> Vec<Vec<&'static str>> {
    let all = [vec!["dash"], vec!["bash"], vec!["busybox", "sh"]];
    let there = |shell: &Vec<&str>| Command::new(shell[0]).arg("-c").arg("true").output().is_ok();
    let found: Vec<_> = all.into_iter().filter(there).collect();
    assert!(!found.is_empty(), "no shell to test with");
    found
}

#[test]
fn the_script_passes_on_arguments_output_and_the_exit_code() {
    for shell in shells() {
        for (label, entrypoint, code, stdout) in [
            ("several words", Some("printf '%s|' one"), 0, "one|check|--config|/a b|"),
            ("a failure", Some("sh -c 'exit 7'"), 7, ""),
            ("a variable before it", Some("X=1 sh -c 'echo $X'"), 0, "1\n"),
            ("none", None, 127, ""),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let mut child = source(&shell, entrypoint, folder.path()).spawn().expect("a shell");
            let status = child.wait().expect("it ends");
            assert_eq!(status.code(), Some(code), "{shell:?}: {label}");
            assert_nobody_runs(child.id(), &(&shell, label));
            let file = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("a file");
            assert_eq!(file("stdout"), stdout, "{shell:?}: {label}");
            assert_eq!(file("exit_code").trim(), code.to_string(), "{shell:?}: {label}");
            let said = file("stderr").contains("AIRBYTE_ENTRYPOINT is not set");
            assert_eq!(said, entrypoint.is_none(), "{shell:?}: {label}");
        }
    }
}

#[test]
fn term_reaches_the_connector_which_may_take_its_time() {
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
        let begin = Instant::now();
        while stdout().is_empty() && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a process");
        let status = child.wait().expect("it ends");
        // Its own code, 3, would be mistaken for an end of its own.
        assert_eq!((status.code(), stdout().as_str()), (Some(143), "hello\nbye\n"), "{shell:?}");
        assert!(begin.elapsed() < Duration::from_secs(8), "{shell:?}");
        assert_nobody_runs(child.id(), &shell);
    }
}

#[test]
fn what_the_container_uses_is_noted_at_the_end_under_either_kind_of_control_groups_and_else_nothing_is_said() {
    for shell in shells() {
        for (label, group, sample) in [
            ("version 1", V1, Some(SAMPLE)),
            ("version 1, joined controllers", V1_JOINED, Some(SAMPLE)),
            ("version 2", V2, Some(SAMPLE)),
            ("version 1 with a peak", V1_PEAK, Some(PEAK)),
            ("version 2 with a peak", V2_PEAK, Some(PEAK)),
            ("memory alone", &V1[1..], None),
            ("CPU alone", &V1[..1], None),
            ("no control group to see", &[], None),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            make(group, folder.path());
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
fn what_the_container_uses_is_noted_early_and_given_up_when_it_cannot_be_written() {
    let cases: Vec<_> = shells().into_iter().flat_map(|shell| [(shell.clone(), true), (shell, false)]).collect();
    let mut running_cases = Vec::new();
    for (shell, writable) in &cases {
        let folder = tempfile::tempdir().expect("a folder");
        make(V2_PEAK, folder.path());
        for name in ["metrics.new", "metrics.last"].into_iter().filter(|_| !writable) {
            std::fs::create_dir(folder.path().join(name)).expect("a folder in the way");
        }
        let child = source(shell, Some("sleep 4; :"), folder.path()).spawn().expect("a shell");
        running_cases.push((shell, *writable, folder, child));
    }
    // All at a time: the first look is two seconds after the start, the next would be ten later.
    std::thread::sleep(Duration::from_secs(3));
    let metrics = |folder: &tempfile::TempDir| std::fs::read_to_string(folder.path().join("metrics")).ok();
    for (shell, writable, folder, child) in &running_cases {
        let label = format!("{shell:?}, writable: {writable}");
        assert_eq!(metrics(folder).as_deref(), writable.then_some(SAMPLE), "{label}");
        let watching = running(child.id()).iter().filter(|command| command.ends_with("sleep 10")).count();
        assert_eq!(watching, usize::from(*writable), "{label}");
    }
    for (shell, writable, folder, child) in &mut running_cases {
        let label = format!("{shell:?}, writable: {writable}");
        assert_eq!(child.wait().expect("it ends").code(), Some(0), "{label}");
        assert_eq!(metrics(folder).as_deref(), writable.then_some(PEAK), "{label}: at the end");
        let stderr = std::fs::read_to_string(folder.path().join("stderr")).expect("a file");
        assert_eq!(stderr, "", "{label}");
        assert_nobody_runs(child.id(), &label);
    }
}

#[test]
fn the_kubelet_leaves_the_script_as_it_is() {
    // In a command it makes `$` of `$$`, and a variable's value of `$(NAME)`. Arithmetic names no variable.
    let script = SOURCE_SCRIPT.replace("$((", "");
    assert!(!script.contains("$$") && !script.contains("$("));
}

#[test]
fn the_files_of_the_script_are_those_of_the_contract() {
    for file in [READY_FILE, EXIT_CODE_FILE, METRICS_FILE] {
        assert!(SOURCE_SCRIPT.contains(&format!("$pipes/{file}")), "{file}");
    }
}
