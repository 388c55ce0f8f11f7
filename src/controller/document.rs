//! A document that a caller gives: a JSON or YAML file, or a field of a request body. Errors name the place.
//!
//! JSON keeps its original text, so that no number passes through `f64` and keys keep their order. No message quotes the
//! content: it holds credentials.

use std::borrow::Cow;
use std::io::Read;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::failure::{Class, Failure};

/// A document and where it came from.
pub struct Document<'a> {
    origin: Origin,
    text: Cow<'a, str>,
    is_yaml: bool,
}

enum Origin {
    /// A path, or `stdin`.
    File(String),
    /// A field of a request body, which was parsed as JSON.
    Field(&'static str),
}

impl<'a> Document<'a> {
    /// Reads a file, or stdin for `-`. `what` is the document's role in error messages, such as "the configuration".
    pub fn read_file(path: &str, what: &str) -> Result<Self, Failure> {
        let (path, read) = if path == "-" {
            let mut text = String::new();
            ("stdin", std::io::stdin().read_to_string(&mut text).map(|_| text))
        } else {
            (path, std::fs::read_to_string(path))
        };
        let text = read
            .map_err(|error| Failure::new(Class::InvalidInput, format!("cannot read {what} from {path}: {error}")))?;
        Ok(Self::of_file(path, text))
    }

    /// The content of a file.
    pub fn of_file(path: &str, text: String) -> Self {
        let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
        let has_yaml_name = [".yaml", ".yml"].iter().any(|suffix| path.to_ascii_lowercase().ends_with(suffix));
        let is_yaml = has_yaml_name || !text.trim_start().starts_with(['{', '[']);
        Self { origin: Origin::File(path.to_owned()), text: text.into(), is_yaml }
    }

    /// A field of a request body by its name and JSON text; the text is empty if the field is missing.
    pub fn of_field(name: &'static str, json: &'a str) -> Self {
        Self { origin: Origin::Field(name), text: json.into(), is_yaml: false }
    }

    /// Whether a user of this machine has given it, whose files it may name.
    pub fn is_of_this_machine(&self) -> bool {
        matches!(self.origin, Origin::File(_))
    }

    /// The JSON text of a document that must be an object. `content` describes it in error messages.
    pub fn object(&self, content: &str) -> Result<String, Failure> {
        let formats = if matches!(self.origin, Origin::File(_)) { "JSON or YAML" } else { "JSON" };
        let expected = format!("expected a {formats} object with {content}");
        let value = self.syntax(&expected)?;
        let json = self.json(value.as_ref());
        let kind = match json.as_bytes().first() {
            Some(b'{') => return Ok(json),
            Some(b'[') => "a list",
            Some(b'"') => "a string",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            _ => "a number",
        };
        Err(self.invalid_at("line 1", &format!("{expected}, found {kind}")))
    }

    /// Parses the document; returns its value and its JSON text.
    pub fn typed<T: DeserializeOwned>(&self, expected: &str) -> Result<(T, String), Failure> {
        let expected = format!("expected {expected}");
        let value = self.syntax(&expected)?;
        Ok((self.parse(&expected)?, self.json(value.as_ref())))
    }

    /// Replaces the content with what `convert` makes of it; invalid content is left for the parser to report.
    #[must_use]
    pub fn converted(self, convert: impl FnOnce(&Value) -> Option<Value>) -> Self {
        match self.parse::<Value>("").ok().as_ref().and_then(convert) {
            Some(value) => Self { text: value.to_string().into(), is_yaml: false, ..self },
            None => self,
        }
    }

    /// An error about the whole document.
    pub fn invalid(&self, text: &str) -> Failure {
        let text = match &self.origin {
            Origin::File(path) => format!("{path}: {text}"),
            Origin::Field(name) => format!("invalid {name} in the body: {text}"),
        };
        Failure::new(Class::InvalidInput, text)
    }

    fn invalid_at(&self, place: &str, text: &str) -> Failure {
        match self.origin {
            Origin::File(_) => self.invalid(&format!("{place}: {text}")),
            // Lines of the field are not lines of the body.
            Origin::Field(_) => self.invalid(text),
        }
    }

    /// Checks the syntax of a file. The parser of the body has checked that of a field.
    fn syntax(&self, expected: &str) -> Result<Option<Value>, Failure> {
        match self.origin {
            Origin::File(_) => self.parse(expected).map(Some),
            Origin::Field(name) if matches!(&*self.text, "" | "null") => {
                Err(Failure::new(Class::InvalidInput, format!("{name} is missing from the body")))
            }
            Origin::Field(_) => Ok(None),
        }
    }

    fn parse<T: DeserializeOwned>(&self, expected: &str) -> Result<T, Failure> {
        if self.text.trim().is_empty() {
            return Err(self.invalid_at("line 1", &format!("the file is empty: {expected}")));
        }
        if self.is_yaml {
            serde_yaml::from_str(&self.text).map_err(|error| {
                let line = error.location().map_or(1, |location| location.line());
                self.invalid_at(&format!("line {line}"), &format!("{}: {expected}", without_values(&error.to_string())))
            })
        } else {
            serde_json::from_str(&self.text).map_err(|error| {
                let message = error.to_string();
                let message = without_values(message.split(" at line ").next().unwrap_or_default());
                let place = format!("line {}, column {}", error.line(), error.column());
                self.invalid_at(&place, &format!("{message}: {expected}"))
            })
        }
    }

    fn json(&self, value: Option<&Value>) -> String {
        match value {
            Some(value) if self.is_yaml => value.to_string(),
            _ => self.text.trim().to_owned(),
        }
    }
}

/// Removes the value that serde quotes in an error (`invalid type: string "hunter2"`): it may be a secret.
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

#[cfg(test)]
mod tests {
    use super::{Document, Origin};
    use crate::airbyte::catalog::ConfiguredCatalog;

    fn document(text: &str, is_yaml: bool) -> Document<'_> {
        Document { origin: Origin::File("f".to_owned()), text: text.into(), is_yaml }
    }

    #[test]
    fn errors_name_the_place_and_what_was_expected_without_values() {
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
    fn a_wrong_type_is_reported_without_the_value() {
        let text = r#"{"streams": "hunter2"}"#;
        let error = document(text, false).typed::<ConfiguredCatalog>("a catalog").expect_err("not a list").text;
        assert!(error.contains("line 1") && error.contains("expected a sequence"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn json_keeps_its_text_and_yaml_becomes_json() {
        assert_eq!(document("{\"n\": 1e400}", false).object("x").ok(), None, "outside the range of f64");
        let exact = "{\"b\": 9007199254740993,\n \"a\": 1.10}";
        assert_eq!(document(exact, false).object("x").ok().as_deref(), Some(exact));
        assert_eq!(document("b: 1\na: [x]", true).object("x").ok().as_deref(), Some(r#"{"b":1,"a":["x"]}"#));
    }
}
