//! The program's own log, on stderr: the only place that writes it, so every line of it is printable and one event is one
//! line.

use std::fmt::{self, Debug};
use std::io::{self, IsTerminal};
use std::sync::{PoisonError, RwLock};

use serde_json::Value;
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

use crate::printable;

/// Replaces the secrets of a text.
pub type Mask = Box<dyn Fn(&str) -> String + Send + Sync>;

static MASK: RwLock<Option<Mask>> = RwLock::new(None);

/// Masks every event of this process from now on.
pub fn mask_with(mask: Mask) {
    *MASK.write().unwrap_or_else(PoisonError::into_inner) = Some(mask);
}

fn masked(text: String) -> String {
    match &*MASK.read().unwrap_or_else(PoisonError::into_inner) {
        Some(mask) => mask(&text),
        None => text,
    }
}

/// Starts the log of a one-off command, which shows warnings and errors unless more is asked for.
pub fn start_command(level: &str, quiet: bool, verbose: u8) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) if level == "INFO" => "warn",
        (false, 0) => level,
        (false, 1) => "info",
        (false, _) => "debug",
    };
    start(level, verbose, false);
}

/// Starts the log of a service.
pub fn start_service(level: &str, verbose: u8, json: bool) {
    start(if verbose > 0 { "debug" } else { level }, verbose, json);
}

/// Starts the log of a sidecar whose lines people read without their times: the level and the text.
pub fn start_plain(level: &str) {
    let log = tracing_subscriber::fmt().with_env_filter(filter(level, "off")).with_writer(io::stderr);
    log.without_time().with_target(false).with_ansi(false).fmt_fields(Fields { hidden: "logger" }).init();
}

/// Starts the log with a level in any case. Other crates log only if `verbose` asks for it: our own errors hold the
/// relevant part of theirs.
pub fn start(level: &str, verbose: u8, json: bool) {
    let libraries = match verbose {
        0 => "off",
        1 => "warn",
        2 => "info",
        _ => "debug",
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter(level, libraries));
    if json {
        log.json().with_writer(|| Json(io::stderr())).init();
    } else {
        let is_terminal = io::stderr().is_terminal();
        log.with_ansi(is_terminal).fmt_fields(Fields { hidden: "" }).with_writer(io::stderr).init();
    }
}

fn filter(level: &str, libraries: &str) -> EnvFilter {
    let level = level.to_ascii_lowercase();
    let level = if level == "fatal" { "error" } else { &level };
    EnvFilter::new(format!("{libraries},syncctl={level}"))
}

/// The message and the fields of an event as one printable line, without secrets.
struct Fields {
    /// The name of a field that is left out.
    hidden: &'static str,
}

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let hidden = self.hidden;
        let format = debug_fn(move |writer: &mut Writer<'_>, field: &Field, value: &dyn Debug| {
            let text = masked(format!("{value:?}"));
            let text = printable::line(&text);
            match field.name() {
                "message" => writer.write_str(&text),
                // The names that events of other crates have for their places.
                name if name == hidden || name.starts_with("log.") => Ok(()),
                name if writer.has_ansi_escapes() => {
                    write!(writer, " \u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{text}")
                }
                name => write!(writer, " {name}={text}"),
            }
        });
        format.format_fields(writer, fields)
    }
}

/// Writes events that are JSON documents.
struct Json<W>(W);

impl<W: io::Write> io::Write for Json<W> {
    /// Gets a whole event at a time.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        if let Ok(mut event) = serde_json::from_str(&text) {
            mask_texts(&mut event);
            text = format!("{event}\n");
        }
        self.0.write_all(printable::json(&text).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn mask_texts(value: &mut Value) {
    match value {
        Value::String(text) => *text = masked(std::mem::take(text)),
        Value::Array(items) => items.iter_mut().for_each(mask_texts),
        Value::Object(fields) => fields.values_mut().for_each(mask_texts),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex, PoisonError};

    use tracing::subscriber::with_default;

    use super::{Fields, Json};

    /// What a log of this kind has of one event with foreign text.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        fn text(&self) -> String {
            String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
        }
    }

    const FOREIGN: &str = "a\n2026-01-01T00:00:00Z  INFO forged\u{1b}[2J\u{9b}1m\u{202e}\u{2028}é";

    #[test]
    fn foreign_text_forges_no_line_of_a_text_log() {
        for ansi in [false, true] {
            let log = Log::default();
            let writer = log.clone();
            let subscriber = tracing_subscriber::fmt().with_ansi(ansi).fmt_fields(Fields { hidden: "" });
            with_default(subscriber.with_writer(move || writer.clone()).finish(), || {
                tracing::error!(error = %FOREIGN, "{FOREIGN}");
            });
            let escaped = r"a\n2026-01-01T00:00:00Z  INFO forged\u001b[2J\u009b1m\u202e\u2028é";
            assert_eq!(log.text().matches(escaped).count(), 2, "{}", log.text());
            assert_eq!(log.text().lines().count(), 1);
        }
    }

    #[test]
    fn foreign_text_is_escaped_in_a_json_log() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().json().with_writer(move || Json(writer.clone()));
        with_default(subscriber.finish(), || tracing::error!(error = %FOREIGN, "text"));
        let text = log.text();
        assert!(text.trim_end().chars().all(|c| !c.is_control() && !"\u{202e}\u{2028}".contains(c)), "{text}");
        let event: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(event["fields"]["error"], FOREIGN);
    }
}
