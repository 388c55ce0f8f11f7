//! Loads each value into a column of each type: the server rejects none, and none is lost or changed.

use serde_json::Value;

use super::support::{TestSchema, spec, write};
use crate::sidecar::sink::{Sink, WriteMode};

/// A column of each type: name and type.
const COLUMNS: [(&str, &str); 20] = [
    ("txt", "text"),
    ("short", "varchar(3)"),
    ("small", "smallint"),
    ("int", "integer"),
    ("big", "bigint"),
    ("real", "real"),
    ("double", "double precision"),
    ("num", "numeric"),
    ("money", "numeric(5,2)"),
    ("rounded", "numeric(3,-2)"),
    ("tz", "timestamptz"),
    ("ts", "timestamp"),
    ("ms", "timestamptz(3)"),
    ("day", "date"),
    ("tod", "time"),
    ("todz", "timetz"),
    ("code", "char(3)"),
    ("flag", "boolean"),
    ("id", "uuid"),
    ("doc", "jsonb"),
];

const NUMBERS: [&str; 43] = [
    "0",
    "-0",
    "0.0",
    "-0.0",
    "1",
    "-1",
    "1.0",
    "1.5",
    "0.005",
    "0.1",
    "123.45",
    "123.456",
    "999.99",
    "999.995",
    "1000",
    "12300",
    "12345",
    "99999",
    "100000",
    "32767",
    "32768",
    "-32768",
    "-32769",
    "2147483647",
    "2147483648",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "1e5",
    "1E+5",
    "1e-5",
    "3.4e38",
    "3.5e38",
    "1e-46",
    "1.7976931348623157e308",
    "1.8e308",
    "5e-324",
    "2e-324",
    "0e-99999",
    "1e131071",
    "1e131072",
    "12345678901234567890123456789012345678901234567890.123456789",
];

const STRINGS: [&str; 76] = [
    "",
    " ",
    " 1",
    "1 ",
    "+1",
    "0x1F",
    "1_000",
    "1e",
    "--1",
    ".5",
    "5.",
    "007",
    "Infinity",
    "NaN",
    "-inf",
    "true",
    "FALSE",
    "t",
    "yes",
    "on",
    "null",
    r"\\N",
    r"\\.",
    r"\u0000",
    r"\u0000\u0000abc",
    r"\ud800",
    r"\udc00\ud800",
    "äöü",
    "😀😀😀",
    "😀😀😀😀",
    "abc ",
    r"a\tb\nc\\d",
    "2024-01-31",
    "2024-1-5",
    "31/01/2024",
    "20240131",
    "2024-W05-1",
    "2024-031",
    "now",
    "today",
    "epoch",
    "infinity",
    "-infinity",
    "allballs",
    "2024-01-31T10:00:00Z",
    "2024-01-31T10:00:00",
    "2024-01-31 10:00",
    "2024-01-31T10:00:00+15:59",
    "2024-01-31T10:00:00+16:00",
    "2024-01-31T10:00:00-12:00",
    "2024-01-31T25:00:00Z",
    "2024-01-31T10:00:00[Europe/Berlin]",
    "2024-01-31T10:00:00.123456Z",
    "2024-01-31T10:00:00.1234567890Z",
    "0001-01-01T00:00:00+14:00",
    "2024-01-31 10:00:00 +0530",
    "2024-01-31 10:00:00+00",
    "2024-01-31T24:00:00Z",
    "2016-12-31T23:59:60Z",
    "2024-01-31+02:00",
    "0044-03-15T00:00:00Z BC",
    "0001-01-01 BC",
    "10000-01-01T00:00:00Z",
    "294276-12-31T23:59:59.999999Z",
    "294277-01-01T00:00:00Z",
    "10:00:00",
    "10:00:00.1234567+02:00",
    "24:00:00",
    "23:59:60Z",
    "9999-12-31T23:59:59-14:00",
    "-0001-01-01",
    "67e55044-10b1-426f-9247-bb680e5fe0c8",
    "{67e55044-10b1-426f-9247-bb680e5fe0c8}",
    "67E55044-10B1-426F-9247-BB680E5FE0C8",
    "67e5504410b1426f9247bb680e5fe0c8",
    "urn:uuid:67e55044-10b1-426f-9247-bb680e5fe0c8",
];

const OTHERS: [&str; 9] =
    ["true", "false", "{}", "[]", "[[], {}]", r#"{"a\u0000":"\u0000\ud800"}"#, "[1e200000]", r#"{"":{"":""}}"#, "null"];

/// All values as JSON; numbers as strings, too.
fn values() -> Vec<String> {
    let strings = STRINGS.iter().chain(&NUMBERS).map(|text| format!("\"{text}\""));
    NUMBERS.iter().chain(&OTHERS).map(|text| (*text).to_owned()).chain(strings).collect()
}

/// The columns whose types the server knows: a scale below 0 came with version 15.
fn columns(db: &mut TestSchema) -> Vec<(&'static str, &'static str)> {
    let version: u32 = db.rows("SHOW server_version_num")[0].parse().expect("a number");
    COLUMNS.into_iter().filter(|(name, _)| *name != "rounded" || version >= 150_000).collect()
}

/// Loads each value into a table, as row `n`: into all of its columns.
fn load(db: &mut TestSchema, columns: &[(&str, &str)], values: &[String]) {
    let definitions: Vec<String> = columns.iter().map(|(name, kind)| format!("{name} {kind}")).collect();
    db.run(&format!("CREATE TABLE t (n bigint, {})", definitions.join(", ")));
    let mut sink = db.sink();
    let stream = sink.open(spec("t", WriteMode::Append, &[])).expect("open");
    for (n, value) in values.iter().enumerate() {
        // Objects are only stored in the document column; otherwise they are flattened.
        let fields: Vec<String> = columns
            .iter()
            .filter(|(name, _)| !value.starts_with('{') || *name == "doc")
            .map(|(name, _)| format!("\"{name}\":{value}"))
            .collect();
        write(&mut sink, stream, &[&format!(r#"{{"n":{n},{}}}"#, fields.join(","))]);
    }
    sink.finish(stream).expect("the server accepts all values");
}

#[test]
fn each_value_is_in_its_column_or_unmapped() {
    let (mut db, values) = (TestSchema::new(), values());
    let columns = columns(&mut db);
    load(&mut db, &columns, &values);
    assert_eq!(db.count("t"), values.len());
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    for (name, kind) in columns {
        let lost = db.rows(&format!(
            "SELECT n FROM t WHERE {name} IS NULL AND NOT coalesce(_unmapped_data ? '{name}', false) ORDER BY n"
        ));
        let lost: Vec<&String> = lost.iter().map(|n| &values[n.parse::<usize>().expect("a number")]).collect();
        let expected: Vec<&String> =
            values.iter().filter(|value| *value == "null" || (value.starts_with('{') && name != "doc")).collect();
        assert_eq!(lost, expected, "{kind}");
    }
    // In both places only if the column rounds, or drops zeros before the number.
    let twice = db.rows(
        "SELECT DISTINCT key FROM t, jsonb_object_keys(_unmapped_data) key WHERE to_jsonb(t)->key <> 'null' ORDER BY 1",
    );
    let rounding = ["big", "code", "double", "int", "money", "ms", "num", "real", "rounded", "small"];
    let known: Vec<&str> = rounding.into_iter().filter(|name| names.contains(name)).collect();
    assert_eq!(twice, known);
}

#[test]
fn stored_values_equal_the_servers_cast_of_the_text() {
    let (mut db, values) = (TestSchema::new(), values());
    let columns = columns(&mut db);
    load(&mut db, &columns, &values);
    db.run(
        "CREATE FUNCTION same(v text, kind text, stored text) RETURNS boolean LANGUAGE plpgsql AS $f$
         DECLARE same boolean;
         BEGIN
             EXECUTE format('SELECT %L::%s IS NOT DISTINCT FROM %L::%s', v, kind, stored, kind) INTO same;
             RETURN same;
         EXCEPTION WHEN OTHERS THEN RETURN NULL;
         END $f$",
    );
    let mut compared = 0;
    for (n, value) in values.iter().enumerate() {
        let text = match serde_json::from_str::<Value>(value) {
            Ok(Value::String(text)) => text,
            Ok(Value::Object(_) | Value::Array(_)) => continue,
            // Numbers beyond the range of serde_json.
            _ if value.starts_with('"') => continue,
            _ => value.clone(),
        };
        let text = text.replace('\0', "").replace('\'', "''");
        // A cast to `time` would ignore the offset, too.
        let has_cast = |name: &str| name != "doc" && (name != "tod" || !text.contains('+'));
        for (name, kind) in columns.iter().filter(|(name, _)| has_cast(name)) {
            let kind = match *name {
                // Integers may have a decimal point.
                "small" | "int" | "big" => "numeric",
                // A cast to these types would ignore the offset.
                "day" if !text.contains(['T', ' ']) => "date",
                "ts" | "day" => "timestamptz",
                _ => kind,
            };
            let rows = db.rows(&format!(
                "SELECT same('{text}', '{kind}', {name}::text) FROM t WHERE n = {n} AND {name} IS NOT NULL"
            ));
            compared += rows.iter().filter(|same| *same == "t").count();
            assert!(rows.iter().all(|same| same != "f"), "{value} as {kind}");
        }
    }
    assert!(compared > 500, "{compared}");
}
