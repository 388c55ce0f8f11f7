//! Secrets that do not print, and the masking of known values in text.
//!
//! A connector's configuration is a tree of values of which some are secret, and only the connector knows which. So every
//! string leaf that is too long to be a common word is masked wherever text leaves a task.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use aho_corasick::AhoCorasick;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

/// A value that prints as `[REDACTED]`: database URLs, tokens, credentials.
pub type Secret = secrecy::SecretString;

/// Replaces a masked value.
const MASK: &str = "***";

/// Shorter leaves ("id", "eu", "yes") would turn every log line into asterisks and hide nothing worth hiding. Those that
/// a specification marks as secret are masked all the same, where they stand alone.
const MIN_MASKED_CHARS: usize = 4;

/// Limit of all values together: the matcher takes several dozen bytes of memory for each of theirs, and states of many
/// megabytes exist.
const MAX_BYTES: usize = 256 * 1024;

/// Replaces known values in text, also where they are written with JSON's or a URL's escapes. Clones share the values.
#[derive(Clone, Default)]
pub struct Masker {
    known: Arc<RwLock<Known>>,
}

#[derive(Default)]
struct Known {
    values: BTreeSet<String>,
    /// Strings of documents that stay readable.
    readable: BTreeSet<String>,
    /// Finds all of the values in one pass; `None` while there are none.
    matcher: Option<AhoCorasick>,
}

impl Masker {
    /// Masks every string leaf of the given documents.
    pub fn of<'a>(documents: impl IntoIterator<Item = &'a Value>) -> Self {
        let masker = Self::default();
        masker.add(documents);
        masker
    }

    /// Keeps these values readable, although documents that are added later contain them.
    pub fn keep_readable(&self, values: impl IntoIterator<Item = String>) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).readable.extend(values);
    }

    /// Masks every string leaf of these documents, too, up to [`MAX_BYTES`] of them.
    pub fn add<'a>(&self, documents: impl IntoIterator<Item = &'a Value>) {
        let mut leaves = Vec::new();
        documents.into_iter().for_each(|document| collect(document, &mut leaves));
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            leaves.retain(|leaf| leaf.chars().count() >= MIN_MASKED_CHARS && !known.readable.contains(leaf));
        }
        let mut bytes = 0;
        leaves.retain(|leaf| {
            bytes += leaf.len();
            bytes <= MAX_BYTES
        });
        self.add_values(leaves);
    }

    /// Masks, regardless of their length, the values of a configuration that its JSON Schema marks with `airbyte_secret`.
    pub fn add_marked(&self, config: &Value, schema: &Value) {
        let mut marked = Vec::new();
        collect_marked(config, schema, false, &mut marked);
        self.add_values(marked);
    }

    fn add_values(&self, values: Vec<String>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for value in values.into_iter().filter(|value| !value.trim().is_empty()) {
            let escaped = Value::String(value.clone()).to_string();
            known.values.insert(escaped[1..escaped.len() - 1].to_owned());
            known.values.insert(utf8_percent_encode(&value, NON_ALPHANUMERIC).to_string());
            // A PEM key is logged line by line, and then no line equals the whole.
            let lines = value.lines().map(str::trim).filter(|line| line.len() >= MIN_MASKED_CHARS);
            known.values.extend(lines.map(str::to_owned));
            known.values.insert(value);
        }
        // Only sizes beyond what memory holds are refused.
        known.matcher = AhoCorasick::new(&known.values).ok().filter(|_| !known.values.is_empty());
    }

    /// The text without the known values.
    pub fn mask(&self, text: &str) -> String {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let Some(matcher) = &known.matcher else { return text.to_owned() };
        let mut hidden: Vec<(usize, usize)> = Vec::new();
        let mut found: Vec<_> = matcher
            .find_overlapping_iter(text)
            .map(|found| (found.start(), found.end()))
            .filter(|(start, end)| end - start >= MIN_MASKED_CHARS || is_whole_word(text, *start, *end))
            .collect();
        found.sort_unstable();
        for (start, end) in found {
            match hidden.last_mut() {
                // Secrets that overlap are hidden as one: the rest of either would be a part of it.
                Some(last) if start < last.1 => last.1 = last.1.max(end),
                _ => hidden.push((start, end)),
            }
        }
        let (mut masked, mut at) = (String::with_capacity(text.len()), 0);
        for (start, end) in hidden {
            masked.push_str(&text[at..start]);
            masked.push_str(MASK);
            at = end;
        }
        masked.push_str(&text[at..]);
        masked
    }
}

/// Whether no letter or digit is next to a part of a text.
fn is_whole_word(text: &str, start: usize, end: usize) -> bool {
    let before = text[..start].chars().next_back();
    let after = text[end..].chars().next();
    ![before, after].into_iter().flatten().any(char::is_alphanumeric)
}

fn collect(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) => into.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect(item, into)),
        Value::Object(fields) => fields.values().for_each(|field| collect(field, into)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Collects what a schema marks, in all alternatives (`oneOf`, …): only the connector knows which of them applies.
fn collect_marked(value: &Value, schema: &Value, marked: bool, into: &mut Vec<String>) {
    let marked = marked || schema.get("airbyte_secret") == Some(&Value::Bool(true));
    for alternatives in ["oneOf", "anyOf", "allOf"] {
        let alternatives = schema.get(alternatives).and_then(Value::as_array);
        alternatives.into_iter().flatten().for_each(|schema| collect_marked(value, schema, marked, into));
    }
    match value {
        Value::String(text) if marked => into.push(text.clone()),
        Value::Number(number) if marked => into.push(number.to_string()),
        Value::Array(items) => {
            let schema = schema.get("items").unwrap_or(&Value::Null);
            for item in items {
                collect_marked(item, schema, marked, into);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                let schema = schema.get("properties").and_then(|properties| properties.get(name));
                collect_marked(field, schema.unwrap_or(&Value::Null), marked, into);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::Masker;
    use serde_json::json;

    #[test]
    fn string_leaves_are_masked_wherever_they_appear() {
        let masker = Masker::of([&json!({"a": {"password": "s3cret!"}, "list": ["tok\"en"], "n": 12345})]);
        for (label, text, expected) in [
            ("plain", "login with s3cret! failed", "login with *** failed"),
            ("twice", "s3cret!s3cret!", "******"),
            ("json escaped", r#"{"t":"tok\"en"}"#, r#"{"t":"***"}"#),
            ("in a URL", "postgresql://u:s3cret%21@db", "postgresql://u:***@db"),
            ("a number stays", "12345 rows", "12345 rows"),
        ] {
            assert_eq!(masker.mask(text), expected, "{label}");
        }
    }

    #[test]
    fn short_leaves_stay_and_longer_ones_win() {
        let masker = Masker::of([&json!(["eu", "pass", "password1", "word12345"])]);
        assert_eq!(masker.mask("eu password1 pass"), "eu *** ***");
        assert_eq!(masker.mask("password12345"), "***", "nothing is left of two that overlap");
    }

    #[test]
    fn a_key_of_several_lines_is_masked_line_by_line() {
        let masker = Masker::of([&json!("-----BEGIN KEY-----\nAAAABBBB\n-----END KEY-----\n")]);
        assert_eq!(masker.mask("read AAAABBBB"), "read ***");
    }

    #[test]
    fn values_that_a_specification_marks_are_masked_at_any_length() {
        let schema = json!({"properties": {
            "pin": {"type": "integer", "airbyte_secret": true},
            "region": {"type": "string"},
            "auth": {"oneOf": [
                {"properties": {"token": {"type": "string", "airbyte_secret": true}}},
                {"properties": {"user": {"type": "string"}}},
            ]},
            "keys": {"type": "array", "items": {"type": "string", "airbyte_secret": true}},
        }});
        let config = json!({"pin": 42, "region": "eu", "auth": {"token": "abc", "user": "me"}, "keys": ["x1"]});
        let masker = Masker::default();
        masker.add_marked(&config, &schema);
        assert_eq!(masker.mask("eu me 42 abc x1 421 abcd"), "eu me *** *** *** 421 abcd");
    }

    #[test]
    fn readable_values_are_masked_only_where_a_specification_marks_them() {
        let masker = Masker::default();
        masker.keep_readable(["db.internal", "orders"].map(str::to_owned));
        let config = json!({"host": "db.internal", "table": "orders", "password": "orders2"});
        masker.add([&config]);
        assert_eq!(masker.mask("orders of db.internal, orders2"), "orders of db.internal, ***");
        masker.add_marked(&config, &json!({"properties": {"table": {"airbyte_secret": true}}}));
        assert_eq!(masker.mask("orders of db.internal"), "*** of db.internal");
    }

    #[test]
    fn clones_share_their_values() {
        let masker = Masker::of([&json!("old-token")]);
        let clone = masker.clone();
        masker.add([&json!({"refresh_token": "new-token"})]);
        assert_eq!(clone.mask("old-token new-token"), "*** ***");
    }
}
