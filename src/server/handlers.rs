//! The answers: what the endpoints do, with the functions that the commands use, too.

use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};
use uuid::Uuid;

use super::app::App;
use super::params::{self, Problems, Query};
use super::routes::failed;
use super::service::Response;
use crate::controller::outcome;
use crate::controller::request::Request;
use crate::db::{ConcurrencyPolicy, LogLine, StartOutcome, StoredTask};
use crate::failure::{Class, Failure};
use crate::pod::manifest::Launch;
use crate::pod::{Ownership, PodError};
use crate::task::{Task, TaskKind, TaskStatus};

/// What the answer to a query of the caller's that is not in order looks like.
fn refused(problems: &Problems) -> Response {
    let document = json!({"ok": false, "error": problems.join("; "), "problems": problems});
    Response::json(400, &document)
}

/// Everything is well, and more about it.
fn ok(more: Value) -> Response {
    let mut document = json!({"status": "ok", "ok": true});
    if let (Value::Object(fields), Value::Object(more)) = (&mut document, more) {
        fields.extend(more);
    }
    Response::json(200, &document)
}

fn answer(result: Result<Response, Failure>) -> Response {
    result.unwrap_or_else(|failure| {
        tracing::warn!(error = %failure, "a request could not be served");
        failed(&failure)
    })
}

/// `GET /openapi.json`.
pub fn openapi() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
        let mut document: Value = serde_yaml::from_str(include_str!("openapi.yaml")).expect("a test parses it");
        document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
        document
    });
    &DOCUMENT
}

/// `GET /ready`.
pub fn ready(app: &App) -> Response {
    let parts = app.ready.parts();
    let is_ready = parts.iter().all(|(_, ready)| *ready);
    let parts: serde_json::Map<String, Value> =
        parts.iter().map(|(name, ready)| ((*name).to_owned(), json!(ready))).collect();
    let status = if is_ready { 200 } else { 503 };
    let document = json!({"status": if is_ready { "pass" } else { "fail" }, "ok": is_ready, "parts": parts});
    Response::json(status, &document)
}

/// `GET /spec`.
pub fn spec(app: &Arc<App>, query: &[(String, String)]) -> Response {
    match params::spec(query) {
        Ok(request) => answer(start(app, &request, ConcurrencyPolicy::Allow)),
        Err(problems) => refused(&problems),
    }
}

/// `POST /check`, `POST /discover`.
pub fn configured(app: &Arc<App>, kind: TaskKind, query: &[(String, String)], body: Vec<u8>) -> Response {
    let parsed = params::configured(kind, query, &body);
    // It may be large, and what matters of it was copied.
    drop(body);
    match parsed {
        Ok(request) => answer(start(app, &request, ConcurrencyPolicy::Allow)),
        Err(problems) => refused(&problems),
    }
}

/// `POST /read`.
pub fn read(app: &Arc<App>, query: &[(String, String)], body: Vec<u8>) -> Response {
    let marker = match app.marker() {
        Ok(marker) => marker,
        Err(failure) => return answer(Err(failure)),
    };
    let parsed = params::read(query, &body, &app.settings, marker);
    drop(body);
    match parsed {
        Ok(request) => answer(start(app, &request, ConcurrencyPolicy::Forbid)),
        Err(problems) => refused(&problems),
    }
}

/// Records and launches: as soon as the Pod is accepted the caller is answered.
fn start(app: &Arc<App>, request: &Request, concurrency: ConcurrencyPolicy) -> Result<Response, Failure> {
    let Request { task, payload, .. } = request;
    let db = app.db()?;
    // That a discover runs is noted when it does: until then another one of its id may be running, whose result would
    // count as older than the note, and be lost.
    let discovers = task.kind == TaskKind::Discover;
    let mut begun = if discovers { StartOutcome::Started } else { outcome::record_start(&db, task, concurrency)? };
    if let StartOutcome::Exists(row) = &begun
        && params::is_same_request(row.started_by.as_deref(), task)
        && let Some(error) = row.error.as_deref().filter(|error| was_turned_away(error))
    {
        // The caller was told to try again, and does.
        begun = db.restart_task(task, error)?;
    }
    match begun {
        StartOutcome::Started => {}
        StartOutcome::Exists(row) if params::is_same_request(row.started_by.as_deref(), task) => {
            return Ok(accepted(task, &row.status_text));
        }
        StartOutcome::Exists(row) => {
            let text =
                format!("a task with this taskId was started before by another request; it is {}", row.status_text);
            return Ok(conflict(&text, &row.task_id));
        }
        StartOutcome::SyncBusy(running) => {
            return Ok(conflict("another task of this sync is running; cancel it or wait for its end", &running));
        }
    }
    let attempt = Uuid::new_v4().to_string();
    let settings = &app.settings.pod;
    let launch = Launch { task, payload, settings, attempt: &attempt, owner: None };
    // The Pod becomes the owner of its Secrets when it has lived for a while: callers need not wait for that.
    if let Err(error) = app.backend.launcher.launch(&launch, Ownership::Later) {
        return not_launched(app, task, error);
    }
    app.metrics.task_started(task.kind);
    tracing::info!(pod = task.pod_name(), kind = %task.kind, task = task.task_id, "a task was started");
    if task.kind == TaskKind::Read {
        end_if_over(app, task)?;
    }
    if discovers && let Err(error) = outcome::record_start(&db, task, concurrency) {
        // Its result comes all the same.
        tracing::warn!(%error, task = task.task_id, "the start of a discover could not be recorded");
    }
    Ok(accepted(task, TaskStatus::Running.as_str()))
}

/// Whether a task failed because the cluster did not take its Pod at that moment.
fn was_turned_away(error: &str) -> bool {
    matches!(Failure::from_stored(error).class, Class::ClusterUnreachable | Class::Refused)
}

fn accepted(task: &Task, status: &str) -> Response {
    let started_at = task.started_at.as_second();
    let mut more = json!({"startedAt": started_at, "taskId": task.task_id});
    if task.kind == TaskKind::Read {
        more["taskStatus"] = json!(status);
    }
    ok(more)
}

fn conflict(text: &str, task_id: &str) -> Response {
    Response::json(409, &json!({"ok": false, "error": text, "taskId": task_id}))
}

/// The row must not say RUNNING for a task that has no Pod.
fn not_launched(app: &App, task: &Task, error: PodError) -> Result<Response, Failure> {
    let exists = matches!(error, PodError::Exists { .. });
    let failure = Failure::from(error);
    if exists && task.kind == TaskKind::Discover {
        return Ok(conflict("a discover with this taskId is running", &task.task_id));
    }
    if exists && task.kind == TaskKind::Read {
        // Its name tells that it is this very task's, of an attempt whose answer came too late.
        return Ok(accepted(task, TaskStatus::Running.as_str()));
    }
    if let Err(error) = outcome::record_failure(app.patient_db()?, task, &failure) {
        // The status-check loop finds the row without a Pod.
        tracing::error!(%error, task = task.task_id, "the failure to start a task could not be recorded");
    }
    Err(failure)
}

/// Cancelled between the row and the Pod, or closed because that took too long: then nobody else knows of the Pod.
fn end_if_over(app: &App, task: &Task) -> Result<(), Failure> {
    let row = app.db()?.task(&task.task_id)?;
    if row.is_some_and(|row| row.status != Some(TaskStatus::Running)) {
        app.backend.launcher.delete(&task.pod_name(), None)?;
    }
    Ok(())
}

/// `GET /cancel`.
pub fn cancel(app: &App, pairs: &[(String, String)]) -> Response {
    let mut query = Query::new(pairs);
    let (package, sync_id, task_id) = (query.id("package"), query.id("syncId"), query.id("taskId"));
    match query.finish() {
        Ok(()) => answer(cancel_task(app, &package, &sync_id, &task_id)),
        Err(problems) => refused(&problems),
    }
}

fn cancel_task(app: &App, package: &str, sync_id: &str, task_id: &str) -> Result<Response, Failure> {
    let db = app.db()?;
    let row = db.task(task_id)?.filter(|row| row.sync_id == sync_id && row.package == package);
    let Some(row) = row else {
        return Ok(Response::error(404, "this package and sync have no such task"));
    };
    let task = Task::of_read(&row.package, &row.version, &row.sync_id, &row.task_id, row.started_at);
    if row.status == Some(TaskStatus::Running) {
        outcome::record_failure(&db, &task, &Failure::new(Class::Cancelled, "the task was cancelled"))?;
    }
    let status = db.task(task_id)?.map_or(row.status_text, |row| row.status_text);
    // Also once more, if an earlier request did not come to it.
    if status == TaskStatus::Cancelled.as_str() {
        app.backend.launcher.delete(&task.pod_name(), None)?;
    }
    Ok(ok(json!({"taskId": task_id, "taskStatus": status})))
}

/// `GET /tasks?syncId=`.
pub fn tasks(app: &App, pairs: &[(String, String)]) -> Response {
    let mut query = Query::new(pairs);
    let sync_id = query.id("syncId");
    let limit = query.number("limit", 50, 1..=500);
    if let Err(problems) = query.finish() {
        return refused(&problems);
    }
    answer((|| {
        let tasks = app.db()?.tasks_of_sync(&sync_id, limit)?;
        let tasks: Vec<Value> = tasks.iter().map(document).collect();
        Ok(ok(json!({"tasks": tasks})))
    })())
}

/// `GET /tasks/{taskId}`.
pub fn task(app: &App, task_id: &str, pairs: &[(String, String)]) -> Response {
    let mut query = Query::new(pairs);
    let lines = query.number("logs", 100, 0..=1000);
    if let Err(problems) = query.finish() {
        return refused(&problems);
    }
    answer((|| {
        let db = app.db()?;
        // What the tables cannot hold is not in them.
        let row = if task_id.contains('\0') { None } else { db.task(task_id)? };
        let Some(row) = row else {
            let text = "there is no such task; only reads are kept as tasks, the results of others are in their tables";
            return Ok(Response::error(404, text));
        };
        let mut task = document(&row);
        let logs = db.last_logs(task_id, lines)?;
        task["logs"] = logs.iter().map(line).collect();
        Ok(ok(json!({"task": task})))
    })())
}

fn document(row: &StoredTask) -> Value {
    let json = |text: &Option<String>| text.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok());
    json!({
        "taskId": row.task_id,
        "syncId": row.sync_id,
        "package": row.package,
        "version": row.version,
        "status": row.status_text,
        "startedAt": row.started_at,
        "updatedAt": row.updated_at,
        "startedBy": json(&row.started_by),
        "streams": row.streams,
        "metrics": json(&row.metrics),
        "error": row.error,
    })
}

fn line(line: &LogLine) -> Value {
    let LogLine { level, logger, message, timestamp } = line;
    json!({"timestamp": timestamp, "level": level, "logger": logger, "message": message})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::task::ReadOptions;

    #[test]
    fn options_of_a_read_are_its_documented_parameters() {
        let options = ReadOptions { silence_seconds: Some(1), max_records: Some(1), ..ReadOptions::default() };
        let options = serde_json::to_value(options).expect("plain fields");
        let options = options.as_object().expect("an object").keys().map(String::as_str);
        let parameters = super::openapi()["paths"]["/read"]["post"]["parameters"].as_array().expect("parameters");
        let parameters: BTreeSet<&str> = parameters.iter().filter_map(|parameter| parameter["name"].as_str()).collect();
        assert_eq!(options.chain(["syncId", "taskId"]).collect::<BTreeSet<_>>(), parameters);
    }
}
