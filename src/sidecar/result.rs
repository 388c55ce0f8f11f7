//! spec, check and discover: the first result message decides, and is stored in its table.

use std::time::{Duration, Instant};

use super::log::{Level, TaskLog};
use super::source::{Input, Source, Stopped};
use super::stored_config::StoredConfig;
use crate::airbyte::message::Message;
use crate::contract::SidecarExit;
use crate::db::{Db, Finding, Writer};
use crate::failure::{Class, Failure, StoredError};
use crate::task::{Task, TaskKind};

/// How long to wait for the end of a connector that has written its result and may renew its configuration afterwards.
const LAST_MESSAGES: Duration = Duration::from_millis(500);

/// How much of a message is logged, in bytes.
const MAX_SHOWN: usize = 256;

/// What the connector was run for.
enum Output {
    /// The document of a spec or discover.
    Document(String),
    /// The result of a check.
    Status { succeeded: bool, message: Option<String> },
}

/// Waits for the result and stores it, or the failure. Stores a configuration that the connector renews; a spec has none.
pub fn run(
    task: &Task,
    mut source: Source,
    stored_config: Option<&StoredConfig<'_>>,
    db: &Db,
    log: &TaskLog,
) -> Result<SidecarExit, Failure> {
    let mut reported = None;
    let output = loop {
        match source.next()? {
            Input::Message(Message::Spec(spec)) if task.kind == TaskKind::Spec => break Ok(Output::Document(spec)),
            Input::Message(Message::Catalog(catalog)) if task.kind == TaskKind::Discover => {
                break Ok(Output::Document(catalog));
            }
            Input::Message(Message::ConnectionStatus { succeeded, message }) if task.kind == TaskKind::Check => {
                break Ok(Output::Status { succeeded, message });
            }
            Input::Message(Message::TraceError(error)) => {
                log.write(Level::Error, "source", &error.details());
                reported.get_or_insert(error.text);
            }
            Input::Message(Message::Invalid { kind, why, .. }) => {
                log.write(Level::Warn, "syncctl", &format!("ignoring a {kind} message: {why}"));
            }
            Input::CutOff(text) => {
                let head = log.mask_beginning(&text, MAX_SHOWN, false);
                log.write(Level::Warn, "syncctl", &format!("ignoring a message that is cut off: {head}"));
            }
            Input::Quoted(text) => log.write(Level::Info, "source", &text),
            Input::Message(Message::ControlConfig(config)) => {
                if let Some(stored_config) = stored_config {
                    stored_config.save(&config, log)?;
                }
            }
            Input::TooLong(head, length) => {
                let head = log.mask_beginning(&head, MAX_SHOWN, true);
                let text = format!("dropped a line of {length} bytes that begins with: {head}");
                log.write(Level::Warn, "syncctl", &text);
            }
            Input::Message(_) | Input::Idle => {}
            Input::Stopped(stopped) => {
                store_failure(task, db, log, &stopped.failure(), stopped.writer())?;
                let is_terminated = stopped == Stopped::Terminated;
                return Ok(if is_terminated { SidecarExit::Terminated } else { SidecarExit::Failed });
            }
            Input::Exited(code) => {
                break Err(match reported {
                    Some(text) => Failure::new(Class::ConnectorFailed, text),
                    None => source.failure(code, task.kind.result()),
                });
            }
            Input::Closed => {
                break Err(match reported.or_else(|| source.logged_error().map(str::to_owned)) {
                    Some(text) => Failure::new(Class::ConnectorFailed, text),
                    None => source.failure(0, task.kind.result()),
                });
            }
            Input::Killed => return Ok(SidecarExit::OutcomeUnknown),
        }
    };
    match output {
        Ok(output) => {
            if let Some(stored_config) = stored_config {
                save_last_config(&mut source, stored_config, log)?;
            }
            store(task, db, log, output)?;
            log.write_total(&format!("{}: result stored", task.kind));
            Ok(SidecarExit::Finished)
        }
        Err(failure) => store_failure(task, db, log, &failure, Writer::Sidecar).map(|()| SidecarExit::Failed),
    }
}

/// Stores a configuration that the connector renews after it has written its result.
fn save_last_config(source: &mut Source, stored_config: &StoredConfig<'_>, log: &TaskLog) -> Result<(), Failure> {
    let deadline = Instant::now() + LAST_MESSAGES;
    while Instant::now() < deadline {
        match source.next()? {
            Input::Message(Message::ControlConfig(config)) => stored_config.save(&config, log)?,
            Input::Message(_) | Input::TooLong(..) | Input::CutOff(_) | Input::Quoted(_) | Input::Idle => {}
            Input::Exited(_) | Input::Closed | Input::Killed | Input::Stopped(_) => break,
        }
    }
    Ok(())
}

fn store(task: &Task, db: &Db, log: &TaskLog, output: Output) -> Result<(), Failure> {
    match output {
        Output::Document(document) => db.store_result(task, Finding::Document(&document))?,
        Output::Status { succeeded, message } => {
            let message = message.map(|message| log.mask(&message));
            let message =
                message.as_deref().map(|text| if succeeded { text.into() } else { StoredError::escape(text) });
            db.store_result(task, Finding::Check { succeeded, message: message.as_deref() })?
        }
    };
    Ok(())
}

fn store_failure(task: &Task, db: &Db, log: &TaskLog, failure: &Failure, by: Writer) -> Result<(), Failure> {
    let text = log.mask_failure(failure).to_string();
    log.write_failure(&text, by);
    db.store_result(task, Finding::Failure(&text))?;
    Ok(())
}
