//! The documents of the task, as they are mounted into the sidecar alone.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde_json::Value;

use crate::failure::{Class, Failure};
use crate::secret::Masker;

/// File name → content. Deliberately without `Debug`.
#[derive(Default)]
pub struct Documents {
    files: BTreeMap<String, String>,
}

/// The connector's configuration.
pub const CONFIG: &str = "config.json";

/// What the connector may see: not the destination's credentials.
const CONNECTORS: [&str; 3] = [CONFIG, "catalog.json", "state.json"];

/// The destination's configuration; the connector never sees it.
const DESTINATION: &str = "destinationConfig.json";

/// Its fields that only say where and as whom.
const PLACES: [&str; 9] =
    ["destinationType", "host", "port", "database", "username", "defaultSchema", "sslMode", "url", "destinationId"];

impl Documents {
    /// Reads `NAME.gz.000`, `NAME.gz.001`, … and joins them. A folder that is not there holds nothing.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let fail = |error: &dyn std::fmt::Display| {
            Failure::new(Class::SidecarFailed, format!("reading the task's documents: {error}"))
        };
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(fail(&error)),
        };
        let mut pieces = BTreeMap::new();
        for entry in entries {
            let entry = entry.map_err(|error| fail(&error))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // The kubelet keeps its own links beside the files.
            if let Some((document, piece)) = name.rsplit_once(".gz.") {
                pieces.insert((document.to_owned(), piece.to_owned()), entry.path());
            }
        }
        let mut compressed: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for ((document, _), path) in pieces {
            let bytes = std::fs::read(&path).map_err(|error| fail(&error))?;
            compressed.entry(document).or_default().extend(bytes);
        }
        let mut files = BTreeMap::new();
        for (document, bytes) in compressed {
            let mut text = String::new();
            MultiGzDecoder::new(bytes.as_slice()).read_to_string(&mut text).map_err(|error| fail(&error))?;
            files.insert(document, text);
        }
        Ok(Self { files })
    }

    /// One document's text.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.files.get(name).map(String::as_str)
    }

    /// Puts another document into the place of one.
    pub fn put(&mut self, name: &str, content: String) {
        self.files.insert(name.to_owned(), content);
    }

    /// One document, parsed.
    pub fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        let text = self.get(name).ok_or_else(|| {
            Failure::new(Class::SidecarFailed, format!("{name} is missing from the task's documents"))
        })?;
        serde_json::from_str(text).map_err(|error| {
            Failure::new(Class::InvalidInput, format!("{name}: line {}: not what was expected", error.line()))
        })
    }

    /// What the connector may see.
    pub fn for_connector(&self) -> impl Iterator<Item = (&str, &str)> {
        CONNECTORS.into_iter().filter_map(|name| Some((name, self.get(name)?)))
    }

    /// What is masked of them. A catalog is not secret, and it holds every column's name.
    pub fn maskers(&self) -> Maskers {
        let value = |name: &str| serde_json::from_str::<Value>(self.get(name)?).ok();
        let mut destination = value(DESTINATION);
        // The state comes last: it may be longer than all that can be masked.
        let state = value("state.json");
        let config = value(CONFIG);
        let logs = Masker::of(config.iter().chain(&destination).chain(&state));
        if let Some(fields) = destination.as_mut().and_then(Value::as_object_mut) {
            fields.retain(|field, _| !PLACES.contains(&field.as_str()));
        }
        let errors = Masker::of(config.iter().chain(&destination).chain(&state));
        Maskers { logs, errors }
    }
}

/// What masks a task's texts. Clones share what they know.
#[derive(Clone)]
pub struct Maskers {
    /// For rows of the log: every string of the documents.
    pub logs: Masker,
    /// For the error of the task. It tells where the destination is: one that does not name it helps nobody.
    pub errors: Masker,
}

impl Maskers {
    /// Masks what is in this document, too.
    pub fn learn(&self, document: &Value) {
        self.logs.add([document]);
        self.errors.add([document]);
    }

    /// Masks what a JSON Schema marks as secret in a configuration.
    pub fn learn_marked(&self, config: &Value, schema: &Value) {
        self.logs.add_marked(config, schema);
        self.errors.add_marked(config, schema);
    }
}
