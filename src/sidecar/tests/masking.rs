//! What a read stores of text in which its connector shows secrets.

use serde_json::{Value, json};

use super::support::{World, record};
use crate::task::{ReadOptions, TaskKind, TaskStatus};

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

/// All text that a task has stored.
fn stored(world: &mut World) -> String {
    let tables = ["task_log", "source_task", "source_check", "source_catalog", "source_state"];
    tables.map(|table| world.texts(&format!("SELECT t::text FROM {table} AS t")).join("\n")).join("\n")
}

#[test]
fn configurations_that_only_connectors_can_read_are_masked() {
    let deep = format!(r#"{}{{"password": "hunter2-s3cret"}}{}"#, r#"{"a":"#.repeat(200), "}".repeat(200));
    for config in [
        r#"{"password": "hunter2-s3cret", "name": "\ud800"}"#,
        r#"{"password": "hunter2-s3cret", "limit": 1e999}"#,
        &deep,
    ] {
        let mut world = World::new();
        world.config_text = Some(config.to_owned());
        world.find(TaskKind::Check, |source| {
            source.write("login with hunter2-s3cret\n")?;
            source.write_stderr("and with %68%75%6e%74%65%72%32%2D%73%33%63%72%65%74\n")?;
            let status = json!({"status": "FAILED", "message": "Basic cmVhZGVyOmh1bnRlcjItczNjcmV0 is wrong"});
            source.write(&line(&json!({"type": "CONNECTION_STATUS", "connectionStatus": status})))?;
            source.end(0)
        });
        assert_eq!(world.texts("SELECT description FROM source_check"), ["Basic *** is wrong"], "{config}");
        let lines = world.texts("SELECT message FROM task_log WHERE logger <> 'syncctl' ORDER BY message");
        assert_eq!(lines, ["and with ***", "login with ***"], "{config}");
    }
}

#[test]
fn nothing_of_a_connector_is_stored_where_its_secrets_are_unknown() {
    let mut world = World::new();
    world.config_text = Some(r#"{"password": "hunter2"#.to_owned());
    let task = world.read(ReadOptions::default(), &world.postgres(), &catalog(), |source| {
        for number in 0..10 {
            source.write(&format!("login with hunter{number}\n"))?;
        }
        source.write_stderr("hunter on stderr\n")?;
        source.write(&record("customers", 1).replace(r#""stream""#, r#""namespace":"crm","stream""#))?;
        let error =
            json!({"message": "hunter in an error", "stream_descriptor": {"name": "customers", "namespace": "crm"}});
        source.write(&line(&json!({"type": "TRACE", "trace": {"type": "ERROR", "emitted_at": 1, "error": error}})))?;
        source.end(1)
    });
    let sentence = "text of the connector is not shown: its secrets are unknown, because config.json cannot be read";
    assert_eq!(task.error, Some(format!("CONNECTOR_FAILED: {sentence}")));
    let all = stored(&mut world);
    assert!(all.contains("stream crm.customers: started"), "the task goes on: {all}");
    assert!(!all.contains("hunter"), "{all}");
    assert!(all.contains("12 lines are not stored, because their secrets are unknown"), "{all}");
}

#[test]
fn a_renewed_configuration_that_is_no_message_is_not_stored() {
    let mut world = World::new();
    let control =
        json!({"type": "CONNECTOR_CONFIG", "emitted_at": 1, "connectorConfig": {"config": {"token": "hunter-new"}}});
    let message = json!({"type": "CONTROL", "control": control}).to_string();
    let _ = world.read(ReadOptions::default(), &world.postgres(), &catalog(), |source| {
        source.write(&format!("{}\n", message.replace("hunter-new", r"hunter-new\ud800")))?;
        source.write(&format!("{}\n", message.replace(r#""emitted_at":1"#, r#""emitted_at":1e999"#)))?;
        source.write(&format!("INFO sending {message}\n"))?;
        source.write(&format!("{}\n", &message[..message.len() - 9]))?;
        source.write_stderr(&format!("DEBUG {message}\n"))?;
        source.end(1)
    });
    let all = stored(&mut world);
    assert!(!all.contains("hunter") && all.contains("a message with a renewed configuration is not shown"), "{all}");
}

#[test]
fn stored_text_is_printable() {
    let mut world = World::new();
    let hostile = "a\u{1b}]0;title\u{7}\u{9b}2J\u{202e}b\u{2028}c\0d\u{200b}e\u{7f}\r\nINFO forged\te\u{301}";
    let printable = "a\\u001b]0;title\\u0007\\u009b2J\\u202eb\\u2028c\\u0000d\\u200be\\u007f\nINFO forged\te\u{301}";
    let _ = world.read(ReadOptions::default(), &world.postgres(), &catalog(), |source| {
        source.write(&line(&json!({"type": "LOG", "log": {"level": "INFO", "message": hostile}})))?;
        source.write_stderr("x\u{1b}[31my\u{202e}z\r\n")?;
        source.write(&record("customers", 1).replace("customers", "\\u001b[2Jother"))?;
        let error = json!({"message": hostile, "stream_descriptor": {"name": "customers", "namespace": "crm"}});
        source.write(&line(&json!({"type": "TRACE", "trace": {"type": "ERROR", "emitted_at": 1, "error": error}})))?;
        source.end(1)
    });
    let log = world.texts("SELECT message FROM task_log WHERE logger IN ('source', 'stderr') ORDER BY length(message)");
    assert_eq!((&*log[0], &*log[1]), (r"x\u001b[31my\u202ez", printable));
    assert_eq!(world.texts("SELECT error FROM source_task"), [format!("CONNECTOR_FAILED: {printable}")]);
    let all = stored(&mut world);
    assert!(all.contains(r"stream \\u001b[2Jother"), "{all}");
    world.find(TaskKind::Check, |source| {
        let status = json!({"status": "FAILED", "message": hostile});
        source.write(&line(&json!({"type": "CONNECTION_STATUS", "connectionStatus": status})))?;
        source.end(0)
    });
    assert_eq!(world.texts("SELECT description FROM source_check"), [printable]);
    let is_hidden = |c: char| c.is_control() && !"\n\t".contains(c) || "\u{202e}\u{2028}\u{200b}".contains(c);
    assert!(!stored(&mut world).contains(is_hidden));
}
