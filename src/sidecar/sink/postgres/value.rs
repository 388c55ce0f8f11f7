//! One JSON value as one field of COPY's binary format, checked so that the server cannot refuse it.
//!
//! COPY ends at the first value it does not like and takes the whole chunk with it: so everything that could be refused
//! is found here. What does not fit its column is a [`Fit::Misfit`], and the field is null.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

use super::binary::NULL;
use super::number::{self, Fit};
use super::time;
use super::types::ColumnType;

/// Deeper documents could exhaust the server's stack; they are kept as text.
const DEEPEST: usize = 500;

/// Documents of more parts could be larger in the server's own format than it allows, or need more memory at once than
/// it gives: they are kept as text, too. 16 bytes for each and the text itself stay below 256 MB.
const MOST_PARTS: usize = 8_000_000;

/// With what a document for `jsonb` begins.
const JSONB_VERSION: u8 = 1;

/// Writes a value, the text of valid JSON, as a field of a column of this type.
pub fn encode(kind: ColumnType, raw: &str, out: &mut Vec<u8>) -> Fit {
    // Null until its length is known.
    out.extend_from_slice(&NULL);
    let start = out.len();
    let first = raw.as_bytes().first();
    let fit = match kind {
        _ if matches!(first, None | Some(b'n')) => return Fit::Exact,
        ColumnType::Text { longest } => text(longest, raw, out),
        ColumnType::Json { binary } => {
            out.extend(binary.then_some(JSONB_VERSION));
            json(raw, out);
            Fit::Exact
        }
        _ => match first {
            Some(b'"') => string_value(kind, &plain_text(inner(raw)), out),
            Some(b't' | b'f') if kind == ColumnType::Boolean => put(&[u8::from(raw == "true")], out),
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

/// Any value; what is no string is its own JSON text. U+0000, which the server does not take, is left out.
fn text(longest: Option<usize>, raw: &str, out: &mut Vec<u8>) -> Fit {
    let start = out.len();
    if raw.starts_with('"') {
        unescape(inner(raw).as_bytes(), out);
    } else {
        out.extend_from_slice(raw.as_bytes());
    }
    if memchr(0, &out[start..]).is_some() {
        let kept: Vec<u8> = out[start..].iter().copied().filter(|byte| *byte != 0).collect();
        out.truncate(start);
        out.extend_from_slice(&kept);
    }
    let text = &out[start..];
    // Bytes are a bound for characters; counting those that begin one is for the rare rest.
    let begins = |byte: &&u8| **byte & 0xc0 != 0x80;
    fit_if(longest.is_none_or(|longest| text.len() <= longest || text.iter().filter(begins).count() <= longest))
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
        ColumnType::Numeric { limits } => fit_if(number::push_numeric(raw, limits, out)),
        ColumnType::Boolean if matches!(raw, "0" | "1") => put(&[u8::from(raw == "1")], out),
        _ => Fit::Misfit,
    }
}

fn integer(bytes: u8, raw: &str, out: &mut Vec<u8>) -> Fit {
    let Some(whole) = number::integer(raw) else { return Fit::Misfit };
    match bytes {
        2 => i16::try_from(whole).map_or(Fit::Misfit, |whole| put(&whole.to_be_bytes(), out)),
        4 => i32::try_from(whole).map_or(Fit::Misfit, |whole| put(&whole.to_be_bytes(), out)),
        _ => put(&whole.to_be_bytes(), out),
    }
}

fn string_value(kind: ColumnType, text: &str, out: &mut Vec<u8>) -> Fit {
    match kind {
        ColumnType::TimestampTz => time::timestamptz(text).map_or(Fit::Misfit, |at| put(&at.to_be_bytes(), out)),
        ColumnType::Timestamp => time::timestamp(text).map_or(Fit::Misfit, |at| put(&at.to_be_bytes(), out)),
        ColumnType::Date => time::date(text).map_or(Fit::Misfit, |day| put(&day.to_be_bytes(), out)),
        ColumnType::Boolean if text.eq_ignore_ascii_case("true") => put(&[1], out),
        ColumnType::Boolean if text.eq_ignore_ascii_case("false") => put(&[0], out),
        ColumnType::Uuid if text.len() == 36 => {
            uuid::Uuid::try_parse(text).map_or(Fit::Misfit, |uuid| put(uuid.as_bytes(), out))
        }
        ColumnType::Integer { .. } | ColumnType::Double | ColumnType::Real | ColumnType::Numeric { .. }
            if number::is_number(text) =>
        {
            number_value(kind, text, out)
        }
        _ => Fit::Misfit,
    }
}

fn fit_if(fits: bool) -> Fit {
    if fits { Fit::Exact } else { Fit::Misfit }
}

fn put(value: &[u8], out: &mut Vec<u8>) -> Fit {
    out.extend_from_slice(value);
    Fit::Exact
}

/// What is between the quotes of a JSON string.
fn inner(raw: &str) -> &str {
    raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default()
}

/// The text of a JSON string (without its quotes), borrowed where nothing was escaped.
fn plain_text(inner: &str) -> Cow<'_, str> {
    if memchr(b'\\', inner.as_bytes()).is_none() {
        return Cow::Borrowed(inner);
    }
    let mut text = Vec::with_capacity(inner.len());
    unescape(inner.as_bytes(), &mut text);
    Cow::Owned(String::from_utf8_lossy(&text).into_owned())
}

/// Resolves the escapes of a JSON string.
fn unescape(inner: &[u8], out: &mut Vec<u8>) {
    let mut rest = inner;
    while let Some(at) = memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        let length = match rest.get(at + 1).copied().unwrap_or(b'\\') {
            b'u' => {
                let (character, length) = unicode(&rest[at..]);
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                length
            }
            other => {
                out.push(match other {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'f' => 0x0c,
                    other => other,
                });
                2
            }
        };
        rest = rest.get(at + length..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
}

/// The character of `\uXXXX` or of a surrogate pair, and its length in the text. A surrogate alone is U+FFFD.
fn unicode(text: &[u8]) -> (char, usize) {
    let unit = |at: usize| {
        let digits = str::from_utf8(text.get(at + 2..at + 6)?).ok()?;
        (text[at] == b'\\' && text[at + 1] == b'u').then(|| u32::from_str_radix(digits, 16).ok())?
    };
    let Some(first) = unit(0) else { return (char::REPLACEMENT_CHARACTER, 2) };
    if (0xd800..0xdc00).contains(&first)
        && let Some(second) = unit(6)
        && (0xdc00..0xe000).contains(&second)
    {
        let code = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        return (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 12);
    }
    (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), 6)
}

/// Writes a JSON document for a `jsonb` column: without `\u0000`, without half surrogates, and with numbers that
/// `numeric` does not take as strings.
pub fn json(raw: &str, out: &mut Vec<u8>) {
    let start = out.len();
    if !json_tokens(raw.as_bytes(), out) {
        out.truncate(start);
        out.push(b'"');
        let mut text = String::new();
        for c in raw.chars().filter(|c| *c != '\0') {
            match c {
                '"' | '\\' => text.extend(['\\', c]),
                c if c < ' ' => text.push(' '),
                c => text.push(c),
            }
        }
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    }
}

/// `false` when the document is too deep or has too many parts.
fn json_tokens(raw: &[u8], out: &mut Vec<u8>) -> bool {
    let (mut at, mut depth, mut parts) = (0, 0_usize, 0_usize);
    while let Some(&byte) = raw.get(at) {
        match byte {
            b'"' => {
                at = json_string(raw, at, out);
                continue;
            }
            b'-' | b'0'..=b'9' => {
                at = json_number(raw, at, out);
                continue;
            }
            b'{' | b'[' => {
                depth += 1;
                parts += 1;
                if depth > DEEPEST {
                    return false;
                }
                out.push(byte);
            }
            b',' | b':' => {
                parts += 1;
                if parts > MOST_PARTS {
                    return false;
                }
                out.push(byte);
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                out.push(byte);
            }
            b' ' | b'\n' | b'\r' | b'\t' => {}
            other => out.push(other),
        }
        at += 1;
    }
    true
}

/// Copies the string that starts at `at`; returns where it ends.
fn json_string(raw: &[u8], at: usize, out: &mut Vec<u8>) -> usize {
    let mut from = at;
    let mut at = at + 1;
    while let Some(found) = memchr2(b'"', b'\\', &raw[at..]) {
        at += found;
        if raw[at] == b'"' {
            out.extend_from_slice(&raw[from..=at]);
            return at + 1;
        }
        if raw.get(at + 1) == Some(&b'u') {
            let (character, length) = unicode(&raw[at..]);
            if matches!(character, '\0' | char::REPLACEMENT_CHARACTER) {
                out.extend_from_slice(&raw[from..at]);
                if character != '\0' {
                    out.extend_from_slice("\u{fffd}".as_bytes());
                }
                from = (at + length).min(raw.len());
            }
            at += length;
        } else {
            at += 2;
        }
        at = at.min(raw.len());
    }
    out.extend_from_slice(&raw[from.min(raw.len())..]);
    raw.len()
}

/// Copies the number that starts at `at`; returns where it ends.
fn json_number(raw: &[u8], at: usize, out: &mut Vec<u8>) -> usize {
    let part_of_number = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    let length = raw[at..].iter().position(|byte| !part_of_number(byte)).unwrap_or(raw.len() - at);
    let number = &raw[at..at + length];
    // Short numbers without an exponent are within every limit.
    let small = length <= 64 && !number.iter().any(|byte| matches!(byte, b'e' | b'E'));
    if small || str::from_utf8(number).is_ok_and(number::is_numeric) {
        out.extend_from_slice(number);
    } else {
        out.push(b'"');
        out.extend_from_slice(number);
        out.push(b'"');
    }
    at + length
}

#[cfg(test)]
mod tests {
    use super::{Fit, encode};
    use crate::sidecar::sink::postgres::types::ColumnType;
    use proptest::prelude::{Strategy, prop, prop_assert_eq, proptest};
    use serde_json::Value;

    /// What a field holds; `None` is null.
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

    /// The text of a field of text or of a document.
    fn told(kind: ColumnType, raw: &str) -> Option<String> {
        let value = field(kind, raw).0?;
        let text = if kind == ColumnType::JSONB { value.strip_prefix(b"\x01").expect("a version") } else { &value };
        Some(String::from_utf8(text.to_vec()).expect("UTF-8"))
    }

    #[test]
    fn text_and_documents_become_fields() {
        let (text, json) = (ColumnType::TEXT, ColumnType::JSONB);
        let short = ColumnType::Text { longest: Some(3) };
        for (label, kind, raw, expected) in [
            ("null", text, "null", None),
            ("string", text, r#""a\tb\nc\\d\"e\/""#, Some("a\tb\nc\\d\"e/")),
            ("the null mark", text, r#""\\N""#, Some("\\N")),
            ("empty string", text, r#""""#, Some("")),
            ("U+0000 goes", text, r#""a\u0000b""#, Some("ab")),
            ("escaped control characters", text, r#""\u000a\u0009\u0001\b""#, Some("\n\t\u{1}\u{8}")),
            ("surrogate pair", text, r#""\ud83d\ude00""#, Some("😀")),
            ("half a pair", text, r#""\ud83dx""#, Some("\u{fffd}x")),
            ("half a pair at the end", text, r#""\ude00""#, Some("\u{fffd}")),
            ("object in a text column", text, "{\"a\":\n\"\\n\"}", Some("{\"a\":\n\"\\n\"}")),
            ("number in a text column", text, "1.50", Some("1.50")),
            ("boolean in a text column", text, "true", Some("true")),
            ("short enough", short, r#""äöü""#, Some("äöü")),
            ("too long", short, r#""äöüx""#, None),
            ("short enough without U+0000", short, r#""abc\u0000""#, Some("abc")),
            ("string in json", ColumnType::Json { binary: false }, r#""a\u0000\"b""#, Some(r#""a\"b""#)),
            ("string in jsonb", json, r#""a\u0000\ud800\n\\""#, Some("\"a\u{fffd}\\n\\\\\"")),
            ("an escaped character in jsonb", json, r#""\u00e9\ud83d\ude00""#, Some(r#""\u00e9\ud83d\ude00""#)),
            ("document in jsonb", json, "{\"a\": [1,\n 2.50, true]}", Some(r#"{"a":[1,2.50,true]}"#)),
            ("a number that numeric refuses", json, "[1e200000]", Some(r#"["1e200000"]"#)),
        ] {
            assert_eq!(told(kind, raw).as_deref(), expected, "{label}");
            assert_eq!(field(kind, raw).1 == Fit::Misfit, expected.is_none() && raw != "null", "{label}");
        }
    }

    #[test]
    fn other_values_become_fields() {
        let money = ColumnType::Numeric { limits: Some((8, 2)) };
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
            ("boolean is no number", ColumnType::BIGINT, "true", None),
            ("double", ColumnType::Double, "5e-324", Some(&5e-324_f64.to_be_bytes())),
            ("rounded", ColumnType::Double, "9007199254740993", Some(&9_007_199_254_740_992_f64.to_be_bytes())),
            ("beyond double", ColumnType::Double, "1e400", None),
            ("no number in a string", ColumnType::Double, r#""inf""#, None),
            ("real", ColumnType::Real, "0.1", Some(&0.1_f32.to_be_bytes())),
            ("money", money, "-12.34", Some(&[0, 2, 0, 0, 0x40, 0, 0, 2, 0, 12, 0x0d, 0x48])),
            ("no money", money, "-0.00", Some(&[0, 0, 0, 0, 0, 0, 0, 2])),
            ("fractions of a cent", money, "12.345", None),
            ("boolean", ColumnType::Boolean, "false", Some(&[0])),
            ("boolean in a string", ColumnType::Boolean, r#""True""#, Some(&[1])),
            ("one", ColumnType::Boolean, "1", Some(&[1])),
            ("two", ColumnType::Boolean, "2", None),
            ("time", ColumnType::TimestampTz, r#""2000-01-01T00:00:01Z""#, Some(&1_000_000_i64.to_be_bytes())),
            ("no time", ColumnType::TimestampTz, r#""soon""#, None),
            ("number is no time", ColumnType::TimestampTz, "1700000000", None),
            ("array is no time", ColumnType::TimestampTz, "[]", None),
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
    fn a_document_too_deep_for_the_server_is_kept_as_text() {
        let deep = format!("{}\"\\n\"{}", "[".repeat(600), "]".repeat(600));
        let text = told(ColumnType::JSONB, &deep).expect("a value");
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
        fn strings_read_back_equal(text in "(\\PC|[\\\\\"\n\t\r\u{1}-\u{20}])*") {
            let raw = Value::from(text.as_str()).to_string();
            prop_assert_eq!(told(ColumnType::TEXT, &raw), Some(text));
        }

        #[test]
        fn documents_read_back_equal(document in any_json()) {
            let decoded = told(ColumnType::JSONB, &document.to_string());
            let read = decoded.map_or(Value::Null, |text| serde_json::from_str(&text).expect("JSON"));
            prop_assert_eq!(read, document);
        }

        #[test]
        fn arbitrary_text_never_panics(raw in "[\\\\u0d8\"{}\\[\\]eE0-9+-]*", kind in 0..4_usize) {
            let kinds = [ColumnType::TEXT, ColumnType::JSONB, ColumnType::Double, ColumnType::TimestampTz];
            field(kinds[kind], &raw);
        }
    }
}
