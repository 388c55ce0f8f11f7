//! The outcome of a task whose sidecar has stored none. Ours stores one or reports why not; a foreign one may do neither: it
//! writes nothing where a specification is stored already, and nothing where the connector fails without a message.

use std::fmt::Write;

use super::lifecycle::Termination;
use super::outcome::{Outcome, TaskResult, parse};
use crate::db::{Db, DbError, SpecKey};
use crate::failure::{Class, Failure};
use crate::pod::status::{Explanation, SIDECAR, SOURCE};
use crate::pod::{Backend, PodRef};
use crate::secret::Masker;
use crate::sidecar;
use crate::task::{Task, TaskKind};

/// How many of the last lines of a log go into a failure.
const LAST_LINES: u16 = 10;
/// How much of each of them, in bytes.
const LAST_LINE_BYTES: usize = 500;

/// What the end of the Pod means: the stored specification, or a failure to record.
pub fn outcome(
    backend: &Backend,
    db: &Db,
    task: &Task,
    pod: &PodRef,
    termination: &Termination,
) -> Result<TaskResult, DbError> {
    let mut failure = termination.failure.clone();
    match termination.explanation {
        Explanation::Cause => {}
        Explanation::ExitCode => append_logs(backend, db, task, pod, &mut failure),
        Explanation::Success => {
            if task.kind == TaskKind::Spec
                && let Some(specs) = db.spec(&SpecKey::of(task))?.and_then(|row| row.specs)
            {
                return Ok(parse(&specs).map(Outcome::Spec));
            }
            failure = Failure::new(Class::NoResult, format!("the connector ended without {}", task.kind.result()));
            append_logs(backend, db, task, pod, &mut failure);
        }
    }
    Ok(Err(failure))
}

/// Appends the last lines of both containers, if they can be read: the connector's own, and those that a foreign sidecar
/// has logged for it.
fn append_logs(backend: &Backend, db: &Db, task: &Task, pod: &PodRef, failure: &mut Failure) {
    let Some(server) = &backend.api_server else { return };
    let masker = match server.secret_data(pod).map(|data| sidecar::masker_of(db, task, &data)) {
        Ok(Ok(masker)) => masker,
        Ok(Err(error)) => return warn(pod, &error),
        Err(error) => return warn(pod, &error),
    };
    for container in [SOURCE, SIDECAR] {
        match server.last_lines(&pod.name, container, LAST_LINES) {
            Ok(log) => {
                let lines = last_lines(&log, &masker);
                if !lines.is_empty() {
                    // Writing to a String cannot fail.
                    let _ = write!(failure.text, "; the last lines of container {container}: {lines}");
                }
            }
            Err(error) => return warn(pod, &error),
        }
    }
}

fn warn(pod: &PodRef, error: &dyn std::fmt::Display) {
    tracing::warn!(pod = pod.name, %error, "cannot read why a task failed from its log");
}

fn last_lines(log: &str, masker: &Masker) -> String {
    // Masked before they are cut, and together: half of a secret would not be recognized.
    let log = masker.mask(log);
    let shown = |line: &str| line[..line.floor_char_boundary(LAST_LINE_BYTES)].trim_end().to_owned();
    let lines: Vec<String> = log.lines().map(shown).filter(|line| !line.is_empty()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::last_lines;
    use crate::secret::Masker;

    #[test]
    fn lines_of_a_log_are_masked_and_cut() {
        let masker = Masker::default();
        masker.add_document("the configuration", r#"{"password": "hunter2-hunter2"}"#);
        let log = format!(
            "INFO : start\n\n\u{1b}[31mERRSTD : hunter2-hunter2 is wrong\r\n{}hunter2-hunter2\n",
            "é".repeat(249)
        );
        let expected = format!("INFO : start\n\u{1b}[31mERRSTD : *** is wrong\n{}**", "é".repeat(249));
        assert_eq!(last_lines(&log, &masker), expected);
    }
}
