//! A Pod as far as it is looked at: everything else in the API server's answers is skipped while they are read.
//!
//! Thousands of Pods change their state several times each, and most of the text about them is of no use here: how
//! often which manager has set which field, and the specification that we wrote ourselves.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, Pod, PodSpec, PodStatus, ProjectedVolumeSource, ResourceRequirements, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use kube::core::NamespaceResourceScope;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A Pod of which only what is looked at was read. Written whole.
#[derive(Debug, Clone)]
pub(super) struct LeanPod(pub(super) Pod);

#[derive(Deserialize)]
struct Read {
    metadata: ReadMetadata,
    #[serde(default)]
    spec: Option<ReadSpec>,
    #[serde(default)]
    status: Option<PodStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadMetadata {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    uid: Option<String>,
    #[serde(default)]
    resource_version: Option<String>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    creation_timestamp: Option<Time>,
    #[serde(default)]
    deletion_timestamp: Option<Time>,
    #[serde(default)]
    owner_references: Option<Vec<OwnerReference>>,
}

#[derive(Deserialize)]
struct ReadSpec {
    #[serde(default)]
    containers: Vec<ReadContainer>,
    #[serde(default)]
    volumes: Option<Vec<ReadVolume>>,
}

#[derive(Deserialize)]
struct ReadContainer {
    #[serde(default)]
    name: String,
    #[serde(default)]
    resources: Option<ResourceRequirements>,
}

#[derive(Deserialize)]
struct ReadVolume {
    #[serde(default)]
    name: String,
    #[serde(default)]
    projected: Option<ProjectedVolumeSource>,
}

impl<'de> Deserialize<'de> for LeanPod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Read { metadata, spec, status } = Read::deserialize(deserializer)?;
        let metadata = ObjectMeta {
            name: metadata.name,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            annotations: metadata.annotations,
            creation_timestamp: metadata.creation_timestamp,
            deletion_timestamp: metadata.deletion_timestamp,
            owner_references: metadata.owner_references,
            ..ObjectMeta::default()
        };
        let spec = spec.map(|ReadSpec { containers, volumes }| PodSpec {
            containers: containers
                .into_iter()
                .map(|ReadContainer { name, resources }| Container { name, resources, ..Container::default() })
                .collect(),
            volumes: volumes.map(|volumes| {
                let volume = |ReadVolume { name, projected }| Volume { name, projected, ..Volume::default() };
                volumes.into_iter().map(volume).collect()
            }),
            ..PodSpec::default()
        });
        Ok(Self(Pod { metadata, spec, status }))
    }
}

impl Serialize for LeanPod {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl Resource for LeanPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(dynamic: &()) -> Cow<'_, str> {
        Pod::kind(dynamic)
    }

    fn group(dynamic: &()) -> Cow<'_, str> {
        Pod::group(dynamic)
    }

    fn version(dynamic: &()) -> Cow<'_, str> {
        Pod::version(dynamic)
    }

    fn plural(dynamic: &()) -> Cow<'_, str> {
        Pod::plural(dynamic)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::LeanPod;
    use crate::pod::Owned;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    #[test]
    fn what_is_looked_at_is_the_same_as_of_the_whole_pod() {
        let document = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "p", "uid": "u", "resourceVersion": "7", "namespace": "n",
                "creationTimestamp": "2026-01-02T03:04:05Z", "deletionTimestamp": "2026-01-02T03:05:05Z",
                "labels": {"a": "b"},
                "annotations": {
                    "TaskID": "t", "TaskType": "read", "SyncID": "s", "Package": "a/b", "PackageVersion": "1",
                    "StartedAt": "2026-01-02T03:04:05Z", "syncctl/attempt": "x", "syncctl/owner": "y",
                },
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "o", "uid": "o"}],
                "managedFields": [{"manager": "m", "fieldsV1": {"f:metadata": {}}}],
            },
            "spec": {
                "containers": [{"name": "source", "image": "i", "resources": {"limits": {"memory": "64Mi"}}}],
                "volumes": [
                    {"name": "pipes", "emptyDir": {}},
                    {"name": "secrets", "projected": {"sources": [{"secret": {"name": "a"}}, {"secret": {"name": "b"}}]}},
                ],
            },
            "status": {
                "phase": "Running",
                "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-02T03:04:06Z"}],
                "containerStatuses": [
                    {"name": "source", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                     "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}},
                    {"name": "sidecar", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                     "state": {"terminated": {"exitCode": 75}}},
                ],
            },
        });
        let whole: Pod = serde_json::from_value(document.clone()).expect("a Pod");
        let lean: LeanPod = serde_json::from_value(document).expect("a Pod");
        assert_eq!(format!("{:?}", Owned::of_pod(&lean.0)), format!("{:?}", Owned::of_pod(&whole)));
    }
}
