//! What command line and HTTP service share: the request, the lifecycle of its task, the outcome, the cleanup.

pub mod cleanup;
pub mod console;
pub mod delayed_starts;
mod destination;
pub mod document;
mod failure_log;
pub mod lifecycle;
pub mod one_shot;
pub mod outcome;
pub mod reconciler;
pub mod request;
mod start_log;
mod unrecorded;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::config::{Engine, OwnImage, Settings};
use crate::db::local_server::{self, DATA_SCHEMA, DATABASE, LOADER, LocalServer, OWN_SCHEMA, PORT};
use crate::db::{Db, Options, Target};
use crate::failure::{Class, Failure};
use crate::pod::Backend;
use crate::pod::isolation::Isolation;
use crate::pod::kubernetes::{Cluster, OwnContainer, own_container};
use crate::pod::local::LocalBackend;
use crate::secret::Secret;

/// Opens the backend that runs tasks: a cluster, or this machine.
pub fn open_backend(settings: &Settings) -> Result<Backend, Failure> {
    Ok(match &settings.engine {
        Engine::Kubernetes(client) => Cluster::connect(client)?.into(),
        Engine::Local(local) => LocalBackend::open(local.clone())?.into(),
    })
}

/// How long a command retries operations of the database.
const DATABASE_RETRY_TIMEOUT: Duration = Duration::from_mins(1);

/// Opens the database of results for a one-off command, and creates the tables that are missing.
pub fn open_database(settings: &Settings) -> Result<Db, Failure> {
    let target = Target::parse(&settings.database_url, "SYNCCTL_DATABASE_URL")?;
    let options = Options {
        application_name: "syncctl".to_owned(),
        pool_size: 2,
        retry_timeout: DATABASE_RETRY_TIMEOUT,
        own_schema: settings.own_schema().to_owned(),
    };
    let db = Db::open(target, options)?;
    db.ensure_schema()?;
    Ok(db)
}

/// Finds out whether a service can isolate what it runs on this machine. An error where it cannot and must.
pub fn examine_isolation(mut settings: Settings, allow_unisolated: bool) -> Result<Settings, Failure> {
    let Engine::Local(local) = &mut settings.engine else { return Ok(settings) };
    if !local.may_run_packages() {
        return Ok(settings);
    }
    match local.isolation.insert(Isolation::probe()) {
        isolation @ Isolation::Available { .. } => tracing::info!(%isolation, "connectors are isolated"),
        Isolation::Unavailable(reason) if allow_unisolated => tracing::warn!(
            reason,
            "connectors that are Python packages are not isolated: they can do whatever this service can, and read its tokens"
        ),
        Isolation::Unavailable(reason) => {
            let text = format!("connectors that are Python packages cannot be isolated from this service: {reason}");
            let hint = "run the service as root or where user namespaces are allowed, run images alone with \
                        SYNCCTL_LOCAL_RUNTIME=docker or podman, or trust every connector: --allow-unisolated";
            return Err(Failure::new(Class::Usage, text).with_hint(hint));
        }
    }
    Ok(settings)
}

/// Completes settings without an image of the sidecar that can run: it is the one of this program's own Pod.
pub fn use_own_image(mut settings: Settings) -> Result<Settings, Failure> {
    let Some(OwnImage { pod, instead_of }) = settings.own_image.take() else { return Ok(settings) };
    let OwnContainer { image, pull_secrets } = own_container(&pod).map_err(|error| match Failure::from(error) {
        failure if failure.class == Class::ClusterUnreachable => failure,
        failure => {
            let text =
                format!("SYNCCTL_SIDECAR_IMAGE is not set, and the image of this program is unknown: {}", failure.text);
            let hint = "set SYNCCTL_SIDECAR_IMAGE to an image of this program, or grant get on pods in its namespace";
            Failure::new(Class::Usage, text).with_hint(hint)
        }
    })?;
    match instead_of {
        None => tracing::info!(image, "the sidecar has the image of this program"),
        Some(foreign) => tracing::warn!(
            image,
            "the sidecar has the image of this program instead of {foreign}: that one needs SYNCCTL_INIT_IMAGE, an image \
             with a shell such as alpine:3"
        ),
    }
    settings.pod.sidecar_image = image;
    settings.pod.pull_secrets = pull_secrets;
    Ok(settings)
}

/// Starts the embedded database if the settings select it, and completes the settings with its URL. It runs at least as
/// long as the returned server is held.
pub fn start_database(mut settings: Settings) -> Result<(Settings, Option<LocalServer>), Failure> {
    let Some(directory) = &settings.embedded else { return Ok((settings, None)) };
    let database = LocalServer::start(directory)?;
    prepare_rows(&settings)?;
    settings.database_url = Secret::from(database.results_url());
    settings.pod.sidecar_database_url = settings.database_url.clone();
    OWN_SCHEMA.clone_into(&mut settings.pod.own_schema);
    let warehouse = json!({
        "destinationType": "postgres",
        "host": database.socket_directory(),
        "port": PORT,
        "database": DATABASE,
        "username": LOADER,
        "password": "",
        "defaultSchema": DATA_SCHEMA,
        "sslMode": "disable",
        // A first look shows the rows that the source has, as Airbyte's destinations do. Destinations with a configuration
        // of their own behave as the existing implementation, which keeps deleted rows.
        "cdcDeletion": "hard",
    });
    settings.warehouse = Some(warehouse.to_string());
    Ok((settings, Some(database)))
}

/// Prepares the embedded database, if the settings select it, for rows: the user may have created tables since it started.
pub fn prepare_rows(settings: &Settings) -> Result<(), Failure> {
    let Some(directory) = &settings.embedded else { return Ok(()) };
    for line in local_server::hand_over_rows(directory)? {
        tracing::warn!("{line}");
    }
    Ok(())
}

/// The exit code of a program that a user interrupted.
const INTERRUPTED: i32 = 130;

/// Handles INT, TERM and HUP until it is dropped: the first signal cancels, the second ends the process at once.
pub struct Cancellation {
    is_requested: Arc<AtomicBool>,
    handle: Handle,
}

impl Cancellation {
    /// Calls `on_signal` at the first signal.
    pub fn install(on_signal: impl Fn() + Send + 'static) -> Result<Self, Failure> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
            .map_err(|error| Failure::new(Class::Internal, format!("cannot install signal handlers: {error}")))?;
        let is_requested = Arc::new(AtomicBool::new(false));
        let handle = signals.handle();
        let flag = Arc::clone(&is_requested);
        std::thread::spawn(move || {
            for _ in signals.forever() {
                if flag.swap(true, Ordering::SeqCst) {
                    std::process::exit(INTERRUPTED);
                }
                on_signal();
            }
        });
        Ok(Self { is_requested, handle })
    }

    /// Whether a signal has arrived.
    pub fn is_requested(&self) -> bool {
        self.is_requested.load(Ordering::SeqCst)
    }
}

impl Drop for Cancellation {
    fn drop(&mut self) {
        self.handle.close();
    }
}
