//! The connector as the sidecar sees it: messages on stdout, log lines on stderr, and an exit code.

pub mod framing;

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use framing::{Framing, Piece};

use super::crash;
use super::documents::Documents;
use super::lines::{Line, Lines};
use super::log::{Level, TaskLog};
use crate::airbyte::message::Message;
use crate::contract::{EXIT_CODE_FILE, READY_FILE};
use crate::db::Writer;
use crate::failure::{Class, Failure};
use crate::shared_folder::SharedFolder;

/// The longest line of stdout: a row with a document in it. The buffer only grows for such a line.
const MAX_STDOUT_LINE: usize = 128 * 1024 * 1024;
/// The longest line of stderr.
const MAX_STDERR_LINE: usize = 10 * 1024 * 1024;
/// How long to wait for output before checking whether to stop.
const TICK: Duration = Duration::from_millis(250);
/// How long to wait for the exit code after the end of stdout. The wrapper writes it before it closes the pipes: a
/// missing one means that the wrapper was killed.
const EXIT_CODE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait for the last lines of stderr after the exit code.
const STDERR_TIMEOUT: Duration = Duration::from_secs(2);
/// Exit codes of a connector that INT or TERM has ended.
const SIGNAL_EXIT_CODES: [i32; 2] = [130, 143];
/// The exit code after KILL.
const KILLED: i32 = 137;
/// How long after the connector's signal our own may arrive.
const OWN_SIGNAL_TIMEOUT: Duration = Duration::from_secs(2);
/// The mode of files that any user may read and none may change.
const READ_ONLY: u32 = 0o444;
/// How many of the last lines go into the text of a failure.
const LAST_LINES: usize = 10;
/// How much of each of the last lines goes into the text of a failure, in bytes.
const LAST_LINE_BYTES: usize = 500;
/// The maximum size of the file with the exit code.
const MAX_EXIT_CODE: u64 = 16;
/// How much of each of the last lines is masked before it is truncated.
const MASKED_LINE_BYTES: usize = 64 * 1024;

/// Where the connector is, and how long it may take.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The FIFO of its stdout. The file that the wrapper waits for is next to it.
    pub stdout: PathBuf,
    /// The FIFO of its stderr.
    pub stderr: PathBuf,
    /// The folder of the wrapper's reports.
    pub reports: PathBuf,
    /// The folder of its documents.
    pub config: PathBuf,
    /// How long it may take to start.
    pub init_timeout: Duration,
    /// How long it may write nothing.
    pub silence: Duration,
    /// Our wrapper runs it: it waits for the ready file and reports the exit code. A foreign controller's Pod has no wrapper:
    /// the pipes and the documents are there, and the connector ends with its pipes.
    pub is_wrapped: bool,
}

/// Reports whether a task must stop before the connector has ended.
pub struct Stop {
    terminated: Arc<AtomicBool>,
    /// What TERM means.
    on_term: Stopped,
    deadline: Instant,
}

/// Why a task stops before the connector has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// TERM, and the controller stores the reason.
    Terminated,
    /// TERM from a controller that expects the sidecar to store that the task was cancelled.
    Cancelled,
    /// The task exceeded its timeout.
    TimeExceeded,
    /// The connector did not start, or wrote nothing, for this time.
    Silent(Duration),
}

/// What the connector does next.
pub enum Input<'a> {
    /// A message other than a log message.
    Message(Message<'a>),
    /// A line that exceeded the limit and was dropped: its beginning and its length in bytes.
    TooLong(String, u64),
    /// The beginning of a message whose end is missing.
    CutOff(String),
    /// A message that a log line quotes.
    Quoted(String),
    /// Nothing for the caller: no output within a tick, or a line that went to the task's log.
    Idle,
    /// The task must stop.
    Stopped(Stopped),
    /// The connector has ended with this code.
    Exited(i32),
    /// The connector has ended without a wrapper to write its exit code.
    Closed,
    /// The connector was killed, or how it ended is unknown.
    Killed,
}

/// The connector's pipes, before anything is read from them.
pub struct Pipes {
    stdout: Lines,
    stderr: Lines,
    /// Where the connector's wrapper reports; `None` without a wrapper.
    reports: Option<SharedFolder>,
    settings: Settings,
}

/// A connector that is running or about to start.
pub struct Source {
    stdout: Lines,
    framing: Framing,
    connector: Connector,
    stop: Stop,
    /// Lines have arrived since activity was last noted.
    has_unnoted_lines: bool,
    /// Activity was noted since the last line.
    noted: bool,
}

/// Everything about the connector except its stdout.
struct Connector {
    settings: Settings,
    /// Where its wrapper reports; `None` without a wrapper.
    reports: Option<SharedFolder>,
    activity: Arc<Activity>,
    stderr_thread: Option<JoinHandle<()>>,
    log: TaskLog,
    /// It has written a message.
    has_messages: bool,
    /// The first line of its log with level ERROR or FATAL.
    logged_error: Option<String>,
    /// Its last line is a beginning of a message.
    is_cut_off: bool,
    /// It has written lines that hold messages among other text.
    has_mixed_lines: bool,
}

/// What the readers of stdout and stderr share.
struct Activity {
    /// When the connector was last active.
    last: Mutex<Instant>,
    has_output: AtomicBool,
    /// The last lines of stdout that are not messages.
    stdout: Mutex<VecDeque<String>>,
    /// The last lines of stderr.
    stderr: Mutex<VecDeque<String>>,
}

impl Stop {
    /// `terminated` is set by the signal handler; `on_term` is what TERM means.
    pub fn new(terminated: Arc<AtomicBool>, on_term: Stopped, timeout: Duration) -> Self {
        let now = Instant::now();
        // A timeout beyond the range of the clock means none.
        let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_hours(10 * 365 * 24));
        Self { terminated, on_term, deadline }
    }

    /// Why to stop now. Reads the clock only if asked to: not for each line.
    fn reason(&self, check_deadline: bool) -> Option<Stopped> {
        if self.terminated.load(Ordering::Relaxed) {
            return Some(self.on_term);
        }
        (check_deadline && Instant::now() >= self.deadline).then_some(Stopped::TimeExceeded)
    }
}

impl Stopped {
    /// Who stores the outcome: a sidecar that got TERM does not know the cause.
    pub fn writer(self) -> Writer {
        match self {
            Self::Terminated | Self::Cancelled => Writer::TerminatedSidecar,
            Self::TimeExceeded | Self::Silent(_) => Writer::Sidecar,
        }
    }

    /// The failure of the task.
    pub fn failure(self) -> Failure {
        match self {
            Self::Terminated => Failure::terminated(),
            Self::Cancelled => Failure::new(Class::Cancelled, "the task was cancelled"),
            Self::TimeExceeded => Failure::new(Class::TimeExceeded, "the task exceeded its timeout"),
            Self::Silent(limit) => {
                Failure::new(Class::Silence, format!("the connector wrote nothing for {} s", limit.as_secs()))
            }
        }
    }
}

impl Pipes {
    /// Creates the FIFOs and the connector's documents, then signals the connector's wrapper to start. A connector without a
    /// wrapper waits in the shell's `open` of the FIFOs, so its documents come first.
    pub fn create(settings: &Settings, documents: &Documents) -> Result<Self, Failure> {
        let failure = |path: &Path, error: &io::Error| {
            Failure::new(Class::SidecarFailed, format!("cannot create {}: {error}", path.display()))
        };
        let config = || SharedFolder::open(&settings.config).map_err(|error| failure(&settings.config, &error));
        if settings.is_wrapped {
            for (name, content) in documents.for_connector() {
                let replaced = config()?.replace(name, content.as_bytes(), READ_ONLY);
                replaced.map_err(|error| failure(&settings.config.join(name), &error))?;
            }
        } else {
            for (name, content) in documents.changed_for_connector() {
                let written = config()?.overwrite(name, content.as_bytes());
                written.map_err(|error| failure(&settings.config.join(name), &error))?;
            }
        }
        let open = |path: &Path, limit| open_fifo(path, limit).map_err(|error| failure(path, &error));
        let stderr = open(&settings.stderr, MAX_STDERR_LINE)?;
        let stdout = open(&settings.stdout, MAX_STDOUT_LINE)?;
        let settings = settings.clone();
        if !settings.is_wrapped {
            return Ok(Self { stdout, stderr, reports: None, settings });
        }
        // Before the connector starts: later its path may lead elsewhere.
        let reports = SharedFolder::open(&settings.reports).map_err(|error| failure(&settings.reports, &error))?;
        let ready = settings.stdout.with_file_name(READY_FILE);
        in_folder(&ready, |folder, name| folder.replace(name, b"", READ_ONLY))
            .map_err(|error| failure(&ready, &error))?;
        Ok(Self { stdout, stderr, reports: Some(reports), settings })
    }
}

impl Source {
    /// Starts to log stderr in its own thread.
    pub fn start(pipes: Pipes, log: &TaskLog, stop: Stop) -> Self {
        let activity = Arc::new(Activity {
            last: Mutex::new(Instant::now()),
            has_output: AtomicBool::new(false),
            stdout: Mutex::default(),
            stderr: Mutex::default(),
        });
        let stderr_thread = std::thread::spawn({
            let (log, activity) = (log.clone(), Arc::clone(&activity));
            move || log_stderr(pipes.stderr, &log, &activity)
        });
        let stderr_thread = Some(stderr_thread);
        let connector = Connector {
            settings: pipes.settings,
            reports: pipes.reports,
            activity,
            stderr_thread,
            log: log.clone(),
            has_messages: false,
            logged_error: None,
            is_cut_off: false,
            has_mixed_lines: false,
        };
        Self {
            stdout: pipes.stdout,
            framing: Framing::default(),
            connector,
            stop,
            has_unnoted_lines: false,
            noted: true,
        }
    }

    /// Where the connector's wrapper reports.
    pub fn reports(&self) -> Option<SharedFolder> {
        self.connector.reports.clone()
    }

    /// Notes activity other than output: while the caller handles a message that takes long, nothing is read.
    pub fn note_activity(&mut self) {
        self.connector.activity.note();
        self.noted = true;
    }

    /// Whether time may have passed since the last line: the pipe was polled, or activity was noted. Within a run of
    /// buffered lines there is no need to read the clock.
    pub fn time_passed(&self) -> bool {
        self.noted || self.stdout.has_polled
    }

    /// Whether any message of the Airbyte protocol has arrived, log messages included.
    pub fn has_messages(&self) -> bool {
        self.connector.has_messages
    }

    /// What comes next from the connector. Waits at most a tick.
    pub fn next(&mut self) -> Result<Input<'_>, Failure> {
        let check_deadline = self.time_passed();
        self.noted = false;
        if let Some(stopped) = self.stop.reason(check_deadline) {
            return Ok(Input::Stopped(stopped));
        }
        if let Some(piece) = self.framing.next() {
            return Ok(self.connector.take(piece));
        }
        let connector = &mut self.connector;
        // Checked before the pipe is read: then the pipe holds all that the connector wrote before it ended.
        let has_ended = connector.has_ended_early();
        let line = self.stdout.next(if has_ended { Duration::ZERO } else { TICK }).map_err(|error| {
            Failure::new(Class::SidecarFailed, format!("cannot read the connector's stdout: {error}"))
        })?;
        // Noted once after a run of lines, to not read the clock for each line.
        if line != Line::Idle {
            self.has_unnoted_lines = true;
            connector.activity.has_output.store(true, Ordering::Relaxed);
        } else if std::mem::take(&mut self.has_unnoted_lines) {
            connector.activity.note();
        }
        Ok(match line {
            Line::Text(line) => match Message::parse(line) {
                Message::Text => {
                    let line = String::from_utf8_lossy(line);
                    if !self.framing.may_use(&line) {
                        return Ok(connector.text(&line));
                    }
                    if self.framing.line(&line) && !std::mem::replace(&mut connector.has_mixed_lines, true) {
                        connector.warn_of_mixed_line(&line);
                    }
                    self.framing.next().map_or(Input::Idle, |piece| connector.take(piece))
                }
                message if self.framing.holds_back(&message) => {
                    self.framing.message(message.into_owned());
                    self.framing.next().map_or(Input::Idle, |piece| connector.take(piece))
                }
                message => connector.message(message),
            },
            Line::TooLong(head, length) => Input::TooLong(String::from_utf8_lossy(head).into_owned(), length),
            Line::Eof => match self.framing.end() {
                Some(piece) => connector.take(piece),
                None => connector.end(&self.stop),
            },
            // It ended before it opened its pipes.
            Line::Idle if has_ended => connector.end(&self.stop),
            Line::Idle => connector.silent().map_or(Input::Idle, Input::Stopped),
        })
    }

    /// The failure of a connector that reported no error: its exit code and last lines.
    pub fn failure(&self, code: i32, missing: &str) -> Failure {
        let lines = self.connector.last_lines();
        let lines = lines.map(|lines| format!("; its last lines: {lines}")).unwrap_or_default();
        match code {
            127 if lines.contains("AIRBYTE_ENTRYPOINT is not set") => {
                Failure::new(Class::NoEntrypoint, "the image does not set AIRBYTE_ENTRYPOINT")
            }
            0 => Failure::new(Class::NoResult, format!("the connector ended without {missing}{lines}")),
            code => Failure::new(Class::ConnectorFailed, format!("the connector ended with code {code}{lines}")),
        }
    }

    /// The first line of the connector's log with level ERROR or FATAL.
    pub fn logged_error(&self) -> Option<&str> {
        self.connector.logged_error.as_deref()
    }

    /// Why a connector of unknown exit code has failed, if its output shows that.
    pub fn failure_in_output(&self) -> Option<Failure> {
        let connector = &self.connector;
        let stderr = connector.activity.stderr.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let last_lines =
            || connector.last_lines().map(|lines| format!("; its last lines: {lines}")).unwrap_or_default();
        if !connector.has_messages {
            let text = format!("the connector ended without a message{}", last_lines());
            return Some(Failure::new(Class::NoResult, text));
        }
        let text = if let Some(text) = &connector.logged_error {
            text.clone()
        } else if connector.is_cut_off {
            format!("the connector ended within a message{}", last_lines())
        } else if stderr.iter().any(|line| crash::is_report(line)) {
            format!("the connector crashed{}", last_lines())
        } else {
            return None;
        };
        Some(Failure::new(Class::ConnectorFailed, text))
    }
}

impl Connector {
    /// The exit code that the wrapper has reported, if any. An error: something else has the name of the report.
    fn exit_code(&self) -> io::Result<Option<i32>> {
        let Some(reports) = &self.reports else { return Ok(None) };
        let Some(text) = reports.read(EXIT_CODE_FILE, MAX_EXIT_CODE)? else { return Ok(None) };
        Ok(str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok()))
    }

    /// Whether it has ended before it wrote anything.
    fn has_ended_early(&self) -> bool {
        !self.activity.has_output.load(Ordering::Relaxed) && matches!(self.exit_code(), Ok(Some(_)))
    }

    /// Notes a message. Log messages go to the task's log.
    fn message<'l>(&mut self, message: Message<'l>) -> Input<'l> {
        self.has_messages |= message.is_known();
        self.is_cut_off = false;
        let Message::Log { level, text } = message else { return Input::Message(message) };
        let level = Level::parse(&level);
        if level >= Level::Error {
            self.logged_error.get_or_insert_with(|| text.clone());
        }
        self.log.write(level, "source", &text);
        Input::Idle
    }

    /// Notes a part of a line.
    fn take(&mut self, piece: Piece) -> Input<'static> {
        match piece {
            Piece::Message(message) => self.message(message),
            Piece::CutOff(text) => {
                self.is_cut_off = true;
                Input::CutOff(text)
            }
            Piece::Quoted(text) => Input::Quoted(text),
            Piece::Text(text) => self.text(&text),
        }
    }

    /// Logs text that is no message.
    fn text(&mut self, text: &str) -> Input<'static> {
        self.is_cut_off = text.starts_with('{');
        self.log.write(Level::Info, "source", text);
        Activity::remember(&self.activity.stdout, text);
        Input::Idle
    }

    fn warn_of_mixed_line(&self, line: &str) {
        let line = self.log.mask_beginning(line, LAST_LINE_BYTES, false);
        let text = format!("messages share their lines with other text; they are used; the first such line: {line}");
        self.log.write(Level::Warn, "syncctl", &text);
    }

    /// How the connector has ended.
    fn end(&mut self, stop: &Stop) -> Input<'static> {
        let reported = || self.exit_code().ok().flatten();
        let code = self.reports.as_ref().and_then(|_| wait_for(EXIT_CODE_TIMEOUT, reported));
        if code.is_none()
            && let Err(error) = self.exit_code()
        {
            self.log.write(Level::Warn, "syncctl", &format!("the connector's exit code is ignored: {error}"));
        }
        if let Some(thread) = self.stderr_thread.take() {
            wait_for(STDERR_TIMEOUT, || thread.is_finished().then_some(()));
        }
        match code {
            // TERM reaches both containers at once, and the connector may be faster than this process.
            Some(code) if SIGNAL_EXIT_CODES.contains(&code) => {
                let cancelled = || stop.reason(false).map(Input::Stopped);
                wait_for(OWN_SIGNAL_TIMEOUT, cancelled).unwrap_or(Input::Exited(code))
            }
            None if !self.settings.is_wrapped => Input::Closed,
            None | Some(KILLED) => Input::Killed,
            Some(code) => Input::Exited(code),
        }
    }

    /// A connector that has not started has at least the time that a container may take to start.
    fn silent(&self) -> Option<Stopped> {
        let has_output = self.activity.has_output.load(Ordering::Relaxed);
        let Settings { silence, init_timeout, .. } = self.settings;
        let limit = if has_output { silence } else { silence.max(init_timeout) };
        let silent_for = self.activity.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        (silent_for >= limit).then_some(Stopped::Silent(limit))
    }

    /// The last lines that are not messages, from stderr if there are any.
    fn last_lines(&self) -> Option<String> {
        let lines = [&self.activity.stderr, &self.activity.stdout]
            .map(|lines| lines.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .into_iter()
            .find(|lines| !lines.is_empty())?;
        if self.log.is_hidden() {
            return None;
        }
        // Masked before they are cut, and together: half of a secret would not be recognized.
        let lines = self.log.mask(&lines.into_iter().collect::<Vec<_>>().join("\n"));
        let shown = |line: &str| line[..line.floor_char_boundary(LAST_LINE_BYTES)].to_owned();
        Some(lines.lines().map(shown).collect::<Vec<_>>().join("\n"))
    }
}

impl Activity {
    fn note(&self) {
        self.has_output.store(true, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Appends to the last lines.
    fn remember(lines: &Mutex<VecDeque<String>>, line: &str) {
        let line = line.trim_end();
        if line.is_empty() {
            return;
        }
        let line = line[..line.floor_char_boundary(MASKED_LINE_BYTES)].to_owned();
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

fn log_stderr(mut stderr: Lines, log: &TaskLog, activity: &Activity) {
    loop {
        let line = match stderr.next(TICK) {
            Ok(Line::Text(line)) => String::from_utf8_lossy(line).into_owned(),
            Ok(Line::TooLong(head, length)) => {
                let head = log.mask_beginning(&String::from_utf8_lossy(head), LAST_LINE_BYTES, true);
                format!("{head}… ({length} bytes)")
            }
            Ok(Line::Idle) => continue,
            Ok(Line::Eof) | Err(_) => return,
        };
        activity.note();
        Activity::remember(&activity.stderr, &line);
        log.write(Level::Info, "stderr", &line);
    }
}

/// Polls for something until a timeout.
fn wait_for<T>(timeout: Duration, poll: impl Fn() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    loop {
        let found = poll();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Creates a FIFO, where there is none, and opens it.
fn open_fifo(path: &Path, limit: usize) -> io::Result<Lines> {
    let fifo = in_folder(path, |folder, name| folder.create_fifo(name).and_then(|()| folder.open_fifo(name)))?;
    Ok(Lines::new(fifo, limit))
}

/// Accesses a name in its folder.
fn in_folder<T>(path: &Path, access: impl FnOnce(&SharedFolder, &str) -> io::Result<T>) -> io::Result<T> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or(ErrorKind::InvalidFilename)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    access(&SharedFolder::open(folder)?, name)
}

#[cfg(test)]
mod tests;
