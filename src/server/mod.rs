//! `syncctl serve`: the HTTP service.
//!
//! [`guard`] and [`http`] receive requests and know nothing of tasks. [`routes`] finds their callers, [`params`] parses them,
//! [`authorize`] checks what their callers may do, and [`handlers`] handle them with the functions that the command line uses, too. The
//! [reconciler](crate::controller::reconciler) follows the tasks; [`app`] is the state that all share.

mod app;
pub mod auth;
mod authorize;
mod cancel;
mod guard;
mod handlers;
mod http;
mod metrics;
mod params;
mod routes;
mod service;
mod spread;
#[cfg(test)]
mod tests;
mod tls;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use app::{App, Shutdown};
use auth::Tokens;
use guard::{Guard, Limits};
use routes::Routes;
use tls::Tls;

use crate::config::{ServeSettings, Settings};
use crate::controller::console::Console;
use crate::controller::delayed_starts::{DelayedStarts, DelayedStartsThread};
use crate::controller::reconciler::{self, Reconciler};
use crate::controller::{Cancellation, open_backend, outcome};
use crate::db::{Db, DbError, Options, Target};
use crate::failure::{Class, Failure};
use crate::pod::PodError;
use crate::task::{Task, TaskStatus};

/// How long the reconciler retries database operations before it postpones a job.
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);
/// Connections to the database, shared by requests and the reconciler.
const DB_POOL_SIZE: u32 = 16;
/// The pause between attempts to connect at the start.
const CONNECT_INTERVAL: Duration = Duration::from_secs(1);
/// How often to log that the service still cannot connect.
const LOG_INTERVAL: Duration = Duration::from_secs(30);
/// How long busy requests may take at shutdown: within the default termination grace period of 30 s.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// Bodies of the maximum size in memory at a time, of which one client has two at most. Preparing one for the cluster takes
/// its size once more.
const LARGE_BODIES: usize = 3;

/// Serves until the process receives a signal.
pub fn serve(settings: Settings, serve: ServeSettings) -> Result<(), Failure> {
    let auth = &serve.auth;
    let tokens = Tokens::parse(auth.tokens.as_ref(), auth.raw_tokens.as_ref(), auth.secrets.as_ref())?;
    let tokens = match &auth.file {
        Some(path) => tokens.with_file(path)?,
        None => tokens,
    };
    if tokens.is_open() {
        tracing::warn!("SYNCCTL_AUTH_TOKENS is not set: the service accepts requests without a token");
    }
    if tokens.has_public_secret() {
        tracing::warn!(
            "SYNCCTL_TOKEN_SECRET is not set: the hashes of tokens are compared with a public secret, so anyone \
             who reads them can test guesses of the tokens offline; set a secret and create new hashes with `syncctl token`"
        );
    }
    let tls = serve.tls.clone().map(Tls::load).transpose()?;
    let instance_id = serve.instance_id.clone().unwrap_or_else(app::stored_instance_id);
    let listener = TcpListener::bind(serve.address).map_err(|error| {
        Failure::new(Class::Usage, format!("cannot listen on {}: {error}", serve.address))
            .with_hint("set SYNCCTL_HTTP_PORT to a free port")
    })?;
    let (shutdown, shutdowns) = mpsc::channel();
    let cancellation = Cancellation::install({
        let shutdown = shutdown.clone();
        move || drop(shutdown.send(Shutdown::Requested))
    })?;
    let backend = open_backend(&settings)?;
    let limits = Limits {
        connections: serve.max_connections,
        head_timeout: serve.idle_timeout,
        idle_timeout: serve.idle_timeout,
        body_bytes: serve.max_body,
        total_bytes: serve.max_body.saturating_mul(LARGE_BODIES),
        ..Limits::default()
    };
    let app = Arc::new(App::new(settings, serve, tokens, backend, &instance_id, shutdown.clone()));
    let on_failure = move |error: std::io::Error| drop(shutdown.send(Shutdown::Failed(error.to_string())));
    let guard = Guard::start(listener, tls, limits, Arc::new(Routes(Arc::clone(&app))), on_failure)
        .map_err(|error| Failure::new(Class::Internal, format!("cannot start the HTTP server: {error}")))?;
    tracing::info!(address = %guard.address(), instance_id, version = env!("CARGO_PKG_VERSION"), "listening");
    let result = run_reconciler(&app, &instance_id, &shutdowns);
    app.readiness.set_stopping();
    guard.stop(DRAIN_TIMEOUT);
    if let Some(shutdown) = &app.backend.shutdown {
        cancel(&app, &shutdown.tasks());
        shutdown.end_tasks();
    }
    drop(cancellation);
    tracing::info!("stopped");
    result
}

/// Records that tasks end with the service, before they do: no other process knows why.
fn cancel(app: &App, tasks: &[Task]) {
    let failure = Failure::new(Class::Cancelled, "the service that ran the task was shut down");
    for task in tasks {
        let recorded = app.db().and_then(|db| {
            if task.then_run.is_some() {
                // No read follows the discover.
                db.close_first_stage(&task.task_id, TaskStatus::Cancelled, &failure.to_string())?;
            }
            Ok(outcome::record_failure(&db, task, &failure)?)
        });
        if let Err(error) = recorded {
            tracing::warn!(%error, task = task.task_id, "cannot record that a task is cancelled");
        }
    }
}

/// Connects, and runs the reconciler until the service shuts down.
fn run_reconciler(app: &Arc<App>, instance_id: &str, shutdowns: &Receiver<Shutdown>) -> Result<(), Failure> {
    let Some((db, installation)) = connect(app, shutdowns)? else { return Ok(()) };
    let delayed = Arc::new(DelayedStarts::new(app.backend.clone(), db.clone(), &app.settings));
    let delayed_thread = DelayedStartsThread::start(&delayed);
    app.set_connected(db.clone(), installation.clone(), Arc::clone(&delayed));
    let config = reconciler::Config {
        backend: app.backend.clone(),
        db,
        delayed,
        console: app.serve.console.clone().map(Console::new),
        installation,
        identity: instance_id.to_owned(),
        resync: app.settings.status_check,
        limits: reconciler::Limits {
            init_timeout: app.settings.init_timeout,
            grace: Duration::from_secs(u64::from(app.settings.pod.grace_seconds)),
        },
        log_level: app.settings.pod.db_log_level.clone(),
        retention: app.serve.retention,
    };
    let reconciler = Reconciler::start(config, Arc::clone(app) as Arc<dyn reconciler::Observer>);
    let result = match shutdowns.recv() {
        Ok(Shutdown::Requested) | Err(_) => Ok(()),
        Ok(Shutdown::Failed(why)) => Err(Failure::new(Class::Internal, why)),
    };
    app.readiness.set_stopping();
    reconciler.stop();
    drop(delayed_thread);
    result
}

/// Waits for the database and the API server, which may start later than the service; returns the database and the
/// installation id. Fails at once where waiting cannot help; `None` if the process is to end.
fn connect(app: &App, shutdowns: &Receiver<Shutdown>) -> Result<Option<(Db, String)>, Failure> {
    let (mut db, mut installation) = (None, None);
    let mut logged: Option<Instant> = None;
    loop {
        let mut unreachable = None;
        if db.is_none() {
            match open_db(app) {
                Ok(open) => db = Some(open),
                Err(failure) if failure.class == Class::DatabaseUnreachable => unreachable = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        if installation.is_none() {
            match examine_cluster(app).map_err(Failure::from) {
                Ok(id) => installation = Some(id),
                Err(failure) if failure.class == Class::ClusterUnreachable => unreachable = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        if let (Some(db), Some(installation)) = (&db, &installation) {
            return Ok(Some((Db::clone(db), installation.clone())));
        }
        app.readiness.set_database(db.is_some());
        app.readiness.set_cluster(installation.is_some());
        if let Some(failure) = unreachable.filter(|_| logged.is_none_or(|logged| logged.elapsed() > LOG_INTERVAL)) {
            tracing::warn!(error = %failure, "cannot connect; retrying");
            logged = Some(Instant::now());
        }
        match shutdowns.recv_timeout(CONNECT_INTERVAL) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Shutdown::Requested) | Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Ok(Shutdown::Failed(why)) => return Err(Failure::new(Class::Internal, why)),
        }
    }
}

/// Logs which features the rights do not allow; returns the installation id.
fn examine_cluster(app: &App) -> Result<String, PodError> {
    if let Some(api_server) = &app.backend.api_server {
        for lost in api_server.examine_rights()? {
            tracing::warn!("{lost}");
        }
    }
    app.backend.coordination.installation_id()
}

fn open_db(app: &App) -> Result<Db, Failure> {
    let target = Target::parse(&app.settings.database_url, "SYNCCTL_DATABASE_URL")?;
    let options = Options {
        application_name: "syncctl serve".to_owned(),
        pool_size: DB_POOL_SIZE,
        retry_timeout: RETRY_TIMEOUT,
        own_schema: app.settings.own_schema().to_owned(),
    };
    let db = Db::open(target, options).map_err(permanent)?;
    db.ensure_schema().map_err(permanent)?;
    Ok(db)
}

/// Reports an error that waiting cannot help, such as an invalid password, as a class other than
/// [`Class::DatabaseUnreachable`].
fn permanent(error: DbError) -> Failure {
    let is_transient = error.is_transient();
    let failure = Failure::from(error);
    if is_transient || failure.class != Class::DatabaseUnreachable {
        return failure;
    }
    Failure::new(Class::DatabaseError, failure.text)
        .with_hint("check SYNCCTL_DATABASE_URL: its host, database, user and password")
}
