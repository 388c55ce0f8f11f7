//! The connector as the sidecar sees it: two pipes and, at the end, an exit code.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::documents::Documents;
use super::log::{Level, TaskLog};
use super::metrics::Metrics;
use super::pipes::{self, Line, Lines};
use super::{Sidecar, Stop, Stopped};
use crate::contract::{EXIT_CODE_FILE, READY_FILE};
use crate::failure::{Class, Failure};
use crate::secret::Masker;

/// The longest line of stdout that is understood: a row with a document in it. Memory grows only when one comes.
const LONGEST_STDOUT: usize = 128 * 1024 * 1024;
/// The longest line of stderr that is kept.
const LONGEST_STDERR: usize = 10 * 1024 * 1024;
/// How long one wait for data lasts: then it is looked whether to stop.
const TICK: Duration = Duration::from_millis(250);
/// How long after the end of stdout the exit code may come: the wrapper writes it before it closes the pipes. So it is
/// there at once, or the wrapper was killed, and it never comes.
const EXIT_CODE_WAIT: Duration = Duration::from_secs(2);
/// Codes of a connector that was asked to end by INT or TERM.
const BY_SIGNAL: [i32; 2] = [130, 143];
/// How long our own signal may take after the connector's.
const OWN_SIGNAL_WAIT: Duration = Duration::from_secs(2);
/// How many of the last lines explain a failure.
const LAST_LINES: usize = 10;
/// And how much of each.
const LAST_LINE_BYTES: usize = 500;
/// How much of a line is kept, to be looked through for secrets before it is cut: more would be work for nothing.
const LONGEST_MASKED: usize = 64 * 1024;

/// The connector's pipes.
pub struct Source {
    stdout: Lines,
    stderr: Option<Lines>,
    pipes: PathBuf,
    life: Life,
    /// Lines have come since the last sign of life was noted.
    unsigned: bool,
    /// There was a sign of life since the last line.
    signed: bool,
    /// Set once it was waited for.
    exit_code: OnceCell<Option<i32>>,
    stderr_thread: Option<JoinHandle<()>>,
}

/// The last lines that are not messages. Those of stderr explain more.
#[derive(Default)]
struct LastLines {
    stderr: VecDeque<String>,
    stdout: VecDeque<String>,
}

/// Whether the connector lives, and its last words. Clones share both.
#[derive(Clone)]
struct Life {
    silence: Duration,
    init_timeout: Duration,
    /// The last thing that was a sign of life.
    last_sign: Arc<Mutex<Instant>>,
    last_lines: Arc<Mutex<LastLines>>,
    heard: Arc<AtomicBool>,
    masker: Masker,
}

/// What came from stdout.
pub enum Input<'a> {
    /// A line, maybe repaired to be UTF-8.
    Line(std::borrow::Cow<'a, str>),
    /// A line that was too long to be understood: its beginning and its length.
    Lost(String, u64),
    /// Nothing for the moment: time to look after other things.
    Quiet,
    /// The connector has closed its stdout.
    End,
    /// The task has to stop.
    Stopped(Stopped),
    /// The connector does not start, or has said nothing for too long.
    Silent(Failure),
}

impl Source {
    /// Makes the pipes and the connector's files, then says so.
    pub fn prepare(sidecar: &Sidecar, documents: &Documents, masker: &Masker) -> Result<Self, Failure> {
        let fail = |what: &str, path: &Path, error: &std::io::Error| {
            Failure::new(Class::SidecarFailed, format!("{what} {}: {error}", path.display()))
        };
        let mut opened = Vec::new();
        for (path, limit) in [(&sidecar.stderr, LONGEST_STDERR), (&sidecar.stdout, LONGEST_STDOUT)] {
            pipes::make(path).map_err(|error| fail("making the pipe", path, &error))?;
            opened.push(Lines::open(path, limit).map_err(|error| fail("opening the pipe", path, &error))?);
        }
        for (name, content) in documents.for_connector() {
            let path = sidecar.config.join(name);
            pipes::write_readable(&path, content.as_bytes()).map_err(|error| fail("writing", &path, &error))?;
        }
        let pipes = sidecar.stdout.parent().map(Path::to_owned).unwrap_or_default();
        let ready = pipes.join(READY_FILE);
        std::fs::write(&ready, "").map_err(|error| fail("writing", &ready, &error))?;
        let stdout = opened.pop().expect("two were opened");
        Ok(Self {
            stdout,
            stderr: opened.pop(),
            pipes,
            life: Life {
                silence: sidecar.silence,
                init_timeout: sidecar.init_timeout,
                last_sign: Arc::new(Mutex::new(Instant::now())),
                last_lines: Arc::default(),
                heard: Arc::default(),
                masker: masker.clone(),
            },
            unsigned: false,
            signed: true,
            exit_code: OnceCell::new(),
            stderr_thread: None,
        })
    }

    /// Logs stderr from now on, in a thread of its own.
    pub fn log_stderr(&mut self, log: &TaskLog) {
        let Some(mut lines) = self.stderr.take() else { return };
        let (log, life) = (log.clone(), self.life.clone());
        self.stderr_thread = Some(std::thread::spawn(move || {
            loop {
                let text = match lines.next(TICK) {
                    Ok(Line::Text(text)) => String::from_utf8_lossy(text).into_owned(),
                    Ok(Line::TooLong(head, length)) => {
                        format!("{}… ({length} bytes)", String::from_utf8_lossy(head))
                    }
                    Ok(Line::Quiet) => continue,
                    Ok(Line::End) | Err(_) => return,
                };
                life.sign();
                life.remember(&text, |lines| &mut lines.stderr);
                log.write(Level::Info, "stderr", &text);
            }
        }));
    }

    /// What the connector's container uses.
    pub fn metrics(&self) -> Metrics {
        Metrics::beside(&self.pipes)
    }

    /// A sign of life that is not the connector's own: a commit that took its time.
    pub fn alive(&mut self) {
        self.life.sign();
        self.signed = true;
    }

    /// Whether time may have passed since the last line: it was waited for, or there was a sign of life. In a run of lines
    /// that are here already nobody need ask the clock.
    pub fn time_passed(&self) -> bool {
        self.signed || self.stdout.has_asked()
    }

    /// A line that explains a failure if nothing better does.
    pub fn remember(&self, text: &str) {
        self.life.remember(text, |lines| &mut lines.stdout);
    }

    /// What comes next from stdout.
    pub fn next(&mut self, stop: &Stop) -> Result<Input<'_>, Failure> {
        let busy = !self.time_passed();
        self.signed = false;
        if let Some(stopped) = stop.reason(busy) {
            return Ok(Input::Stopped(stopped));
        }
        // Asked for before the pipe is: what it wrote before it ended is in there then, and is not mistaken for silence.
        let ended = !self.life.heard.load(Ordering::Relaxed) && self.pipes.join(EXIT_CODE_FILE).exists();
        let line = self
            .stdout
            .next(if ended { Duration::ZERO } else { TICK })
            .map_err(|error| Failure::new(Class::SidecarFailed, format!("reading the connector's stdout: {error}")))?;
        // Noted once at the end of a run of lines: the clock is not asked at each of them.
        if line != Line::Quiet {
            self.unsigned = true;
            self.life.heard.store(true, Ordering::Relaxed);
        } else if std::mem::take(&mut self.unsigned) {
            self.life.sign();
        }
        Ok(match line {
            Line::Text(text) => Input::Line(match std::str::from_utf8(text) {
                Ok(text) => text.into(),
                Err(_) => String::from_utf8_lossy(text).into_owned().into(),
            }),
            Line::TooLong(head, length) => Input::Lost(String::from_utf8_lossy(head).into_owned(), length),
            Line::End => Input::End,
            // It has ended before it had opened its pipes.
            Line::Quiet if ended => Input::End,
            Line::Quiet => self.life.silent().map_or(Input::Quiet, Input::Silent),
        })
    }

    /// After the end of stdout: how the connector ended. `None` when nobody says. Waited for once.
    pub fn exit_code(&mut self) -> Option<i32> {
        if let Some(code) = self.exit_code.get() {
            return *code;
        }
        let path = self.pipes.join(EXIT_CODE_FILE);
        let deadline = Instant::now() + EXIT_CODE_WAIT;
        let code = loop {
            if let Some(code) = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()) {
                break Some(code);
            }
            if Instant::now() >= deadline {
                break None;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        // Both pipes end together; its last lines are the ones that explain.
        if let Some(thread) = self.stderr_thread.take() {
            let deadline = Instant::now() + Duration::from_secs(2);
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        *self.exit_code.get_or_init(|| code)
    }

    /// Whether a connector that a signal has ended was ended together with this process: TERM reaches both containers
    /// at once, and the connector may be the faster one.
    pub fn was_ended_with_us(&mut self, stop: &Stop) -> bool {
        if !self.exit_code().is_some_and(|code| BY_SIGNAL.contains(&code)) {
            return false;
        }
        let deadline = Instant::now() + OWN_SIGNAL_WAIT;
        while Instant::now() < deadline && stop.reason(false).is_none() {
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.reason(false) == Some(Stopped::Cancelled)
    }

    /// The last lines that are not messages, for the text of a failure.
    pub fn last_words(&self) -> Option<String> {
        let lines = self.life.last_lines.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = if lines.stderr.is_empty() { &lines.stdout } else { &lines.stderr };
        let told = |line: &String| {
            // Masked before it is cut: half a secret is one, too.
            let line = self.life.masker.mask(line);
            let end = line.floor_char_boundary(LAST_LINE_BYTES);
            // It will be shown on terminals: nothing in it may colour or move them.
            line[..end].replace(|c: char| c.is_control() && c != '\t', "")
        };
        (!lines.is_empty()).then(|| lines.iter().map(told).collect::<Vec<_>>().join("\n"))
    }

    /// Why there is no result, told by the exit code and the last lines.
    pub fn failure(&self, code: Option<i32>, missing: &str) -> Failure {
        let words = self.last_words();
        let said = words.as_deref().map(|words| format!("; its last lines: {words}")).unwrap_or_default();
        match code {
            Some(127) if said.contains("AIRBYTE_ENTRYPOINT is not set") => {
                Failure::new(Class::NoEntrypoint, "the image does not set AIRBYTE_ENTRYPOINT")
            }
            Some(0) => Failure::new(Class::NoResult, format!("the connector ended without {missing}{said}")),
            Some(code) => Failure::new(Class::ConnectorFailed, format!("the connector ended with code {code}{said}")),
            None => Failure::new(Class::ConnectorFailed, format!("the connector ended, nobody knows how{said}")),
        }
    }
}

impl Life {
    fn sign(&self) {
        self.heard.store(true, Ordering::Relaxed);
        *self.last_sign.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn remember(&self, text: &str, which: impl FnOnce(&mut LastLines) -> &mut VecDeque<String>) {
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        let text = text[..text.floor_char_boundary(LONGEST_MASKED)].to_owned();
        let mut lines = self.last_lines.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = which(&mut lines);
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(text);
    }

    /// A connector that has not started has at least the time that a Pod may take to start.
    fn silent(&self) -> Option<Failure> {
        let heard = self.heard.load(Ordering::Relaxed);
        let limit = if heard { self.silence } else { self.silence.max(self.init_timeout) };
        let quiet_for = self.last_sign.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        let text = || format!("the connector wrote nothing for {} s", limit.as_secs());
        (quiet_for >= limit).then(|| Failure::new(Class::Silence, text()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::{Documents, EXIT_CODE_FILE, Input, Source, Stop, Stopped};
    use crate::secret::Masker;
    use crate::sidecar::{CommitLimits, Sidecar};
    use crate::task::{Image, ReadOptions, Task, TaskKind};

    /// A sidecar that has its files in this folder.
    fn sidecar(folder: &std::path::Path) -> Sidecar {
        let task = Task {
            kind: TaskKind::Read,
            image: Image { package: "test".to_owned(), version: "1".to_owned() },
            connector_type: crate::task::CONNECTOR_TYPE_AIRBYTE.to_owned(),
            task_id: "task".to_owned(),
            sync_id: "sync".to_owned(),
            storage_key: String::new(),
            started_at: jiff::Timestamp::now(),
            started_by: None,
            options: ReadOptions::default(),
            timeout: Duration::from_mins(1),
        };
        Sidecar {
            task,
            database_url: String::new().into(),
            stdout: folder.join("stdout"),
            stderr: folder.join("stderr"),
            secrets: folder.to_owned(),
            config: folder.to_owned(),
            db_log_level: "INFO".to_owned(),
            init_timeout: Duration::from_mins(1),
            silence: Duration::from_mins(1),
            commit: CommitLimits::default(),
            contract: None,
        }
    }

    #[test]
    fn a_source_that_is_never_quiet_for_long_has_no_more_time_than_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let sidecar = sidecar(folder.path());
        let mut source = Source::prepare(&sidecar, &Documents::default(), &Masker::default()).expect("pipes");
        let mut stdout = std::fs::OpenOptions::new().write(true).open(&sidecar.stdout).expect("a reader");
        let writer = std::thread::spawn(move || {
            // Until nobody reads.
            while stdout.write_all(b"a line\n").is_ok() {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let (begin, limit) = (Instant::now(), Duration::from_millis(300));
        let stop = Stop::new(Arc::default(), limit);
        let stopped = loop {
            match source.next(&stop).expect("reading") {
                Input::Stopped(stopped) => break stopped,
                _ => assert!(begin.elapsed() < 10 * limit, "it goes on"),
            }
        };
        assert_eq!(stopped, Stopped::TimeExceeded);
        assert!(begin.elapsed() >= limit, "it ended after {:?}", begin.elapsed());
        drop(source);
        writer.join().expect("a writer");
    }

    #[test]
    fn what_a_connector_wrote_before_a_quick_end_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let sidecar = sidecar(folder.path());
        let mut source = Source::prepare(&sidecar, &Documents::default(), &Masker::default()).expect("pipes");
        let mut stdout = std::fs::OpenOptions::new().write(true).open(&sidecar.stdout).expect("a reader");
        stdout.write_all(b"one\ntwo\n").expect("room");
        std::fs::write(folder.path().join(EXIT_CODE_FILE), "0\n").expect("a file");
        drop(stdout);
        let stop = Stop::new(Arc::default(), Duration::from_mins(1));
        for expected in ["one", "two"] {
            match source.next(&stop).expect("reading") {
                Input::Line(line) => assert_eq!(line, expected),
                _ => panic!("{expected} is missing"),
            }
        }
        assert!(matches!(source.next(&stop), Ok(Input::End)));
        assert_eq!(source.exit_code(), Some(0));
    }
}
