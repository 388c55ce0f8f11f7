//! What the server says: kept in a file that does not grow without end, and searched for why it did not start.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The log is put aside when it has this many bytes; one old one is kept.
const LARGEST: u64 = 4 * 1024 * 1024;

/// A line of the server's is cut here.
const LONGEST_LINE: u64 = 16 * 1024;

/// So many last lines are searched.
const REMEMBERED: usize = 50;

/// The last words of a process.
#[derive(Clone, Default)]
pub(super) struct Heard {
    shared: Arc<(Mutex<Lines>, Condvar)>,
}

#[derive(Default)]
struct Lines {
    last: VecDeque<String>,
    ended: bool,
}

impl Heard {
    /// Reads until the other side closes, and writes all of it to the log as far as that is possible.
    ///
    /// Through a pipe and not into the file itself: on a full disk the reason would be lost with the rest.
    pub(super) fn listen(pipe: impl Read + Send + 'static, log: PathBuf) -> Self {
        let heard = Self::default();
        let told = heard.clone();
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut file = None;
            let mut bytes = Vec::new();
            loop {
                bytes.clear();
                if !matches!((&mut pipe).take(LONGEST_LINE).read_until(b'\n', &mut bytes), Ok(1..)) {
                    break;
                }
                append(&mut file, &log, &bytes);
                told.remember(String::from_utf8_lossy(&bytes).trim_end().to_owned());
            }
            let (lines, changed) = &*told.shared;
            lines.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            changed.notify_all();
        });
        heard
    }

    fn remember(&self, line: String) {
        let mut lines = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.last.len() == REMEMBERED {
            lines.last.pop_front();
        }
        lines.last.push_back(line);
    }

    /// The line that says why a process has ended. What it left behind may hold its pipe open, so that the end of it is
    /// not waited for longer than this.
    pub(super) fn reason(&self, patience: Duration) -> Option<String> {
        let (lines, changed) = &*self.shared;
        let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        let (lines, _) =
            changed.wait_timeout_while(lines, patience, |lines| !lines.ended).unwrap_or_else(PoisonError::into_inner);
        explaining(lines.last.iter().map(String::as_str)).map(str::to_owned)
    }
}

/// Without a disk to write to, the server still has to be read.
fn append(file: &mut Option<File>, path: &Path, bytes: &[u8]) {
    if file.as_ref().is_some_and(|file| file.metadata().is_ok_and(|file| file.len() > LARGEST)) {
        *file = None;
    }
    if file.is_none() {
        if fs::metadata(path).is_ok_and(|file| file.len() > LARGEST) {
            fs::rename(path, path.with_extension("old")).ok();
        }
        *file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).ok();
    }
    if let Some(file) = file {
        file.write_all(bytes).ok();
    }
}

/// The levels of lines after which the server ends, and what other programs call it.
const MARKS: [&str; 4] = ["FATAL:  ", "PANIC:  ", "initdb: error: ", "initdb: fatal: "];

/// What the server tells clients that come too early or too late, in the same words.
const OF_CLIENTS: [&str; 2] = ["the database system is ", "terminating "];

/// Lines of a server that is well.
const OF_NO_USE: &str = " LOG:  ";

/// The last line that says why, without the time and the level before it; else just the last line that may.
fn explaining<'a>(lines: impl DoubleEndedIterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let reason = |line: &'a str| {
        let (_, reason) = MARKS.into_iter().find_map(|mark| line.split_once(mark))?;
        (!OF_CLIENTS.iter().any(|other| reason.starts_with(other))).then_some(reason)
    };
    let found = lines.clone().rev().find_map(reason);
    found.or_else(|| lines.rev().find(|line| !line.trim().is_empty() && !line.contains(OF_NO_USE))).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::{Heard, LARGEST, explaining};
    use std::time::Duration;

    #[test]
    fn the_line_that_explains_is_found_among_others() {
        for (label, lines, expected) in [
            (
                "the server's last words",
                &[
                    "2026-11-25 18:16:20.597 UTC [1] PANIC:  could not write to file \"pg_wal/x\": No space left on device",
                    "2026-11-25 18:16:20.666 UTC [1] FATAL:  the database system is starting up",
                    "2026-11-25 18:16:20.680 UTC [1] LOG:  aborting startup due to startup process failure",
                ][..],
                Some("could not write to file \"pg_wal/x\": No space left on device"),
            ),
            (
                "initdb",
                &["initdb: error: could not create directory", "initdb: removing contents of data directory"],
                Some("could not create directory"),
            ),
            (
                "anything else",
                &["error while loading shared libraries: libpq.so.5", ""],
                Some("error while loading shared libraries: libpq.so.5"),
            ),
            ("nothing", &[], None),
            ("nothing of use", &["2026-11-25 18:16:20.597 UTC [1] LOG:  database system is shut down"], None),
        ] {
            assert_eq!(explaining(lines.iter().copied()), expected, "{label}");
        }
    }

    #[test]
    fn the_log_takes_all_and_does_not_grow_without_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let much = vec![b'x'; usize::try_from(LARGEST).expect("a small constant") + 1];
        std::fs::write(&log, &much).expect("a file");
        let heard = Heard::listen(&b"LOG:  a\nFATAL:  b\n"[..], log.clone());
        assert_eq!(heard.reason(Duration::from_secs(10)).as_deref(), Some("b"));
        assert_eq!(std::fs::read_to_string(&log).expect("a file"), "LOG:  a\nFATAL:  b\n");
        assert_eq!(std::fs::metadata(folder.path().join("log.old")).expect("a file").len(), LARGEST + 1);
    }
}
