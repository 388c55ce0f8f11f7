//! Specifications, checks, catalogs, states, logs.

use std::time::Duration;

use jiff::Timestamp;
use postgres::types::Type;

use super::support::{Schema, key, log_rows, time};
use crate::airbyte;
use crate::db::{DbError, LogLine, ResultKey, SpecKey, Writer, state};
use crate::failure::{Class, Failure};
use crate::task::to_millis;

const FIRST: &str = "2026-01-01T00:00:00.001Z";
const SECOND: &str = "2026-01-01T00:00:00.002Z";
const THIRD: &str = "2026-01-01T00:00:00.003Z";

fn spec_key() -> SpecKey {
    SpecKey { connector_type: "airbyte".to_owned(), package: "p".to_owned(), version: "1".to_owned() }
}

#[test]
fn a_specification_survives_failures_and_older_attempts() {
    let schema = Schema::new();
    let db = schema.ready();
    let key = spec_key();
    let stored = || {
        let spec = db.spec(&key).expect("readable").expect("stored");
        (spec.specs, spec.error, spec.timestamp)
    };
    assert_eq!(db.spec(&key).expect("readable"), None);
    db.save_spec(&key, time(FIRST), Err("no\0 image")).expect("writable");
    assert_eq!(stored(), (None, Some("no image".to_owned()), time(FIRST)));
    db.save_spec(&key, time(SECOND), Ok(r#"{"a": "x\u0000"}"#)).expect("writable");
    let good = Some(r#"{"a": "x"}"#.to_owned());
    assert_eq!(stored(), (good.clone(), None, time(SECOND)));
    db.save_spec(&key, time(SECOND), Err("the Pod is gone")).expect("writable");
    assert_eq!(stored(), (good.clone(), None, time(SECOND)), "a failure of the same attempt");
    db.save_spec(&key, time(THIRD), Err("late")).expect("writable");
    db.save_spec(&key, time(THIRD), Err("exit code 1")).expect("writable");
    assert_eq!(stored(), (good, Some("late".to_owned()), time(THIRD)), "a failure of a later attempt");
    db.save_spec(&key, time(SECOND), Ok("{}")).expect("writable");
    assert_eq!(stored().2, time(THIRD), "an older attempt");
    db.save_spec(&key, time(THIRD), Ok("[]")).expect("writable");
    assert_eq!(stored(), (Some("[]".to_owned()), None, time(THIRD)), "a success of the same attempt");
}

#[test]
fn specifications_are_stored_by_connector_type() {
    let schema = Schema::new();
    let db = schema.ready();
    let other = SpecKey { connector_type: "other".to_owned(), ..spec_key() };
    db.save_spec(&spec_key(), time(FIRST), Ok("1")).expect("writable");
    db.save_spec(&other, time(FIRST), Ok("2")).expect("writable");
    let specs = |key| db.spec(key).expect("readable").and_then(|spec| spec.specs);
    assert_eq!((specs(&spec_key()), specs(&other)), (Some("1".to_owned()), Some("2".to_owned())));
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
    let other = SpecKey { connector_type: "other".to_owned(), ..spec_key() };
    for (key, spec) in [(&spec_key(), "1"), (&spec_key(), "2"), (&other, "3")] {
        db.save_spec(key, time(if spec == "1" { FIRST } else { SECOND }), Ok(spec)).expect("writable");
    }
    let specs = |key| db.spec(key).expect("readable").and_then(|spec| spec.specs);
    assert_eq!((specs(&spec_key()), specs(&other)), (Some("2".to_owned()), Some("3".to_owned())));
    let types = "SELECT string_agg(connector_type, ' ' ORDER BY connector_type) FROM source_spec";
    assert_eq!(schema.value(types).as_deref(), Some("airbyte other"));
}

#[test]
fn without_the_own_schema_only_airbyte_specifications_are_stored() {
    let mut schema = Schema::new();
    let db = schema.ready();
    let other = SpecKey { connector_type: "other".to_owned(), ..spec_key() };
    db.save_spec(&other, time(FIRST), Ok("1")).expect("writable");
    assert_eq!(schema.value("SELECT count(*) FROM source_spec").as_deref(), Some("0"), "not the console's table");
    schema.sql(&format!("DROP SCHEMA {} CASCADE", schema.own()));
    let error = db.save_spec(&other, time(SECOND), Ok("2")).expect_err("no table for it");
    assert!(error.to_string().contains("SYNCCTL_OWN_SCHEMA"), "{error}");
    db.save_spec(&spec_key(), time(FIRST), Ok("1")).expect("writable");
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
    let db = schema.ready();
    let key = key();
    let status = || db.check(&key.key).expect("readable").map(|check| (check.status, check.description));
    let row = |status: &str, text: &str| Some((status.to_owned(), Some(text.to_owned())));
    assert_eq!(status(), None);
    db.fail_check(&key, time(FIRST), "no Pod").expect("writable");
    assert_eq!(status(), row("FAILED", "no Pod"));
    db.save_check(&key, time(SECOND), "SUCCESS", Some("fine")).expect("writable");
    db.fail_check(&key, time(SECOND), "Pod gone").expect("writable");
    assert_eq!(status(), row("SUCCESS", "fine"), "a controller's failure of the same attempt");
    db.save_check(&key, time(FIRST), "FAILED", Some("old")).expect("writable");
    assert_eq!(status(), row("SUCCESS", "fine"), "an older attempt");
    db.fail_check(&key, time(THIRD), "no image").expect("writable");
    assert_eq!(status(), row("FAILED", "no image"), "a later attempt");
    db.save_check(&key, time(THIRD), "SUCCESS", None).expect("writable");
    assert_eq!(status(), Some(("SUCCESS".to_owned(), None)), "the sidecar replaces the controller's failure");
}

#[test]
fn a_catalog_survives_a_failed_refresh() {
    let schema = Schema::new();
    let db = schema.ready();
    let key = key();
    let stored = || {
        let catalog = db.catalog(&key).expect("readable").expect("stored");
        (catalog.status, catalog.catalog, catalog.description)
    };
    let row = |status: &str, catalog: Option<&str>, text: Option<&str>| {
        (status.to_owned(), catalog.map(str::to_owned), text.map(str::to_owned))
    };
    assert_eq!(db.catalog(&key).expect("readable"), None);
    db.start_catalog(&key, time(FIRST)).expect("writable");
    assert_eq!(stored(), row("RUNNING", None, None));
    db.save_catalog(&key, time(FIRST), r#"{"streams":[]}"#).expect("writable");
    let good = Some(r#"{"streams": []}"#);
    assert_eq!(stored(), row("SUCCESS", good, None));
    db.start_catalog(&key, time(FIRST)).expect("writable");
    assert_eq!(stored(), row("SUCCESS", good, None), "a repeated start");
    db.fail_catalog(&key, time(FIRST), "Pod gone", Writer::Controller).expect("writable");
    db.fail_catalog(&key, time(FIRST), "Pod gone", Writer::Sidecar).expect("writable");
    assert_eq!(stored(), row("SUCCESS", good, None), "a failure after the success");
    db.start_catalog(&key, time(SECOND)).expect("writable");
    assert_eq!(stored(), row("RUNNING", good, None), "a refresh");
    db.fail_catalog(&key, time(SECOND), "denied", Writer::Sidecar).expect("writable");
    db.fail_catalog(&key, time(SECOND), "exit code 1", Writer::Controller).expect("writable");
    assert_eq!(stored(), row("FAILED", good, Some("denied")), "a failed refresh");
    db.save_catalog(&key, time(FIRST), "[]").expect("writable");
    assert_eq!(stored(), row("FAILED", good, Some("denied")), "an older refresh");
}

/// Stores a failure in one of the tables; returns whether it counts.
type Write<'a> = &'a dyn Fn(&str, Writer) -> bool;

#[test]
fn the_failure_of_a_terminated_sidecar_is_provisional() {
    let schema = Schema::new();
    let db = schema.ready();
    let (spec, key, at) = (spec_key(), key(), time(FIRST));
    let provisional = Failure::terminated().to_string();
    let cause = "IMAGE_PULL: cannot pull image";
    let writes: [(&str, Write<'_>); 3] = [
        ("spec", &|text, _| db.save_spec(&spec, at, Err(text)).expect("writable")),
        ("check", &|text, _| db.fail_check(&key, at, text).expect("writable")),
        ("catalog", &|text, by| db.fail_catalog(&key, at, text, by).expect("writable")),
    ];
    let stored = || {
        [
            db.spec(&spec).expect("readable").expect("stored").error,
            db.check(&key.key).expect("readable").expect("stored").description,
            db.catalog(&key).expect("readable").expect("stored").description,
        ]
    };
    for (table, write) in writes {
        assert!(write(&provisional, Writer::TerminatedSidecar), "{table}: the first outcome");
        assert!(write(cause, Writer::Controller), "{table}: the controller knows the cause");
        assert!(!write(&provisional, Writer::TerminatedSidecar), "{table}: a terminated sidecar does not");
        assert!(!write("POD_DELETED: late", Writer::Controller), "{table}: the first controller wins");
    }
    assert_eq!(stored(), [(); 3].map(|()| Some(cause.to_owned())));
    db.save_check(&key, time(SECOND), "SUCCESS", Some(&provisional)).expect("writable");
    assert!(!db.fail_check(&key, time(SECOND), cause).expect("writable"), "a message of a success");
}

#[test]
fn save_states_replaces_states_per_stream() {
    let schema = Schema::new();
    let db = schema.ready();
    let pair = |stream: &str, state: &str| (stream.to_owned(), state.to_owned());
    db.save_states("s", &[pair("b", "1"), pair("a", "2"), pair("b", r#"{"x":"\\u0000\u0000"}"#)]).expect("writable");
    db.save_states("other", &[pair("_GLOBAL_STATE", "{}")]).expect("writable");
    db.save_states("s", &[]).expect("nothing to do");
    db.save_states("s", &[pair("a", "3")]).expect("writable");
    assert_eq!(db.states("s").expect("readable"), [pair("a", "3"), pair("b", r#"{"x": "\\u0000"}"#)]);
    db.save_states("s", &[pair("c", "4"), pair("d", "5")]).expect("writable");
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
    let error = db.save_states("s", &states).expect_err("not JSON");
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
    assert_eq!(stored, (0..500).map(|number| format!("line {number}")).collect::<Vec<_>>());
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
    let lines = db.last_logs("task", 3).expect("readable");
    let messages: Vec<&str> = lines.iter().map(|line| line.message.as_str()).collect();
    assert_eq!(messages, ["line 287", "line 288", "line 289"]);
    let first = LogLine {
        level: "INFO".to_owned(),
        logger: "source".to_owned(),
        message: "line 287".to_owned(),
        timestamp: rows[287].timestamp,
    };
    assert_eq!(lines[0], first);
    assert_eq!(db.last_logs("task", 1000).expect("readable").len(), 290);
    assert_eq!(db.last_logs("unknown", 3).expect("readable"), []);
}

#[test]
fn a_stale_refresh_fails_and_its_late_success_counts() {
    let schema = Schema::new();
    let db = schema.ready();
    let named = |name: &str| ResultKey { key: name.to_owned(), ..key() };
    let stored = |name: &str| db.catalog(&named(name)).expect("readable").expect("stored");
    let now = to_millis(Timestamp::now());
    db.save_catalog(&named("lost"), time(FIRST), "[1]").expect("writable");
    db.start_catalog(&named("lost"), time(SECOND)).expect("writable");
    db.start_catalog(&named("new"), now).expect("writable");
    db.save_catalog(&named("done"), time(SECOND), "[2]").expect("writable");
    assert_eq!(db.fail_stale_catalogs(Duration::from_hours(1)), Ok(vec![named("lost")]));
    assert_eq!(db.fail_stale_catalogs(Duration::from_hours(1)), Ok(vec![]));
    let lost = stored("lost");
    assert_eq!((lost.status.as_str(), lost.catalog.as_deref(), lost.timestamp), ("FAILED", Some("[1]"), time(SECOND)));
    assert_eq!(lost.description.as_deref(), Some("ABANDONED: no outcome within 60 minutes"));
    assert_eq!((stored("new").status.as_str(), stored("done").status.as_str()), ("RUNNING", "SUCCESS"));
    db.fail_catalog(&named("lost"), time(SECOND), "Pod gone", Writer::Controller).expect("writable");
    assert_eq!(stored("lost"), lost, "the controller does not replace an outcome");
    db.save_catalog(&named("lost"), time(SECOND), "[3]").expect("writable");
    let late = stored("lost");
    assert_eq!((late.status.as_str(), late.catalog.as_deref(), late.description), ("SUCCESS", Some("[3]"), None));
}

#[test]
fn states_of_a_new_kind_replace_those_of_another() {
    let schema = Schema::new();
    let db = schema.ready();
    let pairs = |keys: &[&str]| -> Vec<_> { keys.iter().map(|key| ((*key).to_owned(), "1".to_owned())).collect() };
    for (label, before, saved, expected) in [
        ("stream after global", &["_GLOBAL_STATE"][..], &["a"][..], &["a"][..]),
        ("stream after legacy", &["_LEGACY_STATE"], &["a", "b"], &["a", "b"]),
        ("stream after both", &["_GLOBAL_STATE", "_LEGACY_STATE"], &["a"], &["a"]),
        ("global after streams", &["a", "b"], &["_GLOBAL_STATE"], &["_GLOBAL_STATE"]),
        ("legacy after streams", &["a"], &["_LEGACY_STATE"], &["_LEGACY_STATE"]),
        ("global after legacy", &["_LEGACY_STATE"], &["_GLOBAL_STATE"], &["_GLOBAL_STATE"]),
        ("legacy after global", &["_GLOBAL_STATE"], &["_LEGACY_STATE"], &["_LEGACY_STATE"]),
        ("one more stream", &["a"], &["b"], &["a", "b"]),
        ("the same", &["_GLOBAL_STATE"], &["_GLOBAL_STATE"], &["_GLOBAL_STATE"]),
        ("both at once", &["a", "_LEGACY_STATE"], &["a", "_GLOBAL_STATE"], &["_GLOBAL_STATE", "a"]),
        ("nothing", &["_GLOBAL_STATE"], &[], &["_GLOBAL_STATE"]),
    ] {
        // save_states would delete some of these.
        for (stream, _) in pairs(before) {
            let sql = "INSERT INTO source_state (sync_id, stream, state) VALUES ($1, $2, '0')";
            let params = [(&label as _, Type::TEXT), (&stream as _, Type::TEXT)];
            db.run("prepare", |tx| tx.execute(sql, &params)).expect(label);
        }
        db.save_states(label, &pairs(saved)).expect(label);
        let rows = db.states(label).expect("readable");
        let mut streams: Vec<&str> = rows.iter().map(|(stream, _)| stream.as_str()).collect();
        streams.sort_unstable();
        assert_eq!(streams, expected, "{label}");
        assert!(saved.iter().all(|key| rows.contains(&((*key).to_owned(), "1".to_owned()))), "{label}: {rows:?}");
    }
    assert_eq!(db.states("stream after global").expect("readable").len(), 1, "other syncs were left alone");
    assert_eq!(state::SHARED, [airbyte::state::GLOBAL_KEY, airbyte::state::LEGACY_KEY]);
}
