//! Tables in which syncctl stores results of tasks: no stream gets them.

use std::time::Duration;

use serde_json::json;

use super::support::{TestSchema, WRITE_WAYS, spec, write, write_ways_of_case};
use crate::airbyte::message::StreamName;
use crate::db::{Db, Options, ResultsDatabase, Target, reserved_tables};
use crate::failure::Class;
use crate::sidecar::sink::{Destination, Sink, StreamSpec, WriteMode};

/// Creates the tables of results in the schema, and those that only syncctl knows in `own_schema`.
fn create_results(db: &TestSchema, own_schema: &str) {
    let target = Target::parse(&db.url().into(), "the URL").expect("a URL");
    let options = Options {
        application_name: db.schema.clone(),
        pool_size: 1,
        retry_timeout: Duration::from_secs(20),
        own_schema: own_schema.to_owned(),
    };
    Db::open(target, options).and_then(|results| results.ensure_schema()).expect("tables of results");
}

#[test]
fn no_stream_gets_a_table_of_results() {
    let mut db = TestSchema::new();
    create_results(&db, &db.schema);
    // The console creates the tables without the comment.
    db.run("COMMENT ON TABLE source_state IS NULL; INSERT INTO source_state VALUES ('s', 'users', '{}')");
    db.run(
        "DROP TABLE source_config;
         CREATE TABLE source_config (sync_id text PRIMARY KEY, package text, given text, config jsonb, timestamp timestamptz)",
    );
    let plain = reserved_tables().into_iter().map(|table| (table.name, table.name.to_owned(), false));
    let others = [
        ("source.state", "source.state".to_owned(), false),
        ("Source_State", "Source_State".to_owned(), true),
        ("state", "source/state".to_owned(), false),
    ];
    for (at, (name, table, to_same_case)) in others.into_iter().chain(plain).enumerate() {
        for (way, write_way) in write_ways_of_case(at) {
            let stream = StreamSpec {
                name: StreamName::new(None, name),
                to_same_case,
                ..spec(&table, WriteMode::Append, &[("stream", json!({"type": "string"}))])
            };
            let streams = [spec("users", WriteMode::Append, &[]), write_way(stream, 1)];
            let failure = db.sink().assign_tables(&streams).expect_err(way);
            assert_eq!(failure.class, Class::InvalidInput, "{name}, {way}: {failure}");
            assert!(failure.text.contains(&format!("stream {name:?} would be loaded into table")), "{failure}");
        }
    }
    assert_eq!(db.rows("SELECT * FROM source_state").len(), 1);
    assert!(!db.tables().contains(&"users".to_owned()));
}

#[test]
fn copies_of_results_are_tables_like_others() {
    for (way, write_way) in WRITE_WAYS {
        let mut db = TestSchema::new();
        for run in 1..=2 {
            let columns = ["sync_id", "stream", "state", "timestamp"].map(|name| (name, json!({"type": "string"})));
            let primary_key = vec![vec!["sync_id".to_owned()], vec!["stream".to_owned()]];
            let stream = StreamSpec { primary_key, ..spec("source_state", WriteMode::Append, &columns) };
            let mut sink = db.sink();
            let streams = [write_way(stream, run)];
            sink.assign_tables(&streams).expect(way);
            let [stream] = streams;
            let stream = sink.open(stream).expect(way);
            write(&mut sink, stream, &[r#"{"sync_id":"s","stream":"users","state":"{}","timestamp":"now"}"#]);
            sink.finish(stream).expect(way);
        }
        assert!(db.count("source_state") > 0, "{way}");
    }
}

#[test]
fn an_address_of_the_results_tells_before_a_task_starts() {
    let config = |host: &str, schema: &str| json!({"destinationType": "postgres", "host": host, "database": "d", "username": "u", "defaultSchema": schema});
    let url = "postgres://syncctl@localhost:5432/d?search_path=results";
    let results = ResultsDatabase::new(&url.into(), "the URL", "public", "ours").expect("a URL");
    for (label, host, schema, table, to_same_case, expected) in [
        ("as it is", "localhost", "results", "source_state", false, false),
        ("cleaned", "127.0.0.1", "results", "source.state", false, false),
        ("lowered", "::1", "results", "Task_LOG", true, false),
        ("not lowered", "localhost", "results", "Task_LOG", false, true),
        ("our schema", "localhost", "ours", "attempt", false, false),
        ("our table elsewhere", "localhost", "results", "attempt", false, true),
        ("another schema", "localhost", "public", "source_state", false, true),
        ("another database", "db.example.com", "results", "source_state", false, true),
        ("another table", "localhost", "results", "users", false, true),
    ] {
        let destination = Destination::parse(&config(host, schema)).expect(label);
        let stream = StreamSpec { to_same_case, ..spec(table, WriteMode::Append, &[]) };
        let checked = destination.check_tables(&results, [spec("a", WriteMode::Append, &[]), stream].into_iter());
        assert_eq!(checked.is_ok(), expected, "{label}: {checked:?}");
    }
}
