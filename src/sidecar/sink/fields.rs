//! Fields of a `destinationConfig`, whatever its type. Errors name the field, never its value.

use serde_json::Value;

use crate::failure::{Class, Failure};

/// A field that is text; empty is absent.
pub fn text(config: &Value, field: &str) -> Result<Option<String>, Failure> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(_) => Err(invalid(field, "expected a string")),
    }
}

/// A field that is text, and has to be there.
pub fn required(config: &Value, field: &str) -> Result<String, Failure> {
    text(config, field)?.ok_or_else(|| invalid(field, "is required"))
}

/// What is wrong with a field.
pub fn invalid(field: &str, why: &str) -> Failure {
    Failure::new(Class::InvalidInput, format!("destinationConfig.{field}: {why}"))
}
