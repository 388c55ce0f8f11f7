//! stdout carries the result and nothing else; stderr carries progress and errors. A broken pipe is not an error.
//!
//! The only place that writes to them, besides the log: what reaches a terminal is printable text.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::failure::{Class, Failure};
use crate::printable;

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
            Format::Text => exit_code(print_line(&printable::lines(text)), 0),
            format => exit_code(print(format, document), 0),
        }
    }

    fn result_format(&self) -> Format {
        let default = if is_terminal() { Format::Text } else { Format::Json };
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
        for line in lines {
            print_error_line(&printable::line(line));
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
    print_error_line(&format!("error: {}", indented(&failure.to_string())));
    if let Some(hint) = failure.hint() {
        print_error_line(&format!("hint: {}", indented(hint)));
    }
    failure.class.exit_code()
}

/// Prints why the arguments of a command line are not valid, or its help; returns the exit code.
pub fn explain_usage(error: &clap::Error) -> u8 {
    let text = error.render().to_string();
    if text.chars().any(|c| c != '\n' && c.is_control()) || printable::lines(&text) != text {
        // Arguments may come from elsewhere, too.
        print_error_line(printable::lines(&text).trim_end());
    } else {
        // Nothing can be reported when the terminal is closed.
        error.print().ok();
    }
    u8::try_from(error.exit_code()).unwrap_or(2)
}

/// Text of several lines of which only the first one begins at the margin, so that it forges no other line.
fn indented(text: &str) -> String {
    printable::lines(text).replace('\n', "\n  ")
}

fn print_error_line(text: &str) {
    // Nothing can be reported when stderr is closed.
    writeln!(io::stderr(), "{text}").ok();
}

fn exit_code(printed: io::Result<()>, code: u8) -> u8 {
    match printed {
        Ok(()) => code,
        Err(error) => explain(&Failure::new(Class::Internal, format!("cannot write the result to stdout: {error}"))),
    }
}

fn print(format: Format, document: &Value) -> io::Result<()> {
    print_line(&document_text(format, document)?)
}

/// A document in a format, with what is not printable escaped.
fn document_text(format: Format, document: &Value) -> io::Result<String> {
    let pretty = || serde_json::to_string_pretty(document).map(|text| printable::json(&text).into_owned());
    Ok(match format {
        Format::Text => pretty()?,
        Format::Json => printable::json(&document.to_string()).into_owned(),
        Format::Yaml => {
            let text = serde_yaml::to_string(document).map_err(io::Error::other)?;
            let text = text.trim_end();
            // JSON is YAML, too, and has an escape for every character.
            if printable::lines(text) == text { text.to_owned() } else { pretty()? }
        }
    })
}

/// Whether stdout is a terminal.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Prints a file on stdout as it is.
pub fn print_file(content: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(content).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
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
        self.bar.suspend(|| print_error_line(&printable::line(text)));
    }

    /// Shows the current status. Repeating the last one does nothing.
    pub fn status(&mut self, text: &str) {
        if text == self.status {
            return;
        }
        text.clone_into(&mut self.status);
        if !self.bar.is_hidden() {
            self.bar.set_message(printable::line(text).into_owned());
        } else if !self.quiet {
            let subject = text.split([':', '[']).next().unwrap_or_default().trim_end();
            let is_new = |(last, at): &(String, Instant)| last != subject || at.elapsed() >= LINE_INTERVAL;
            if self.line.as_ref().is_none_or(is_new) {
                print_error_line(&printable::line(text));
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Format, document_text, indented};

    #[test]
    fn documents_are_printable_in_every_format() {
        let document =
            json!({"message": "\u{1b}]0;title\u{7}\u{9b}\u{7f}\u{202e}\u{2028}\u{85}é", "stream\u{200b}": 1});
        for format in [Format::Text, Format::Json, Format::Yaml] {
            let text = document_text(format, &document).expect("a text");
            let is_shown = |c: char| c == '\n' || !c.is_control() && !"\u{202e}\u{2028}\u{200b}".contains(c);
            assert!(text.chars().all(is_shown), "{text:?}");
            assert_eq!(serde_yaml::from_str::<serde_json::Value>(&text).expect("a document"), document);
        }
        let plain = json!({"message": "a\nb"});
        assert_eq!(document_text(Format::Yaml, &plain).expect("a text"), "message: |-\n  a\n  b");
    }

    #[test]
    fn a_failure_forges_no_other_line() {
        assert_eq!(indented("a\r\nerror: b\u{1b}[1A"), "a\n  error: b\\u001b[1A");
    }
}
