//! Compares rows that the sink loads in binary format with the same values loaded in COPY's text format.

use std::io::Write as _;

use proptest::prelude::{Strategy, any, prop, proptest};
use proptest::test_runner::Config;
use serde_json::{Value, json};

use super::support::{TestSchema, spec, write};
use crate::sidecar::sink::{Sink, WriteMode};

/// All types of columns.
const KINDS: [&str; 15] = [
    "smallint",
    "integer",
    "bigint",
    "double precision",
    "real",
    "numeric",
    "numeric(20,5)",
    "timestamptz",
    "timestamp",
    "date",
    "boolean",
    "uuid",
    "text",
    "varchar(5)",
    "jsonb",
];

/// A value as JSON, and in COPY's text format before escaping.
type Encodings = (String, String);

fn unquoted(text: String) -> Encodings {
    (text.clone(), text)
}

fn quoted(text: String) -> Encodings {
    (Value::from(text.as_str()).to_string(), text)
}

fn any_time(offset: &'static str) -> impl Strategy<Value = String> {
    let date = (1_u16..10_000, 1_u8..13, 1_u8..29);
    let fraction = "(\\.[0-9]{1,9}|\\.[0-9]{6}(5|50|500)|\\.999999[0-9]{1,3})?";
    (date, 0_u8..24, 0_u8..60, 0_u8..60, fraction, offset).prop_map(
        |((year, month, day), hour, minute, second, fraction, offset)| {
            format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}{offset}")
        },
    )
}

fn any_value(kind: &str) -> proptest::strategy::BoxedStrategy<Encodings> {
    let digits = "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,24})?";
    match kind {
        "smallint" => any::<i16>().prop_map(|number| unquoted(number.to_string())).boxed(),
        "integer" => any::<i32>().prop_map(|number| unquoted(number.to_string())).boxed(),
        "bigint" => any::<i64>().prop_map(|number| unquoted(number.to_string())).boxed(),
        "double precision" => {
            let doubles = any::<f64>().prop_filter("finite", |double| double.is_finite());
            proptest::prop_oneof![
                doubles.prop_map(|double| unquoted(format!("{double:?}"))),
                digits.prop_map(unquoted),
                "-?[1-9]\\.[0-9]{1,25}[eE][+-]?[0-9]{1,2}".prop_map(unquoted),
            ]
            .boxed()
        }
        "real" => digits.prop_map(unquoted).boxed(),
        "numeric" => "-?(0|[1-9][0-9]{0,60})(\\.[0-9]{1,60})?([eE][+-]?[0-9]{1,2})?".prop_map(unquoted).boxed(),
        "numeric(20,5)" => "-?(0|[1-9][0-9]{0,14})(\\.[0-9]{1,5}0{0,3})?".prop_map(unquoted).boxed(),
        "timestamptz" => any_time("(|Z|[+-]0[0-9]:[0-5][0-9]|[+-]1[0-4]:[0-5][0-9])").prop_map(quoted).boxed(),
        "timestamp" => any_time("").prop_map(quoted).boxed(),
        "date" => any_time("").prop_map(|time| quoted(time[..10].to_owned())).boxed(),
        "boolean" => any::<bool>().prop_map(|value| unquoted(value.to_string())).boxed(),
        "uuid" => any::<u128>().prop_map(|id| quoted(uuid::Uuid::from_u128(id).to_string())).boxed(),
        "varchar(5)" => "\\PC{0,5}".prop_map(quoted).boxed(),
        "jsonb" => prop::collection::vec(("\\PC{0,3}", "[\\\\\"\n\t\r\u{1}-\u{20}a😀]*"), 1..4)
            .prop_map(|parts| unquoted(json!([parts, 1.50, null]).to_string()))
            .boxed(),
        _ => "(\\PC|[\\\\\"\n\t\r\u{1}-\u{20}])*".prop_map(quoted).boxed(),
    }
}

/// One optional value of each type.
fn any_row() -> impl Strategy<Value = Vec<Option<Encodings>>> {
    KINDS.iter().map(|kind| proptest::option::weighted(0.7, any_value(kind))).collect::<Vec<_>>()
}

/// The row in COPY's text format.
fn text_row(number: usize, row: &[Option<Encodings>]) -> String {
    let escaped =
        |text: &str| text.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t");
    let fields = row.iter().map(|field| field.as_ref().map_or("\\N".to_owned(), |(_, text)| escaped(text)));
    std::iter::once(number.to_string()).chain(fields).collect::<Vec<_>>().join("\t") + "\n"
}

/// The same row as JSON. Nulls are left out, so that columns are added one by one; some rows have an unmapped value.
fn json_row(number: usize, row: &[Option<Encodings>]) -> String {
    let values = row.iter().enumerate().filter_map(|(kind, field)| Some((kind, &field.as_ref()?.0)));
    let misfit = (number % 5 == 3).then(|| r#""misfit":"one""#.to_owned());
    let fields = values.map(|(kind, raw)| format!("\"c{kind}\":{raw}")).chain(misfit);
    let fields: Vec<String> = std::iter::once(format!("\"n\":{number}")).chain(fields).collect();
    format!("{{{}}}", fields.join(","))
}

proptest! {
    #![proptest_config(Config { cases: 6, max_shrink_iters: 60, ..Config::default() })]

    #[test]
    fn binary_format_loads_the_same_values_as_text_format(rows in prop::collection::vec(any_row(), 1..120)) {
        let mut db = TestSchema::new();
        let columns: Vec<String> = KINDS.iter().enumerate().map(|(n, kind)| format!("c{n} {kind}")).collect();
        let columns = columns.join(", ");
        // Columns that a view uses keep their types in a replacement.
        db.run(&format!("CREATE TABLE t (n bigint, {columns}, misfit bigint); CREATE VIEW v AS TABLE t"));
        db.run(&format!("CREATE TABLE x (n bigint, {columns})"));
        let mut copy = db.admin.copy_in("COPY x FROM STDIN").expect("COPY");
        for (number, row) in rows.iter().enumerate() {
            copy.write_all(text_row(number, row).as_bytes()).expect("COPY takes rows");
        }
        copy.finish().expect("the server accepts the text");
        // A replacement with a key numbers its rows in a staging table; an append does not.
        for mode in [WriteMode::Append, WriteMode::Replace] {
            let mut stream = spec("t", mode, &[]);
            stream.primary_key = vec![vec!["n".to_owned()]];
            let mut sink = db.sink();
            let stream = sink.open(stream).expect("open");
            for (number, row) in rows.iter().enumerate() {
                write(&mut sink, stream, &[&json_row(number, row)]);
            }
            sink.finish(stream).expect("finish");
            let names: Vec<String> = (0..KINDS.len()).map(|n| format!("c{n}")).collect();
            let names = names.join(", ");
            // As text, which also compares the displayed digits and the sign of zero.
            let all = |table: &str| format!("SELECT row(n, {names})::text FROM {table}");
            let (binary, text) = (all("t"), all("x"));
            let none: [&str; 0] = [];
            assert_eq!(db.rows(&format!("{binary} EXCEPT ALL {text}")), none, "{mode:?}: only in binary format");
            assert_eq!(db.rows(&format!("{text} EXCEPT ALL {binary}")), none, "{mode:?}: only in text format");
            if rows.len() > 3 {
                let unmapped = "SELECT count(*) FROM t WHERE _unmapped_data->>'misfit' = 'one' AND misfit IS NULL";
                assert_eq!(db.rows(unmapped), [((rows.len() + 1) / 5).to_string()], "{mode:?}");
            }
        }
    }
}
