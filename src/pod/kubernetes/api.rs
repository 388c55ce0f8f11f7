//! The calls themselves: get, list, delete. Every one has a deadline, and what fails is counted.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod, Secret};
use kube::Client;
use kube::api::{DeleteParams, ListParams, ObjectList, Preconditions, PropagationPolicy};

use super::lean::LeanPod;
use crate::pod::manifest::{CREATOR_LABEL, secret_name};
use crate::pod::{Owned, PodError, attempt_of, secrets_of};

/// No single call may take longer: the API server's own limit is a minute, and waiting that long helps nobody.
pub(super) const CALL: Duration = Duration::from_secs(30);
/// An API server that takes longer to tell of one Pod is not one to rely on.
const REACHABLE: Duration = Duration::from_secs(2);
/// How often it is looked whether a deleted Pod is gone.
const GONE_POLL: Duration = Duration::from_millis(100);
/// Objects a list returns at a time: a page of Pods is held in memory as text and as objects.
const PAGE: u32 = 200;

/// The API of one namespace.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) pods: kube::Api<Pod>,
    /// The same for calls whose answers are many or large.
    pub(super) lean_pods: kube::Api<LeanPod>,
    pub(super) secrets: kube::Api<Secret>,
    pub(super) leases: kube::Api<Lease>,
    events: kube::Api<Event>,
    pub(super) namespace: String,
    server: String,
    /// Calls that failed for a reason that is not in the request.
    troubles: Arc<AtomicU64>,
}

impl Api {
    pub(super) fn new(client: Client, namespace: String, server: String) -> Self {
        Self {
            pods: kube::Api::namespaced(client.clone(), &namespace),
            lean_pods: kube::Api::namespaced(client.clone(), &namespace),
            secrets: kube::Api::namespaced(client.clone(), &namespace),
            leases: kube::Api::namespaced(client.clone(), &namespace),
            events: kube::Api::namespaced(client.clone(), &namespace),
            client,
            namespace,
            server,
            troubles: Arc::default(),
        }
    }

    /// One call with its deadline; the error says what was being done.
    ///
    /// The client sends a call again after 429, 503 and 504, later each time and not before `Retry-After`: the deadline
    /// holds for all of that together.
    pub(super) async fn call<T>(
        &self,
        action: &str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, PodError> {
        self.call_within(action, CALL, call).await
    }

    /// One call with a deadline of its own.
    pub(super) async fn call_within<T>(
        &self,
        action: &str,
        limit: Duration,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, PodError> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.explain(action, &error)),
            Err(_) => Err(self.no_answer(action, limit)),
        }
    }

    /// Calls that failed since the start: no answer, an error of the server's, too many requests.
    pub(super) fn troubles(&self) -> u64 {
        self.troubles.load(Ordering::Relaxed)
    }

    pub(super) fn no_answer(&self, action: &str, limit: Duration) -> PodError {
        self.unreachable(action, format!("no answer within {} s", limit.as_secs_f64()))
    }

    fn unreachable(&self, action: &str, cause: String) -> PodError {
        self.troubles.fetch_add(1, Ordering::Relaxed);
        let action = format!("{action} in namespace {}", self.namespace);
        PodError::Unreachable { action, server: self.server.clone(), cause }
    }

    pub(super) fn explain(&self, action: &str, error: &kube::Error) -> PodError {
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
            kube::Error::Api(status) if status.code >= 500 || status.code == 429 => {
                self.unreachable(action, status.message.clone())
            }
            kube::Error::Api(status) => PodError::Refused { action: place, message: status.message.clone() },
            other => self.unreachable(action, root_cause(other)),
        }
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

    /// Deletes a Pod, and with `grace` 0 its Secrets.
    pub(super) async fn delete(&self, pod: &str, grace: Option<Duration>) -> Result<(), PodError> {
        let deleted = self.delete_pod(pod, None, grace).await?;
        if deleted.is_some() && grace.is_none_or(|grace| grace.as_secs() > 0) {
            // A node that no longer finds the Secret of a Pod that still runs stumbles over it, and takes many seconds
            // longer to end the Pod: so the Secrets go when it has gone.
            return Ok(());
        }
        self.delete_all_secrets(pod, deleted.flatten()).await
    }

    /// Deletes a Pod, and not another one of its name. Its Secrets stay.
    pub(super) async fn delete_uid(&self, pod: &str, uid: &str, grace: Option<Duration>) -> Result<(), PodError> {
        self.delete_pod(pod, Some(uid), grace).await.map(|_| ())
    }

    /// `None`: it was not there. Else how many Secrets it had, as far as the API server tells.
    async fn delete_pod(
        &self,
        pod: &str,
        uid: Option<&str>,
        grace: Option<Duration>,
    ) -> Result<Option<Option<usize>>, PodError> {
        let params = DeleteParams {
            grace_period_seconds: grace.map(|grace| u32::try_from(grace.as_secs()).unwrap_or(u32::MAX)),
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: uid.map(|uid| Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        let call = if_there(self.pods.delete(pod, &params), uid.is_some());
        let deleted = self.call(&format!("deleting pod {pod}"), call).await?;
        Ok(deleted.map(|deleted| deleted.left().as_ref().map(secrets_of)))
    }

    /// Not left to the garbage collector: a Secret may not have its owner yet, and it holds credentials.
    ///
    /// Without a count they are deleted until one is missing after one that was there, or two in a row are: they are
    /// made and deleted in order, so what an interrupted deletion has left begins later and has no gap.
    async fn delete_all_secrets(&self, pod: &str, count: Option<usize>) -> Result<(), PodError> {
        let mut missing = 0;
        let mut any = false;
        for index in 0..count.unwrap_or(usize::MAX) {
            if self.delete_secret_if_there(&secret_name(pod, index)).await? {
                any = true;
                continue;
            }
            missing += 1;
            if count.is_none() && (any || missing == 2) {
                break;
            }
        }
        Ok(())
    }

    /// Deletes the Secrets of this launch, and not those of a later one of the same name.
    pub(super) async fn delete_secrets(&self, pod: &Owned) -> Result<(), PodError> {
        for index in 0..pod.secrets {
            let name = secret_name(&pod.name, index);
            let action = format!("deleting secret {name}");
            let Some(found) = self.call(&action, self.secrets.get_metadata_opt(&name)).await? else { continue };
            if attempt_of(&found.metadata) != pod.attempt.as_deref() {
                continue;
            }
            let preconditions = Some(Preconditions { uid: found.metadata.uid, resource_version: None });
            let params = DeleteParams { preconditions, ..DeleteParams::default() };
            self.call(&action, if_there(self.secrets.delete(&name, &params), true)).await?;
        }
        Ok(())
    }

    pub(super) async fn delete_secret(&self, name: &str) -> Result<(), PodError> {
        self.delete_secret_if_there(name).await.map(|_| ())
    }

    /// Deletes this very Secret, and not another one of its name.
    pub(super) async fn delete_secret_uid(&self, name: &str, uid: &str) -> Result<(), PodError> {
        let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        let call = if_there(self.secrets.delete(name, &params), true);
        self.call(&format!("deleting secret {name}"), call).await.map(|_| ())
    }

    async fn delete_secret_if_there(&self, name: &str) -> Result<bool, PodError> {
        let params = DeleteParams::default();
        let call = if_there(self.secrets.delete(name, &params), false);
        Ok(self.call(&format!("deleting secret {name}"), call).await?.is_some())
    }

    pub(super) async fn wait_gone(&self, pod: &str, limit: Duration) -> Result<(), PodError> {
        let deadline = tokio::time::Instant::now() + limit;
        let action = format!("waiting for pod {pod} to go");
        let mut secrets = None;
        loop {
            match self.call(&action, self.pods.get_opt(pod)).await? {
                None => return self.delete_all_secrets(pod, secrets).await,
                // Nothing runs any more; its node may take ten seconds to say that it has cleaned up.
                Some(object) if has_ended(&object) => return self.delete(pod, Some(Duration::ZERO)).await,
                Some(object) => secrets = Some(secrets_of(&object)),
            }
            if tokio::time::Instant::now() >= deadline {
                // Its node does not answer: the object goes, whatever may still run there.
                return self.delete(pod, Some(Duration::ZERO)).await;
            }
            tokio::time::sleep(GONE_POLL).await;
        }
    }

    pub(super) async fn pod(&self, name: &str) -> Result<Option<Pod>, PodError> {
        self.call(&format!("reading pod {name}"), self.pods.get_opt(name)).await
    }

    pub(super) async fn pods(&self) -> Result<Vec<Owned>, PodError> {
        let page = |params| async move { self.lean_pods.list(&params).await };
        self.list("listing pods", page, |pod| Owned::of_pod(&pod.0)).await
    }

    pub(super) async fn secrets(&self) -> Result<Vec<Owned>, PodError> {
        // Only the metadata: nobody needs to see what is in them.
        let page = |params| async move { self.secrets.list_metadata(&params).await };
        self.list("listing secrets", page, |secret| Owned::of_secret(&secret.metadata)).await
    }

    /// Whether the API server answers, and lets us see Pods.
    pub(super) async fn reachable(&self) -> Result<(), PodError> {
        let params = ours().limit(1);
        self.call_within("listing pods", REACHABLE, self.pods.list_metadata(&params)).await.map(|_| ())
    }

    /// All pages of a list of what carries our label; of each page only what it is turned into is kept.
    async fn list<K: Clone, T, F>(
        &self,
        action: &str,
        page: impl Fn(ListParams) -> F,
        convert: impl Fn(K) -> T,
    ) -> Result<Vec<T>, PodError>
    where
        F: Future<Output = kube::Result<ObjectList<K>>>,
    {
        let mut params = ours().limit(PAGE);
        let mut items = Vec::new();
        loop {
            let page = self.call(action, page(params.clone())).await?;
            items.extend(page.items.into_iter().map(&convert));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(items),
            }
        }
    }
}

/// What carries our label.
pub(super) fn ours() -> ListParams {
    ListParams::default().labels(&creator())
}

/// The selector of what carries our label.
pub(super) fn creator() -> String {
    format!("{}={}", CREATOR_LABEL.0, CREATOR_LABEL.1)
}

/// Whether every container of a Pod has ended.
fn has_ended(pod: &Pod) -> bool {
    let containers = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let ended = |status: &ContainerStatus| status.state.as_ref().is_some_and(|state| state.terminated.is_some());
    statuses.len() == containers && statuses.iter().all(ended)
}

/// `None`: the object was not there, or (the call named its uid) another one of its name is.
pub(super) async fn if_there<T>(
    call: impl Future<Output = kube::Result<T>>,
    named_uid: bool,
) -> kube::Result<Option<T>> {
    match call.await {
        Ok(answer) => Ok(Some(answer)),
        Err(kube::Error::Api(status)) if status.code == 404 || (named_uid && status.code == 409) => Ok(None),
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
