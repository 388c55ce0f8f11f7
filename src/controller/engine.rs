//! Where the tasks of this process run, and where their results are kept, as the settings say.

use serde_json::json;

use crate::config::{Engine, Settings};
use crate::db::local_server::{DATABASE, LocalServer, PORT, SCHEMA, USER};
use crate::failure::Failure;
use crate::pod::Backend;
use crate::pod::kubernetes::Cluster;
use crate::pod::local::Machine;
use crate::secret::Secret;

/// Connects to the cluster, or makes this machine ready.
pub fn open(settings: &Settings) -> Result<Backend, Failure> {
    Ok(match &settings.engine {
        Engine::Kubernetes(client) => Cluster::connect(client)?.into(),
        Engine::Local(local) => Machine::open(local.clone())?.into(),
    })
}

/// Has the embedded database run, where it is the one to use, as long as what is returned is held.
pub fn database(mut settings: Settings) -> Result<(Settings, Option<LocalServer>), Failure> {
    let Some(home) = &settings.embedded else { return Ok((settings, None)) };
    let database = LocalServer::start(home)?;
    settings.database_url = Secret::from(database.url());
    settings.pod.sidecar_database_url = settings.database_url.clone();
    let warehouse = json!({
        "destinationType": "postgres",
        "host": database.socket_directory(),
        "port": PORT,
        "database": DATABASE,
        "username": USER,
        "password": "",
        "defaultSchema": SCHEMA,
        "sslMode": "disable",
    });
    settings.warehouse = Some(warehouse.to_string());
    Ok((settings, Some(database)))
}
