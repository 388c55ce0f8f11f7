//! What the keeper tells of the server, in the file of its lock.
//!
//! The file always has the same length, taken before there is a keeper: it must be able to tell that the disk is full.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Long enough for two paths and an error.
const LENGTH: usize = 8192;

/// The state of the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(super) enum Word {
    /// It is on its way up, or there is no keeper yet.
    Starting,
    /// It takes connections.
    Ready {
        /// The folder of its programs.
        binaries: PathBuf,
    },
    /// It is on its way down.
    Stopping,
    /// It could not be started; the keeper ends.
    Failed {
        /// The failure as it is stored elsewhere, too.
        failure: String,
        /// What to change.
        hint: Option<String>,
    },
}

impl Word {
    pub(super) fn failed(failure: &Failure) -> Self {
        Self::Failed { failure: failure.to_string(), hint: failure.hint().map(str::to_owned) }
    }

    /// The failure, if it is one.
    pub(super) fn failure(&self) -> Option<Failure> {
        let Self::Failed { failure, hint } = self else { return None };
        let failure = Failure::from_stored(failure);
        Some(match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        })
    }

    /// Takes the place of what the file says.
    pub(super) fn write(&self, file: &File) -> io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        if text.len() >= LENGTH {
            text = serde_json::to_vec(&Self::Failed {
                failure: "INTERNAL: a failure too long to tell".to_owned(),
                hint: None,
            })?;
        }
        text.resize(LENGTH - 1, b' ');
        text.push(b'\n');
        file.write_all_at(&text, 0)
    }

    /// What the file says; `None` where that is (for a moment) nothing that we understand.
    pub(super) fn read(file: &File) -> Option<Self> {
        let mut text = vec![0; LENGTH];
        file.read_exact_at(&mut text, 0).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::Word;
    use crate::failure::{Class, Failure};

    #[test]
    fn each_word_is_read_as_it_was_written_and_takes_the_place_of_the_last() {
        let file = tempfile::tempfile().expect("a file");
        assert_eq!(Word::read(&file), None);
        let failure = Failure::new(Class::DatabaseUnreachable, "no: space").with_hint("free some");
        for word in [Word::failed(&failure), Word::Ready { binaries: "/b".into() }, Word::Starting, Word::Stopping] {
            word.write(&file).expect("written");
            assert_eq!(Word::read(&file), Some(word));
        }
        assert_eq!(Word::failed(&failure).failure(), Some(failure));
        Word::failed(&Failure::new(Class::Internal, "x".repeat(100_000))).write(&file).expect("written");
        assert!(Word::read(&file).and_then(|word| word.failure()).is_some());
    }
}
