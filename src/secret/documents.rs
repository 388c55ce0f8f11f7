//! Which values of a document are secret.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::Value;

use super::lenient::{Node, parse};
use super::names::{Hint, hint, holds_credentials, is_id, is_numeric_secret};
use super::values::{is_choice, is_date, is_random, is_switch, is_token, is_uuid, is_words, secret_parts};

/// Shorter values cannot be distinguished from words, unless a specification marks them.
const MIN_GUESSED_CHARS: usize = 4;
/// Alternatives of one field: a schema may refer to itself.
const MAX_ALTERNATIVES: usize = 1000;
/// Shorter values hold no document.
const MIN_DOCUMENT_BYTES: usize = 16;
/// Longer secrets are found in base64 whatever is next to them.
const MAX_SHORT_SECRET_BYTES: usize = 7;
/// Longer texts name no user.
const MAX_USER_BYTES: usize = 256;
/// How many texts of an object may name the user of a secret.
const MAX_USERS: usize = 32;
/// How deep documents may be nested as the text of a value.
const MAX_NESTING: usize = 8;
/// Names a stream in a state.
const STREAM_DESCRIPTOR: &str = "stream_descriptor";

/// The secrets of a document.
#[derive(Debug, Default, PartialEq)]
pub struct Secrets {
    /// Values that are marked or named as a secret.
    pub values: BTreeSet<String>,
    /// Values that only look like one.
    pub guessed: BTreeSet<String>,
    /// `user:password` of fields beside each other, where the password is too short to be found within base64.
    pub pairs: BTreeSet<String>,
}

/// The secrets of a connector's configuration. What its JSON Schema marks with `airbyte_secret` is one, of fields that
/// it declares without the mark only what is one for certain, of others what looks like one.
pub fn secrets_of_config(config: &Node, schema: Option<&Value>, readable: &BTreeSet<String>) -> Secrets {
    let mut collector =
        Collector { root: schema.unwrap_or(&Value::Null), readable, secrets: Secrets::default(), nesting: 0 };
    let schemas = collector.alternatives(schema.into_iter().collect());
    collector.collect_declared(config, "", false, &schemas);
    collector.secrets
}

/// What looks like a secret in a document without a schema.
pub fn secrets_of_document(document: &Node, readable: &BTreeSet<String>) -> Secrets {
    let mut collector = Collector { root: &Value::Null, readable, secrets: Secrets::default(), nesting: 0 };
    collector.collect_undeclared(document, "", false);
    collector.secrets
}

struct Collector<'a> {
    /// What `$ref` refers to.
    root: &'a Value,
    readable: &'a BTreeSet<String>,
    secrets: Secrets,
    /// How many documents the current value is nested in.
    nesting: usize,
}

impl<'a> Collector<'a> {
    /// The schemas and all of their alternatives: only the connector knows which of them applies.
    fn alternatives(&self, mut schemas: Vec<&'a Value>) -> Vec<&'a Value> {
        let mut at = 0;
        while at < schemas.len() && schemas.len() < MAX_ALTERNATIVES {
            let schema = schemas[at];
            let target = schema.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix('#'));
            let mut found: Vec<_> = target.and_then(|pointer| self.root.pointer(pointer)).into_iter().collect();
            for list in ["oneOf", "anyOf", "allOf"] {
                found.extend(schema.get(list).and_then(Value::as_array).into_iter().flatten());
            }
            found.extend(["if", "then", "else"].into_iter().filter_map(|branch| schema.get(branch)));
            found.retain(|schema| !schemas.iter().any(|known| std::ptr::eq(*known, *schema)));
            schemas.extend(found);
            at += 1;
        }
        schemas
    }

    /// The schemas of a field.
    fn of_field(&self, schemas: &[&'a Value], name: &str) -> Vec<&'a Value> {
        let declared = schemas.iter().filter_map(|schema| schema.get("properties")?.get(name));
        let patterns = schemas.iter().filter_map(|schema| schema.get("patternProperties")?.as_object());
        // Without looking at the patterns: a mark that does not apply masks too much, one that is missed too little.
        let mut found: Vec<_> = declared.chain(patterns.flat_map(serde_json::Map::values)).collect();
        if found.is_empty() {
            found.extend(
                schemas.iter().filter_map(|schema| schema.get("additionalProperties")).filter(|s| s.is_object()),
            );
        }
        self.alternatives(found)
    }

    /// The schemas of the items of an array.
    fn of_items(&self, schemas: &[&'a Value]) -> Vec<&'a Value> {
        let lists = schemas.iter().flat_map(|schema| ["items", "prefixItems"].map(|list| schema.get(list)));
        let of_list = |list: &'a Value| match list {
            Value::Array(schemas) => schemas.iter().collect(),
            schema => vec![schema],
        };
        self.alternatives(lists.flatten().flat_map(of_list).collect())
    }

    /// Collects from a value that these schemas declare.
    fn collect_declared(&mut self, value: &Node, name: &str, is_marked: bool, schemas: &[&'a Value]) {
        let is_mark = |schema: &&Value| matches!(schema.get("airbyte_secret"), Some(Value::Bool(true)));
        let is_marked = is_marked || schemas.iter().any(is_mark);
        match value {
            Node::Object(fields) | Node::Deep(fields) => {
                let is_deep = matches!(value, Node::Deep(_));
                for (name, field) in fields {
                    let schemas = self.of_field(schemas, name);
                    if schemas.is_empty() && !is_marked {
                        self.collect_undeclared(field, name, is_deep);
                    } else {
                        self.collect_declared(field, name, is_marked, &schemas);
                    }
                }
                self.add_pairs(fields);
            }
            Node::Array(items) => {
                let schemas = self.of_items(schemas);
                for item in items {
                    if schemas.is_empty() && !is_marked {
                        self.collect_undeclared(item, name, false);
                    } else {
                        self.collect_declared(item, name, is_marked, &schemas);
                    }
                }
            }
            Node::Text(text) if is_marked => self.add_marked(text),
            Node::Number(number) if is_marked => {
                self.secrets.values.extend(spellings(number));
            }
            Node::Text(text) if schemas.iter().any(|schema| is_choice_of(text, schema)) => {}
            Node::Text(text) => match hint(name) {
                Hint::Secret => self.add_named(text),
                _ if is_token(text) && !is_uuid(text) => self.add(text),
                _ => self.add_parts(text),
            },
            // One bit hides nothing, and the word is everywhere.
            Node::Word | Node::Number(_) => {}
        }
    }

    /// Collects from a value that no schema declares. `in_credentials`: a field above is named like a secret.
    fn collect_undeclared(&mut self, value: &Node, name: &str, in_credentials: bool) {
        match value {
            Node::Object(fields) | Node::Deep(fields) => {
                // In doubt where a field belongs, it is treated as a secret.
                let in_credentials = in_credentials || holds_credentials(name) || matches!(value, Node::Deep(_));
                for (name, field) in fields.iter().filter(|(name, _)| *name != STREAM_DESCRIPTOR) {
                    self.collect_undeclared(field, name, in_credentials);
                }
                self.add_pairs(fields);
            }
            Node::Array(items) => items.iter().for_each(|item| self.collect_undeclared(item, name, in_credentials)),
            Node::Text(text) => match hint(name) {
                Hint::Secret => self.add_named(text),
                Hint::Unknown | Hint::PerhapsSecret if is_choice(text) => {}
                Hint::Unknown if in_credentials => self.add_named(text),
                Hint::PerhapsSecret if in_credentials || !is_words(text) => self.add_named(text),
                Hint::Unknown if is_random(text) => self.add_guessed(text),
                Hint::Plain if is_token(text) && !(is_id(name) && is_uuid(text)) => self.add_guessed(text),
                _ => self.add_parts(text),
            },
            Node::Number(number) if is_numeric_secret(name) => {
                spellings(number).for_each(|spelling| self.add_named(&spelling));
            }
            Node::Word | Node::Number(_) => {}
        }
    }

    fn add_marked(&mut self, text: &str) {
        if !is_switch(text) {
            self.secrets.values.insert(text.to_owned());
        }
        self.add_parts(text);
    }

    /// Adds the value of a field that is named like a secret.
    fn add_named(&mut self, text: &str) {
        if !is_switch(text) && !is_date(text) {
            self.add(text);
        }
    }

    fn add_guessed(&mut self, text: &str) {
        if self.readable.contains(text) {
            return;
        }
        if text.chars().count() >= MIN_GUESSED_CHARS {
            self.secrets.guessed.insert(text.to_owned());
        }
        self.add_parts(text);
    }

    fn add(&mut self, text: &str) {
        if text.chars().count() >= MIN_GUESSED_CHARS {
            self.secrets.values.insert(text.to_owned());
        }
        self.add_parts(text);
    }

    /// Adds secrets within a value: in a URL, a connection string, or a document such as the key of a service account, also
    /// in base64.
    fn add_parts(&mut self, text: &str) {
        let decoded = (text.len() >= MIN_DOCUMENT_BYTES).then(|| decode_base64(text)).flatten();
        for text in std::iter::once(text).chain(decoded.as_deref()) {
            let document = Some(text).filter(|text| text.trim_start().starts_with(['{', '[', '"'])).and_then(parse);
            match document {
                Some(document) if self.nesting < MAX_NESTING => {
                    self.nesting += 1;
                    self.collect_undeclared(&document, "", false);
                    self.nesting -= 1;
                }
                _ => {
                    let parts = secret_parts(text).into_iter().filter(|part| part.len() >= MIN_GUESSED_CHARS);
                    self.secrets.values.extend(parts);
                }
            }
        }
        if let Some(text) = decoded.filter(|text| text.contains("PRIVATE KEY--")) {
            self.secrets.values.insert(text);
        }
    }

    /// Adds the short secrets of an object with its other texts, of which one is their user.
    fn add_pairs(&mut self, fields: &[(String, Node)]) {
        let texts = || {
            let text = |node| match node {
                &Node::Text(ref text) | &Node::Number(ref text) => Some(text.as_str()),
                _ => None,
            };
            fields.iter().filter_map(move |(_, node)| text(node)).filter(|text| text.len() <= MAX_USER_BYTES)
        };
        let is_short = |text: &&str| !text.is_empty() && text.len() <= MAX_SHORT_SECRET_BYTES;
        for secret in texts().filter(is_short).filter(|text| self.secrets.values.contains(*text)) {
            self.secrets.pairs.insert(format!("{secret}:"));
            for user in texts().filter(|user| *user != secret).take(MAX_USERS) {
                self.secrets.pairs.insert(format!("{user}:{secret}"));
            }
        }
    }
}

/// How a number may be printed.
fn spellings(number: &str) -> impl Iterator<Item = String> {
    let parsed = number.parse::<f64>().ok().filter(|number| number.is_finite());
    let without_zero = number.strip_suffix(".0").map(str::to_owned);
    [Some(number.to_owned()), without_zero, parsed.map(|number| number.to_string())].into_iter().flatten()
}

/// The text that a value is the base64 of.
fn decode_base64(text: &str) -> Option<String> {
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || byte.is_ascii_whitespace() || b"+/-_=".contains(&byte);
    if !text.bytes().all(is_digit) {
        return None;
    }
    let digits = text.split_whitespace().collect::<String>().replace('-', "+").replace('_', "/");
    String::from_utf8(STANDARD_NO_PAD.decode(digits.trim_end_matches('=')).ok()?).ok()
}

/// Whether a value is one that its schema lists.
fn is_choice_of(text: &str, schema: &Value) -> bool {
    let is_text = |value: &Value| value.as_str() == Some(text);
    let listed = schema.get("enum").and_then(Value::as_array).is_some_and(|values| values.iter().any(is_text));
    listed || schema.get("const").is_some_and(is_text)
}
