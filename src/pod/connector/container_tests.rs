//! What is said to Docker and Podman, and what they say.

use std::path::Path;

use super::{EngineKind, Mount, Pull, RunOptions, State, references, why_not_pulled};
use crate::failure::Class;

#[test]
fn the_arguments_of_a_run_name_all_that_the_container_may_see_and_nothing_of_its_network() {
    let command = ["sh", "-c", "echo \"$@\"", "sh", "/pipes", "read"].map(str::to_owned);
    let run = RunOptions {
        name: "source-x-read-1",
        image: "airbyte/source-x:1",
        mounts: &[
            Mount { host: Path::new("/run/me/pipes"), inside: "/pipes", read_only: false },
            Mount { host: Path::new("/odd, \"folder\":1"), inside: "/config", read_only: true },
        ],
        environment: &[("LOG_LEVEL", "debug")],
        owner: Some("boot pid:[1] 2 3"),
        cpu_millicores: 1050,
        memory_mi: 512,
        grace_seconds: 60,
        command: &command,
    };
    let expected = [
        "run --name source-x-read-1 --pull never",
        "--label jitsu.com/creator=bulker-sync-controller --label syncctl/owner=boot_pid:[1]_2_3",
        "--log-driver none --security-opt label=disable --stop-timeout 60 --cpus 1.050 --memory 512m --memory-swap 512m",
        "--env LOG_LEVEL=debug --mount type=bind,source=/run/me/pipes,target=/pipes",
        "--mount type=bind,\"source=/odd,_\"\"folder\"\":1\",target=/config,readonly",
        "--entrypoint sh airbyte/source-x:1 -c echo_\"$@\" sh /pipes read",
    ];
    let said: Vec<String> = run.arguments().iter().map(|argument| argument.replace(' ', "_")).collect();
    assert_eq!(said.join(" "), expected.join(" "));

    let free = RunOptions { owner: None, cpu_millicores: 0, memory_mi: 0, ..run }.arguments();
    for option in ["--cpus", "--memory", "--memory-swap", "--network"] {
        assert!(!free.contains(&option.to_owned()), "{option}");
    }
}

#[test]
fn only_podman_has_to_be_told_the_registry() {
    for (kind, image, expected) in [
        (EngineKind::Docker, "airbyte/source-x:1", &["airbyte/source-x:1"][..]),
        (EngineKind::Podman, "airbyte/source-x:1", &["airbyte/source-x:1", "docker.io/airbyte/source-x:1"]),
        (EngineKind::Podman, "source-x:1", &["source-x:1", "docker.io/library/source-x:1"]),
        (EngineKind::Podman, "ghcr.io/a/source-x:1", &["ghcr.io/a/source-x:1"]),
        (EngineKind::Podman, "localhost:5000/source-x:1", &["localhost:5000/source-x:1"]),
    ] {
        assert_eq!(references(kind, &image.parse().expect("an image")), expected, "{image}");
    }
}

#[test]
fn an_image_that_is_not_there_is_told_from_a_registry_that_is_not_reached() {
    use Class::{ImageNotFound, ImagePull};
    for (line, class, part) in [
        (
            "Error response from daemon: manifest for x/y:1 not found: manifest unknown: manifest unknown",
            ImageNotFound,
            "gives none",
        ),
        (
            "Error response from daemon: pull access denied for x/y, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
            ImageNotFound,
            "gives none",
        ),
        (
            "Error: initializing source docker://x/y:1: reading manifest 1 in docker.io/x/y: requested access to the resource is denied",
            ImageNotFound,
            "gives none",
        ),
        (
            "Error response from daemon: Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io on 10.0.0.1:53: no such host",
            ImagePull,
            "x/y:1: lookup registry-1.docker.io on 10.0.0.1:53: no such host",
        ),
        (
            "Error: initializing source docker://x/y:1: pinging container registry localhost:1: Get \"https://localhost:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
            ImagePull,
            "connection refused",
        ),
        ("toomanyrequests: You have reached your pull rate limit.", ImagePull, "rate limit"),
        ("something new", ImagePull, "something new"),
        ("", ImagePull, "does not say"),
    ] {
        let failure = why_not_pulled(EngineKind::Docker, "x/y:1", &[line.to_owned(), String::new()]);
        assert_eq!(failure.class, class, "{line}");
        assert!(failure.text.contains(part), "{}", failure.text);
    }
}

#[test]
fn a_pull_is_told_in_layers() {
    let last = |lines: &[&str]| {
        let mut last = String::new();
        let mut tell = |text: &str| text.clone_into(&mut last);
        let mut pull = Pull::new("x:1", EngineKind::Docker, &mut tell);
        for line in lines {
            pull.note(line);
        }
        pull.heard(None);
        last
    };
    assert_eq!(last(&["1: Pulling from x"]), "pulling x:1 with Docker");
    let docker = ["a1: Pulling fs layer", "b2: Pulling fs layer", "c3: Already exists", "a1: Download complete"];
    assert_eq!(last(&docker), "pulling x:1 with Docker: 1 of 3 layers");
    assert_eq!(last(&["Copying blob sha256:a1", "Copying blob sha256:b2 done"]), "pulling x:1 with Docker: 2 layers");
}

#[test]
fn a_state_is_read_in_full_or_not_at_all() {
    let killed = State { is_running: false, is_oom_killed: true, exit_code: 137 };
    assert_eq!(State::parse("false true 137"), Ok(killed));
    for text in ["", "false true", "<no value> true 1", "false true x"] {
        assert!(State::parse(text).is_err(), "{text}");
    }
}
