//! A Pod with only the fields that this program reads: everything else in an answer is skipped while it is parsed.
//!
//! Thousands of Pods change their state several times each, and most of the text about them is useless here: managed
//! fields, and the specification that we wrote ourselves.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, Pod, PodSpec, PodStatus, ProjectedVolumeSource, ResourceRequirements, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Deserializer};

/// See the module.
#[derive(Debug, Clone)]
pub struct PartialPod(pub Pod);

#[derive(Deserialize)]
struct Read {
    metadata: ReadMetadata,
    spec: Option<ReadSpec>,
    status: Option<PodStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadMetadata {
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
}

#[derive(Deserialize)]
struct ReadSpec {
    #[serde(default)]
    containers: Vec<ReadContainer>,
    volumes: Option<Vec<ReadVolume>>,
}

#[derive(Deserialize)]
struct ReadContainer {
    #[serde(default)]
    name: String,
    resources: Option<ResourceRequirements>,
}

#[derive(Deserialize)]
struct ReadVolume {
    #[serde(default)]
    name: String,
    projected: Option<ProjectedVolumeSource>,
}

impl<'de> Deserialize<'de> for PartialPod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Read { metadata, spec, status } = Read::deserialize(deserializer)?;
        let metadata = ObjectMeta {
            name: metadata.name,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            annotations: metadata.annotations,
            creation_timestamp: metadata.creation_timestamp,
            deletion_timestamp: metadata.deletion_timestamp,
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

#[cfg(test)]
mod tests {
    use super::PartialPod;
    use crate::pod::TaskPod;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    #[test]
    fn a_partial_pod_gives_the_same_snapshot_as_the_whole_one() {
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
        let mut foreign = document.clone();
        foreign["spec"]["initContainers"] = json!([{"name": "init", "image": "i"}]);
        let ended = json!({"terminated": {"exitCode": 0}});
        foreign["status"]["initContainerStatuses"] = json!([
            {"name": "init", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": ended},
        ]);
        foreign["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
        foreign["status"]["containerStatuses"][1]["state"] = ended;
        foreign["metadata"]["deletionTimestamp"] = json!(null);
        for document in [document, foreign] {
            let whole: Pod = serde_json::from_value(document.clone()).expect("a Pod");
            let partial: PartialPod = serde_json::from_value(document).expect("a Pod");
            assert_eq!(format!("{:?}", TaskPod::of(&partial.0)), format!("{:?}", TaskPod::of(&whole)));
        }
    }
}
