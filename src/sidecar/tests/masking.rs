//! What a read stores of text in which its connector shows secrets.

use serde_json::{Value, json};

use super::support::{World, record};
use crate::task::{ReadOptions, TaskStatus};

fn catalog() -> Value {
    let stream =
        json!({"name": "customers", "namespace": "crm", "json_schema": {"properties": {"id": {"type": "integer"}}}});
    json!({"streams": [{"stream": stream, "sync_mode": "full_refresh", "destination_sync_mode": "append"}]})
}

fn line(message: &Value) -> String {
    message.to_string() + "\n"
}

#[test]
fn every_stored_text_is_masked_by_the_specification() {
    let mut world = World::new();
    world.config = json!({"host": "db.internal", "user": "reader", "phrase": "open sesame", "method": "Standard"});
    let properties = json!({"phrase": {"airbyte_secret": true}, "user": {}, "host": {}, "method": {}, "rotated": {"airbyte_secret": true}});
    let spec = json!({"connectionSpecification": {"properties": properties}}).to_string();
    let insert = "INSERT INTO source_spec (package, version, specs) VALUES ('test', '1', $1::text::jsonb)";
    world.admin.execute(insert, &[&spec]).expect("a row");
    let renewed = json!({"host": "db.internal", "phrase": "open sesame", "rotated": "new phrase"});
    let control = json!({"type": "CONNECTOR_CONFIG", "emitted_at": 1, "connectorConfig": {"config": renewed}});
    let error = "customers of db.internal: reader cannot log in with open%20sesame";
    let task = world.read(ReadOptions::default(), &world.postgres(), &catalog(), |source| {
        source.write("plain: open sesame as reader\n")?;
        source.write(&line(
            &json!({"type": "LOG", "log": {"level": "INFO", "message": r#"Standard: {"p": "open sesame"}"#}}),
        ))?;
        source.write_stderr("stderr: Basic cmVhZGVyOm9wZW4gc2VzYW1l\n")?;
        source.write(&line(&json!({"type": "CONTROL", "control": control})))?;
        source.write("renewed: new+phrase\n")?;
        source.write(&record("customers", 1).replace(r#""stream""#, r#""namespace":"crm","stream""#))?;
        let descriptor = json!({"name": "customers", "namespace": "crm"});
        let trace = json!({"message": error, "failure_type": "config_error", "stream_descriptor": descriptor});
        source.write(&line(&json!({"type": "TRACE", "trace": {"type": "ERROR", "emitted_at": 1, "error": trace}})))?;
        source.end(1)
    });
    let masked = "customers of db.internal: reader cannot log in with ***";
    assert_ne!(task.status, Some(TaskStatus::Success));
    assert!(task.error.as_ref().is_some_and(|error| error.ends_with(masked)), "{:?}", task.error);
    let described = world.texts("SELECT description::json -> 'crm.customers' ->> 'error' FROM source_task");
    assert_eq!(described, [masked]);
    let all = world.texts("SELECT message FROM task_log").join("\n");
    for line in ["plain: *** as reader", r#"Standard: {"p": "***"}"#, "stderr: Basic ***", "renewed: ***", masked] {
        assert!(all.lines().any(|other| other == line), "{line}: {all}");
    }
    assert!(!all.contains("sesame") && !all.contains("phrase"), "{all}");
}

#[test]
fn without_a_specification_a_log_names_streams_and_hosts() {
    let mut world = World::new();
    world.config = json!({"host": "db.internal", "stream": "customers", "api_key": "open sesame"});
    let _ = world.read(ReadOptions::default(), &world.postgres(), &catalog(), |source| {
        source.write("customers of db.internal: open sesame\n")?;
        source.end(0)
    });
    let lines = world.texts("SELECT message FROM task_log WHERE logger = 'source'");
    assert_eq!(lines, ["customers of db.internal: ***"]);
}
