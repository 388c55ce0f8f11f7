//! A column belongs to its field, whatever else the schema or the rows of later runs have.

use serde_json::{Map, Value, json};

use super::support::{TestSchema, WRITE_WAYS, WriteWay, spec, write, write_ways_of_case};
use crate::sidecar::sink::{Generation, Sink, StreamSpec, WriteMode};

/// A stream with these declared fields, with the key `id`.
fn stream(fields: &[&str]) -> StreamSpec {
    let fields: Vec<(&str, Value)> = fields.iter().map(|&field| (field, json!({"type": "integer"}))).collect();
    StreamSpec { primary_key: vec![vec!["id".to_owned()]], ..spec("t", WriteMode::Merge, &fields) }
}

/// Loads one row.
fn load(db: &TestSchema, spec: StreamSpec, row: &Map<String, Value>) {
    let mut sink = db.sink();
    let stream = sink.open(spec).expect("open");
    write(&mut sink, stream, &[&json!(row).to_string()]);
    sink.finish(stream).expect("finish");
}

/// A run: the declared fields, and the fields of its row in their order.
type Run<'a> = (&'a [&'a str], &'a [&'a str]);

/// Loads runs whose values name their field and run. Returns the field of each column.
fn load_runs(db: &mut TestSchema, label: &str, runs: &[Run<'_>], to_same_case: bool, way: WriteWay) -> Vec<String> {
    let fields: Vec<&str> = runs.iter().flat_map(|(_, fields)| *fields).copied().collect();
    let number = |field: &str| 10 * (1 + fields.iter().position(|other| *other == field).expect("a field"));
    // All fields again, because some ways keep only the rows of the last run.
    let mut all = fields.clone();
    all.sort_unstable();
    all.dedup();
    for (run, (declared, fields)) in (1..).zip(runs.iter().chain([&(runs[runs.len() - 1].0, all.as_slice())])) {
        let row = fields.iter().map(|field| ((*field).to_owned(), json!(number(field)))).collect();
        load(db, way(StreamSpec { to_same_case, ..stream(declared) }, run), &row);
    }
    let columns: Vec<String> = db
        .columns("t")
        .into_iter()
        .filter_map(|column| {
            let name = column.split('|').next().expect("a name").to_owned();
            (name != "_airbyte_generation_id").then_some(name)
        })
        .collect();
    let of_column = |column: &String| {
        let values = db.rows(&format!("SELECT DISTINCT \"{column}\" FROM t WHERE \"{column}\" IS NOT NULL"));
        let [value] = &values[..] else { panic!("{label}: column {column} has the values {values:?}") };
        let field = fields.iter().find(|field| number(field).to_string() == *value);
        format!("{column}={}", field.expect("a value of a field"))
    };
    columns.iter().map(of_column).collect()
}

#[test]
fn fields_keep_their_columns_whatever_later_runs_have() {
    let long = "x".repeat(63);
    let [long_a, long_b] = ["a", "b"].map(|end| format!("{long}{end}"));
    let cases: [(&str, bool, &[Run<'_>], &[&str]); 9] = [
        (
            "a declared field beside the key",
            true,
            &[(&["id"], &["id"]), (&["ID", "id"], &["ID", "id"])],
            &["id=id", "id_b718adec=ID"],
        ),
        (
            "only the other field is left",
            true,
            &[(&["id", "v"], &["id", "v"]), (&["V", "id"], &["id", "V"]), (&["V", "v", "id"], &["V", "id", "v"])],
            &["id=id", "v=v", "v_5206560a=V"],
        ),
        (
            "an undeclared field that comes first",
            false,
            &[(&["id"], &["id", "a.b"]), (&["id"], &["a/b", "a_b", "a.b", "id"])],
            &["id=id", "a_b=a.b"],
        ),
        (
            "an undeclared field that is declared later",
            false,
            &[(&["id"], &["a.b", "id"]), (&["a/b", "a.b", "id"], &["id", "a/b", "a.b"])],
            &["id=id", "a_b=a.b"],
        ),
        (
            "a declared field before an undeclared one that needs no cleaning",
            false,
            &[(&["id", "a.b"], &["a_b", "a.b", "id"]), (&["id"], &["a_b", "id"])],
            &["id=id", "a_b=a.b"],
        ),
        (
            "a name that needs no cleaning wins among declared fields",
            false,
            &[(&["a.b", "a_b", "id"], &["id", "a.b", "a_b"]), (&["a.b", "id"], &["id", "a.b"])],
            &["id=id", "a_b=a_b"],
        ),
        (
            "and among undeclared ones of the first rows",
            false,
            &[(&["id"], &["a.b", "a_b", "id"]), (&["id"], &["id", "a.b"])],
            &["id=id", "a_b=a_b"],
        ),
        ("truncated", false, &[(&["id", &long_a], &[&long_a, "id"]), (&[&long_b, "id"], &["id", &long_b])], &["id=id"]),
        (
            "a field with the name of a column of ours",
            false,
            &[(&["_unmapped_data", "id"], &["id", "_unmapped_data"]), (&["id"], &["_unmapped_data", "id"])],
            &["id=id", "_unmapped_data_b1e4b9a9=_unmapped_data"],
        ),
    ];
    for (at, (label, to_same_case, runs, expected)) in cases.into_iter().enumerate() {
        for (way, write_way) in write_ways_of_case(at) {
            let label = format!("{label}, {way}");
            let found = load_runs(&mut TestSchema::new(), &label, runs, to_same_case, *write_way);
            for column in expected {
                let (name, field) = column.split_once('=').expect("a column and its field");
                // Suffixes are hashes.
                let name = if name.len() > 9 { &name[..name.len() - 8] } else { name };
                let matches = |found: &String| found.starts_with(name) && found.ends_with(&format!("={field}"));
                assert!(found.iter().any(matches), "{label}: {found:?} has no {column}");
            }
        }
    }
}

#[test]
fn flattened_fields_keep_their_columns() {
    for (way, write_way) in WRITE_WAYS {
        let mut db = TestSchema::new();
        let rows =
            [json!({"id": 1, "a": {"b": 2}}), json!({"id": 1, "a_b": 3}), json!({"a_b": 3, "a": {"b": 2}, "id": 1})];
        for (run, row) in (1..).zip(rows) {
            load(&db, write_way(stream(&["id"]), run), row.as_object().expect("an object"));
        }
        let columns = db.columns("t");
        assert!(columns.contains(&"a_b|bigint".to_owned()), "{way}: {columns:?}");
        assert_eq!(db.rows("SELECT DISTINCT a_b FROM t WHERE a_b IS NOT NULL"), ["2"], "{way}");
    }
}

#[test]
fn columns_of_metadata_and_fields_of_their_names_are_different_columns() {
    for (way, write_way) in WRITE_WAYS {
        let mut db = TestSchema::new();
        let row = json!({"id": 1, "_jitsu_timestamp": 7});
        let with = |add_meta: bool, run| write_way(StreamSpec { add_meta, ..stream(&["id", "_jitsu_timestamp"]) }, run);
        for (run, add_meta) in [(1, false), (2, true), (3, false)] {
            load(&db, with(add_meta, run), row.as_object().expect("an object"));
        }
        assert_eq!(db.rows("SELECT DISTINCT _jitsu_timestamp FROM t"), ["7"], "{way}: the field has the column");

        let mut db = TestSchema::new();
        for (run, add_meta) in [(1, true), (2, false)] {
            load(&db, with(add_meta, run), row.as_object().expect("an object"));
        }
        let columns = db.columns("t");
        assert!(columns.contains(&"_jitsu_timestamp|timestamp with time zone".to_owned()), "{way}: {columns:?}");
        assert_eq!(db.rows("SELECT count(*) FROM t WHERE _jitsu_timestamp < now() - interval '1 day'"), ["0"], "{way}");
    }
    let mut db = TestSchema::new();
    let row = json!({"id": 1, "_airbyte_generation_id": 7});
    load(&db, stream(&["id"]), row.as_object().expect("an object"));
    let mut sink = db.sink();
    let generation = Generation { id: 2, minimum: 2, resumable: false, resumes: false };
    let opened = sink.open(StreamSpec { generation, ..stream(&["id"]) }).expect("open");
    let failed = sink.finish(opened).expect_err("the column of a field");
    assert!(failed.text.contains("rename the column"), "{failed}");
    assert_eq!(db.rows("SELECT id FROM t"), ["1"]);
}

#[test]
fn columns_without_marks_belong_to_the_field_of_their_name_or_of_their_suffix() {
    let suffixed = super::super::names::suffixed("a_b", "a/b");
    for (label, first) in [("a field of the name", "a_b"), ("another field", "a,b")] {
        let mut db = TestSchema::new();
        db.run(&format!("CREATE TABLE t (id bigint, a_b bigint, \"{suffixed}\" bigint)"));
        let found = load_runs(
            &mut db,
            label,
            &[(&["a/b", "a.b", first, "id"], &["id", "a.b", "a/b", first]), (&["a.b", "id"], &["id", "a.b"])],
            false,
            WRITE_WAYS[0].1,
        );
        let owner = if first == "a_b" { "a_b" } else { "a.b" };
        assert_eq!(found[..3], ["id=id".to_owned(), format!("a_b={owner}"), format!("{suffixed}=a/b")], "{label}");
    }
}

#[test]
fn a_column_that_was_dropped_or_renamed_belongs_to_no_field() {
    for change in ["ALTER TABLE t DROP COLUMN a_b", "ALTER TABLE t RENAME COLUMN a_b TO old"] {
        let mut db = TestSchema::new();
        load(&db, stream(&["id", "a.b"]), json!({"id": 1, "a.b": 1}).as_object().expect("a row"));
        db.run(change);
        load(&db, stream(&["id", "a/b"]), json!({"id": 1, "a/b": 2}).as_object().expect("a row"));
        load(&db, stream(&["id", "a.b", "a/b"]), json!({"id": 1, "a.b": 1, "a/b": 2}).as_object().expect("a row"));
        assert_eq!(db.rows("SELECT a_b FROM t"), ["2"], "{change}");
    }
}

#[test]
fn an_unfinished_generation_knows_its_columns() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id bigint); INSERT INTO t VALUES (1)");
    let with = |fields: &[&str], resumes| {
        let generation = Generation { id: 2, minimum: 2, resumable: true, resumes };
        StreamSpec { generation, to_same_case: true, ..stream(fields) }
    };
    let mut sink = db.sink();
    let opened = sink.open(with(&["id", "V"], false)).expect("open");
    write(&mut sink, opened, &[r#"{"id":2,"V":20}"#]);
    sink.commit(opened).expect("commit");
    drop(sink);
    let mut sink = db.sink();
    let opened = sink.open(with(&["v", "V", "id"], true)).expect("open");
    write(&mut sink, opened, &[r#"{"v":31,"V":30,"id":3}"#]);
    sink.finish(opened).expect("finish");
    assert_eq!(db.rows("SELECT id, v FROM t ORDER BY id"), ["2|20", "3|30"]);
    drop(sink);
    load(
        &db,
        StreamSpec { to_same_case: true, ..stream(&["v", "id"]) },
        json!({"id": 4, "v": 41}).as_object().expect("a row"),
    );
    assert_eq!(db.rows("SELECT id, v FROM t ORDER BY id"), ["2|20", "3|30", "4|∅"]);
}
