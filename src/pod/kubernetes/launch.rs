//! Launching: Secrets, then the Pod, then the Pod as owner of its Secrets. What fails leaves nothing behind.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::api::{Api, CALL, if_there};
use super::lean::LeanPod;
use crate::pod::manifest::{Objects, secret_name};
use crate::pod::{Launched, Ownership, PodError, attempt_of};

impl Api {
    /// Creates everything; on an error nothing stays behind.
    pub(super) async fn launch(
        &self,
        objects: &Objects,
        attempt: &str,
        ownership: Ownership,
    ) -> Result<Launched, PodError> {
        let name = objects.pod.metadata.name.clone().unwrap_or_default();
        let mut created = Vec::new();
        let result = self.create_all(objects, attempt, &mut created).await;
        match result {
            Ok(uid) => {
                let secrets = objects.secrets.len();
                if ownership == Ownership::Now
                    && let Err(error) = self.own_secrets(&name, &uid, secrets).await
                {
                    tracing::warn!(%error, "the secret will be swept instead");
                }
                Ok(Launched { uid, secrets })
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
        let pod = match tokio::time::timeout(CALL, self.lean_pods.create(&params, &LeanPod(objects.pod.clone()))).await
        {
            Ok(Ok(LeanPod(pod))) => pod,
            // The client sends a create again after 429 and 503: then the Pod that is in the way is our own.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                let existing = self.call(&action, self.pods.get_opt(&name)).await?;
                existing
                    .filter(|pod| attempt_of(&pod.metadata) == Some(attempt))
                    .ok_or_else(|| PodError::Exists { name: name.clone() })?
            }
            Ok(Err(error)) => return Err(self.explain(&action, &error)),
            Err(_) => return Err(self.no_answer(&action, CALL)),
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
            CallError::Timeout => self.no_answer(action, CALL),
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

    /// Makes the Pod the owner of its Secrets, so that they go when it goes. One that is gone needs no owner.
    pub(super) async fn own_secrets(&self, pod: &str, uid: &str, count: usize) -> Result<(), PodError> {
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: pod.to_owned(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        };
        let patch = Patch::Merge(json!({"metadata": {"ownerReferences": [owner]}}));
        let params = PatchParams::default();
        let mut result = Ok(());
        for index in 0..count {
            let name = secret_name(pod, index);
            let call = if_there(self.secrets.patch_metadata(&name, &params, &patch), false);
            let patched = self.call(&format!("making pod {pod} the owner of secret {name}"), call).await;
            // The others still get their owner.
            result = result.and(patched.map(|_| ()));
        }
        result
    }

    async fn is_ours(&self, pod: &str, attempt: &str) -> bool {
        let found = self.call("looking for the pod", self.pods.get_opt(pod)).await;
        found.ok().flatten().is_some_and(|pod| attempt_of(&pod.metadata) == Some(attempt))
    }
}

enum CallError {
    Kube(kube::Error),
    Timeout,
}

fn is_conflict(error: &CallError) -> bool {
    matches!(error, CallError::Kube(kube::Error::Api(status)) if status.code == 409)
}
