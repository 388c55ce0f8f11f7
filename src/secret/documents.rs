//! Which values of a document are secret.

use std::collections::BTreeSet;

use serde_json::Value;

use super::names::{Hint, hint, holds_credentials, is_id, is_numeric_secret};
use super::values::{is_choice, is_date, is_random, is_switch, is_token, is_uuid, is_words, secret_parts};

/// Shorter values cannot be distinguished from words, unless a specification marks them.
const MIN_GUESSED_CHARS: usize = 4;
/// Alternatives of one field: a schema may refer to itself.
const MAX_ALTERNATIVES: usize = 1000;
/// Names a stream in a state.
const STREAM_DESCRIPTOR: &str = "stream_descriptor";

/// The secrets of a connector's configuration. What its JSON Schema marks with `airbyte_secret` is one, of fields that
/// it declares without the mark only what is one for certain, of others what looks like one.
pub fn secrets_of_config(config: &Value, schema: Option<&Value>, readable: &BTreeSet<String>) -> BTreeSet<String> {
    let mut collector = Collector { root: schema.unwrap_or(&Value::Null), readable, secrets: BTreeSet::new() };
    let schemas = collector.alternatives(schema.into_iter().collect());
    collector.collect_declared(config, "", false, &schemas);
    collector.secrets
}

/// What looks like a secret in a document without a schema.
pub fn secrets_of_document(document: &Value, readable: &BTreeSet<String>) -> BTreeSet<String> {
    let mut collector = Collector { root: &Value::Null, readable, secrets: BTreeSet::new() };
    collector.collect_undeclared(document, "", false);
    collector.secrets
}

struct Collector<'a> {
    /// What `$ref` refers to.
    root: &'a Value,
    readable: &'a BTreeSet<String>,
    secrets: BTreeSet<String>,
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
    fn collect_declared(&mut self, value: &Value, name: &str, is_marked: bool, schemas: &[&'a Value]) {
        let is_mark = |schema: &&Value| matches!(schema.get("airbyte_secret"), Some(Value::Bool(true)));
        let is_marked = is_marked || schemas.iter().any(is_mark);
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    let schemas = self.of_field(schemas, name);
                    if schemas.is_empty() && !is_marked {
                        self.collect_undeclared(field, name, false);
                    } else {
                        self.collect_declared(field, name, is_marked, &schemas);
                    }
                }
            }
            Value::Array(items) => {
                let schemas = self.of_items(schemas);
                for item in items {
                    if schemas.is_empty() && !is_marked {
                        self.collect_undeclared(item, name, false);
                    } else {
                        self.collect_declared(item, name, is_marked, &schemas);
                    }
                }
            }
            Value::String(text) if is_marked => self.add_marked(text),
            Value::Number(number) if is_marked => {
                let text = number.to_string();
                self.secrets.extend(text.strip_suffix(".0").map(str::to_owned));
                self.secrets.insert(text);
            }
            Value::String(_) if schemas.iter().any(|schema| is_choice_of(value, schema)) => {}
            Value::String(text) => match hint(name) {
                Hint::Secret => self.add_named(text),
                _ if is_token(text) && !is_uuid(text) => self.add(text),
                _ => self.add_parts(text),
            },
            // One bit hides nothing, and the word is everywhere.
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Collects from a value that no schema declares. `in_credentials`: a field above is named like a secret.
    fn collect_undeclared(&mut self, value: &Value, name: &str, in_credentials: bool) {
        match value {
            Value::Object(fields) => {
                let in_credentials = in_credentials || holds_credentials(name);
                for (name, field) in fields.iter().filter(|(name, _)| *name != STREAM_DESCRIPTOR) {
                    self.collect_undeclared(field, name, in_credentials);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.collect_undeclared(item, name, in_credentials)),
            Value::String(text) => match hint(name) {
                Hint::Secret => self.add_named(text),
                Hint::Unknown | Hint::PerhapsSecret if is_choice(text) => {}
                Hint::Unknown if in_credentials => self.add_named(text),
                Hint::PerhapsSecret if in_credentials || !is_words(text) => self.add_named(text),
                Hint::Unknown if is_random(text) => self.add_guessed(text),
                Hint::Plain if is_token(text) && !(is_id(name) && is_uuid(text)) => self.add_guessed(text),
                _ => self.add_parts(text),
            },
            Value::Number(number) if is_numeric_secret(name) => self.add_named(&number.to_string()),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn add_marked(&mut self, text: &str) {
        self.secrets.insert(text.to_owned());
        self.add_parts(text);
    }

    /// Adds the value of a field that is named like a secret.
    fn add_named(&mut self, text: &str) {
        if !is_switch(text) && !is_date(text) {
            self.add(text);
        }
    }

    fn add_guessed(&mut self, text: &str) {
        if !self.readable.contains(text) {
            self.add(text);
        }
    }

    fn add(&mut self, text: &str) {
        if text.chars().count() >= MIN_GUESSED_CHARS {
            self.secrets.insert(text.to_owned());
        }
        self.add_parts(text);
    }

    /// Adds secrets within a value: in a URL, a connection string, or a document such as the key of a service account.
    fn add_parts(&mut self, text: &str) {
        match serde_json::from_str(text) {
            Ok(document @ (Value::Object(_) | Value::Array(_))) => self.collect_undeclared(&document, "", false),
            _ => self.secrets.extend(secret_parts(text).into_iter().filter(|part| part.len() >= MIN_GUESSED_CHARS)),
        }
    }
}

/// Whether a value is one that its schema lists.
fn is_choice_of(value: &Value, schema: &Value) -> bool {
    let listed = schema.get("enum").and_then(Value::as_array).is_some_and(|values| values.contains(value));
    listed || schema.get("const") == Some(value)
}
