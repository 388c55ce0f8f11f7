//! Encodes rows as lines of JSON, unchanged where possible.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use jiff::Timestamp;
use memchr::memchr2;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::fields::{Names, TIMESTAMP};
use crate::sidecar::sink::postgres::names::suffixed;

/// Size of Bulker's line buffer: a line that does not fit, including its newline, fails the whole request.
pub const LINE_LIMIT: usize = 1 << 20;

/// Why a row cannot be sent.
#[derive(Debug, PartialEq, Eq)]
pub enum RowError {
    /// Not a JSON object.
    NotAnObject,
    /// The length of the line in bytes.
    TooLong(usize),
}

/// Encodes the rows of one stream.
#[derive(Debug)]
pub struct Encoder {
    /// Convert names to lower case.
    same_case: bool,
    names: Names,
    /// Rows get the time when they are loaded.
    add_meta: bool,
}

impl Encoder {
    /// `add_meta` adds a timestamp to each row.
    pub fn new(names: Names, same_case: bool, add_meta: bool) -> Self {
        Self { same_case, names, add_meta }
    }

    /// Appends a row with its newline. Appends nothing on an error.
    pub fn push(&mut self, data: &str, into: &mut Vec<u8>) -> Result<(), RowError> {
        let data = data.trim();
        if !data.starts_with('{') || !data.ends_with('}') {
            return Err(RowError::NotAnObject);
        }
        let data = if self.same_case { self.lower(data)? } else { Cow::Borrowed(data) };
        let begin = into.len();
        into.extend_from_slice(data.as_bytes());
        // JSON allows raw newlines only between tokens.
        let mut at = begin;
        while let Some(found) = memchr2(b'\n', b'\r', &into[at..]) {
            into[at + found] = b' ';
            at += found + 1;
        }
        if self.add_meta {
            let inner = data[1..data.len() - 1].trim();
            into.pop();
            into.extend_from_slice(if inner.is_empty() { b"" } else { b"," });
            into.extend_from_slice(format!("\"{TIMESTAMP}\":\"{}\"}}", Timestamp::now()).as_bytes());
        }
        into.push(b'\n');
        let length = into.len() - begin;
        if length >= LINE_LIMIT {
            into.truncate(begin);
            return Err(RowError::TooLong(length));
        }
        Ok(())
    }

    fn lower<'a>(&self, data: &'a str) -> Result<Cow<'a, str>, RowError> {
        let pairs = Pairs::parse(data).ok_or(RowError::NotAnObject)?;
        let mut out = String::with_capacity(data.len());
        write_lower(&pairs, Some(&self.names), &mut out);
        Ok(Cow::Owned(out))
    }
}

/// Writes an object with lower-case names, also in nested objects that Bulker flattens into columns. Declared objects are
/// JSON documents and keep their names. Of two fields that differ in case, the one that keeps its name has precedence, then the
/// first one; the other one gets a suffix.
fn write_lower(pairs: &Pairs<'_>, names: Option<&Names>, out: &mut String) {
    let unchanged: HashSet<&str> =
        pairs.0.iter().map(|(key, _)| key.as_ref()).filter(|key| key.to_lowercase() == *key).collect();
    let mut used = HashSet::new();
    out.push('{');
    for (at, (key, value)) in pairs.0.iter().enumerate() {
        let declared = names.filter(|names| names.is_declared(key));
        let mut name = match declared {
            Some(names) => names.of_declared(key).to_owned(),
            None => key.to_lowercase(),
        };
        let is_taken = used.contains(&name)
            || name != **key && unchanged.contains(name.as_str())
            || names.is_some_and(|names| names.is_taken(&name));
        if is_taken && declared.is_none() {
            name = suffixed(&name, key);
        }
        out.push_str(if at == 0 { "" } else { "," });
        out.push_str(&serde_json::Value::from(name.as_str()).to_string());
        out.push(':');
        used.insert(name);
        match Pairs::parse(value.get()).filter(|_| declared.is_none()) {
            Some(inner) => write_lower(&inner, None, out),
            None => out.push_str(value.get()),
        }
    }
    out.push('}');
}

/// The fields of an object in order, including duplicates.
struct Pairs<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Pairs<'a> {
    /// `None` if the text is not an object.
    fn parse(text: &'a str) -> Option<Self> {
        if text.starts_with('{') { serde_json::from_str(text).ok() } else { None }
    }
}

#[derive(Deserialize, PartialEq, Eq, Hash)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Pairs<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some((Key(key), value)) = map.next_entry()? {
                    pairs.push((key, value));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::{Encoder, LINE_LIMIT, RowError};
    use crate::airbyte::message::StreamName;
    use crate::sidecar::sink::bulker::fields::{Fields, Names};
    use crate::sidecar::sink::{Generation, StreamSpec, WriteMode};
    use jiff::Timestamp;
    use serde_json::{Value, json};

    fn line(encoder: &mut Encoder, data: &str) -> String {
        let mut out = b"before\n".to_vec();
        encoder.push(data, &mut out).unwrap_or_else(|error| panic!("{data}: {error:?}"));
        let text = String::from_utf8(out).expect("text");
        let line = text.strip_prefix("before\n").and_then(|line| line.strip_suffix('\n')).expect("one more line");
        assert!(!line.contains('\n'), "{line}");
        line.to_owned()
    }

    #[test]
    fn rows_are_unchanged_except_for_raw_newlines() {
        let mut encoder = Encoder::new(Names::default(), false, false);
        for (label, data, expected) in [
            ("byte for byte", r#"{"n": 9007199254740993, "b":1e400,"a":1,"a":2}"#, None),
            ("raw newlines become spaces", "{\"a\":\r\n [1,\n2]}", Some("{\"a\":   [1, 2]}")),
            ("escaped newlines are kept", r#"{"a":"x\ny"}"#, None),
            ("surrounding spaces", " {} ", Some("{}")),
        ] {
            assert_eq!(line(&mut encoder, data), expected.unwrap_or(data), "{label}");
        }
    }

    #[test]
    fn timestamps_are_appended() {
        let mut encoder = Encoder::new(Names::default(), false, true);
        let before = Timestamp::now();
        for (data, fields) in [(r#"{"a":"}"}"#, 2), ("{ }", 1)] {
            let row: Value = serde_json::from_str(&line(&mut encoder, data)).expect("JSON");
            assert_eq!(row.as_object().map(serde_json::Map::len), Some(fields), "{row}");
            let at: Timestamp = row["_jitsu_timestamp"].as_str().and_then(|at| at.parse().ok()).expect("a time");
            assert!((before..=Timestamp::now()).contains(&at), "{row}: the time of loading");
        }
    }

    #[test]
    fn invalid_rows_are_rejected_and_append_nothing() {
        let mut encoder = Encoder::new(Names::default(), false, false);
        let row = |bytes: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes - 8));
        let mut out = b"before\n".to_vec();
        for (label, data, expected) in [
            ("a list", "[1]".to_owned(), RowError::NotAnObject),
            ("null", "null".to_owned(), RowError::NotAnObject),
            ("a text", "\"ABORT\"".to_owned(), RowError::NotAnObject),
            ("too long", row(LINE_LIMIT - 1), RowError::TooLong(LINE_LIMIT)),
        ] {
            assert_eq!(encoder.push(&data, &mut out), Err(expected), "{label}");
            assert_eq!(out, b"before\n", "{label}");
        }
        assert_eq!(encoder.push(&row(LINE_LIMIT - 2), &mut out), Ok(()), "the longest row");
        assert_eq!(out.len(), 7 + LINE_LIMIT - 1);
    }

    #[test]
    fn column_names_are_lowercased() {
        let spec = StreamSpec {
            name: StreamName::new(None, "s"),
            schema: None,
            table: "s".to_owned(),
            json_schema: json!({"properties": {"Id": {"type": "integer"}, "Doc": {"type": "object"}, "Up": {}, "up": {}}}),
            mode: WriteMode::Append,
            primary_key: Vec::new(),
            cursor: Vec::new(),
            to_same_case: true,
            add_meta: false,
            airbyte: crate::sidecar::sink::AirbyteSpec::default(),
            cdc_deletion: None,
            replaces_at_first_commit: false,
            generation: Generation::default(),
        };
        let names = Fields::new(&spec, "s").names;
        let suffixed = names.of_declared("Up").to_owned();
        let mut encoder = Encoder::new(names, true, false);
        let data = r#"{"Id":1.00,"Doc":{"A":{"B":"C"}},"Free":{"A":{"B":["C",{"D":1}]}},"Up":1,"up":2,"X":3,"x":4}"#;
        let lowered: Value = serde_json::from_str(&line(&mut encoder, data)).expect("JSON");
        let mut expected =
            json!({"id": 1.00, "doc": {"A": {"B": "C"}}, "free": {"a": {"b": ["C", {"D": 1}]}}, "up": 2, "x": 4});
        expected[&suffixed] = json!(1);
        let rest = lowered.as_object().expect("an object").keys().find(|key| key.starts_with("x_")).expect("a suffix");
        expected[rest] = json!(3);
        assert_eq!(lowered, expected);
        assert!(line(&mut encoder, data).contains("1.00"), "values keep their text");
    }
}
