//! Text for Postgres: what is not printable is escaped, characters that it refuses are removed from data, identifiers and
//! literals are quoted.
//!
//! Postgres refuses U+0000 in any text, and in `jsonb` also its escape and lone surrogates.

use std::borrow::Cow;
use std::iter;

use crate::printable;

/// Text for people as rows hold it: printable, in lines.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    printable::lines(text)
}

/// The same for the text of a JSON document.
pub(super) fn shown_json(json: &str) -> Cow<'_, str> {
    printable::json(json)
}

/// The text without U+0000.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "")) } else { Cow::Borrowed(text) }
}

/// The JSON document without the escapes that `jsonb` refuses: `\u0000` and lone surrogates.
///
/// In `\\u0000` the backslash is escaped, so that stays.
pub fn clean_json(json: &str) -> Cow<'_, str> {
    let json = clean(json);
    if !json.contains("\\u") {
        return json;
    }
    let mut out = String::with_capacity(json.len());
    let mut rest: &str = &json;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (length, keep) = match unicode_escape(rest.as_bytes()) {
            // A short escape, as `\\`.
            None => (rest.char_indices().nth(2).map_or(rest.len(), |(end, _)| end), true),
            Some((character, length)) => (length, !matches!(character, None | Some('\0'))),
        };
        if keep {
            out.push_str(&rest[..length]);
        }
        rest = &rest[length..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// An identifier of any content.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal of any content, whatever `standard_conforming_strings` is.
pub fn quote_literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Decodes the `\uXXXX` or surrogate pair at the start of a text. Returns the character, `None` for a lone surrogate, and
/// the length of the escape in bytes.
pub fn unicode_escape(text: &[u8]) -> Option<(Option<char>, usize)> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
        let digit = |digit: &u8| u16::try_from(char::from(*digit).to_digit(16)?).ok();
        digits.iter().try_fold(0, |unit, hex| Some(unit * 16 + digit(hex)?))
    };
    let first = unit(0)?;
    let second = if matches!(first, 0xD800..=0xDBFF) { unit(6) } else { None };
    let character = char::decode_utf16(iter::once(first).chain(second)).next()?.ok();
    Some((character, character.map_or(6, |character| 6 * character.len_utf16())))
}

#[cfg(test)]
mod tests {
    use super::{clean, clean_json};
    use proptest::prelude::*;

    #[test]
    fn clean_json_removes_only_escapes_that_jsonb_refuses() {
        for (label, json, expected) in [
            ("unchanged", r#"{"a":"b"}"#, r#"{"a":"b"}"#),
            ("null escape", r#"{"a":"x\u0000y"}"#, r#"{"a":"xy"}"#),
            ("escaped backslash", r#"{"a":"x\\u0000y"}"#, r#"{"a":"x\\u0000y"}"#),
            ("backslash, then a null escape", r#"{"a":"x\\\u0000y"}"#, r#"{"a":"x\\y"}"#),
            ("in a key", r#"{"\u0000a":1}"#, r#"{"a":1}"#),
            ("other escapes", r#"["\n\"\u00e9\/"]"#, r#"["\n\"\u00e9\/"]"#),
            ("a pair", r#"["\uD83D\ude00"]"#, r#"["\uD83D\ude00"]"#),
            ("lone high", r#"["a\ud83db"]"#, r#"["ab"]"#),
            ("lone low", r#"["a\ude00b"]"#, r#"["ab"]"#),
            ("two highs", r#"["\ud83d\ud83d\ude00"]"#, r#"["\ud83d\ude00"]"#),
            ("split by a null escape", r#"["\ud83d\u0000\ude00"]"#, r#"[""]"#),
            ("a high, then an escaped backslash", r#"["\ud83d\\ude00"]"#, r#"["\\ude00"]"#),
            ("multi-byte characters", "[\"\\u0000é\\u0000\"]", "[\"é\"]"),
            ("cut off", r"\u00", r"\u00"),
            ("backslash at the end", "\\u0000\\", "\\"),
        ] {
            assert_eq!(clean_json(json), expected, "{label}");
        }
        assert_eq!(clean("a\0b"), "ab");
    }

    proptest! {
        #[test]
        fn clean_json_keeps_all_characters_but_null(text in any::<String>()) {
            let json = serde_json::Value::String(text.clone()).to_string();
            let back: String = serde_json::from_str(&clean_json(&json)).expect("still a JSON string");
            prop_assert_eq!(back, text.replace('\0', ""));
        }
    }
}
