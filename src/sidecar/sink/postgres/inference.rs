//! The type of a column for an undeclared field: the common type of the values of a batch, before the table gets the
//! column.
//!
//! A column begins with the type of its first value. A value of another type changes it, and the values before it are
//! converted: those of the chunk under construction here, those of the staging table by a statement.

use jiff::Timestamp;

use super::number;
use super::time;
use super::types::ColumnType;

/// Integers of at most this many digits convert to `double precision` and back unchanged.
const DOUBLE_EXACT_DIGITS: usize = 15;

/// What the values of a column so far have in common, besides their type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inference {
    /// Some integers have more digits than `double precision` holds exactly.
    has_long_integers: bool,
}

impl Inference {
    /// The type for a column of this type and another value (JSON text).
    pub fn join(&mut self, kind: ColumnType, raw: &str) -> ColumnType {
        let is_integer = || raw.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        match kind {
            ColumnType::Integer { .. } if is_integer() => {
                self.has_long_integers |= raw.len() > DOUBLE_EXACT_DIGITS;
                // Beyond bigint.
                if raw.parse::<i64>().is_ok() { kind } else { ColumnType::TEXT }
            }
            ColumnType::Text { .. } | ColumnType::Json { .. } | ColumnType::Numeric { .. } => kind,
            _ => {
                match ColumnType::of_value(raw) {
                    None => kind,
                    Some(other) if other == kind => kind,
                    Some(ColumnType::Double) if matches!(kind, ColumnType::Integer { .. }) => {
                        if self.has_long_integers { ColumnType::Numeric { limits: None } } else { ColumnType::Double }
                    }
                    Some(ColumnType::Integer { .. }) if kind == ColumnType::Double => kind,
                    Some(_) => ColumnType::TEXT,
                }
            }
        }
    }
}

/// Converts an encoded value from the type of a column to the one that [`Inference::join`] gave it.
pub fn convert(value: &[u8], from: ColumnType, to: ColumnType) -> Vec<u8> {
    let word = value.first_chunk::<8>().copied().unwrap_or_default();
    let (integer, double) = (i64::from_be_bytes(word), f64::from_be_bytes(word));
    match (from, to) {
        // Exact, because there are no long integers.
        #[expect(clippy::cast_precision_loss, reason = "only integers of at most 15 digits are converted")]
        (ColumnType::Integer { .. }, ColumnType::Double) => (integer as f64).to_be_bytes().to_vec(),
        (ColumnType::Integer { .. }, ColumnType::Numeric { .. }) => {
            let mut numeric = Vec::new();
            number::push_numeric(&integer.to_string(), None, &mut numeric);
            numeric
        }
        (ColumnType::Integer { .. }, _) => integer.to_string().into_bytes(),
        (ColumnType::Double, _) => double.to_string().into_bytes(),
        (ColumnType::Boolean, _) => if value == [1] { "true" } else { "false" }.into(),
        (ColumnType::TimestampTz, _) => {
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
    use super::{ColumnType, Inference};

    #[test]
    fn join_finds_the_common_type() {
        for (label, values, expected) in [
            ("integers", &["1", "-2"][..], "bigint"),
            ("an integer and a fraction", &["1", "1.5"], "double precision"),
            ("a fraction and an integer", &["1.5", "1"], "double precision"),
            ("a long integer and a fraction", &["9007199254740993", "1.5"], "numeric"),
            ("an integer and a text", &["1", "\"x\""], "text"),
            ("a fraction, an integer and a text", &["1.5", "1", "\"x\""], "text"),
            ("an integer and digits in a text", &["1", "\"02\""], "text"),
            ("an integer and one beyond bigint", &["1", "9223372036854775808"], "text"),
            ("a text and an integer", &["\"x\"", "1"], "text"),
            ("booleans", &["true", "false"], "boolean"),
            ("a boolean and an integer", &["true", "1"], "text"),
            ("times", &["\"2024-05-01T00:00:00Z\"", "\"2024-05-01T00:00:00.5+02:00\""], "timestamptz"),
            ("a time and a text", &["\"2024-05-01T00:00:00Z\"", "\"soon\""], "text"),
            ("an integer and a list", &["1", "[]"], "text"),
            ("nulls between", &["1", "null", "2"], "bigint"),
        ] {
            let mut inference = Inference::default();
            let first = ColumnType::of_value(values[0]).expect(label);
            let kind = values.iter().fold(first, |kind, raw| inference.join(kind, raw));
            assert_eq!(kind.sql(), expected, "{label}");
        }
    }
}
