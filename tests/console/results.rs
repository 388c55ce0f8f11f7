//! Results of spec, check, discover and read beside the rows that the console writes while it waits, with a clock that is
//! ahead of or behind the database's.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{
    DEADLINE, Http, INSTANT, MANUAL, SLOW, Service, World, body, ended, eventually, json, post, read, unique,
    wait_empty,
};

/// Fails discover without any configuration.
const ODD: &str = "syncctl-test/odd:1";
/// Clocks of the console.
const CLOCKS: [&str; 2] = ["-5 minutes", "5 minutes"];

fn package(image: &str) -> &str {
    image.rsplit_once(':').expect("an image with a version").0
}

/// `GET /spec`; then what the console writes once it is answered.
fn ask_for_spec(http: &Http, image: &str) {
    let (package, version) = image.rsplit_once(':').expect("an image with a version");
    let (status, answer) = http.call("/spec", &[("package", package), ("version", version)], None);
    assert_eq!((status, &answer["ok"]), (200, &json!(true)), "{answer}");
}

fn write_pending(world: &World, image: &str, clock: &str) {
    world.schema.execute(&format!(
        "INSERT INTO source_spec (package, version, specs, timestamp, error)
         VALUES ('{}', '1', NULL, now() + interval '{clock}', 'pending')
         ON CONFLICT (package, version) DO UPDATE SET specs = NULL, timestamp = excluded.timestamp, error = 'pending'",
        package(image)
    ));
}

fn ask_for_catalog(http: &Http, image: &str, key: &str) {
    let (status, answer) = post(http, "/discover", image, &[("storageKey", key)], &json!({"config": {}}));
    assert_eq!((status, &answer["ok"]), (200, &json!(true)), "{answer}");
}

fn write_running(world: &World, image: &str, key: &str, clock: &str) {
    world.schema.execute(&format!(
        "INSERT INTO source_catalog (package, version, key, timestamp, status, description)
         VALUES ('{}', '1', '{key}', now() + interval '{clock}', 'RUNNING', 'RUNNING')
         ON CONFLICT (package, version, key) DO UPDATE SET timestamp = excluded.timestamp, status = 'RUNNING',
           description = 'RUNNING'",
        package(image)
    ));
}

/// Waits until a row says something else than that its caller waits.
fn wait_for(world: &World, column: &str, table: &str, condition: &str) -> String {
    let query = format!("SELECT {column} FROM {table} WHERE {condition}");
    eventually("a result", DEADLINE, || {
        let found = world.schema.texts(&query).pop()?;
        (!found.starts_with("RUNNING") && !found.starts_with("pending")).then_some(found)
    })
}

const SPEC: &str = "coalesce(error, specs ->> 'documentationUrl', 'pending')";
const CATALOG: &str = "concat_ws(' ', status, catalog #>> '{streams,0,name}', description)";

#[test]
fn a_result_arrives_before_and_after_the_row_of_the_console() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    for clock in CLOCKS {
        let spec = || wait_for(&world, SPEC, "source_spec", "package = 'syncctl-test/instant'");
        let catalog = |key: &str| wait_for(&world, CATALOG, "source_catalog", &format!("key = '{key}'"));
        ask_for_spec(&service.http, INSTANT);
        write_pending(&world, INSTANT, clock);
        assert_eq!(spec(), "https://example.com/instant", "{clock}");
        write_pending(&world, INSTANT, clock);
        assert_eq!(spec(), "https://example.com/instant", "{clock}: restored");

        let (good, bad) = (unique("good-"), unique("bad-"));
        for (image, key, expected) in [
            (INSTANT, &good, "SUCCESS items"),
            (ODD, &bad, "FAILED CONNECTOR_FAILED: the configuration has no account"),
        ] {
            ask_for_catalog(&service.http, image, key);
            write_running(&world, image, key, clock);
            assert_eq!(catalog(key), expected, "{clock}");
            write_running(&world, image, key, clock);
            assert_eq!(catalog(key), expected, "{clock}: restored");
        }
        let key = unique("check-");
        let (status, answer) = service.http.check(INSTANT, &key, &json!({"password": "wrong"}));
        assert_eq!(status, 200, "{answer}");
        let checked =
            wait_for(&world, "concat_ws(' ', status, description)", "source_check", &format!("key = '{key}'"));
        assert!(checked.starts_with("FAILED the password is "), "{checked}");
    }
    wait_empty(&world);
}

#[test]
fn a_command_returns_its_own_result_while_the_console_writes_the_row() {
    let Some(world) = World::new() else { return };
    let config = world.json("config.json", &json!({}));
    // Creates the tables.
    world.syncctl(&["spec", INSTANT]).run().code(0);
    for clock in CLOCKS {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    write_pending(&world, INSTANT, clock);
                    write_running(&world, INSTANT, "k", clock);
                }
            });
            let spec = world.syncctl(&["spec", INSTANT, "-o", "json"]).run();
            let discover = ["discover", INSTANT, "--config", &config, "--storage-key", "k", "-o", "json"];
            let catalog = world.syncctl(&discover).run();
            done.store(true, Ordering::SeqCst);
            assert_eq!(spec.code(0).json()["documentationUrl"], "https://example.com/instant", "{clock}");
            assert_eq!(catalog.code(0).json()["streams"][0]["name"], "items", "{clock}");
        });
    }
}

/// What the console writes into the row of a read that a user has started.
fn write_started(world: &World, task: &str, clock: &str) {
    world.schema.execute(&format!(
        "UPDATE source_task SET status = 'RUNNING', description = 'Started', started_by = '{MANUAL}',
           started_at = now() + interval '{clock}', updated_at = now() + interval '{clock}' WHERE task_id = '{task}'"
    ));
}

#[test]
fn a_repeated_read_is_recognized_after_the_console_has_written_its_row() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    for clock in CLOCKS {
        let (sync, task) = (unique("sync-"), unique("again-"));
        read(&service, SLOW, &sync, &task, MANUAL, &["ticks"]);
        write_started(&world, &task, clock);
        let again = read(&service, SLOW, &sync, &task, MANUAL, &["ticks"]);
        assert_eq!(again["taskStatus"], "RUNNING", "{clock}");
        let query = [("syncId", sync.as_str()), ("taskId", task.as_str()), ("startedBy", MANUAL)];
        let (status, other) = post(&service, "/read", SLOW, &query, &body(&["ticks", "others"]));
        assert_eq!((status, &other["taskId"]), (409, &json!(task)), "{other}");
        super::cancel_task(&service, package(SLOW), &sync, &task);
    }
    wait_empty(&world);
}

#[test]
fn the_outcome_of_a_read_is_restored_after_the_console_has_written_its_row() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    for clock in CLOCKS {
        let task = unique("quick-");
        read(&service, INSTANT, &unique("sync-"), &task, MANUAL, &["items"]);
        assert_eq!(ended(&world, &task), ("SUCCESS".to_owned(), String::new()));
        write_started(&world, &task, clock);
        assert_eq!(ended(&world, &task), ("SUCCESS".to_owned(), String::new()), "{clock}");
        assert_eq!(world.schema.streams(&task)["items"]["status"], "SUCCESS", "{clock}");
    }
    wait_empty(&world);
}

#[test]
fn tables_of_an_older_console_are_used() {
    let Some(world) = World::new() else { return };
    world.schema.execute(
        "CREATE TABLE source_task (sync_id TEXT NOT NULL, task_id TEXT NOT NULL, package TEXT NOT NULL,
           version TEXT NOT NULL, started_at TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
           updated_at TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, started_by JSONB, status TEXT NOT NULL,
           description TEXT, CONSTRAINT source_task_pkey PRIMARY KEY (task_id))",
    );
    let service = Service::start(&world);
    let task = unique("old-");
    read(&service, INSTANT, "sync", &task, MANUAL, &["items"]);
    let status = |task: &str| wait_for(&world, "status", "source_task", &format!("task_id = '{task}'"));
    assert_eq!(status(&task), "SUCCESS");
    assert_eq!(world.schema.streams(&task)["items"]["status"], "SUCCESS");
    let failed = unique("old-");
    read(&service, "syncctl-test/none:1", "sync", &failed, MANUAL, &["items"]);
    assert_eq!(status(&failed), "FAILED");
    let (code, answer) = service.http.call(&format!("/tasks/{failed}"), &[], None);
    let error = answer["task"]["error"].as_str().unwrap_or_default();
    assert!(code == 200 && error.contains("syncctl-test/none"), "{answer}");
    let (code, answer) = service.http.call("/tasks", &[("syncId", "sync")], None);
    assert_eq!((code, answer["tasks"].as_array().map(Vec::len)), (200, Some(2)), "{answer}");
    wait_empty(&world);
}
