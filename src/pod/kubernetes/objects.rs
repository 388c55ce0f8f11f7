//! Pods and their Secrets: launch, read, list, delete.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use serde::Deserialize;
use serde_json::json;

use super::client::{Api, CALL_TIMEOUT, Listing, if_absent, if_present, labelled};
use super::features::Feature;
use super::partial::PartialPod;
use crate::pod::manifest::{Objects, secret_name};
use crate::pod::{DelayedStart, Ownership, PodError, PodOfTask, PodRef, TaskPod, WaitingTask, attempt_of, secrets_of};

/// The deadline of a call that only checks whether the API server answers.
const REACHABLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a deleted Pod is looked for.
const DELETION_POLL: Duration = Duration::from_millis(100);
/// Objects on one page of a list, which is held in memory as text and as objects.
const PAGE: u32 = 200;

impl Api {
    /// Creates the Secrets, then the Pod, and makes the Pod their owner. A failed launch leaves nothing behind.
    pub(super) async fn launch(
        &self,
        objects: &Objects,
        attempt: &str,
        ownership: Ownership,
    ) -> Result<PodRef, PodError> {
        let mut pod = PodRef {
            name: objects.pod.metadata.name.clone().unwrap_or_default(),
            uid: String::new(),
            attempt: Some(attempt.to_owned()),
            secrets: objects.secrets.len(),
        };
        match self.create_all(objects, &pod).await {
            Ok(uid) => pod.uid = uid,
            Err(error) => {
                // A create that failed or timed out may have succeeded after all.
                if self.get_own_pod(&pod).await.is_ok_and(|found| found.is_some()) {
                    self.delete(&pod.name, Some(Duration::ZERO)).await.ok();
                }
                self.delete_secrets_of(&pod).await.ok();
                return Err(error);
            }
        }
        if ownership == Ownership::Now
            && let Err(error) = self.adopt_secrets(&pod).await
        {
            tracing::warn!(%error, "the secret has no owner; a later cleanup deletes it");
        }
        Ok(pod)
    }

    /// The Secrets, then the Pod. Returns the Pod's uid.
    async fn create_all(&self, objects: &Objects, launch: &PodRef) -> Result<String, PodError> {
        self.create_secrets(objects, launch).await?;
        let created = match self.create_pod(&launch.name, &objects.pod).await? {
            Some(pod) => Some(pod),
            // The client repeats a create after 429 and 503: then the Pod that exists is this launch's.
            None => self.get_own_pod(launch).await?,
        };
        let created = created.ok_or_else(|| PodError::Exists { name: launch.name.clone() })?;
        Ok(created.metadata.uid.unwrap_or_default())
    }

    /// Creates the Secrets of a launch. Returns its Pod, for a process that does not know the documents.
    pub(super) async fn prepare(
        &self,
        objects: Objects,
        attempt: &str,
        start_at: Timestamp,
    ) -> Result<String, PodError> {
        let launch = PodRef {
            name: objects.pod.metadata.name.clone().unwrap_or_default(),
            uid: String::new(),
            attempt: Some(attempt.to_owned()),
            secrets: objects.secrets.len(),
        };
        if let Err(error) = self.create_secrets(&objects, &launch).await {
            self.delete_secrets_of(&launch).await.ok();
            return Err(error);
        }
        Ok(serde_json::to_string(&DelayedStart { start_at, pod: objects.pod }).expect("a Pod serializes"))
    }

    /// Creates the Pod of a task that was prepared. False if its document is no Pod.
    pub(super) async fn start_waiting(&self, waiting: &WaitingTask) -> Result<bool, PodError> {
        let document = waiting.document.as_deref().unwrap_or_default();
        let Ok(DelayedStart { pod, .. }) = serde_json::from_str(document) else { return Ok(false) };
        let Some(created) = self.create_pod(&waiting.pod, &pod).await? else {
            return Err(PodError::Exists { name: waiting.pod.clone() });
        };
        if let Err(error) = self.adopt_secrets(&PodRef { secrets: secrets_of(&pod), ..PodRef::of(&created) }).await {
            tracing::warn!(%error, "the secret has no owner; a later cleanup deletes it");
        }
        Ok(true)
    }

    async fn create_secrets(&self, objects: &Objects, launch: &PodRef) -> Result<(), PodError> {
        for secret in &objects.secrets {
            let name = secret.metadata.name.as_deref().unwrap_or_default();
            if !self.create_secret(name, secret).await? {
                self.replace_secret(name, secret, launch).await?;
            }
        }
        Ok(())
    }

    /// The Pod, if it exists and this launch has created it.
    async fn get_own_pod(&self, launch: &PodRef) -> Result<Option<Pod>, PodError> {
        let pod = self.get_pod(&launch.name).await?;
        Ok(pod.filter(|pod| attempt_of(&pod.metadata) == launch.attempt.as_deref()))
    }

    /// `None`: there is a Pod of this name.
    async fn create_pod(&self, name: &str, pod: &Pod) -> Result<Option<Pod>, PodError> {
        let call = async {
            let document = serde_json::to_vec(pod).map_err(kube::Error::SerdeError)?;
            let request = self.pod_requests.create(&PostParams::default(), document);
            self.client.request::<PartialPod>(request.map_err(kube::Error::BuildRequest)?).await
        };
        let created = self.call(&format!("create pod {name}"), if_absent(call)).await?;
        Ok(created.map(|PartialPod(pod)| pod))
    }

    /// `false`: there is a Secret of this name.
    async fn create_secret(&self, name: &str, secret: &Secret) -> Result<bool, PodError> {
        let params = PostParams::default();
        let call = if_absent(self.secrets.create(&params, secret));
        Ok(self.call(&format!("create secret {name}"), call).await?.is_some())
    }

    /// Handles a Secret that exists: this launch's after a repeated create, a crashed launch's, or a running task's.
    async fn replace_secret(&self, name: &str, secret: &Secret, launch: &PodRef) -> Result<(), PodError> {
        // Without the right to read it, it is replaced even if it is this launch's.
        if !self.lacking.contains(Feature::SecretIdentity) {
            let existing = self.secret_metadata(name).await?;
            if existing.is_some_and(|secret| attempt_of(&secret) == launch.attempt.as_deref()) {
                return Ok(());
            }
        }
        let exists = || PodError::Exists { name: launch.name.clone() };
        if self.get_pod(&launch.name).await?.is_some() {
            return Err(exists());
        }
        self.delete_secret(name, None).await?;
        if self.create_secret(name, secret).await? { Ok(()) } else { Err(exists()) }
    }

    /// The metadata of a Secret, if it exists. A patch that changes nothing returns it to whoever has the right to patch,
    /// which the owner needs, so that the right to get is not needed besides.
    async fn secret_metadata(&self, name: &str) -> Result<Option<ObjectMeta>, PodError> {
        let action = format!("read secret {name}");
        if !self.lacking.contains(Feature::SecretOwner) {
            let (params, unchanged) = (PatchParams::default(), Patch::Merge(json!({})));
            let call = if_present(self.secrets.patch_metadata(name, &params, &unchanged), false);
            match self.call(&action, call).await {
                Err(PodError::Forbidden { .. }) => {}
                found => return Ok(found?.map(|secret| secret.metadata)),
            }
        }
        Ok(self.call(&action, self.secrets.get_metadata_opt(name)).await?.map(|secret| secret.metadata))
    }

    /// Makes the Pod the owner of its Secrets. A Secret that is gone needs no owner.
    pub(super) async fn adopt_secrets(&self, pod: &PodRef) -> Result<(), PodError> {
        if self.lacking.contains(Feature::SecretOwner) {
            return Ok(());
        }
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            ..OwnerReference::default()
        };
        let patch = Patch::Merge(json!({"metadata": {"ownerReferences": [owner]}}));
        let params = PatchParams::default();
        let mut result = Ok(());
        for index in 0..pod.secrets {
            let name = secret_name(&pod.name, index);
            let call = if_present(self.secrets.patch_metadata(&name, &params, &patch), false);
            let patched = self.call(&format!("make pod {} the owner of secret {name}", pod.name), call).await;
            // The others still get their owner.
            result = result.and(patched.map(|_| ()));
        }
        result
    }

    pub(super) async fn warnings(&self, pod: &str) -> Vec<String> {
        if self.lacking.contains(Feature::Events) {
            return Vec::new();
        }
        let fields = format!("involvedObject.kind=Pod,involvedObject.name={pod},type=Warning");
        let params = ListParams::default().fields(&fields).limit(PAGE);
        let events = self.call("list events", self.events.list(&params)).await;
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
        let deleted = self.call(&format!("delete pod {pod}"), call).await?;
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
            if self.lacking.contains(Feature::SecretIdentity) {
                self.delete_secret(&name, None).await?;
                continue;
            }
            let found = self.secret_metadata(&name).await?;
            let Some(found) = found.filter(|found| attempt_of(found) == pod.attempt.as_deref()) else {
                continue;
            };
            self.delete_secret(&name, Some(&found.uid.unwrap_or_default())).await?;
        }
        Ok(())
    }

    /// Deletes a Secret; with `uid` no other one of its name. Returns whether it was there.
    pub(super) async fn delete_secret(&self, name: &str, uid: Option<&str>) -> Result<bool, PodError> {
        let params = delete_params(uid);
        let call = if_present(self.secrets.delete(name, &params), uid.is_some());
        Ok(self.call(&format!("delete secret {name}"), call).await?.is_some())
    }

    pub(super) async fn wait_deleted(&self, pod: &str, limit: Duration) -> Result<(), PodError> {
        let deadline = tokio::time::Instant::now() + limit;
        let action = format!("wait for the deletion of pod {pod}");
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
        self.call(&format!("read pod {name}"), self.pods.get_opt(name)).await
    }

    pub(super) async fn list_pods(&self) -> Result<Vec<TaskPod>, PodError> {
        let mut pods = Vec::new();
        let listing = Listing { params: labelled().limit(PAGE), metadata_only: false, timeout: CALL_TIMEOUT };
        self.list("list pods", &self.pod_requests, listing, |PartialPod(pod)| pods.push(TaskPod::of(&pod))).await?;
        Ok(pods)
    }

    /// The Pods with this task id in their annotations, for which the API server has no selector.
    pub(super) async fn find_pods(&self, task_id: &str) -> Result<Vec<PodOfTask>, PodError> {
        let mut found = Vec::new();
        let listing = Listing { params: labelled().limit(PAGE), metadata_only: true, timeout: CALL_TIMEOUT };
        let each = |Item { metadata }| found.extend(PodOfTask::of(&metadata, task_id));
        self.list("list pods", &self.pod_requests, listing, each).await?;
        Ok(found)
    }

    /// Whether the API server answers and lets us list Pods.
    pub(super) async fn check_reachable(&self) -> Result<(), PodError> {
        let params = labelled().limit(1);
        self.call_within("list pods", REACHABLE_TIMEOUT, self.pods.list_metadata(&params)).await.map(|_| ())
    }
}

/// An object in a list of metadata.
#[derive(Deserialize)]
struct Item {
    metadata: ObjectMeta,
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
