//! Pods in a namespace of a Kubernetes cluster. The only place with kube and async.
//!
//! The client lives on a runtime of its own; to the outside everything is blocking.

mod api;
mod changes;
pub mod client;
mod follow;
mod launch;
mod lean;
mod lease;
#[cfg(test)]
mod tests;
mod watch;

use std::time::Duration;

use kube::Client;
use tokio::runtime::Runtime;

use super::manifest::Launch;
use super::{Event, Guard, Launched, Leadership, Owned, Ownership, PodError, Pods, Update};

/// A connection to a namespace of a cluster.
pub struct Cluster {
    runtime: Runtime,
    api: api::Api,
}

impl Cluster {
    /// Connects. Reads the configuration but makes no call: the first one tells whether the server is there.
    pub fn connect(settings: &client::ClientSettings) -> Result<Self, PodError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("kubernetes")
            .enable_all()
            .build()
            .map_err(|error| PodError::Kubeconfig(format!("starting the client's runtime: {error}")))?;
        let (client, namespace, server): (Client, String, String) = runtime.block_on(client::connect(settings))?;
        Ok(Self { runtime, api: api::Api::new(client, namespace, server) })
    }

    /// Runs a call where its connection is driven. Driven from the caller's thread, each step of it would be a word from
    /// thread to thread; hundreds of callers at a time feel that.
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

impl Pods for Cluster {
    fn place(&self) -> String {
        format!("in namespace {}", self.api.namespace)
    }

    fn launch(&self, launch: &Launch<'_>, ownership: Ownership) -> Result<Launched, PodError> {
        let objects = launch.objects()?;
        let (api, attempt) = (self.api.clone(), launch.attempt.to_owned());
        self.on_runtime(async move { api.launch(&objects, &attempt, ownership).await })
    }

    fn follow(&self, pod: &str, resync: Duration, tell: Box<dyn Fn(Update) + Send>) -> Guard {
        Box::new(follow::Follower::start(&self.runtime, self.api.clone(), pod.to_owned(), resync, tell))
    }

    fn warnings(&self, pod: &str) -> Vec<String> {
        self.runtime.block_on(self.api.warnings(pod))
    }

    fn delete(&self, pod: &str, grace: Option<Duration>) -> Result<(), PodError> {
        self.runtime.block_on(self.api.delete(pod, grace))
    }

    fn wait_gone(&self, pod: &str, limit: Duration) -> Result<(), PodError> {
        self.runtime.block_on(self.api.wait_gone(pod, limit))
    }

    fn delete_secret(&self, name: &str) -> Result<(), PodError> {
        self.runtime.block_on(self.api.delete_secret(name))
    }

    fn pods(&self) -> Result<Vec<Owned>, PodError> {
        self.runtime.block_on(self.api.pods())
    }

    fn secrets(&self) -> Result<Vec<Owned>, PodError> {
        self.runtime.block_on(self.api.secrets())
    }

    fn own_secrets(&self, pod: &str, uid: &str, secrets: usize) -> Result<(), PodError> {
        self.runtime.block_on(self.api.own_secrets(pod, uid, secrets))
    }

    /// `tell` is called on the client's only thread.
    fn watch(&self, resync: Duration, tell: Box<dyn Fn(Event) + Send>) -> Guard {
        Box::new(watch::Watch::start(&self.runtime, self.api.clone(), resync, tell))
    }

    /// `tell` is called on the client's only thread.
    fn campaign(
        &self,
        identity: &str,
        lasts: Duration,
        tell: Box<dyn Fn(Leadership) + Send>,
    ) -> Box<dyn super::Campaign> {
        Box::new(lease::Campaign::start(&self.runtime, self.api.clone(), identity, lasts, tell))
    }

    /// The uid of the Lease, which is made if need be.
    fn installation(&self) -> Result<String, PodError> {
        self.runtime.block_on(self.api.lease_uid())
    }

    fn pod(&self, name: &str) -> Result<Option<Owned>, PodError> {
        Ok(self.runtime.block_on(self.api.pod(name))?.as_ref().map(Owned::of_pod))
    }

    fn delete_uid(&self, pod: &str, uid: &str, grace: Option<Duration>) -> Result<(), PodError> {
        let (api, pod, uid) = (self.api.clone(), pod.to_owned(), uid.to_owned());
        self.on_runtime(async move { api.delete_uid(&pod, &uid, grace).await })
    }

    fn delete_secret_uid(&self, name: &str, uid: &str) -> Result<(), PodError> {
        self.runtime.block_on(self.api.delete_secret_uid(name, uid))
    }

    fn delete_secrets(&self, pod: &Owned) -> Result<(), PodError> {
        let (api, pod) = (self.api.clone(), pod.clone());
        self.on_runtime(async move { api.delete_secrets(&pod).await })
    }

    /// Whether the API server answers within two seconds and lets us see Pods.
    fn reachable(&self) -> Result<(), PodError> {
        self.runtime.block_on(self.api.reachable())
    }

    /// No answer, an error of the API server's, too many requests. What the client sent again with success does not count.
    fn troubles(&self) -> u64 {
        self.api.troubles()
    }
}
