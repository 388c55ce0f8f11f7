//! Where installed connectors are kept: a folder each, with a note inside that makes it count.
//!
//! `connectors/NAME@VERSION-cp311` is a virtual environment, `connectors/NAME@VERSION.lock` is held by who installs it.
//! An environment knows its own path, so it is made where it stays; one without the note is nobody's, once the lock is
//! free. Knows nothing of pip.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::child::Surroundings;
use super::super::lock::Lock;
use super::interpreter::Interpreter;
use super::names::Package;

/// The note. It is written last and removed first.
const NOTE: &str = "syncctl.json";

/// How an installed connector is started, once its Python is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// A script in the environment's `bin`.
    Script(String),
    /// `run()` of this module.
    Run(String),
    /// This module as a program.
    Module(String),
}

/// What is in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// `airbyte-source-faker==7.2.1`
    pub requirement: String,
    /// The Python that it was installed with.
    pub python: String,
    /// How it is started.
    pub start: Start,
}

/// All installed connectors.
pub struct Shelf {
    folder: PathBuf,
}

impl Shelf {
    /// Those of a cache.
    pub fn of(cache: &Path) -> Self {
        Self { folder: cache.join("connectors") }
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The lock of a package.
    pub fn lock(&self, package: &Package) -> PathBuf {
        self.folder.join(format!("{}.lock", key(package)))
    }

    /// The place of a package.
    pub fn place(&self, package: &Package, python: &Interpreter) -> Place {
        Place { folder: self.folder.join(format!("{}-{}", key(package), python.tag())) }
    }

    /// An installed package whose Python still is the one that it was installed with.
    pub fn find(&self, package: &Package, surroundings: Surroundings<'_>) -> Option<(Place, Note)> {
        let start = format!("{}-", key(package));
        let mut places: Vec<Place> = self.places().filter(|place| place.name().starts_with(&start)).collect();
        places.sort_by_key(|place| std::cmp::Reverse(place.name()));
        places.into_iter().find_map(|place| {
            let note = place.note().filter(|note| note.requirement == package.requirement())?;
            place.is_sound(&note, surroundings).then_some((place, note))
        })
    }

    /// Removes what killed processes left behind: environments without a note, and locks that nobody holds.
    pub fn sweep(&self) {
        let Ok(entries) = self.folder.read_dir() else { return };
        let names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        for name in &names {
            let place = Place { folder: self.folder.join(name) };
            let (key, is_lock) = match name.strip_suffix(".lock") {
                Some(key) => (key, true),
                None if place.note().is_some() => continue,
                None => (name.rsplit_once('-').map_or(name.as_str(), |(key, _)| key), false),
            };
            // Not to be had: somebody installs it. Its file goes with the lock.
            let Ok(Some(_lock)) = Lock::try_take(&self.folder.join(format!("{key}.lock"))) else { continue };
            if !is_lock && place.note().is_none() {
                place.remove().ok();
            }
        }
    }

    fn places(&self) -> impl Iterator<Item = Place> + use<> {
        let entries = self.folder.read_dir().into_iter().flatten().flatten();
        entries.map(|entry| Place { folder: entry.path() })
    }
}

/// `NAME@VERSION`: neither can hold an at sign.
fn key(package: &Package) -> String {
    format!("{}@{}", package.name, package.version)
}

/// The place of one installed connector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The virtual environment.
    pub folder: PathBuf,
}

impl Place {
    fn name(&self) -> String {
        self.folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Its Python.
    pub fn python(&self) -> PathBuf {
        self.folder.join("bin/python")
    }

    /// A script of an installed package.
    pub fn script(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// For temporary files of the installation, so that they go when it does not succeed.
    pub fn scratch(&self) -> PathBuf {
        self.folder.join("scratch")
    }

    /// What is there, if it was installed to its end.
    pub fn note(&self) -> Option<Note> {
        serde_json::from_slice(&std::fs::read(self.folder.join(NOTE)).ok()?).ok()
    }

    /// Makes what is there count.
    pub fn sign(&self, note: &Note) -> std::io::Result<()> {
        let unsigned = self.folder.join(format!("{NOTE}.new"));
        let mut file = std::fs::File::create(&unsigned)?;
        file.write_all(&serde_json::to_vec(note)?)?;
        file.sync_all()?;
        std::fs::rename(unsigned, self.folder.join(NOTE))
    }

    /// Removes what is there.
    pub fn remove(&self) -> std::io::Result<()> {
        std::fs::remove_file(self.folder.join(NOTE)).or_else(absent_is_fine)?;
        std::fs::remove_dir_all(&self.folder).or_else(absent_is_fine)
    }

    /// How many packages are there: a cheap count, also while they arrive.
    pub fn packages(&self) -> usize {
        let libraries = self.folder.join("lib").read_dir().into_iter().flatten().flatten();
        let packages = libraries.filter_map(|library| library.path().join("site-packages").read_dir().ok());
        packages.flatten().flatten().filter(|entry| entry.file_name().to_string_lossy().ends_with(".dist-info")).count()
    }

    /// An upgrade of the system may have taken the Python away, or put another one in its place.
    fn is_sound(&self, note: &Note, surroundings: Surroundings<'_>) -> bool {
        let script_is_there = match &note.start {
            Start::Script(name) => self.script(name).is_file(),
            Start::Run(_) | Start::Module(_) => true,
        };
        let short = |version: &str| version.rsplit_once('.').map(|(short, _)| short.to_owned());
        script_is_there
            && Interpreter::ask(&self.python(), surroundings)
                .is_some_and(|python| short(&python.version) == short(&note.python))
    }
}

fn absent_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
