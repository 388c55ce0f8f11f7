//! read into Bulker: what a task sends to a server on this machine.

use std::time::Duration;

use serde_json::{Value, json};

use super::support::bulker::{Bulker, TOKEN};
use super::support::{Program, Service, World, catalog, eventually, unique};

/// Only reached when a test hangs.
const DEADLINE: Duration = Duration::from_mins(3);

const INSTANT: &str = "syncctl-test/instant:1";
const ODD: &str = "syncctl-test/odd:1";
const WIDE: &str = "syncctl-test/wide:1";

/// A read into the Bulker of the settings.
fn read(world: &World, bulker: &Bulker, image: &str, config: &Value, catalog: &Value) -> Program {
    let (config, catalog) = (world.json("config.json", config), world.json("catalog.json", catalog));
    let arguments = ["read", image, "--config", &config, "--catalog", &catalog, "--sync-id", "the sync", "-o", "json"];
    let program = world.syncctl(&arguments);
    program.env("SYNCCTL_BULKER_URL", &bulker.url).env("SYNCCTL_BULKER_AUTH_TOKEN", TOKEN)
}

/// Streams with a key, all with the same modes.
fn streams(names: &[&str], mode: &str, write: &str) -> Value {
    let mut catalog = catalog(names);
    for stream in catalog["streams"].as_array_mut().expect("a list") {
        stream["sync_mode"] = json!(mode);
        stream["destination_sync_mode"] = json!(write);
        stream["primary_key"] = json!([["id"]]);
    }
    catalog
}

/// Asserts that no table contains the token.
#[track_caller]
fn assert_token_hidden(world: &World) {
    for table in ["source_task", "task_log", "source_state"] {
        let rows = world.schema.number(&format!("SELECT count(*) FROM {table} t WHERE t::text LIKE '%{TOKEN}%'"));
        assert_eq!(rows, 0, "{table} contains the token");
    }
}

/// The ids of a table with all rows, each once and in order.
fn ids_up_to(last: u64) -> Vec<u64> {
    (1..=last).collect()
}

#[test]
fn full_refreshes_send_one_request_that_replaces_the_table() {
    let Some(world) = World::new() else { return };
    let bulker = Bulker::start(&world, 0);
    let catalog = streams(&["items"], "full_refresh", "overwrite_dedup");
    for _ in 0..2 {
        let options = ["--table-name-prefix", "Pre_", "--to-same-case", "--add-meta"];
        let done = read(&world, &bulker, INSTANT, &json!({}), &catalog).with(&options).run();
        assert_eq!(done.code(0).hides(TOKEN).json()["status"], "SUCCESS", "{done}");
        assert_eq!(done.stderr.matches("SYNCCTL_BULKER_URL is an http:// URL").count(), 1, "{done}");
        assert_eq!(bulker.ids("pre_items"), Some(ids_up_to(1000)));
    }
    let calls = bulker.calls();
    assert_eq!(calls.len(), 2, "{calls:?}");
    for call in calls {
        let target = "/bulk/the%20sync?tableName=pre_items&mode=replace_table&pk=id&taskId=";
        assert!(call.target.starts_with(target), "{}", call.target);
        assert_eq!((call.rows, call.status), (1000, 200));
        let schema: Value = serde_json::from_str(&call.headers["x-jitsu-schema"]).expect("JSON");
        let fields = json!([{"name": "id", "type": 2}, {"name": "_jitsu_timestamp", "type": 5}]);
        assert_eq!(schema, json!({"name": "pre_items", "fields": fields}));
    }
    assert!(bulker.text().contains(r#""_jitsu_timestamp": String("20"#));
    assert_token_hidden(&world);
}

#[test]
fn requests_of_incremental_reads_end_with_a_state() {
    let Some(world) = World::new() else { return };
    let bulker = Bulker::start(&world, 0);
    let catalog = streams(&["one"], "incremental", "append_dedup");
    let config = json!({"mode": "steady"});
    let done = read(&world, &bulker, ODD, &config, &catalog).run();
    assert_eq!(done.code(0).json()["streams"]["one"]["events"], 4000, "{done}");
    assert_eq!(bulker.ids("one"), Some(ids_up_to(4000)));
    let calls = bulker.calls();
    assert!(calls.iter().all(|call| call.target.contains("?tableName=one&mode=batch&pk=id&")), "{calls:?}");
    // A state follows each 500 rows; those that arrive within a second may share a request.
    assert!(calls.iter().all(|call| call.rows > 0 && call.rows % 500 == 0), "{calls:?}");
    assert_eq!(calls.iter().map(|call| call.rows).sum::<usize>(), 4000, "{calls:?}");
    assert_eq!(world.schema.texts("SELECT state->>'id' FROM source_state"), ["4000"]);
}

#[test]
fn interrupted_requests_are_repeated_without_duplicates() {
    let Some(world) = World::new() else { return };
    let bulker = Bulker::start(&world, 2);
    for (mode, write) in [("full_refresh", "overwrite"), ("incremental", "append_dedup")] {
        let done = read(&world, &bulker, INSTANT, &json!({}), &streams(&["items"], mode, write)).run();
        assert_eq!(done.code(0).json()["status"], "SUCCESS", "{done}");
        assert_eq!(bulker.ids("items"), Some(ids_up_to(1000)), "{write}");
    }
    assert_eq!(bulker.calls().iter().map(|call| call.status).collect::<Vec<_>>(), [0, 0, 200, 200]);
}

#[test]
fn wrong_tokens_fail_the_read_and_stay_hidden() {
    let Some(world) = World::new() else { return };
    let bulker = Bulker::start(&world, 0);
    let wrong = "a-t0ken-that-is-wrong";
    let destination =
        json!({"destinationType": "bulker", "url": bulker.url, "authToken": wrong, "destinationId": "d/1"});
    let destination = world.json("destination.json", &destination);
    let catalog = streams(&["items"], "full_refresh", "overwrite");
    let done = read(&world, &bulker, INSTANT, &json!({}), &catalog).with(&["--destination-config", &destination]).run();
    let document = done.code(3).hides(wrong).json();
    assert_eq!(document["status"], "FAILED", "{done}");
    let expected = format!(r#"Bulker at {}: stream "items", table "items": authToken was refused (401)"#, bulker.url);
    assert_eq!(document["streams"]["items"]["error"], expected, "{done}");
    assert!(bulker.calls()[0].target.starts_with("/bulk/d%2F1?"), "{:?}", bulker.calls());
    let rows = world.schema.number(&format!("SELECT count(*) FROM task_log t WHERE t::text LIKE '%{wrong}%'"));
    assert_eq!(rows, 0, "the log contains the token");
    assert_eq!(world.schema.count("source_state"), 0);
}

#[test]
fn too_long_rows_fail_their_stream_and_empty_streams_warn() {
    let Some(world) = World::new() else { return };
    let bulker = Bulker::start(&world, 0);
    let catalog = streams(&["wide", "good", "none"], "full_refresh", "overwrite");
    let done = read(&world, &bulker, WIDE, &json!({}), &catalog).run();
    let document = done.code(3).json();
    assert_eq!(document["status"], "PARTIAL", "{done}");
    let error = document["streams"]["wide"]["error"].as_str().expect("an error");
    assert!(error.contains(r#"stream "wide", table "wide": a row of 200"#) && error.contains("1048576"), "{error}");
    assert_eq!(document["streams"]["wide"]["status"], "FAILED");
    assert_eq!(document["streams"]["good"]["status"], "SUCCESS");
    assert_eq!((bulker.ids("wide"), bulker.ids("good"), bulker.ids("none")), (None, Some(ids_up_to(4)), None));
    assert_eq!(document["streams"]["none"]["status"], "SUCCESS", "{done}");
    let warnings = "SELECT message FROM task_log WHERE level = 'WARN'";
    let warning = eventually("a warning", DEADLINE, || world.schema.texts(warnings).pop());
    assert!(warning.contains(r#"stream "none""#) && warning.contains("Bulker cannot empty a table"), "{warning}");
}

#[test]
fn failed_connectors_leave_the_old_rows() {
    let Some(world) = World::new() else { return };
    let bulker = Bulker::start(&world, 0);
    let run = |image: &str, config: &Value, names: &[&str]| {
        let options = ["--table-name-prefix", "t_"];
        read(&world, &bulker, image, config, &streams(names, "full_refresh", "overwrite")).with(&options).run()
    };
    run(WIDE, &json!({"fails": "yes"}), &["many"]).code(1);
    let calls = bulker.calls();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert!(calls[0].status == 0 && bulker.ids("t_many").is_none(), "{calls:?}");
    run(INSTANT, &json!({}), &["items"]).code(0);
    run("syncctl-test/stillborn:1", &json!({}), &["items"]).code(1);
    assert_eq!(bulker.ids("t_items"), Some(ids_up_to(1000)));
}

#[test]
fn the_service_completes_the_destination_of_a_request() {
    let Some(world) = World::new() else { return };
    let bulker = Bulker::start(&world, 0);
    let service = Service::start_with(&world, |program| {
        program.env("SYNCCTL_BULKER_URL", &bulker.url).env("SYNCCTL_BULKER_AUTH_TOKEN", TOKEN)
    });
    let catalog = streams(&["items"], "full_refresh", "overwrite");
    let body = |destination: Option<Value>| match destination {
        Some(destination) => json!({"config": {}, "catalog": catalog, "destinationConfig": destination}),
        None => json!({"config": {}, "catalog": catalog}),
    };
    let destinations = [None, Some(json!(null)), Some(json!({})), Some(json!({"destinationType": "bulker"}))];
    for (at, destination) in destinations.into_iter().enumerate() {
        let (task, sync) = (unique("fill-"), format!("sync-{at}"));
        let (status, answer) = service.read(INSTANT, &sync, &task, &body(destination));
        assert_eq!(status, 200, "{answer}");
        let ended = || world.schema.task(&task).filter(|(status, _)| status != "RUNNING");
        let (status, error) = eventually("the end of a read", DEADLINE, ended);
        assert_eq!((status.as_str(), error.as_str()), ("SUCCESS", ""));
        let call = bulker.calls().pop().expect("a call");
        assert!(call.target.starts_with(&format!("/bulk/{sync}?")) && call.status == 200, "{call:?}");
    }
    let foreign = json!({"destinationType": "bulker", "url": "http://127.0.0.1:1"});
    let (status, answer) = service.read(INSTANT, "sync", &unique("foreign-"), &body(Some(foreign)));
    let text = answer.to_string();
    assert!(status == 400 && text.contains("authToken: is required") && !text.contains(TOKEN), "{text}");
    assert_token_hidden(&world);
    eventually("an empty namespace", DEADLINE, || world.place.leftovers().is_empty().then_some(()));
}
