//! Configurations that a connector has asked to keep: a refresh token that may be used once makes the one that the caller
//! sends worthless after the first run.
//!
//! What is kept counts as long as the caller sends the configuration that it was made of. A caller that has taken it
//! over, or has changed anything, is believed.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::documents::{CONFIG, Documents};
use super::log::{Level, TaskLog};
use crate::db::Db;
use crate::failure::Failure;
use crate::task::Task;

/// Where a read keeps its connector's configuration.
pub struct Kept<'a> {
    db: &'a Db,
    task: &'a Task,
    /// Stands for the configuration that the caller sent.
    given: String,
}

impl<'a> Kept<'a> {
    /// Looks whether there is something better than what the caller sent, and puts it into its place.
    pub fn restore(db: &'a Db, task: &'a Task, documents: &mut Documents, log: &TaskLog) -> Result<Self, Failure> {
        let given = fingerprint(documents.get(CONFIG).unwrap_or_default());
        if let Some(kept) = db.stored_config(&task.sync_id, &task.image.package, &given)? {
            if let Ok(config) = serde_json::from_str::<Value>(&kept.config) {
                log.learn(&config);
            }
            documents.put(CONFIG, kept.config);
            let text = format!(
                "the connector gets the configuration that it renewed at {}, for the caller sent the one before it",
                kept.timestamp
            );
            log.write(Level::Info, "syncctl", &text);
        }
        Ok(Self { db, task, given })
    }

    /// Keeps what the connector asks to keep.
    pub fn keep(&self, config: &str, log: &TaskLog) -> Result<(), Failure> {
        let Ok(value @ Value::Object(_)) = serde_json::from_str(config) else {
            log.write(Level::Warn, "syncctl", "the connector asks to keep a configuration that is not a JSON object");
            return Ok(());
        };
        log.learn(&value);
        let kept = self.db.save_config(&self.task.sync_id, &self.task.image.package, &self.given, config)?;
        let (level, text) = if kept {
            (Level::Info, "the connector has renewed its configuration: it is kept for the next run of this sync")
        } else {
            (Level::Warn, "the connector has renewed its configuration, and there is no table source_config to keep it")
        };
        log.write(level, "syncctl", text);
        Ok(())
    }
}

/// Stands for a document, whatever its spaces and the order of its keys are.
fn fingerprint(document: &str) -> String {
    let canonical = match serde_json::from_str(document) {
        Ok(value) => sorted(value).to_string(),
        Err(_) => document.to_owned(),
    };
    hex::encode(Sha256::digest(canonical))
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().map(|(name, field)| (name, sorted(field))).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::fingerprint;

    #[test]
    fn a_configuration_is_known_again_in_another_spelling() {
        let one = fingerprint(r#"{"a": {"x": 1, "y": [{"p": 1, "q": 2}]}, "b": "t"}"#);
        assert_eq!(one, fingerprint(r#"{"b":"t","a":{"y":[{"q":2,"p":1}],"x":1}}"#));
        assert_ne!(one, fingerprint(r#"{"b":"t","a":{"y":[{"q":2,"p":1}],"x":2}}"#));
    }
}
