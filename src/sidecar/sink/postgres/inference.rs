//! The type of a column for an undeclared field: the common type of the values of a batch, before the table gets the
//! column.
//!
//! A column begins with the type of its first value. A value of another type changes it, and the values before it are
//! converted: those of the chunk under construction here, those of the staging table by a statement.

use jiff::Timestamp;

use super::numeric;
use super::time;
use super::types::ColumnType;

/// The type for a column of this type and another value (JSON text).
pub fn join(kind: ColumnType, raw: &str) -> ColumnType {
    if matches!(kind, ColumnType::Text { .. } | ColumnType::Json { .. }) {
        return kind;
    }
    let is_number = |kind| matches!(kind, ColumnType::Integer { .. } | ColumnType::Numeric { .. });
    match ColumnType::of_value(raw) {
        None => kind,
        Some(other) if other == kind => kind,
        Some(other) if is_number(kind) && is_number(other) => ColumnType::NUMERIC,
        Some(_) => ColumnType::TEXT,
    }
}

/// Converts an encoded value from the type of a column to the one that [`join`] gave it.
pub fn convert(value: &[u8], from: ColumnType, to: ColumnType) -> Vec<u8> {
    let integer = i64::from_be_bytes(value.first_chunk::<8>().copied().unwrap_or_default());
    match (from, to) {
        (ColumnType::Integer { .. }, ColumnType::Numeric { .. }) => {
            let mut numeric = Vec::new();
            numeric::push(&integer.to_string(), None, &mut numeric);
            numeric
        }
        (ColumnType::Integer { .. }, _) => integer.to_string().into_bytes(),
        (ColumnType::Numeric { .. }, _) => numeric::text(value).into_bytes(),
        (ColumnType::Boolean, _) => if value == [1] { "true" } else { "false" }.into(),
        (ColumnType::TimestampTz { .. }, _) => {
            time::instant_of(integer).as_ref().map(Timestamp::to_string).unwrap_or_default().into_bytes()
        }
        _ => value.to_vec(),
    }
}

/// The same conversion in SQL, of this column.
pub fn conversion(column: &str, from: &str, to: &str) -> String {
    match (from, to) {
        ("timestamptz" | "timestamp with time zone", "text") => format!(
            "regexp_replace(to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US'), '\\.?0+$', '') || 'Z'"
        ),
        _ => format!("{column}::{to}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{ColumnType, join};

    #[test]
    fn join_finds_the_common_type() {
        for (label, values, expected) in [
            ("integers", &["1", "-2"][..], "bigint"),
            ("an integer and a fraction", &["1", "1.5"], "numeric"),
            ("a fraction and an integer", &["1.5", "1"], "numeric"),
            ("a long integer and a fraction", &["9007199254740993", "1.5"], "numeric"),
            ("an integer and one beyond bigint", &["1", "9223372036854775808"], "numeric"),
            ("an integer and one beyond numeric", &["1", "1e200000"], "text"),
            ("an integer and a text", &["1", "\"x\""], "text"),
            ("a fraction, an integer and a text", &["1.5", "1", "\"x\""], "text"),
            ("an integer and digits in a text", &["1", "\"02\""], "text"),
            ("a text and an integer", &["\"x\"", "1"], "text"),
            ("booleans", &["true", "false"], "boolean"),
            ("a boolean and an integer", &["true", "1"], "text"),
            ("times", &["\"2024-05-01T00:00:00Z\"", "\"2024-05-01T00:00:00.5+02:00\""], "timestamptz"),
            ("a time and a text", &["\"2024-05-01T00:00:00Z\"", "\"soon\""], "text"),
            ("an integer and a list", &["1", "[]"], "text"),
            ("nulls between", &["1", "null", "2"], "bigint"),
        ] {
            let first = ColumnType::of_value(values[0]).expect(label);
            let kind = values.iter().fold(first, |kind, raw| join(kind, raw));
            assert_eq!(kind.sql(), expected, "{label}");
        }
    }
}
