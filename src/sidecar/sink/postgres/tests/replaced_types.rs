//! A replacement of all rows replaces the types of columns, unless something depends on them.

use serde_json::json;

use super::support::{TestSchema, spec, write};
use crate::sidecar::sink::{Sink, StreamSpec, WriteMode};

fn stream(mode: WriteMode) -> StreamSpec {
    let fields =
        [("id", json!({"type": "string"})), ("v", json!({"type": "string"})), ("n", json!({"type": "integer"}))];
    StreamSpec {
        primary_key: vec![vec!["id".to_owned()]],
        replaces_at_first_commit: mode != WriteMode::Replace,
        ..spec("t", mode, &fields)
    }
}

const TABLE: &str = "
    CREATE TABLE t (id bigint CONSTRAINT jitsu_pk_t PRIMARY KEY, v bigint, n text, u bigint, \"left\" date);
    CREATE INDEX by_v ON t (v); COMMENT ON TABLE t IS 'mine'; GRANT SELECT ON t TO PUBLIC;
    INSERT INTO t VALUES (1, 2, 'old', 3, '2024-01-01')";

#[test]
fn columns_get_the_types_that_a_new_table_would_have() {
    for mode in [WriteMode::Replace, WriteMode::Merge, WriteMode::Append] {
        let mut db = TestSchema::new();
        db.run(TABLE);
        let mut sink = db.sink();
        let index = sink.open(stream(mode)).expect("open");
        write(&mut sink, index, &[r#"{"id":"a","v":"x","n":7,"u":1}"#, r#"{"id":"b","v":"y","n":8,"u":1.5}"#]);
        sink.finish(index).expect("finish");
        let columns = ["id|text", "v|text", "n|bigint", "u|numeric", "left|date"];
        assert_eq!(db.columns("t"), columns, "{mode:?}");
        assert_eq!(db.rows("SELECT * FROM t ORDER BY id"), ["a|x|7|1|∅", "b|y|8|1.5|∅"], "{mode:?}");
        assert_eq!(db.rows("SELECT obj_description('t'::regclass), to_regclass('by_v')"), ["mine|by_v"], "{mode:?}");
        assert_eq!(sink.warnings(), [], "{mode:?}");
    }
}

#[test]
fn a_type_that_something_depends_on_stays_with_a_warning() {
    for (label, dependency, reason) in [
        ("view", "CREATE VIEW seen AS SELECT v FROM t", "a view, a rule, a policy, a trigger or a publication uses it"),
        (
            "foreign key",
            "CREATE UNIQUE INDEX ON t (v); CREATE TABLE other (v bigint REFERENCES t (v) DEFERRABLE)",
            "a constraint uses it",
        ),
        (
            "foreign key that refers to another column",
            "ALTER TABLE t ADD UNIQUE (id); CREATE TABLE other (id text REFERENCES t (id))",
            "a foreign key of another table refers to the table",
        ),
        ("default", "ALTER TABLE t ALTER v SET DEFAULT 5", "a default or a generated column uses it"),
        ("index on an expression", "CREATE INDEX ON t ((v + 1))", "an index uses it"),
        ("check", "ALTER TABLE t ADD CHECK (v > 0)", "a constraint uses it"),
    ] {
        let mut db = TestSchema::new();
        db.run("CREATE TABLE t (id text, v bigint, n bigint); INSERT INTO t VALUES ('1', 2, 3)");
        db.run(dependency);
        let mut sink = db.sink();
        let index = sink.open(StreamSpec { primary_key: Vec::new(), ..stream(WriteMode::Replace) }).expect("open");
        write(&mut sink, index, &[r#"{"id":"a","v":"12","n":7}"#, r#"{"id":"b","v":"y"}"#]);
        let warnings = sink.warnings();
        assert!(
            warnings.len() == 1 && warnings[0].text.contains("column \"v\" keeps its type bigint instead of text"),
            "{warnings:?}"
        );
        assert!(warnings[0].text.ends_with(reason), "{label}: {warnings:?}");
        sink.finish(index).expect(label);
        assert_eq!(
            db.rows("SELECT id, v, _unmapped_data FROM t ORDER BY id"),
            ["a|12|∅", r#"b|∅|{"v": "y"}"#],
            "{label}"
        );
    }
}
