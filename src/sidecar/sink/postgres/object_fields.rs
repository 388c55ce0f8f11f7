//! The fields of a JSON object, without validating it again.
//!
//! A record's text was validated when its line was parsed. Here only the ends of keys and values are looked for, which
//! takes a fraction of the time of a parser.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr2;

use super::json;

/// Iterates over the fields of an object: their keys, decoded, and where their values are.
///
/// `text` must hold valid JSON, and an object at the place where the iteration starts.
pub struct ObjectFields<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> ObjectFields<'a> {
    /// The fields of the object that starts at `start`, or after space there.
    pub fn new(text: &'a str, start: usize) -> Self {
        let text = text.as_bytes();
        Self { text, at: skip_space(text, start) + 1 }
    }
}

impl<'a> Iterator for ObjectFields<'a> {
    type Item = (Cow<'a, [u8]>, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let text = self.text;
        let mut quote = skip_space(text, self.at);
        if text.get(quote) == Some(&b',') {
            quote = skip_space(text, quote + 1);
        }
        if text.get(quote) != Some(&b'"') {
            return None;
        }
        let end = string_end(text, quote);
        let key = text.get(quote + 1..end - 1)?;
        let start = skip_space(text, skip_space(text, end) + 1);
        self.at = value_end(text, start);
        Some((decoded(key), start..self.at))
    }
}

/// A key without its escapes. A lone surrogate becomes U+FFFD.
fn decoded(key: &[u8]) -> Cow<'_, [u8]> {
    if !key.contains(&b'\\') {
        return Cow::Borrowed(key);
    }
    let mut decoded = Vec::with_capacity(key.len());
    json::unescape(key, &mut decoded);
    Cow::Owned(decoded)
}

fn skip_space(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count()
}

/// The end of the value that starts at `at`.
fn value_end(text: &[u8], at: usize) -> usize {
    match text.get(at) {
        Some(b'"') => string_end(text, at),
        Some(b'{' | b'[') => nested_end(text, at),
        _ => {
            let rest = text.get(at..).unwrap_or_default();
            let is_end = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r');
            at + rest.iter().position(is_end).unwrap_or(rest.len())
        }
    }
}

/// The end of the string whose opening quote is at `quote`.
fn string_end(text: &[u8], quote: usize) -> usize {
    let mut at = quote + 1;
    while let Some(found) = text.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found + 1;
        if text[at - 1] == b'"' {
            return at;
        }
        // The byte after a backslash never ends the string.
        at += 1;
    }
    text.len()
}

/// The end of the object or list that starts at `at`.
fn nested_end(text: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                at = string_end(text, at);
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::ObjectFields;
    use proptest::prelude::{Strategy, any, prop, prop_assert_eq, proptest};
    use serde_json::Value;

    fn fields(text: &str) -> Vec<(String, &str)> {
        ObjectFields::new(text, 0)
            .map(|(key, value)| (String::from_utf8_lossy(&key).into_owned(), &text[value]))
            .collect()
    }

    #[test]
    fn keys_are_decoded_and_values_are_their_text() {
        for (text, expected) in [
            ("{}", vec![]),
            (" { } ", vec![]),
            (r#"{"a":1}"#, vec![("a", "1")]),
            (r#" { "a" : 1 , "b":"x" , "c" : null } "#, vec![("a", "1"), ("b", r#""x""#), ("c", "null")]),
            (
                r#"{"a":"}\"{\\","b":[{"c":"]"},[]] ,"d":{"e":{}}}"#,
                vec![("a", r#""}\"{\\""#), ("b", r#"[{"c":"]"},[]]"#), ("d", r#"{"e":{}}"#)],
            ),
            (
                r#"{"a\"b\\":true,"\u00e9":-1.5e3,"\ud800":2}"#,
                vec![("a\"b\\", "true"), ("é", "-1.5e3"), ("\u{fffd}", "2")],
            ),
            (r#"{"a":1,"a":2}"#, vec![("a", "1"), ("a", "2")]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            assert_eq!(fields(text), expected, "{text}");
        }
    }

    fn document() -> impl Strategy<Value = Value> {
        let leaf = proptest::prop_oneof![
            any::<Option<bool>>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            proptest::prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn all_fields_of_any_object_are_found(
            object in prop::collection::hash_map(any::<String>(), document(), 0..6), pretty: bool
        ) {
            let object = Value::Object(object.into_iter().collect());
            let text = if pretty { format!(" {object:#} ") } else { object.to_string() };
            let found = fields(&text).into_iter().map(|(key, value)| (key, serde_json::from_str(value).expect("a value")));
            prop_assert_eq!(Value::Object(found.collect()), object);
        }
    }
}
