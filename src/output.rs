//! stdout = the result and nothing else; stderr = progress and errors. A broken pipe is no error.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::failure::Failure;

/// How the result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Indented JSON, for reading
    Text,
    /// One line of JSON, for programs; failures are also printed as JSON
    Json,
    /// YAML; failures are also printed as YAML
    Yaml,
}

/// What is printed, and where.
#[derive(Debug, Clone)]
pub struct Output {
    format: Option<Format>,
    quiet: bool,
}

impl Output {
    /// `format` is what the user asked for; without it a terminal gets text and a pipe gets JSON.
    pub fn new(format: Option<Format>, quiet: bool) -> Self {
        Self { format, quiet }
    }

    /// Prints a result.
    pub fn result(&self, document: &Value) -> std::io::Result<()> {
        let default = if std::io::stdout().is_terminal() { Format::Text } else { Format::Json };
        print(self.format.unwrap_or(default), document)
    }

    /// Prints a result that has words of its own for people.
    pub fn worded(&self, text: &str, document: &Value) -> std::io::Result<()> {
        match self.format {
            Some(Format::Text) => print_line(text),
            None if std::io::stdout().is_terminal() => print_line(text),
            _ => self.result(document),
        }
    }

    /// Prints a failure: one sentence and what to change on stderr, and on stdout a document if one was asked for.
    pub fn failure(&self, failure: &Failure) -> std::io::Result<()> {
        self.explain(failure);
        match self.format {
            Some(format @ (Format::Json | Format::Yaml)) => print(format, &failure_document(failure)),
            Some(Format::Text) | None => Ok(()),
        }
    }

    /// Only the part on stderr.
    #[expect(clippy::unused_self, reason = "all output goes through this type")]
    pub fn explain(&self, failure: &Failure) {
        // Nobody is told when stderr is closed.
        let mut stderr = std::io::stderr().lock();
        writeln!(stderr, "error: {failure}").ok();
        if let Some(hint) = failure.hint() {
            writeln!(stderr, "hint: {hint}").ok();
        }
    }

    /// A line about what is going on.
    pub fn progress(&self) -> Progress {
        let bar = if self.quiet || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::with_template("{spinner} {msg} ({elapsed})").expect("a constant template"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        };
        Progress { bar, quiet: self.quiet, last: String::new(), told: None, line: None }
    }
}

/// What a failure looks like to a program.
pub fn failure_document(failure: &Failure) -> Value {
    failure.document(json!({"status": "FAILED"}))
}

fn print(format: Format, document: &Value) -> std::io::Result<()> {
    let text = match format {
        Format::Text => serde_json::to_string_pretty(document).map_err(std::io::Error::other)?,
        Format::Json => document.to_string(),
        Format::Yaml => serde_yaml::to_string(document).map_err(std::io::Error::other)?.trim_end().to_owned(),
    };
    print_line(&text)
}

fn print_line(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// A spinner on a terminal, plain lines elsewhere.
pub struct Progress {
    bar: ProgressBar,
    quiet: bool,
    last: String,
    told: Option<String>,
    /// What the last plain line was about, and when it was written.
    line: Option<(String, Instant)>,
}

impl Progress {
    /// A line that stays; told once.
    pub fn tell(&mut self, text: &str) {
        if self.quiet || self.told.as_deref() == Some(text) {
            return;
        }
        self.told = Some(text.to_owned());
        self.bar.suspend(|| writeln!(std::io::stderr(), "{text}").ok());
    }

    /// What is going on now; the same text again is not repeated.
    pub fn say(&mut self, text: &str) {
        if text == self.last {
            return;
        }
        text.clone_into(&mut self.last);
        if !self.bar.is_hidden() {
            self.bar.set_message(text.to_owned());
        } else if !self.quiet && self.is_worth_a_line(text) {
            writeln!(std::io::stderr(), "{text}").ok();
            self.line = Some((subject(text).to_owned(), Instant::now()));
        }
    }
}

/// How often something that goes on is told where each word of it is a line.
const LINES: Duration = Duration::from_secs(5);

/// What a text is about: it goes on until another one is.
fn subject(text: &str) -> &str {
    text.split([':', '[']).next().unwrap_or_default().trim_end()
}

impl Progress {
    fn is_worth_a_line(&self, text: &str) -> bool {
        self.line.as_ref().is_none_or(|(last, at)| last != subject(text) || at.elapsed() >= LINES)
    }
}

/// How often a count is worth looking at: on a terminal it moves, elsewhere each look is a line.
const LOOKS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

impl Progress {
    /// How often to say how far something is; `None` when nobody listens.
    pub fn interval(&self) -> Option<Duration> {
        match (self.quiet, self.bar.is_hidden()) {
            (true, _) => None,
            (false, false) => Some(LOOKS.0),
            (false, true) => Some(LOOKS.1),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
