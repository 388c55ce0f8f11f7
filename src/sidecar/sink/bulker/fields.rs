//! Names of a stream's fields in Bulker, the schema header, and the primary key. Pure.
//!
//! Types are the nearest ones that Bulker has to those of the `postgres` destination.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use crate::sidecar::sink::StreamSpec;
use crate::sidecar::sink::field_type::FieldType;
use crate::sidecar::sink::postgres::names::{ascii_json, suffixed};

/// Column with the time at which the source emitted the row.
pub const TIMESTAMP: &str = "_jitsu_timestamp";
/// A larger header is omitted, and Bulker derives types from values: Bulker accepts 1 MiB, but proxies much less.
const MAX_HEADER: usize = 32 * 1024;

/// Names of the fields that the stream's JSON Schema declares.
#[derive(Debug, Default)]
pub struct Names {
    /// Field → name, for renamed fields.
    renamed: HashMap<String, String>,
    /// All declared fields, as the source spells them.
    declared: HashSet<String>,
    /// The names in use.
    taken: HashSet<String>,
}

impl Names {
    /// Of two fields that only differ in case, the one that keeps its name has precedence, then the first one; the other one
    /// gets a suffix.
    fn new(fields: &[(&String, &Value)], same_case: bool) -> Self {
        let mut names = Self::default();
        let lower = |field: &str| if same_case { field.to_lowercase() } else { field.to_owned() };
        let (unchanged, changed): (Vec<&String>, Vec<&String>) =
            fields.iter().map(|(field, _)| *field).partition(|field| lower(field) == **field);
        for field in unchanged.into_iter().chain(changed) {
            let mut name = lower(field);
            if names.taken.contains(&name) {
                name = suffixed(&name, field);
            }
            if name != *field {
                names.renamed.insert(field.clone(), name.clone());
            }
            names.taken.insert(name);
            names.declared.insert(field.clone());
        }
        names
    }

    /// Whether the schema declares this field at the top level.
    pub fn is_declared(&self, field: &str) -> bool {
        self.declared.contains(field)
    }

    /// The name of a declared field.
    pub fn of_declared<'a>(&'a self, field: &'a str) -> &'a str {
        self.renamed.get(field).map_or(field, String::as_str)
    }

    /// Whether a declared field has this name.
    pub fn is_taken(&self, name: &str) -> bool {
        self.taken.contains(name)
    }
}

/// The fields of a stream, from its JSON Schema.
#[derive(Debug)]
pub struct Fields {
    /// Names of the declared fields.
    pub names: Names,
    /// The value of `X-Jitsu-Schema`.
    pub header: Option<String>,
    /// Columns of the primary key; empty if there is no usable one.
    pub key: Vec<String>,
}

impl Fields {
    /// For a stream that is written to this table.
    pub fn new(spec: &StreamSpec, table: &str) -> Self {
        let fields = spec.json_schema.get("properties").and_then(Value::as_object);
        let fields: Vec<_> = fields.into_iter().flatten().collect();
        let names = Names::new(&fields, spec.to_same_case);
        Self { header: header(spec, table, &fields, &names), key: key(spec, &names), names }
    }
}

/// Bulker's code of a type. It has no other ones: unions are texts, and numbers are floating-point.
fn type_code(field: FieldType) -> u8 {
    match field {
        FieldType::Boolean => 1,
        FieldType::Integer => 2,
        FieldType::Number => 3,
        FieldType::Text | FieldType::BigInteger | FieldType::Time | FieldType::TimeTz | FieldType::Any => 4,
        FieldType::Date | FieldType::Timestamp | FieldType::TimestampTz => 5,
        FieldType::Document => 6,
    }
}

fn header(spec: &StreamSpec, table: &str, fields: &[(&String, &Value)], names: &Names) -> Option<String> {
    if fields.is_empty() {
        return None;
    }
    let field = |name: &str, kind| json!({"name": name, "type": type_code(kind)});
    let mut typed: Vec<Value> =
        fields.iter().map(|(name, schema)| field(names.of_declared(name), FieldType::of_schema(schema))).collect();
    if spec.add_meta && !names.is_taken(TIMESTAMP) {
        typed.push(field(TIMESTAMP, FieldType::TimestampTz));
    }
    let text = ascii_json(&json!({"name": table, "fields": typed}).to_string());
    if text.len() > MAX_HEADER {
        tracing::info!(stream = %spec.name.key(), bytes = text.len(), "omitting the schema: too large for a header");
        return None;
    }
    Some(text)
}

/// A path into an object is a column only if Bulker flattens the object, which it does for undeclared ones: `a.b` becomes
/// `a_b`. A declared object is a JSON document, so a key inside it is not usable.
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
            airbyte: crate::sidecar::sink::AirbyteSpec::default(),
            cdc_deletion: None,
            replaces_at_first_commit: false,
            generation: Generation::default(),
        }
    }

    #[test]
    fn header_types_are_bulkers() {
        let mut spec = spec(&json!({
            "b": {"type": "boolean"}, "i": {"type": "integer"}, "f": {"type": "number"}, "s": {"type": "string"},
            "t": {"type": "string", "format": "date-time"}, "j": {"type": ["null", "object"]},
            "o": {"oneOf": [{"type": "integer"}, {"type": "null"}]}, "u": {"type": ["string", "integer"]}, "any": {},
            "d": {"type": "string", "format": "date"}, "c": {"type": "string", "format": "time"},
            "r": {"$ref": "WellKnownTypes.json#/definitions/Integer"},
        }));
        let fields = r#"{"name":"b","type":1},{"name":"i","type":2},{"name":"f","type":3},{"name":"s","type":4},{"name":"t","type":5},{"name":"j","type":6},{"name":"o","type":2},{"name":"u","type":4},{"name":"any","type":4},{"name":"d","type":5},{"name":"c","type":4},{"name":"r","type":2}"#;
        let header = |spec: &StreamSpec| Fields::new(spec, "t").header.expect("a header");
        assert_eq!(header(&spec), format!(r#"{{"name":"t","fields":[{fields}]}}"#));
        spec.add_meta = true;
        let meta = r#"{"name":"_jitsu_timestamp","type":5}"#;
        assert_eq!(header(&spec), format!(r#"{{"name":"t","fields":[{fields},{meta}]}}"#));
    }

    #[test]
    fn headers_are_printable_ascii() {
        let header = Fields::new(&spec(&json!({"größe\r\nX: 1": {"type": "integer"}, "😀\u{7f}": {}})), "t").header;
        let header = header.expect("a header");
        assert!(header.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{header}");
        let read: Value = serde_json::from_str(&header).expect("JSON");
        assert_eq!(read["fields"][0]["name"], "größe\r\nX: 1");
        assert_eq!(read["fields"][1]["name"], "😀\u{7f}");
    }

    #[test]
    fn large_and_empty_schemas_have_no_header() {
        let wide: serde_json::Map<_, _> = (0..5000).map(|at| (format!("column_{at}"), json!({}))).collect();
        assert_eq!(Fields::new(&spec(&Value::Object(wide)), "t").header, None);
        assert_eq!(Fields::new(&spec(&json!({})), "t").header, None);
        assert_eq!(Fields::new(&spec(&Value::Null), "t").header, None);
    }

    #[test]
    fn keys_inside_declared_objects_are_unusable() {
        let paths = |paths: &[&[&str]]| -> Vec<Vec<String>> {
            paths.iter().map(|path| path.iter().map(|&part| part.to_owned()).collect()).collect()
        };
        for (label, same_case, key, expected) in [
            ("declared", false, paths(&[&["Id"], &["doc"]]), vec!["Id", "doc"]),
            ("lower case", true, paths(&[&["Id"]]), vec!["id"]),
            ("undeclared", false, paths(&[&["x"]]), vec!["x"]),
            ("a path into a flattened object", true, paths(&[&["x", "Y"]]), vec!["x_y"]),
            ("a path into a declared object", false, paths(&[&["Id"], &["doc", "y"]]), vec![]),
            ("none", false, paths(&[]), vec![]),
            ("an empty path", false, paths(&[&[]]), vec![]),
        ] {
            let mut spec = spec(&json!({"Id": {"type": "integer"}, "doc": {"type": "object"}}));
            (spec.primary_key, spec.to_same_case) = (key, same_case);
            assert_eq!(Fields::new(&spec, "t").key, expected, "{label}");
        }
    }

    #[test]
    fn fields_that_differ_in_case_keep_distinct_names() {
        let mut spec = spec(&json!({"Name": {}, "name": {}, "other": {}}));
        spec.to_same_case = true;
        let names = Fields::new(&spec, "t").names;
        assert_eq!(names.of_declared("name"), "name");
        assert!(names.of_declared("Name").starts_with("name_"), "{names:?}");
        assert_eq!(names.of_declared("other"), "other");
    }
}
