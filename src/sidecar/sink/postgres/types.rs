//! Types of columns: from a JSON schema, from a value, from an existing table.
//!
//! Pure. What a value looks like in a column of a type is in `value`.

use serde_json::Value;

use super::{number, time};

/// What a column holds, as far as values have to be checked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// `text`, or a `varchar(n)` that somebody else made.
    Text {
        /// The most characters it takes.
        longest: Option<usize>,
    },
    /// `smallint`, `integer`, `bigint`: the number of bytes.
    Integer {
        /// 2, 4 or 8.
        bytes: u8,
    },
    /// `double precision`
    Double,
    /// `real`
    Real,
    /// `numeric`, or a `numeric(p,s)`
    Numeric {
        /// Digits before and after the point.
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
    /// `jsonb`, or a `json` that somebody else made.
    Json {
        /// `jsonb`
        binary: bool,
    },
    /// `uuid`
    Uuid,
}

impl ColumnType {
    /// `text`
    pub const TEXT: Self = Self::Text { longest: None };
    /// `bigint`
    pub const BIGINT: Self = Self::Integer { bytes: 8 };
    /// `jsonb`
    pub const JSONB: Self = Self::Json { binary: true };

    /// How a column of our own making is declared.
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

    /// The type for a declared field.
    pub fn of_schema(field: &Value) -> Self {
        if field.get("oneOf").is_some() {
            return Self::TEXT;
        }
        let word = |key: &str| field.get(key).and_then(Value::as_str);
        let kind = match field.get("type") {
            Some(Value::String(kind)) => Some(kind.as_str()),
            Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
            _ => None,
        };
        match kind {
            Some("string") if matches!(word("format"), Some("date-time" | "date")) => Self::TimestampTz,
            Some("integer") => Self::BIGINT,
            Some("number") => {
                if word("airbyte_type") == Some("integer") {
                    Self::BIGINT
                } else {
                    Self::Double
                }
            }
            Some("boolean") => Self::Boolean,
            Some("array" | "object") => Self::JSONB,
            _ => Self::TEXT,
        }
    }

    /// The type for an undeclared field whose first value, as JSON text, is this one; `None` for null.
    pub fn of_value(raw: &str) -> Option<Self> {
        Some(match raw.as_bytes().first()? {
            b'n' => return None,
            b't' | b'f' => Self::Boolean,
            b'[' => Self::TEXT,
            // Reached only where objects are not flattened any more.
            b'{' => Self::JSONB,
            b'"' => {
                if time::is_instant(raw.trim_matches('"')) {
                    Self::TimestampTz
                } else {
                    Self::TEXT
                }
            }
            _ if raw.contains(['.', 'e', 'E']) => {
                if number::double(raw).is_none() {
                    Self::TEXT
                } else {
                    Self::Double
                }
            }
            _ => {
                if number::is_bigint(raw) {
                    Self::BIGINT
                } else {
                    Self::TEXT
                }
            }
        })
    }

    /// The type of an existing column, by `pg_type.typname` and `atttypmod`; `None` where values cannot be checked
    /// beforehand (domains, enums, arrays, …).
    pub fn of_catalog(name: &str, modifier: i32) -> Option<Self> {
        // A length is stored with the four bytes of its header.
        let modifier = (modifier >= 4).then(|| modifier - 4);
        Some(match name {
            "text" | "citext" => Self::TEXT,
            "varchar" => Self::Text { longest: modifier.and_then(|longest| usize::try_from(longest).ok()) },
            "int2" => Self::Integer { bytes: 2 },
            "int4" => Self::Integer { bytes: 4 },
            "int8" => Self::BIGINT,
            "float4" => Self::Real,
            "float8" => Self::Double,
            "numeric" => Self::Numeric {
                limits: modifier.map(|packed| {
                    let (precision, scale) = (i64::from(packed >> 16), i64::from(packed & 0x7ff));
                    // Eleven bits, signed, since Postgres 15.
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
    fn declared_fields_are_typed_by_the_rules() {
        for (label, schema, expected) in [
            ("string", json!({"type": "string"}), "text"),
            ("integer", json!({"type": "integer"}), "bigint"),
            ("number", json!({"type": "number"}), "double precision"),
            ("whole number", json!({"type": "number", "airbyte_type": "integer"}), "bigint"),
            ("boolean", json!({"type": "boolean"}), "boolean"),
            ("date-time", json!({"type": "string", "format": "date-time"}), "timestamptz"),
            ("date", json!({"type": ["null", "string"], "format": "date"}), "timestamptz"),
            ("another format", json!({"type": "string", "format": "uuid"}), "text"),
            ("array", json!({"type": "array"}), "jsonb"),
            ("object", json!({"type": ["null", "object"]}), "jsonb"),
            ("oneOf", json!({"oneOf": [{"type": "integer"}], "type": "integer"}), "text"),
            ("first that is not null", json!({"type": ["null", "integer", "string"]}), "bigint"),
            ("only null", json!({"type": ["null"]}), "text"),
            ("nothing", json!({}), "text"),
            ("a schema that is a boolean", json!(true), "text"),
        ] {
            assert_eq!(ColumnType::of_schema(&schema).sql(), expected, "{label}");
        }
    }

    #[test]
    fn undeclared_fields_are_typed_by_their_first_value() {
        for (label, raw, expected) in [
            ("null creates no column", "null", None),
            ("boolean", "true", Some("boolean")),
            ("integer", "-9223372036854775808", Some("bigint")),
            ("beyond bigint", "9223372036854775808", Some("text")),
            ("point", "1.0", Some("double precision")),
            ("exponent", "1E5", Some("double precision")),
            ("largest double", "1.797e308", Some("double precision")),
            ("beyond double", "1e400", Some("text")),
            ("array", "[1]", Some("text")),
            ("string", "\"a\"", Some("text")),
            ("instant", "\"2024-01-31T10:00:00Z\"", Some("timestamptz")),
            ("instant with an offset", "\"2024-01-31T10:00:00.123+02:00\"", Some("timestamptz")),
            ("no such day", "\"2024-02-31T10:00:00Z\"", Some("text")),
            ("date alone", "\"2024-01-31\"", Some("text")),
            ("digits in a string", "\"12\"", Some("text")),
        ] {
            assert_eq!(ColumnType::of_value(raw).map(ColumnType::sql), expected, "{label}");
        }
    }

    #[test]
    fn existing_columns_bring_their_limits() {
        for (label, name, modifier, expected) in [
            ("varchar(10)", "varchar", 14, Some(ColumnType::Text { longest: Some(10) })),
            ("varchar", "varchar", -1, Some(ColumnType::TEXT)),
            ("numeric", "numeric", -1, Some(ColumnType::Numeric { limits: None })),
            ("numeric(10,2)", "numeric", (10 << 16 | 2) + 4, Some(ColumnType::Numeric { limits: Some((8, 2)) })),
            ("numeric(2,-3)", "numeric", (2 << 16 | 0x7fd) + 4, Some(ColumnType::Numeric { limits: Some((5, -3)) })),
            ("an array", "_int4", -1, None),
        ] {
            assert_eq!(ColumnType::of_catalog(name, modifier), expected, "{label}");
        }
    }
}
