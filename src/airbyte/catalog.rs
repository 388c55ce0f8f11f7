//! The ConfiguredAirbyteCatalog: the input of `read`.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Value, json};

use super::message::StreamName;

/// The configured catalog, as far as the program reads it.
#[derive(Debug, Clone, Deserialize)]
pub struct ConfiguredCatalog {
    /// In the caller's order, which is the order of the per-stream map.
    pub streams: Vec<ConfiguredStream>,
}

/// One selected stream.
#[derive(Debug, Clone, Deserialize)]
pub struct ConfiguredStream {
    /// The stream as `discover` printed it.
    pub stream: Stream,
    /// Which rows the source sends.
    #[serde(default)]
    pub sync_mode: SyncMode,
    /// How the destination stores the rows; absent in hand-written catalogs.
    #[serde(default)]
    pub destination_sync_mode: Option<DestinationSyncMode>,
    /// Path of the cursor, for incremental reads.
    #[serde(default, deserialize_with = "or_default")]
    pub cursor_field: Vec<String>,
    /// Paths of the fields of the primary key.
    #[serde(default, deserialize_with = "or_default")]
    pub primary_key: Vec<Vec<String>>,
    /// Unchecked; [`generations`](Self::generations) parses it.
    #[serde(default)]
    pub generation_id: Value,
    /// Unchecked; [`generations`](Self::generations) parses it.
    #[serde(default)]
    pub minimum_generation_id: Value,
    /// Unchecked: a number that identifies the sync in the rows.
    #[serde(default)]
    pub sync_id: Value,
}

/// A stream as `discover` printed it.
#[derive(Debug, Clone, Deserialize)]
pub struct Stream {
    /// As the source spells it.
    pub name: String,
    /// The source's schema or database, if it has one.
    #[serde(default)]
    pub namespace: Option<String>,
    /// JSON Schema of a row.
    #[serde(default)]
    pub json_schema: Value,
    /// Paths of the fields of the primary key, if the source defines one.
    #[serde(default, deserialize_with = "or_default")]
    pub source_defined_primary_key: Vec<Vec<String>>,
    /// Path of the cursor, if the source defines one.
    #[serde(default, deserialize_with = "or_default")]
    pub default_cursor_field: Vec<String>,
    /// The name of the table, if it differs from the stream's (a Jitsu extension).
    #[serde(default)]
    pub table_name: Option<String>,
}

/// Which rows the source sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncMode {
    /// All rows, each time.
    #[default]
    FullRefresh,
    /// Rows that are new since the state.
    Incremental,
}

/// How the destination stores the rows of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationSyncMode {
    /// Add rows.
    Append,
    /// Replace the table.
    Overwrite,
    /// Merge by primary key.
    AppendDedup,
    /// Merge by primary key.
    Update,
    /// Merge by primary key; the source marks deleted rows.
    SoftDelete,
    /// Replace the table, then merge by primary key.
    OverwriteDedup,
}

/// Some platforms write `null` for an empty list.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl ConfiguredStream {
    /// The stream's identity.
    pub fn name(&self) -> StreamName {
        StreamName::new(self.stream.namespace.as_deref(), &self.stream.name)
    }

    /// Why rows cannot be merged by these paths; `None` if they can, as far as the schema shows.
    pub fn key_problem(&self, key: &[Vec<String>]) -> Option<String> {
        let problem = |path: &Vec<String>| {
            if path.is_empty() {
                return Some("its primary key has a path without fields".to_owned());
            }
            // A field without a type may hold objects.
            let mut schema = &self.stream.json_schema;
            for (depth, field) in path.iter().enumerate() {
                if depth > 0 && !may_be_object(schema) {
                    let (path, parent) = (path.join("."), path[..depth].join("."));
                    return Some(format!(
                        "its primary key {path} is a path into {parent}, which the schema declares as no object"
                    ));
                }
                schema = schema.get("properties").and_then(|fields| fields.get(field)).unwrap_or(&Value::Null);
            }
            None
        };
        let stream = self.name().key();
        let found = key.iter().find_map(problem)?;
        Some(format!("stream {stream:?}: {found}: choose another primary_key, or a mode that does not merge"))
    }

    /// The generation of this read's rows, and the minimum generation whose rows remain once the stream is complete; 0
    /// if absent.
    pub fn generations(&self) -> Result<(i64, i64), String> {
        let number = |field: &str, value: &Value| {
            generation(value).ok_or_else(|| {
                let stream = self.name().key();
                format!("stream {stream:?}: {field} is {value}: expected a whole number, 0 or more")
            })
        };
        let own = number("generation_id", &self.generation_id)?;
        let minimum = number("minimum_generation_id", &self.minimum_generation_id)?;
        if minimum > own {
            return Err(format!(
                "stream {:?}: minimum_generation_id is {minimum}, but generation_id is {own}: \
                 the read would delete its own rows",
                self.name().key()
            ));
        }
        Ok((own, minimum))
    }
}

/// Whether a schema allows objects.
fn may_be_object(schema: &Value) -> bool {
    let allows = |kind: &Value| kind == "object";
    match schema.get("type") {
        None => true,
        Some(Value::Array(kinds)) => kinds.iter().any(allows),
        Some(kind) => allows(kind),
    }
}

/// A whole number that is not negative, 0 if absent. Some platforms write 2 as 2.0.
fn generation(value: &Value) -> Option<i64> {
    /// Floating-point numbers below this represent every whole number exactly.
    const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Null => Some(0),
        Value::Number(number) => match number.as_i64() {
            Some(number) => Some(number),
            None => number
                .as_f64()
                .filter(|number| number.fract() == 0.0 && number.abs() < MAX_EXACT)
                .and_then(|number| format!("{number:.0}").parse().ok()),
        }
        .filter(|number| *number >= 0),
        _ => None,
    }
}

impl ConfiguredCatalog {
    /// Checks that there is at least one stream, that no stream occurs twice, and that generations are consistent.
    pub fn validate(&self) -> Result<(), String> {
        if self.streams.is_empty() {
            return Err("the catalog selects no streams: expected at least one entry in \"streams\"".to_owned());
        }
        let mut seen = std::collections::HashSet::new();
        for stream in &self.streams {
            // States and reports are stored under this key.
            if !seen.insert(stream.name().key()) {
                return Err(format!("the catalog selects stream {:?} twice", stream.name().key()));
            }
            stream.generations()?;
        }
        Ok(())
    }
}

/// The catalog as connectors accept it: they may validate it against Airbyte's protocol, which has no `overwrite_dedup`. The
/// difference concerns the destination alone.
pub fn for_connector(catalog: &str) -> Cow<'_, str> {
    const MODE: &str = "\"overwrite_dedup\"";
    let is_mode = |before: &str| {
        let field = before.trim_end().strip_suffix(':').map(str::trim_end);
        field.is_some_and(|field| field.ends_with("\"destination_sync_mode\""))
    };
    let mut text = String::new();
    let mut copied = 0;
    for (at, _) in catalog.match_indices(MODE).filter(|(at, _)| is_mode(&catalog[..*at])) {
        text.push_str(&catalog[copied..at]);
        text.push_str("\"overwrite\"");
        copied = at + MODE.len();
    }
    if copied == 0 {
        return Cow::Borrowed(catalog);
    }
    text.push_str(&catalog[copied..]);
    Cow::Owned(text)
}

/// Configures every stream of a discovered catalog: incrementally where the source supports it, and so that repeated
/// reads leave no duplicates where there is a primary key. `None` if the document is not a discovered catalog.
pub fn from_discovered(catalog: &Value) -> Option<Value> {
    let streams = catalog.get("streams")?.as_array()?;
    let configured = streams.iter().map(|stream| {
        let is_stream = stream.get("stream").is_none() && stream.get("name").is_some_and(Value::is_string);
        is_stream.then(|| configure(stream))
    });
    Some(json!({"streams": configured.collect::<Option<Vec<Value>>>()?}))
}

fn configure(stream: &Value) -> Value {
    let list = |field: &str| stream.get(field).filter(|value| value.as_array().is_some_and(|list| !list.is_empty()));
    let key = list("source_defined_primary_key");
    let cursor = list("default_cursor_field");
    let modes = stream.get("supported_sync_modes").and_then(Value::as_array);
    let supports_incremental = modes.is_some_and(|modes| modes.iter().any(|mode| mode == "incremental"));
    // Without a default cursor the user would have to choose one.
    let incremental =
        supports_incremental && (cursor.is_some() || stream.get("source_defined_cursor") == Some(&Value::Bool(true)));
    let destination = match (incremental, key) {
        (false, _) => "overwrite",
        (true, Some(_)) => "append_dedup",
        (true, None) => "append",
    };
    let mut configured = json!({
        "stream": stream,
        "sync_mode": if incremental { "incremental" } else { "full_refresh" },
        "destination_sync_mode": destination,
    });
    for (field, value) in [("cursor_field", cursor.filter(|_| incremental)), ("primary_key", key)] {
        if let Some(value) = value {
            configured[field] = value.clone();
        }
    }
    configured
}

#[cfg(test)]
mod tests {
    use super::{ConfiguredCatalog, DestinationSyncMode, SyncMode, for_connector, from_discovered};
    use serde_json::{Value, json};

    #[test]
    fn nulls_and_unknown_fields_are_accepted() {
        let catalog: ConfiguredCatalog = serde_json::from_str(
            r#"{"streams":[{"stream":{"name":"s","namespace":null,"json_schema":{},"source_defined_primary_key":null,"new":1},
                "sync_mode":"incremental","destination_sync_mode":"append_dedup","cursor_field":null,"primary_key":[["id"]]}]}"#,
        )
        .expect("a catalog");
        let stream = &catalog.streams[0];
        assert_eq!(
            (stream.sync_mode, stream.destination_sync_mode),
            (SyncMode::Incremental, Some(DestinationSyncMode::AppendDedup))
        );
        assert_eq!(catalog.validate(), Ok(()));
    }

    #[test]
    fn connectors_get_modes_that_the_protocol_knows() {
        for (label, catalog, expected) in [
            (
                "spaces, and a stream of that name",
                r#"{"streams":[{"stream":{"name":"overwrite_dedup"},"destination_sync_mode" : "overwrite_dedup","n":1.50}]}"#,
                r#"{"streams":[{"stream":{"name":"overwrite_dedup"},"destination_sync_mode" : "overwrite","n":1.50}]}"#,
            ),
            ("others", r#"{"destination_sync_mode":"append_dedup"}"#, r#"{"destination_sync_mode":"append_dedup"}"#),
        ] {
            assert_eq!(for_connector(catalog), expected, "{label}");
        }
    }

    #[test]
    fn generations_are_validated() {
        for (label, fields, expected) in [
            ("absent", "", Ok((0, 0))),
            ("null", r#","generation_id":null,"minimum_generation_id":null"#, Ok((0, 0))),
            ("given", r#","generation_id":7,"minimum_generation_id":6,"sync_id":3"#, Ok((7, 6))),
            ("with a point", r#","generation_id":7.0,"minimum_generation_id":7"#, Ok((7, 7))),
            ("large", r#","generation_id":9223372036854775807"#, Ok((i64::MAX, 0))),
            ("too large", r#","generation_id":9223372036854775808"#, Err("generation_id is 9223372036854775808")),
            ("negative", r#","generation_id":-1"#, Err("generation_id is -1: expected a whole number")),
            ("a fraction", r#","generation_id":1.5"#, Err("generation_id is 1.5: expected a whole number")),
            ("text", r#","minimum_generation_id":"1""#, Err("minimum_generation_id is \"1\"")),
            ("above", r#","generation_id":1,"minimum_generation_id":2"#, Err("minimum_generation_id is 2, but")),
            ("alone", r#","minimum_generation_id":1"#, Err("but generation_id is 0")),
        ] {
            let text = format!(r#"{{"streams":[{{"stream":{{"name":"s"}}{fields}}}]}}"#);
            let catalog: ConfiguredCatalog = serde_json::from_str(&text).expect(label);
            match (catalog.streams[0].generations(), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{label}"),
                (Err(found), Err(expected)) => {
                    assert!(found.starts_with("stream \"s\": ") && found.contains(expected), "{label}: {found}");
                    assert_eq!(catalog.validate(), Err(found), "{label}");
                }
                (found, _) => panic!("{label}: {found:?}"),
            }
        }
    }

    #[test]
    fn paths_of_keys_lead_through_objects() {
        let stream = json!({"stream": {"name": "s", "json_schema": {"properties": {
            "id": {"type": "integer"}, "list": {"type": ["null", "array"]}, "any": {},
            "doc": {"type": ["null", "object"], "properties": {"id": {"type": "integer"}, "text": {"type": "string"}}},
        }}}});
        let stream: super::ConfiguredStream = serde_json::from_value(stream).expect("a stream");
        for (path, expected) in [
            (&["id"][..], None),
            (&["doc"], None),
            (&["doc", "id"], None),
            (&["doc", "undeclared", "id"], None),
            (&["any", "id"], None),
            (&["undeclared", "id"], None),
            (&[], Some("a path without fields")),
            (&["id", "x"], Some("id.x is a path into id, which")),
            (&["list", "id"], Some("list.id is a path into list, which")),
            (&["doc", "text", "x"], Some("doc.text.x is a path into doc.text, which")),
        ] {
            let path: Vec<String> = path.iter().map(|&key| key.to_owned()).collect();
            let found = stream.key_problem(&[vec!["id".to_owned()], path.clone()]);
            let matches = match (&found, expected) {
                (Some(text), Some(expected)) => text.starts_with("stream \"s\": ") && text.contains(expected),
                (found, expected) => found.is_none() && expected.is_none(),
            };
            assert!(matches, "{path:?}: {found:?}");
        }
    }

    #[test]
    fn duplicate_streams_are_named() {
        let twice = r#"{"streams":[{"stream":{"name":"s","namespace":""}},{"stream":{"name":"s"}}]}"#;
        let catalog: ConfiguredCatalog = serde_json::from_str(twice).expect("a catalog");
        assert!(catalog.validate().is_err_and(|error| error.contains("\"s\" twice")));
    }

    #[test]
    fn discovered_streams_use_the_best_supported_mode() {
        let stream = |modes: &[&str], more: Value| {
            let mut stream = json!({"name": "s", "json_schema": {}, "supported_sync_modes": modes});
            for (field, value) in more.as_object().expect("an object") {
                stream[field] = value.clone();
            }
            stream
        };
        let key = json!([["id"]]);
        for (label, stream, expected) in [
            (
                "full refresh only",
                stream(&["full_refresh"], json!({"source_defined_primary_key": key})),
                ("full_refresh", "overwrite"),
            ),
            (
                "with a cursor and a key",
                stream(
                    &["full_refresh", "incremental"],
                    json!({"default_cursor_field": ["at"], "source_defined_primary_key": key}),
                ),
                ("incremental", "append_dedup"),
            ),
            (
                "without a key",
                stream(&["incremental"], json!({"source_defined_cursor": true, "source_defined_primary_key": []})),
                ("incremental", "append"),
            ),
            (
                "without a cursor",
                stream(&["full_refresh", "incremental"], json!({"default_cursor_field": []})),
                ("full_refresh", "overwrite"),
            ),
        ] {
            let configured = from_discovered(&json!({"streams": [stream]})).expect("a catalog");
            let one = &configured["streams"][0];
            assert_eq!(
                (&one["sync_mode"], &one["destination_sync_mode"]),
                (&json!(expected.0), &json!(expected.1)),
                "{label}"
            );
            let read: ConfiguredCatalog = serde_json::from_value(configured).expect("a configured catalog");
            read.validate().expect(label);
        }
        assert_eq!(from_discovered(&json!({"streams": [{"stream": {"name": "s"}}]})), None);
        assert_eq!(from_discovered(&json!({"streams": 1})), None);
    }
}
