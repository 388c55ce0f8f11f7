//! The connector's stdout and stderr: FIFOs that are opened without blocking, and lines of bounded length.
//!
//! `open` on a FIFO waits for the other end, for ever if that has died. `O_RDONLY | O_NONBLOCK` does not wait, and
//! `poll` tells the end of the writers (`POLLHUP`) only after there was one, so that a connector that has not started
//! yet is not mistaken for one that has ended.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags};

/// What a FIFO holds at most, where the kernel allows it: fewer switches between source and sidecar.
const PIPE_BYTES: usize = 1024 * 1024;
/// How much is read at a time.
const CHUNK: usize = 256 * 1024;

/// Makes a FIFO that any user may write: recent connectors run as uid 1000, older ones as root.
pub fn make(path: &Path) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o666);
    match rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    // The umask has taken bits away.
    rustix::fs::chmod(path, mode).map_err(Into::into)
}

/// One step of reading.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line without its newline. The last one may have had none.
    Text(&'a [u8]),
    /// A line that was longer than the limit: how it began, and its length in bytes. It is gone.
    TooLong(&'a [u8], u64),
    /// Nothing came within the time asked for.
    Quiet,
    /// All writers are gone.
    End,
}

/// Reads lines from a FIFO.
pub struct Lines {
    pipe: OwnedFd,
    limit: usize,
    buffer: Vec<u8>,
    /// Where unread bytes begin.
    start: usize,
    /// Where the search for a newline goes on.
    searched: usize,
    /// Bytes of a line that is being skipped.
    skipped: Option<u64>,
    /// Where the line that was handed out ends: its bytes go at the next call.
    consumed: usize,
    ended: bool,
    /// The last step asked the pipe.
    asked: bool,
}

/// How much of a line that is too long is kept.
const TOO_LONG_HEAD: usize = 256;
/// A line of which so much is here may become as long as any.
const LONG: usize = 16 * CHUNK;
/// A buffer that grew for one long line is given back.
const KEPT_CAPACITY: usize = 4 * CHUNK;

impl Lines {
    /// Opens a FIFO. Does not wait for a writer.
    pub fn open(path: &Path, limit: usize) -> io::Result<Self> {
        let pipe = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        // Only faster with it: a kernel that refuses is none the worse.
        rustix::pipe::fcntl_setpipe_size(&pipe, PIPE_BYTES).ok();
        Ok(Self::of(pipe, limit))
    }

    fn of(pipe: OwnedFd, limit: usize) -> Self {
        let buffer = Vec::with_capacity(2 * CHUNK);
        Self { pipe, limit, buffer, start: 0, searched: 0, skipped: None, consumed: 0, ended: false, asked: false }
    }

    /// The next line, or what there is instead; waits at most for `patience`.
    pub fn next(&mut self, patience: Duration) -> io::Result<Line<'_>> {
        self.start = self.consumed;
        self.asked = false;
        loop {
            if let Some(newline) = memchr::memchr(b'\n', &self.buffer[self.searched..]) {
                let end = self.searched + newline;
                let start = self.start;
                self.consumed = end + 1;
                self.searched = end + 1;
                if let Some(skipped) = self.skipped.take() {
                    let length = skipped + (end - start) as u64;
                    // What is left of the line is its end; its head was moved to the front.
                    return Ok(Line::TooLong(&self.buffer[start..end.min(start + TOO_LONG_HEAD)], length));
                }
                return Ok(Line::Text(&self.buffer[start..end]));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() - self.start > self.limit {
                self.skip();
            }
            if self.ended {
                return Ok(self.last());
            }
            if !self.fill(patience)? {
                self.consumed = self.start;
                return Ok(Line::Quiet);
            }
        }
    }

    /// Whether the last step had to ask the pipe, and so may have waited: then time has passed.
    pub fn has_asked(&self) -> bool {
        self.asked
    }

    /// Forgets the middle of a line that is too long, but not how it began.
    fn skip(&mut self) {
        let unread = self.buffer.len() - self.start;
        let kept = unread.min(TOO_LONG_HEAD);
        *self.skipped.get_or_insert(0) += (unread - kept) as u64;
        self.buffer.copy_within(self.start..self.start + kept, 0);
        self.buffer.truncate(kept);
        self.buffer.shrink_to(KEPT_CAPACITY);
        (self.start, self.searched) = (0, kept);
    }

    fn last(&mut self) -> Line<'_> {
        let (start, end) = (self.start, self.buffer.len());
        self.consumed = end;
        match self.skipped.take() {
            Some(skipped) => {
                Line::TooLong(&self.buffer[start..end.min(start + TOO_LONG_HEAD)], skipped + (end - start) as u64)
            }
            None if start == end => Line::End,
            None => Line::Text(&self.buffer[start..end]),
        }
    }

    /// Reads more; false when nothing came in time.
    fn fill(&mut self, patience: Duration) -> io::Result<bool> {
        self.asked = true;
        if self.start > 0 {
            self.buffer.drain(..self.start);
            (self.searched, self.start) = (self.searched - self.start, 0);
            if self.buffer.len() < CHUNK {
                self.buffer.shrink_to(KEPT_CAPACITY);
            }
        }
        if self.buffer.len() >= LONG {
            // To grow is to copy, and both copies are memory; room that nothing was written to is none. Where it is not to
            // be had, the buffer grows as it has to.
            self.buffer.try_reserve_exact(self.limit.saturating_sub(self.buffer.len()) + CHUNK).ok();
        }
        self.buffer.reserve(CHUNK);
        let timeout = Timespec::try_from(patience).ok();
        let mut polled = [PollFd::new(&self.pipe, PollFlags::IN)];
        match poll(&mut polled, timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        match rustix::io::read(&self.pipe, rustix::buffer::spare_capacity(&mut self.buffer)) {
            Ok(0) => {
                self.ended = true;
                Ok(true)
            }
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Writes a file that any user may read and nobody may change.
pub fn write_readable(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let mut file = File::create(path)?;
    file.write_all(content)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o444)).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::{Line, Lines};
    use std::io::Write;
    use std::time::{Duration, Instant};

    const SOON: Duration = Duration::from_secs(5);

    /// All lines of some writes, as (text, length).
    fn read_all(limit: usize, chunks: &'static [&'static [u8]]) -> Vec<(String, u64)> {
        let (reader, end) = std::io::pipe().expect("a pipe");
        let thread = std::thread::spawn(move || {
            let mut end = end;
            for bytes in chunks {
                end.write_all(bytes).expect("a reader");
            }
        });
        let mut lines = Lines::of(reader.into(), limit);
        let mut all = Vec::new();
        loop {
            match lines.next(SOON).expect("reading") {
                Line::Text(text) => all.push((String::from_utf8_lossy(text).into_owned(), text.len() as u64)),
                Line::TooLong(head, length) => all.push((format!("<{}", String::from_utf8_lossy(head)), length)),
                Line::Quiet => {}
                Line::End => break,
            }
        }
        thread.join().expect("a writer");
        all
    }

    #[test]
    fn lines_come_as_they_were_written() {
        type Case = (&'static str, &'static [&'static [u8]], &'static [&'static str]);
        const CASES: [Case; 5] = [
            ("two", &[b"ab\ncd\n"], &["ab", "cd"]),
            ("cut anywhere", &[b"a", b"b\nc", b"d\n"], &["ab", "cd"]),
            ("no newline at the end", &[b"ab\ncd"], &["ab", "cd"]),
            ("empty lines", &[b"\n\na\n"], &["", "", "a"]),
            ("nothing", &[], &[]),
        ];
        for (label, writes, expected) in CASES {
            let got: Vec<String> = read_all(100, writes).into_iter().map(|(text, _)| text).collect();
            assert_eq!(got, expected, "{label}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_dropped_and_the_next_one_is_whole() {
        const LONG: &[u8] = &[b'x'; 3_000_000];
        let got = read_all(1000, &[b"a\n", LONG, b"\nb\n", LONG]);
        let lengths: Vec<u64> = got.iter().map(|(_, length)| *length).collect();
        assert_eq!(lengths, [1, 3_000_000, 1, 3_000_000]);
        assert!(got[1].0.starts_with("<xxx") && got[2].0 == "b", "{:?}", got[2]);
    }

    #[test]
    fn a_fifo_without_a_writer_is_quiet_and_ends_after_its_writer() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("stdout");
        super::make(&path).expect("a FIFO");
        let mut lines = Lines::open(&path, 100).expect("opening does not wait");
        let begin = Instant::now();
        assert_eq!(lines.next(Duration::from_millis(50)).expect("reading"), Line::Quiet);
        assert!(begin.elapsed() >= Duration::from_millis(45), "it did wait for data");
        drop(std::fs::OpenOptions::new().write(true).open(&path).expect("a writer"));
        assert_eq!(lines.next(SOON).expect("reading"), Line::End);
    }
}
