//! An installation whose process is killed.

use std::process::{Command, Stdio};

use super::super::{ConnectorRequest, Runtime, resolve};
use super::support::{MARK, Machine, output, until};
use crate::failure::Class;
use crate::task::Image;

/// The directory of the machine, for the process that is killed.
const MACHINE: &str = "SYNCCTL_TEST_VICTIM";

/// Does nothing, unless as a process of the test below.
#[test]
fn victim() {
    let Ok(directory) = std::env::var(MACHINE) else { return };
    let read = |name: &str| std::env::var(name).unwrap_or_default();
    let environment =
        ["PATH", "HOME", "PIP_NO_INDEX", "PIP_FIND_LINKS", MARK].map(|name| (name.to_owned(), read(name)));
    let image = Image::new("t/source-x", "1").expect("an image");
    let directory = std::path::PathBuf::from(directory);
    let request = ConnectorRequest {
        image: &image,
        exec: None,
        runtime: Runtime::Python,
        cache: &directory.join("cache"),
        environment: &environment,
        working_directory: &directory,
        isolator: None,
    };
    resolve(&request, &mut |_| (), &|| false).expect("a connector");
}

#[test]
fn a_killed_installation_leaves_no_process_and_no_environment_that_counts_as_complete() {
    // The installation hangs in the middle, with a child process of its own; the second one does not.
    let hangs = r#""-I -m venv "*) mkdir -p "$4/bin"; : >"$4/half"; sleep 1000 & sleep 1000; exit ;;"#;
    let machine = Machine::new().python_that(hangs).good("t-source-x");
    let (_, module) = module_path!().split_once("::").expect("a module of the crate");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", &format!("{module}::victim")]);
    command.env_clear().envs(machine.environment.clone()).env(MACHINE, machine.path(""));
    let mut victim = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("this program");
    until("the installation has begun", || {
        machine.cached().iter().any(|name| machine.path("cache/connectors").join(name).join("half").exists())
    });
    assert!(machine.cached().contains(&"t-source-x@1.lock".to_owned()));

    // Others wait while it lives.
    let waiting = machine.resolve_with("t/source-x", Runtime::Python, &mut |_| (), &|| true);
    assert_eq!(waiting.expect_err("it is locked").class, Class::Cancelled);
    assert_eq!(machine.cached().len(), 2);

    victim.kill().expect("it runs");
    victim.wait().expect("it was killed");
    until("its child processes are gone", || machine.processes().is_empty());
    let machine = machine.python();
    let resolved = machine.resolve("t/source-x").expect("a connector");
    assert_eq!(output(&resolved, &["spec"]), "source-x spec\n");
    assert_eq!(machine.cached().len(), 1);

    // Any command removes what is left of other packages.
    let left = machine.path("cache/connectors/t-gone@1-cp311");
    std::fs::create_dir_all(left.join("lib")).expect("a directory");
    std::fs::write(machine.path("cache/connectors/t-gone@1.lock"), "1\n").expect("a file");
    machine.resolve("t/source-x").expect("a connector");
    assert_eq!(machine.cached().len(), 1);
}
