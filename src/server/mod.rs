//! `syncctl serve`: the documented HTTP service.
//!
//! Its parts: [`guard`] and [`http`] receive requests and know nothing of tasks, [`routes`] and [`handlers`] answer them,
//! [`app`] holds what all of them need. [`controller::reconciler`](crate::controller::reconciler) follows the tasks.

mod app;
pub mod auth;
mod guard;
mod handlers;
mod http;
mod instance;
mod metrics;
mod params;
mod routes;
mod service;
#[cfg(test)]
mod tests;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use app::App;
use auth::Tokens;
use guard::{Guard, Limits};
use routes::Routes;

use crate::config::{ServeSettings, Settings};
use crate::controller::reconciler::{self, Reconciler};
use crate::controller::{Cancellation, open_backend};
use crate::db::{Db, Options, Target};
use crate::failure::{Class, Failure};

/// How long an operation of the database is repeated before its job goes back to the end of the queue.
const PATIENCE: Duration = Duration::from_secs(15);
/// Connections to the database: requests and outcomes share them.
const CONNECTIONS: u32 = 16;
/// Between two tries to reach what is not there yet.
const RETRY: Duration = Duration::from_secs(1);
/// How long requests that are being answered may take when the process ends: within the usual 30 s of a Pod's end.
const DRAIN: Duration = Duration::from_secs(20);

/// So many of the largest bodies are in memory at a time; each a second time while it is made ready for the cluster.
const BODIES: usize = 2;

/// Why the service ends.
enum End {
    /// It was asked to.
    Asked,
    /// It cannot go on.
    Broken(String),
}

/// Serves until the process is asked to end.
pub fn serve(settings: Settings, serve: ServeSettings) -> Result<(), Failure> {
    let auth = &serve.auth;
    let tokens = Tokens::parse(auth.tokens.as_ref(), auth.raw_tokens.as_ref(), auth.secrets.as_ref())?;
    if tokens.is_open() {
        tracing::warn!("SYNCCTL_AUTH_TOKENS is not set: everybody who reaches this service may use it");
    }
    let instance = serve.instance_id.clone().unwrap_or_else(instance::kept);
    let listener = TcpListener::bind(serve.address).map_err(|error| {
        let text = format!("listening on {}: {error}", serve.address);
        Failure::new(Class::Usage, text).with_hint("set SYNCCTL_HTTP_PORT to a free port")
    })?;
    let (end, ends) = mpsc::channel();
    let cancellation = Cancellation::install({
        let end = end.clone();
        move || drop(end.send(End::Asked))
    })?;
    let (died, deaths) = mpsc::channel();
    let backend = open_backend(&settings)?;
    let limits = Limits {
        connections: serve.max_connections,
        body_bytes: serve.max_body,
        total_body_bytes: serve.max_body.saturating_mul(BODIES),
        ..Limits::default()
    };
    let app = Arc::new(App::new(settings, serve, tokens, backend, &instance, died));
    forward_deaths(deaths, end.clone());
    let server = Guard::start(listener, limits, Arc::new(Routes(Arc::clone(&app))), {
        let end = end.clone();
        move |error| drop(end.send(End::Broken(error.to_string())))
    })
    .map_err(|error| Failure::new(Class::Internal, format!("starting the HTTP server: {error}")))?;
    tracing::info!(address = %server.address(), instance, version = env!("CARGO_PKG_VERSION"), "the service listens");
    let result = serve_until(&app, &instance, &ends);
    app.ready.stopping();
    server.stop(DRAIN);
    if let Some(shutdown) = &app.backend.shutdown {
        shutdown.end_tasks();
    }
    drop(cancellation);
    tracing::info!("the service has ended");
    result
}

fn forward_deaths(deaths: Receiver<&'static str>, end: Sender<End>) {
    std::thread::spawn(move || {
        if let Ok(name) = deaths.recv() {
            end.send(End::Broken(format!("the thread {name:?} has died"))).ok();
        }
    });
}

/// Connects, starts what runs in the background, and waits for the end.
fn serve_until(app: &Arc<App>, instance: &str, ends: &Receiver<End>) -> Result<(), Failure> {
    let (db, marker) = match connect(app, ends) {
        Ok(Some(connected)) => connected,
        Ok(None) => return Ok(()),
        Err(failure) => return Err(failure),
    };
    app.connected(db.clone(), marker.clone());
    let config = reconciler::Config {
        backend: app.backend.clone(),
        db,
        installation: marker,
        identity: instance.to_owned(),
        resync: app.settings.status_check,
        limits: reconciler::Limits {
            init_timeout: app.settings.init_timeout,
            grace: Duration::from_secs(u64::from(app.settings.pod.grace_seconds)),
        },
        log_rows: app.serve.log_rows,
        log_age: app.serve.log_age,
    };
    let reconciler = Reconciler::start(config, Arc::clone(app) as Arc<dyn reconciler::Observer>);
    let result = match ends.recv() {
        Ok(End::Asked) | Err(_) => Ok(()),
        Ok(End::Broken(why)) => Err(Failure::new(Class::Internal, why)),
    };
    app.ready.stopping();
    reconciler.stop();
    result
}

/// Waits for database and API server: where everything starts at once neither may be there yet. What will not pass by
/// itself is an error; `None`: the process was asked to end meanwhile.
fn connect(app: &App, ends: &Receiver<End>) -> Result<Option<(Db, String)>, Failure> {
    let (mut db, mut marker) = (None, None);
    let mut told = Instant::now().checked_sub(Duration::from_mins(1));
    loop {
        let mut waits = None;
        if db.is_none() {
            match open(app) {
                Ok(open) => db = Some(open),
                Err(failure) if failure.class == Class::DatabaseUnreachable => waits = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        if marker.is_none() {
            match app.backend.coordination.installation_id().map_err(Failure::from) {
                Ok(uid) => marker = Some(uid),
                Err(failure) if failure.class == Class::ClusterUnreachable => waits = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        if let (Some(db), Some(marker)) = (&db, &marker) {
            return Ok(Some((Db::clone(db), marker.clone())));
        }
        app.ready.database(db.is_some());
        app.ready.cluster(marker.is_some());
        if let Some(failure) = waits.filter(|_| told.is_none_or(|told| told.elapsed() > Duration::from_secs(30))) {
            tracing::warn!(error = %failure, "waiting for it");
            told = Some(Instant::now());
        }
        match ends.recv_timeout(RETRY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(End::Asked) | Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Ok(End::Broken(why)) => return Err(Failure::new(Class::Internal, why)),
        }
    }
}

fn open(app: &App) -> Result<Db, Failure> {
    let target = Target::parse(&app.settings.database_url, "SYNCCTL_DATABASE_URL")?;
    let options =
        Options { application_name: "syncctl serve".to_owned(), pool_size: CONNECTIONS, retry_timeout: PATIENCE };
    let db = Db::open(target, options).map_err(waiting)?;
    db.ensure_schema().map_err(waiting)?;
    Ok(db)
}

/// A wrong password or a missing database are told as unreachable, too, and no waiting helps them.
fn waiting(error: crate::db::DbError) -> Failure {
    let transient = error.is_transient();
    let failure = Failure::from(error);
    if transient || failure.class != Class::DatabaseUnreachable {
        return failure;
    }
    Failure::new(Class::DatabaseError, failure.text)
        .with_hint("check SYNCCTL_DATABASE_URL: its host, database, user and password")
}
