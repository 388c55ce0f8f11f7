//! spec, check and discover: the first result message decides, and goes to its table.

use std::borrow::Cow;

use super::log::{Level, TaskLog};
use super::source::{Input, Source};
use super::{End, Stop, Stopped};
use crate::airbyte::message::Message;
use crate::db::{Db, ResultKey, SpecKey, Writer};
use crate::failure::{Class, Failure, StoredError};
use crate::task::{Task, TaskKind};

/// What came of it.
enum Found {
    /// The document, for spec and discover.
    Document(String),
    /// The verdict, for check.
    Verdict { succeeded: bool, message: Option<String> },
}

/// Waits for the result and stores it, or why there is none.
pub fn run(task: &Task, mut source: Source, db: &Db, log: &TaskLog, stop: &Stop) -> Result<End, Failure> {
    source.log_stderr(log);
    let mut reported = None;
    let found = loop {
        match source.next(stop)? {
            Input::Line(line) => match Message::parse(&line) {
                Message::Spec(spec) if task.kind == TaskKind::Spec => break Ok(Found::Document(spec)),
                Message::Catalog(catalog) if task.kind == TaskKind::Discover => break Ok(Found::Document(catalog)),
                Message::ConnectionStatus { succeeded, message } if task.kind == TaskKind::Check => {
                    break Ok(Found::Verdict { succeeded, message });
                }
                Message::TraceError { text, .. } => {
                    log.write(Level::Error, "source", &text);
                    reported.get_or_insert(text);
                }
                Message::Log { level, text } => log.write(Level::parse(&level), "source", &text),
                Message::ControlConfig(config) => {
                    if let Ok(config) = serde_json::from_str(&config) {
                        log.learn(&config);
                    }
                    let text = "the connector has renewed its configuration, which is kept in a read alone: if it can \
                                be used only once, the next read has to be given a new one";
                    log.write(Level::Warn, "syncctl", text);
                }
                Message::Text => {
                    log.write(Level::Info, "source", &line);
                    let line = line.into_owned();
                    source.remember(&line);
                }
                _ => {}
            },
            Input::Lost(head, length) => {
                let text = format!("a line of {length} bytes was dropped; it began: {head}");
                log.write(Level::Warn, "syncctl", &text);
            }
            Input::Quiet => {}
            Input::Silent(failure) => break Err(failure),
            Input::Stopped(Stopped::Cancelled) => break Err(Failure::new(Class::Cancelled, "the task was cancelled")),
            Input::Stopped(Stopped::TimeExceeded) => {
                break Err(Failure::new(Class::TimeExceeded, "the task ran longer than it may"));
            }
            Input::End => match (source.was_ended_with_us(stop), source.exit_code()) {
                (true, _) => break Err(Failure::new(Class::Cancelled, "the task was cancelled")),
                // The container's status tells more than 137 does.
                (false, None | Some(137)) => return Ok(End::LeavesVerdict),
                (false, code) => break Err(no_result(task, &source, code, reported.as_deref())),
            },
        }
    };
    store(task, db, log, found)?;
    Ok(End::Done)
}

fn no_result(task: &Task, source: &Source, code: Option<i32>, reported: Option<&str>) -> Failure {
    let missing = match task.kind {
        TaskKind::Spec => "a SPEC message",
        TaskKind::Check => "a CONNECTION_STATUS message",
        TaskKind::Discover | TaskKind::Read => "a CATALOG message",
    };
    match reported {
        Some(text) => Failure::new(Class::ConnectorFailed, text),
        None => source.failure(code, missing),
    }
}

fn store(task: &Task, db: &Db, log: &TaskLog, found: Result<Found, Failure>) -> Result<(), Failure> {
    let at = task.started_at;
    let (spec_key, key) = (SpecKey::of(task), ResultKey::of(task));
    match found {
        Ok(Found::Document(spec)) if task.kind == TaskKind::Spec => db.save_spec(&spec_key, at, Ok(&spec))?,
        Ok(Found::Document(catalog)) => db.save_catalog(&key, at, &catalog)?,
        Ok(Found::Verdict { succeeded, message }) => {
            let message = message.map(|message| log.mask(&message));
            let (status, message) = match message.as_deref() {
                message if succeeded => ("SUCCESS", message.map(Cow::Borrowed)),
                message => ("FAILED", message.map(StoredError::escape)),
            };
            db.save_check(&key, at, status, message.as_deref())?;
        }
        Err(failure) => {
            let text = Failure::new(failure.class, log.mask(&failure.text)).to_string();
            log.write(Level::Error, "syncctl", &text);
            match task.kind {
                TaskKind::Spec => db.save_spec(&spec_key, at, Err(&text))?,
                // The controller may have said why it ends this attempt: that was first, and stays.
                TaskKind::Check => db.fail_check(&key, at, &text)?,
                TaskKind::Discover | TaskKind::Read => db.fail_catalog(&key, at, &text, Writer::Sidecar)?,
            }
        }
    }
    Ok(())
}
