//! A foreign sidecar: with `SYNCCTL_INIT_IMAGE` the Pod gives it what the wire contract requires, and what it stores is the
//! outcome. The stand-in writes what the Go sidecar writes.

use std::time::Duration;

use serde_json::{Value, json};

use super::support::script::{SCRIPT, config};
use super::support::statements::StatementServer;
use super::support::{Program, Service, World, catalog, eventually, unique};

/// Only means that the program hangs.
const DEADLINE: Duration = Duration::from_mins(3);
const INSTANT: &str = "syncctl-test/instant:1";

fn foreign(server: &StatementServer) -> impl Fn(Program) -> Program {
    |program| {
        program
            .env("SYNCCTL_INIT_IMAGE", INSTANT)
            .env("SYNCCTL_SIDECAR_IMAGE", "syncctl-test/foreign-sidecar:1")
            .env("SYNCCTL_SIDECAR_DATABASE_URL", &server.url)
    }
}

/// Runs `spec`, `check` or `discover`.
fn run(
    world: &World,
    server: &StatementServer,
    command: &str,
    image: &str,
    config: Option<&Value>,
) -> super::support::Done {
    let file = config.map(|config| world.json("foreign-config.json", config));
    let config: Vec<&str> = file.iter().flat_map(|file| ["--config", file]).collect();
    foreign(server)(world.syncctl(&[command, image, "-o", "json"]).with(&config)).run()
}

#[test]
fn results_of_a_foreign_sidecar_are_the_results() {
    let Some(world) = World::in_cluster() else { return };
    let server = StatementServer::start(&world);
    let spec = run(&world, &server, "spec", INSTANT, None);
    assert_eq!(spec.code(0).json()["documentationUrl"], "https://example.com/instant");
    let row = "SELECT specs ->> 'documentationUrl' || '/' || error || '/' || timestamp FROM source_spec";
    let stored = world.schema.text(row);
    assert!(stored.starts_with("https://example.com/instant//"), "an empty error: {stored}");
    // It writes nothing where a specification is stored.
    let again = run(&world, &server, "spec", INSTANT, None);
    assert_eq!(again.code(0).json(), spec.json());
    assert_eq!(world.schema.text(row), stored);

    let good = run(&world, &server, "check", INSTANT, Some(&json!({"password": "right"})));
    assert_eq!(good.code(0).json()["status"], "SUCCEEDED");
    let bad = run(&world, &server, "check", INSTANT, Some(&json!({"password": "wrong"})));
    assert_eq!(bad.code(1).json(), json!({"status": "FAILED", "message": "the password is wrong"}));
    let catalog = run(&world, &server, "discover", INSTANT, Some(&json!({})));
    assert_eq!(catalog.code(0).json()["streams"][0]["name"], "items");

    let task = unique("foreign-");
    let read = foreign(&server)(world.read(INSTANT, "s", &task, &["items"])).run();
    let read = read.code(0).json();
    assert_eq!((&read["status"], &read["error"]), (&json!("SUCCESS"), &Value::Null));
    assert_eq!(read["streams"]["items"]["events"], 1000);
    assert_eq!(world.schema.task(&task), Some(("SUCCESS".to_owned(), String::new())));
    let log = world.schema.texts(&format!("SELECT message FROM task_log WHERE task_id = '{task}'")).join("\n");
    for part in [
        &format!("command: read, taskId: {task}, package: syncctl-test/instant:1 startedAt: 2"),
        "files: ./catalog.json ./destinationConfig.json destination: discard",
        "reading /config/catalog.json from the beginning",
        "READ SUCCESS",
    ] {
        assert!(log.contains(part), "{part} is not in\n{log}");
    }
}

#[test]
fn failures_that_a_foreign_sidecar_does_not_store_have_the_last_lines_of_its_log() {
    let Some(world) = World::in_cluster() else { return };
    let server = StatementServer::start(&world);
    let scripted = |command: &str, script: &str| {
        let mut config = config(script);
        config["password"] = json!("hunter2-of-the-vendor");
        run(&world, &server, command, SCRIPT, Some(&config))
    };
    // It ends with 0, as it does not know the exit code of the connector.
    let failing = "echo 'no route to the vendor as hunter2-of-the-vendor' >&2; exit 4";
    for command in ["check", "discover"] {
        let done = scripted(command, failing);
        done.fails(
            1,
            "CONNECTOR_FAILED",
            &["the connector ended with code 4; ", "ERRSTD : no route to the vendor as ***"],
        );
        done.hides("hunter2-of-the-vendor");
    }
    let error = world.schema.text("SELECT description FROM source_check");
    assert!(error.contains("ERRSTD : no route to the vendor as ***"), "{error}");
    let spec = run(&world, &server, "spec", "syncctl-test/exit137:1", None);
    spec.fails(1, "CONNECTOR_FAILED", &["exit code 137", "INFO : about to end"]);
    // Nothing at all, with success.
    scripted("check", "exit 0").fails(1, "NO_RESULT", &["without a CONNECTION_STATUS message", "CHECK SUCCESS"]);
    // A failure without a text.
    for (command, script) in [("check", "log FATAL ''"), ("discover", "log ERROR ''; exit 1")] {
        let done = scripted(command, script);
        let error = done.code(1).stderr.lines().last();
        assert_eq!(error, Some("error: CONNECTOR_FAILED: the connector gave no reason"), "{done}");
    }
    let rows = "SELECT count(*) FROM source_catalog WHERE description = ''";
    assert!(world.schema.number(rows) > 0, "the sidecar stores an empty text");
}

#[test]
fn the_service_reports_what_a_foreign_sidecar_found() {
    let Some(world) = World::in_cluster() else { return };
    let server = StatementServer::start(&world);
    let mut service = Service::start_with(&world, foreign(&server));
    let finished = |service: &Service, line: &str| {
        eventually(line, DEADLINE, || service.http.get("/metrics").text().contains(line).then_some(()));
    };
    for count in 1..=2 {
        assert_eq!(service.http.spec(INSTANT).0, 200);
        finished(&service, &format!(r#"kind="spec",outcome="SUCCESS"}} {count}"#));
    }
    let script = config("echo 'no route to the vendor' >&2; exit 1");
    assert_eq!(service.http.check(SCRIPT, "failing", &script).0, 200);
    finished(&service, r#"kind="check",outcome="CONNECTOR_FAILED"} 1"#);
    let error = world.schema.text("SELECT description FROM source_check WHERE key = 'failing'");
    assert!(error.starts_with("CONNECTOR_FAILED: ") && error.contains("no route to the vendor"), "{error}");
    // It takes the end of the connector for success, and overwrites what is stored.
    let slow = "syncctl-test/slow:1";
    let body =
        json!({"config": {}, "catalog": catalog(&["ticks"]), "destinationConfig": {"destinationType": "discard"}});
    assert_eq!(service.http.read(slow, "sync", "cancelled", &body).0, 200);
    let log = "SELECT count(*) FROM task_log WHERE task_id = 'cancelled' AND message LIKE '%slow:1%'";
    eventually("the sidecar runs", DEADLINE, || (world.schema.number(log) > 0).then_some(()));
    let running = || world.place.pods().iter().any(|pod| pod["status"]["phase"] == "Running");
    eventually("the connector runs", DEADLINE, || running().then_some(()));
    assert_eq!(service.http.cancel(slow, "sync", "cancelled").0, 200);
    eventually("the Pods are gone", DEADLINE, || world.place.leftovers().is_empty().then_some(()));
    let cancelled = world.schema.task("cancelled").expect("a row");
    assert_eq!(cancelled, ("CANCELLED".to_owned(), "The task was cancelled".to_owned()));
    let stopped = service.stop();
    assert!(!stopped.stderr.contains("outcome=\"SIDECAR_FAILED\""), "{stopped}");
}
