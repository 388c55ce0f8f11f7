//! What is found, and what is told when nothing is.

use std::cell::Cell;
use std::process::Command;
use std::time::{Duration, Instant};

use super::super::{Connector, ConnectorRequest, EngineKind, Runtime, resolve};
use super::support::{Machine, output, python};
use super::wheel::Wheel;
use crate::failure::Class;
use crate::task::Image;

const PLAIN: Wheel<'_> = Wheel { name: "t-source-x", python: None, requires: &[], scripts: &["source-x"] };

#[test]
fn of_two_searches_at_once_one_installs_and_the_other_waits_for_it() {
    // With the machine's own Python all the way, where the other tests save time.
    let machine = Machine::new().good("t-source-x");
    std::os::unix::fs::symlink(python(), machine.path("bin/python3")).expect("a link");
    let search = || {
        let mut told = Vec::new();
        let found = machine.find_with("t/source-x", Runtime::Python, &mut |text| told.push(text.to_owned()), &|| false);
        (found.expect("a connector"), told)
    };
    let [one, other] = std::thread::scope(|scope| {
        [scope.spawn(search), scope.spawn(search)].map(|thread| thread.join().expect("a search"))
    });
    let (first, second) = if one.0.summary.contains("as installed") { (other, one) } else { (one, other) };
    assert!(first.0.summary.starts_with("connector: t-source-x==1 from PyPI, installed in "), "{}", first.0.summary);
    assert!(first.1.iter().any(|text| text.contains("[####################] 1/1 packages")), "{:?}", first.1);
    assert!(second.0.summary.contains(", as installed in "), "{}", second.0.summary);
    let waits = format!("waiting for the syncctl of process {}, which is installing t-source-x==1", std::process::id());
    assert_eq!(second.1.last(), Some(&waits));
    assert_eq!(first.0.connector, second.0.connector);
    assert_eq!(output(&first.0, &["read", "a  b"]), "source-x read a  b\n");

    let begin = Instant::now();
    assert_eq!(search(), (second.0, vec![]));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    let [only] = machine.shelf().try_into().expect("one folder and no lock");
    assert!(only.starts_with("t-source-x@1-cp3"), "{only}");
    assert!(!machine.path("cache/connectors").join(only).join("scratch").exists());
}

#[test]
fn an_environment_whose_python_is_gone_is_made_anew() {
    let machine = Machine::new().python().good("t-source-x");
    machine.find("t/source-x").expect("a connector");
    let folder = machine.path("cache/connectors").join(&machine.shelf()[0]);
    let link = folder.join("bin/python");
    std::fs::remove_file(&link).expect("a link");
    std::os::unix::fs::symlink("/nowhere/python3", &link).expect("a link");
    std::fs::write(folder.join("old"), "").expect("a file");

    let found = machine.find("t/source-x").expect("a connector");
    assert!(found.summary.contains(", installed in "), "{}", found.summary);
    assert_eq!(output(&found, &["spec"]), "source-x spec\n");
    assert!(!folder.join("old").exists());
}

#[test]
fn what_pip_refuses_is_told_in_one_sentence() {
    let other = Wheel { name: "t-other", ..PLAIN };
    let machine = Machine::new()
        .python()
        .wheel(PLAIN)
        .wheel(Wheel { name: "t-future", python: Some(">=3.99"), ..PLAIN })
        .wheel(Wheel { name: "t-modern", requires: &["t-future"], ..PLAIN })
        .wheel(Wheel { name: "t-lonely", requires: &["t-nowhere>=2"], ..PLAIN })
        .wheel(Wheel { name: "t-quarrel", requires: &["t-other==1", "t-other==2"], ..PLAIN })
        .wheel(other)
        .wheel(Wheel { name: "t-mute", scripts: &[], ..PLAIN })
        .wheel(Wheel { name: "t-many", scripts: &["one", "two"], ..PLAIN });
    let cases: [(&str, Class, &[&str]); 7] = [
        ("t/nothing", Class::ImageNotFound, &["PyPI has no package t-nothing"]),
        ("t/future", Class::StartError, &["t-future==1 needs Python >=3.99, and PATH has 3."]),
        ("t/modern", Class::StartError, &["t-modern==1 cannot be installed: its part t-future needs Python >=3.99"]),
        ("t/lonely", Class::StartError, &["t-lonely==1 cannot be installed, as it needs t-nowhere>=2"]),
        ("t/quarrel", Class::StartError, &["installing t-quarrel==1 failed"]),
        ("t/mute", Class::StartError, &["t-mute==1 from PyPI has no command that could be run"]),
        ("t/many", Class::StartError, &["t-many==1 from PyPI has no command many, but one, two"]),
    ];
    for (package, class, parts) in cases {
        machine.refuses(package, class, parts);
    }
    let image = Image::new("t/source-x", "2").expect("an image");
    let (cache, folder) = (machine.path("cache"), machine.path("home"));
    let environment = &machine.environment;
    let wanted = ConnectorRequest {
        image: &image,
        exec: None,
        runtime: Runtime::Python,
        cache: &cache,
        environment,
        working_directory: &folder,
    };
    let failure = resolve(&wanted, &mut |_| (), &|| false).expect_err("no version 2");
    assert_eq!(
        failure.to_string(),
        "IMAGE_NOT_FOUND: the connector t/source-x:2 was not found: PyPI has no version 2 of t-source-x, but 1"
    );
}

#[test]
fn an_index_that_does_not_answer_is_told_without_its_password() {
    let machine = Machine::new().python().set("PIP_NO_INDEX", "0").set("PIP_RETRIES", "0");
    let machine = machine.set("PIP_INDEX_URL", "https://user:open-sesame@127.0.0.1:1/simple");
    let failure = machine.refuses("t/source-x", Class::ImagePull, &["index does not answer", "Connection refused"]);
    assert!(!failure.text.contains("sesame"), "{failure}");
}

#[test]
fn another_python_is_tried_when_the_first_one_will_not_do() {
    // The first one claims to be another, and to be refused.
    let refused = "ERROR: Package 't-source-x' requires a different Python: 3.11.0 not in '!=3.11.0'";
    let first = format!(
        r#"case "$*" in
        "-I -S -c "*) echo 3.11.0; echo "$0" ;;
        "-I -m venv "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
        *) echo "{refused}"; exit 1 ;;
        esac"#
    );
    let second = r#""-I -S -c "*) echo 3.10.9; echo "$0"; exit ;;"#;
    let machine = Machine::new().program("python3.11", &first).python_that(second).good("t-source-x");
    let found = machine.find("t/source-x").expect("a connector");
    assert!(found.summary.ends_with("(Python 3.10.9)"), "{}", found.summary);
    assert_eq!(machine.shelf(), ["t-source-x@1-cp310"]);
}

#[test]
fn a_machine_without_python_is_told_what_to_install() {
    let machine = Machine::new();
    machine.refuses("t/source-x", Class::StartError, &["needs Python 3, which is not in PATH: install it with "]);
    // A version manager's name that leads nowhere is no Python either.
    let machine = machine.program("python3", "echo 'command not found' >&2; exit 127");
    machine.refuses("t/source-x", Class::StartError, &["needs Python 3, which is not in PATH: install it with "]);
}

#[test]
fn a_python_without_venv_is_told_what_to_install() {
    let debian = r#""-I -m venv "*) mkdir -p "$4/bin"; echo "The virtual environment was not created successfully because ensurepip is not
available.  On Debian/Ubuntu systems, you need to install the python3-venv
package using the following command."; exit 1 ;;"#;
    let machine = Machine::new().python_that(debian).good("t-source-x");
    machine.refuses("t/source-x", Class::StartError, &["has no venv module", "install it with "]);
}

#[test]
fn a_full_disk_is_told_with_its_folder_and_left_empty() {
    let machine = Machine::new().good("t-source-x");
    std::os::unix::fs::symlink(python(), machine.path("bin/python3")).expect("a link");
    let cache = machine.path("cache");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&cache).output();
    if !mounted.is_ok_and(|done| done.status.success()) {
        use std::io::Write;
        writeln!(std::io::stderr(), "the test of a full disk SKIPPED: this user cannot mount").ok();
        return;
    }
    let failure = machine.find("t/source-x");
    let left = machine.shelf();
    assert!(Command::new("umount").arg(&cache).status().expect("umount").success());
    let failure = failure.expect_err("1 MiB is not enough");
    assert_eq!(failure.class, Class::StartError);
    let text = format!("the disk is full: t-source-x==1 cannot be installed in {}/connectors", cache.display());
    assert_eq!(failure.text, text);
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let machine = Machine::new().python();
    std::fs::remove_dir(machine.path("cache")).expect("a folder");
    std::fs::write(machine.path("cache"), "").expect("a file");
    machine.refuses("t/source-x", Class::StartError, &["the cache folder ", "/cache/connectors cannot be used: "]);
}

#[test]
fn a_search_that_is_stopped_ends_at_once_and_leaves_nothing() {
    let hangs = r#""-I -m venv "*) mkdir -p "$4/bin"; : >"$4/half"; trap '' TERM; sleep 1000 & wait; exit ;;"#;
    let machine = Machine::new().python_that(hangs);
    let asked = Cell::new(None);
    let stop = || {
        let hangs =
            machine.shelf().iter().any(|name| machine.path("cache/connectors").join(name).join("half").exists());
        if hangs && asked.get().is_none() {
            asked.set(Some(Instant::now()));
        }
        hangs
    };
    let failure = machine.find_with("t/source-x", Runtime::Python, &mut |_| (), &stop).expect_err("it hangs");
    let took = asked.get().expect("it was stopped").elapsed();
    assert_eq!(failure.class, Class::Cancelled);
    assert!(took < Duration::from_secs(2), "{took:?}");
    machine.has_nothing_left();
}

#[test]
fn a_command_of_the_callers_is_taken_as_it_is_once_it_can_be_run() {
    let machine = Machine::new().program("tool", "").program("sub", "");
    std::fs::write(machine.path("home/plain.py"), "").expect("a file");
    let image = Image::new("t/source-x", "1").expect("an image");
    let (cache, folder) = (machine.path("cache"), machine.path("home"));
    let search = |command| {
        let exec = Some(command);
        let environment = &machine.environment;
        let wanted = ConnectorRequest {
            image: &image,
            exec,
            runtime: Runtime::Docker,
            cache: &cache,
            environment,
            working_directory: &folder,
        };
        resolve(&wanted, &mut |_| (), &|| false)
    };
    for command in ["tool --flag 'a b'", "../bin/tool", "A=1 nothing", "cd /x && nothing", "\"$HOME/x\"", "exec tool"] {
        let found = search(command).unwrap_or_else(|failure| panic!("{command}: {failure}"));
        assert_eq!(found.summary, format!("connector: the command {command}"));
        let connector = Connector::Host { entrypoint: command.to_owned(), environment: vec![] };
        assert_eq!(found.connector, connector, "{command}");
    }
    for (command, class, part) in [
        ("", Class::Usage, "--exec is empty"),
        (" \t", Class::Usage, "--exec is empty"),
        ("nothing x", Class::StartError, "nothing is not in PATH"),
        ("./nothing x", Class::StartError, "there is no ./nothing in "),
        ("./plain.py", Class::StartError, "./plain.py is not executable"),
        ("../home", Class::StartError, "../home is a folder"),
    ] {
        let failure = search(command).expect_err(command);
        assert_eq!(failure.class, class, "{command}");
        assert!(failure.text.contains(part), "{failure}");
    }
}

#[test]
fn a_connector_that_is_nowhere_is_told_with_all_that_was_tried() {
    let machine = Machine::new().python();
    let search = |machine: &Machine| machine.find_with("t/source-x", Runtime::Auto, &mut |_| (), &|| false);
    let failure = search(&machine).expect_err("it is nowhere");
    let nowhere = "IMAGE_NOT_FOUND: the connector t/source-x:1 was not found: \
                   Docker is not installed; Podman is not installed; PyPI has no package t-source-x";
    assert_eq!(failure.to_string(), nowhere);

    // A registry that is not reached may have it.
    let pull = r#"case "$1" in
        version) echo 28.2.2 ;;
        image) exit 1 ;;
        pull) echo 'Error response from daemon: Get "https://r/v2/": dial tcp: lookup r: no such host' >&2; exit 1 ;;
        esac"#;
    let machine = machine.program("docker", pull).program("podman", "echo 'not here' >&2; exit 125");
    let failure = search(&machine).expect_err("it is nowhere");
    let unreached = "IMAGE_PULL: the connector t/source-x:1 was not found: \
                     Docker cannot pull t/source-x:1: lookup r: no such host; Podman does not answer; \
                     PyPI has no package t-source-x";
    assert_eq!(failure.to_string(), unreached);

    // What was not reached does not matter once it is found.
    let found = search(&machine.good("t-source-x")).expect("a connector");
    assert!(found.summary.starts_with("connector: t-source-x==1 from PyPI"), "{}", found.summary);
}

#[test]
fn the_image_itself_comes_first_and_an_explicit_choice_never_falls_back() {
    let docker = r#"case "$1" in
        version) echo 28.2.2 ;;
        image) [ -e "$HOME/pulled" ] ;;
        pull) echo "a1: Pulling fs layer"; sleep 0.3; echo "a1: Pull complete"; : >"$HOME/pulled" ;;
        esac"#;
    let machine = Machine::new().python().good("t-source-x").program("docker", docker);
    let mut told = Vec::new();
    let mut tell = |text: &str| told.push(text.to_owned());
    let found = machine.find_with("t/source-x", Runtime::Auto, &mut tell, &|| false).expect("a connector");
    assert_eq!(found.summary, "connector: the image t/source-x:1, pulled with Docker 28.2.2");
    assert!(told.contains(&"pulling t/source-x:1 with Docker: 1 layers".to_owned()), "{told:?}");
    let Connector::Container { tool, image } = found.connector else { panic!("no image") };
    assert_eq!((tool.kind, image.as_str()), (EngineKind::Docker, "t/source-x:1"));
    let again = machine.find_with("t/source-x", Runtime::Docker, &mut |_| (), &|| false).expect("a connector");
    assert_eq!(again.summary, "connector: the image t/source-x:1, from Docker 28.2.2");

    let failure = machine.find_with("t/source-x", Runtime::Podman, &mut |_| (), &|| false).expect_err("no Podman");
    assert_eq!(failure.to_string(), "START_ERROR: Podman is not installed");
    // A daemon that hangs is none.
    let machine = machine.program("docker", "sleep 1000");
    let failure = machine.find_with("t/source-x", Runtime::Docker, &mut |_| (), &|| false).expect_err("no Docker");
    assert_eq!(failure.to_string(), "START_ERROR: Docker does not answer");
    assert_eq!(machine.processes(), Vec::<String>::new());
    assert_eq!(machine.shelf(), Vec::<String>::new());
}

/// Takes half a minute and the network: `cargo test -- --ignored real_connector`, with uv in PATH or without.
#[test]
#[ignore = "takes the network and half a minute"]
fn a_real_connector_is_installed_and_answers() {
    let machine = Machine::new();
    let environment: Vec<(String, String)> = std::env::vars().collect();
    let image: Image = "airbyte/source-faker:7.2.1".parse().expect("an image");
    let (cache, folder) = (machine.path("cache"), machine.path("home"));
    let wanted = ConnectorRequest {
        image: &image,
        exec: None,
        runtime: Runtime::Python,
        cache: &cache,
        environment: &environment,
        working_directory: &folder,
    };
    for _ in 0..2 {
        let begin = Instant::now();
        let found =
            resolve(&wanted, &mut |text| println!("{:?} {text}", begin.elapsed()), &|| false).expect("a connector");
        println!("{:?} {}", begin.elapsed(), found.summary);
        let begin = Instant::now();
        assert!(output(&found, &["spec"]).contains("connectionSpecification"));
        println!("its spec took {:?}", begin.elapsed());
    }
}
