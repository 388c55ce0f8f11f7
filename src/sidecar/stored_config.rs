//! The connector's configuration as the connector renews it: a single-use refresh token makes the configuration that the
//! caller sends worthless after the first check, discover or read.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::documents::{CONFIG, Documents};
use super::log::{Level, TaskLog};
use crate::db::Db;
use crate::failure::Failure;
use crate::task::Task;

/// The stored configuration that replaces the caller's.
///
/// It belongs to the connector's package and to the configuration that it has replaced: all tasks with that one use it. A
/// caller that changes anything takes precedence.
pub struct StoredConfig<'a> {
    db: &'a Db,
    package: &'a str,
    /// Identifies the configuration that the caller sent.
    fingerprint: String,
}

impl<'a> StoredConfig<'a> {
    /// Replaces the caller's configuration with the renewed one, if there is one.
    pub fn restore(db: &'a Db, task: &'a Task, documents: &mut Documents, log: &TaskLog) -> Result<Self, Failure> {
        let package = &task.image.package;
        let fingerprint = fingerprint(documents.get(CONFIG).unwrap_or_default());
        if documents.get(CONFIG).is_some()
            && let Some(stored) = db.stored_config(package, &fingerprint)?
        {
            log.mask_renewed_config(&stored.config);
            documents.change(CONFIG, stored.config);
            let text = format!("using the configuration that the connector renewed at {}", stored.timestamp);
            log.write(Level::Info, "syncctl", &text);
        }
        Ok(Self { db, package, fingerprint })
    }

    /// Stores a configuration that the connector asks to persist.
    pub fn save(&self, config: &str, log: &TaskLog) -> Result<(), Failure> {
        log.mask_renewed_config(config);
        let Ok(Value::Object(_)) = serde_json::from_str(config) else {
            log.write(Level::Warn, "syncctl", "ignoring a renewed configuration that is not a JSON object");
            return Ok(());
        };
        let saved = self.db.save_config(self.package, &self.fingerprint, config)?;
        let (level, text) = if saved {
            (
                Level::Info,
                "stored the configuration that the connector renewed, for the next task with this configuration",
            )
        } else {
            (
                Level::Warn,
                "cannot store the configuration that the connector renewed: there is no schema for it (SYNCCTL_OWN_SCHEMA)",
            )
        };
        log.write(level, "syncctl", text);
        Ok(())
    }
}

/// A hash that ignores whitespace and the order of keys.
fn fingerprint(document: &str) -> String {
    let canonical = match serde_json::from_str::<Value>(document) {
        Ok(mut value) => {
            value.sort_all_objects();
            value.to_string()
        }
        Err(_) => document.to_owned(),
    };
    hex::encode(Sha256::digest(canonical))
}

#[cfg(test)]
mod tests {
    use super::fingerprint;

    #[test]
    fn fingerprints_ignore_whitespace_and_key_order() {
        let one = fingerprint(r#"{"a": {"x": 1, "y": [{"p": 1, "q": 2}]}, "b": "t"}"#);
        assert_eq!(one, fingerprint(r#"{"b":"t","a":{"y":[{"q":2,"p":1}],"x":1}}"#));
        assert_ne!(one, fingerprint(r#"{"b":"t","a":{"y":[{"q":2,"p":1}],"x":2}}"#));
    }
}
