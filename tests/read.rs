//! read: rows in Postgres, states, statuses, logs.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::support::{Done, Program, World, catalog, eventually, unique};

/// Only reached when a test hangs.
const DEADLINE: Duration = Duration::from_mins(3);

const FAKER: &str = "airbyte/source-faker:7.2.1";
const INSTANT: &str = "syncctl-test/instant:1";
const ODD: &str = "syncctl-test/odd:1";

/// A read into the schema of this world.
pub fn read(world: &World, image: &str, config: &Value, catalog: &Value, task: &str) -> Program {
    let config = world.json("read-config.json", config);
    let catalog = world.json("read-catalog.json", catalog);
    let destination = world.destination();
    let arguments = ["read", image, "--config", &config, "--catalog", &catalog, "--destination-config", &destination];
    world.syncctl(&arguments).with(&["--sync-id", "sync", "--task-id", task, "-o", "json"])
}

fn odd(world: &World, mode: &str, streams: &[&str], task: &str) -> Done {
    let config = json!({"mode": mode, "password": "hunter2-hunter2"});
    read(world, ODD, &config, &catalog(streams), task).run()
}

/// Configures all streams of a discovered catalog.
pub fn configured(discovered: &Value, mode: &str, write: &str) -> Value {
    let streams = discovered["streams"].as_array().expect("streams");
    let stream = |stream: &Value| {
        json!({
            "stream": stream, "sync_mode": mode, "destination_sync_mode": write,
            "primary_key": stream["source_defined_primary_key"].as_array().cloned().unwrap_or_default(),
            "cursor_field": stream["default_cursor_field"].as_array().cloned().unwrap_or_default(),
        })
    };
    json!({"streams": streams.iter().map(stream).collect::<Vec<_>>()})
}

pub fn discover(world: &World, image: &str, config: &Value) -> Value {
    let config = world.json("discover-config.json", config);
    let done = world.syncctl(&["discover", image, "--config", &config, "-o", "json"]).run();
    done.code(0).json()
}

#[test]
fn reads_of_a_real_connector_resume_without_duplicates() {
    let Some(world) = World::new() else { return };
    let config = json!({"count": 150, "seed": 7, "parallelism": 1, "records_per_slice": 50, "always_updated": false});
    let catalog = configured(&discover(&world, FAKER, &config), "incremental", "append_dedup");
    let (first, second) = (unique("first-"), unique("second-"));
    let done = read(&world, FAKER, &config, &catalog, &first).with(&["--state", "db"]).run();
    let document = done.code(0).json();
    assert_eq!(document["status"], "SUCCESS", "{done}");
    assert_eq!(document["taskId"], first.as_str());
    assert_eq!(document["syncId"], "sync");
    let names: Vec<&String> = document["streams"].as_object().expect("a map").keys().collect();
    assert_eq!(names, ["products", "users", "purchases"], "in the catalog's order");
    assert_eq!(document["streams"]["users"]["events"], 150);
    assert_eq!(document["streams"]["products"]["events"], 100);
    let counts = |world: &World| ["users", "products", "purchases"].map(|table| world.schema.count(table));
    let before = counts(&world);
    assert_eq!(before[..2], [150, 100]);
    assert_eq!(Some(before[2]), document["streams"]["purchases"]["events"].as_i64(), "all purchases are stored");
    let query = "SELECT concat_ws('|', package, version, sync_id, status, error) FROM source_task";
    assert_eq!(world.schema.texts(query), ["airbyte/source-faker|7.2.1|sync|SUCCESS"]);
    assert_eq!(world.schema.streams(&first), document["streams"]);
    let used: Value = serde_json::from_str(&world.schema.text("SELECT metrics::text FROM source_task")).expect("JSON");
    let (seconds, bytes) = (used["cpu_usage"].as_f64().expect("seconds"), used["mem_usage"].as_u64().expect("bytes"));
    // More than loading a Python program takes, less than the container's limits.
    assert!((0.1..600.0).contains(&seconds), "{used}");
    assert!((5 << 20..=1024 << 20).contains(&bytes), "{used}");
    let states = "SELECT stream || ' ' || state::text FROM source_state WHERE sync_id = 'sync' ORDER BY stream";
    let stored = world.schema.texts(states);
    assert_eq!(stored.len(), 3, "{stored:?}");
    let types: BTreeMap<String, String> = world.schema.columns("users").into_iter().collect();
    assert_eq!(types["id"], "bigint");
    assert_eq!(types["created_at"], "timestamp with time zone");
    assert_eq!(types["address"], "jsonb");

    let done = read(&world, FAKER, &config, &catalog, &second).with(&["--state", "db"]).run();
    let document = done.code(0).json();
    assert_eq!(document["status"], "SUCCESS", "{done}");
    // It resumes from the state: users and purchases are not read again.
    assert_eq!(document["streams"]["users"]["events"], 0, "{done}");
    assert_eq!(counts(&world), before);
    let distinct = |table: &str| world.schema.number(&format!("SELECT count(DISTINCT id) FROM {table}"));
    assert_eq!(["users", "products", "purchases"].map(distinct), before);
    assert_eq!(world.schema.count("source_task"), 2);
}

#[test]
fn resource_usage_is_reported_while_the_connector_runs() {
    let Some(world) = World::new() else { return };
    let task = unique("uses-");
    let running = world.read("syncctl-test/slow:1", "s", &task, &["ticks"]).start();
    // The wrapper measures after two seconds, and the sidecar reports it with its next heartbeat, after ten.
    let query = "SELECT metrics::text FROM source_task WHERE status = 'RUNNING' AND metrics IS NOT NULL";
    let metrics = || world.schema.task(&task).and_then(|_| world.schema.texts(query).pop());
    let used = eventually("the metrics of a running task", DEADLINE, metrics);
    let used: Value = serde_json::from_str(&used).expect("JSON");
    // A shell and its sleeping child.
    assert!((0.000_1..10.0).contains(&used["cpu_usage"].as_f64().expect("seconds")), "{used}");
    assert!((10_000..256 << 20).contains(&used["mem_usage"].as_u64().expect("bytes")), "{used}");
    running.signal(Signal::INT);
    running.wait().code(130);
}

#[test]
fn progress_of_sources_without_long_pauses_is_reported() {
    let Some(world) = World::new() else { return };
    let task = unique("steady-");
    let script = r#"while :; do row a '{"id":1}'; sleep 0.1; done"#;
    let running = world.script(script, &catalog(&["a"]), &task).start();
    // The first row is reported at once, with the changed status.
    eventually("growing counts", DEADLINE, || {
        let (status, _) = world.schema.task(&task)?;
        let events = world.schema.streams(&task)["a"]["received"]["events"].as_u64()?;
        (status == "RUNNING" && events >= 20).then_some(())
    });
    running.signal(Signal::INT);
    running.wait().code(130);
}

#[test]
fn reads_without_state_start_from_scratch_and_merge() {
    let Some(world) = World::new() else { return };
    let mut catalog = configured(&discover(&world, INSTANT, &json!({})), "incremental", "append_dedup");
    let run = |catalog: &Value| {
        read(&world, INSTANT, &json!({}), catalog, &unique("merge-")).run().code(0);
        (world.schema.count("items"), world.schema.number("SELECT count(DISTINCT id) FROM items"))
    };
    assert_eq!(run(&catalog), (1000, 1000));
    assert_eq!(run(&catalog), (1000, 1000), "merged by the primary key");
    world.schema.execute("DROP TABLE items");
    catalog["streams"][0]["destination_sync_mode"] = json!("append");
    assert_eq!(run(&catalog), (1000, 1000));
    assert_eq!(run(&catalog), (2000, 1000), "appended");
}

#[test]
fn full_refreshes_replace_rows_and_keep_views() {
    let Some(world) = World::new() else { return };
    let catalog = configured(&discover(&world, INSTANT, &json!({})), "full_refresh", "overwrite");
    let run = |image: &str| read(&world, image, &json!({}), &catalog, &unique("full-")).run();
    run(INSTANT).code(0);
    world.schema.execute(
        "INSERT INTO items (id, name) VALUES (-1, 'of an older run'); CREATE VIEW seen AS SELECT id FROM items",
    );
    run(INSTANT).code(0);
    assert_eq!(world.schema.count("items"), 1000);
    assert_eq!(world.schema.count("seen"), 1000, "the view is kept");
    // A failed source must not empty the table.
    run("syncctl-test/stillborn:1").code(1);
    assert_eq!(world.schema.count("items"), 1000);
}

#[test]
fn full_syncs_clear_states_and_replace_rows() {
    let Some(world) = World::new() else { return };
    let catalog = configured(&discover(&world, INSTANT, &json!({})), "incremental", "append");
    let run = |more: &[&str]| {
        read(&world, INSTANT, &json!({}), &catalog, &unique("sync-")).with(more).run().code(0);
        world.schema.count("items")
    };
    assert_eq!(run(&[]), 1000);
    world.schema.execute("INSERT INTO source_state (sync_id, stream, state) VALUES ('sync', 'gone', '{}')");
    assert_eq!(run(&["--full-sync"]), 1000);
    assert_eq!(world.schema.texts("SELECT stream FROM source_state"), ["items"]);
}

#[test]
fn partly_failed_full_syncs_keep_the_states_of_failed_streams() {
    let Some(world) = World::new() else { return };
    let states = "INSERT INTO source_state (sync_id, stream, state) SELECT 'sync', name, '{\"old\": 1}'
                  FROM unnest(ARRAY['good', 'stateless', 'bad', 'gone']) name";
    world.run_script("rows good 1 1", &catalog(&["good"])).code(0);
    world.schema.execute(&format!("DELETE FROM source_state; {states}"));
    let script = "rows good 1 2; state good '{\"new\":1}'; status good COMPLETE
                  rows stateless 1 1; status stateless COMPLETE; rows bad 1 1; status bad INCOMPLETE; exit 1";
    let task = unique("full-");
    world.script(script, &catalog(&["good", "stateless", "bad"]), &task).with(&["--full-sync"]).run().code(1);
    let left = world.schema.texts("SELECT stream || ' ' || state::text FROM source_state ORDER BY stream");
    assert_eq!(left, [r#"bad {"old": 1}"#, r#"gone {"old": 1}"#, r#"good {"new": 1}"#]);
}

#[test]
fn table_options_are_applied() {
    let Some(world) = World::new() else { return };
    let mut streams = catalog(&["items"]);
    streams["streams"][0]["stream"]["json_schema"]["properties"] =
        json!({"id": {"type": "integer"}, "Name": {"type": "string"}});
    let name = &world.schema.name;
    read(&world, INSTANT, &json!({}), &streams, &unique("named-"))
        .with(&["--target-namespace", name, "--table-name-prefix", "My_", "--to-same-case", "--add-meta"])
        .run()
        .code(0);
    assert_eq!(world.schema.count("my_items"), 1000);
    let columns: BTreeMap<String, String> = world.schema.columns("my_items").into_iter().collect();
    assert_eq!(columns["_jitsu_timestamp"], "timestamp with time zone");
    assert!(columns.contains_key("name") && !columns.contains_key("Name"), "{columns:?}");
    assert_eq!(world.schema.number("SELECT count(*) FROM my_items WHERE _jitsu_timestamp IS NULL"), 0);
}

#[test]
fn failed_streams_store_no_state_and_do_not_affect_others() {
    let Some(world) = World::new() else { return };
    let task = unique("twins-");
    let done = odd(&world, "twins", &["good", "bad"], &task);
    let document = done.code(1).json();
    assert_eq!(document["status"], "PARTIAL", "{done}");
    assert_eq!(document["class"], "CONNECTOR_FAILED");
    assert!(document["error"].as_str().is_some_and(|error| error.contains("the API answered 500")), "{done}");
    assert_eq!(document["streams"]["good"]["status"], "SUCCESS");
    assert_eq!(document["streams"]["good"]["events"], 20);
    assert_eq!(document["streams"]["bad"]["status"], "FAILED");
    assert!(document["streams"]["bad"]["error"].as_str().is_some_and(|error| error.contains("the API answered 500")));
    assert_eq!(world.schema.count("good"), 20);
    assert_eq!(world.schema.texts("SELECT stream FROM source_state"), ["good"]);
    assert_eq!(world.schema.task(&task).expect("a row").0, "PARTIAL");
}

#[test]
fn incomplete_streams_fail_despite_exit_code_0() {
    let Some(world) = World::new() else { return };
    let done = odd(&world, "incomplete", &["one"], &unique("incomplete-"));
    let document = done.code(1).json();
    assert_eq!(document["status"], "FAILED", "{done}");
    assert_eq!(document["streams"]["one"]["status"], "FAILED");
}

#[test]
fn exit_code_0_without_stream_statuses_is_a_success() {
    let Some(world) = World::new() else { return };
    let done = odd(&world, "quiet", &["one"], &unique("quiet-"));
    assert_eq!(done.code(0).json()["streams"]["one"], json!({"events": 4, "bytes": 344, "status": "SUCCESS"}));
    assert_eq!(world.schema.count("one"), 4);
    assert_eq!(world.schema.count("source_state"), 0);
}

#[test]
fn global_states_are_stored_and_passed_to_the_next_read() {
    let Some(world) = World::new() else { return };
    let task = unique("global-");
    odd(&world, "global", &["one", "two"], &task).code(0);
    let row = world.schema.text("SELECT stream || ' ' || state::text FROM source_state");
    assert!(row.starts_with("_GLOBAL_STATE ") && row.contains("9007199254740993"), "{row}");
    assert_eq!((world.schema.count("one"), world.schema.count("two")), (5, 7));
    // A connector that prints its input shows that all digits are preserved.
    let config = json!({"mode": "look"});
    let again = unique("again-");
    read(&world, ODD, &config, &catalog(&["one", "two"]), &again).with(&["--state", "db"]).run().code(0);
    let seen = world.schema.texts("SELECT line FROM one WHERE line LIKE '%GLOBAL%'").join("\n");
    assert!(seen.contains("9007199254740993") && seen.contains("shared_state"), "{seen}");
}

#[test]
fn legacy_states_are_stored() {
    let Some(world) = World::new() else { return };
    odd(&world, "legacy", &["one"], &unique("legacy-")).code(0);
    let row = world.schema.text("SELECT stream || ' ' || state::text FROM source_state");
    assert!(row.starts_with("_LEGACY_STATE "), "{row}");
}

#[test]
fn other_messages_do_not_affect_a_read() {
    let Some(world) = World::new() else { return };
    let task = unique("chatty-");
    let done = odd(&world, "chatty", &["one"], &task);
    assert_eq!(done.code(0).json()["status"], "SUCCESS");
    assert_eq!(done.json()["streams"]["one"]["estimate"], json!({"rows": 3}));
    assert_eq!(world.schema.count("one"), 3);
    let lines = |condition: &str| {
        let query = format!("SELECT level || ' ' || message FROM task_log WHERE task_id = '{task}' AND {condition}");
        world.schema.texts(&query)
    };
    for (label, text, count) in [
        ("plain text is a log line", "plain text before anything", 1),
        ("a warning", "something to think about", 1),
        ("below the level", "for developers only", 0),
        ("an unselected stream, and its number of records", "records of stream unselected", 2),
    ] {
        assert_eq!(lines(&format!("message LIKE '%{text}%'")).len(), count, "{label}");
    }
    assert!(lines("message LIKE '%the password is ***%'").len() >= 2, "masked on stdout and on stderr");
    assert_eq!(lines("message LIKE '%hunter2%'"), Vec::<String>::new());
    let sync = world.schema.texts("SELECT DISTINCT sync_id FROM task_log");
    assert_eq!(sync, ["sync"]);
    assert_eq!(lines("level = 'WARN' AND message LIKE '%to think about%'").len(), 1);
}

#[test]
fn renewed_configurations_are_used_until_the_caller_changes_its_own() {
    let Some(world) = World::new() else { return };
    let run = |token: &str| {
        let config = json!({"mode": "renew", "token": token});
        let done = read(&world, ODD, &config, &catalog(&["one"]), &unique("renew-")).run();
        done.hides("-next");
        world.schema.texts("SELECT token FROM one ORDER BY length(token), token").join(" ")
    };
    assert_eq!(run("token"), "token");
    // This run fails after it has used its token.
    assert_eq!(run("token"), "token");
    let used = |text: &str| {
        let own = world.schema.own();
        world.schema.number(&format!("SELECT count(*) FROM {own}.source_config WHERE config::text LIKE '%\"{text}\"%'"))
    };
    assert_eq!(used("token-next-next"), 1);
    assert_eq!(run("token"), "token token-next-next");
    assert_eq!(run("other"), "other token token-next-next", "the caller has changed it");
    assert_eq!(world.schema.number("SELECT count(*) FROM task_log WHERE message LIKE '%token%'"), 0, "masked");
    assert_eq!(world.schema.number("SELECT count(*) FROM task_log WHERE message LIKE 'logged in with ***, %'"), 4);
}

#[test]
fn reads_end_when_the_destination_refuses_all_streams() {
    let Some(world) = World::new() else { return };
    world.schema.execute("CREATE VIEW ticks AS SELECT 1 AS id");
    let task = unique("refused-");
    // This connector does not end on its own.
    let done = read(&world, "syncctl-test/slow:1", &json!({}), &catalog(&["ticks"]), &task).run();
    let document = done.code(3).json();
    assert_eq!(document["class"], "DESTINATION_FAILED", "{done}");
    assert!(document["error"].as_str().is_some_and(|error| error.contains("not a table")), "{done}");
    assert_eq!(world.schema.task(&task).expect("a row").0, "FAILED");
}

#[test]
fn reads_with_a_record_limit_succeed_although_the_connector_never_ends() {
    let Some(world) = World::new() else { return };
    let mut streams = catalog(&["done", "endless", "refreshed", "idle"]);
    streams["streams"][2]["sync_mode"] = json!("full_refresh");
    streams["streams"][2]["destination_sync_mode"] = json!("overwrite");
    // One connector writes until the pipe is closed, the other stops writing but does not end.
    for (label, ending, old) in [
        ("loud", "while :; do rows endless 5 1000; done", None),
        ("silent", "rows endless 5 100; trap : PIPE TERM; while :; do sleep 1; done", Some("7")),
    ] {
        if old.is_some() {
            world.schema.execute("DROP TABLE done, endless, refreshed; CREATE TABLE refreshed (id bigint)");
            world.schema.execute("DELETE FROM source_state; INSERT INTO refreshed VALUES (7)");
        }
        let script = format!(
            "rows done 1 3; state done '{{\"id\":3}}'; status done COMPLETE; rows refreshed 1 2
             status endless STARTED; rows endless 1 4; state endless '{{\"id\":4}}'; {ending}"
        );
        let task = unique("limit-");
        let done = world.script(&script, &streams, &task).with(&["--max-records", "20"]).run();
        let document = done.code(0).json();
        assert_eq!((&document["status"], &document["error"]), (&json!("SUCCESS"), &Value::Null), "{label}: {done}");
        let status = |name: &str| document["streams"][name]["status"].as_str().unwrap_or_default().to_owned();
        let refreshed = if old.is_some() { "CANCELLED" } else { "PARTIAL" };
        let statuses = ["done", "endless", "refreshed", "idle"].map(status);
        assert_eq!(statuses, ["SUCCESS", "PARTIAL", refreshed, "PENDING"], "{label}: {done}");
        let counts = ["done", "endless", "refreshed", "idle"].map(|name| document["streams"][name]["events"].as_u64());
        // Rows that were dropped do not count.
        let refreshed = if old.is_some() { 0 } else { 2 };
        assert_eq!(counts, [3, 15, refreshed, 0].map(Some), "{label}: {done}");
        assert_eq!((world.schema.count("done"), world.schema.count("endless")), (3, 15), "{label}");
        let left = world.schema.texts("SELECT id::text FROM refreshed ORDER BY id");
        assert_eq!(left, old.map_or(vec!["1", "2"], |id| vec![id]), "{label}");
        let stored = world.schema.texts("SELECT stream || ' ' || state::text FROM source_state ORDER BY stream");
        assert_eq!(stored, [r#"done {"id": 3}"#, r#"endless {"id": 4}"#], "{label}");
        assert_eq!(world.schema.task(&task).expect("a row").0, "SUCCESS", "{label}");
        assert_eq!(world.schema.streams(&task), document["streams"], "{label}");
    }
}

#[test]
fn debug_is_passed_to_the_connector() {
    let Some(world) = World::new() else { return };
    let config = json!({"mode": "chatty", "password": "hunter2-hunter2"});
    read(&world, ODD, &config, &catalog(&["one"]), &unique("debug-"))
        .with(&["--debug", "--db-log-level", "debug"])
        .run()
        .code(0);
    let count =
        |text: &str| world.schema.number(&format!("SELECT count(*) FROM task_log WHERE message LIKE '%{text}%'"));
    assert_eq!(count("debug was asked for"), 1);
    assert_eq!(count("for developers only"), 1);
}

#[test]
fn too_long_lines_are_dropped_and_reported() {
    let Some(world) = World::new() else { return };
    let task = unique("endless-");
    let done = odd(&world, "endless", &["one"], &task);
    let document = done.code(1).json();
    assert_eq!(document["class"], "CONNECTOR_FAILED", "{done}");
    assert!(document["error"].as_str().is_some_and(|error| error.contains("bytes was dropped")), "{done}");
    let (status, _) = world.schema.task(&task).expect("a row");
    assert!(["FAILED", "PARTIAL"].contains(&status.as_str()), "{status}");
}

#[test]
fn connectors_see_only_their_documents() {
    let Some(world) = World::new() else { return };
    let task = unique("look-");
    let done = odd(&world, "look", &["one"], &task);
    done.code(0);
    let seen = world.schema.texts("SELECT line FROM one ORDER BY id").join("\n");
    for (label, text) in [
        ("its configuration", "hunter2-hunter2"),
        ("its catalog", "\"streams\""),
        ("its environment", "USE_STREAM_CAPABLE_STATE=true"),
        ("its environment", "AUTO_DETECT_SCHEMA=true"),
        // Local tasks run as the user.
        ("another user than root", if world.place.is_cluster() { "uid=1000" } else { "uid=" }),
    ] {
        assert!(seen.contains(text), "{label} is missing:\n{seen}");
    }
    let destination = world.destination_config();
    for (label, text) in [
        ("the database URL", "postgresql://"),
        ("the database URL", "DATABASE_URL"),
        ("the destination", "destinationType"),
        ("the destination", "defaultSchema"),
        ("the destination's schema", destination["defaultSchema"].as_str().expect("a name")),
        ("the sidecar's secrets", "config.json.gz"),
        ("the service account's token", "serviceaccount"),
    ] {
        assert!(!seen.contains(text), "the connector sees {label}:\n{seen}");
    }
}

#[test]
fn state_files_are_passed_to_the_connector() {
    let Some(world) = World::new() else { return };
    let state = json!([{"type": "STREAM", "stream": {"stream_descriptor": {"name": "one"},
        "stream_state": {"id": 42, "exact": 1}}}]);
    let state = world.json("state.json", &state);
    let config = json!({"mode": "look"});
    read(&world, ODD, &config, &catalog(&["one"]), &unique("given-")).with(&["--state", &state]).run().code(0);
    let seen = world.schema.texts("SELECT line FROM one WHERE line LIKE '%stream_descriptor%'").join("\n");
    assert!(seen.contains("42"), "{seen}");
}

#[test]
fn secrets_are_in_no_table_and_the_log_is_not_empty() {
    let Some(world) = World::new() else { return };
    let task = unique("secrets-");
    let mut destination = world.destination_config();
    // The tests' Postgres may require no password: the secret only must not appear anywhere.
    destination["parameters"] = json!({"application_name": "hunter2-destination"});
    let destination = world.json("secret-destination.json", &destination);
    let config = world.json("secret-config.json", &json!({"password": "hunter2-config", "user": "ann"}));
    let catalog = world.json("catalog.json", &catalog(&["items"]));
    let arguments = ["read", INSTANT, "--config", &config, "--catalog", &catalog, "--destination-config", &destination];
    let done = world.syncctl(&arguments).with(&["--sync-id", "s", "--task-id", &task, "-vv", "-o", "json"]).run();
    done.code(0).hides("hunter2");
    assert!(world.schema.count("task_log") > 0);
    for table in ["task_log", "source_task", "source_state"] {
        let found = world.schema.number(&format!("SELECT count(*) FROM {table} t WHERE t::text LIKE '%hunter2%'"));
        assert_eq!(found, 0, "{table}");
    }
}
