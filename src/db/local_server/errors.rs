//! Failures of the embedded database and its files.

use std::io;
use std::path::Path;

use crate::failure::{Class, Failure};

/// A failure of the embedded database.
pub(super) fn unavailable(text: String, hint: impl Into<String>) -> Failure {
    Failure::new(Class::DatabaseUnreachable, text).with_hint(hint)
}

/// A failure of the file system; `action` is a verb.
pub(super) fn storage_failure(action: &str, path: &Path, error: &io::Error) -> Failure {
    let text = format!("cannot {action} {} for the embedded database: {}", path.display(), reason(error));
    unavailable(text, "check the permissions and the free space there, or choose another directory: SYNCCTL_STATE_DIR")
}

/// The text of an error without the number of the system.
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
