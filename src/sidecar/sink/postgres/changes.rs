//! What happened to the values of a row that their columns do not hold exactly, in the terms of Airbyte's
//! `_airbyte_meta.changes`.

use strum::{Display, IntoStaticStr};

use super::number::Fit;
use super::types::ColumnType;

/// What the column has instead of the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, IntoStaticStr)]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum ChangeKind {
    /// Null.
    Nulled,
    /// The nearest value that it can hold.
    Truncated,
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, IntoStaticStr)]
#[strum(prefix = "DESTINATION_", serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum ChangeReason {
    /// The value has another type.
    TypecastError,
    /// The value is too long or too large, or has more digits.
    FieldSizeLimitation,
    /// The row is too large.
    RecordSizeLimitation,
}

/// A value that its column does not hold exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The index of the column in the layout.
    pub column: usize,
    /// What the column has instead.
    pub kind: ChangeKind,
    /// Why.
    pub reason: ChangeReason,
}

impl Change {
    /// The change of a value (JSON text) that fits like this; `None` if it fits exactly.
    pub fn of(column: usize, kind: ColumnType, raw: &str, fit: Fit) -> Option<Self> {
        let reason = if fit == Fit::Misfit && !is_of_type(kind, raw) {
            ChangeReason::TypecastError
        } else {
            ChangeReason::FieldSizeLimitation
        };
        let kind = match fit {
            Fit::Exact => return None,
            Fit::Rounded | Fit::Altered => ChangeKind::Truncated,
            Fit::Misfit => ChangeKind::Nulled,
        };
        Some(Self { column, kind, reason })
    }
}

/// Whether the value has the column's type, and only its size does not fit.
fn is_of_type(kind: ColumnType, raw: &str) -> bool {
    let is_number = raw.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    match kind {
        ColumnType::Text { .. } => true,
        ColumnType::Integer { .. } | ColumnType::Double | ColumnType::Real | ColumnType::Numeric { .. } => is_number,
        _ => false,
    }
}

/// What a JSON value is, without its content: "a number of 19 characters".
pub fn describe(raw: &str) -> String {
    match raw.as_bytes().first() {
        Some(b'"') => {
            let length = serde_json::from_str::<String>(raw).map_or(raw.len() - 2, |text| text.chars().count());
            format!("a string of {length} characters")
        }
        Some(b'{') => "an object".to_owned(),
        Some(b'[') => "an array".to_owned(),
        Some(b't' | b'f') => "a boolean".to_owned(),
        _ => format!("a number of {} characters", raw.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, ColumnType, Fit, describe};

    #[test]
    fn changes_are_in_the_terms_of_the_protocol() {
        let price = ColumnType::Numeric { limits: Some((3, 2)) };
        for (kind, raw, fit, expected) in [
            (price, "1.234", Fit::Rounded, "TRUNCATED DESTINATION_FIELD_SIZE_LIMITATION"),
            (price, "1234", Fit::Misfit, "NULLED DESTINATION_FIELD_SIZE_LIMITATION"),
            (price, "\"x\"", Fit::Misfit, "NULLED DESTINATION_TYPECAST_ERROR"),
            (ColumnType::TEXT, "\"\\u0000\"", Fit::Altered, "TRUNCATED DESTINATION_FIELD_SIZE_LIMITATION"),
            (ColumnType::Boolean, "5", Fit::Misfit, "NULLED DESTINATION_TYPECAST_ERROR"),
        ] {
            let change = Change::of(0, kind, raw, fit).expect("a change");
            assert_eq!(format!("{} {}", change.kind, <&str>::from(change.reason)), expected, "{raw}");
            assert_eq!(change.reason.to_string(), <&str>::from(change.reason), "{raw}");
        }
        assert_eq!(Change::of(0, price, "1.2", Fit::Exact), None);
    }

    #[test]
    fn descriptions_do_not_show_the_value() {
        for (raw, expected) in [
            ("12", "a number of 2 characters"),
            ("\"\\u00e9\"", "a string of 1 characters"),
            ("{}", "an object"),
            ("[]", "an array"),
            ("true", "a boolean"),
        ] {
            assert_eq!(describe(raw), expected);
        }
    }
}
