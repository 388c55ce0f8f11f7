//! Files that a user gives: JSON or YAML, with errors that say where, and what was expected.
//!
//! JSON is kept as the text that it was, so that no number passes through `f64` and keys keep their order. No message
//! quotes the contents: they hold secrets.

use std::io::Read;

use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::failure::{Class, Failure};
use crate::task::Image;

/// A file that was read.
pub struct Document {
    /// For messages.
    path: String,
    text: String,
    yaml: bool,
}

impl Document {
    /// Reads a file, or stdin for `-`. `what` is what the user calls it ("the configuration").
    pub fn read(path: &str, what: &str) -> Result<Self, Failure> {
        let mut text = String::new();
        let read = if path == "-" {
            std::io::stdin().read_to_string(&mut text).map(|_| ())
        } else {
            std::fs::read_to_string(path).map(|content| text = content)
        };
        let path = if path == "-" { "stdin".to_owned() } else { path.to_owned() };
        read.map_err(|error| invalid(format!("reading {what} from {path}: {error}")))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned();
        let is_yaml_name = [".yaml", ".yml"].iter().any(|ending| path.to_ascii_lowercase().ends_with(ending));
        let yaml = is_yaml_name || !text.trim_start().starts_with(['{', '[']);
        Ok(Self { path, text, yaml })
    }

    /// The document as one JSON object; returns its text.
    pub fn object(&self, expected: &str) -> Result<String, Failure> {
        let expected = format!("expected a JSON or YAML object with {expected}");
        let value: Value = self.parse(&expected)?;
        if !value.is_object() {
            return Err(invalid(format!("{}: line 1: {expected}, found {}", self.path, kind_of(&value))));
        }
        Ok(self.json(&value))
    }

    /// The document as a type of ours; returns it and its JSON text.
    pub fn typed<T: DeserializeOwned>(&self, expected: &str) -> Result<(T, String), Failure> {
        let expected = format!("expected {expected}");
        let value: Value = self.parse(&expected)?;
        Ok((self.parse(&expected)?, self.json(&value)))
    }

    /// An error about this document as a whole.
    pub fn error(&self, text: &str) -> Failure {
        invalid(format!("{}: {text}", self.path))
    }

    fn parse<T: DeserializeOwned>(&self, expected: &str) -> Result<T, Failure> {
        if self.text.trim().is_empty() {
            return Err(self.error(&format!("line 1: the file is empty: {expected}")));
        }
        if self.yaml {
            serde_yaml::from_str(&self.text).map_err(|error| {
                let line = error.location().map_or(1, |location| location.line());
                let message = error.to_string();
                self.error(&format!("line {line}: {}: {expected}", without_values(&message)))
            })
        } else {
            serde_json::from_str(&self.text).map_err(|error| {
                let message = error.to_string();
                let message = message.split(" at line ").next().unwrap_or_default();
                let place = format!("line {}, column {}", error.line(), error.column());
                self.error(&format!("{place}: {}: {expected}", without_values(message)))
            })
        }
    }

    fn json(&self, value: &Value) -> String {
        if self.yaml { value.to_string() } else { self.text.trim().to_owned() }
    }
}

/// serde quotes a value of the wrong type (`invalid type: string "hunter2"`), and that may be a secret.
pub fn without_values(message: &str) -> String {
    for kind in ["string", "integer", "floating point", "boolean"] {
        let Some((before, quoted)) = message.split_once(&format!("{kind} ")) else { continue };
        if let Some((_, after)) = quoted.rsplit_once(", expected") {
            let article = if kind == "integer" { "an" } else { "a" };
            return format!("{before}{article} {kind}, expected{after}");
        }
    }
    message.to_owned()
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn invalid(text: String) -> Failure {
    Failure::new(Class::InvalidInput, text)
}

/// The key of a result when the user names none: the same for the same connector and configuration, and telling
/// nothing about it.
pub fn storage_key(image: &Image, config: &str) -> String {
    let digest = Sha256::digest(format!("{image}\n{config}").as_bytes());
    format!("cli-{}", hex::encode(&digest[..16]))
}

#[cfg(test)]
mod tests {
    use super::Document;
    use crate::airbyte::catalog::ConfiguredCatalog;

    fn document(text: &str, yaml: bool) -> Document {
        Document { path: "f".to_owned(), text: text.to_owned(), yaml }
    }

    #[test]
    fn errors_say_where_and_what_and_never_quote_values() {
        for (label, text, yaml, expected) in [
            ("empty", "", false, "f: line 1: the file is empty"),
            ("cut off", "{\n \"a\": 1,\n", false, "f: line 3, column 0: EOF while parsing"),
            ("a list", "[1]", false, "f: line 1: expected a JSON or YAML object with x, found a list"),
            ("a scalar in YAML", "hunter2", true, "found a string"),
            ("bad YAML", "a: 1\n b: [", true, "f: line 2"),
        ] {
            let error = document(text, yaml).object("x").expect_err(label).text;
            assert!(error.contains(expected), "{label}: {error}");
            assert!(!error.contains("hunter2"), "{label}: {error}");
        }
    }

    #[test]
    fn a_wrong_type_is_told_without_the_value() {
        let text = r#"{"streams": "hunter2"}"#;
        let error = document(text, false).typed::<ConfiguredCatalog>("a catalog").expect_err("not a list").text;
        assert!(error.contains("line 1") && error.contains("expected a sequence"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn json_stays_the_text_that_it_was_and_yaml_becomes_json() {
        assert_eq!(document("{\"n\": 1e400}", false).object("x").ok(), None, "out of every range");
        let exact = "{\"b\": 9007199254740993,\n \"a\": 1.10}";
        assert_eq!(document(exact, false).object("x").ok().as_deref(), Some(exact));
        assert_eq!(document("b: 1\na: [x]", true).object("x").ok().as_deref(), Some(r#"{"b":1,"a":["x"]}"#));
    }
}
