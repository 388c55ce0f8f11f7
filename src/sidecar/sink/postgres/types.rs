//! The type of a column: from a JSON Schema, from a value, or from the catalog of an existing table.

use serde_json::Value;

use super::{number, time};

/// The type of a column, with the limits that its values are checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// `text`, or `varchar(n)` in an existing table.
    Text {
        /// The length limit, in characters.
        max_chars: Option<usize>,
        /// Values have the form in which the existing implementation stored them: see [`reformat`](super::reformat).
        reformatted: bool,
    },
    /// `smallint`, `integer` or `bigint`.
    Integer {
        /// 2, 4 or 8.
        bytes: u8,
    },
    /// `double precision`
    Double,
    /// `real`
    Real,
    /// `numeric`, or `numeric(p,s)` in an existing table.
    Numeric {
        /// The most digits before and after the decimal point.
        limits: Option<(i64, i64)>,
    },
    /// `timestamp with time zone`
    TimestampTz,
    /// `timestamp without time zone`
    Timestamp,
    /// `date`
    Date,
    /// `boolean`
    Boolean,
    /// `jsonb`, or `json` in an existing table.
    Json {
        /// Whether it is `jsonb`.
        binary: bool,
    },
    /// `uuid`
    Uuid,
}

impl ColumnType {
    /// `text`
    pub const TEXT: Self = Self::Text { max_chars: None, reformatted: false };
    /// `bigint`
    pub const BIGINT: Self = Self::Integer { bytes: 8 };
    /// `jsonb`
    pub const JSONB: Self = Self::Json { binary: true };

    /// The declaration of a new column.
    pub fn sql(self) -> &'static str {
        match self {
            Self::Text { .. } => "text",
            Self::Integer { .. } => "bigint",
            Self::Double | Self::Real => "double precision",
            Self::Numeric { .. } => "numeric",
            Self::TimestampTz | Self::Timestamp => "timestamptz",
            Self::Date => "date",
            Self::Boolean => "boolean",
            Self::Json { .. } => "jsonb",
            Self::Uuid => "uuid",
        }
    }

    /// The type for a field that the JSON Schema declares.
    pub fn of_schema(field: &Value) -> Self {
        if field.get("oneOf").is_some() {
            return Self::TEXT;
        }
        let text = |key: &str| field.get(key).and_then(Value::as_str);
        let kind = match field.get("type") {
            Some(Value::String(kind)) => Some(kind.as_str()),
            Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
            _ => None,
        };
        match kind {
            Some("string") if matches!(text("format"), Some("date-time" | "date")) => Self::TimestampTz,
            Some("integer") => Self::BIGINT,
            Some("number") if text("airbyte_type") == Some("integer") => Self::BIGINT,
            Some("number") => Self::Double,
            Some("boolean") => Self::Boolean,
            Some("array" | "object") => Self::JSONB,
            _ => Self::TEXT,
        }
    }

    /// The type for an undeclared field, by its first value (JSON text); `None` for null.
    pub fn of_value(raw: &str) -> Option<Self> {
        Some(match raw.as_bytes().first()? {
            b'n' => return None,
            b't' | b'f' => Self::Boolean,
            // Objects below the depth limit are not flattened.
            b'{' => Self::JSONB,
            b'"' if time::is_instant(raw.trim_matches('"')) => Self::TimestampTz,
            b'"' | b'[' => Self::TEXT,
            _ if raw.parse::<i64>().is_ok() => Self::BIGINT,
            _ if raw.contains(['.', 'e', 'E']) && number::double(raw).is_some() => Self::Double,
            // Numbers beyond the range of both types.
            _ => Self::TEXT,
        })
    }

    /// The type of an existing column, by `pg_type.typname` and `atttypmod`; `None` for types whose values cannot be
    /// validated here (domains, enums, arrays, …).
    pub fn of_catalog(name: &str, modifier: i32) -> Option<Self> {
        // The stored modifier includes the four bytes of the value's header.
        let modifier = (modifier >= 4).then(|| modifier - 4);
        Some(match name {
            "text" | "citext" => Self::TEXT,
            "varchar" => {
                let max_chars = modifier.and_then(|length| usize::try_from(length).ok());
                Self::Text { max_chars, reformatted: false }
            }
            "int2" => Self::Integer { bytes: 2 },
            "int4" => Self::Integer { bytes: 4 },
            "int8" => Self::BIGINT,
            "float4" => Self::Real,
            "float8" => Self::Double,
            "numeric" => Self::Numeric {
                limits: modifier.map(|packed| {
                    let (precision, scale) = (i64::from(packed >> 16), i64::from(packed & 0x7ff));
                    // Since Postgres 15 the scale is a signed number of eleven bits.
                    let scale = if scale >= 1024 { scale - 2048 } else { scale };
                    (precision - scale, scale)
                }),
            },
            "timestamptz" => Self::TimestampTz,
            "timestamp" => Self::Timestamp,
            "date" => Self::Date,
            "bool" => Self::Boolean,
            "json" => Self::Json { binary: false },
            "jsonb" => Self::JSONB,
            "uuid" => Self::Uuid,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::ColumnType;
    use serde_json::json;

    #[test]
    fn of_schema_follows_the_declared_type() {
        for (label, schema, expected) in [
            ("string", json!({"type": "string"}), "text"),
            ("integer", json!({"type": "integer"}), "bigint"),
            ("number", json!({"type": "number"}), "double precision"),
            ("number with airbyte_type integer", json!({"type": "number", "airbyte_type": "integer"}), "bigint"),
            ("boolean", json!({"type": "boolean"}), "boolean"),
            ("date-time", json!({"type": "string", "format": "date-time"}), "timestamptz"),
            ("date", json!({"type": ["null", "string"], "format": "date"}), "timestamptz"),
            ("another format", json!({"type": "string", "format": "uuid"}), "text"),
            ("array", json!({"type": "array"}), "jsonb"),
            ("object", json!({"type": ["null", "object"]}), "jsonb"),
            ("oneOf", json!({"oneOf": [{"type": "integer"}], "type": "integer"}), "text"),
            ("first type that is not null", json!({"type": ["null", "integer", "string"]}), "bigint"),
            ("only null", json!({"type": ["null"]}), "text"),
            ("empty schema", json!({}), "text"),
            ("boolean schema", json!(true), "text"),
        ] {
            assert_eq!(ColumnType::of_schema(&schema).sql(), expected, "{label}");
        }
    }

    #[test]
    fn of_value_follows_the_json_text() {
        for (label, raw, expected) in [
            ("null creates no column", "null", None),
            ("boolean", "true", Some("boolean")),
            ("integer", "-9223372036854775808", Some("bigint")),
            ("beyond bigint", "9223372036854775808", Some("text")),
            ("decimal point", "1.0", Some("double precision")),
            ("exponent", "1E5", Some("double precision")),
            ("largest double", "1.797e308", Some("double precision")),
            ("beyond double", "1e400", Some("text")),
            ("array", "[1]", Some("text")),
            ("string", "\"a\"", Some("text")),
            ("instant", "\"2024-01-31T10:00:00Z\"", Some("timestamptz")),
            ("instant with an offset", "\"2024-01-31T10:00:00.123+02:00\"", Some("timestamptz")),
            ("invalid day", "\"2024-02-31T10:00:00Z\"", Some("text")),
            ("date without a time", "\"2024-01-31\"", Some("text")),
            ("digits in a string", "\"12\"", Some("text")),
        ] {
            assert_eq!(ColumnType::of_value(raw).map(ColumnType::sql), expected, "{label}");
        }
    }

    #[test]
    fn of_catalog_reads_length_precision_and_scale() {
        for (label, name, modifier, expected) in [
            ("varchar(10)", "varchar", 14, Some(ColumnType::Text { max_chars: Some(10), reformatted: false })),
            ("varchar", "varchar", -1, Some(ColumnType::TEXT)),
            ("numeric", "numeric", -1, Some(ColumnType::Numeric { limits: None })),
            ("numeric(10,2)", "numeric", (10 << 16 | 2) + 4, Some(ColumnType::Numeric { limits: Some((8, 2)) })),
            ("numeric(2,-3)", "numeric", (2 << 16 | 0x7fd) + 4, Some(ColumnType::Numeric { limits: Some((5, -3)) })),
            ("array", "_int4", -1, None),
        ] {
            assert_eq!(ColumnType::of_catalog(name, modifier), expected, "{label}");
        }
    }
}
