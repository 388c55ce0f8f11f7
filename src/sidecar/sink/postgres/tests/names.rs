//! Names of columns, tables and schemas.

use serde_json::json;

use super::support::{Case, TestSchema, check, record, spec, write};
use crate::airbyte::message::StreamName;
use crate::sidecar::sink::{Sink, StreamSpec, WriteMode};

#[test]
fn column_names_are_cleaned() {
    check(&[
        Case {
            label: "characters",
            declared: "{}",
            rows: &[
                r#"{"user_Name 1$-":1,"größe":2,"名前":3,"a.b":4,"c/./d":5,"q\"'`;":6,"select":7,"Select":8,"1st":9,"😀x":10,"\t":11,"":12," ":13}"#,
            ],
            columns: &[
                "user_Name 1$- bigint",
                "größe bigint",
                "名前 bigint",
                "a_b bigint",
                "c_d bigint",
                "q_ bigint",
                "select bigint",
                "Select bigint",
                "1st bigint",
                "_x bigint",
                "column_5e732a1878be2342dbfeff5fe3ca5aa3 bigint",
                "_unnamed bigint",
                "  bigint",
            ],
            values: &["1|2|3|4|5|6|7|8|9|10|11|12|13"],
        },
        Case {
            label: "names without an allowed character",
            declared: r#"{"!!!":{"type":"integer"},"€":{"type":"integer"}}"#,
            rows: &[r#"{"!!!":1,"€":2}"#],
            columns: &[
                "column_6dd075556effaa6e7f1e3e3ba9fdc5fa bigint",
                "column_bca53fde466a76b7bee3e18997e94a7a bigint",
            ],
            values: &["1|2"],
        },
        Case {
            label: "system columns",
            declared: r#"{"ctid":{"type":"integer"},"ctid_":{"type":"integer"}}"#,
            rows: &[r#"{"ctid":1,"ctid_":2,"xmin":"x","tableoid":3,"CTID":4,"oid":5}"#],
            columns: &[
                "ctid__ead0016f bigint",
                "ctid_ bigint",
                "xmin_ text",
                "tableoid_ bigint",
                "CTID bigint",
                "oid bigint",
            ],
            values: &["1|2|x|3|4|5"],
        },
    ]);
}

#[test]
fn long_names_are_truncated_and_stay_distinct() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let ascii = "x".repeat(63);
    let wide = "é".repeat(31);
    let stream = sink.open(spec("t", WriteMode::Append, &[])).expect("open");
    let row = json!({
        format!("{ascii}1"): 1, format!("{ascii}2"): 2, &ascii: 3,
        format!("{wide}éa"): 4, format!("{wide}éb"): 5, format!("{wide}z"): 6,
    });
    write(&mut sink, stream, &[&row.to_string()]);
    sink.finish(stream).expect("finish");
    let names: Vec<String> = db.columns("t").iter().map(|column| column.replace("|bigint", "")).collect();
    assert_eq!(db.rows("SELECT * FROM t"), ["1|2|3|4|5|6"]);
    assert!(names.iter().all(|name| name.len() <= 63), "{names:?}");
    // The name that is not truncated.
    assert_eq!((names[2].as_str(), names[3].as_str()), (ascii.as_str(), wide.as_str()));
    assert_eq!(names[5], format!("{wide}z"));
    for (at, beginning) in [(0, &ascii[..54]), (1, &ascii[..54]), (4, &wide[..54])] {
        assert_eq!(names[at].rfind('_'), Some(54), "{names:?}");
        assert!(names[at].starts_with(beginning), "{names:?}");
    }
}

#[test]
fn colliding_fields_keep_their_columns_in_any_order() {
    let mut db = TestSchema::new();
    for row in [r#"{"a.b":1,"a/b":2,"a":{"b":3}}"#, r#"{"a":{"b":3},"a/b":2,"a.b":1}"#, r#"{"a/b":2}"#] {
        let mut sink = db.sink();
        let stream = sink.open(spec("t", WriteMode::Append, &[])).expect("open");
        write(&mut sink, stream, &[row]);
        sink.finish(stream).expect("finish");
    }
    let columns = db.columns("t");
    assert_eq!(columns.len(), 3, "{columns:?}");
    assert_eq!(columns[0], "a_b|bigint");
    assert_eq!(db.rows("SELECT * FROM t"), ["1|2|3", "1|2|3", "∅|2|∅"]);
}

#[test]
fn to_same_case_lowers_names_before_comparing_them() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (\"Id\" bigint, id bigint)");
    let mut sink = db.sink();
    let fields = [("Id", json!({"type": "integer"})), ("GRÖSSE", json!({"type": "string"}))];
    let stream = StreamSpec { to_same_case: true, ..spec("T", WriteMode::Append, &fields) };
    let stream = sink.open(stream).expect("open");
    write(&mut sink, stream, &[r#"{"Id":1,"GRÖSSE":"x","New":{"Key":2},"new_key":3}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!(db.tables(), ["t"]);
    let columns = db.columns("t");
    assert_eq!(columns[..3], ["Id|bigint", "id|bigint", "grösse|text"]);
    assert!(columns[3].starts_with("new_key_") && columns[4..] == ["new_key|bigint"], "{columns:?}");
    assert_eq!(db.rows("SELECT * FROM t"), ["∅|1|x|2|3"]);
}

#[test]
fn table_and_schema_names_are_cleaned() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let long = "ä".repeat(40);
    let mut load = |name: &str, table: &str| {
        let stream = StreamSpec { name: StreamName::new(None, name), ..spec(table, WriteMode::Append, &[]) };
        let stream = sink.open(stream).expect(name);
        sink.write(stream, &record(&json!({"n": name}).to_string())).expect(name);
        sink.finish(stream).expect(name);
    };
    for (name, table) in [
        ("empty", ""),
        ("no allowed character", "!!!"),
        ("quoted", "Table \"x\"; --"),
        ("long", &long),
        ("also long", &format!("{long}2")),
        ("upper", "USERS"),
        ("lower", "users"),
    ] {
        load(name, table);
    }
    let tables = db.tables();
    for (table, name) in [
        ("_unnamed", "empty"),
        ("table_6dd075556effaa6e7f1e3e3ba9fdc5fa", "no allowed character"),
        ("Table _x_ --", "quoted"),
        (&long[..62], "long"),
        ("USERS", "upper"),
        ("users", "lower"),
    ] {
        assert!(tables.iter().any(|existing| existing == table), "{table} in {tables:?}");
        assert_eq!(db.rows(&format!("SELECT n FROM \"{table}\"")), [name], "{table}");
    }
    let suffixed: Vec<&String> = tables.iter().filter(|table| table.starts_with("ää") && table.len() != 62).collect();
    assert_eq!((suffixed.len(), tables.len()), (1, 7), "{tables:?}");
    assert_eq!(db.rows(&format!("SELECT n FROM \"{}\"", suffixed[0])), ["also long"]);

    let schema = format!("{}.New/Schema", db.schema);
    let stream = StreamSpec { schema: Some(schema), ..spec("t", WriteMode::Append, &[]) };
    let stream = sink.open(stream).expect("open");
    write(&mut sink, stream, &[r#"{"a":1}"#]);
    sink.finish(stream).expect("finish");
    let schema = format!("\"{}_New_Schema\"", db.schema);
    assert_eq!(db.rows(&format!("SELECT * FROM {schema}.t")), ["1"]);
    db.run(&format!("DROP SCHEMA {schema} CASCADE"));
}
