//! The task's documents, which only the sidecar mounts, and the configuration that a connector has renewed.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::log::{Level, Maskers, TaskLog};
use crate::db::Db;
use crate::failure::{Class, Failure};
use crate::secret::Masker;
use crate::task::Task;

/// The connector's configuration.
pub const CONFIG: &str = "config.json";
/// The configured catalog of a read.
pub const CATALOG: &str = "catalog.json";
/// The input state of a read.
pub const STATE: &str = "state.json";
/// The destination's configuration; hidden from the connector.
pub const DESTINATION: &str = "destinationConfig.json";

/// Fields of the destination's configuration that identify it. An error of the task may show them.
const DESTINATION_IDENTITY: [&str; 9] =
    ["destinationType", "host", "port", "database", "username", "defaultSchema", "sslMode", "url", "destinationId"];

/// File name → content. Deliberately without `Debug`.
#[derive(Default)]
pub struct Documents {
    files: BTreeMap<String, String>,
}

impl Documents {
    /// Joins and unpacks `NAME.gz.000`, `NAME.gz.001`, …. A missing folder holds no documents.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        Self::unpack(folder)
            .map_err(|error| Failure::new(Class::SidecarFailed, format!("cannot read the task's documents: {error}")))
    }

    fn unpack(folder: &Path) -> std::io::Result<Self> {
        let entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            entries => entries?,
        };
        // Sorted, so that the parts of a document are in order.
        let mut parts = BTreeMap::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // The kubelet's own links have other names.
            if let Some((document, part)) = name.rsplit_once(".gz.") {
                parts.insert((document.to_owned(), part.to_owned()), entry.path());
            }
        }
        let mut compressed: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for ((document, _), path) in parts {
            compressed.entry(document).or_default().extend(std::fs::read(path)?);
        }
        let mut files = BTreeMap::new();
        for (document, bytes) in compressed {
            let mut text = String::new();
            MultiGzDecoder::new(bytes.as_slice()).read_to_string(&mut text)?;
            files.insert(document, text);
        }
        Ok(Self { files })
    }

    /// The text of a document.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.files.get(name).map(String::as_str)
    }

    /// A required document, parsed.
    pub fn parse<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        let text = self.get(name).ok_or_else(|| {
            Failure::new(Class::SidecarFailed, format!("{name} is missing from the task's documents"))
        })?;
        serde_json::from_str(text).map_err(|error| {
            // Without serde's message, which may quote a secret.
            Failure::new(Class::InvalidInput, format!("{name}: line {}: unexpected content", error.line()))
        })
    }

    /// The documents that the connector may see: name and content.
    pub fn for_connector(&self) -> impl Iterator<Item = (&str, &str)> {
        [CONFIG, CATALOG, STATE].into_iter().filter_map(|name| Some((name, self.get(name)?)))
    }

    /// Maskers for the content of the documents, except the catalog: it is not secret, and it holds all column names.
    pub fn maskers(&self) -> Maskers {
        let value = |name: &str| serde_json::from_str::<Value>(self.get(name)?).ok();
        let (config, state) = (value(CONFIG), value(STATE));
        let mut destination = value(DESTINATION);
        // The state last: it may exceed the size that a masker takes.
        let logs = Masker::of(config.iter().chain(&destination).chain(&state));
        let mut readable = stream_names(value(CATALOG).as_ref());
        if let Some(fields) = destination.as_mut().and_then(Value::as_object_mut) {
            for field in DESTINATION_IDENTITY {
                readable.extend(fields.remove(field).and_then(|value| value.as_str().map(str::to_owned)));
            }
        }
        let mut credentials = Vec::new();
        if let Some(config) = &config {
            collect_credentials(config, false, &mut credentials);
        }
        let errors = Masker::of(credentials.into_iter().chain(&destination));
        errors.keep_readable(readable);
        errors.add(config.iter().chain(&state));
        Maskers { logs, errors }
    }
}

/// Parts of the names of fields that hold credentials.
const CREDENTIALS: [&str; 6] = ["pass", "secret", "token", "key", "credential", "auth"];

/// The values of a configuration whose fields, by their names, hold credentials.
fn collect_credentials<'a>(value: &'a Value, named: bool, into: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let name = name.to_lowercase();
                let named = named || CREDENTIALS.iter().any(|part| name.contains(part));
                collect_credentials(field, named, into);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_credentials(item, named, into)),
        Value::String(_) if named => into.push(value),
        _ => {}
    }
}

/// The names and namespaces of the streams of a catalog.
fn stream_names(catalog: Option<&Value>) -> Vec<String> {
    let streams = catalog.and_then(|catalog| catalog.get("streams")).and_then(Value::as_array);
    let names = streams.into_iter().flatten().filter_map(|stream| stream.get("stream"));
    let texts = names.flat_map(|stream| ["name", "namespace"].map(|key| stream.get(key).and_then(Value::as_str)));
    texts.flatten().map(str::to_owned).collect()
}

/// The connector's configuration as the connector renews it: a single-use refresh token makes the configuration that the
/// caller sends worthless after the first run.
///
/// A renewed configuration is used as long as the caller sends the one that it replaced. A caller that changes anything
/// takes precedence.
pub struct StoredConfig<'a> {
    db: &'a Db,
    task: &'a Task,
    /// Identifies the configuration that the caller sent.
    fingerprint: String,
}

impl<'a> StoredConfig<'a> {
    /// Replaces the caller's configuration with the renewed one, if there is one.
    pub fn restore(db: &'a Db, task: &'a Task, documents: &mut Documents, log: &TaskLog) -> Result<Self, Failure> {
        let fingerprint = fingerprint(documents.get(CONFIG).unwrap_or_default());
        if let Some(stored) = db.stored_config(&task.sync_id, &task.image.package, &fingerprint)? {
            if let Ok(config) = serde_json::from_str::<Value>(&stored.config) {
                log.mask_document(&config);
            }
            documents.files.insert(CONFIG.to_owned(), stored.config);
            let text = format!("using the configuration that the connector renewed at {}", stored.timestamp);
            log.write(Level::Info, "syncctl", &text);
        }
        Ok(Self { db, task, fingerprint })
    }

    /// Stores a configuration that the connector asks to persist.
    pub fn save(&self, config: &str, log: &TaskLog) -> Result<(), Failure> {
        let Ok(value @ Value::Object(_)) = serde_json::from_str(config) else {
            log.write(Level::Warn, "syncctl", "ignoring a renewed configuration that is not a JSON object");
            return Ok(());
        };
        log.mask_document(&value);
        let saved = self.db.save_config(&self.task.sync_id, &self.task.image.package, &self.fingerprint, config)?;
        let (level, text) = if saved {
            (Level::Info, "stored the configuration that the connector renewed, for the next run of this sync")
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
    use super::{CATALOG, CONFIG, DESTINATION, Documents, STATE, fingerprint};

    #[test]
    fn own_texts_name_destination_and_streams_but_no_credentials() {
        let documents = [
            (
                CONFIG,
                r#"{"host": "db.internal", "table": "orders", "auth": {"password": "warehouse"}, "user": "reader"}"#,
            ),
            (CATALOG, r#"{"streams": [{"stream": {"name": "orders", "namespace": "shop"}}]}"#),
            (STATE, r#"[{"stream": {"stream_descriptor": {"name": "orders", "namespace": "shop"}}}]"#),
            (
                DESTINATION,
                r#"{"host": "db.internal", "database": "warehouse", "username": "loader", "password": "loader"}"#,
            ),
        ];
        let files = documents.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        let maskers = Documents { files }.maskers();
        let text = "shop.orders: db.internal/reader, warehouse, loader";
        assert_eq!(maskers.errors.mask(text), "shop.orders: db.internal/***, ***, ***");
        assert_eq!(maskers.logs.mask(text), "***.***: ***/***, ***, ***");
    }

    #[test]
    fn fingerprints_ignore_whitespace_and_key_order() {
        let one = fingerprint(r#"{"a": {"x": 1, "y": [{"p": 1, "q": 2}]}, "b": "t"}"#);
        assert_eq!(one, fingerprint(r#"{"b":"t","a":{"y":[{"q":2,"p":1}],"x":1}}"#));
        assert_ne!(one, fingerprint(r#"{"b":"t","a":{"y":[{"q":2,"p":1}],"x":2}}"#));
    }
}
