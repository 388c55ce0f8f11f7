//! Lines of bounded length from a FIFO.
//!
//! `open` on a FIFO blocks until the other end is open, forever if the other process has died. `O_RDONLY | O_NONBLOCK`
//! ([`crate::shared_folder`]) does not block, and `poll` reports the end of the writers (`POLLHUP`) only after there was one, so that a connector
//! that has not started yet is not mistaken for one that has ended.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Requested capacity of the FIFO: fewer switches between connector and sidecar.
const PIPE_BYTES: usize = 1024 * 1024;
/// How much is read at a time.
const BUFFER: usize = 512 * 1024;
/// Memory that is retained for the next line that spans several reads.
const RETAINED: usize = 1024 * 1024;
/// A line that has reached this length may become as long as any.
const LONG_LINE: usize = 4 * 1024 * 1024;
/// How much of a line that is too long is kept: more than is shown of it, because it is masked before it is cut.
const HEAD: usize = 16 * 1024;

/// The result of reading.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line without its newline. The last one may have none.
    Text(&'a [u8]),
    /// A line that exceeded the limit and was dropped: its beginning and its length in bytes.
    TooLong(&'a [u8], u64),
    /// No line within the timeout.
    Idle,
    /// All writers have closed the FIFO.
    Eof,
}

/// Reads lines from a FIFO.
pub struct Lines {
    pipe: BufReader<File>,
    limit: usize,
    /// How much of the buffer the last line took; the next call consumes it.
    returned: usize,
    /// A line that spans several reads, as far as it was read.
    partial: Vec<u8>,
    /// How many bytes of that line were dropped; `None` as long as it is within the limit.
    dropped: Option<u64>,
    /// That line was returned.
    is_complete: bool,
    /// The last call polled the FIFO, and so may have waited.
    pub has_polled: bool,
}

impl Lines {
    /// Of an open FIFO. Longer lines than `limit` bytes are dropped.
    pub fn new(pipe: File, limit: usize) -> Self {
        // Optional: the kernel may refuse.
        rustix::pipe::fcntl_setpipe_size(&pipe, PIPE_BYTES).ok();
        Self {
            pipe: BufReader::with_capacity(BUFFER, pipe),
            limit,
            returned: 0,
            partial: Vec::new(),
            dropped: None,
            is_complete: false,
            has_polled: false,
        }
    }

    /// The next line. Waits at most for `timeout`.
    pub fn next(&mut self, timeout: Duration) -> io::Result<Line<'_>> {
        self.pipe.consume(std::mem::take(&mut self.returned));
        if std::mem::take(&mut self.is_complete) {
            self.partial.clear();
            self.partial.shrink_to(RETAINED);
            self.dropped = None;
        }
        self.has_polled = false;
        loop {
            if self.pipe.buffer().is_empty() && !self.fill(timeout)? {
                return Ok(Line::Idle);
            }
            let buffer = self.pipe.buffer();
            let newline = memchr::memchr(b'\n', buffer);
            let is_partial = !self.partial.is_empty() || self.dropped.is_some();
            match newline {
                None if buffer.is_empty() && !is_partial => return Ok(Line::Eof),
                None if buffer.is_empty() => return Ok(self.complete()),
                None => self.append(buffer.len()),
                Some(length) if is_partial || length > self.limit => {
                    self.append(length);
                    self.returned = 1;
                    return Ok(self.complete());
                }
                Some(length) => {
                    self.returned = length + 1;
                    return Ok(Line::Text(&self.pipe.buffer()[..length]));
                }
            }
        }
    }

    fn complete(&mut self) -> Line<'_> {
        self.is_complete = true;
        match self.dropped {
            None => Line::Text(&self.partial),
            Some(dropped) => Line::TooLong(&self.partial, dropped + self.partial.len() as u64),
        }
    }

    /// Moves bytes from the buffer to the partial line, of which only the head is kept once it is too long.
    fn append(&mut self, length: usize) {
        let bytes = &self.pipe.buffer()[..length];
        if self.dropped.is_some() || self.partial.len() + length > self.limit {
            let total = self.partial.len() + length;
            self.partial.truncate(HEAD);
            self.partial.extend_from_slice(&bytes[..length.min(HEAD - self.partial.len())]);
            self.partial.shrink_to(RETAINED);
            *self.dropped.get_or_insert(0) += (total - self.partial.len()) as u64;
        } else {
            if self.partial.len() >= LONG_LINE {
                // Growing step by step would copy the line and hold both copies. Unused capacity takes no memory.
                self.partial.try_reserve_exact(self.limit - self.partial.len()).ok();
            }
            self.partial.extend_from_slice(bytes);
        }
        self.pipe.consume(length);
    }

    /// Fills the empty buffer; it stays empty at the end of the writers. Returns false if nothing arrived in time.
    fn fill(&mut self, timeout: Duration) -> io::Result<bool> {
        self.has_polled = true;
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut [PollFd::new(self.pipe.get_ref(), PollFlags::IN)], timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        match self.pipe.fill_buf() {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use super::{Line, Lines};
    use crate::shared_folder::SharedFolder;

    /// Only reached when a test hangs.
    const DEADLINE: Duration = Duration::from_mins(2);

    /// All lines of some writes: text and length; the text of a dropped line begins with `<`.
    fn read_all(limit: usize, writes: &'static [&'static [u8]]) -> Vec<(String, u64)> {
        let (reader, mut write_end) = std::io::pipe().expect("a pipe");
        let thread = std::thread::spawn(move || {
            for bytes in writes {
                write_end.write_all(bytes).expect("a reader");
            }
        });
        let mut lines = Lines::new(File::from(OwnedFd::from(reader)), limit);
        let mut all = Vec::new();
        loop {
            match lines.next(DEADLINE).expect("reading") {
                Line::Text(text) => all.push((String::from_utf8_lossy(text).into_owned(), text.len() as u64)),
                Line::TooLong(head, length) => all.push((format!("<{}", String::from_utf8_lossy(head)), length)),
                Line::Idle => panic!("no end of the writer"),
                Line::Eof => break,
            }
        }
        thread.join().expect("a writer");
        all
    }

    #[test]
    fn lines_are_independent_of_write_boundaries() {
        type Case = (&'static str, &'static [&'static [u8]], &'static [&'static str]);
        const CASES: [Case; 5] = [
            ("one write", &[b"ab\ncd\n"], &["ab", "cd"]),
            ("several writes", &[b"a", b"b\nc", b"d\n"], &["ab", "cd"]),
            ("no newline at the end", &[b"ab\ncd"], &["ab", "cd"]),
            ("empty lines", &[b"\n\na\n"], &["", "", "a"]),
            ("no lines", &[], &[]),
        ];
        for (label, writes, expected) in CASES {
            let lines: Vec<String> = read_all(100, writes).into_iter().map(|(text, _)| text).collect();
            assert_eq!(lines, expected, "{label}");
        }
    }

    #[test]
    fn too_long_lines_are_dropped_and_the_next_line_is_complete() {
        const LONG: &[u8] = &[b'x'; 3_000_000];
        let lines = read_all(1000, &[b"a\n", LONG, b"\nb\n", LONG]);
        let lengths: Vec<u64> = lines.iter().map(|(_, length)| *length).collect();
        assert_eq!(lengths, [1, 3_000_000, 1, 3_000_000]);
        assert!(lines[1].0.starts_with("<xxx") && lines[2].0 == "b", "{:?}", lines[2]);
        let exact: &[(&str, u64)] = &[("abc", 3), ("<abcd", 4), ("abc", 3)];
        let lines = read_all(3, &[b"abc\nabcd\n", b"abc"]);
        assert_eq!(lines.iter().map(|(text, length)| (text.as_str(), *length)).collect::<Vec<_>>(), exact);
    }

    #[test]
    fn long_lines_within_the_limit_are_complete() {
        const LONG: &[u8] = &[b'x'; 9_000_000];
        let lines = read_all(10_000_000, &[LONG, b"\nb\n", LONG, b"y"]);
        let lengths: Vec<u64> = lines.iter().map(|(_, length)| *length).collect();
        assert_eq!(lengths, [9_000_000, 1, 9_000_001]);
        assert!(lines[2].0.ends_with("xy"));
    }

    #[test]
    fn a_fifo_without_a_writer_is_idle_and_ends_after_its_writer() {
        let folder = tempfile::tempdir().expect("a folder");
        let shared = SharedFolder::open(folder.path()).expect("a folder");
        shared.create_fifo("stdout").expect("a FIFO");
        let mut lines = Lines::new(shared.open_fifo("stdout").expect("opening does not wait"), 100);
        assert_eq!(lines.next(Duration::from_millis(50)).expect("reading"), Line::Idle);
        assert!(lines.has_polled);
        drop(OpenOptions::new().write(true).open(folder.path().join("stdout")).expect("a writer"));
        assert_eq!(lines.next(DEADLINE).expect("reading"), Line::Eof);
    }
}
