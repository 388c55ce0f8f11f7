//! Where the tasks of this process run, as the settings say.

use std::sync::Arc;

use crate::config::{Engine, Settings};
use crate::failure::Failure;
use crate::pod::Pods;
use crate::pod::kubernetes::Cluster;
use crate::pod::local::Machine;

/// Connects to the cluster, or makes this machine ready.
pub fn open(settings: &Settings) -> Result<Arc<dyn Pods>, Failure> {
    Ok(match &settings.engine {
        Engine::Kubernetes(client) => Arc::new(Cluster::connect(client)?),
        Engine::Local(local) => Arc::new(Machine::open(local.clone())?),
    })
}
