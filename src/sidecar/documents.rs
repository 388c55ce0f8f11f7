//! The task's documents, which only the sidecar mounts.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde_json::Value;

use crate::airbyte::catalog::{self, ConfiguredCatalog};
use crate::airbyte::state;
use crate::db::Db;
use crate::failure::{Class, Failure};
use crate::secret::{self, Masker};
use crate::shared_folder::SharedFolder;
use crate::task::Task;

/// The connector's configuration.
pub const CONFIG: &str = "config.json";
/// The configured catalog of a read.
pub const CATALOG: &str = "catalog.json";
/// The input state of a read.
pub const STATE: &str = "state.json";
/// The destination's configuration; hidden from the connector.
pub const DESTINATION: &str = "destinationConfig.json";

/// Fields of the destination's configuration that identify it. Text may show them.
const DESTINATION_IDENTITY: [&str; 9] =
    ["destinationType", "host", "port", "database", "username", "defaultSchema", "sslMode", "url", "destinationId"];

/// The maximum size of a document that a foreign controller has unpacked, in bytes.
const MAX_UNPACKED: u64 = 256 << 20;

/// Between the name of a document and the number of one of its parts.
const PART: &str = ".gz.";

fn unreadable(error: &std::io::Error) -> Failure {
    Failure::new(Class::SidecarFailed, format!("cannot read the task's documents: {error}"))
}

/// File name → content. Deliberately without `Debug`.
#[derive(Default)]
pub struct Documents {
    files: BTreeMap<String, String>,
    /// Names of documents for the connector that are no longer what the caller sent.
    changed: BTreeSet<&'static str>,
}

impl Documents {
    /// Joins and unpacks `NAME.gz.000`, `NAME.gz.001`, … of the Secrets. Without them, the documents that a foreign
    /// controller's Pod has unpacked for the connector and the sidecar.
    pub fn read(secrets: &Path, unpacked: &Path) -> Result<Self, Failure> {
        let documents = Self::unpack(secrets).and_then(|documents| match documents {
            documents if documents.files.is_empty() => Self::read_unpacked(unpacked),
            documents => Ok(documents),
        });
        documents.map_err(|error| unreadable(&error))
    }

    /// The same of a process that has passed them on.
    pub fn of(secrets: &BTreeMap<String, Vec<u8>>) -> Result<Self, Failure> {
        Self::join(secrets).map_err(|error| unreadable(&error))
    }

    fn read_unpacked(folder: &Path) -> std::io::Result<Self> {
        let mut files = BTreeMap::new();
        let shared = match SharedFolder::open(folder) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Self::default());
            }
            shared => shared?,
        };
        for name in [CONFIG, CATALOG, STATE, DESTINATION] {
            // The connector of such a Pod may write to the folder.
            let text = shared
                .read(name, MAX_UNPACKED)
                .and_then(|text| text.map(String::from_utf8).transpose().map_err(std::io::Error::other));
            let text = text.map_err(|error| {
                std::io::Error::new(error.kind(), format!("{}: {error}", folder.join(name).display()))
            })?;
            files.extend(text.map(|text| (name.to_owned(), text)));
        }
        Ok(Self { files, changed: BTreeSet::new() })
    }

    fn unpack(folder: &Path) -> std::io::Result<Self> {
        let entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            entries => entries?,
        };
        let mut parts = BTreeMap::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // The kubelet's own links have other names.
            if name.contains(PART) {
                parts.insert(name, std::fs::read(entry.path())?);
            }
        }
        Self::join(&parts)
    }

    /// Joins and unpacks `NAME.gz.000`, `NAME.gz.001`, …; ignores what else a Secret holds.
    pub fn join(parts: &BTreeMap<String, Vec<u8>>) -> std::io::Result<Self> {
        let mut compressed: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        for (name, part) in parts {
            if let Some((document, _)) = name.rsplit_once(PART) {
                compressed.entry(document).or_default().extend(part);
            }
        }
        let mut files = BTreeMap::new();
        for (document, bytes) in compressed {
            let mut text = String::new();
            MultiGzDecoder::new(bytes.as_slice()).read_to_string(&mut text)?;
            files.insert(document.to_owned(), text);
        }
        Ok(Self { files, changed: BTreeSet::new() })
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
    pub fn for_connector(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        [CONFIG, CATALOG, STATE].into_iter().filter_map(|name| {
            let text = self.get(name)?;
            Some((name, if name == CATALOG { catalog::for_connector(text) } else { Cow::Borrowed(text) }))
        })
    }

    /// Those of them that are no longer what the caller sent.
    pub fn changed_for_connector(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        self.for_connector().filter(|(name, text)| self.changed.contains(name) || matches!(text, Cow::Owned(_)))
    }

    /// Replaces a document for the connector.
    pub fn change(&mut self, name: &'static str, content: String) {
        self.files.insert(name.to_owned(), content);
        self.changed.insert(name);
    }

    /// Removes from the state what must not reach the connector. A foreign controller passes it on as it is.
    pub fn filter_state(&mut self, is_full_sync: bool) {
        let (Some(state), Ok(catalog)) = (self.get(STATE), self.parse::<ConfiguredCatalog>(CATALOG)) else { return };
        // The connector validates what is no state.
        let Ok(usable) = state::for_connector(state, &catalog) else { return };
        let usable = usable.filter(|_| !is_full_sync);
        let is_empty = ["null", "{}", "[]"].contains(&state.trim());
        if usable.as_deref() != Some(state) && !is_empty {
            self.change(STATE, usable.unwrap_or_else(|| "{}".to_owned()));
        }
    }

    /// Adds the stored state of all streams to the states of single streams that Jitsu's console has read from the same table:
    /// it leaves the former out.
    pub fn add_global_state(&mut self, db: &Db, task: &Task) -> Result<(), Failure> {
        if task.options.full_sync || !task.options.console_overwrite {
            return Ok(());
        }
        let (Some(state), Ok(catalog)) = (self.get(STATE), self.parse::<ConfiguredCatalog>(CATALOG)) else {
            return Ok(());
        };
        if let Some(complete) = state::with_stored_global(state, &db.states(&task.sync_id)?)
            && let Ok(Some(complete)) = state::for_connector(&complete, &catalog)
        {
            self.change(STATE, complete);
        }
        Ok(())
    }

    /// A masker for the secrets of the documents. The JSON Schema of the configuration names its secrets. The catalog has
    /// none.
    pub fn masker(&self, schema: Option<Value>) -> Masker {
        let value = |name: &str| secret::parse_value(self.get(name)?);
        let mut readable = stream_names(value(CATALOG).as_ref());
        let destination = value(DESTINATION);
        let identity = DESTINATION_IDENTITY.iter().filter_map(|field| destination.as_ref()?.get(field)?.as_str());
        // An address may hold a password.
        readable.extend(identity.filter(|text| !text.contains('@')).map(str::to_owned));
        let masker = Masker::new(schema, readable);
        for name in [DESTINATION, STATE] {
            masker.add_document(name, self.get(name).unwrap_or_default());
        }
        masker.add_config(CONFIG, self.get(CONFIG).unwrap_or_default());
        masker
    }
}

/// The names and namespaces of the streams of a catalog.
fn stream_names(catalog: Option<&Value>) -> Vec<String> {
    let streams = catalog.and_then(|catalog| catalog.get("streams")).and_then(Value::as_array);
    let names = streams.into_iter().flatten().filter_map(|stream| stream.get("stream"));
    let texts = names.flat_map(|stream| ["name", "namespace"].map(|key| stream.get(key).and_then(Value::as_str)));
    texts.flatten().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::{CATALOG, CONFIG, DESTINATION, Documents, STATE};
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    #[test]
    fn text_names_destination_and_streams_but_no_credentials() {
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
        let masker = Documents { files, ..Documents::default() }.masker(None);
        let text = "shop.orders: db.internal/reader, warehouse, loader";
        assert_eq!(masker.mask(text), "shop.orders: db.internal/reader, ***, ***");
    }

    #[test]
    fn unpacked_documents_are_read_where_there_are_no_secrets() {
        let folder = tempfile::tempdir().expect("a folder");
        let (secrets, unpacked) = (folder.path().join("secrets"), folder.path().join("config"));
        let get = |name| Documents::read(&secrets, &unpacked).map(|documents| documents.get(name).map(str::to_owned));
        assert_eq!(get(CONFIG), Ok(None), "a spec has no documents");
        std::fs::create_dir(&unpacked).expect("a folder");
        for name in [CONFIG, CATALOG, STATE, DESTINATION] {
            std::fs::write(unpacked.join(name), name).expect("a file");
            assert_eq!(get(name), Ok(Some(name.to_owned())));
        }
        std::fs::create_dir(&secrets).expect("a folder");
        assert_eq!(get(CATALOG), Ok(Some(CATALOG.to_owned())), "an empty folder");
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(b"ours").expect("memory");
        std::fs::write(secrets.join("config.json.gz.000"), packed.finish().expect("memory")).expect("a file");
        assert_eq!((get(CONFIG), get(CATALOG)), (Ok(Some("ours".to_owned())), Ok(None)), "ours alone");
    }

    #[test]
    fn documents_that_a_connector_has_replaced_by_links_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink("/proc/self/environ", folder.path().join(STATE)).expect("a link");
        let failure = Documents::read(&folder.path().join("secrets"), folder.path()).err().expect("a link");
        assert!(failure.text.contains("state.json is a symbolic link, not a regular file"), "{failure}");
    }

    #[test]
    fn the_state_of_a_foreign_controller_is_filtered() {
        let catalog = r#"{"streams":[{"stream":{"name":"whole"},"sync_mode":"full_refresh"},
                                      {"stream":{"name":"grows"},"sync_mode":"incremental"}]}"#;
        let state = |name: &str| {
            format!(
                r#"{{"type":"STREAM","stream":{{"stream_descriptor":{{"name":"{name}"}},"stream_state":{{"a":1}}}}}}"#
            )
        };
        let (whole, grows) = (state("whole"), state("grows"));
        for (label, given, is_full_sync, expected) in [
            ("empty", "{}".to_owned(), false, None),
            ("empty, full sync", "{}".to_owned(), true, None),
            ("only resumed streams", format!("[{grows}]"), false, None),
            ("a stream that is read whole", format!("[{whole}, {grows}]"), false, Some(format!("[{grows}]"))),
            ("no resumed stream", format!("[{whole}]"), false, Some("{}".to_owned())),
            ("a full sync", format!("[{grows}]"), true, Some("{}".to_owned())),
            ("a legacy state", r#"{"cursor":1}"#.to_owned(), false, None),
            ("no state", "7".to_owned(), false, None),
        ] {
            let mut documents = Documents::default();
            documents.files.insert(CATALOG.to_owned(), catalog.to_owned());
            documents.files.insert(STATE.to_owned(), given);
            documents.filter_state(is_full_sync);
            let changed: Vec<_> = documents.changed_for_connector().map(|(_, content)| content.into_owned()).collect();
            assert_eq!(changed, Vec::from_iter(expected), "{label}");
        }
    }
}
