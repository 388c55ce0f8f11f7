//! Configurations that connectors have updated.

use super::support::Schema;

#[test]
fn a_stored_config_belongs_to_package_and_given_config() {
    let schema = Schema::new();
    let db = schema.ready();
    let stored =
        |package: &str, given: &str| db.stored_config(package, given).expect("readable").map(|stored| stored.config);
    assert_eq!(stored("p", "a"), None);
    assert!(db.save_config("p", "a", r#"{"token": "one\u0000"}"#).expect("writable"));
    assert_eq!(stored("p", "a").as_deref(), Some(r#"{"token": "one"}"#));
    assert_eq!((stored("p", "b"), stored("q", "a")), (None, None));
    assert!(db.save_config("p", "b", r#"{"n": 9007199254740993}"#).expect("writable"));
    assert!(db.save_config("p", "a", r#"{"token": "two"}"#).expect("writable"));
    assert_eq!(stored("p", "a").as_deref(), Some(r#"{"token": "two"}"#), "the last renewal");
    assert_eq!(stored("p", "b").as_deref(), Some(r#"{"n": 9007199254740993}"#), "of another configuration");
}

#[test]
fn the_last_of_the_rows_of_earlier_versions_counts_until_it_is_replaced() {
    let mut schema = Schema::new();
    let db = schema.ready();
    let own = schema.own();
    schema.sql(&format!(
        r#"INSERT INTO {own}.source_config (results_schema, sync_id, package, given, config, timestamp) VALUES
           (current_schema(), 'one', 'p', 'g', '{{"n": 1}}', now() - interval '2 days'),
           (current_schema(), 'two', 'p', 'g', '{{"n": 2}}', now() - interval '1 day'),
           (current_schema(), 'three', 'p', 'h', '{{"n": 3}}', now())"#
    ));
    let stored = |given: &str| db.stored_config("p", given).expect("readable").map(|stored| stored.config);
    assert_eq!(stored("g").as_deref(), Some(r#"{"n": 2}"#));
    db.save_config("p", "g", r#"{"n": 4}"#).expect("writable");
    assert_eq!((stored("g").as_deref(), stored("h").as_deref()), (Some(r#"{"n": 4}"#), Some(r#"{"n": 3}"#)));
    assert_eq!(schema.value(&format!("SELECT count(*) FROM {own}.source_config")).as_deref(), Some("2"));
}

#[test]
fn without_a_table_no_config_is_kept() {
    let mut schema = Schema::new();
    let db = schema.ready();
    schema.sql(&format!("DROP SCHEMA {} CASCADE", schema.own()));
    assert!(db.stored_config("p", "a").expect("readable").is_none());
    assert!(!db.save_config("p", "a", "{}").expect("answered"));
}

/// The table that earlier versions created.
const OLD_TABLE: &str = "CREATE TABLE source_config (sync_id TEXT NOT NULL, package TEXT NOT NULL, given TEXT NOT NULL,
    config JSONB NOT NULL, timestamp TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT source_config_pkey PRIMARY KEY (sync_id))";

#[test]
fn configs_of_an_earlier_version_are_moved_to_the_own_schema() {
    let mut schema = Schema::new();
    let db = schema.ready();
    schema.sql(&format!("DROP VIEW source_config; {OLD_TABLE}"));
    let config = |given: &str| db.stored_config("p", given).expect("readable").map(|stored| stored.config);
    db.save_config("p", "renewed", r#"{"n": 2}"#).expect("writable");
    schema.sql(
        r#"INSERT INTO source_config VALUES ('s', 'p', 'g', '{"n": 1}');
           INSERT INTO source_config VALUES ('t', 'p', 'renewed', '{"n": 1}', now() - interval '1 day')"#,
    );
    assert_eq!(config("g").as_deref(), Some(r#"{"n": 1}"#), "before it is moved");
    assert_eq!(config("renewed").as_deref(), Some(r#"{"n": 2}"#), "the newer one of both tables");
    db.ensure_schema().expect("the schema exists");
    assert_eq!(schema.value("SELECT count(*) FROM source_config").as_deref(), Some("0"));
    assert_eq!(config("g").as_deref(), Some(r#"{"n": 1}"#));
    assert_eq!(config("renewed").as_deref(), Some(r#"{"n": 2}"#));
    let key = format!(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = '{}.source_config'::regclass AND contype = 'p'",
        schema.own()
    );
    assert_eq!(schema.value(&key).as_deref(), Some("PRIMARY KEY (results_schema, sync_id)"));
}

#[test]
fn a_view_takes_the_place_of_the_table_of_earlier_versions() {
    let mut schema = Schema::new();
    let db = schema.ready();
    let other = Schema::new();
    let options =
        crate::db::Options { own_schema: schema.own(), ..other.options(1, std::time::Duration::from_secs(20)) };
    let theirs = crate::db::Db::open(super::support::target(&other.url()), options).expect("the database answers");
    theirs.ensure_schema().expect("it can be created");
    theirs.save_config("p", "theirs", "{}").expect("writable");
    db.save_config("p", "g", "{}").expect("writable");
    schema.sql("CREATE TABLE IF NOT EXISTS source_config (sync_id text)");
    assert_eq!(schema.value("SELECT string_agg(sync_id, ', ') FROM source_config").as_deref(), Some("p g"));
    db.ensure_schema().expect("everything exists");
}

#[test]
fn a_table_of_an_earlier_version_stays_in_use_where_it_cannot_be_moved() {
    let mut schema = Schema::new();
    let db = schema.ready();
    schema.sql(&format!("DROP SCHEMA {} CASCADE; {OLD_TABLE}", schema.own()));
    assert!(db.save_config("p", "g", "{}").expect("writable"));
    assert_eq!(db.stored_config("p", "g").expect("readable").map(|stored| stored.config).as_deref(), Some("{}"));
    assert_eq!(schema.value("SELECT count(*) FROM source_config").as_deref(), Some("1"));
}

#[test]
fn the_schema_of_the_results_may_be_the_own_schema() {
    for (label, old_table) in [("a new one", ""), ("one of an earlier version", OLD_TABLE)] {
        let mut schema = Schema::new();
        let name = schema.name.clone();
        schema.sql(&format!("CREATE SCHEMA {name}; {old_table}"));
        let options = crate::db::Options { own_schema: name, ..schema.options(1, std::time::Duration::from_secs(20)) };
        let db = crate::db::Db::open(super::support::target(&schema.url()), options).expect("the database answers");
        for _ in 0..2 {
            db.ensure_schema().expect("it can be created");
            assert!(db.own_schema().is_some(), "{label}");
            assert!(db.save_config("p", "g", "{}").expect("writable"), "{label}");
            assert!(db.stored_config("p", "g").expect("readable").is_some(), "{label}");
        }
        assert_eq!(schema.value("SELECT count(*) FROM source_config").as_deref(), Some("1"), "{label}");
    }
}
