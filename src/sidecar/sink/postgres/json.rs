//! Decodes JSON strings, and converts JSON documents to what `jsonb` accepts.

use std::char::REPLACEMENT_CHARACTER as REPLACEMENT;

use memchr::{memchr, memchr2};

use super::numeric;
use crate::db::text::unicode_escape;

/// Deeper documents could exhaust the server's stack.
const MAX_DEPTH: usize = 500;

/// Larger documents could exceed the size limit of `jsonb` (256 MB), which takes up to 16 bytes per element and the text.
const MAX_ELEMENTS: usize = 8_000_000;

/// Appends the content of a JSON string with its escapes decoded. Returns whether it has a lone surrogate, which U+FFFD
/// replaces.
pub fn unescape(inner: &[u8], out: &mut Vec<u8>) -> bool {
    let (mut rest, mut replaced) = (inner, false);
    while let Some(at) = memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        let length = match rest.get(at + 1).copied().unwrap_or(b'\\') {
            b'u' => {
                let (character, length) = unicode(&rest[at..]);
                replaced |= character == REPLACEMENT;
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
    replaced
}

/// Decodes the `\uXXXX` or surrogate pair at the start of the text. Returns the character, U+FFFD for a lone surrogate,
/// and the length of the escape.
fn unicode(text: &[u8]) -> (char, usize) {
    unicode_escape(text).map_or((REPLACEMENT, 2), |(character, length)| (character.unwrap_or(REPLACEMENT), length))
}

/// Appends a JSON document in a form that `jsonb` accepts: without `\u0000` and lone surrogates, and with numbers beyond
/// the range of `numeric` as strings. Documents beyond the limits become one string. Returns whether any of that changed
/// the document.
pub fn push_document(raw: &str, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let altered = push_tokens(raw.as_bytes(), out);
    if altered.is_none() {
        out.truncate(start);
        let mut text = String::from('"');
        for c in raw.chars().filter(|c| *c != '\0') {
            match c {
                '"' | '\\' => text.extend(['\\', c]),
                c if c < ' ' => text.push(' '),
                c => text.push(c),
            }
        }
        text.push('"');
        out.extend_from_slice(text.as_bytes());
    }
    altered.unwrap_or(true)
}

/// Appends a JSON document without the space between its tokens.
pub fn push_compact(raw: &[u8], out: &mut Vec<u8>) {
    let mut rest = raw;
    // A string is copied as it is: from its quote to the next one without a backslash before it.
    while let Some(quote) = memchr(b'"', rest) {
        out.extend(rest[..quote].iter().filter(|byte| !byte.is_ascii_whitespace()));
        let mut end = quote + 1;
        while let Some(found) = memchr2(b'"', b'\\', &rest[end..]) {
            end += found + 1;
            if rest[end - 1] == b'"' {
                break;
            }
            end = rest.len().min(end + 1);
        }
        out.extend_from_slice(&rest[quote..end]);
        rest = &rest[end..];
    }
    out.extend(rest.iter().filter(|byte| !byte.is_ascii_whitespace()));
}

/// The document whose text a JSON string holds; `None` if it holds something else.
pub fn embedded_document(raw: &str) -> Option<String> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.trim_start().starts_with(['{', '[']) {
        return None;
    }
    let mut text = Vec::with_capacity(inner.len());
    unescape(inner.as_bytes(), &mut text);
    let text = String::from_utf8(text).ok()?;
    serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok().then_some(text)
}

/// Returns whether a string or number was changed; `None` if the document is too deep or has too many elements.
fn push_tokens(raw: &[u8], out: &mut Vec<u8>) -> Option<bool> {
    let (mut at, mut depth, mut elements, mut altered) = (0, 0_usize, 0_usize, false);
    while let Some(&byte) = raw.get(at) {
        match byte {
            b'"' => {
                at = push_string(raw, at, out, &mut altered);
                continue;
            }
            b'-' | b'0'..=b'9' => {
                at = push_number(raw, at, out, &mut altered);
                continue;
            }
            b' ' | b'\n' | b'\r' | b'\t' => {}
            _ => out.push(byte),
        }
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        elements += usize::from(matches!(byte, b'{' | b'[' | b',' | b':'));
        if depth > MAX_DEPTH || elements > MAX_ELEMENTS {
            return None;
        }
        at += 1;
    }
    Some(altered)
}

/// Appends the string that starts at `at`. Returns its end.
fn push_string(raw: &[u8], at: usize, out: &mut Vec<u8>, altered: &mut bool) -> usize {
    let (mut from, mut at) = (at, at + 1);
    while let Some(found) = memchr2(b'"', b'\\', &raw[at..]) {
        at += found;
        if raw[at] == b'"' {
            out.extend_from_slice(&raw[from..=at]);
            return at + 1;
        }
        let (character, length) = if raw.get(at + 1) == Some(&b'u') { unicode(&raw[at..]) } else { (' ', 2) };
        let end = raw.len().min(at + length);
        if matches!(character, '\0' | REPLACEMENT) {
            *altered = true;
            out.extend_from_slice(&raw[from..at]);
            out.extend_from_slice(if character == REPLACEMENT { "\u{fffd}".as_bytes() } else { b"" });
            from = end;
        }
        at = end;
    }
    out.extend_from_slice(&raw[from..]);
    raw.len()
}

/// Appends the number that starts at `at`. Returns its end.
fn push_number(raw: &[u8], at: usize, out: &mut Vec<u8>, altered: &mut bool) -> usize {
    let in_number = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    let length = raw[at..].iter().position(|byte| !in_number(byte)).unwrap_or(raw.len() - at);
    let number = &raw[at..at + length];
    // Short numbers without an exponent are always within the range.
    let small = length <= 64 && !number.iter().any(|byte| matches!(byte, b'e' | b'E'));
    if small || str::from_utf8(number).is_ok_and(numeric::is_valid) {
        out.extend_from_slice(number);
    } else {
        *altered = true;
        out.push(b'"');
        out.extend_from_slice(number);
        out.push(b'"');
    }
    at + length
}
