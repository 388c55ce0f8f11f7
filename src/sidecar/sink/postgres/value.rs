//! One JSON value as one field of COPY's text format, checked so that the server cannot refuse it.
//!
//! COPY ends at the first value it does not like and takes the whole chunk with it: so everything that could be refused
//! is found here. What does not fit its column is a [`Fit::Misfit`], and the field is null.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

use super::number::{self, Fit};
use super::time;
use super::types::ColumnType;

/// Deeper documents could exhaust the server's stack; they are kept as text.
const DEEPEST: usize = 500;

/// Documents of more parts could be larger in the server's own format than it allows, or need more memory at once than
/// it gives: they are kept as text, too. 16 bytes for each and the text itself stay below 256 MB.
const MOST_PARTS: usize = 8_000_000;

/// What the field of a null is.
pub const NULL: &[u8] = b"\\N";

/// Writes a value, the text of valid JSON, as a field of a column of this type.
pub fn encode(kind: ColumnType, raw: &str, out: &mut Vec<u8>) -> Fit {
    let start = out.len();
    let fit = match raw.as_bytes().first() {
        None | Some(b'n') => {
            out.extend_from_slice(NULL);
            return Fit::Exact;
        }
        Some(b'"') => string_value(kind, raw, out),
        Some(b't' | b'f') => boolean_value(kind, raw, out),
        Some(b'{' | b'[') => match kind {
            ColumnType::Json => {
                json(raw, out);
                Fit::Exact
            }
            ColumnType::Text { longest } if fits_length(raw, longest) => {
                escaped(raw.as_bytes(), out);
                Fit::Exact
            }
            _ => Fit::Misfit,
        },
        Some(_) => number_value(kind, raw, out),
    };
    if fit == Fit::Misfit {
        out.truncate(start);
        out.extend_from_slice(NULL);
    }
    fit
}

fn number_value(kind: ColumnType, raw: &str, out: &mut Vec<u8>) -> Fit {
    let fit = match kind {
        ColumnType::Integer { bytes } => {
            if !number::fits_integer(raw, bytes) {
                return match number::as_integer(raw).filter(|whole| number::fits_integer(whole, bytes)) {
                    Some(whole) => plain(&whole, out),
                    None => Fit::Misfit,
                };
            }
            Fit::Exact
        }
        ColumnType::Double => number::double_fit(raw),
        ColumnType::Real => number::real_fit(raw),
        ColumnType::Numeric { limits } => fit_if(number::fits_numeric(raw, limits)),
        ColumnType::Text { longest } => fit_if(fits_length(raw, longest)),
        ColumnType::Json => {
            json(raw, out);
            return Fit::Exact;
        }
        ColumnType::Boolean => fit_if(matches!(raw, "0" | "1")),
        ColumnType::TimestampTz | ColumnType::Timestamp | ColumnType::Date | ColumnType::Uuid => Fit::Misfit,
    };
    out.extend_from_slice(raw.as_bytes());
    fit
}

fn boolean_value(kind: ColumnType, raw: &str, out: &mut Vec<u8>) -> Fit {
    match kind {
        ColumnType::Boolean | ColumnType::Json => plain(raw, out),
        ColumnType::Text { longest } if fits_length(raw, longest) => plain(raw, out),
        _ => Fit::Misfit,
    }
}

fn string_value(kind: ColumnType, raw: &str, out: &mut Vec<u8>) -> Fit {
    let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    let longest = match kind {
        ColumnType::Json => {
            json(raw, out);
            return Fit::Exact;
        }
        ColumnType::Text { longest } => longest,
        _ => None,
    };
    if let ColumnType::Text { .. } = kind
        && longest.is_none_or(|longest| inner.len() <= longest)
    {
        unescape(inner.as_bytes(), out, Target::CopyField);
        return Fit::Exact;
    }
    let text = plain_text(inner);
    match kind {
        ColumnType::Text { .. } if fits_length(&text, longest) => {
            escaped(text.as_bytes(), out);
            Fit::Exact
        }
        ColumnType::TimestampTz => time::timestamptz(&text).map_or(Fit::Misfit, |text| plain(&text, out)),
        ColumnType::Timestamp => time::timestamp(&text).map_or(Fit::Misfit, |text| plain(&text, out)),
        ColumnType::Date => time::date(&text).map_or(Fit::Misfit, |text| plain(&text, out)),
        ColumnType::Boolean if text.eq_ignore_ascii_case("true") => plain("t", out),
        ColumnType::Boolean if text.eq_ignore_ascii_case("false") => plain("f", out),
        ColumnType::Uuid if text.len() == 36 && uuid::Uuid::try_parse(&text).is_ok() => plain(&text, out),
        ColumnType::Integer { .. } | ColumnType::Double | ColumnType::Real | ColumnType::Numeric { .. }
            if number::is_number(&text) =>
        {
            number_value(kind, &text, out)
        }
        _ => Fit::Misfit,
    }
}

fn fit_if(fits: bool) -> Fit {
    if fits { Fit::Exact } else { Fit::Misfit }
}

/// Bytes are a bound for characters; counting is for the rare rest.
fn fits_length(text: &str, longest: Option<usize>) -> bool {
    longest.is_none_or(|longest| text.len() <= longest || text.chars().count() <= longest)
}

/// Writes text that contains nothing special to COPY.
fn plain(text: &str, out: &mut Vec<u8>) -> Fit {
    out.extend_from_slice(text.as_bytes());
    Fit::Exact
}

/// Writes text with what is special to COPY escaped, and without U+0000.
pub fn escaped(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\\' | 0..=0x1f)) {
        out.extend_from_slice(&rest[..at]);
        push_escaped(rest[at], out);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// One byte of a field. A raw newline would end the row.
fn push_escaped(byte: u8, out: &mut Vec<u8>) {
    match byte {
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        0 => {}
        other => out.push(other),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    CopyField,
    PlainText,
}

/// The text of a JSON string (without its quotes), borrowed where nothing was escaped.
fn plain_text(inner: &str) -> Cow<'_, str> {
    if memchr(b'\\', inner.as_bytes()).is_none() {
        return Cow::Borrowed(inner);
    }
    let mut text = Vec::with_capacity(inner.len());
    unescape(inner.as_bytes(), &mut text, Target::PlainText);
    Cow::Owned(String::from_utf8_lossy(&text).into_owned())
}

/// Resolves the escapes of a JSON string, straight into COPY's where that is the target.
fn unescape(inner: &[u8], out: &mut Vec<u8>, target: Target) {
    let mut rest = inner;
    while let Some(at) = memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        let escape = rest.get(at + 1).copied().unwrap_or(b'\\');
        let mut taken = at + 2;
        let byte = match escape {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'b' => 0x08,
            b'f' => 0x0c,
            b'u' => {
                let (character, length) = unicode(&rest[at..]);
                let mut bytes = [0; 4];
                for byte in character.encode_utf8(&mut bytes).bytes() {
                    if target == Target::CopyField { push_escaped(byte, out) } else { out.push(byte) }
                }
                rest = rest.get(at + length..).unwrap_or_default();
                continue;
            }
            other => other,
        };
        if target == Target::CopyField {
            push_escaped(byte, out);
        } else {
            out.push(byte);
        }
        taken = taken.min(rest.len());
        rest = &rest[taken..];
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
        escaped(text.as_bytes(), out);
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
        out.extend_from_slice(&raw[from..at]);
        if raw.get(at + 1) == Some(&b'u') {
            let (character, length) = unicode(&raw[at..]);
            match character {
                '\0' => {}
                char::REPLACEMENT_CHARACTER => out.extend_from_slice("\u{fffd}".as_bytes()),
                _ => {
                    for byte in &raw[at..(at + length).min(raw.len())] {
                        push_escaped(*byte, out);
                    }
                }
            }
            at += length;
        } else {
            out.extend_from_slice(b"\\\\");
            // A second backslash is one that COPY wants doubled, too.
            raw.get(at + 1).iter().for_each(|byte| push_escaped(**byte, out));
            at += 2;
        }
        at = at.min(raw.len());
        from = at;
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
    if small || str::from_utf8(number).is_ok_and(|text| number::fits_numeric(text, None)) {
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

    fn field(kind: ColumnType, raw: &str) -> (String, Fit) {
        let mut out = Vec::new();
        let fit = encode(kind, raw, &mut out);
        (String::from_utf8(out).expect("UTF-8"), fit)
    }

    /// What the server makes of a field; `None` is null.
    fn decode(field: &str) -> Option<String> {
        if field == "\\N" {
            return None;
        }
        let (mut text, mut chars) = (String::new(), field.chars());
        while let Some(c) = chars.next() {
            assert!(!matches!(c, '\n' | '\t' | '\r'), "a raw separator in {field:?}");
            if c != '\\' {
                text.push(c);
                continue;
            }
            text.push(match chars.next().expect("something after a backslash") {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                other => other,
            });
        }
        Some(text)
    }

    #[test]
    fn values_become_fields() {
        let (text, json) = (ColumnType::TEXT, ColumnType::Json);
        let short = ColumnType::Text { longest: Some(3) };
        let money = ColumnType::Numeric { limits: Some((8, 2)) };
        for (label, kind, raw, expected) in [
            ("null", text, "null", None),
            ("string", text, r#""a\tb\nc\\d\"e\/""#, Some("a\tb\nc\\d\"e/")),
            ("the end-of-data mark", text, r#""\\.""#, Some("\\.")),
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
            ("string in jsonb", json, r#""a\u0000\ud800\n\\""#, Some("\"a\u{fffd}\\n\\\\\"")),
            ("an escaped character in jsonb", json, r#""\u00e9\ud83d\ude00""#, Some(r#""\u00e9\ud83d\ude00""#)),
            ("document in jsonb", json, "{\"a\": [1,\n 2.50, true]}", Some(r#"{"a":[1,2.50,true]}"#)),
            ("a number that numeric refuses", json, "[1e200000]", Some(r#"["1e200000"]"#)),
            ("largest bigint", ColumnType::BIGINT, "9223372036854775807", Some("9223372036854775807")),
            ("beyond bigint", ColumnType::BIGINT, "9223372036854775808", None),
            ("whole float", ColumnType::BIGINT, "3.0", Some("3")),
            ("fraction", ColumnType::BIGINT, "3.5", None),
            ("digits in a string", ColumnType::BIGINT, r#""42""#, Some("42")),
            ("words", ColumnType::BIGINT, r#""many""#, None),
            ("boolean is no number", ColumnType::BIGINT, "true", None),
            ("double", ColumnType::Double, "5e-324", Some("5e-324")),
            ("rounded", ColumnType::Double, "9007199254740993", Some("9007199254740993")),
            ("beyond double", ColumnType::Double, "1e400", None),
            ("money", money, "12.34", Some("12.34")),
            ("fractions of a cent", money, "12.345", None),
            ("boolean", ColumnType::Boolean, "false", Some("false")),
            ("boolean in a string", ColumnType::Boolean, r#""True""#, Some("t")),
            ("one", ColumnType::Boolean, "1", Some("1")),
            ("two", ColumnType::Boolean, "2", None),
            ("time", ColumnType::TimestampTz, r#""2024-01-31T10:00:00Z""#, Some("2024-01-31T10:00:00Z")),
            ("no time", ColumnType::TimestampTz, r#""soon""#, None),
            ("number is no time", ColumnType::TimestampTz, "1700000000", None),
            ("array is no time", ColumnType::TimestampTz, "[]", None),
            (
                "uuid",
                ColumnType::Uuid,
                r#""67e55044-10b1-426f-9247-bb680e5fe0c8""#,
                Some("67e55044-10b1-426f-9247-bb680e5fe0c8"),
            ),
        ] {
            let (field, fit) = field(kind, raw);
            assert_eq!(decode(&field).as_deref(), expected, "{label}");
            assert_eq!(fit == Fit::Misfit, expected.is_none() && raw != "null", "{label}");
        }
    }

    #[test]
    fn a_document_too_deep_for_the_server_is_kept_as_text() {
        let deep = format!("{}\"\\n\"{}", "[".repeat(600), "]".repeat(600));
        let (field, fit) = field(ColumnType::Json, &deep);
        assert_eq!(fit, Fit::Exact);
        let text: String = serde_json::from_str(&decode(&field).expect("a value")).expect("a string");
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
            prop_assert_eq!(decode(&field(ColumnType::TEXT, &raw).0), Some(text));
        }

        #[test]
        fn documents_read_back_equal(document in any_json()) {
            let decoded = decode(&field(ColumnType::Json, &document.to_string()).0);
            let read = decoded.map_or(Value::Null, |text| serde_json::from_str(&text).expect("JSON"));
            prop_assert_eq!(read, document);
        }

        #[test]
        fn arbitrary_text_never_panics(raw in "[\\\\u0d8\"{}\\[\\]eE0-9+-]*", kind in 0..4_usize) {
            let kinds = [ColumnType::TEXT, ColumnType::Json, ColumnType::Double, ColumnType::TimestampTz];
            field(kinds[kind], &raw);
        }
    }
}
