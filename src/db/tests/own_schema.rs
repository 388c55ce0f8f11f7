//! The schema for tables that other programs do not know: with and without the right to create it.

use std::thread;
use std::time::Duration;

use super::support::{Schema, target, task, url_with};
use crate::db::{ConcurrencyPolicy, Db, RequestMark, StartOutcome};

fn mark() -> RequestMark {
    RequestMark { fingerprint: "f".to_owned(), installation: "i".to_owned() }
}

/// The fingerprint of the request that has started a task.
fn request(db: &Db, task_id: &str) -> Option<String> {
    match db.start_task(&task(task_id), None, ConcurrencyPolicy::Forbid).expect("writable") {
        StartOutcome::Exists(row) => row.request,
        other => panic!("{other:?}"),
    }
}

/// What the console does to the row of a task that it has started by hand.
const CONSOLE: &str = "UPDATE source_task SET started_by = '{\"trigger\": \"manual\"}', description = 'Started'";

#[test]
fn a_request_is_recognized_after_the_console_has_replaced_started_by() {
    let mut schema = Schema::new();
    let db = schema.ready();
    db.start_task(&task("t"), Some(&mark()), ConcurrencyPolicy::Forbid).expect("writable");
    let started_by = "SELECT started_by FROM source_task";
    assert_eq!(schema.value(started_by).as_deref(), Some(r#"{"type": "manual"}"#), "as the caller sent it");
    schema.sql(CONSOLE);
    assert_eq!(request(&db, "t").as_deref(), Some("f"));
    let record = format!(
        "SELECT concat_ws(' ', sync_id, kind, package, version, connector_type, installation) FROM {}.task",
        schema.own()
    );
    assert_eq!(schema.value(&record).as_deref(), Some("sync read airbyte/source-faker 1 airbyte i"));
}

#[test]
fn installations_share_the_schema() {
    let (one, other) = (Schema::new(), Schema::new());
    let open = |schema: &Schema| {
        let options = crate::db::Options { own_schema: one.own(), ..schema.options(1, Duration::from_secs(20)) };
        let db = Db::open(target(&schema.url()), options).expect("the database answers");
        db.ensure_schema().expect("it can be created");
        db
    };
    let (first, second) = (open(&one), open(&other));
    first.start_task(&task("t"), Some(&mark()), ConcurrencyPolicy::Forbid).expect("writable");
    second.start_task(&task("t"), None, ConcurrencyPolicy::Forbid).expect("writable");
    assert_eq!((request(&first, "t").as_deref(), request(&second, "t")), (Some("f"), None));
    first.save_config("p", "g", "1").expect("writable");
    assert!(second.stored_config("p", "g").expect("readable").is_none());
}

#[test]
fn processes_that_start_together_create_it_once() {
    let schema = Schema::new();
    schema.open(Duration::from_secs(20)).ensure_schema().expect("it can be created");
    let own = format!("{}_b", schema.own());
    let results: Vec<_> = (0..6)
        .map(|_| {
            let options = crate::db::Options { own_schema: own.clone(), ..schema.options(1, Duration::from_secs(20)) };
            let db = Db::open(target(&schema.url()), options).expect("the database answers");
            thread::spawn(move || db.ensure_schema().map(|()| db.own_schema().is_some()))
        })
        .collect();
    let results: Vec<_> = results.into_iter().map(|thread| thread.join().expect("no panic")).collect();
    let mut schema = schema;
    schema.sql(&format!("DROP SCHEMA {own} CASCADE"));
    assert_eq!(results, vec![Ok(true); 6]);
}

#[test]
fn a_role_without_the_right_to_create_it_works_without_it() {
    let mut schema = Schema::new();
    let name = schema.name.clone();
    schema.ready();
    schema.sql(&format!(
        "DROP SCHEMA {own} CASCADE; CREATE ROLE {name} LOGIN PASSWORD 'hunter2';
         GRANT USAGE ON SCHEMA {name} TO {name};
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {name} TO {name}",
        own = schema.own()
    ));
    let open = || {
        let url = url_with(&format!("search_path={name}&user={name}&password=hunter2"));
        let db = Db::open(target(&url), schema.options(1, Duration::from_secs(20))).expect("the role may log in");
        db.ensure_schema().expect("the tables exist");
        db
    };
    let without = open();
    without.start_task(&task("t"), Some(&mark()), ConcurrencyPolicy::Forbid).expect("writable");
    let (missing, recognized) = (without.own_schema().is_none(), request(&without, "t"));
    // Another role has created it, and gives no right to use it.
    schema.open(Duration::from_secs(20)).ensure_schema().expect("it can be created");
    let url = url_with(&format!("search_path={name}&user={name}&password=hunter2"));
    let find = || {
        let db = Db::open(target(&url), schema.options(1, Duration::from_secs(20))).expect("the role may log in");
        db.find_own_schema().expect("the catalog is readable");
        db.own_schema().is_some()
    };
    let before = find();
    let own = schema.own();
    let grant = format!(
        "GRANT USAGE ON SCHEMA {own} TO {name}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {own} TO {name}"
    );
    let mut admin = target(&schema.url()).connect("test").expect("a superuser");
    admin.batch_execute(&grant).expect("valid SQL");
    let after = find();
    admin.batch_execute(&format!("DROP OWNED BY {name}; DROP ROLE {name}")).expect("valid SQL");
    assert!(missing);
    assert_eq!(recognized.as_deref(), Some("f"), "by started_by");
    assert_eq!((before, after), (false, true));
}

#[test]
fn a_sidecar_uses_the_schema_where_it_exists_and_creates_nothing() {
    let mut schema = Schema::new();
    let ready = schema.ready();
    schema.sql(&format!("DROP SCHEMA {} CASCADE", schema.own()));
    let sidecar = schema.open(Duration::from_secs(20));
    sidecar.find_own_schema().expect("readable");
    assert!(sidecar.own_schema().is_none());
    let count = format!("SELECT count(*) FROM pg_namespace WHERE nspname = '{}'", schema.own());
    assert_eq!(schema.value(&count).as_deref(), Some("0"));
    ready.ensure_schema().expect("it can be created");
    sidecar.find_own_schema().expect("readable");
    assert!(sidecar.own_schema().is_some());
}

#[test]
fn a_dropped_schema_does_not_stop_a_running_process() {
    let mut schema = Schema::new();
    let db = schema.ready();
    schema.sql(&format!("DROP SCHEMA {} CASCADE", schema.own()));
    let started = db.start_task(&task("t"), Some(&mark()), ConcurrencyPolicy::Forbid);
    assert_eq!(started, Ok(StartOutcome::Started));
    assert!(db.own_schema().is_none());
    assert_eq!(request(&db, "t").as_deref(), Some("f"), "by started_by");
    schema.sql("DROP TABLE source_state");
    db.states("s").expect_err("the contract's tables are required");
}
