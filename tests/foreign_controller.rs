//! The image of the program as the sidecar of a foreign controller: no arguments, only variables; documents and FIFOs are
//! there, and no wrapper runs the connector.

use std::time::Duration;

use serde_json::{Value, json};

use super::support::foreign_controller::{ForeignController, ForeignTask, Verdict};
use super::support::script::{SCRIPT, config};
use super::support::{Program, Service, World, catalog, eventually};

const INSTANT: &str = "syncctl-test/instant:1";

/// A read of a connector that does this.
fn read(world: &World, script: &str, streams: &[&str]) -> ForeignTask<'static> {
    ForeignTask {
        config: config(script),
        catalog: catalog(streams),
        state: json!({}),
        destination: world.destination_config(),
        ..ForeignTask::new("read", SCRIPT)
    }
}

/// The status and error of each stream.
fn statuses(streams: &Value) -> Vec<(&str, &str)> {
    let streams = streams.as_object().expect("stream reports");
    streams.iter().map(|(name, report)| (name.as_str(), report["status"].as_str().expect("a status"))).collect()
}

#[test]
fn without_arguments_the_environment_selects_the_sidecar() {
    let sidecar = |program: Program| program.env("STDOUT_PIPE_FILE", "/pipes/stdout").run();
    let incomplete = sidecar(Program::new::<&str>(&[]).env("COMMAND", "spec"));
    assert!(incomplete.code(2).stderr.contains("DATABASE_URL is not set"), "{incomplete}");
    let unknown = sidecar(Program::new::<&str>(&[]).env("COMMAND", "sync"));
    assert!(unknown.code(2).stderr.contains("COMMAND: "), "{unknown}");
    // A shell may have a variable of that name.
    for command in [None, Some("make"), Some("")] {
        let program = Program::new::<&str>(&[]);
        let help = command.iter().fold(program, |program, command| program.env("COMMAND", command)).run();
        assert!(help.code(2).stderr.contains("Usage: syncctl"), "{help}");
    }
    let version = Program::new(&["--version"]).env("COMMAND", "spec").run();
    assert!(version.code(0).stdout.starts_with("syncctl "), "{version}");
}

#[test]
fn all_commands_succeed_under_a_foreign_controller() {
    let Some(world) = World::in_cluster() else { return };
    let controller = ForeignController::new(&world);
    let configured = |command, password: &str| ForeignTask {
        config: json!({"password": password}),
        ..ForeignTask::new(command, INSTANT)
    };
    let spec = controller.launch(&ForeignTask::new("spec", INSTANT));
    let good = controller.launch(&configured("check", "right"));
    let bad = controller.launch(&configured("check", "wrong"));
    let discover = controller.launch(&configured("discover", "right"));
    let read = controller.launch(&ForeignTask {
        config: json!({}),
        catalog: catalog(&["items"]),
        state: json!({}),
        destination: world.destination_config(),
        ..ForeignTask::new("read", INSTANT)
    });
    for task in [&spec, &good, &bad, &discover, &read] {
        assert_eq!(task.exit_codes(), (0, 0), "{}", task.sidecar_log());
        assert_eq!(task.conclude(), Verdict::Succeeded);
    }
    let spec = world.schema.text("SELECT specs ->> 'documentationUrl' FROM source_spec WHERE error IS NULL");
    assert_eq!(spec, "https://example.com/instant");
    let check = |id: &str| {
        let query = format!("SELECT concat_ws(': ', status, description) FROM source_check WHERE key = '{id}'");
        world.schema.text(&query)
    };
    assert_eq!(check(&good.id), "SUCCESS");
    assert_eq!(check(&bad.id), "FAILED: the password is ***");
    let catalog = "SELECT status || ' ' || (catalog -> 'streams' -> 0 ->> 'name') FROM source_catalog";
    assert_eq!(world.schema.text(catalog), "SUCCESS items");
    assert_eq!(world.schema.task(&read.id), Some(("SUCCESS".to_owned(), String::new())));
    assert_eq!(statuses(&world.schema.streams(&read.id)), [("items", "SUCCESS")]);
    assert_eq!(world.schema.count("items"), 1000);
    assert_eq!(world.schema.text("SELECT state::text FROM source_state"), r#"{"id": 1000}"#);
}

#[test]
fn failures_without_a_result_reach_the_row_of_a_foreign_controller() {
    let Some(world) = World::in_cluster() else { return };
    let controller = ForeignController::new(&world);
    let scripted = |command, script: &str| ForeignTask { config: config(script), ..ForeignTask::new(command, SCRIPT) };
    let no_entrypoint = controller.launch(&ForeignTask::new("spec", "syncctl-test/noentrypoint:1"));
    let silent = controller.launch(&ForeignTask::new("spec", "syncctl-test/exit137:1"));
    let check = controller.launch(&scripted("check", "echo 'no route to the vendor' >&2; exit 1"));
    let discover = controller.launch(&scripted("discover", "log FATAL 'the vendor is closed'; exit 1"));
    let succeeds = controller.launch(&scripted("discover", "exit 0"));
    for task in [&no_entrypoint, &silent, &check, &discover, &succeeds] {
        assert_eq!(task.exit_codes().1, 1, "{}", task.sidecar_log());
    }
    let text = |query: &str| world.schema.text(query);
    let spec = |name: &str| text(&format!("SELECT error FROM source_spec WHERE package = 'syncctl-test/{name}'"));
    let result = |table: &str, id: &str| {
        text(&format!("SELECT concat_ws(': ', status, description) FROM source_{table} WHERE key = '{id}'"))
    };
    let error = spec("noentrypoint");
    assert!(error.starts_with("NO_RESULT: ") && error.contains("spec: not found"), "{error}");
    let error = spec("exit137");
    assert!(error.starts_with("NO_RESULT: "), "{error}");
    let error = result("check", &check.id);
    assert!(error.starts_with("FAILED: NO_RESULT: ") && error.contains("no route to the vendor"), "{error}");
    assert_eq!(result("catalog", &discover.id), "FAILED: CONNECTOR_FAILED: the vendor is closed");
    assert!(result("catalog", &succeeds.id).starts_with("FAILED: NO_RESULT: "));
    // The controller replaces the error of a spec alone, by the last lines of the sidecar's log.
    for (task, cause) in [
        (&no_entrypoint, "spec: not found"),
        (&silent, "NO_RESULT: the connector ended without a SPEC message"),
        (&check, "no route to the vendor"),
        (&discover, "the vendor is closed"),
        (&succeeds, "NO_RESULT: the connector ended without a CATALOG message"),
    ] {
        let Verdict::Failed(error) = task.conclude() else { panic!("{} succeeded", task.pod) };
        assert!(error.contains(cause), "{error}");
        let first = error.lines().next().unwrap_or_default();
        assert!(first.starts_with("ERROR "), "no time and no module before the text: {error}");
    }
    assert!(spec("noentrypoint").contains("spec: not found"));
    assert!(result("check", &check.id).starts_with("FAILED: NO_RESULT: "), "not replaced");
}

/// No exit code is known: what the connector has written decides.
#[test]
fn reads_under_a_foreign_controller_end_with_the_pipes() {
    let Some(world) = World::in_cluster() else { return };
    let controller = ForeignController::new(&world);
    let cases = [
        ("no statuses", "rows a 1 5; rows b 1 5", 0, "SUCCESS", ["SUCCESS", "SUCCESS"], ""),
        (
            "completed streams whatever comes after",
            "status a STARTED; rows a 1 5; status a COMPLETE; status b STARTED; status b COMPLETE; log ERROR late; exit 1",
            0,
            "SUCCESS",
            ["SUCCESS", "SUCCESS"],
            "",
        ),
        (
            "partial",
            "status a STARTED; rows a 1 5; status a COMPLETE; status b STARTED; rows b 1 5; echo boom >&2; exit 1",
            0,
            "PARTIAL",
            ["SUCCESS", "FAILED"],
            "without completing the stream",
        ),
        (
            "an error",
            r#"rows a 1 5; echo '{"type":"TRACE","trace":{"type":"ERROR","error":{"message":"quota used up"}}}'; exit 1"#,
            1,
            "FAILED",
            ["FAILED", "FAILED"],
            "CONNECTOR_FAILED: quota used up",
        ),
        (
            "a fatal log",
            "rows a 1 5; log FATAL 'quota used up'; exit 1",
            1,
            "FAILED",
            ["FAILED", "FAILED"],
            "quota used up",
        ),
        (
            "killed",
            "state a '{\"at\":1}'; rows a 1 5; kill -9 $$",
            1,
            "FAILED",
            ["FAILED", "FAILED"],
            "CONNECTOR_FAILED: the connector crashed; its last lines: Killed",
        ),
        (
            "within a line",
            r#"rows a 1 5; printf '{"type":"RECORD","record":{"stream":"a","da'"#,
            1,
            "FAILED",
            ["FAILED", "FAILED"],
            "a message is cut off",
        ),
        ("nothing", "echo 'no licence' >&2; exit 3", 1, "FAILED", ["FAILED", "FAILED"], "no licence"),
    ];
    let tasks = cases.map(|(label, script, code, status, streams, error)| {
        // One table each.
        let prefix = label.replace(' ', "_");
        let mut task = read(&world, script, &["a", "b"]);
        for stream in task.catalog["streams"].as_array_mut().expect("streams") {
            stream["stream"]["table_name"] =
                json!(format!("{prefix}_{}", stream["stream"]["name"].as_str().expect("a name")));
        }
        (label, controller.launch(&task), code, status, streams, error)
    });
    for (label, task, code, status, streams, error) in tasks {
        let (_, sidecar) = task.exit_codes();
        assert_eq!(sidecar, code, "{label}: {}", task.sidecar_log());
        let verdict = task.conclude();
        let (stored, text) = world.schema.task(&task.id).expect("a row");
        assert_eq!(stored, status, "{label}: {text}");
        assert!(text.contains(error) && text.is_empty() == error.is_empty(), "{label}: {text}");
        let reports = world.schema.streams(&task.id);
        assert_eq!(statuses(&reports), [("a", streams[0]), ("b", streams[1])], "{label}: {reports}");
        if let Verdict::Failed(text) = verdict {
            assert!(code == 0 || text.contains(error), "{label}: {text}");
        }
    }
}

#[test]
fn a_foreign_controller_that_deletes_the_pod_cancels_the_read() {
    let Some(world) = World::in_cluster() else { return };
    let controller = ForeignController::new(&world);
    let slow = "trap 'exit 143' TERM; status a STARTED; rows a 1 5; state a '{\"at\":5}'; while :; do sleep 1; done";
    let task = controller.launch(&read(&world, slow, &["a"]));
    eventually("the state is stored", Duration::from_mins(3), || {
        (world.schema.texts("SELECT stream FROM source_state") == ["a"]).then_some(())
    });
    task.delete();
    let (status, error) = world.schema.task(&task.id).expect("a row");
    assert_eq!((status.as_str(), error.as_str()), ("CANCELLED", "CANCELLED: the task was cancelled"));
    assert_eq!(world.schema.count("a"), 5);
}

#[test]
fn a_full_refresh_does_not_resume_from_the_state_of_a_foreign_controller() {
    let Some(world) = World::in_cluster() else { return };
    let controller = ForeignController::new(&world);
    let script = "rows a 1 3; log INFO \"state: $(cat $state | tr '\\\"' \\' )\"";
    let state = json!([{"type": "STREAM", "stream": {"stream_descriptor": {"name": "a"}, "stream_state": {"at": 9}}}]);
    for (mode, full_sync, kept) in
        [("full_refresh", "", false), ("incremental", "true", false), ("incremental", "", true)]
    {
        let mut task = ForeignTask { state: state.clone(), variables: &[], ..read(&world, script, &["a"]) };
        task.catalog["streams"][0]["sync_mode"] = json!(mode);
        let variables = [("FULL_SYNC", full_sync)];
        let task = controller.launch(&ForeignTask { variables: &variables, ..task });
        assert_eq!(task.exit_codes().1, 0, "{}", task.sidecar_log());
        let log = format!("SELECT message FROM task_log WHERE task_id = '{}' AND message LIKE 'state: %'", task.id);
        assert_eq!(world.schema.text(&log).contains("'at'"), kept, "{mode} {full_sync}");
        task.conclude();
    }
}

#[test]
fn a_renewed_configuration_reaches_the_connector_of_a_foreign_controller() {
    let Some(world) = World::in_cluster() else { return };
    let controller = ForeignController::new(&world);
    world.schema.execute(
        "CREATE TABLE source_config (sync_id TEXT PRIMARY KEY, package TEXT NOT NULL, given TEXT NOT NULL,
           config JSONB NOT NULL, timestamp TIMESTAMPTZ(3) NOT NULL DEFAULT now())",
    );
    let script = r#"
        log INFO "token: $(sed 's/.*"token": *"\([a-z]*\)".*/\1/' "$config" | rev)"
        printf '{"type":"CONTROL","control":{"type":"CONNECTOR_CONFIG","emitted_at":1,"connectorConfig":{"config":%s}}}\n' \
            "$(sed 's/given/renewed/' "$config")"
        row a '{"id":1}'"#;
    let sync = world.schema.name.clone();
    let variables = [("SYNC_ID", sync.as_str())];
    for token in ["given", "renewed"] {
        let mut task = ForeignTask { variables: &variables, ..read(&world, script, &["a"]) };
        task.config["token"] = json!("given");
        let task = controller.launch(&task);
        assert_eq!(task.exit_codes().1, 0, "{}", task.sidecar_log());
        let log = format!("SELECT message FROM task_log WHERE task_id = '{}' AND message LIKE 'token: %'", task.id);
        // Backwards, because the log masks it.
        let expected: String = token.chars().rev().collect();
        assert_eq!(world.schema.text(&log), format!("token: {expected}"));
        task.conclude();
    }
}

#[test]
fn tasks_of_a_foreign_controller_are_followed_to_their_end_after_a_swap() {
    let Some(world) = World::in_cluster() else { return };
    let controller = ForeignController::new(&world);
    controller.launch(&ForeignTask::new("spec", INSTANT));
    let configured =
        |command| ForeignTask { config: json!({"password": "right"}), ..ForeignTask::new(command, INSTANT) };
    let check = controller.launch(&configured("check"));
    let discover = controller.launch(&configured("discover"));
    let quick = controller.launch(&read(&world, "rows s 1 5; status s COMPLETE", &["s"]));
    // It ends while the service follows it.
    let slow = controller.launch(&read(&world, "status t STARTED; sleep 10; rows t 1 5; status t COMPLETE", &["t"]));
    // Upper case is invalid, so that the error is permanent.
    controller.launch(&ForeignTask::new("spec", "syncctl-test/Invalid:1"));
    let _service = Service::start_with(&world, |program| program);
    eventually("neither a Pod nor a Secret is left", Duration::from_mins(3), || {
        world.place.leftovers().is_empty().then_some(())
    });
    let specs = "SELECT string_agg(concat_ws(' ', package, specs ->> 'documentationUrl', split_part(error, ':', 1)), ', ' ORDER BY 1) FROM source_spec";
    assert_eq!(
        world.schema.text(specs),
        "syncctl-test/instant https://example.com/instant, syncctl-test/Invalid IMAGE_NOT_FOUND"
    );
    let status = |table: &str, key: &str| world.schema.text(&format!("SELECT status FROM {table} WHERE key = '{key}'"));
    assert_eq!(status("source_check", &check.id), "SUCCESS");
    assert_eq!(status("source_catalog", &discover.id), "SUCCESS");
    for task in [quick, slow] {
        assert_eq!(world.schema.task(&task.id), Some(("SUCCESS".to_owned(), String::new())));
    }
}
