//! Specifications, checks, catalogs, states, logs.

use std::time::Duration;

use jiff::Timestamp;
use postgres::types::Type;

use super::support::{Schema, attempt, log_rows, time};
use crate::db::{Db, DbError, Finding, LogLine, LogRow, ResultKey, SpecKey};
use crate::failure::{Class, Failure};
use crate::task::{Task, TaskKind, to_millis};

const FIRST: &str = "2026-01-01T00:00:00.001Z";
const SECOND: &str = "2026-01-01T00:00:00.002Z";
const THIRD: &str = "2026-01-01T00:00:00.003Z";

fn spec(db: &Db, task: &Task) -> (Option<String>, Option<String>, Timestamp) {
    let spec = db.spec(&SpecKey::of(task)).expect("readable").expect("stored");
    (spec.specs, spec.error, spec.timestamp)
}

/// An attempt that is not recorded: only the time at which it started orders it.
fn at(kind: TaskKind, started_at: &str) -> Task {
    attempt(kind, "t", started_at)
}

fn store(db: &Db, task: &Task, finding: Finding<'_>) {
    db.store_result(task, finding).expect("writable");
}

#[test]
fn a_specification_survives_failures_and_older_attempts() {
    let schema = Schema::new();
    let db = schema.ready_without_own();
    let [first, second, third] = [FIRST, SECOND, THIRD].map(|time| at(TaskKind::Spec, time));
    let stored = || spec(&db, &first);
    assert_eq!(db.spec(&SpecKey::of(&first)).expect("readable"), None);
    store(&db, &first, Finding::Failure("no\0 image"));
    assert_eq!(stored(), (None, Some(r"no\u0000 image".to_owned()), time(FIRST)));
    store(&db, &second, Finding::Document(r#"{"a": "x\u0000"}"#));
    let good = Some(r#"{"a": "x"}"#.to_owned());
    assert_eq!(stored(), (good.clone(), None, time(SECOND)));
    store(&db, &second, Finding::Failure("the Pod is gone"));
    assert_eq!(stored(), (good.clone(), None, time(SECOND)), "a failure of the same attempt");
    store(&db, &third, Finding::Failure("late"));
    store(&db, &third, Finding::Failure("exit code 1"));
    assert_eq!(stored(), (good, Some("late".to_owned()), time(THIRD)), "a failure of a later attempt");
    store(&db, &second, Finding::Document("{}"));
    assert_eq!(stored().2, time(THIRD), "an older attempt");
    store(&db, &third, Finding::Document("[]"));
    assert_eq!(stored(), (Some("[]".to_owned()), None, time(THIRD)), "a success of the same attempt");
}

#[test]
fn specifications_are_stored_by_connector_type() {
    let mut schema = Schema::new();
    let db = schema.ready();
    let airbyte = at(TaskKind::Spec, FIRST);
    let other = Task { connector_type: "other".to_owned(), ..airbyte.clone() };
    store(&db, &airbyte, Finding::Document("1"));
    store(&db, &other, Finding::Document("2"));
    assert_eq!((spec(&db, &airbyte).0, spec(&db, &other).0), (Some("1".to_owned()), Some("2".to_owned())));
    assert_eq!(schema.value("SELECT count(*) FROM source_spec").as_deref(), Some("1"), "the console's key has no type");
}

#[test]
fn a_spec_table_of_an_earlier_version_takes_every_type() {
    let mut schema = Schema::new();
    let name = schema.name.clone();
    schema.sql(&format!(
        "CREATE SCHEMA {name};
         CREATE TABLE {name}.source_spec (package varchar(200) NOT NULL, version text NOT NULL, specs jsonb,
           timestamp timestamptz(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, error text,
           connector_type text NOT NULL DEFAULT 'airbyte',
           CONSTRAINT source_spec_pkey PRIMARY KEY (package, version, connector_type))"
    ));
    let db = schema.ready();
    let airbyte = at(TaskKind::Spec, FIRST);
    let other = Task { connector_type: "other".to_owned(), ..airbyte.clone() };
    for (task, document) in [(&airbyte, "1"), (&airbyte, "2"), (&other, "3")] {
        store(&db, task, Finding::Document(document));
    }
    assert_eq!((spec(&db, &airbyte).0, spec(&db, &other).0), (Some("2".to_owned()), Some("3".to_owned())));
    let types = "SELECT string_agg(connector_type, ' ' ORDER BY connector_type) FROM source_spec";
    assert_eq!(schema.value(types).as_deref(), Some("airbyte other"));
}

#[test]
fn without_the_own_schema_only_airbyte_specifications_are_stored() {
    let schema = Schema::new();
    let db = schema.ready_without_own();
    let airbyte = at(TaskKind::Spec, FIRST);
    let other = Task { connector_type: "other".to_owned(), ..airbyte.clone() };
    let error = db.store_result(&other, Finding::Document("2")).expect_err("no table for it");
    assert!(error.to_string().contains("SYNCCTL_OWN_SCHEMA"), "{error}");
    store(&db, &airbyte, Finding::Document("1"));
}

#[test]
fn the_go_sidecar_can_write_into_our_tables() {
    let mut schema = Schema::new();
    schema.ready();
    schema.sql(
        "INSERT INTO source_spec (package, version, specs) VALUES ('p', '1', '{}')
           ON CONFLICT ON CONSTRAINT source_spec_pkey DO NOTHING;
         INSERT INTO source_check (package, version, key, status) VALUES ('p', '1', 'k', 'SUCCESS')
           ON CONFLICT ON CONSTRAINT source_check_pkey DO NOTHING;
         INSERT INTO source_catalog (package, version, key, status) VALUES ('p', '1', 'k', 'SUCCESS')
           ON CONFLICT ON CONSTRAINT source_catalog_pkey DO NOTHING;
         INSERT INTO source_state (sync_id, stream, state) VALUES ('s', 'a', '{}')
           ON CONFLICT ON CONSTRAINT source_state_pkey DO NOTHING;
         INSERT INTO source_task (sync_id, task_id, package, version, status) VALUES ('s', 't', 'p', '1', 'RUNNING')
           ON CONFLICT ON CONSTRAINT source_task_pkey DO NOTHING;
         INSERT INTO task_log (id, level, logger, message, sync_id, task_id)
           VALUES (md5(random()::text)::uuid, 'INFO', 'l', 'm', '', '') ON CONFLICT ON CONSTRAINT task_log_pkey DO NOTHING",
    );
}

#[test]
fn a_check_stores_the_result_of_the_latest_attempt() {
    let schema = Schema::new();
    let db = schema.ready_without_own();
    let [first, second, third] = [FIRST, SECOND, THIRD].map(|time| at(TaskKind::Check, time));
    let check = |succeeded, message| Finding::Check { succeeded, message };
    let status = || db.result(&first).expect("readable").map(|check| (check.succeeded, check.description));
    let row = |succeeded, text: &str| Some((succeeded, Some(text.to_owned())));
    assert_eq!(status(), None);
    store(&db, &first, Finding::Failure("no Pod"));
    assert_eq!(status(), row(false, "no Pod"));
    store(&db, &second, check(true, Some("fine")));
    store(&db, &second, Finding::Failure("Pod gone"));
    assert_eq!(status(), row(true, "fine"), "a failure of the same attempt");
    store(&db, &first, check(false, Some("old")));
    assert_eq!(status(), row(true, "fine"), "an older attempt");
    store(&db, &third, Finding::Failure("no image"));
    assert_eq!(status(), row(false, "no image"), "a later attempt");
    store(&db, &third, check(true, None));
    assert_eq!(status(), Some((true, None)), "a result replaces a failure");
}

/// Status, catalog and description of the only row.
fn catalog(schema: &mut Schema) -> Option<String> {
    schema.value("SELECT concat_ws(' ', status, coalesce(catalog::text, '-'), description) FROM source_catalog")
}

#[test]
fn a_catalog_survives_a_failed_refresh() {
    let mut schema = Schema::new();
    let db = schema.ready_without_own();
    let [first, second] = [FIRST, SECOND].map(|time| at(TaskKind::Discover, time));
    let start = |task| db.start_catalog(task).expect("writable");
    let good = r#"{"streams": []}"#;
    start(&first);
    assert_eq!(catalog(&mut schema).as_deref(), Some("RUNNING -"));
    store(&db, &first, Finding::Document(good));
    assert_eq!(catalog(&mut schema), Some(format!("SUCCESS {good}")));
    start(&first);
    assert_eq!(catalog(&mut schema), Some(format!("SUCCESS {good}")), "a repeated start");
    store(&db, &first, Finding::Failure("Pod gone"));
    assert_eq!(catalog(&mut schema), Some(format!("SUCCESS {good}")), "a failure after the success");
    start(&second);
    assert_eq!(catalog(&mut schema), Some(format!("RUNNING {good}")), "a refresh");
    store(&db, &second, Finding::Failure("denied"));
    store(&db, &second, Finding::Failure("exit code 1"));
    assert_eq!(catalog(&mut schema), Some(format!("FAILED {good} denied")), "a failed refresh");
    store(&db, &first, Finding::Document("[]"));
    assert_eq!(catalog(&mut schema), Some(format!("FAILED {good} denied")), "an older refresh");
}

#[test]
fn the_failure_of_a_terminated_sidecar_is_provisional() {
    let provisional = Failure::terminated().to_string();
    let cause = "IMAGE_PULL: cannot pull image";
    for kind in [TaskKind::Spec, TaskKind::Check, TaskKind::Discover] {
        for is_recorded in [false, true] {
            let schema = Schema::new();
            let db = if is_recorded { schema.ready() } else { schema.ready_without_own() };
            let [first, second] = [FIRST, SECOND].map(|time| attempt(kind, time, time));
            db.start_attempt(&first, None).expect("writable");
            let fail = |task, text: &str| db.store_result(task, Finding::Failure(text)).expect("writable");
            assert!(fail(&first, &provisional), "{kind}: the first outcome");
            assert!(fail(&first, cause), "{kind}: the controller knows the cause");
            assert!(!fail(&first, &provisional), "{kind}: a terminated sidecar does not");
            assert!(!fail(&first, "POD_DELETED: late"), "{kind}: the first controller wins");
            let stored = db.result(&first).expect("readable").expect("a result");
            assert_eq!(stored.description.as_deref(), Some(cause), "{kind}");
            if kind == TaskKind::Check {
                db.start_attempt(&second, None).expect("writable");
                store(&db, &second, Finding::Check { succeeded: true, message: Some(&provisional) });
                assert!(!fail(&second, cause), "a message of a success");
            }
        }
    }
}

#[test]
fn save_states_replaces_states_per_stream() {
    let schema = Schema::new();
    let db = schema.ready();
    let pair = |stream: &str, state: &str| (stream.to_owned(), state.to_owned());
    db.save_states("s", &[pair("b", "1"), pair("a", "2"), pair("b", r#"{"x":"\\u0000\u0000"}"#)], &[])
        .expect("writable");
    db.save_states("other", &[pair("_GLOBAL_STATE", "{}")], &[]).expect("writable");
    db.save_states("s", &[], &[]).expect("nothing to do");
    db.save_states("s", &[pair("a", "3")], &[]).expect("writable");
    assert_eq!(
        db.states("s").expect("readable"),
        [pair("a", "3"), pair("b", r#"{"_syncctl_text": "{\"x\":\"\\\\u0000\\u0000\"}"}"#)]
    );
    db.save_states("s", &[pair("c", "4"), pair("d", "5")], &[]).expect("writable");
    db.clear_states("s", Some(&["a", "c"]), &["c"]).expect("writable");
    let left = || db.states("s").expect("readable").into_iter().map(|(stream, _)| stream).collect::<Vec<_>>();
    assert_eq!(left(), ["b", "c", "d"]);
    db.clear_states("s", None, &["d"]).expect("writable");
    assert_eq!(left(), ["d"]);
    db.clear_states("s", None, &[]).expect("writable");
    assert_eq!(left(), [""; 0]);
    assert_eq!(db.states("other").expect("readable").len(), 1);
}

#[test]
fn save_states_stores_all_or_none() {
    let schema = Schema::new();
    let db = schema.ready();
    let states = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "not JSON, hunter2".to_owned())];
    let error = db.save_states("s", &states, &[]).expect_err("not JSON");
    assert!(matches!(error, DbError::ServerError { .. }) && error.class() == Class::DatabaseError, "{error:?}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    assert_eq!(db.states("s").expect("readable"), []);
}

#[test]
fn insert_logs_keeps_order_and_stores_once() {
    let mut schema = Schema::new();
    let db = schema.ready();
    let rows = log_rows(500);
    db.insert_logs(&rows[..300]).expect("writable");
    db.insert_logs(&rows).expect("writable");
    db.insert_logs(&[]).expect("nothing to do");
    let stored = schema.admin.query("SELECT message FROM task_log ORDER BY timestamp, id", &[]).expect("readable");
    let stored: Vec<String> = stored.iter().map(|row| row.get(0)).collect();
    assert_eq!(stored, (0..500).map(|number| format!(r"line {number}\u0000")).collect::<Vec<_>>());
}

#[test]
fn last_logs_returns_lines_in_order() {
    let schema = Schema::new();
    let db = schema.ready();
    let mut rows = log_rows(300);
    for row in &mut rows[290..] {
        row.task_id = "another".to_owned();
    }
    db.insert_logs(&rows).expect("writable");
    let lines = db.last_logs("task", None, 3).expect("readable");
    let messages: Vec<&str> = lines.iter().map(|line| line.message.as_str()).collect();
    assert_eq!(messages, [r"line 287\u0000", r"line 288\u0000", r"line 289\u0000"]);
    let first = LogLine {
        level: "INFO".to_owned(),
        logger: "source".to_owned(),
        message: r"line 287\u0000".to_owned(),
        timestamp: rows[287].timestamp,
    };
    assert_eq!(lines[0], first);
    assert_eq!(db.last_logs("task", None, 1000).expect("readable").len(), 290);
    assert_eq!(db.last_logs("unknown", None, 3).expect("readable"), []);
    let long = "\u{1f600}".repeat(4000);
    let long = log_rows(300).into_iter().map(|row| LogRow { task_id: "long".to_owned(), message: long.clone(), ..row });
    db.insert_logs(&long.collect::<Vec<_>>()).expect("writable");
    let lines = db.last_logs("long", None, 1000).expect("readable");
    assert_eq!((lines.len(), lines[261].timestamp), (262, rows[299].timestamp), "the last 4 MiB");
}

#[test]
fn a_stale_refresh_fails_and_its_late_success_counts() {
    let mut schema = Schema::new();
    let db = schema.ready_without_own();
    let named = |key: &str, time| Task { storage_key: key.to_owned(), ..at(TaskKind::Discover, time) };
    let mut stored = |key: &str| {
        let row = "SELECT concat_ws(' ', status, catalog::text, description) FROM source_catalog WHERE key";
        schema.value(&format!("{row} = '{key}'")).expect("a row")
    };
    let new = Task { started_at: to_millis(Timestamp::now()), ..named("new", FIRST) };
    store(&db, &named("lost", FIRST), Finding::Document("[1]"));
    db.start_catalog(&named("lost", SECOND)).expect("writable");
    db.start_catalog(&new).expect("writable");
    store(&db, &named("done", SECOND), Finding::Document("[2]"));
    let lost = ResultKey::of(&named("lost", SECOND));
    assert_eq!(db.fail_stale_catalogs(Duration::from_hours(1)), Ok(vec![lost]));
    assert_eq!(db.fail_stale_catalogs(Duration::from_hours(1)), Ok(vec![]));
    let failed = "FAILED [1] ABANDONED: no outcome within 60 minutes";
    assert_eq!(stored("lost"), failed);
    assert_eq!((stored("new").as_str(), stored("done").as_str()), ("RUNNING", "SUCCESS [2]"));
    store(&db, &named("lost", SECOND), Finding::Failure("Pod gone"));
    assert_eq!(stored("lost"), failed, "a failure does not replace an outcome");
    store(&db, &named("lost", SECOND), Finding::Document("[3]"));
    assert_eq!(stored("lost"), "SUCCESS [3]");
}

#[test]
fn states_of_a_new_kind_replace_those_of_another() {
    let schema = Schema::new();
    let db = schema.ready();
    let pairs = |keys: &[&str]| -> Vec<_> { keys.iter().map(|key| ((*key).to_owned(), "1".to_owned())).collect() };
    for (label, before, saved, superseded, expected) in [
        ("stream after global", &["_GLOBAL_STATE"][..], &["a"][..], &[][..], &["_GLOBAL_STATE", "a"][..]),
        ("stream after legacy", &["_LEGACY_STATE"], &["a", "b"], &[], &["a", "b"]),
        ("stream after both", &["_GLOBAL_STATE", "_LEGACY_STATE"], &["a"], &[], &["_GLOBAL_STATE", "a"]),
        ("global after streams", &["a", "b"], &["_GLOBAL_STATE"], &[], &["_GLOBAL_STATE", "a", "b"]),
        ("global in place of one", &["a", "b"], &["_GLOBAL_STATE"], &["b", "c"], &["_GLOBAL_STATE", "a"]),
        ("legacy after streams", &["a"], &["_LEGACY_STATE"], &[], &["_LEGACY_STATE"]),
        ("global after legacy", &["_LEGACY_STATE"], &["_GLOBAL_STATE"], &[], &["_GLOBAL_STATE"]),
        ("legacy after global", &["_GLOBAL_STATE"], &["_LEGACY_STATE"], &[], &["_LEGACY_STATE"]),
        ("one more stream", &["a"], &["b"], &[], &["a", "b"]),
        ("the same", &["_GLOBAL_STATE"], &["_GLOBAL_STATE"], &["_GLOBAL_STATE"], &["_GLOBAL_STATE"]),
        ("both at once", &["a", "_LEGACY_STATE"], &["a", "_GLOBAL_STATE"], &["a"], &["_GLOBAL_STATE", "a"]),
        ("nothing", &["_GLOBAL_STATE"], &[], &["_GLOBAL_STATE"], &["_GLOBAL_STATE"]),
    ] {
        // save_states would delete some of these.
        for (stream, _) in pairs(before) {
            let sql = "INSERT INTO source_state (sync_id, stream, state) VALUES ($1, $2, '0')";
            let params = [(&label as _, Type::TEXT), (&stream as _, Type::TEXT)];
            db.run("prepare", |tx| tx.execute(sql, &params)).expect(label);
        }
        let superseded: Vec<String> = superseded.iter().map(|key| (*key).to_owned()).collect();
        db.save_states(label, &pairs(saved), &superseded).expect(label);
        let rows = db.states(label).expect("readable");
        let mut streams: Vec<&str> = rows.iter().map(|(stream, _)| stream.as_str()).collect();
        streams.sort_unstable();
        assert_eq!(streams, expected, "{label}");
        assert!(saved.iter().all(|key| rows.contains(&((*key).to_owned(), "1".to_owned()))), "{label}: {rows:?}");
    }
    assert_eq!(db.states("stream after global").expect("readable").len(), 2, "other syncs were left alone");
}
