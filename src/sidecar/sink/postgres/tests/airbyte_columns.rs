//! The columns of Airbyte's destination: in tables that it has made, and in new ones if asked for.

use serde_json::{Value, json};

use super::support::{TestSchema, keyed, record, spec};
use crate::airbyte::message::Record;
use crate::sidecar::sink::{AirbyteSpec, Sink, StreamSpec, WriteMode};

const EMITTED_AT: i64 = 1_700_000_000_123;

/// A stream with a number that does not fit its column.
fn stream(mode: WriteMode) -> StreamSpec {
    let fields =
        [("id", json!({"type": "integer"})), ("n", json!({"type": "number"})), ("v", json!({"type": "string"}))];
    StreamSpec {
        airbyte: AirbyteSpec { sync_id: 7, ..AirbyteSpec::default() },
        primary_key: keyed("t", mode).primary_key,
        ..spec("t", mode, &fields)
    }
}

fn load(config: &Value, stream: StreamSpec, rows: &[(&str, Option<&'static str>)]) {
    let mut sink = TestSchema::sink_with(config, std::time::Duration::from_secs(20));
    let index = sink.open(stream).expect("open");
    for (data, meta) in rows {
        let record = Record { emitted_at: Some(EMITTED_AT), meta: meta.map(Into::into), ..record(data) };
        sink.write(index, &record).expect(data);
    }
    sink.finish(index).expect("finish");
}

const META: &str =
    r#"{"changes":[{"field":"x","change":"TRUNCATED","reason":"SOURCE_FIELD_SIZE_LIMITATION"}],"more":1}"#;
const ROWS: [(&str, Option<&str>); 3] = [
    (r#"{"id":1,"n":1.25,"v":"a"}"#, None),
    (r#"{"id":2,"n":1.2345,"v":"b"}"#, Some(META)),
    (r#"{"id":3,"n":"many","late":1}"#, Some("null")),
];

#[test]
fn columns_of_airbytes_tables_are_filled() {
    for (mode, kind, at) in [
        (WriteMode::Append, "varchar", "timestamptz"),
        (WriteMode::Merge, "text", "timestamptz(3)"),
        (WriteMode::Replace, "uuid", "timestamp"),
    ] {
        let mut db = TestSchema::new();
        db.run(&format!(
            "CREATE TABLE t (_airbyte_raw_id {kind} NOT NULL, _airbyte_extracted_at {at} NOT NULL, _airbyte_meta jsonb NOT NULL,
                _airbyte_generation_id bigint NOT NULL, id bigint, n numeric(38,2), v text);
             CREATE VIEW seen AS SELECT n FROM t"
        ));
        load(&db.config(), stream(mode), &ROWS);
        assert_eq!(
            db.rows("SELECT id, n, v, _airbyte_meta, _airbyte_generation_id FROM t ORDER BY id"),
            [
                r#"1|1.25|a|{"changes": [], "sync_id": 7}|0"#,
                r#"2|1.23|b|{"changes": [{"field": "x", "change": "TRUNCATED", "reason": "SOURCE_FIELD_SIZE_LIMITATION"}, {"field": "n", "change": "TRUNCATED", "reason": "DESTINATION_FIELD_SIZE_LIMITATION"}], "sync_id": 7}|0"#,
                r#"3|∅|∅|{"changes": [{"field": "n", "change": "NULLED", "reason": "DESTINATION_TYPECAST_ERROR"}], "sync_id": 7}|0"#,
            ],
            "{mode:?}"
        );
        let ids = "SELECT count(DISTINCT _airbyte_raw_id), min(length(_airbyte_raw_id::text)), \
                   count(_airbyte_extracted_at = '2023-11-14 22:13:20.123' OR NULL) FROM t";
        assert_eq!(db.rows(ids), ["3|36|3"], "{mode:?}");
        assert_eq!(db.rows("SELECT _unmapped_data FROM t WHERE id = 3"), [r#"{"n": "many"}"#], "{mode:?}");
        assert_eq!(db.columns("t")[0].split('|').next(), Some("_airbyte_raw_id"), "{mode:?}");
    }
}

#[test]
fn new_tables_get_the_columns_only_if_asked_for() {
    let mut db = TestSchema::new();
    for asked in [false, true] {
        let mut config = db.config();
        config["airbyteColumns"] = json!(asked);
        let table = format!("t_{asked}");
        load(&config, StreamSpec { table: table.clone(), ..stream(WriteMode::Append) }, &ROWS[..1]);
        let added = [
            "_airbyte_raw_id|text",
            "_airbyte_extracted_at|timestamp with time zone",
            "_airbyte_meta|jsonb",
            "_airbyte_generation_id|bigint",
        ];
        let declared = ["id|bigint", "n|numeric", "v|text"];
        let expected: Vec<&str> = added.into_iter().filter(|_| asked).chain(declared).collect();
        assert_eq!(db.columns(&table), expected);
        // Later runs fill the columns that the table has, and add none.
        let mut later = db.config();
        later["airbyteColumns"] = json!(!asked);
        load(&later, StreamSpec { table: table.clone(), ..stream(WriteMode::Append) }, &ROWS[..1]);
        assert_eq!(db.columns(&table), expected);
        if asked {
            assert_eq!(db.rows(&format!("SELECT count(DISTINCT _airbyte_raw_id) FROM {table}")), ["2"]);
        }
    }
}

#[test]
fn fields_with_the_names_of_the_columns_keep_their_values() {
    let mut db = TestSchema::new();
    let declared = [("id", json!({"type": "integer"})), ("_airbyte_raw_id", json!({"type": "string"}))];
    for _ in 0..2 {
        load(&db.config(), spec("t", WriteMode::Replace, &declared), &[(r#"{"id":1,"_airbyte_raw_id":"own"}"#, None)]);
        assert_eq!(db.rows("SELECT id, _airbyte_raw_id FROM t"), ["1|own"]);
    }
}
