//! Tasks that start later: `waiting/NAME.json` in the state directory holds the Pod and the documents until then. No process
//! needs to run for them, so they survive the one that accepted them.

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use serde::{Deserialize, Serialize};

use super::store::{io_failure, private_directory, private_file};
use crate::failure::Failure;

/// The directory of all of them.
pub struct WaitingStore {
    root: PathBuf,
}

/// One of them; holds credentials.
#[derive(Serialize, Deserialize)]
pub struct Prepared {
    /// When it is to start.
    pub start_at: Timestamp,
    /// Its Pod.
    pub pod: Pod,
    /// Its documents.
    pub secrets: Vec<Secret>,
}

impl WaitingStore {
    /// In the directory of this user's state.
    pub fn new(state: &Path) -> Self {
        Self { root: state.join("waiting") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.json"))
    }

    /// Stores a task that is to start later.
    pub fn write(&self, name: &str, prepared: &Prepared) -> Result<(), Failure> {
        let (path, new) = (self.path(name), self.path(name).with_extension("new"));
        let write = || {
            private_directory(&self.root)?;
            private_file(&new)?.write_all(&serde_json::to_vec(prepared)?)?;
            std::fs::rename(&new, &path)
        };
        write().map_err(|error| io_failure("write", &path, &error))
    }

    /// One of them; `None` if there is none of this name.
    pub fn read(&self, name: &str) -> Result<Option<Prepared>, Failure> {
        let path = self.path(name);
        match std::fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?)) {
            Ok(prepared) => Ok(Some(prepared)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_failure("read", &path, &error)),
        }
    }

    /// The names of all of them.
    pub fn names(&self) -> Result<Vec<String>, Failure> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
        };
        let entries = entries.map_err(|error| io_failure("read", &self.root, &error))?;
        let names = entries.iter().filter_map(|entry| {
            let name = entry.file_name();
            name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned)
        });
        Ok(names.collect())
    }

    /// Removes one of them, if it is there.
    pub fn remove(&self, name: &str) -> Result<(), Failure> {
        let path = self.path(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io_failure("remove", &path, &error)),
            _ => Ok(()),
        }
    }
}
