//! Encodes a JSON value as a field of COPY's binary format.
//!
//! COPY fails at the first invalid value, and then all rows of the chunk are lost. So every value is validated here: one
//! that does not fit its column is a [`Fit::Misfit`], and the field is null.

use std::borrow::Cow;

use memchr::memchr;
use uuid::Uuid;

use super::copy::NULL;
use super::json;
use super::number::{self, Fit};
use super::numeric;
use super::reformat;
use super::time;
use super::types::ColumnType;

/// The first byte of a `jsonb` value in binary format.
const JSONB_VERSION: u8 = 1;

/// Appends a value, given as valid JSON text, as a field for a column of this type.
pub fn encode(kind: ColumnType, raw: &str, out: &mut Vec<u8>) -> Fit {
    // Reserves the bytes of the length; they stay null unless the value fits.
    out.extend_from_slice(&NULL);
    let start = out.len();
    let first = raw.as_bytes().first();
    let fit = match kind {
        _ if matches!(first, None | Some(b'n')) => return Fit::Exact,
        ColumnType::Text { max_chars, padded, reformatted } => {
            match text(max_chars, reformatted, raw, out) {
                // Equal to the text without them.
                Fit::Exact if padded && out.len() > start && out.ends_with(b" ") => Fit::Rounded,
                fit => fit,
            }
        }
        ColumnType::Json { binary } => {
            out.extend(binary.then_some(JSONB_VERSION));
            if json::push_document(raw, out) { Fit::Altered } else { Fit::Exact }
        }
        _ => match first {
            Some(b'"') => string_value(kind, &plain_text(inner(raw)), out),
            Some(b't' | b'f') if kind == ColumnType::Boolean => boolean(raw == "true", out),
            Some(b't' | b'f' | b'{' | b'[') => Fit::Misfit,
            _ => number_value(kind, raw, out),
        },
    };
    match i32::try_from(out.len() - start) {
        Ok(length) if fit != Fit::Misfit => {
            out[start - NULL.len()..start].copy_from_slice(&length.to_be_bytes());
            fit
        }
        _ => {
            out.truncate(start);
            Fit::Misfit
        }
    }
}

/// Whether a value is a number, or a string with one, that `numeric` can hold.
pub fn is_number(raw: &str) -> bool {
    encode(ColumnType::NUMERIC, raw, &mut Vec::new()) != Fit::Misfit
}

/// Any value; values other than strings become their JSON text, documents without space between their tokens. U+0000 is
/// removed because Postgres does not allow it.
fn text(max_chars: Option<usize>, reformatted: bool, raw: &str, out: &mut Vec<u8>) -> Fit {
    let (start, mut altered) = (out.len(), false);
    match raw.as_bytes().first() {
        Some(b'"') => {
            altered = json::unescape(inner(raw).as_bytes(), out);
            if reformatted {
                reformat::timestamp(start, out);
            }
        }
        Some(b'{' | b'[') => json::push_compact(raw.as_bytes(), out),
        Some(b'-' | b'0'..=b'9') if reformatted => reformat::push_number(raw, out),
        _ => out.extend_from_slice(raw.as_bytes()),
    }
    if memchr(0, &out[start..]).is_some() {
        let text = out.split_off(start);
        out.extend(text.into_iter().filter(|byte| *byte != 0));
        altered = true;
    }
    let text = &out[start..];
    // A text has at most as many characters as bytes; characters are only counted if that bound is not enough.
    let starts_char = |byte: &&u8| **byte & 0xc0 != 0x80;
    if max_chars.is_some_and(|max| text.len() > max && text.iter().filter(starts_char).count() > max) {
        return Fit::Misfit;
    }
    if altered { Fit::Altered } else { Fit::Exact }
}

fn number_value(kind: ColumnType, raw: &str, out: &mut Vec<u8>) -> Fit {
    match kind {
        ColumnType::Integer { bytes } => integer(bytes, raw, out),
        ColumnType::Double => number::double(raw).map_or(Fit::Misfit, |(double, fit)| {
            out.extend_from_slice(&double.to_be_bytes());
            fit
        }),
        ColumnType::Real => number::real(raw).map_or(Fit::Misfit, |(real, fit)| {
            out.extend_from_slice(&real.to_be_bytes());
            fit
        }),
        ColumnType::Numeric { limits } => numeric::push(raw, limits, out),
        ColumnType::Boolean if matches!(raw, "0" | "1") => boolean(raw == "1", out),
        _ => Fit::Misfit,
    }
}

fn integer(bytes: u8, raw: &str, out: &mut Vec<u8>) -> Fit {
    let integer = number::integer(raw);
    match bytes {
        2 => push(integer.and_then(|integer| i16::try_from(integer).ok()).map(i16::to_be_bytes), out),
        4 => push(integer.and_then(|integer| i32::try_from(integer).ok()).map(i32::to_be_bytes), out),
        _ => push(integer.map(i64::to_be_bytes), out),
    }
}

fn string_value(kind: ColumnType, text: &str, out: &mut Vec<u8>) -> Fit {
    match kind {
        ColumnType::TimestampTz { digits } => push_time(time::timestamptz(text), digits, out),
        ColumnType::Timestamp { digits } => push_time(time::timestamp(text), digits, out),
        ColumnType::Time { digits } => push_time(time::time(text), digits, out),
        ColumnType::TimeTz { digits } => {
            let Some((micros, west, fit)) = time::timetz(text) else { return Fit::Misfit };
            let fit = push_time(Some((micros, fit)), digits, out);
            out.extend_from_slice(&west.to_be_bytes());
            fit
        }
        ColumnType::Date => push(time::date(text).map(i32::to_be_bytes), out),
        ColumnType::Boolean if text.eq_ignore_ascii_case("true") => boolean(true, out),
        ColumnType::Boolean if text.eq_ignore_ascii_case("false") => boolean(false, out),
        // Other lengths are other notations of UUIDs.
        ColumnType::Uuid if text.len() == 36 => push(Uuid::try_parse(text).ok().map(Uuid::into_bytes), out),
        ColumnType::Integer { .. } | ColumnType::Double | ColumnType::Real | ColumnType::Numeric { .. }
            if number::is_number(text) =>
        {
            let fit = number_value(kind, text, out);
            // Zeros before the number belong to an identifier.
            let is_padded = text.trim_start_matches('-').starts_with('0')
                && text.trim_start_matches(['-', '0']).starts_with(|next: char| next.is_ascii_digit());
            if fit == Fit::Exact && is_padded { Fit::Rounded } else { fit }
        }
        _ => Fit::Misfit,
    }
}

fn boolean(value: bool, out: &mut Vec<u8>) -> Fit {
    push(Some([u8::from(value)]), out)
}

/// Appends the value; without one it is a misfit.
fn push<const N: usize>(value: Option<[u8; N]>, out: &mut Vec<u8>) -> Fit {
    out.extend_from_slice(value.as_ref().map_or(&[], <[u8; N]>::as_slice));
    fit_if(value.is_some())
}

/// Appends microseconds, of which the server stores this many digits.
fn push_time(micros: Option<(i64, Fit)>, digits: u8, out: &mut Vec<u8>) -> Fit {
    let Some((micros, fit)) = micros else { return Fit::Misfit };
    out.extend_from_slice(&micros.to_be_bytes());
    if digits < 6 && micros % 10_i64.pow(6 - u32::from(digits)) != 0 { Fit::Rounded } else { fit }
}

fn fit_if(fits: bool) -> Fit {
    if fits { Fit::Exact } else { Fit::Misfit }
}

/// The content of a JSON string, between its quotes.
fn inner(raw: &str) -> &str {
    raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default()
}

/// Decodes the content of a JSON string; borrowed if it has no escapes.
fn plain_text(inner: &str) -> Cow<'_, str> {
    if memchr(b'\\', inner.as_bytes()).is_none() {
        return Cow::Borrowed(inner);
    }
    let mut text = Vec::with_capacity(inner.len());
    json::unescape(inner.as_bytes(), &mut text);
    Cow::Owned(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{Fit, encode};
    use crate::sidecar::sink::postgres::types::ColumnType;
    use proptest::prelude::{Strategy, prop, prop_assert_eq, proptest};
    use serde_json::Value;

    /// The value of a field (`None` for null) and its fit.
    fn field(kind: ColumnType, raw: &str) -> (Option<Vec<u8>>, Fit) {
        let mut out = Vec::new();
        let fit = encode(kind, raw, &mut out);
        let (length, value) = out.split_first_chunk().expect("a length");
        let length = i32::from_be_bytes(*length);
        assert_eq!(
            length,
            if value.is_empty() && length < 0 { -1 } else { i32::try_from(value.len()).expect("short") }
        );
        ((length >= 0).then(|| value.to_vec()), fit)
    }

    /// The text of a text or document field.
    fn decoded(kind: ColumnType, raw: &str) -> Option<String> {
        let value = field(kind, raw).0?;
        let text = if kind == ColumnType::JSONB { value.strip_prefix(b"\x01").expect("a version") } else { &value };
        Some(String::from_utf8(text.to_vec()).expect("UTF-8"))
    }

    #[test]
    fn text_and_documents_are_encoded_as_postgres_accepts_them() {
        let (text, json) = (ColumnType::TEXT, ColumnType::JSONB);
        let short = ColumnType::Text { max_chars: Some(3), padded: false, reformatted: false };
        let old = ColumnType::Text { max_chars: None, padded: false, reformatted: true };
        for (label, kind, raw, expected) in [
            ("null", text, "null", None),
            ("string", text, r#""a\tb\nc\\d\"e\/""#, Some("a\tb\nc\\d\"e/")),
            ("COPY null marker", text, r#""\\N""#, Some("\\N")),
            ("empty string", text, r#""""#, Some("")),
            ("U+0000 is removed", text, r#""a\u0000b""#, Some("ab")),
            ("escaped control characters", text, r#""\u000a\u0009\u0001\b""#, Some("\n\t\u{1}\u{8}")),
            ("surrogate pair", text, r#""\ud83d\ude00""#, Some("😀")),
            ("lone surrogate", text, r#""\ud83dx""#, Some("\u{fffd}x")),
            ("lone surrogate at the end", text, r#""\ude00""#, Some("\u{fffd}")),
            ("object in a text column", text, "{\"a\":\n\"\\n \\\"\"}", Some("{\"a\":\"\\n \\\"\"}")),
            ("array in a text column", text, "[1, { } ]", Some("[1,{}]")),
            ("number in a text column", text, "1.50", Some("1.50")),
            ("time in a text column", text, r#""2024-05-01T00:00:00.000Z""#, Some("2024-05-01T00:00:00.000Z")),
            ("reformatted number", old, "1.0", Some("1")),
            ("reformatted time", old, r#""2024-05-01T02:00:00.000+02:00""#, Some("2024-05-01T00:00:00Z")),
            ("boolean in a text column", text, "true", Some("true")),
            ("short enough", short, r#""äöü""#, Some("äöü")),
            ("too long", short, r#""äöüx""#, None),
            ("short enough without U+0000", short, r#""abc\u0000""#, Some("abc")),
            ("string in json", ColumnType::Json { binary: false }, r#""a\u0000\"b""#, Some(r#""a\"b""#)),
            ("string in jsonb", json, r#""a\u0000\ud800\n\\""#, Some("\"a\u{fffd}\\n\\\\\"")),
            ("escaped characters in jsonb", json, r#""\u00e9\ud83d\ude00""#, Some(r#""\u00e9\ud83d\ude00""#)),
            ("document in jsonb", json, "{\"a\": [1,\n 2.50, true]}", Some(r#"{"a":[1,2.50,true]}"#)),
            ("number beyond numeric", json, "[1e200000]", Some(r#"["1e200000"]"#)),
        ] {
            assert_eq!(decoded(kind, raw).as_deref(), expected, "{label}");
            assert_eq!(field(kind, raw).1 == Fit::Misfit, expected.is_none() && raw != "null", "{label}");
        }
    }

    #[test]
    fn other_values_are_encoded_or_misfits() {
        let price = ColumnType::Numeric { limits: Some((8, 2)) };
        let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        for (label, kind, raw, expected) in [
            ("largest bigint", ColumnType::BIGINT, "9223372036854775807", Some(&i64::MAX.to_be_bytes()[..])),
            ("beyond bigint", ColumnType::BIGINT, "9223372036854775808", None),
            ("smallest integer", ColumnType::Integer { bytes: 4 }, "-2147483648", Some(&i32::MIN.to_be_bytes())),
            ("beyond integer", ColumnType::Integer { bytes: 4 }, "2147483648", None),
            ("largest smallint", ColumnType::Integer { bytes: 2 }, "32767", Some(&[0x7f, 0xff])),
            ("beyond smallint", ColumnType::Integer { bytes: 2 }, "32768", None),
            ("whole float", ColumnType::BIGINT, "3.0", Some(&3_i64.to_be_bytes())),
            ("fraction", ColumnType::BIGINT, "3.5", None),
            ("digits in a string", ColumnType::BIGINT, r#""42""#, Some(&42_i64.to_be_bytes())),
            ("U+0000 among digits", ColumnType::BIGINT, r#""4\u00002""#, None),
            ("words", ColumnType::BIGINT, r#""many""#, None),
            ("boolean in a bigint column", ColumnType::BIGINT, "true", None),
            ("double", ColumnType::Double, "5e-324", Some(&5e-324_f64.to_be_bytes())),
            ("rounded", ColumnType::Double, "9007199254740993", Some(&9_007_199_254_740_992_f64.to_be_bytes())),
            ("beyond double", ColumnType::Double, "1e400", None),
            ("infinity in a string", ColumnType::Double, r#""inf""#, None),
            ("real", ColumnType::Real, "0.1", Some(&0.1_f32.to_be_bytes())),
            ("numeric with a scale", price, "-12.34", Some(&[0, 2, 0, 0, 0x40, 0, 0, 2, 0, 12, 0x0d, 0x48])),
            ("negative zero", price, "-0.00", Some(&[0, 0, 0, 0, 0, 0, 0, 2])),
            (
                "too many decimals, which the server rounds",
                price,
                "12.345",
                Some(&[0, 2, 0, 0, 0, 0, 0, 3, 0, 12, 0x0d, 0x7a]),
            ),
            ("boolean", ColumnType::Boolean, "false", Some(&[0])),
            ("boolean in a string", ColumnType::Boolean, r#""True""#, Some(&[1])),
            ("one", ColumnType::Boolean, "1", Some(&[1])),
            ("two", ColumnType::Boolean, "2", None),
            ("time", ColumnType::TIMESTAMPTZ, r#""2000-01-01T00:00:01Z""#, Some(&1_000_000_i64.to_be_bytes())),
            ("not a time", ColumnType::TIMESTAMPTZ, r#""soon""#, None),
            ("number in a timestamptz column", ColumnType::TIMESTAMPTZ, "1700000000", None),
            ("array in a timestamptz column", ColumnType::TIMESTAMPTZ, "[]", None),
            ("date", ColumnType::Date, r#""1999-12-31""#, Some(&[0xff; 4])),
            (
                "uuid",
                ColumnType::Uuid,
                &format!("\"{uuid}\""),
                Some(uuid::uuid!("67e55044-10b1-426f-9247-bb680e5fe0c8").as_bytes()),
            ),
        ] {
            let (value, fit) = field(kind, raw);
            assert_eq!(value.as_deref(), expected, "{label}");
            assert_eq!(fit == Fit::Misfit, expected.is_none(), "{label}");
        }
    }

    #[test]
    fn documents_beyond_the_depth_limit_become_strings() {
        let deep = format!("{}\"\\n\"{}", "[".repeat(600), "]".repeat(600));
        let text = decoded(ColumnType::JSONB, &deep).expect("a value");
        let text: String = serde_json::from_str(&text).expect("a string");
        assert_eq!(text, deep);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = proptest::prop_oneof![
            proptest::strategy::Just(Value::Null),
            proptest::prelude::any::<bool>().prop_map(Value::from),
            proptest::prelude::any::<i64>().prop_map(Value::from),
            "\\PC*".prop_map(Value::from),
            "[\\\\\"\n\t\r\u{1}-\u{20}a😀]*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| {
            proptest::prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec(("\\PC{0,5}", inner), 0..5)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn strings_round_trip(text in "(\\PC|[\\\\\"\n\t\r\u{1}-\u{20}])*") {
            let raw = Value::from(text.as_str()).to_string();
            prop_assert_eq!(decoded(ColumnType::TEXT, &raw), Some(text));
        }

        #[test]
        fn documents_round_trip(document in any_json()) {
            let text = decoded(ColumnType::JSONB, &document.to_string());
            let read = text.map_or(Value::Null, |text| serde_json::from_str(&text).expect("JSON"));
            prop_assert_eq!(read, document);
        }

        #[test]
        fn arbitrary_text_never_panics(raw in "[\\\\u0d8\"{}\\[\\]eE0-9+-]*", kind in 0..4_usize) {
            let kinds = [ColumnType::TEXT, ColumnType::JSONB, ColumnType::Double, ColumnType::TIMESTAMPTZ];
            field(kinds[kind], &raw);
        }
    }
}
