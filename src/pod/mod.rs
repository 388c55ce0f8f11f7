//! The pod-lifecycle module: launch, follow, watch, list, delete, lead. The only place with kube, k8s-openapi, tokio and async.
//!
//! To the outside everything is blocking. Every call to the API server has a deadline. Knows nothing of the database:
//! what became of a Pod is told to the caller, who records it first and has the Pod deleted second.

mod changes;
pub mod client;
mod follow;
mod kubernetes;
mod launch;
mod lean;
mod lease;
pub mod local;
pub mod manifest;
mod pause;
pub mod payload;
pub mod status;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use tokio::runtime::Runtime;

pub use follow::Follower;
pub use lease::{Campaign, Leadership};
use manifest::{ATTEMPT, Launch, OWNER};
use status::Observation;
pub use watch::{Event, Watch};

use crate::failure::{Class, Failure};
use crate::task::Task;

/// What went wrong between us and the API server.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The client configuration cannot be used.
    #[error("{0}")]
    Kubeconfig(String),
    /// Nothing answers, or not in time.
    #[error("{action}: the API server {server} does not answer: {cause}")]
    Unreachable {
        /// A gerund and its object.
        action: String,
        /// Its URL.
        server: String,
        /// What the transport said.
        cause: String,
    },
    /// A right is missing.
    #[error("{action}: {message}")]
    Forbidden {
        /// A gerund and its object.
        action: String,
        /// What the API server said, verbatim: it names the right.
        message: String,
    },
    /// The API server refuses the object.
    #[error("{action}: {message}")]
    Refused {
        /// A gerund and its object.
        action: String,
        /// What the API server said, verbatim.
        message: String,
    },
    /// There is an object of that name that this launch did not make.
    #[error("pod {name} exists already: the task was started before")]
    Exists {
        /// The Pod's name.
        name: String,
    },
    /// The documents do not fit.
    #[error(
        "configuration, catalog and state take {} MiB compressed, and the Secrets of one Pod hold {} MiB",
        bytes.div_ceil(1024 * 1024),
        limit / (1024 * 1024)
    )]
    TooLarge {
        /// Compressed size.
        bytes: usize,
        /// The most that fits.
        limit: usize,
    },
}

impl From<PodError> for Failure {
    fn from(error: PodError) -> Self {
        let class = match &error {
            PodError::Kubeconfig(_) => Class::Usage,
            PodError::Unreachable { .. } => Class::ClusterUnreachable,
            PodError::Forbidden { .. } => Class::Forbidden,
            PodError::Refused { .. } => Class::Refused,
            PodError::Exists { .. } => Class::TaskExists,
            PodError::TooLarge { .. } => Class::PayloadTooLarge,
        };
        let failure = Self::new(class, error.to_string());
        match error {
            PodError::Kubeconfig(_) => failure
                .with_hint("set SYNCCTL_KUBERNETES_CLIENT_CONFIG or --kubeconfig to a kubeconfig that can be read"),
            _ => failure,
        }
    }
}

/// A connection to a namespace of a cluster.
pub struct Cluster {
    runtime: Runtime,
    api: kubernetes::Api,
}

/// A Pod or Secret of ours as a sweep sees it.
#[derive(Debug, Clone)]
pub struct Owned {
    /// The object's name.
    pub name: String,
    /// What tells it from another object of its name.
    pub uid: String,
    /// The launch that made it.
    pub attempt: Option<String>,
    /// The process that follows it, if a one-off command made it.
    pub owner: Option<String>,
    /// When the API server accepted it.
    pub created_at: Option<Timestamp>,
    /// The task in its annotations; an error when they are not ours or broken.
    pub task: Result<Task, String>,
    /// What the Pod looks like; `None` for a Secret.
    pub observation: Option<Observation>,
    /// It is being deleted already.
    pub deleting: bool,
    /// It goes away with another object.
    pub has_controller: bool,
    /// How many Secrets a Pod has; 0 for a Secret.
    pub secrets: usize,
}

/// When a Pod becomes the owner of its Secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// Before `launch` returns: a call more for each Secret.
    Now,
    /// By [`Cluster::own_secrets`]. Until then only a sweep finds the Secrets of a Pod that goes away.
    Later,
}

/// What a launch has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// The Pod's uid.
    pub uid: String,
    /// How many Secrets it has.
    pub secrets: usize,
}

/// What a follower tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// The Pod as it is now.
    Seen(Box<Observation>),
    /// The Pod is gone, and we did not delete it.
    Gone,
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
        Ok(Self { runtime, api: kubernetes::Api::new(client, namespace, server) })
    }

    /// The namespace in which Pods are made.
    pub fn namespace(&self) -> &str {
        &self.api.namespace
    }

    /// Creates Secrets, then the Pod, then makes the Pod the Secrets' owner. On an error nothing stays behind.
    pub fn launch(&self, launch: &Launch<'_>) -> Result<(), PodError> {
        self.launch_with(launch, Ownership::Now).map(|_| ())
    }

    /// Calls `tell` at each change of the Pod, and at least every `resync`, until the follower is dropped.
    pub fn follow(&self, pod: &str, resync: Duration, tell: impl Fn(Update) + Send + 'static) -> Follower {
        Follower::start(&self.runtime, self.api.clone(), pod.to_owned(), resync, Box::new(tell))
    }

    /// What the cluster's events say of a Pod that does not start; empty when they cannot be read.
    pub fn warnings(&self, pod: &str) -> Vec<String> {
        self.runtime.block_on(self.api.warnings(pod))
    }

    /// Deletes the Pod; its Secrets go with [`wait_gone`](Self::wait_gone). `grace` 0 deletes all of it at once, and also
    /// forgets a Pod whose node is gone.
    pub fn delete(&self, pod: &str, grace: Option<Duration>) -> Result<(), PodError> {
        self.runtime.block_on(self.api.delete(pod, grace))
    }

    /// Waits until the Pod is gone, at most for `limit`; then removes it without the node's word. Deletes its Secrets.
    pub fn wait_gone(&self, pod: &str, limit: Duration) -> Result<(), PodError> {
        self.runtime.block_on(self.api.wait_gone(pod, limit))
    }

    /// Deletes one Secret.
    pub fn delete_secret(&self, name: &str) -> Result<(), PodError> {
        self.runtime.block_on(self.api.delete_secret(name))
    }

    /// All Pods of ours in the namespace.
    pub fn pods(&self) -> Result<Vec<Owned>, PodError> {
        self.runtime.block_on(self.api.pods())
    }

    /// All Secrets of ours in the namespace.
    pub fn secrets(&self) -> Result<Vec<Owned>, PodError> {
        self.runtime.block_on(self.api.secrets())
    }
}

/// What `serve` needs beyond a single command.
impl Cluster {
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

    /// [`launch`](Self::launch), and when the Pod becomes the owner of its Secrets.
    pub fn launch_with(&self, launch: &Launch<'_>, ownership: Ownership) -> Result<Launched, PodError> {
        let objects = launch.objects()?;
        let (api, attempt) = (self.api.clone(), launch.attempt.to_owned());
        self.on_runtime(async move { api.launch(&objects, &attempt, ownership).await })
    }

    /// Makes the Pod the owner of its Secrets, so that the cluster deletes them when it goes. Doing it twice is no harm.
    pub fn own_secrets(&self, pod: &str, uid: &str, secrets: usize) -> Result<(), PodError> {
        self.runtime.block_on(self.api.own_secrets(pod, uid, secrets))
    }

    /// Tells of all Pods of ours until the watch is dropped: of each change at once, and of what a watch has missed at
    /// least every `resync`. `tell` is called on the client's only thread, and must not wait for anything.
    pub fn watch(&self, resync: Duration, tell: impl Fn(Event) + Send + 'static) -> Watch {
        Watch::start(&self.runtime, self.api.clone(), resync, Box::new(tell))
    }

    /// Takes part in the election of the one process that leads in this namespace, until the campaign is dropped. `tell`
    /// is called on the client's only thread, and must not wait for anything.
    pub fn campaign(&self, identity: &str, lasts: Duration, tell: impl Fn(Leadership) + Send + 'static) -> Campaign {
        Campaign::start(&self.runtime, self.api.clone(), identity, lasts, Box::new(tell))
    }

    /// The uid of the Lease, which is made if need be: it tells this installation from others with the same database.
    pub fn lease_uid(&self) -> Result<String, PodError> {
        self.runtime.block_on(self.api.lease_uid())
    }

    /// One Pod as it is now.
    pub fn pod(&self, name: &str) -> Result<Option<Owned>, PodError> {
        Ok(self.runtime.block_on(self.api.pod(name))?.as_ref().map(Owned::of_pod))
    }

    /// Deletes the Pod and not another one of its name; it is no error that it is gone. Its Secrets stay: the cluster
    /// deletes them when the Pod owns them, else [`delete_secrets`](Self::delete_secrets) does.
    pub fn delete_uid(&self, pod: &str, uid: &str, grace: Option<Duration>) -> Result<(), PodError> {
        let (api, pod, uid) = (self.api.clone(), pod.to_owned(), uid.to_owned());
        self.on_runtime(async move { api.delete_uid(&pod, &uid, grace).await })
    }

    /// Deletes a Secret and not another one of its name; it is no error that it is gone.
    pub fn delete_secret_uid(&self, name: &str, uid: &str) -> Result<(), PodError> {
        self.runtime.block_on(self.api.delete_secret_uid(name, uid))
    }

    /// Deletes the Secrets of this very Pod, and not those of a later launch of the same task.
    pub fn delete_secrets(&self, pod: &Owned) -> Result<(), PodError> {
        let (api, pod) = (self.api.clone(), pod.clone());
        self.on_runtime(async move { api.delete_secrets(&pod).await })
    }

    /// Whether the API server answers within two seconds and lets us see Pods.
    pub fn reachable(&self) -> Result<(), PodError> {
        self.runtime.block_on(self.api.reachable())
    }

    /// How many calls failed since the start for a reason that is not in the request: no answer, an error of the API
    /// server's, too many requests. What the client sent again with success does not count.
    pub fn troubles(&self) -> u64 {
        self.api.troubles()
    }
}

impl Owned {
    fn of_pod(pod: &Pod) -> Self {
        Self { secrets: secrets_of(pod), ..Self::of(&pod.metadata, Some(Observation::of(pod))) }
    }

    fn of_secret(metadata: &ObjectMeta) -> Self {
        Self::of(metadata, None)
    }

    fn of(metadata: &ObjectMeta, observation: Option<Observation>) -> Self {
        let annotations = metadata.annotations.as_ref();
        let annotation = |name: &str| annotations.and_then(|all| all.get(name)).cloned();
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            attempt: annotation(ATTEMPT),
            owner: annotation(OWNER),
            created_at: metadata.creation_timestamp.as_ref().map(|time| time.0),
            task: Task::from_annotations(annotations.unwrap_or(&BTreeMap::new())),
            observation,
            deleting: metadata.deletion_timestamp.is_some(),
            has_controller: metadata.owner_references.as_ref().is_some_and(|owners| !owners.is_empty()),
            secrets: 0,
        }
    }
}

/// The launch that made an object.
fn attempt_of(metadata: &ObjectMeta) -> Option<&str> {
    metadata.annotations.as_ref()?.get(ATTEMPT).map(String::as_str)
}

/// How many Secrets a Pod has: those with its documents, and at least the one with the database URL.
fn secrets_of(pod: &Pod) -> usize {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let sources = volumes.iter().filter_map(|volume| volume.projected.as_ref()?.sources.as_deref()).flatten();
    sources.filter(|source| source.secret.is_some()).count().max(1)
}
