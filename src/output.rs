//! stdout carries the result and nothing else; stderr carries progress and errors. A broken pipe is not an error.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::failure::{Class, Failure};

/// The format of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Indented JSON, for reading
    Text,
    /// One line of JSON, for programs; failures are also printed as JSON
    Json,
    /// YAML; failures are also printed as YAML
    Yaml,
}

/// How a command prints.
#[derive(Debug, Clone)]
pub struct Output {
    format: Option<Format>,
    quiet: bool,
}

impl Output {
    /// Without a `format`, a terminal gets text and a pipe gets JSON.
    pub fn new(format: Option<Format>, quiet: bool) -> Self {
        Self { format, quiet }
    }

    /// Prints a result. Returns `code`, or the exit code of a stdout that cannot be written.
    pub fn result(&self, document: &Value, code: u8) -> u8 {
        exit_code(print(self.result_format(), document), code)
    }

    /// Prints a result that has a text form of its own; returns the exit code.
    pub fn result_with_text(&self, text: &str, document: &Value) -> u8 {
        match self.result_format() {
            Format::Text => exit_code(print_line(text), 0),
            format => exit_code(print(format, document), 0),
        }
    }

    fn result_format(&self) -> Format {
        let default = if io::stdout().is_terminal() { Format::Text } else { Format::Json };
        self.format.unwrap_or(default)
    }

    /// Prints a failure on stderr, and as a document on stdout if a format for programs was asked for; returns the exit
    /// code.
    pub fn failure(&self, failure: &Failure) -> u8 {
        let code = explain(failure);
        match self.format {
            Some(format @ (Format::Json | Format::Yaml)) => {
                exit_code(print(format, &failure.document(json!({"status": "FAILED"}))), code)
            }
            Some(Format::Text) | None => code,
        }
    }

    /// Prints lines on stderr, unless the command is quiet.
    pub fn notices(&self, lines: &[String]) {
        if self.quiet {
            return;
        }
        let mut stderr = io::stderr().lock();
        for line in lines {
            // Nothing can be reported when stderr is closed.
            writeln!(stderr, "{line}").ok();
        }
    }

    /// Shows progress on stderr.
    pub fn progress(&self) -> Progress {
        let bar = if self.quiet || !io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::with_template("{spinner} {msg} ({elapsed})").expect("a constant template"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        };
        Progress { bar, quiet: self.quiet, status: String::new(), notice: None, line: None }
    }
}

/// Prints a failure and its hint on stderr; returns the exit code.
pub fn explain(failure: &Failure) -> u8 {
    // Nothing can be reported when stderr is closed.
    let mut stderr = io::stderr().lock();
    writeln!(stderr, "error: {failure}").ok();
    if let Some(hint) = failure.hint() {
        writeln!(stderr, "hint: {hint}").ok();
    }
    failure.class.exit_code()
}

fn exit_code(printed: io::Result<()>, code: u8) -> u8 {
    match printed {
        Ok(()) => code,
        Err(error) => explain(&Failure::new(Class::Internal, format!("cannot write the result to stdout: {error}"))),
    }
}

fn print(format: Format, document: &Value) -> io::Result<()> {
    let text = match format {
        Format::Text => serde_json::to_string_pretty(document).map_err(io::Error::other)?,
        Format::Json => document.to_string(),
        Format::Yaml => serde_yaml::to_string(document).map_err(io::Error::other)?.trim_end().to_owned(),
    };
    print_line(&text)
}

fn print_line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// The interval between lines about the same subject where progress is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// The interval between updates of a count, on a terminal and as lines.
const COUNT_INTERVALS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// A spinner on a terminal, lines elsewhere.
pub struct Progress {
    bar: ProgressBar,
    quiet: bool,
    status: String,
    notice: Option<String>,
    /// The subject of the last status that was written as a line, and when.
    line: Option<(String, Instant)>,
}

impl Progress {
    /// Writes a line that stays. Repeating the last notice does nothing.
    pub fn notice(&mut self, text: &str) {
        if self.quiet || self.notice.as_deref() == Some(text) {
            return;
        }
        self.notice = Some(text.to_owned());
        self.bar.suspend(|| writeln!(io::stderr(), "{text}").ok());
    }

    /// Shows the current status. Repeating the last one does nothing.
    pub fn status(&mut self, text: &str) {
        if text == self.status {
            return;
        }
        text.clone_into(&mut self.status);
        if !self.bar.is_hidden() {
            self.bar.set_message(text.to_owned());
        } else if !self.quiet {
            let subject = text.split([':', '[']).next().unwrap_or_default().trim_end();
            let is_new = |(last, at): &(String, Instant)| last != subject || at.elapsed() >= LINE_INTERVAL;
            if self.line.as_ref().is_none_or(is_new) {
                writeln!(io::stderr(), "{text}").ok();
                self.line = Some((subject.to_owned(), Instant::now()));
            }
        }
    }

    /// How often to update a count; `None` if progress is not shown.
    pub fn count_interval(&self) -> Option<Duration> {
        let (terminal, lines) = COUNT_INTERVALS;
        (!self.quiet).then_some(if self.bar.is_hidden() { lines } else { terminal })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
