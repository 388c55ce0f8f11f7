//! The handlers of the endpoints.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::app::App;
use super::auth::{Caller, Denial, Verb};
use super::authorize::{self, TakenPlace};
use super::params::{self, Problems};
use super::service::Response;
use crate::controller;
use crate::controller::outcome;
use crate::controller::request::Request;
use crate::db::{ConcurrencyPolicy, Db, LogLine, RequestMark, StartOutcome, StoredTask, Writer};
use crate::failure::{Class, Failure};
use crate::pod::manifest::Launch;
use crate::pod::{Ownership, PodError, WaitingTask};
use crate::task::{Task, TaskKind, TaskStatus};

/// Handles a request whose parameters were parsed; invalid ones are answered with all their problems.
pub(super) fn respond<T>(
    parameters: Result<T, Problems>,
    handle: impl FnOnce(T) -> Result<Response, Failure>,
) -> Response {
    match parameters {
        Ok(parameters) => handle(parameters).unwrap_or_else(|failure| failed(&failure)),
        Err(problems) => Response::json(400, &json!({"ok": false, "error": problems.join("; "), "problems": problems})),
    }
}

/// Handles the request of a task that its caller may start.
fn respond_task(
    app: &App,
    caller: &Caller,
    parameters: Result<Request, Problems>,
    handle: impl FnOnce(&Request) -> Result<Response, Failure>,
) -> Response {
    respond(parameters, |request| match authorize::task(app, caller, request) {
        Ok(request) => handle(&request),
        Err(response) => Ok(response),
    })
}

/// A successful response with these fields.
pub(super) fn ok(fields: Value) -> Response {
    let mut document = json!({"status": "ok", "ok": true});
    if let (Value::Object(document), Value::Object(fields)) = (&mut document, fields) {
        document.extend(fields);
    }
    Response::json(200, &document)
}

/// The response to a failure. 503: the same request may succeed later.
pub(super) fn failed(failure: &Failure) -> Response {
    tracing::warn!(error = %failure, "a request failed");
    let status = match failure.class {
        Class::Usage | Class::InvalidInput => 400,
        Class::TaskExists => 409,
        Class::PayloadTooLarge => 413,
        Class::ClusterUnreachable | Class::DatabaseUnreachable | Class::Refused => 503,
        _ => 500,
    };
    let document = json!({"ok": false, "error": failure.text, "class": failure.class.code(), "hint": failure.hint()});
    let response = Response::json(status, &document);
    if status == 503 { response.with_header("Retry-After", "5") } else { response }
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
    let checks = app.readiness.checks();
    let is_ready = checks.iter().all(|(_, passes)| *passes);
    let parts: serde_json::Map<String, Value> =
        checks.iter().map(|(name, passes)| ((*name).to_owned(), json!(passes))).collect();
    let (status, text) = if is_ready { (200, "pass") } else { (503, "fail") };
    Response::json(status, &json!({"status": text, "ok": is_ready, "parts": parts}))
}

/// `GET /spec`.
pub fn spec(app: &App, caller: &Caller, query: &[(String, String)]) -> Response {
    respond_task(app, caller, params::spec(query), |request| start(app, caller, request, ConcurrencyPolicy::Allow))
}

/// `POST /check`, `POST /discover`.
pub fn configured(app: &App, caller: &Caller, kind: TaskKind, query: &[(String, String)], body: Vec<u8>) -> Response {
    // Only a task with a row needs the installation, and the installation needs the cluster.
    let installation = app.installation();
    let known = installation.as_deref().unwrap_or_default();
    let request = params::configured(kind, query, &body, &app.settings.database_url, known);
    // It may be large, and the request has copies of its documents.
    drop(body);
    respond_task(app, caller, request, |request| match request.task.then_run {
        None => start(app, caller, request, ConcurrencyPolicy::Allow),
        Some(_) if app.serve.console.is_none() => Err(without_console(app, &request.task)?),
        Some(_) => installation.and_then(|_| start(app, caller, request, ConcurrencyPolicy::Forbid)),
    })
}

/// Refuses a discover that no read can follow. Its row shows that to users whose schedule does not read the response.
fn without_console(app: &App, task: &Task) -> Result<Failure, Failure> {
    let text = "thenRun needs a console that starts the read: set SYNCCTL_CONSOLE_URL and SYNCCTL_CONSOLE_TOKEN";
    let failure = Failure::new(Class::Usage, text);
    let db = app.db()?;
    // The id may be that of a task of another sync.
    if db.task(&task.task_id)?.is_none_or(|row| row.sync_id == task.sync_id) {
        db.finish_task(task, Writer::Controller, TaskStatus::Failed, None, Some(&failure.to_string()))?;
    }
    Ok(failure)
}

/// `POST /read`.
pub fn read(app: &App, caller: &Caller, query: &[(String, String)], body: Vec<u8>) -> Response {
    let installation = match app.installation() {
        Ok(installation) => installation,
        Err(failure) => return failed(&failure),
    };
    let request = params::read(query, &body, &app.settings, installation);
    drop(body);
    respond_task(app, caller, request, |request| {
        controller::prepare_rows(&app.settings)?;
        start(app, caller, request, ConcurrencyPolicy::Forbid)
    })
}

/// Records and launches a task, if its caller may have one more. Responds as soon as its Pod is accepted.
fn start(app: &App, caller: &Caller, request: &Request, concurrency: ConcurrencyPolicy) -> Result<Response, Failure> {
    let db = app.db()?;
    let place = match TakenPlace::take(app, &db, caller, &request.task)? {
        Ok(place) => place,
        Err(response) => return Ok(response),
    };
    let started = record_and_launch(app, &db, caller, request, concurrency)?;
    if let (Started::No(_), Some(place)) = (&started, place) {
        place.give_back(&db, &request.task);
    }
    let (Started::Yes(response) | Started::No(response)) = started;
    Ok(response)
}

/// Whether a request has started a task, and the response.
enum Started {
    Yes(Response),
    No(Response),
}

fn record_and_launch(
    app: &App,
    db: &Db,
    caller: &Caller,
    request: &Request,
    concurrency: ConcurrencyPolicy,
) -> Result<Started, Failure> {
    let Request { task, payload, mark, .. } = request;
    // Whoever cleans up must know whose attempt it is.
    let attempt_mark = mark.clone().or_else(|| app.installation().ok().map(RequestMark::accepted_by));
    let mark = mark.as_ref();
    // A discover is recorded once its Pod exists. Before that, another one with this taskId may be running: its result
    // would be older than the record, and lost.
    let is_discover = task.kind == TaskKind::Discover;
    // One with a row may be refused: it must not replace the record of the task that has its id.
    if task.then_run.is_none() {
        outcome::record_attempt(db, task, attempt_mark.as_ref())?;
    }
    let mut started = if task.then_run.is_some() {
        db.start_task(task, mark, concurrency)?
    } else if is_discover {
        StartOutcome::Started
    } else {
        outcome::record_start(db, task, mark, concurrency)?
    };
    let is_second_stage = matches!(&started, StartOutcome::Exists(row) if is_second_stage(app, row, task)?);
    if is_second_stage {
        started = db.start_second_stage(task, mark)?;
    }
    if let StartOutcome::Exists(row) = &started
        && is_same_request(row, mark)
        && let Some(error) = row.error.as_deref().filter(|error| is_retryable(error))
    {
        // The client repeats the request after a 503.
        started = db.restart_task(task, error)?;
    }
    match started {
        StartOutcome::Started => {}
        StartOutcome::Exists(row) if is_same_request(&row, mark) => {
            return Ok(Started::No(accepted(task, &row.status_text)));
        }
        StartOutcome::Exists(row) => {
            let text = if authorize::sees(caller, &row) {
                format!("another request has used this taskId: the task is {}", row.status_text)
            } else {
                "another request has used this taskId".to_owned()
            };
            return Ok(Started::No(conflict(&text, &row.task_id)));
        }
        StartOutcome::SyncBusy(running) if task.is_scheduled() => {
            if is_second_stage {
                let text = format!("task {running} of this sync is running");
                db.close_first_stage(&task.task_id, TaskStatus::Skipped, &text)?;
            }
            // The caller repeats the run at its next time; an error would only alarm its users.
            let token = caller.name();
            tracing::info!(task = task.task_id, running, token, "passed over a scheduled read: its sync is running");
            let fields = json!({"started": false, "taskId": task.task_id, "runningTaskId": running});
            return Ok(Started::No(ok(fields)));
        }
        StartOutcome::SyncBusy(running) => {
            let text = "another task of this sync is running: cancel it or wait for its end";
            return Ok(Started::No(conflict(text, &running)));
        }
    }
    if task.then_run.is_some() {
        outcome::record_attempt(db, task, attempt_mark.as_ref())?;
    }
    let attempt = Uuid::new_v4().to_string();
    let launch = Launch { task, payload, settings: &app.settings.pod, attempt: &attempt, owner: None };
    if request.may_be_delayed {
        match delay_start(app, db, caller, &launch) {
            Ok(true) => return Ok(Started::Yes(accepted(task, TaskStatus::Running.as_str()))),
            Ok(false) => {}
            Err(error) => return launch_failed(app, task, error),
        }
    }
    // The client does not wait until the Pod owns its Secret.
    if let Err(error) = app.backend.launcher.launch(&launch, Ownership::Later) {
        return launch_failed(app, task, error);
    }
    app.metrics.task_started(task.kind, caller.name());
    tracing::info!(pod = task.pod_name(), kind = %task.kind, task = task.task_id, token = caller.name(), "started a task");
    if task.has_row() {
        delete_pod_if_ended(app, task)?;
    }
    if is_discover && let Err(error) = outcome::record_start(db, task, mark, concurrency) {
        // Its result is recorded anyway.
        tracing::warn!(%error, task = task.task_id, "cannot record the start of a discover");
    }
    Ok(Started::Yes(accepted(task, TaskStatus::Running.as_str())))
}

/// Stores a scheduled task that is to start later. False: it is to start now.
fn delay_start(app: &App, db: &Db, caller: &Caller, launch: &Launch<'_>) -> Result<bool, PodError> {
    let task = launch.task;
    let Some(delayed) = app.delayed() else { return Ok(false) };
    let delay = app.spread.delay(&task.sync_id, Instant::now());
    let start_at = Timestamp::now() + delay;
    if delay.is_zero() || !app.backend.is_local() && !db.has_own_schema() {
        return Ok(false);
    }
    let document = app.backend.launcher.prepare(launch, start_at)?;
    if let Some(document) = &document
        && !matches!(db.store_delayed_start(&task.task_id, document), Ok(true))
    {
        // Another process could not start it.
        app.backend.launcher.delete(&task.pod_name(), Some(Duration::ZERO))?;
        return Ok(false);
    }
    let waiting = WaitingTask { pod: task.pod_name(), task: task.clone(), start_at, document };
    let token = caller.name();
    tracing::info!(pod = waiting.pod, task = task.task_id, ?delay, token, "a scheduled task starts later");
    delayed.accept(waiting, delay);
    app.metrics.task_started(task.kind, token);
    Ok(true)
}

/// Whether a read follows a discover under the same id, which the console has requested with `thenRun`.
fn is_second_stage(app: &App, row: &StoredTask, task: &Task) -> Result<bool, Failure> {
    if task.kind != TaskKind::Read || row.sync_id != task.sync_id || !row.awaits_read() {
        return Ok(false);
    }
    // Where the row does not show its request, it may be that of a running read.
    Ok(row.is_first_stage || app.backend.watcher.get(&task.pod_name())?.is_none())
}

/// Whether a task failed because its Pod could not be created at that time.
fn is_retryable(error: &str) -> bool {
    matches!(Failure::from_stored(error).class, Class::ClusterUnreachable | Class::Refused)
}

/// Whether a stored task was started by this very request, which the caller repeats.
fn is_same_request(row: &StoredTask, mark: Option<&RequestMark>) -> bool {
    mark.is_some_and(|mark| row.request.as_deref() == Some(&mark.fingerprint))
}

fn accepted(task: &Task, status: &str) -> Response {
    let mut fields = json!({"startedAt": task.started_at.as_second(), "taskId": task.task_id});
    if task.kind == TaskKind::Read {
        fields["taskStatus"] = json!(status);
    }
    ok(fields)
}

fn conflict(text: &str, task_id: &str) -> Response {
    Response::json(409, &json!({"ok": false, "error": text, "taskId": task_id}))
}

/// Closes the row of a task without a Pod.
fn launch_failed(app: &App, task: &Task, error: PodError) -> Result<Started, Failure> {
    let exists = matches!(error, PodError::Exists { .. });
    let failure = Failure::from(error);
    if exists && task.kind == TaskKind::Discover {
        return Ok(Started::No(conflict("a discover with this taskId is running", &task.task_id)));
    }
    if exists && task.kind == TaskKind::Read {
        // The name of a Pod is unique to its task: an earlier attempt created it, and its response came too late.
        return Ok(Started::Yes(accepted(task, TaskStatus::Running.as_str())));
    }
    let db = app.db_with_long_retry()?;
    let mut recorded = outcome::record_failure(db, task, &failure);
    if task.then_run.is_some() {
        let closed = db.close_first_stage(&task.task_id, TaskStatus::Failed, &failure.to_string());
        recorded = recorded.and(closed.map(drop));
    }
    if let Err(error) = recorded {
        // The reconciler finds the row without a Pod.
        tracing::error!(%error, task = task.task_id, "cannot record that a task failed to start");
    }
    Err(failure)
}

/// Deletes the Pod of a task that was cancelled, or closed by the reconciler, before the Pod existed.
fn delete_pod_if_ended(app: &App, task: &Task) -> Result<(), Failure> {
    let row = app.db()?.task(&task.task_id)?;
    if row.is_some_and(|row| row.status != Some(TaskStatus::Running)) {
        app.backend.launcher.delete(&task.pod_name(), None)?;
    }
    Ok(())
}

/// `GET /tasks`.
pub fn tasks(app: &App, caller: &Caller, query: &[(String, String)]) -> Response {
    respond(params::tasks(query), |(sync_id, limit)| {
        if let Err(denial) = caller.check_sync(&sync_id) {
            return Ok(authorize::denied(caller, &denial));
        }
        let tasks = app.db()?.tasks_of_sync(&sync_id, limit)?;
        let visible = tasks.iter().filter(|row| authorize::sees(caller, row));
        Ok(ok(json!({"tasks": visible.map(task_document).collect::<Vec<_>>()})))
    })
}

/// `GET /tasks/{taskId}`.
pub fn task(app: &App, caller: &Caller, task_id: &str, query: &[(String, String)]) -> Response {
    respond(params::task(query), |log_lines| {
        let log_lines = match log_lines_for(caller, log_lines) {
            Ok(lines) => lines,
            Err(denial) => return Ok(authorize::denied(caller, &denial)),
        };
        let db = app.db()?;
        // Postgres does not store NUL.
        let row = if task_id.contains('\0') { None } else { db.task(task_id)? };
        // One that the caller may not see is answered as one that does not exist.
        let Some(row) = row.filter(|row| authorize::sees(caller, row)) else {
            let text = "no such task: only reads are tasks, the other results are in their tables";
            return Ok(Response::error(404, text));
        };
        let mut task = task_document(&row);
        let of_sync = caller.is_limited().then_some(row.sync_id.as_str());
        task["logs"] = db.last_logs(task_id, of_sync, log_lines)?.iter().map(log_line_document).collect();
        Ok(ok(json!({"task": task})))
    })
}

/// The number of log lines: by default none for a caller that may not read them.
fn log_lines_for(caller: &Caller, given: Option<u32>) -> Result<u32, Denial> {
    match (given, caller.check_verb(Verb::Logs)) {
        (given, Ok(())) => Ok(given.unwrap_or(params::DEFAULT_LOG_LINES)),
        (None | Some(0), Err(_)) => Ok(0),
        (Some(_), Err(denial)) => Err(denial),
    }
}

fn task_document(row: &StoredTask) -> Value {
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

fn log_line_document(line: &LogLine) -> Value {
    let LogLine { level, logger, message, timestamp } = line;
    json!({"timestamp": timestamp, "level": level, "logger": logger, "message": message})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use crate::server::params;
    use crate::task::{CdcDeletion, ReadOptions, TaskKind};

    /// The query parameters of an operation in the OpenAPI document.
    fn documented(path: &str, method: &str) -> BTreeSet<String> {
        let document = super::openapi();
        let resolve = |parameter: &Value| {
            let reference = parameter["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
            reference.map_or_else(|| parameter.clone(), |pointer| document.pointer(pointer).expect("it exists").clone())
        };
        let parameters = document["paths"][path][method]["parameters"].as_array().expect("parameters");
        let in_query = parameters.iter().map(resolve).filter(|parameter| parameter["in"] == "query");
        in_query.map(|parameter| parameter["name"].as_str().expect("a name").to_owned()).collect()
    }

    #[test]
    fn documented_parameters_are_parsed() {
        type Parse = fn(&[(String, String)]) -> Option<params::Problems>;
        let operations: [(&str, &str, Parse); 6] = [
            ("/spec", "get", |query| params::spec(query).err()),
            ("/check", "post", |query| params::configured(TaskKind::Check, query, b"{}", &"key".into(), "i").err()),
            ("/discover", "post", |query| {
                params::configured(TaskKind::Discover, query, b"{}", &"key".into(), "i").err()
            }),
            ("/cancel", "get", |query| params::cancel(query).err()),
            ("/tasks", "get", |query| params::tasks(query).err()),
            ("/tasks/{taskId}", "get", |query| params::task(query).err()),
        ];
        for (path, method, parse) in operations {
            for name in documented(path, method) {
                let pair = (name.clone(), "1".to_owned());
                let problems = parse(&[pair.clone(), pair]).expect("problems");
                assert!(problems.contains(&format!("{name} is set more than once")), "{path}: {name}: {problems:?}");
            }
        }
    }

    #[test]
    fn options_of_a_read_are_documented() {
        let (silence_seconds, max_records, cdc_deletion) = (Some(1), Some(1), Some(CdcDeletion::Hard));
        let options = ReadOptions { cdc_deletion, silence_seconds, max_records, ..ReadOptions::default() };
        let options = serde_json::to_value(options).expect("plain fields");
        let mut expected: BTreeSet<String> = options.as_object().expect("an object").keys().cloned().collect();
        expected.extend(["syncId", "taskId", "nodelay"].map(str::to_owned));
        // Not a parameter: it follows from the others.
        expected.remove("consoleOverwrite");
        expected.extend(documented("/spec", "get"));
        assert_eq!(documented("/read", "post"), expected);
    }
}
