//! The log that the server writes: its size, and the line that explains why a program has failed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A log with more bytes is moved to `log.old`, of which there is one.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// What precedes the reason in a line of the server's and of initdb's.
const ERROR_MARKS: [&str; 4] = ["FATAL:  ", "PANIC:  ", "initdb: error: ", "initdb: fatal: "];

/// How messages to clients begin that connect too early or too late; they have the same level.
const CLIENT_MESSAGES: [&str; 2] = ["the database system is ", "terminating "];

/// Opens the log for a process that writes to it.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Moves the lines of a large log away, also while the server writes to it: lines written meanwhile may be lost.
pub(super) fn rotate(path: &Path) {
    if fs::metadata(path).is_ok_and(|log| log.len() > MAX_BYTES) {
        // Also if there is no space for the copy.
        fs::copy(path, path.with_extension("old")).ok();
        OpenOptions::new().write(true).truncate(true).open(path).ok();
    }
}

/// The last line that explains a failure, without the time and the level before it; else the last line that may.
pub(super) fn reason(output: &str) -> Option<&str> {
    let marked = output.lines().rev().find_map(|line| {
        let (_, reason) = ERROR_MARKS.into_iter().find_map(|mark| line.split_once(mark))?;
        (!CLIENT_MESSAGES.iter().any(|message| reason.starts_with(message))).then_some(reason)
    });
    let unmarked = || output.lines().rev().find(|line| !line.trim().is_empty() && !line.contains(" LOG:  "));
    marked.or_else(unmarked).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::{MAX_BYTES, open, reason, rotate};
    use std::io::Write;

    #[test]
    fn reason_is_the_line_that_explains_the_failure() {
        for (label, output, expected) in [
            (
                "the server's last error",
                "2026-11-25 18:16:20.597 UTC [1] PANIC:  could not write to file \"pg_wal/x\": No space left on device\n\
                 2026-11-25 18:16:20.666 UTC [1] FATAL:  the database system is starting up\n\
                 2026-11-25 18:16:20.680 UTC [1] LOG:  aborting startup due to startup process failure\n",
                Some("could not write to file \"pg_wal/x\": No space left on device"),
            ),
            (
                "initdb",
                "initdb: error: could not create directory\ninitdb: removing contents of data directory\n",
                Some("could not create directory"),
            ),
            (
                "another program",
                "error while loading shared libraries: libpq.so.5\n\n",
                Some("error while loading shared libraries: libpq.so.5"),
            ),
            ("nothing", "", None),
            ("no error", "2026-11-25 18:16:20.597 UTC [1] LOG:  database system is shut down\n", None),
        ] {
            assert_eq!(reason(output), expected, "{label}");
        }
    }

    #[test]
    fn rotate_moves_a_large_log_that_is_being_written() {
        let folder = tempfile::tempdir().expect("a directory");
        let (path, old) = (folder.path().join("log"), folder.path().join("log.old"));
        let mut log = open(&path).expect("a log");
        let mut write = |text: &[u8]| log.write_all(text).expect("the log is writable");
        write(&vec![b'x'; usize::try_from(MAX_BYTES).expect("a small constant")]);
        rotate(&path);
        assert!(!old.exists(), "the log is not too large yet");
        write(b"y");
        rotate(&path);
        write(b"z\n");
        assert_eq!(std::fs::read_to_string(&path).expect("the log"), "z\n");
        assert_eq!(std::fs::metadata(&old).expect("the old log").len(), MAX_BYTES + 1);
    }
}
