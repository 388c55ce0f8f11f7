//! A real Podman: `tests/podman/up instant oom` brings one up and says where it is.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::super::container::{ContainerEngine, Mount, RunOptions, State};
use super::super::{Connector, ConnectorRequest, Runtime, resolve};
use super::support::until;
use crate::failure::Class;
use crate::task::Image;

/// The environment with a Podman in it; `None` where there is none to be tested with.
fn environment() -> Option<Vec<(String, String)>> {
    if std::env::var_os("SYNCCTL_TEST_PODMAN").is_none() {
        use std::io::Write;
        writeln!(std::io::stderr(), "a test with Podman SKIPPED: tests/podman/up says what to set").ok();
        return None;
    }
    Some(std::env::vars().collect())
}

/// Containers of a test, which go with it.
struct Containers<'a> {
    tool: &'a ContainerEngine,
    names: Vec<String>,
}

impl Drop for Containers<'_> {
    fn drop(&mut self) {
        for name in &self.names {
            self.tool.remove(name).ok();
        }
    }
}

fn image(
    name: &str,
    environment: &[(String, String)],
    folder: &Path,
) -> Result<(ContainerEngine, String), crate::failure::Failure> {
    let image = Image::new(name, "1").expect("an image");
    let wanted = ConnectorRequest {
        image: &image,
        exec: None,
        runtime: Runtime::Podman,
        cache: folder,
        environment,
        working_directory: folder,
    };
    let found = resolve(&wanted, &mut |_| (), &|| false)?;
    assert!(found.summary.starts_with(&format!("connector: the image {name}:1, from Podman ")), "{}", found.summary);
    let Connector::Container { tool, image } = found.connector else { panic!("no image") };
    Ok((tool, image))
}

fn start(tool: &ContainerEngine, run: &RunOptions<'_>, folder: &Path) -> std::process::Child {
    let mut command = Command::new(&tool.path);
    command.args(run.arguments()).env_clear().envs(tool.environment.clone()).current_dir(folder);
    command.stdin(Stdio::null()).spawn().expect("podman")
}

#[test]
fn an_image_runs_in_podman_with_its_folders_and_is_ended_and_removed_by_its_name() {
    let Some(environment) = environment() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (tool, image) = image("syncctl-test/instant", &environment, folder.path()).expect("an image");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("ours");
    let (name, other) =
        (format!("syncctl-test-{}", std::process::id()), format!("syncctl-test-{}-b", std::process::id()));
    let containers = Containers { tool: &tool, names: vec![name.clone(), other.clone()] };
    let script = r#"umask 0; eval "$AIRBYTE_ENTRYPOINT \"\$@\"" >/pipes/out; touch /config/x; exit 7"#;
    let command = ["sh", "-c", script, "sh", "spec"].map(str::to_owned);
    let mounts = [
        Mount { host: folder.path(), inside: "/pipes", read_only: false },
        Mount { host: folder.path(), inside: "/config", read_only: true },
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
        command: &command,
    };
    let status = start(&tool, &run, folder.path()).wait().expect("it ends");
    assert_eq!(status.code(), Some(7));
    let spec = std::fs::read_to_string(folder.path().join("out")).expect("its output");
    assert!(spec.contains("connectionSpecification"), "{spec}");
    assert!(!folder.path().join("x").exists(), "it could write what it may only read");
    let ended = State { is_running: false, is_oom_killed: false, exit_code: 7 };
    assert_eq!(tool.state(&name), Ok(Some(ended)));

    let command = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"].map(str::to_owned);
    let mut deaf = start(&tool, &RunOptions { name: &other, owner: None, command: &command, ..run }, folder.path());
    until("it runs", || matches!(tool.state(&other), Ok(Some(State { is_running: true, .. }))));
    let begin = Instant::now();
    tool.remove(&other).expect("it runs");
    deaf.wait().expect("it ends");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    for name in &containers.names {
        tool.remove(name).expect("it is there, or gone");
        tool.remove(name).expect("it is no error that it is gone");
        assert_eq!(tool.state(name), Ok(None));
    }
}

#[test]
fn a_container_that_takes_too_much_memory_is_known_by_it() {
    let Some(environment) = environment() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (tool, image) = image("syncctl-test/oom", &environment, folder.path()).expect("an image");
    let name = format!("syncctl-test-{}-oom", std::process::id());
    let _containers = Containers { tool: &tool, names: vec![name.clone()] };
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
        command: &command,
    };
    let status = start(&tool, &run, folder.path()).wait().expect("it ends");
    assert_eq!(status.code(), Some(137));
    let state = tool.state(&name).expect("it is there").expect("it is there");
    assert!(tool.ran_out_of_memory(state, folder.path()), "{state:?}");
}

#[test]
fn an_image_that_podman_does_not_have_is_told_in_one_sentence() {
    let Some(environment) = environment() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    // A registry where nobody listens: each failure after a second, three times.
    let failure = image("127.0.0.1:1/x/source-x", &environment, folder.path()).expect_err("nobody listens");
    assert_eq!(failure.class, Class::ImagePull);
    let end = "127.0.0.1:1: connect: connection refused";
    assert!(failure.text.starts_with("Podman cannot pull 127.0.0.1:1/x/source-x:1: "), "{failure}");
    assert!(failure.text.ends_with(end), "{failure}");
}
