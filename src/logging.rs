//! The program's own log, on stderr.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::debug_fn;

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
    let fields = debug_fn(|writer, field, value| match field.name() {
        "message" => write!(writer, "{value:?}"),
        "logger" => Ok(()),
        name => write!(writer, " {name}={value:?}"),
    });
    log.without_time().with_target(false).with_ansi(false).fmt_fields(fields).init();
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
    let log = tracing_subscriber::fmt().with_env_filter(filter(level, libraries)).with_writer(io::stderr);
    if json {
        log.json().init();
    } else {
        log.with_ansi(io::stderr().is_terminal()).init();
    }
}

fn filter(level: &str, libraries: &str) -> EnvFilter {
    let level = level.to_ascii_lowercase();
    let level = if level == "fatal" { "error" } else { &level };
    EnvFilter::new(format!("{libraries},syncctl={level}"))
}
