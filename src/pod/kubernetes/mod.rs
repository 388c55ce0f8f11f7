//! Pods in a namespace of a Kubernetes cluster. The only place with kube and async.
//!
//! The client has a runtime of its own; to the outside everything blocks.

pub mod client;
mod features;
mod lease;
mod logs;
mod objects;
mod own_pod;
mod partial;
mod rights;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::runtime::Runtime;

use features::Feature;
pub use own_pod::{OwnContainer, own_container};

use super::manifest::Launch;
use super::{
    ApiServer, Backend, Callback, Coordination, Launcher, LeaderElection, Leadership, Ownership, PodError, PodEvent,
    PodOfTask, PodRef, Scope, SecretStore, Subscription, TaskPod, WaitingTask, Watcher,
};

/// A connection to a namespace of a cluster.
pub struct Cluster {
    runtime: Runtime,
    api: client::Api,
}

impl Cluster {
    /// Reads the client configuration; the first call shows whether the API server is there.
    pub fn connect(settings: &client::ClientSettings) -> Result<Self, PodError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("kubernetes")
            .enable_all()
            .build()
            .map_err(|error| PodError::Kubeconfig(format!("cannot start the client's runtime: {error}")))?;
        let api = runtime.block_on(client::connect(settings))?;
        Ok(Self { runtime, api })
    }

    /// Runs a call on the runtime's thread, where its connection is driven. Driven from the caller's thread each step
    /// would be a switch between threads, which hundreds of concurrent callers notice.
    fn on_runtime<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, PodError>> + Send + 'static,
    ) -> Result<T, PodError> {
        match self.runtime.block_on(self.runtime.spawn(call)) {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

impl From<Cluster> for Backend {
    fn from(cluster: Cluster) -> Self {
        let cluster = Arc::new(cluster);
        Self {
            launcher: cluster.clone(),
            watcher: cluster.clone(),
            coordination: cluster.clone(),
            secrets: Some(cluster.clone()),
            api_server: Some(cluster),
            shutdown: None,
        }
    }
}

impl Launcher for Cluster {
    fn location(&self) -> String {
        format!("in namespace {}", self.api.namespace)
    }

    fn launch(&self, launch: &Launch<'_>, ownership: Ownership) -> Result<PodRef, PodError> {
        let objects = launch.objects()?;
        let (api, attempt) = (self.api.clone(), launch.attempt.to_owned());
        self.on_runtime(async move { api.launch(&objects, &attempt, ownership).await })
    }

    fn prepare(&self, launch: &Launch<'_>, start_at: Timestamp) -> Result<Option<String>, PodError> {
        let objects = launch.objects()?;
        let (api, attempt) = (self.api.clone(), launch.attempt.to_owned());
        self.on_runtime(async move { api.prepare(objects, &attempt, start_at).await }).map(Some)
    }

    /// None: no object of the cluster holds them.
    fn waiting(&self) -> Result<Vec<WaitingTask>, PodError> {
        Ok(Vec::new())
    }

    fn start_waiting(&self, waiting: &WaitingTask) -> Result<bool, PodError> {
        self.runtime.block_on(self.api.start_waiting(waiting))
    }

    fn delete(&self, pod: &str, grace: Option<Duration>) -> Result<(), PodError> {
        self.runtime.block_on(self.api.delete(pod, grace))
    }

    fn delete_exact(&self, pod: &PodRef, grace: Option<Duration>) -> Result<(), PodError> {
        let (api, pod) = (self.api.clone(), pod.clone());
        self.on_runtime(async move { api.delete_exact(&pod, grace).await })
    }

    fn wait_deleted(&self, pod: &str, limit: Duration) -> Result<(), PodError> {
        self.runtime.block_on(self.api.wait_deleted(pod, limit))
    }

    /// Whether the API server answers within two seconds and lets us list Pods.
    fn check_reachable(&self) -> Result<(), PodError> {
        self.runtime.block_on(self.api.check_reachable())
    }
}

impl Watcher for Cluster {
    fn list(&self) -> Result<Vec<TaskPod>, PodError> {
        self.runtime.block_on(self.api.list_pods())
    }

    fn find(&self, task_id: &str) -> Result<Vec<PodOfTask>, PodError> {
        self.runtime.block_on(self.api.find_pods(task_id))
    }

    fn get(&self, name: &str) -> Result<Option<TaskPod>, PodError> {
        Ok(self.runtime.block_on(self.api.get_pod(name))?.as_ref().map(TaskPod::of))
    }

    /// `on_event` is called on the client's only thread.
    fn watch(&self, scope: Scope<'_>, resync: Duration, on_event: Callback<PodEvent>) -> Subscription {
        Box::new(watch::start(&self.runtime, self.api.clone(), scope, resync, on_event))
    }
}

impl SecretStore for Cluster {
    fn adopt_secrets(&self, pod: &PodRef) -> Result<(), PodError> {
        self.runtime.block_on(self.api.adopt_secrets(pod))
    }

    fn delete_secrets_of(&self, pod: &PodRef) -> Result<(), PodError> {
        let (api, pod) = (self.api.clone(), pod.clone());
        self.on_runtime(async move { api.delete_secrets_of(&pod).await })
    }
}

impl ApiServer for Cluster {
    fn examine_rights(&self) -> Result<Vec<String>, PodError> {
        self.runtime.block_on(self.api.examine_rights())
    }

    fn warnings(&self, pod: &str) -> Vec<String> {
        self.runtime.block_on(self.api.warnings(pod))
    }

    fn last_lines(&self, pod: &str, container: &str, lines: u16) -> Result<String, PodError> {
        self.runtime.block_on(self.api.last_lines(pod, container, lines))
    }

    fn secret_data(&self, pod: &PodRef) -> Result<BTreeMap<String, Vec<u8>>, PodError> {
        self.runtime.block_on(self.api.secret_data(pod))
    }

    /// No answer, 5xx or 429. A call that succeeded when the client repeated it does not count.
    fn failed_calls(&self) -> u64 {
        self.api.failed_calls()
    }
}

impl Coordination for Cluster {
    /// The uid of the Lease, which is created if missing; without a right to it, an id of the namespace.
    fn installation_id(&self) -> Result<String, PodError> {
        if self.api.lacking.contains(Feature::LeaderElection) {
            return Ok(self.api.id.clone());
        }
        self.runtime.block_on(self.api.lease_uid())
    }

    /// `on_change` is called on the client's only thread.
    fn join_election(
        &self,
        identity: &str,
        lease: Duration,
        on_change: Callback<Leadership>,
    ) -> Box<dyn LeaderElection> {
        if self.api.lacking.contains(Feature::LeaderElection) {
            on_change(Leadership::Leads { term: 0 });
            return Box::new(lease::Unopposed);
        }
        Box::new(lease::Election::start(&self.runtime, self.api.clone(), identity, lease, on_change))
    }
}
