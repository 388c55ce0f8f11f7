//! What becomes of an installation whose process is killed.

use std::process::{Command, Stdio};

use super::super::Runtime;
use super::support::{MARK, Machine, output, until};

/// Where the process that is to be killed finds its machine.
const MACHINE: &str = "SYNCCTL_TEST_VICTIM";

/// Only does something as a process of the test below.
#[test]
fn a_process_that_is_killed_while_it_installs() {
    let Ok(folder) = std::env::var(MACHINE) else { return };
    let read = |name: &str| std::env::var(name).unwrap_or_default();
    let environment =
        ["PATH", "HOME", "PIP_NO_INDEX", "PIP_FIND_LINKS", MARK].map(|name| (name.to_owned(), read(name)));
    let image = crate::task::Image::new("t/source-x", "1").expect("an image");
    let folder = std::path::PathBuf::from(folder);
    let wanted = super::super::ConnectorRequest {
        image: &image,
        exec: None,
        runtime: Runtime::Python,
        cache: &folder.join("cache"),
        environment: &environment,
        working_directory: &folder,
    };
    super::super::resolve(&wanted, &mut |_| (), &|| false).expect("a connector");
}

#[test]
fn a_killed_installation_leaves_no_process_and_nothing_that_the_next_one_takes_for_good() {
    // pip hangs: first in the middle of its work, with a child of its own, then never.
    let hangs = r#""-I -m venv "*) mkdir -p "$4/bin"; : >"$4/half"; sleep 1000 & sleep 1000; exit ;;"#;
    let machine = Machine::new().python_that(hangs).good("t-source-x");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "pod::local::connector::tests::killing::a_process_that_is_killed_while_it_installs"]);
    command.env_clear().envs(machine.environment.clone()).env(MACHINE, machine.path(""));
    let mut victim = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("this program");
    until("it installs", || {
        machine.shelf().iter().any(|name| machine.path("cache/connectors").join(name).join("half").exists())
    });
    assert!(machine.shelf().contains(&"t-source-x@1.lock".to_owned()));

    // Another one waits as long as it lives.
    let waits = || machine.find_with("t/source-x", Runtime::Python, &mut |_| (), &|| true);
    assert_eq!(waits().expect_err("it is locked").class, crate::failure::Class::Cancelled);
    assert_eq!(machine.shelf().len(), 2);

    victim.kill().expect("it runs");
    victim.wait().expect("it was killed");
    until("its children are gone", || machine.processes().is_empty());
    let machine = machine.python();
    let found = machine.find("t/source-x").expect("a connector");
    assert_eq!(output(&found, &["spec"]), "source-x spec\n");
    assert_eq!(machine.shelf().len(), 1);

    // What is left of one that nobody asks for again goes with the next search for anything.
    let left = machine.path("cache/connectors/t-gone@1-cp311");
    std::fs::create_dir_all(left.join("lib")).expect("a folder");
    std::fs::write(machine.path("cache/connectors/t-gone@1.lock"), "1\n").expect("a file");
    machine.find("t/source-x").expect("a connector");
    assert_eq!(machine.shelf().len(), 1);
}
