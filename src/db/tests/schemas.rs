//! Creating missing tables and checking existing ones.

use std::thread;
use std::time::Duration;

use super::support::{Schema, target, url_with};
use crate::db::{Db, DbError};
use crate::failure::Class;

/// Columns, keys and indexes of the tables.
const SHAPE: &str = "SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
    SELECT format('%s.%s %s %s %s', table_name, column_name, data_type, datetime_precision, is_nullable) AS line
      FROM information_schema.columns WHERE table_schema = current_schema()
    UNION ALL SELECT format('%s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint
      WHERE connamespace = current_schema()::regnamespace AND contype = 'p'
    UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema()) AS lines";

#[test]
fn ensure_schema_creates_the_tables_of_the_contract_once() {
    let mut schema = Schema::new();
    let db = schema.ready();
    let shape = schema.value(SHAPE).expect("tables");
    for expected in [
        "source_spec_pkey PRIMARY KEY (package, version)",
        "source_check_pkey PRIMARY KEY (key)",
        "source_catalog_pkey PRIMARY KEY (package, version, key)",
        "source_state_pkey PRIMARY KEY (sync_id, stream)",
        "source_task_pkey PRIMARY KEY (task_id)",
        "task_log_pkey PRIMARY KEY (id)",
        "source_task USING btree (sync_id, started_at DESC)",
        "source_task USING btree (sync_id) WHERE (status = 'RUNNING'::text)",
        "source_task.started_by jsonb  YES",
        "source_task.updated_at timestamp with time zone 3 NO",
        "task_log.id uuid  NO",
    ] {
        assert!(shape.contains(expected), "{expected} is not in\n{shape}");
    }
    db.ensure_schema().expect("everything exists");
    assert_eq!(schema.value(SHAPE), Some(shape));
}

#[test]
fn ensure_schema_may_run_concurrently() {
    let schema = Schema::new();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let db = schema.open(Duration::from_secs(20));
            thread::spawn(move || db.ensure_schema())
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().expect("no panic"), Ok(()));
    }
}

#[test]
fn the_schema_parameter_keeps_upper_case() {
    let mut schema = Schema::new();
    let name = format!("Mixed_{}", schema.name);
    let db = Db::open(target(&url_with(&format!("schema={name}"))), schema.options(1, Duration::from_secs(5)))
        .expect("the database answers");
    db.ensure_schema().expect("the schema can be created");
    let count = schema.value(&format!("SELECT count(*) FROM pg_tables WHERE schemaname = '{name}'"));
    schema.sql(&format!("DROP SCHEMA \"{name}\" CASCADE"));
    assert_eq!(count.as_deref(), Some("6"));
}

#[test]
fn mismatches_name_table_and_column_and_nothing_is_changed() {
    for (label, change, expected) in [
        (
            "missing column",
            "ALTER TABLE source_task DROP COLUMN description",
            "table source_task lacks column description TEXT",
        ),
        (
            "other type",
            "ALTER TABLE source_state ALTER state TYPE text",
            "column source_state.state is of type text instead of JSONB",
        ),
        (
            "not null",
            "ALTER TABLE source_task ALTER error SET NOT NULL",
            "column source_task.error does not allow NULL",
        ),
        ("no key", "ALTER TABLE source_check DROP CONSTRAINT source_check_pkey", "no primary key over key"),
        (
            "unknown column",
            "ALTER TABLE task_log ADD extra text NOT NULL",
            "column task_log.extra is unknown and requires a value",
        ),
    ] {
        let mut schema = Schema::new();
        let db = schema.ready();
        schema.sql(change);
        let before = schema.value(SHAPE);
        let error = db.ensure_schema().expect_err(label);
        assert_eq!(error.class(), Class::DatabaseError, "{label}");
        assert!(error.to_string().contains(expected), "{label}: {error}");
        assert_eq!(schema.value(SHAPE), before, "{label}");
    }
}

#[test]
fn an_unknown_column_that_requires_no_value_is_accepted() {
    let mut schema = Schema::new();
    let db = schema.ready();
    schema.sql("ALTER TABLE source_task ADD extra text; ALTER TABLE task_log ADD number serial");
    assert_eq!(db.ensure_schema(), Ok(()));
}

#[test]
fn a_missing_index_is_created_and_another_name_is_accepted() {
    let mut schema = Schema::new();
    let db = schema.ready();
    schema.sql("DROP INDEX task_log_task_id_idx; ALTER INDEX task_log_sync_id_idx RENAME TO another_name");
    db.ensure_schema().expect("indexes can be created");
    let count = "SELECT count(*) FROM pg_indexes WHERE schemaname = current_schema() AND tablename = 'task_log'";
    assert_eq!(schema.value(count).as_deref(), Some("4"));
}

#[test]
fn a_partial_index_does_not_replace_a_full_one() {
    let mut schema = Schema::new();
    let db = schema.ready();
    // The server spells the condition differently for another type.
    schema.sql(
        "ALTER TABLE source_task ALTER status TYPE varchar(20);
         ALTER INDEX source_task_sync_id_running_idx RENAME TO another_name",
    );
    let shape = schema.value(SHAPE);
    db.ensure_schema().expect("everything exists");
    assert_eq!(schema.value(SHAPE), shape);
    schema.sql(
        "DROP INDEX source_task_sync_id_idx, source_task_sync_id_started_at_idx, another_name;
         CREATE INDEX of_failures ON source_task (sync_id) WHERE status = 'FAILED'",
    );
    db.ensure_schema().expect("indexes can be created");
    let count = "SELECT count(*) FROM pg_indexes WHERE schemaname = current_schema() AND tablename = 'source_task'";
    assert_eq!(schema.value(count).as_deref(), Some("6"), "{:?}", schema.value(SHAPE));
}

#[test]
fn a_role_without_create_privilege_may_use_existing_tables() {
    let mut schema = Schema::new();
    let name = schema.name.clone();
    schema.sql(&format!("CREATE ROLE {name} LOGIN PASSWORD 'hunter2'"));
    let options = schema.options(1, Duration::from_secs(5));
    let open = || {
        Db::open(target(&url_with(&format!("search_path={name}&user={name}&password=hunter2"))), options.clone())
            .expect("the role may log in")
    };
    let without_schema = open().ensure_schema();
    schema.ready();
    schema.sql(&format!("GRANT USAGE ON SCHEMA {name} TO {name}"));
    let without_rights = open().ensure_schema();
    schema.sql(&format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {name} TO {name}"));
    let with_rights = open().ensure_schema();
    schema.sql("DROP TABLE source_check");
    let without_table = open().ensure_schema();
    schema.sql(&format!("DROP OWNED BY {name}; DROP ROLE {name}"));

    let text = |result: Result<(), DbError>| result.expect_err("not allowed").to_string();
    let without_schema = text(without_schema);
    assert!(without_schema.contains(&format!("schema {name:?} is missing and may not be created")), "{without_schema}");
    let without_rights = text(without_rights);
    assert!(
        without_rights.contains("table source_task does not allow this role to SELECT, INSERT"),
        "{without_rights}"
    );
    assert_eq!(with_rights, Ok(()));
    let without_table = text(without_table);
    assert!(without_table.contains("table source_check is missing and may not be created"), "{without_table}");
}
