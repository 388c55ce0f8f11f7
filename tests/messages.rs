//! Connectors with unusual output, as complete tasks.

use serde_json::{Value, json};

use super::support::{Done, World, catalog, unique};

fn report<'a>(document: &'a Value, stream: &str) -> (&'a Value, &'a Value) {
    let report = &document["streams"][stream];
    (&report["status"], &report["events"])
}

#[test]
fn streams_interleave_and_rows_after_complete_fail_the_stream() {
    let Some(world) = World::new() else { return };
    let script = r#"
        for id in 1 2 3; do
            row a "{\"id\":$id}"; row b "{\"id\":$id}"; row '' "{\"id\":$id}"
        done
        status a COMPLETE; state a '{"a":1}'
        status late STARTED; row late '{"id":1}'; state late '{"id":1}'; status late COMPLETE
        row late '{"id":2}'; state late '{"id":2}'
        state b '{"b":1}'; row b '{"id":4}'; status b COMPLETE
        row '' '{"id":4}'; status '' COMPLETE
        status again COMPLETE; status again STARTED; status again COMPLETE
    "#;
    let done = world.run_script(script, &catalog(&["a", "b", "", "late", "again"]));
    let document = done.code(1).json();
    assert_eq!(document["status"], "PARTIAL", "{done}");
    for (stream, table, status, events, rows) in [
        ("a", "a", "SUCCESS", 3, 3),
        ("b", "b", "SUCCESS", 4, 4),
        ("", "_unnamed", "SUCCESS", 4, 4),
        ("late", "late", "PARTIAL", 1, 1),
        ("again", "again", "SUCCESS", 0, 0),
    ] {
        assert_eq!(report(&document, stream), (&json!(status), &json!(events)), "{stream:?}: {done}");
        assert_eq!(world.schema.count(table), rows, "{stream:?}");
    }
    // The second state of `late` follows a row that was dropped.
    let states = world.schema.texts("SELECT stream || ' ' || state::text FROM source_state ORDER BY stream");
    assert_eq!(states, [r#"a {"a": 1}"#, r#"b {"b": 1}"#, r#"late {"id": 1}"#]);
}

#[test]
fn malformed_rows_are_stored_as_far_as_possible() {
    let Some(world) = World::new() else { return };
    let script = r#"
        row one '{"id":1,"n":NaN,"i":[Infinity,-Infinity],"big":12345678901234567890}'
        row one '{"id":2,"s":"'"$(printf '\377\300x')"'"}'
        row one '{"id":3,"s":"\u0000\ud800","k\u0000":1,"\udfffx":2}'
        row one '{"id":4,"s":"first","s":"last"}'
        row one '[5]'
        printf '{"record":{"emitted_at":"soon","data":{"id":6},"stream":"one","extra":{}},"type":"RECORD","more":[]}\n'
        printf '  { "type" : "RECORD", "record" : { "stream" : "one", "data" : { "id" : 7 } } }  \r\n'
        printf '{"type":"RECORD","record":{"stream":"one","namespace":"","data":{"id":8}}}'
    "#;
    let done = world.run_script(script, &catalog(&["one"]));
    assert_eq!(report(&done.code(0).json(), "one"), (&json!("SUCCESS"), &json!(8)), "{done}");
    let rows = world.schema.texts(
        "SELECT concat_ws('|', coalesce(id::text, '-'), i, big, s, k_, _x, _unmapped_data) FROM one ORDER BY id NULLS LAST",
    );
    assert_eq!(
        rows,
        [
            "1|[null,null]|12345678901234567890",
            "2|\u{fffd}\u{fffd}x",
            "3|\u{fffd}|1|2",
            "4|last",
            "6",
            "7",
            "8",
            "-|[5]",
        ]
    );
}

#[test]
fn very_long_lines_of_every_kind_are_handled() {
    let Some(world) = World::new() else { return };
    let script = r#"
        filling() { head -c "$2" /dev/zero | tr '\000' "$1"; }
        rows one 1 1
        filling x 95000000; echo
        printf '{"type":"LOG","log":{"level":"WARN","message":"'; filling y 3000000; printf '"}}\n'
        printf '{"type":"RECORD","record":{"stream":"one","emitted_at":1,"data":{"id":2,"text":"'; filling z 95000000; printf '"}}}\n'
        filling e 3000000 >&2; echo >&2
        rows one 3 3
    "#;
    let done = world.run_script(script, &catalog(&["one"]));
    assert_eq!(report(&done.code(0).json(), "one"), (&json!("SUCCESS"), &json!(3)), "{done}");
    let rows = world.schema.texts("SELECT concat_ws('|', id, length(text), trim(text, 'z')) FROM one ORDER BY id");
    assert_eq!(rows, ["1", "2|95000000|", "3"]);
    for (label, level, beginning) in [("a line", "INFO", "xxx"), ("a message", "WARN", "yyy")] {
        let query = format!(
            "SELECT max(length(message))::text FROM task_log WHERE level = '{level}' AND message LIKE '{beginning}%'"
        );
        let length: usize = world.schema.text(&query).parse().expect(label);
        assert!((10_000..20_000).contains(&length), "{label} is truncated: {length}");
    }
}

#[test]
fn a_million_log_lines_are_capped_and_counted() {
    let Some(world) = World::new() else { return };
    let task = unique("flood-");
    let script = r#"
        rows one 1 10
        yes noise 1 | head -n 400000
        log WARN 'warned in the middle'
        yes '{"type":"LOG","log":{"level":"INFO","message":"noise 2"}}' | head -n 300000
        log ERROR 'failed at the end'
        yes noise 3 | head -n 300000 >&2
        rows one 11 20
    "#;
    let done = world.script(script, &catalog(&["one"]), &task).run();
    assert_eq!(report(&done.code(0).json(), "one"), (&json!("SUCCESS"), &json!(20)));
    let number = |condition: &str| {
        world.schema.number(&format!("SELECT count(*) FROM task_log WHERE task_id = '{task}' AND {condition}"))
    };
    let dropped = world.schema.texts(&format!(
        "SELECT substring(message FROM '^([0-9]+) lines dropped') FROM task_log WHERE task_id = '{task}' AND message LIKE '% lines dropped%'"
    ));
    let stored = number("message LIKE 'noise%'");
    assert!((1000..=3000).contains(&stored), "{stored}");
    assert_eq!(dropped, [(1_000_000 - stored).to_string()], "{stored} are stored");
    assert_eq!(number("message = 'warned in the middle' AND level = 'WARN'"), 1);
    assert_eq!(number("message = 'failed at the end' AND level = 'ERROR'"), 1);
    assert_eq!(world.schema.count("one"), 20);
}

#[test]
fn messages_below_the_database_log_level_take_no_rows() {
    let Some(world) = World::new() else { return };
    let task = unique("chatty-");
    let script = r#"
        yes '{"type":"LOG","log":{"level":"DEBUG","message":"detail"}}' | head -n 5000
        log INFO 'worth knowing'
    "#;
    let program = world.script(script, &catalog(&["one"]), &task).env("SYNCCTL_LOG_LEVEL", "DEBUG");
    program.run().code(0);
    let stored = world.schema.texts(&format!(
        "SELECT message FROM task_log WHERE task_id = '{task}' AND message <> 'detail' AND logger <> 'syncctl'"
    ));
    assert_eq!(stored, ["worth knowing"], "unstored messages do not count as dropped");
    assert_eq!(world.schema.number("SELECT count(*) FROM task_log WHERE level = 'DEBUG'"), 0);
}

#[test]
fn streams_of_equal_names_get_separate_tables() {
    let Some(world) = World::new() else { return };
    let names = [("one", "n"), ("two", "n"), ("", "a.b"), ("", "a/b"), ("", "Named")];
    let mut streams = catalog(&names.map(|(_, name)| name));
    let mut script = Vec::new();
    for (index, (namespace, name)) in names.into_iter().enumerate() {
        streams["streams"][index]["stream"]["namespace"] = json!(namespace);
        let row = json!({"stream": name, "namespace": namespace, "data": {"id": index}, "emitted_at": 1});
        script.push(format!("echo '{}'", json!({"type": "RECORD", "record": row})));
    }
    let script = script.join("\n");
    streams["streams"][4]["stream"]["table_name"] = json!("given");
    world.run_script(&script, &streams).code(0);
    let tables = world.schema.texts(
        "SELECT table_name::text FROM information_schema.tables WHERE table_schema = current_schema()
         AND table_name NOT LIKE 'source%' AND table_name NOT IN ('task_log') ORDER BY 1",
    );
    let mut ids = Vec::new();
    for table in &tables {
        ids.extend(world.schema.texts(&format!("SELECT id || ' ' || '{table}' FROM \"{table}\"")));
    }
    ids.sort();
    assert_eq!((ids[0].as_str(), ids[2].as_str(), ids[4].as_str()), ("0 n", "2 a_b", "4 given"), "{ids:?}");
    // The later stream gets a suffix that only depends on its full name.
    assert!(ids[1].starts_with("1 n_") && ids[3].starts_with("3 a_b_") && ids.len() == 5, "{ids:?}");

    let schema = format!("{}_${{SOURCE_NAMESPACE}}", world.schema.name);
    let task = unique("placed-");
    world.script(&script, &streams, &task).with(&["--target-namespace", &schema]).run().code(0);
    for (schema, table, id) in [("one", "n", 0), ("two", "n", 1), ("", "a_b", 2), ("", "given", 4)] {
        let schema = format!("{}_{schema}", world.schema.name);
        let found = world.schema.texts(&format!("SELECT id::text FROM {schema}.{table}"));
        assert_eq!(found, [id.to_string()], "{schema}.{table}");
    }
    for schema in ["one", "two", ""] {
        world.schema.execute(&format!("DROP SCHEMA {}_{schema} CASCADE", world.schema.name));
    }
}

/// Reads this number of streams, of which every hundredth has a row.
fn many(world: &World, streams: usize, destination: &str) -> Done {
    let names: Vec<String> = (0..streams).map(|n| format!("s{n:05}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let script = format!(
        r#"awk 'BEGIN {{ for (n = 0; n < {streams}; n++) {{
            stream = sprintf("s%05d", n)
            status = "{{\"type\":\"TRACE\",\"trace\":{{\"type\":\"STREAM_STATUS\",\"stream_status\":{{\"stream_descriptor\":{{\"name\":\"" stream "\"}},\"status\":\"%s\"}}}}}}\n"
            printf status, "STARTED"
            if (n % 100 == 0) printf "{{\"type\":\"RECORD\",\"record\":{{\"stream\":\"%s\",\"data\":{{\"id\":%d}}}}}}\n", stream, n
            if (n % 10 == 0) printf "{{\"type\":\"STATE\",\"state\":{{\"type\":\"STREAM\",\"stream\":{{\"stream_descriptor\":{{\"name\":\"%s\"}},\"stream_state\":{{\"n\":%d}}}}}}}}\n", stream, n
            printf status, "COMPLETE"
        }} }}'"#
    );
    world.script_into(destination, &script, &catalog(&names), &unique("many-")).run()
}

#[test]
fn ten_thousand_streams_are_read() {
    let Some(world) = World::new() else { return };
    let done = many(&world, 10_000, &world.discard());
    let document = done.code(0).json();
    assert_eq!(document["streams"].as_object().map(serde_json::Map::len), Some(10_000));
    assert_eq!(report(&document, "s09900"), (&json!("SUCCESS"), &json!(1)));
    assert_eq!(world.schema.count("source_state"), 1000);
}
