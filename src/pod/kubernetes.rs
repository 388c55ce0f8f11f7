//! The calls themselves: create, watch with resync, list, delete. Every one has a deadline.

use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Client;
use kube::api::{DeleteParams, ListParams, ObjectList, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::manifest::{CREATOR_LABEL, Objects, secret_name};
use super::status::Observation;
use super::{Owned, PodError, Update, attempt_of};

/// No single call may take longer: the API server's own limit is a minute, and waiting that long helps nobody.
const CALL: Duration = Duration::from_secs(30);
/// How often it is looked whether a deleted Pod is gone.
const GONE_POLL: Duration = Duration::from_millis(100);
/// Objects a list returns at a time.
const PAGE: u32 = 500;

/// The API of one namespace.
#[derive(Clone)]
pub(super) struct Api {
    pods: kube::Api<Pod>,
    secrets: kube::Api<Secret>,
    events: kube::Api<Event>,
    pub(super) namespace: String,
    server: String,
}

impl Api {
    pub(super) fn new(client: Client, namespace: String, server: String) -> Self {
        Self {
            pods: kube::Api::namespaced(client.clone(), &namespace),
            secrets: kube::Api::namespaced(client.clone(), &namespace),
            events: kube::Api::namespaced(client, &namespace),
            namespace,
            server,
        }
    }

    /// One call with its deadline; the error says what was being done.
    async fn call<T>(&self, action: &str, call: impl Future<Output = kube::Result<T>>) -> Result<T, PodError> {
        match tokio::time::timeout(CALL, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.explain(action, &error)),
            Err(_) => Err(self.unreachable(action, format!("no answer within {} s", CALL.as_secs()))),
        }
    }

    fn unreachable(&self, action: &str, cause: String) -> PodError {
        let action = format!("{action} in namespace {}", self.namespace);
        PodError::Unreachable { action, server: self.server.clone(), cause }
    }

    fn explain(&self, action: &str, error: &kube::Error) -> PodError {
        let place = format!("{action} in namespace {}", self.namespace);
        match error {
            // A quota speaks through 403 as well, and that is not a missing right.
            kube::Error::Api(status) if status.code == 403 && !status.message.contains("exceeded quota") => {
                PodError::Forbidden { action: place, message: status.message.clone() }
            }
            kube::Error::Api(status) if status.code == 401 => PodError::Forbidden {
                action: place,
                message: "the API server does not accept the credentials".to_owned(),
            },
            kube::Error::Api(status) if status.code >= 500 => self.unreachable(action, status.message.clone()),
            kube::Error::Api(status) => PodError::Refused { action: place, message: status.message.clone() },
            other => self.unreachable(action, root_cause(other)),
        }
    }

    pub(super) async fn launch(&self, objects: &Objects, attempt: &str) -> Result<(), PodError> {
        let name = objects.pod.metadata.name.clone().unwrap_or_default();
        let mut created = Vec::new();
        let result = self.create_all(objects, attempt, &mut created).await;
        match result {
            Ok(uid) => {
                self.own_secrets(&name, &uid, objects.secrets.len()).await;
                Ok(())
            }
            Err(error) => {
                // A timed-out create may have happened after all: the Pod goes, too, if it is this launch's.
                if self.is_ours(&name, attempt).await {
                    self.delete(&name, Some(Duration::ZERO)).await.ok();
                }
                for secret in created {
                    self.delete_secret(&secret).await.ok();
                }
                Err(error)
            }
        }
    }

    /// Secrets, then the Pod. Returns the Pod's uid.
    async fn create_all(
        &self,
        objects: &Objects,
        attempt: &str,
        created: &mut Vec<String>,
    ) -> Result<String, PodError> {
        let name = objects.pod.metadata.name.clone().unwrap_or_default();
        let params = PostParams::default();
        for secret in &objects.secrets {
            let secret_name = secret.metadata.name.clone().unwrap_or_default();
            let action = format!("creating secret {secret_name}");
            match self.create_secret(secret, &params).await {
                Ok(()) => {}
                Err(error) if is_conflict(&error) => self.replace_secret(&name, secret, attempt, &params).await?,
                Err(error) => {
                    // Also a refused one: the answer may have been lost, the object not.
                    created.push(secret_name);
                    return Err(self.flatten(&action, error));
                }
            }
            created.push(secret_name);
        }
        let action = format!("creating pod {name}");
        let pod = match tokio::time::timeout(CALL, self.pods.create(&params, &objects.pod)).await {
            Ok(Ok(pod)) => pod,
            // The client sends a create again after 429 and 503: then the Pod that is in the way is our own.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                let existing = self.call(&action, self.pods.get_opt(&name)).await?;
                existing
                    .filter(|pod| attempt_of(&pod.metadata) == Some(attempt))
                    .ok_or_else(|| PodError::Exists { name: name.clone() })?
            }
            Ok(Err(error)) => return Err(self.explain(&action, &error)),
            Err(_) => return Err(self.unreachable(&action, format!("no answer within {} s", CALL.as_secs()))),
        };
        Ok(pod.metadata.uid.unwrap_or_default())
    }

    async fn create_secret(&self, secret: &Secret, params: &PostParams) -> Result<(), CallError> {
        match tokio::time::timeout(CALL, self.secrets.create(params, secret)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(CallError::Kube(error)),
            Err(_) => Err(CallError::Timeout),
        }
    }

    fn flatten(&self, action: &str, error: CallError) -> PodError {
        match error {
            CallError::Kube(error) => self.explain(action, &error),
            CallError::Timeout => self.unreachable(action, format!("no answer within {} s", CALL.as_secs())),
        }
    }

    /// A Secret of that name is there: our own after a retried create, a crashed launch's, or a running task's.
    async fn replace_secret(
        &self,
        pod: &str,
        secret: &Secret,
        attempt: &str,
        params: &PostParams,
    ) -> Result<(), PodError> {
        let name = secret.metadata.name.clone().unwrap_or_default();
        let action = format!("creating secret {name}");
        let existing = self.call(&action, self.secrets.get_opt(&name)).await?;
        if existing.as_ref().is_some_and(|secret| attempt_of(&secret.metadata) == Some(attempt)) {
            return Ok(());
        }
        if self.call(&action, self.pods.get_opt(pod)).await?.is_some() {
            return Err(PodError::Exists { name: pod.to_owned() });
        }
        self.delete_secret(&name).await?;
        self.create_secret(secret, params).await.map_err(|error| self.flatten(&action, error))
    }

    /// Makes the Pod the owner of its Secrets, so that they go when it goes. The sweep repairs a failure here.
    async fn own_secrets(&self, pod: &str, uid: &str, count: usize) {
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: pod.to_owned(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        };
        let patch = Patch::Merge(json!({"metadata": {"ownerReferences": [owner]}}));
        let params = PatchParams::default();
        for index in 0..count {
            let name = secret_name(pod, index);
            let call = self.secrets.patch(&name, &params, &patch);
            if let Err(error) = self.call(&format!("making pod {pod} the owner of secret {name}"), call).await {
                tracing::warn!(%error, "the secret will be swept instead");
            }
        }
    }

    async fn is_ours(&self, pod: &str, attempt: &str) -> bool {
        let found = self.call("looking for the pod", self.pods.get_opt(pod)).await;
        found.ok().flatten().is_some_and(|pod| attempt_of(&pod.metadata) == Some(attempt))
    }

    pub(super) async fn warnings(&self, pod: &str) -> Vec<String> {
        let fields = format!("involvedObject.kind=Pod,involvedObject.name={pod},type=Warning");
        let params = ListParams::default().fields(&fields).limit(PAGE);
        let events = self.call("listing events", self.events.list(&params)).await;
        let mut messages: Vec<String> =
            events.map(|list| list.items).unwrap_or_default().into_iter().filter_map(|event| event.message).collect();
        messages.dedup();
        messages
    }

    pub(super) async fn delete(&self, pod: &str, grace: Option<Duration>) -> Result<(), PodError> {
        let action = format!("deleting pod {pod}");
        let grace_period_seconds = grace.map(|grace| u32::try_from(grace.as_secs()).unwrap_or(u32::MAX));
        let params = DeleteParams {
            grace_period_seconds,
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        let there = self.call(&action, ignore_404(self.pods.delete(pod, &params))).await?;
        if there && grace_period_seconds != Some(0) {
            // A node that no longer finds the Secret of a Pod that still runs stumbles over it, and takes many seconds
            // longer to end the Pod: so the Secrets go when it has gone.
            return Ok(());
        }
        self.delete_secrets(pod).await
    }

    /// Not left to the garbage collector: a Secret may not have its owner yet, and it holds credentials.
    async fn delete_secrets(&self, pod: &str) -> Result<(), PodError> {
        for index in 0.. {
            if !self.delete_secret_if_there(&secret_name(pod, index)).await? {
                break;
            }
        }
        Ok(())
    }

    pub(super) async fn delete_secret(&self, name: &str) -> Result<(), PodError> {
        self.delete_secret_if_there(name).await.map(|_| ())
    }

    async fn delete_secret_if_there(&self, name: &str) -> Result<bool, PodError> {
        let params = DeleteParams::default();
        self.call(&format!("deleting secret {name}"), ignore_404(self.secrets.delete(name, &params))).await
    }

    pub(super) async fn wait_gone(&self, pod: &str, limit: Duration) -> Result<(), PodError> {
        let deadline = tokio::time::Instant::now() + limit;
        let action = format!("waiting for pod {pod} to go");
        loop {
            match self.call(&action, self.pods.get_opt(pod)).await? {
                None => return self.delete_secrets(pod).await,
                // Nothing runs any more; its node may take ten seconds to say that it has cleaned up.
                Some(object) if has_ended(&object) => return self.delete(pod, Some(Duration::ZERO)).await,
                Some(_) => {}
            }
            if tokio::time::Instant::now() >= deadline {
                // Its node does not answer: the object goes, whatever may still run there.
                return self.delete(pod, Some(Duration::ZERO)).await;
            }
            tokio::time::sleep(GONE_POLL).await;
        }
    }

    pub(super) async fn pods(&self) -> Result<Vec<Owned>, PodError> {
        let pods = self.list("listing pods", |params| async move { self.pods.list(&params).await }).await?;
        Ok(pods.iter().map(|pod| Owned::of(&pod.metadata, Some(Observation::of(pod)))).collect())
    }

    pub(super) async fn secrets(&self) -> Result<Vec<Owned>, PodError> {
        // Only the metadata: nobody needs to see what is in them.
        let secrets =
            self.list("listing secrets", |params| async move { self.secrets.list_metadata(&params).await }).await?;
        Ok(secrets.iter().map(|secret| Owned::of(&secret.metadata, None)).collect())
    }

    /// All pages of a list of what carries our label.
    async fn list<K: Clone, F>(&self, action: &str, page: impl Fn(ListParams) -> F) -> Result<Vec<K>, PodError>
    where
        F: Future<Output = kube::Result<ObjectList<K>>>,
    {
        let label = format!("{}={}", CREATOR_LABEL.0, CREATOR_LABEL.1);
        let mut params = ListParams::default().labels(&label).limit(PAGE);
        let mut items = Vec::new();
        loop {
            let page = self.call(action, page(params.clone())).await?;
            items.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(items),
            }
        }
    }
}

/// Whether every container of a Pod has ended.
fn has_ended(pod: &Pod) -> bool {
    let containers = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let ended = |status: &ContainerStatus| status.state.as_ref().is_some_and(|state| state.terminated.is_some());
    statuses.len() == containers && statuses.iter().all(ended)
}

enum CallError {
    Kube(kube::Error),
    Timeout,
}

fn is_conflict(error: &CallError) -> bool {
    matches!(error, CallError::Kube(kube::Error::Api(status)) if status.code == 409)
}

/// Whether the object was there.
async fn ignore_404<T>(call: impl Future<Output = kube::Result<T>>) -> kube::Result<bool> {
    match call.await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

/// The innermost cause: "connection refused" tells more than "error sending request".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Watches one Pod until it is dropped.
pub struct Follower {
    task: JoinHandle<()>,
}

impl Follower {
    pub(super) fn start(
        runtime: &Runtime,
        api: Api,
        pod: String,
        resync: Duration,
        tell: Box<dyn Fn(Update) + Send>,
    ) -> Self {
        Self { task: runtime.spawn(follow(api, pod, resync, tell)) }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A watch for speed, and a plain read every `resync` for what a watch missed.
async fn follow(api: Api, pod: String, resync: Duration, tell: Box<dyn Fn(Update) + Send>) {
    let config = watcher::Config::default().fields(&format!("metadata.name={pod}"));
    let mut events = watcher(api.pods.clone(), config).default_backoff().boxed();
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + resync, resync);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Whether the list with which a watch begins, also after an interruption, has shown the Pod.
    let mut listed = false;
    loop {
        let update = tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => watched(&event, &mut listed),
                Some(Err(error)) => {
                    tracing::debug!(%error, pod, "watching the pod");
                    None
                }
                None => return,
            },
            _ = ticks.tick() => match api.call("reading the pod", api.pods.get_opt(&pod)).await {
                Ok(Some(pod)) => Some(Update::Seen(Box::new(Observation::of(&pod)))),
                Ok(None) => Some(Update::Gone),
                Err(error) => {
                    tracing::warn!(%error, "the pod will be read again");
                    None
                }
            },
        };
        if let Some(update) = update {
            let gone = update == Update::Gone;
            tell(update);
            if gone {
                return;
            }
        }
    }
}

fn watched(event: &watcher::Event<Pod>, listed: &mut bool) -> Option<Update> {
    match event {
        watcher::Event::Apply(pod) => Some(Update::Seen(Box::new(Observation::of(pod)))),
        watcher::Event::InitApply(pod) => {
            *listed = true;
            Some(Update::Seen(Box::new(Observation::of(pod))))
        }
        watcher::Event::Init => {
            *listed = false;
            None
        }
        // It was deleted while nobody watched.
        watcher::Event::InitDone if !*listed => Some(Update::Gone),
        watcher::Event::InitDone => None,
        watcher::Event::Delete(_) => Some(Update::Gone),
    }
}
