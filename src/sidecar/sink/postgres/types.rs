//! The type of a column: from the type of a field, from a value, or from the catalog of an existing table.

use super::{numeric, time};
use crate::sidecar::sink::field_type::FieldType;

/// Digits of a second's fraction that Postgres stores.
const MICRO_DIGITS: u8 = 6;

/// The type of a column, with the limits that its values are checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// `text`, or `varchar(n)` or `char(n)` in an existing table.
    Text {
        /// The length limit, in characters.
        max_chars: Option<usize>,
        /// Spaces at the end do not count.
        padded: bool,
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
    TimestampTz {
        /// Digits of a second's fraction, up to 6.
        digits: u8,
    },
    /// `timestamp without time zone`
    Timestamp {
        /// Digits of a second's fraction, up to 6.
        digits: u8,
    },
    /// `date`
    Date,
    /// `time without time zone`
    Time {
        /// Digits of a second's fraction, up to 6.
        digits: u8,
    },
    /// `time with time zone`
    TimeTz {
        /// Digits of a second's fraction, up to 6.
        digits: u8,
    },
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
    pub const TEXT: Self = Self::Text { max_chars: None, padded: false, reformatted: false };
    /// `timestamptz`
    pub const TIMESTAMPTZ: Self = Self::TimestampTz { digits: MICRO_DIGITS };
    /// `bigint`
    pub const BIGINT: Self = Self::Integer { bytes: 8 };
    /// `numeric`
    pub const NUMERIC: Self = Self::Numeric { limits: None };
    /// `jsonb`
    pub const JSONB: Self = Self::Json { binary: true };

    /// The declaration of a new column.
    pub fn sql(self) -> &'static str {
        match self {
            Self::Text { .. } => "text",
            Self::Integer { .. } => "bigint",
            Self::Double | Self::Real => "double precision",
            Self::Numeric { .. } => "numeric",
            Self::TimestampTz { .. } => "timestamptz",
            Self::Timestamp { .. } => "timestamp",
            Self::Date => "date",
            Self::Time { .. } => "time",
            Self::TimeTz { .. } => "timetz",
            Self::Boolean => "boolean",
            Self::Json { .. } => "jsonb",
            Self::Uuid => "uuid",
        }
    }

    /// The type for a field that the JSON Schema declares.
    pub fn of_field(field: FieldType) -> Self {
        match field {
            FieldType::Text => Self::TEXT,
            FieldType::Boolean => Self::Boolean,
            FieldType::Integer => Self::BIGINT,
            FieldType::BigInteger | FieldType::Number => Self::NUMERIC,
            FieldType::Date => Self::Date,
            FieldType::Time => Self::Time { digits: MICRO_DIGITS },
            FieldType::TimeTz => Self::TimeTz { digits: MICRO_DIGITS },
            FieldType::Timestamp => Self::Timestamp { digits: MICRO_DIGITS },
            FieldType::TimestampTz => Self::TIMESTAMPTZ,
            FieldType::Document | FieldType::Any => Self::JSONB,
        }
    }

    /// The type for an undeclared field, by its first value (JSON text); `None` for null.
    pub fn of_value(raw: &str) -> Option<Self> {
        Some(match raw.as_bytes().first()? {
            b'n' => return None,
            b't' | b'f' => Self::Boolean,
            // Objects below the depth limit are not flattened.
            b'{' => Self::JSONB,
            b'"' if time::is_instant(raw.trim_matches('"')) => Self::TIMESTAMPTZ,
            b'"' | b'[' => Self::TEXT,
            _ if raw.parse::<i64>().is_ok() => Self::BIGINT,
            _ if numeric::is_valid(raw) => Self::NUMERIC,
            // Numbers beyond the range of both types.
            _ => Self::TEXT,
        })
    }

    /// The type of an existing column, by `pg_type.typname` and `atttypmod`; `None` for types whose values cannot be
    /// validated here (domains, enums, arrays, …).
    pub fn of_catalog(name: &str, modifier: i32) -> Option<Self> {
        let digits = u8::try_from(modifier).map_or(MICRO_DIGITS, |digits| digits.min(MICRO_DIGITS));
        // The stored modifier of other types includes the four bytes of the value's header.
        let modifier = (modifier >= 4).then(|| modifier - 4);
        Some(match name {
            "text" | "citext" => Self::TEXT,
            "varchar" | "bpchar" => Self::Text {
                max_chars: modifier.and_then(|length| usize::try_from(length).ok()),
                padded: name == "bpchar",
                reformatted: false,
            },
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
            "timestamptz" => Self::TimestampTz { digits },
            "timestamp" => Self::Timestamp { digits },
            "date" => Self::Date,
            "time" => Self::Time { digits },
            "timetz" => Self::TimeTz { digits },
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

    #[test]
    fn of_value_follows_the_json_text() {
        for (label, raw, expected) in [
            ("null creates no column", "null", None),
            ("boolean", "true", Some("boolean")),
            ("integer", "-9223372036854775808", Some("bigint")),
            ("beyond bigint", "9223372036854775808", Some("numeric")),
            ("decimal point", "1.0", Some("numeric")),
            ("exponent", "1E5", Some("numeric")),
            ("beyond double", "1e400", Some("numeric")),
            ("beyond numeric", "1e200000", Some("text")),
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
            (
                "varchar(10)",
                "varchar",
                14,
                Some(ColumnType::Text { max_chars: Some(10), padded: false, reformatted: false }),
            ),
            ("varchar", "varchar", -1, Some(ColumnType::TEXT)),
            ("numeric", "numeric", -1, Some(ColumnType::Numeric { limits: None })),
            ("numeric(10,2)", "numeric", (10 << 16 | 2) + 4, Some(ColumnType::Numeric { limits: Some((8, 2)) })),
            ("numeric(2,-3)", "numeric", (2 << 16 | 0x7fd) + 4, Some(ColumnType::Numeric { limits: Some((5, -3)) })),
            ("char(2)", "bpchar", 6, Some(ColumnType::Text { max_chars: Some(2), padded: true, reformatted: false })),
            ("timestamp(3)", "timestamp", 3, Some(ColumnType::Timestamp { digits: 3 })),
            ("time(0)", "time", 0, Some(ColumnType::Time { digits: 0 })),
            ("timetz", "timetz", -1, Some(ColumnType::TimeTz { digits: 6 })),
            ("array", "_int4", -1, None),
        ] {
            assert_eq!(ColumnType::of_catalog(name, modifier), expected, "{label}");
        }
    }
}
