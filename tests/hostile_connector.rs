//! A connector that attacks the folders that it shares with the sidecar: the sidecar opens nothing that the connector put
//! there in place of a file, and the task ends.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::local::in_podman;
use super::support::{Program, Running, World, catalog, unique};

const HOSTILE: &str = "syncctl-test/hostile:1";
/// What it puts in place of its reports.
const ATTACKS: [&str; 5] = ["link", "fifo", "folder", "device", "endless"];
/// The content of a file that the sidecar can read and the connector cannot.
const SECRET: &str = "hostile-sentinel";

/// A check with each attack, and a read with one. `host`: the file.
fn start(world: &World, host: &str, program: impl Fn(&[&str]) -> Program) -> Vec<(&'static str, Running)> {
    let config = |attack: &str| world.json(&format!("{attack}.json"), &json!({"attack": attack, "host": host}));
    let check = |attack: &'static str| {
        let config = config(attack);
        (attack, program(&["check", HOSTILE, "--config", &config, "--storage-key", attack, "-o", "json"]).start())
    };
    let (config, catalog, destination) =
        (config("link"), world.json("catalog.json", &catalog(&["items"])), world.destination());
    let read = ["read", HOSTILE, "--config", &config, "--catalog", &catalog, "--destination-config", &destination];
    let task = unique("hostile-");
    let read = [&read[..], &["--sync-id", "s", "--task-id", &task, "-o", "json"]].concat();
    let mut running: Vec<_> = ATTACKS.map(check).into();
    running.push(("read", program(&read).start()));
    running
}

/// The log of each task that was not ended shows that it changed nothing, and none shows the secret.
fn assert_harmless(world: &World) {
    let count = |condition: &str| world.schema.number(&format!("SELECT count(*) FROM task_log WHERE {condition}"));
    assert!(count("message = 'changed:'") >= 5, "{}", count("true"));
    assert_eq!(count("message LIKE 'changed:%' AND message <> 'changed:'"), 0);
    assert_eq!(count(&format!("message LIKE '%{SECRET}%'")), 0);
}

#[test]
fn an_image_in_podman_leads_the_sidecar_to_no_file_of_the_host() {
    let Some(world) = World::on_this_machine() else { return };
    if in_podman(&world, &[]).is_none() {
        return;
    }
    let host = world.file("host", SECRET);
    std::fs::set_permissions(&host, PermissionsExt::from_mode(0o600)).expect("a file");
    for (attack, running) in start(&world, &host, |arguments| in_podman(&world, arguments).expect("podman")) {
        let done = running.wait();
        match attack {
            // The supervisor measures what it stores.
            "endless" => _ = done.fails(3, "EVICTED", &["more than 1 MiB to /reports"]),
            _ => _ = done.code(0),
        }
        assert_eq!(std::fs::read_to_string(&host).expect("a file"), SECRET, "{attack}");
        assert_eq!(std::fs::metadata(&host).expect("a file").permissions().mode() & 0o777, 0o600, "{attack}");
    }
    assert_harmless(&world);
}

#[test]
fn a_pod_leads_the_sidecar_to_no_file_of_its_own() {
    let Some(world) = World::in_cluster() else { return };
    // Holds the database URL of the sidecar.
    for (attack, running) in start(&world, "/proc/1/environ", |arguments| world.syncctl(arguments)) {
        let done = running.wait();
        // The volume of the reports is full; clusters before 1.22 end the Pod instead.
        let is_ended = attack == "endless" && done.code == Some(3);
        assert!(done.code == Some(0) || is_ended, "{attack}: {done}");
    }
    assert_harmless(&world);
    let url = "SELECT count(*) FROM task_log WHERE message LIKE '%DATABASE_URL%'";
    assert_eq!(world.schema.number(url), 0);
}
