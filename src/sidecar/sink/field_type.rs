//! The type of a field, from its JSON Schema: what the Airbyte protocol calls a data type. All destinations use it. Pure.

use serde_json::Value;

/// The type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldType {
    /// Also base64 of binary data.
    Text,
    /// `true` or `false`.
    Boolean,
    /// An integer of 64 bits.
    Integer,
    /// An integer of any size.
    BigInteger,
    /// A number with any digits.
    Number,
    /// A day.
    Date,
    /// A time of day without an offset.
    Time,
    /// A time of day with an offset.
    TimeTz,
    /// A time without an offset.
    Timestamp,
    /// An instant.
    TimestampTz,
    /// An object or an array.
    Document,
    /// Any JSON value: the schema declares several types, or none.
    Any,
}

/// Unions in unions are followed down to this depth.
const MAX_DEPTH: usize = 8;

impl FieldType {
    /// The type that the schema declares; null is always allowed.
    pub fn of_schema(schema: &Value) -> Self {
        alternatives(schema, 0).unwrap_or(Self::Any)
    }

    /// The type of values of either type.
    fn union(self, other: Self) -> Self {
        let is_number = |kind| matches!(kind, Self::Integer | Self::BigInteger | Self::Number);
        let is_string = |kind| {
            matches!(kind, Self::Text | Self::Date | Self::Time | Self::TimeTz | Self::Timestamp | Self::TimestampTz)
        };
        match (self, other) {
            _ if self == other => self,
            (Self::Integer | Self::BigInteger, Self::Integer | Self::BigInteger) => Self::BigInteger,
            _ if is_number(self) && is_number(other) => Self::Number,
            _ if is_string(self) && is_string(other) => Self::Text,
            _ => Self::Any,
        }
    }
}

/// The common type of a schema's alternatives; `None` if it allows nothing but null.
fn alternatives(schema: &Value, depth: usize) -> Option<FieldType> {
    let text = |key: &str| schema.get(key).and_then(Value::as_str);
    if depth > MAX_DEPTH || !schema.is_object() {
        return Some(FieldType::Any);
    }
    if let Some(reference) = text("$ref") {
        return Some(well_known(reference));
    }
    let named = |kind: &str| match kind {
        "null" => None,
        kind => Some(named(kind, text("format"), text("airbyte_type"))),
    };
    let union = |types: &mut dyn Iterator<Item = Option<FieldType>>| types.flatten().reduce(FieldType::union);
    let by_type = match schema.get("type") {
        Some(Value::String(kind)) => Some(named(kind)),
        Some(Value::Array(kinds)) if !kinds.is_empty() => {
            Some(union(&mut kinds.iter().filter_map(Value::as_str).map(named)))
        }
        _ => None,
    };
    // A single type includes what the parts of a union say of it.
    if let Some(single) = by_type.filter(|kind| *kind != Some(FieldType::Any)) {
        return single;
    }
    let parts = ["oneOf", "anyOf"].iter().find_map(|key| schema.get(*key)?.as_array()).or_else(|| {
        // Nothing but another schema.
        schema.get("allOf")?.as_array().filter(|parts| parts.len() == 1)
    });
    if let Some(parts) = parts {
        return union(&mut parts.iter().map(|part| alternatives(part, depth + 1)));
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return union(&mut values.iter().map(of_value));
    }
    if let Some(value) = schema.get("const") {
        return of_value(value);
    }
    by_type.unwrap_or_else(|| {
        let is_document = ["properties", "additionalProperties", "items"].iter().any(|key| schema.get(*key).is_some());
        let is_string = text("format").is_some() || text("airbyte_type").is_some();
        match (is_document, is_string) {
            (true, _) => Some(FieldType::Document),
            (false, true) => named("string"),
            (false, false) => Some(FieldType::Any),
        }
    })
}

/// The type that `type` declares, with the keywords that narrow it.
fn named(kind: &str, format: Option<&str>, airbyte_type: Option<&str>) -> FieldType {
    match (kind, airbyte_type) {
        ("string" | "number" | "integer", Some("big_integer")) => FieldType::BigInteger,
        ("string" | "number" | "integer", Some("big_number")) | ("number", None) => FieldType::Number,
        ("number" | "integer", Some("integer")) | ("integer", _) => FieldType::Integer,
        ("number", _) => FieldType::Number,
        ("boolean", _) => FieldType::Boolean,
        ("array" | "object", _) => FieldType::Document,
        ("string", Some("timestamp_with_timezone")) => FieldType::TimestampTz,
        ("string", Some("timestamp_without_timezone")) => FieldType::Timestamp,
        ("string", Some("time_with_timezone")) => FieldType::TimeTz,
        ("string", Some("time_without_timezone")) => FieldType::Time,
        ("string", _) => match format {
            Some("date-time") => FieldType::TimestampTz,
            Some("date") => FieldType::Date,
            // `time` alone leaves open whether there are offsets: a text keeps both forms.
            _ => FieldType::Text,
        },
        _ => FieldType::Any,
    }
}

/// The type that a `$ref` of the protocol's version 1 names: `WellKnownTypes.json#/definitions/Number`.
fn well_known(reference: &str) -> FieldType {
    match reference.rsplit('/').next().unwrap_or_default() {
        "String" | "BinaryData" => FieldType::Text,
        "Boolean" => FieldType::Boolean,
        "Integer" => FieldType::Integer,
        "Number" => FieldType::Number,
        "Date" => FieldType::Date,
        "TimestampWithTimezone" => FieldType::TimestampTz,
        "TimestampWithoutTimezone" => FieldType::Timestamp,
        "TimeWithTimezone" => FieldType::TimeTz,
        "TimeWithoutTimezone" => FieldType::Time,
        _ => FieldType::Any,
    }
}

/// The type of a value that the schema lists; `None` for null.
fn of_value(value: &Value) -> Option<FieldType> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(_) => FieldType::Boolean,
        Value::Number(number) if number.is_i64() => FieldType::Integer,
        Value::Number(_) => FieldType::Number,
        Value::String(_) => FieldType::Text,
        Value::Array(_) | Value::Object(_) => FieldType::Document,
    })
}

#[cfg(test)]
mod tests {
    use super::FieldType::{
        self, Any, BigInteger, Boolean, Date, Document, Integer, Number, Text, Time, TimeTz, Timestamp, TimestampTz,
    };
    use serde_json::{Value, json};

    #[test]
    fn types_follow_the_protocol() {
        let string = |format: &str, airbyte_type: &str| json!({"type": ["null", "string"], "format": format, "airbyte_type": airbyte_type});
        for (schema, expected) in [
            (json!({"type": "string"}), Text),
            (json!({"type": "integer"}), Integer),
            (json!({"type": "number"}), Number),
            (json!({"type": "number", "airbyte_type": "integer"}), Integer),
            (json!({"type": ["integer", "null"], "airbyte_type": "big_integer"}), BigInteger),
            (json!({"type": "string", "airbyte_type": "big_integer"}), BigInteger),
            (json!({"type": "string", "airbyte_type": "big_number"}), Number),
            (json!({"type": "boolean"}), Boolean),
            (json!({"type": "string", "format": "date"}), Date),
            (json!({"type": "string", "format": "date-time"}), TimestampTz),
            (json!({"type": "string", "format": "time"}), Text),
            (json!({"type": "string", "format": "uuid"}), Text),
            (json!({"type": "string", "contentEncoding": "base64"}), Text),
            (string("date-time", "timestamp_with_timezone"), TimestampTz),
            (string("date-time", "timestamp_without_timezone"), Timestamp),
            (json!({"type": "string", "airbyte_type": "timestamp_without_timezone"}), Timestamp),
            (string("time", "time_with_timezone"), TimeTz),
            (string("time", "time_without_timezone"), Time),
            (json!({"type": "array", "items": {"type": "integer"}}), Document),
            (json!({"type": ["null", "object"]}), Document),
            (json!({"properties": {}}), Document),
            (json!({"items": {}}), Document),
            (json!({"format": "date"}), Date),
            (json!({"enum": ["a", null, "b"]}), Text),
            (json!({"enum": [1, 2.5]}), Number),
            (json!({"const": true}), Boolean),
            (json!({"type": "decimal"}), Any),
            (json!({"type": []}), Any),
            (json!({}), Any),
            (json!(true), Any),
            (Value::Null, Any),
        ] {
            assert_eq!(FieldType::of_schema(&schema), expected, "{schema}");
        }
    }

    #[test]
    fn references_of_version_1_are_known() {
        for (name, expected) in [
            ("String", Text),
            ("BinaryData", Text),
            ("Boolean", Boolean),
            ("Integer", Integer),
            ("Number", Number),
            ("Date", Date),
            ("TimestampWithTimezone", TimestampTz),
            ("TimestampWithoutTimezone", Timestamp),
            ("TimeWithTimezone", TimeTz),
            ("TimeWithoutTimezone", Time),
            ("Other", Any),
        ] {
            for file in ["WellKnownTypes.json#/definitions/", "WellKnownTypes.json#definitions/"] {
                let reference = json!({"$ref": format!("{file}{name}")});
                assert_eq!(FieldType::of_schema(&reference), expected, "{name}");
                let union = json!({"oneOf": [{"type": "null"}, reference]});
                assert_eq!(FieldType::of_schema(&union), expected, "{name} or null");
            }
        }
    }

    #[test]
    fn unions_with_null_are_the_other_type() {
        let date = json!({"type": "string", "format": "date"});
        for (schema, expected) in [
            (json!({"type": ["null", "integer"]}), Integer),
            (json!({"type": ["boolean"]}), Boolean),
            (json!({"oneOf": [{"type": "null"}, date]}), Date),
            (json!({"anyOf": [date, {"type": "null"}]}), Date),
            (json!({"anyOf": [{"type": ["null", "number"]}]}), Number),
            (json!({"oneOf": [{"type": "null"}, {"anyOf": [{"type": "array"}, {"type": "null"}]}]}), Document),
            (json!({"allOf": [date]}), Date),
            (json!({"oneOf": [{"type": "integer"}], "type": "integer"}), Integer),
            (json!({"type": ["null", "object"], "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}), Document),
            (json!({"type": ["integer", "number", "null"]}), Number),
            (json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}), Number),
            (json!({"anyOf": [{"type": "integer"}, {"type": "integer", "airbyte_type": "big_integer"}]}), BigInteger),
            (json!({"anyOf": [{"type": "array"}, {"type": "object"}]}), Document),
            (json!({"anyOf": [date, {"type": "string"}]}), Text),
            (json!({"type": ["null", "integer", "string"]}), Any),
            (json!({"type": ["string", "object"], "format": "date"}), Any),
            (json!({"oneOf": [{"type": "boolean"}, {"type": "integer"}]}), Any),
            (json!({"anyOf": [{"type": "string"}, {}]}), Any),
            (json!({"type": ["string", "integer"], "anyOf": [{"type": "integer"}]}), Integer),
            (json!({"type": "null"}), Any),
            (json!({"oneOf": [{"type": "null"}]}), Any),
        ] {
            assert_eq!(FieldType::of_schema(&schema), expected, "{schema}");
        }
    }
}
