//! What a stream's fields are called in Bulker, and what it is told of them beforehand: the schema header and the key.
//!
//! Pure. Types are those that the `postgres` destination would give, so that a table is the same whichever way its rows
//! come.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::sidecar::sink::StreamSpec;
use crate::sidecar::sink::postgres::names::suffixed;
use crate::sidecar::sink::postgres::types::ColumnType;

/// When the source sent the row.
pub const TIMESTAMP: &str = "_jitsu_timestamp";
/// A larger header is left out: Bulker takes 1 MiB, but proxies in between much less, and without it fields are typed by
/// their values.
const LONGEST_HEADER: usize = 32 * 1024;

/// Names of a stream's declared fields.
#[derive(Debug, Default)]
pub struct Names {
    /// Field → its name, for fields whose name is another one.
    renamed: HashMap<String, String>,
    /// All declared fields, as the source calls them.
    declared: HashSet<String>,
    /// What they are called.
    taken: HashSet<String>,
}

impl Names {
    /// The declared fields in the schema's order: of two that differ in their case alone the first one gets the name.
    fn new(fields: &[(&String, &Value)], same_case: bool) -> Self {
        let mut names = Self::default();
        for (field, _) in fields {
            let mut name = if same_case { field.to_lowercase() } else { (*field).clone() };
            if names.taken.contains(&name) {
                name = suffixed(&name, field);
            }
            if name != **field {
                names.renamed.insert((*field).clone(), name.clone());
            }
            names.taken.insert(name);
            names.declared.insert((*field).clone());
        }
        names
    }

    /// Whether the schema has this field at its top level.
    pub fn is_declared(&self, field: &str) -> bool {
        self.declared.contains(field)
    }

    /// What a declared field is called.
    pub fn of_declared<'a>(&'a self, field: &'a str) -> &'a str {
        self.renamed.get(field).map_or(field, String::as_str)
    }

    /// Whether a declared field is called so.
    pub fn is_taken(&self, name: &str) -> bool {
        self.taken.contains(name)
    }
}

/// What is known of a stream's fields before its rows come.
#[derive(Debug)]
pub struct Fields {
    /// Names of the declared ones.
    pub names: Names,
    /// The value of `X-Jitsu-Schema`.
    pub header: Option<String>,
    /// Columns of the primary key; empty when there is none, or none that can be used.
    pub key: Vec<String>,
}

impl Fields {
    /// Of a stream, whose table is called so.
    pub fn new(spec: &StreamSpec, table: &str) -> Self {
        let fields = spec.json_schema.get("properties").and_then(Value::as_object);
        let fields: Vec<_> = fields.into_iter().flatten().collect();
        let names = Names::new(&fields, spec.to_same_case);
        Self { header: header(spec, table, &fields, &names), key: key(spec, &names), names }
    }
}

/// Bulker's number of a type.
fn number(kind: ColumnType) -> u8 {
    match kind {
        ColumnType::Boolean => 1,
        ColumnType::Integer { .. } => 2,
        ColumnType::Double | ColumnType::Real | ColumnType::Numeric { .. } => 3,
        ColumnType::Text { .. } | ColumnType::Uuid => 4,
        ColumnType::TimestampTz | ColumnType::Timestamp | ColumnType::Date => 5,
        ColumnType::Json { .. } => 6,
    }
}

fn header(spec: &StreamSpec, table: &str, fields: &[(&String, &Value)], names: &Names) -> Option<String> {
    if fields.is_empty() {
        return None;
    }
    let field = |name: &str, kind| json!({"name": name, "type": number(kind)});
    let mut typed: Vec<Value> =
        fields.iter().map(|(name, schema)| field(names.of_declared(name), ColumnType::of_schema(schema))).collect();
    if spec.add_meta && !names.is_taken(TIMESTAMP) {
        typed.push(field(TIMESTAMP, ColumnType::TimestampTz));
    }
    let text = ascii(&json!({"name": table, "fields": typed}).to_string());
    if text.len() > LONGEST_HEADER {
        tracing::info!(stream = %spec.name.key(), bytes = text.len(), "the schema is too large for a header: left out");
        return None;
    }
    Some(text)
}

/// JSON with everything escaped that must not be in a header.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c == ' ' || c.is_ascii_graphic() {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(text, "\\u{unit:04x}").expect("a String takes everything");
            }
        }
    }
    text
}

/// A path into an object is a column only where Bulker flattens it, which it does to undeclared ones: `a.b` is `a_b`.
/// What is declared as an object is a document, and a key inside it cannot be used.
fn key(spec: &StreamSpec, names: &Names) -> Vec<String> {
    let column = |path: &Vec<String>| match path.as_slice() {
        [] => None,
        [field] if names.is_declared(field) => Some(names.of_declared(field).to_owned()),
        [first, _, ..] if names.is_declared(first) => None,
        parts => {
            let name = parts.join("_");
            Some(if spec.to_same_case { name.to_lowercase() } else { name })
        }
    };
    spec.primary_key.iter().map(column).collect::<Option<Vec<_>>>().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::Fields;
    use crate::airbyte::message::StreamName;
    use crate::sidecar::sink::{Generation, StreamSpec, WriteMode};
    use serde_json::{Value, json};

    fn spec(properties: &Value) -> StreamSpec {
        StreamSpec {
            name: StreamName::new(None, "s"),
            schema: None,
            table: "s".to_owned(),
            json_schema: json!({"properties": properties}),
            mode: WriteMode::Merge,
            primary_key: Vec::new(),
            cursor: Vec::new(),
            to_same_case: false,
            add_meta: false,
            generation: Generation::default(),
        }
    }

    #[test]
    fn the_header_has_the_types_of_the_other_destination() {
        let mut spec = spec(&json!({
            "b": {"type": "boolean"}, "i": {"type": "integer"}, "f": {"type": "number"}, "s": {"type": "string"},
            "t": {"type": "string", "format": "date-time"}, "j": {"type": ["null", "object"]},
            "o": {"oneOf": [{"type": "integer"}]},
        }));
        let fields = r#"{"name":"b","type":1},{"name":"i","type":2},{"name":"f","type":3},{"name":"s","type":4},{"name":"t","type":5},{"name":"j","type":6},{"name":"o","type":4}"#;
        let header = |spec: &StreamSpec| Fields::new(spec, "t").header.expect("a header");
        assert_eq!(header(&spec), format!(r#"{{"name":"t","fields":[{fields}]}}"#));
        spec.add_meta = true;
        let meta = r#"{"name":"_jitsu_timestamp","type":5}"#;
        assert_eq!(header(&spec), format!(r#"{{"name":"t","fields":[{fields},{meta}]}}"#));
    }

    #[test]
    fn nothing_in_a_header_can_break_it() {
        let header = Fields::new(&spec(&json!({"größe\r\nX: 1": {"type": "integer"}, "😀\u{7f}": {}})), "t").header;
        let header = header.expect("a header");
        assert!(header.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{header}");
        let read: Value = serde_json::from_str(&header).expect("JSON");
        assert_eq!(read["fields"][0]["name"], "größe\r\nX: 1");
        assert_eq!(read["fields"][1]["name"], "😀\u{7f}");
    }

    #[test]
    fn a_schema_that_is_too_large_or_empty_makes_no_header() {
        let wide: serde_json::Map<_, _> = (0..5000).map(|at| (format!("column_{at}"), json!({}))).collect();
        assert_eq!(Fields::new(&spec(&Value::Object(wide)), "t").header, None);
        assert_eq!(Fields::new(&spec(&json!({})), "t").header, None);
        assert_eq!(Fields::new(&spec(&Value::Null), "t").header, None);
    }

    #[test]
    fn keys_are_columns_or_nothing() {
        let paths = |paths: &[&[&str]]| -> Vec<Vec<String>> {
            paths.iter().map(|path| path.iter().map(|&part| part.to_owned()).collect()).collect()
        };
        for (label, same_case, key, expected) in [
            ("declared", false, paths(&[&["Id"], &["doc"]]), vec!["Id", "doc"]),
            ("lower case", true, paths(&[&["Id"]]), vec!["id"]),
            ("undeclared", false, paths(&[&["x"]]), vec!["x"]),
            ("a path into what is flattened", true, paths(&[&["x", "Y"]]), vec!["x_y"]),
            ("a path into a document", false, paths(&[&["Id"], &["doc", "y"]]), vec![]),
            ("none", false, paths(&[]), vec![]),
            ("an empty path", false, paths(&[&[]]), vec![]),
        ] {
            let mut spec = spec(&json!({"Id": {"type": "integer"}, "doc": {"type": "object"}}));
            (spec.primary_key, spec.to_same_case) = (key, same_case);
            assert_eq!(Fields::new(&spec, "t").key, expected, "{label}");
        }
    }

    #[test]
    fn fields_that_differ_in_their_case_alone_stay_two() {
        let mut spec = spec(&json!({"Name": {}, "name": {}, "other": {}}));
        spec.to_same_case = true;
        let names = Fields::new(&spec, "t").names;
        assert_eq!(names.of_declared("Name"), "name");
        assert!(names.of_declared("name").starts_with("name_"), "{names:?}");
        assert_eq!(names.of_declared("other"), "other");
    }
}
