//! Launching: the Secrets, then the Pod, then the Pod as owner of its Secrets. A failed launch leaves nothing behind.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::api::{Api, if_present};
use super::partial::PartialPod;
use crate::pod::manifest::{Objects, secret_name};
use crate::pod::{Ownership, PodError, PodRef, attempt_of};

impl Api {
    pub(super) async fn launch(
        &self,
        objects: &Objects,
        attempt: &str,
        ownership: Ownership,
    ) -> Result<PodRef, PodError> {
        let name = objects.pod.metadata.name.clone().unwrap_or_default();
        let mut created = Vec::new();
        match self.create_all(objects, &name, attempt, &mut created).await {
            Ok(uid) => {
                let pod = PodRef { name, uid, attempt: Some(attempt.to_owned()), secrets: objects.secrets.len() };
                if ownership == Ownership::Now
                    && let Err(error) = self.adopt_secrets(&pod).await
                {
                    tracing::warn!(%error, "the secret has no owner; a later cleanup deletes it");
                }
                Ok(pod)
            }
            Err(error) => {
                // A create that timed out may have succeeded after all.
                if matches!(self.get_pod(&name).await, Ok(Some(pod)) if attempt_of(&pod.metadata) == Some(attempt)) {
                    self.delete(&name, Some(Duration::ZERO)).await.ok();
                }
                for secret in created {
                    self.delete_secret(&secret, None).await.ok();
                }
                Err(error)
            }
        }
    }

    /// The Secrets, then the Pod. Returns the Pod's uid; `created` receives the names of the Secrets.
    async fn create_all(
        &self,
        objects: &Objects,
        name: &str,
        attempt: &str,
        created: &mut Vec<String>,
    ) -> Result<String, PodError> {
        for secret in &objects.secrets {
            let secret_name = secret.metadata.name.clone().unwrap_or_default();
            match self.create_secret(&secret_name, secret).await {
                Ok(true) => {}
                Ok(false) => self.replace_secret(name, &secret_name, secret, attempt).await?,
                Err(error) => {
                    // The Secret may exist although the answer is an error.
                    created.push(secret_name);
                    return Err(error);
                }
            }
            created.push(secret_name);
        }
        let pod = match self.create_pod(name, &objects.pod).await? {
            Some(pod) => Some(pod),
            // The client repeats a create after 429 and 503: then the Pod that exists is this launch's.
            None => self.get_pod(name).await?.filter(|pod| attempt_of(&pod.metadata) == Some(attempt)),
        };
        let pod = pod.ok_or_else(|| PodError::Exists { name: name.to_owned() })?;
        Ok(pod.metadata.uid.unwrap_or_default())
    }

    /// `None`: there is a Pod of this name.
    async fn create_pod(&self, name: &str, pod: &Pod) -> Result<Option<Pod>, PodError> {
        let call = async {
            let document = serde_json::to_vec(pod).map_err(kube::Error::SerdeError)?;
            let request = self.pod_requests.create(&PostParams::default(), document);
            self.client.request::<PartialPod>(request.map_err(kube::Error::BuildRequest)?).await
        };
        let created = self.call(&format!("creating pod {name}"), if_absent(call)).await?;
        Ok(created.map(|PartialPod(pod)| pod))
    }

    /// `false`: there is a Secret of this name.
    async fn create_secret(&self, name: &str, secret: &Secret) -> Result<bool, PodError> {
        let params = PostParams::default();
        let call = if_absent(self.secrets.create(&params, secret));
        Ok(self.call(&format!("creating secret {name}"), call).await?.is_some())
    }

    /// Handles a Secret that exists: this launch's after a repeated create, a crashed launch's, or a running task's.
    async fn replace_secret(&self, pod: &str, name: &str, secret: &Secret, attempt: &str) -> Result<(), PodError> {
        let existing = self.call(&format!("reading secret {name}"), self.secrets.get_metadata_opt(name)).await?;
        if existing.is_some_and(|secret| attempt_of(&secret.metadata) == Some(attempt)) {
            return Ok(());
        }
        let exists = || PodError::Exists { name: pod.to_owned() };
        if self.get_pod(pod).await?.is_some() {
            return Err(exists());
        }
        self.delete_secret(name, None).await?;
        if self.create_secret(name, secret).await? { Ok(()) } else { Err(exists()) }
    }

    /// Makes the Pod the owner of its Secrets. A Secret that is gone needs no owner.
    pub(super) async fn adopt_secrets(&self, pod: &PodRef) -> Result<(), PodError> {
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
            let patched = self.call(&format!("making pod {} the owner of secret {name}", pod.name), call).await;
            // The others still get their owner.
            result = result.and(patched.map(|_| ()));
        }
        result
    }
}

/// `None`: there is an object of this name.
async fn if_absent<T>(call: impl Future<Output = kube::Result<T>>) -> kube::Result<Option<T>> {
    match call.await {
        Ok(created) => Ok(Some(created)),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(error),
    }
}
