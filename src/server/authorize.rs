//! What a caller may do: the task that a request starts, the tasks that it sees, and how many run at a time.

use super::app::App;
use super::auth::{Caller, Denial};
use super::service::Response;
use crate::controller::request::Request;
use crate::db::{Db, Place, StoredTask};
use crate::failure::{Class, Failure};
use crate::task::Task;

/// When a caller with too many tasks may try again.
const RETRY_SECONDS: u64 = 5;

/// The response to a request that violates a rule.
pub fn denied(caller: &Caller, denial: &Denial) -> Response {
    let Denial(rule) = denial;
    tracing::warn!(token = caller.name(), rule, "refused a request");
    Response::forbidden(rule)
}

/// Checks that the caller may start the task of a request, and that its image may run at all; the error is the response.
/// From then on the task names the token of its caller.
pub fn task(app: &App, caller: &Caller, mut request: Request) -> Result<Request, Response> {
    let by_policy = app.settings.image_policy.check(&request.task.image).map_err(Denial);
    by_policy.and_then(|()| caller.check_task(&request.task)).map_err(|denial| denied(caller, &denial))?;
    request.task.started_by = caller.started_by(request.task.started_by.take());
    Ok(request)
}

/// Whether a caller may see and cancel a stored task.
pub fn sees(caller: &Caller, row: &StoredTask) -> bool {
    caller.sees(&row.sync_id, &row.package, &row.version)
}

/// The place of a task among those that its token may have at a time.
pub struct TakenPlace<'a> {
    token: &'a str,
    /// It was taken for this very request.
    is_new: bool,
}

impl TakenPlace<'_> {
    /// Takes a place. `None` where the token has no limit; the error is the response.
    pub fn take<'a>(
        app: &App,
        db: &Db,
        caller: &'a Caller,
        task: &Task,
    ) -> Result<Result<Option<TakenPlace<'a>>, Response>, Failure> {
        let (Some(token), Some(max)) = (caller.name(), caller.max_tasks()) else { return Ok(Ok(None)) };
        let mut place = db.take_place(token, task, max, &[])?;
        if let Place::Full(cancelled) = &place
            && !cancelled.is_empty()
        {
            let gone = without_pod(app, cancelled)?;
            if !gone.is_empty() {
                place = db.take_place(token, task, max, &gone)?;
            }
        }
        match place {
            Place::Taken => Ok(Ok(Some(TakenPlace { token, is_new: true }))),
            Place::Known => Ok(Ok(Some(TakenPlace { token, is_new: false }))),
            Place::Full(_) => {
                tracing::info!(token, max, task = task.task_id, "refused a task beyond maxTasks");
                let text = format!(
                    "token {token:?} has as many tasks running as it may: its maxTasks is {max}; wait for the end of one, or \
                     cancel one"
                );
                Ok(Err(Response::too_many(&text, RETRY_SECONDS)))
            }
            Place::Uncounted => {
                let text = format!(
                    "the tasks of token {token:?} cannot be counted, and it has maxTasks: this needs the schema of \
                     SYNCCTL_OWN_SCHEMA"
                );
                Err(Failure::new(Class::DatabaseError, text))
            }
        }
    }

    /// Gives the place back: the task has not started.
    pub fn give_back(&self, db: &Db, task: &Task) {
        if self.is_new
            && let Err(error) = db.give_place_back(self.token, task)
        {
            tracing::warn!(%error, token = self.token, "cannot uncount a task that has not started");
        }
    }
}

/// The tasks among these that have no Pod.
fn without_pod(app: &App, tasks: &[String]) -> Result<Vec<String>, Failure> {
    let mut gone = Vec::new();
    for task in tasks {
        if app.backend.watcher.find(task)?.is_empty() {
            gone.push(task.clone());
        }
    }
    Ok(gone)
}
