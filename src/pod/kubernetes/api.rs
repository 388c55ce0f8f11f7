//! Calls to the API server: get, list, delete. Every call has a deadline; failed ones are counted.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Preconditions, PropagationPolicy};
use kube::core::Request;
use kube::{Client, Resource};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::partial::PartialPod;
use crate::pod::manifest::{CREATOR_LABEL, secret_name};
use crate::pod::{PodError, PodRef, TaskPod, TaskSecret, attempt_of, secrets_of};

/// The deadline of a call, retries of the client included. Below the API server's own limit of a minute.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The deadline of a call that only checks whether the API server answers.
const REACHABLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a deleted Pod is looked for.
const DELETION_POLL: Duration = Duration::from_millis(100);
/// Objects on one page of a list, which is held in memory as text and as objects.
const PAGE: u32 = 200;

/// The API of one namespace.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) pods: kube::Api<Pod>,
    /// For calls whose answers are many or large: read as [`PartialPod`].
    pub(super) pod_requests: Request,
    pub(super) secrets: kube::Api<Secret>,
    pub(super) leases: kube::Api<Lease>,
    events: kube::Api<Event>,
    pub(super) namespace: String,
    server: String,
    /// Calls that failed for a reason other than the request itself.
    failed_calls: Arc<AtomicU64>,
}

impl Api {
    pub(super) fn new(client: Client, namespace: String, server: String) -> Self {
        Self {
            pods: kube::Api::namespaced(client.clone(), &namespace),
            pod_requests: Request::new(Pod::url_path(&(), Some(&namespace))),
            secrets: kube::Api::namespaced(client.clone(), &namespace),
            leases: kube::Api::namespaced(client.clone(), &namespace),
            events: kube::Api::namespaced(client.clone(), &namespace),
            client,
            namespace,
            server,
            failed_calls: Arc::default(),
        }
    }

    /// One call with its deadline. `action` is a gerund and its object, for the error.
    ///
    /// The client repeats a call after 429, 503 and 504 with growing pauses and not before `Retry-After`: the deadline
    /// covers all attempts together.
    pub(super) async fn call<T>(
        &self,
        action: &str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, PodError> {
        self.call_within(action, CALL_TIMEOUT, call).await
    }

    /// One call with another deadline.
    pub(super) async fn call_within<T>(
        &self,
        action: &str,
        timeout: Duration,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, PodError> {
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.explain(action, &error)),
            Err(_) => Err(self.no_answer(action, timeout)),
        }
    }

    pub(super) fn failed_calls(&self) -> u64 {
        self.failed_calls.load(Ordering::Relaxed)
    }

    pub(super) fn no_answer(&self, action: &str, timeout: Duration) -> PodError {
        self.unreachable(action, format!("no answer within {} s", timeout.as_secs_f64()))
    }

    fn unreachable(&self, action: &str, cause: String) -> PodError {
        self.failed_calls.fetch_add(1, Ordering::Relaxed);
        let action = format!("{action} in namespace {}", self.namespace);
        PodError::Unreachable { action, server: self.server.clone(), cause }
    }

    pub(super) fn explain(&self, action: &str, error: &kube::Error) -> PodError {
        let in_namespace = || format!("{action} in namespace {}", self.namespace);
        match error {
            // An exceeded quota is a 403 too, but not a missing permission.
            kube::Error::Api(status) if status.code == 403 && !status.message.contains("exceeded quota") => {
                PodError::Forbidden { action: in_namespace(), message: status.message.clone() }
            }
            kube::Error::Api(status) if status.code == 401 => PodError::Forbidden {
                action: in_namespace(),
                message: "the API server does not accept the credentials".to_owned(),
            },
            kube::Error::Api(status) if status.code >= 500 || status.code == 429 => {
                self.unreachable(action, status.message.clone())
            }
            kube::Error::Api(status) => PodError::Refused { action: in_namespace(), message: status.message.clone() },
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

    /// Deletes a Pod, and with a `grace` of 0 its Secrets.
    pub(super) async fn delete(&self, pod: &str, grace: Option<Duration>) -> Result<(), PodError> {
        let deleted = self.delete_pod(pod, None, grace).await?;
        if deleted.is_some() && grace.is_none_or(|grace| grace.as_secs() > 0) {
            // A kubelet that no longer finds the Secret of a running Pod takes many seconds longer to end it: the
            // Secrets are deleted once the Pod is gone.
            return Ok(());
        }
        self.delete_all_secrets(pod, deleted.flatten()).await
    }

    /// Deletes this Pod but no other one of its name. Its Secrets stay.
    pub(super) async fn delete_exact(&self, pod: &PodRef, grace: Option<Duration>) -> Result<(), PodError> {
        self.delete_pod(&pod.name, Some(&pod.uid), grace).await.map(|_| ())
    }

    /// `None`: it was not there. Else the number of its Secrets, if the API server's answer shows it.
    async fn delete_pod(
        &self,
        pod: &str,
        uid: Option<&str>,
        grace: Option<Duration>,
    ) -> Result<Option<Option<usize>>, PodError> {
        let params = DeleteParams {
            grace_period_seconds: grace.map(|grace| u32::try_from(grace.as_secs()).unwrap_or(u32::MAX)),
            propagation_policy: Some(PropagationPolicy::Background),
            ..delete_params(uid)
        };
        let call = if_present(self.pods.delete(pod, &params), uid.is_some());
        let deleted = self.call(&format!("deleting pod {pod}"), call).await?;
        Ok(deleted.map(|deleted| deleted.left().as_ref().map(secrets_of)))
    }

    /// Not left to the garbage collector: a Secret may not have its owner yet, and it holds credentials.
    ///
    /// Without a count, Secrets are deleted until one is missing after one that was there, or two in a row are missing:
    /// they are created and deleted in order, so what an interrupted deletion left starts later and has no gap.
    async fn delete_all_secrets(&self, pod: &str, count: Option<usize>) -> Result<(), PodError> {
        let mut missing = 0;
        let mut any = false;
        for index in 0..count.unwrap_or(usize::MAX) {
            if self.delete_secret(&secret_name(pod, index), None).await? {
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

    /// Deletes the Secrets of this launch but not those of a later one of the same name.
    pub(super) async fn delete_secrets_of(&self, pod: &PodRef) -> Result<(), PodError> {
        for index in 0..pod.secrets {
            let name = secret_name(&pod.name, index);
            let found = self.call(&format!("reading secret {name}"), self.secrets.get_metadata_opt(&name)).await?;
            let Some(found) = found.filter(|found| attempt_of(&found.metadata) == pod.attempt.as_deref()) else {
                continue;
            };
            self.delete_secret(&name, Some(&found.metadata.uid.unwrap_or_default())).await?;
        }
        Ok(())
    }

    /// Deletes a Secret; with `uid` no other one of its name. Returns whether it was there.
    pub(super) async fn delete_secret(&self, name: &str, uid: Option<&str>) -> Result<bool, PodError> {
        let params = delete_params(uid);
        let call = if_present(self.secrets.delete(name, &params), uid.is_some());
        Ok(self.call(&format!("deleting secret {name}"), call).await?.is_some())
    }

    pub(super) async fn wait_deleted(&self, pod: &str, limit: Duration) -> Result<(), PodError> {
        let deadline = tokio::time::Instant::now() + limit;
        let action = format!("waiting for the deletion of pod {pod}");
        let mut secrets = None;
        loop {
            match self.call(&action, self.pods.get_opt(pod)).await? {
                None => return self.delete_all_secrets(pod, secrets).await,
                // Nothing runs any more, but the node may take ten seconds to report its cleanup.
                Some(object) if has_ended(&object) => return self.delete(pod, Some(Duration::ZERO)).await,
                Some(object) => secrets = Some(secrets_of(&object)),
            }
            if tokio::time::Instant::now() >= deadline {
                // Its node does not answer: the object is removed, whatever may still run there.
                return self.delete(pod, Some(Duration::ZERO)).await;
            }
            tokio::time::sleep(DELETION_POLL).await;
        }
    }

    pub(super) async fn get_pod(&self, name: &str) -> Result<Option<Pod>, PodError> {
        self.call(&format!("reading pod {name}"), self.pods.get_opt(name)).await
    }

    pub(super) async fn list_pods(&self) -> Result<Vec<TaskPod>, PodError> {
        let mut pods = Vec::new();
        let listing = Listing { params: labelled().limit(PAGE), metadata_only: false, timeout: CALL_TIMEOUT };
        self.list("listing pods", &self.pod_requests, listing, |PartialPod(pod)| pods.push(TaskPod::of(&pod))).await?;
        Ok(pods)
    }

    /// Only the metadata: the content is not needed.
    pub(super) async fn list_secrets(&self) -> Result<Vec<TaskSecret>, PodError> {
        #[derive(Deserialize)]
        struct Item {
            metadata: ObjectMeta,
        }
        let mut secrets = Vec::new();
        let listing = Listing { params: labelled().limit(PAGE), metadata_only: true, timeout: CALL_TIMEOUT };
        let requests = Request::new(Secret::url_path(&(), Some(&self.namespace)));
        let each = |Item { metadata }| secrets.push(TaskSecret::of(&metadata));
        self.list("listing secrets", &requests, listing, each).await?;
        Ok(secrets)
    }

    /// Whether the API server answers and lets us list Pods.
    pub(super) async fn check_reachable(&self) -> Result<(), PodError> {
        let params = labelled().limit(1);
        self.call_within("listing pods", REACHABLE_TIMEOUT, self.pods.list_metadata(&params)).await.map(|_| ())
    }

    /// Calls `each` for every object on all pages of a list. Returns the version of the list.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        action: &str,
        requests: &Request,
        listing: Listing,
        mut each: impl FnMut(T),
    ) -> Result<u64, PodError> {
        let Listing { mut params, metadata_only, timeout } = listing;
        loop {
            let page = async {
                let request = if metadata_only { requests.list_metadata(&params) } else { requests.list(&params) };
                self.client.request::<Page<T>>(request.map_err(kube::Error::BuildRequest)?).await
            };
            let Page { metadata, items } = self.call_within(action, timeout, page).await?;
            items.into_iter().flatten().for_each(&mut each);
            match metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(version(metadata.resource_version.as_deref())),
            }
        }
    }
}

/// What a list asks for.
pub(super) struct Listing {
    /// Selectors, and the size of a page.
    pub(super) params: ListParams,
    pub(super) metadata_only: bool,
    /// The deadline of each page.
    pub(super) timeout: Duration,
}

#[derive(Deserialize)]
struct Page<T> {
    metadata: PageMetadata,
    /// `null` in the answers of older API servers when the list is empty.
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    continue_: Option<String>,
}

/// A version as a number; 0, older than all others, if it is none.
pub(super) fn version(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Selects what carries our label.
pub(super) fn labelled() -> ListParams {
    ListParams::default().labels(&format!("{}={}", CREATOR_LABEL.0, CREATOR_LABEL.1))
}

/// With `uid` only this very object is deleted.
fn delete_params(uid: Option<&str>) -> DeleteParams {
    let preconditions = uid.map(|uid| Preconditions { uid: Some(uid.to_owned()), resource_version: None });
    DeleteParams { preconditions, ..DeleteParams::default() }
}

/// Whether every container of a Pod has ended.
fn has_ended(pod: &Pod) -> bool {
    let containers = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let ended = |status: &ContainerStatus| status.state.as_ref().is_some_and(|state| state.terminated.is_some());
    statuses.len() == containers && statuses.iter().all(ended)
}

/// `None`: the object is not there, or (if the call names a uid or a version) is another one by now.
pub(super) async fn if_present<T>(
    call: impl Future<Output = kube::Result<T>>,
    conditional: bool,
) -> kube::Result<Option<T>> {
    match call.await {
        Ok(answer) => Ok(Some(answer)),
        Err(kube::Error::Api(status)) if status.code == 404 || (conditional && status.code == 409) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The innermost cause: "connection refused" is more useful than "error sending request".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::Page;

    #[test]
    fn an_empty_page_may_lack_its_items() {
        for text in [r#"{"metadata":{},"items":null}"#, r#"{"metadata":{}}"#, r#"{"metadata":{},"items":[]}"#] {
            let page: Page<u32> = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(page.items.is_none_or(|items| items.is_empty()), "{text}");
        }
    }
}
