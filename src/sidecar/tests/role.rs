//! The role of `deploy/sidecar-role.sql` is enough for a sidecar, and may do nothing else.

use serde_json::json;

use super::support::{World, record, state};
use crate::task::{ReadOptions, TaskKind, TaskStatus};

const SQL: &str = include_str!("../../../deploy/sidecar-role.sql");

/// The statements with the variables of psql replaced.
fn statements(world: &World, role: &str) -> String {
    let (schema, database) = (world.schema.as_str(), world.database());
    let values = [("role", role), ("results", schema), ("own", schema), ("database", database)];
    values.iter().fold(SQL.to_owned(), |sql, (name, value)| sql.replace(&format!(":\"{name}\""), value))
}

#[test]
fn a_role_with_the_privileges_of_a_sidecar_runs_every_task_and_may_do_nothing_else() {
    let mut world = World::new();
    let role = format!("{}_role", world.schema);
    let sql = statements(&world, &role);
    assert!(!sql.contains(":\""), "{sql}");
    world.admin.batch_execute(&format!("{sql}; ALTER ROLE {role} PASSWORD 'hunter2'")).expect("valid SQL");
    world.role = Some((role.clone(), "hunter2".to_owned()));

    let stream = json!({"name": "rows", "json_schema": {"properties": {"id": {"type": "integer"}}}});
    let catalog = json!({"streams": [
        {"stream": stream, "sync_mode": "incremental", "destination_sync_mode": "append", "cursor_field": ["id"]}
    ]});
    let destination = world.postgres();
    let row = world.read(ReadOptions::default(), &destination, &catalog, |connector| {
        connector.write_stderr("a line\n")?;
        connector.write(&format!("{}{}{}", record("rows", 1), record("rows", 2), state("rows", 2)))?;
        // A configuration that the connector renews.
        let control =
            json!({"type": "CONNECTOR_CONFIG", "emitted_at": 1, "connectorConfig": {"config": {"token": "new"}}});
        connector.write(&format!("{}\n", json!({"type": "CONTROL", "control": control})))?;
        connector.end(0)
    });
    assert_eq!((row.status, row.error), (Some(TaskStatus::Success), None));
    assert_eq!(world.texts("SELECT count(*)::text FROM rows"), ["2"]);
    assert_eq!(world.texts("SELECT stream FROM source_state"), ["rows"]);
    assert_eq!(world.texts("SELECT status FROM attempt WHERE kind = 'read'"), ["SUCCESS"], "it uses the own schema");
    assert_eq!(world.texts("SELECT count(*)::text FROM source_config"), ["1"]);
    assert!(!world.texts("SELECT message FROM task_log WHERE logger = 'stderr'").is_empty());
    world.find(TaskKind::Check, |connector| {
        connector.write("{\"type\":\"CONNECTION_STATUS\",\"connectionStatus\":{\"status\":\"SUCCEEDED\"}}\n")
    });
    assert_eq!(world.texts("SELECT status FROM source_check"), ["SUCCESS"]);
    world
        .find(TaskKind::Discover, |connector| connector.write("{\"type\":\"CATALOG\",\"catalog\":{\"streams\":[]}}\n"));
    assert_eq!(world.texts("SELECT status FROM source_catalog"), ["SUCCESS"]);

    let mut client = world.connect_as_role();
    let schema = world.schema.clone();
    for denied in [
        "SELECT message FROM $.task_log",
        "DELETE FROM $.task_log",
        "DELETE FROM $.source_task",
        "DELETE FROM $.source_spec",
        "DELETE FROM $.source_catalog",
        "TRUNCATE $.source_state",
        "INSERT INTO $.task DEFAULT VALUES",
        "SELECT FROM $.rows",
        "CREATE TABLE $.mine (id int)",
        "ALTER TABLE $.source_task ADD mine int",
        "DROP TABLE $.source_check",
        "SELECT FROM pg_authid",
        "CREATE ROLE mine",
        "COPY $.source_state TO PROGRAM 'true'",
    ] {
        let error = client.batch_execute(&denied.replace('$', &schema)).expect_err(denied);
        let code = error.code().map(|code| code.code().to_owned());
        assert_eq!(code.as_deref(), Some("42501"), "{denied}: {error}");
    }
    drop(client);
    world.admin.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).expect("valid SQL");
}
