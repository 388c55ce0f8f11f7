//! With a real Podman: `tests/podman/up instant oom` prints its environment variables.

use std::path::Path;
use std::process::{Command, Stdio};

use super::super::container::{ContainerEngine, Mount, RunOptions, State};
use super::super::{Connector, ConnectorRequest, Runtime, resolve};
use super::support::until;
use crate::failure::Class;
use crate::task::Image;

/// The environment of the tests' Podman; `None` if there is none.
fn environment() -> Option<Vec<(String, String)>> {
    if std::env::var_os("SYNCCTL_TEST_PODMAN").is_none() {
        use std::io::Write;
        writeln!(std::io::stderr(), "a test with Podman SKIPPED: tests/podman/up prints the variables to set").ok();
        return None;
    }
    Some(std::env::vars().collect())
}

/// Removes the containers of a test.
struct Containers<'a> {
    engine: &'a ContainerEngine,
    names: Vec<String>,
}

impl Drop for Containers<'_> {
    fn drop(&mut self) {
        for name in &self.names {
            self.engine.remove(name).ok();
        }
    }
}

fn image(
    name: &str,
    environment: &[(String, String)],
    directory: &Path,
) -> Result<(ContainerEngine, String), crate::failure::Failure> {
    let image = Image::new(name, "1").expect("an image");
    let request = ConnectorRequest {
        image: &image,
        exec: None,
        runtime: Runtime::Podman,
        cache: directory,
        environment,
        working_directory: directory,
        isolator: None,
    };
    let resolved = resolve(&request, &mut |_| (), &|| false)?;
    assert!(
        resolved.summary.starts_with(&format!("connector: the image {name}:1, from Podman ")),
        "{}",
        resolved.summary
    );
    let Connector::Container { engine, image } = resolved.connector else { panic!("no image") };
    Ok((engine, image))
}

fn start(engine: &ContainerEngine, run: &RunOptions<'_>, directory: &Path) -> std::process::Child {
    let mut command = Command::new(&engine.path);
    command.args(run.arguments()).env_clear().envs(engine.environment.clone()).current_dir(directory);
    command.stdin(Stdio::null()).spawn().expect("podman")
}

#[test]
fn an_image_runs_in_podman_with_its_mounts_and_is_removed_by_name() {
    let Some(environment) = environment() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let (engine, image) = image("syncctl-test/instant", &environment, directory.path()).expect("an image");
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("it exists");
    let (name, other) =
        (format!("syncctl-test-{}", std::process::id()), format!("syncctl-test-{}-b", std::process::id()));
    let containers = Containers { engine: &engine, names: vec![name.clone(), other.clone()] };
    let script = r#"umask 0; eval "$AIRBYTE_ENTRYPOINT \"\$@\"" >/pipes/out; touch /config/x; exit 7"#;
    let command = ["sh", "-c", script, "sh", "spec"].map(str::to_owned);
    let mounts = [
        Mount { host: directory.path(), inside: "/pipes", read_only: false },
        Mount { host: directory.path(), inside: "/config", read_only: true },
    ];
    let run = RunOptions {
        name: &name,
        image: &image,
        mounts: &mounts,
        environment: &[("LOG_LEVEL", "debug")],
        owner: Some("the owner of 1"),
        cpu_millicores: 500,
        memory_mi: 64,
        grace_seconds: 5,
        is_read_only: true,
        command: &command,
    };
    let status = start(&engine, &run, directory.path()).wait().expect("it ends");
    assert_eq!(status.code(), Some(7));
    let spec = std::fs::read_to_string(directory.path().join("out")).expect("its output");
    assert!(spec.contains("connectionSpecification"), "{spec}");
    assert!(!directory.path().join("x").exists(), "it wrote to a read-only mount");
    let ended = State { is_running: false, is_oom_killed: false, exit_code: 7 };
    assert_eq!(engine.state(&name), Ok(Some(ended)));

    let command = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"].map(str::to_owned);
    let mut stubborn =
        start(&engine, &RunOptions { name: &other, owner: None, command: &command, ..run }, directory.path());
    until("it runs", || matches!(engine.state(&other), Ok(Some(State { is_running: true, .. }))));
    engine.remove(&other).expect("it runs");
    stubborn.wait().expect("it ends");
    for name in &containers.names {
        engine.remove(name).expect("a container, or none");
        engine.remove(name).expect("no container is no error");
        assert_eq!(engine.state(name), Ok(None));
    }
}

#[test]
fn a_container_that_exceeds_its_memory_limit_is_recognized() {
    let Some(environment) = environment() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let (engine, image) = image("syncctl-test/oom", &environment, directory.path()).expect("an image");
    let name = format!("syncctl-test-{}-oom", std::process::id());
    let _containers = Containers { engine: &engine, names: vec![name.clone()] };
    let command = ["sh", "-c", "eval \"$AIRBYTE_ENTRYPOINT check\""].map(str::to_owned);
    let run = RunOptions {
        name: &name,
        image: &image,
        mounts: &[],
        environment: &[],
        owner: None,
        cpu_millicores: 0,
        memory_mi: 32,
        grace_seconds: 5,
        is_read_only: true,
        command: &command,
    };
    let status = start(&engine, &run, directory.path()).wait().expect("it ends");
    assert_eq!(status.code(), Some(137));
    let state = engine.state(&name).expect("an answer").expect("a container");
    assert!(engine.ran_out_of_memory(state, directory.path()), "{state:?}");
}

#[test]
fn an_unreachable_registry_is_one_line() {
    let Some(environment) = environment() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    // Podman tries three times, at intervals of a second.
    let failure = image("127.0.0.1:1/x/source-x", &environment, directory.path()).expect_err("no registry");
    assert_eq!(failure.class, Class::ImagePull);
    let end = "127.0.0.1:1: connect: connection refused";
    assert!(failure.text.starts_with("Podman cannot pull 127.0.0.1:1/x/source-x:1: "), "{failure}");
    assert!(failure.text.ends_with(end), "{failure}");
}
