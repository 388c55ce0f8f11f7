//! Secrets that do not print, and the masking of known values in text.
//!
//! A connector's configuration is a tree of values of which some are secret; which ones is only known to the
//! connector. So every string leaf that is long enough not to be a common word is masked wherever text leaves a task.

use serde_json::Value;

/// A value that prints as `[REDACTED]`: database URLs, tokens, credentials.
pub type Secret = secrecy::SecretString;

/// What stands in place of a masked value.
const MASK: &str = "***";

/// Shorter leaves ("id", "eu", "yes") would turn every log line into asterisks and hide nothing worth hiding.
const SHORTEST_MASKED: usize = 4;

/// Replaces known values in text. Values that spell JSON escapes are also masked in their escaped form.
#[derive(Debug, Clone, Default)]
pub struct Masker {
    /// Longest first, so that a value that contains another one is masked whole.
    values: Vec<String>,
}

impl Masker {
    /// Masks every string leaf of the given documents.
    pub fn of<'a>(documents: impl IntoIterator<Item = &'a Value>) -> Self {
        let mut values = Vec::new();
        for document in documents {
            collect(document, &mut values);
        }
        Self::of_values(values)
    }

    /// Masks the given values.
    pub fn of_values(values: impl IntoIterator<Item = String>) -> Self {
        let mut all: Vec<String> = Vec::new();
        for value in values.into_iter().filter(|value| value.chars().count() >= SHORTEST_MASKED) {
            let escaped = Value::String(value.clone()).to_string();
            let escaped = escaped[1..escaped.len() - 1].to_owned();
            // A PEM key is logged line by line, and then no line equals the whole.
            all.extend(value.lines().map(str::trim).filter(|line| line.len() >= SHORTEST_MASKED).map(str::to_owned));
            all.push(escaped);
            all.push(value);
        }
        all.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        all.dedup();
        Self { values: all }
    }

    /// The text without the known values.
    pub fn mask(&self, text: &str) -> String {
        let mut masked = text.to_owned();
        for value in self.values.iter().filter(|value| text.len() >= value.len()) {
            if masked.contains(value.as_str()) {
                masked = masked.replace(value.as_str(), MASK);
            }
        }
        masked
    }
}

fn collect(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) => into.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect(item, into)),
        Value::Object(fields) => fields.values().for_each(|field| collect(field, into)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
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
            ("a number stays", "12345 rows", "12345 rows"),
        ] {
            assert_eq!(masker.mask(text), expected, "{label}");
        }
    }

    #[test]
    fn short_leaves_stay_and_longer_ones_win() {
        let masker = Masker::of([&json!(["eu", "pass", "password1"])]);
        assert_eq!(masker.mask("eu password1 pass"), "eu *** ***");
    }

    #[test]
    fn a_key_of_several_lines_is_masked_line_by_line() {
        let masker = Masker::of([&json!("-----BEGIN KEY-----\nAAAABBBB\n-----END KEY-----\n")]);
        assert_eq!(masker.mask("read AAAABBBB"), "read ***");
    }
}
