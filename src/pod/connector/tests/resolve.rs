//! What is resolved, and the failures.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use super::super::{Connector, ConnectorRequest, EngineKind, Runtime, resolve};
use super::support::{Machine, output, python};
use super::wheel::Wheel;
use crate::failure::Class;
use crate::task::Image;

const WHEEL: Wheel<'_> = Wheel { name: "t-source-x", python: None, requires: &[], scripts: &["source-x"] };

#[test]
fn concurrent_commands_install_a_package_once() {
    // With the unchanged Python of this machine, where the other tests save time.
    let machine = Machine::new().good("t-source-x");
    std::os::unix::fs::symlink(python(), machine.path("bin/python3")).expect("a link");
    let resolve = || {
        let mut progress = Vec::new();
        let mut on_progress = |text: &str| progress.push(text.to_owned());
        let resolved = machine.resolve_with("t/source-x", Runtime::Python, &mut on_progress, &|| false);
        (resolved.expect("a connector"), progress)
    };
    let [one, other] = std::thread::scope(|scope| {
        [scope.spawn(resolve), scope.spawn(resolve)].map(|thread| thread.join().expect("no panic"))
    });
    let (first, second) = if one.0.summary.contains("cached in") { (other, one) } else { (one, other) };
    assert!(first.0.summary.starts_with("connector: t-source-x==1 from PyPI, installed in "), "{}", first.0.summary);
    let [installing] = first.1.as_slice() else { panic!("{:?}", first.1) };
    assert!(installing.starts_with("Installing t-source-x==1 with Python 3."), "{installing}");
    assert!(second.0.summary.contains(", cached in "), "{}", second.0.summary);
    let waiting = format!("Waiting for process {}, which is installing t-source-x==1", std::process::id());
    assert_eq!(second.1.last(), Some(&waiting));
    assert_eq!(first.0.connector, second.0.connector);
    assert_eq!(output(&first.0, &["read", "a  b"]), "source-x read a  b\n");

    assert_eq!(resolve(), (second.0, vec![]));
    let [only] = machine.cached().try_into().expect("one environment and no lock");
    assert!(only.starts_with("t-source-x@1-cp3"), "{only}");
    assert!(!machine.path("cache/connectors").join(only).join("scratch").exists());
}

#[test]
fn an_environment_without_its_interpreter_is_replaced() {
    let machine = Machine::new().python().good("t-source-x");
    machine.resolve("t/source-x").expect("a connector");
    let directory = machine.path("cache/connectors").join(&machine.cached()[0]);
    let link = directory.join("bin/python");
    std::fs::remove_file(&link).expect("a link");
    std::os::unix::fs::symlink("/nowhere/python3", &link).expect("a link");
    std::fs::write(directory.join("old"), "").expect("a file");

    let resolved = machine.resolve("t/source-x").expect("a connector");
    assert!(resolved.summary.contains(", installed in "), "{}", resolved.summary);
    assert_eq!(output(&resolved, &["spec"]), "source-x spec\n");
    assert!(!directory.join("old").exists());
}

#[test]
fn failures_of_pip_are_classified_and_show_its_last_lines() {
    let machine = Machine::new()
        .python()
        .wheel(WHEEL)
        .wheel(Wheel { name: "t-future", python: Some(">=3.99"), ..WHEEL })
        .wheel(Wheel { name: "t-modern", requires: &["t-future"], ..WHEEL })
        .wheel(Wheel { name: "t-lonely", requires: &["t-nowhere>=2"], ..WHEEL })
        .wheel(Wheel { name: "t-conflict", requires: &["t-other==1", "t-other==2"], ..WHEEL })
        .wheel(Wheel { name: "t-other", ..WHEEL })
        .wheel(Wheel { name: "t-empty", scripts: &[], ..WHEEL })
        .wheel(Wheel { name: "t-many", scripts: &["one", "two"], ..WHEEL });
    let cases: [(&str, Class, &[&str]); 7] = [
        ("t/nothing", Class::ImageNotFound, &["PyPI has no package t-nothing"]),
        ("t/future", Class::StartError, &["installing t-future==1 with Python 3.", " failed:\n", ">=3.99"]),
        ("t/modern", Class::StartError, &["installing t-modern==1 with Python 3.", "t-future", ">=3.99"]),
        ("t/lonely", Class::StartError, &["installing t-lonely==1 with Python 3.", "t-nowhere>=2"]),
        ("t/conflict", Class::StartError, &["installing t-conflict==1 with Python 3.", "t-other==2"]),
        ("t/empty", Class::StartError, &["t-empty==1 from PyPI has no command"]),
        ("t/many", Class::StartError, &["t-many==1 from PyPI has no command many, but one, two"]),
    ];
    for (package, class, parts) in cases {
        machine.fails(package, class, parts);
    }
    let image = Image::new("t/source-x", "2").expect("an image");
    let (cache, working_directory) = (&machine.path("cache"), &machine.path("home"));
    let environment = &machine.environment;
    let request = ConnectorRequest {
        image: &image,
        exec: None,
        runtime: Runtime::Python,
        cache,
        environment,
        working_directory,
        isolator: None,
    };
    let failure = resolve(&request, &mut |_| (), &|| false).expect_err("no version 2");
    let expected = "IMAGE_NOT_FOUND: connector t/source-x:2 not found: PyPI has no version 2 of t-source-x (newest: 1)";
    assert_eq!(failure.to_string(), expected);
}

/// Serves the page of one package to the user `me` with the password `open-sesame`.
fn package_index() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let reader = BufReader::new(stream.try_clone().expect("a socket")).lines().map_while(Result::ok);
            let request: Vec<String> = reader.take_while(|line| !line.is_empty()).collect();
            let is_authorized = request.iter().any(|line| line == "Authorization: Basic bWU6b3Blbi1zZXNhbWU=");
            let files = [
                "t_source_x-10-py3-none-any.whl",
                "t-source-x-9.tar.gz",
                "t_source_x-11rc1.zip",
                "a-t-source-x-12.zip",
            ];
            let page = files.map(|file| format!("<a href=\"/{file}#sha256=0\">{file}</a>")).concat();
            let (status, page) = match (is_authorized, request[0].starts_with("GET /simple/t-source-x/ ")) {
                (false, _) => ("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"", ""),
                (true, true) => ("200 OK\r\nContent-Type: text/html", page.as_str()),
                (true, false) => ("404 Not Found", ""),
            };
            let length = page.len();
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{page}").ok();
        }
    });
    address.to_string()
}

#[test]
fn the_package_index_decides_whether_a_version_exists() {
    let index = package_index();
    let machine = Machine::new().python().set("PIP_NO_INDEX", "0");
    let machine = machine.set("PIP_INDEX_URL", &format!("http://me:open-sesame@{index}/simple"));
    let text = "PyPI has no version 1 of t-source-x (newest: 9, 10)";
    assert!(machine.fails("t/source-x", Class::ImageNotFound, &[]).text.ends_with(text));
    machine.fails("t/nothing", Class::ImageNotFound, &["PyPI has no package t-nothing"]);

    let machine = machine.set("PIP_INDEX_URL", &format!("http://{index}/simple"));
    machine.fails("t/source-x", Class::ImagePull, &["index does not answer: HTTP Error 401"]);
}

#[test]
fn an_unreachable_index_is_reported_without_its_password() {
    let machine = Machine::new().python().set("PIP_NO_INDEX", "0").set("PIP_RETRIES", "0");
    let machine = machine.set("PIP_INDEX_URL", "https://user:open-sesame@127.0.0.1:1/simple");
    let failure = machine.fails("t/source-x", Class::ImagePull, &["index does not answer", "Connection refused"]);
    assert!(!failure.text.contains("sesame"), "{failure}");
}

#[test]
fn another_python_is_tried_when_the_first_one_fails() {
    let first = r#"case "$*" in
        "-I -S -c "*) echo 3.11.0 /usr; echo "$0" ;;
        "-I -c import venv"*) ;;
        "-I -m venv "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
        *) echo "ERROR: requires a different Python"; exit 1 ;;
        esac"#;
    let second = r#""-I -S -c "*) echo 3.10.9 /usr; echo "$0"; exit ;;"#;
    let machine = Machine::new().program("python3.11", first).python_that(second).good("t-source-x");
    let resolved = machine.resolve("t/source-x").expect("a connector");
    assert!(resolved.summary.ends_with("(Python 3.10.9)"), "{}", resolved.summary);
    assert_eq!(machine.cached(), ["t-source-x@1-cp310"]);
    // If all fail, the failure of the preferred one is shown.
    let versions = ["installing t-x==1 with Python 3.11.0, 3.10.9 failed:\nERROR: requires a different Python"];
    machine.wheel(Wheel { name: "t-x", requires: &["t-nowhere"], ..WHEEL }).fails("t/x", Class::StartError, &versions);
}

#[test]
fn without_python_the_error_names_the_command_that_installs_it() {
    let machine = Machine::new();
    let parts = ["requires Python 3, which is not in PATH: install it with "];
    machine.fails("t/source-x", Class::StartError, &parts);
    // A version manager's shim without an interpreter.
    let machine = machine.program("python3", "echo 'command not found' >&2; exit 127");
    machine.fails("t/source-x", Class::StartError, &parts);
}

#[test]
fn without_the_venv_module_the_error_names_the_command_that_installs_it() {
    let machine = Machine::new().python_that(r#""-I -c import venv"*) exit 1 ;;"#).good("t-source-x");
    machine.fails("t/source-x", Class::StartError, &["requires the module venv", "install it with "]);
}

#[test]
fn a_full_disk_is_reported_with_its_directory_and_left_empty() {
    let machine = Machine::new().good("t-source-x");
    std::os::unix::fs::symlink(python(), machine.path("bin/python3")).expect("a link");
    let cache = machine.path("cache");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&cache).output();
    if !mounted.is_ok_and(|done| done.status.success()) {
        writeln!(std::io::stderr(), "the test of a full disk SKIPPED: this user cannot mount").ok();
        return;
    }
    let failure = machine.resolve("t/source-x");
    let left = machine.cached();
    // A process that another test has forked holds the files of this one until it executes its program.
    let deadline = Instant::now() + Duration::from_mins(2);
    while !Command::new("umount").arg(&cache).status().expect("umount").success() {
        assert!(Instant::now() < deadline, "the file system stays busy");
        std::thread::sleep(Duration::from_millis(100));
    }
    let failure = failure.expect_err("1 MiB is not enough");
    assert_eq!(failure.class, Class::StartError);
    let text = format!("cannot install t-source-x==1 in {}/connectors: no storage space", cache.display());
    assert_eq!(failure.text, text);
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_cache_that_is_not_writable_is_named() {
    let machine = Machine::new().python();
    std::fs::remove_dir(machine.path("cache")).expect("a directory");
    std::fs::write(machine.path("cache"), "").expect("a file");
    machine.fails("t/source-x", Class::StartError, &["cannot install t-source-x==1 in /", "/cache/connectors: "]);
}

#[test]
fn a_cancelled_installation_leaves_nothing() {
    let hangs = r#""-I -m venv "*) mkdir -p "$4/bin"; : >"$4/half"; trap '' TERM; sleep 1000 & wait; exit ;;"#;
    let machine = Machine::new().python_that(hangs);
    let has_begun =
        || machine.cached().iter().any(|name| machine.path("cache/connectors").join(name).join("half").exists());
    let failure = machine.resolve_with("t/source-x", Runtime::Python, &mut |_| (), &has_begun).expect_err("it hangs");
    assert_eq!(failure.to_string(), "CANCELLED: cancelled while resolving the connector");
    machine.assert_nothing_left();
}

#[test]
fn a_command_is_taken_as_it_is_if_its_program_exists() {
    let machine = Machine::new().program("tool", "").program("sub", "");
    std::fs::write(machine.path("home/plain.py"), "").expect("a file");
    let image = Image::new("t/source-x", "1").expect("an image");
    let (cache, working_directory) = (&machine.path("cache"), &machine.path("home"));
    let resolve = |command| {
        let exec = Some(command);
        let environment = &machine.environment;
        let request = ConnectorRequest {
            image: &image,
            exec,
            runtime: Runtime::Docker,
            cache,
            environment,
            working_directory,
            isolator: None,
        };
        resolve(&request, &mut |_| (), &|| false)
    };
    for command in ["tool --flag 'a b'", "../bin/tool", "A=1 nothing", "cd /x && nothing", "\"$HOME/x\"", "exec tool"] {
        let resolved = resolve(command).unwrap_or_else(|failure| panic!("{command}: {failure}"));
        assert_eq!(resolved.summary, format!("connector: the command {command}"));
        let connector = Connector::Host { entrypoint: command.to_owned(), environment: vec![], package: None };
        assert_eq!(resolved.connector, connector, "{command}");
    }
    for (command, class, part) in [
        ("", Class::Usage, "--exec is empty"),
        (" \t", Class::Usage, "--exec is empty"),
        ("nothing x", Class::StartError, "nothing is not in PATH"),
        ("./nothing x", Class::StartError, "./nothing in /"),
        ("./plain.py", Class::StartError, "./plain.py is not executable"),
        ("../home", Class::StartError, "../home is a directory"),
    ] {
        let failure = resolve(command).expect_err(command);
        assert_eq!(failure.class, class, "{command}");
        assert!(failure.text.contains(part), "{failure}");
    }
}

#[test]
fn a_missing_connector_is_reported_with_all_attempts() {
    let machine = Machine::new().python();
    let resolve = |machine: &Machine| machine.resolve_with("t/source-x", Runtime::Auto, &mut |_| (), &|| false);
    let failure = resolve(&machine).expect_err("it is nowhere");
    let nowhere = "IMAGE_NOT_FOUND: connector t/source-x:1 not found: \
                   Docker is not installed; Podman is not installed; PyPI has no package t-source-x";
    assert_eq!(failure.to_string(), nowhere);

    // A registry that is not reached may have it.
    let pull = r#"case "$1" in
        version) echo 28.2.2 ;;
        image) exit 1 ;;
        pull) echo 'Error response from daemon: Get "https://r/v2/": dial tcp: lookup r: no such host' >&2; exit 1 ;;
        esac"#;
    let machine = machine.program("docker", pull).program("podman", "echo 'not here' >&2; exit 125");
    let failure = resolve(&machine).expect_err("it is nowhere");
    let unreached = "IMAGE_PULL: connector t/source-x:1 not found: \
                     Docker cannot pull t/source-x:1: lookup r: no such host; Podman does not answer; \
                     PyPI has no package t-source-x";
    assert_eq!(failure.to_string(), unreached);

    // Earlier failures do not matter once it is found.
    let resolved = resolve(&machine.good("t-source-x")).expect("a connector");
    assert!(resolved.summary.starts_with("connector: t-source-x==1 from PyPI"), "{}", resolved.summary);
}

#[test]
fn the_image_is_preferred_and_an_explicit_runtime_never_falls_back() {
    let docker = r#"case "$1" in
        version) echo 28.2.2 ;;
        image) [ -e "$HOME/pulled" ] ;;
        pull) echo "a1: Pulling fs layer"; echo "a1: Pull complete"; : >"$HOME/pulled" ;;
        esac"#;
    let machine = Machine::new().python().good("t-source-x").program("docker", docker);
    let mut progress = Vec::new();
    let mut on_progress = |text: &str| progress.push(text.to_owned());
    let resolved = machine.resolve_with("t/source-x", Runtime::Auto, &mut on_progress, &|| false).expect("a connector");
    assert_eq!(resolved.summary, "connector: the image t/source-x:1, pulled with Docker 28.2.2");
    let steps = ["", ": 1 layers", ": 1 of 1 layers"].map(|layers| format!("Pulling image t/source-x:1{layers}"));
    assert_eq!(progress, steps);
    let Connector::Container { engine, image } = resolved.connector else { panic!("no image") };
    assert_eq!((engine.kind, image.as_str()), (EngineKind::Docker, "t/source-x:1"));
    let again = machine.resolve_with("t/source-x", Runtime::Docker, &mut |_| (), &|| false).expect("a connector");
    assert_eq!(again.summary, "connector: the image t/source-x:1, from Docker 28.2.2");

    let failure = machine.resolve_with("t/source-x", Runtime::Podman, &mut |_| (), &|| false).expect_err("no Podman");
    assert_eq!(failure.to_string(), "START_ERROR: Podman is not installed");
    // A daemon that hangs counts as not running.
    let machine = machine.program("docker", "sleep 1000");
    let failure = machine.resolve_with("t/source-x", Runtime::Docker, &mut |_| (), &|| false).expect_err("no Docker");
    assert_eq!(failure.to_string(), "START_ERROR: Docker does not answer");
    assert_eq!(machine.processes(), Vec::<String>::new());
    assert_eq!(machine.cached(), Vec::<String>::new());
}

/// Takes half a minute and the network: `cargo test -- --ignored real_connector`, with uv in PATH or without.
#[test]
#[ignore = "takes the network and half a minute"]
fn a_real_connector_is_installed_and_answers() {
    let machine = Machine::new();
    let environment: Vec<(String, String)> = std::env::vars().collect();
    let image: Image = "airbyte/source-faker:7.2.1".parse().expect("an image");
    let request = ConnectorRequest {
        image: &image,
        exec: None,
        runtime: Runtime::Python,
        cache: &machine.path("cache"),
        environment: &environment,
        working_directory: &machine.path("home"),
        isolator: None,
    };
    for _ in 0..2 {
        let resolved = resolve(&request, &mut |text| println!("{text}"), &|| false).expect("a connector");
        println!("{}", resolved.summary);
        assert!(output(&resolved, &["spec"]).contains("connectionSpecification"));
    }
}
