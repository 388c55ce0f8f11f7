//! The Pod that this program runs in, and the image of its container.

use k8s_openapi::api::core::v1::Pod;

use super::Cluster;
use super::client::{ClientSettings, Source};
use crate::pod::PodError;

/// The file that a kubelet mounts into every container.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// The container that this program runs in.
#[derive(Debug, PartialEq, Eq)]
pub struct OwnContainer {
    /// Its image.
    pub image: String,
    /// The Secrets that it was pulled with.
    pub pull_secrets: Vec<String>,
}

/// Reads the container that this program runs in. `pod` is the name of its Pod, whose namespace is that of its service
/// account.
pub fn own_container(pod: &str) -> Result<OwnContainer, PodError> {
    let cluster = Cluster::connect(&ClientSettings { source: Source::InCluster, context: None, namespace: None })?;
    let action = || format!("cannot read pod {pod} in namespace {}", cluster.api.namespace);
    let refused = |message: &str| PodError::Refused { action: action(), message: message.to_owned() };
    let object = cluster.runtime.block_on(cluster.api.get_pod(pod))?.ok_or_else(|| refused("there is no such pod"))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    find(&object, container_name(&mounts)).ok_or_else(|| refused("it is unknown which of its containers this is"))
}

/// The container of this name, or the only one.
fn find(pod: &Pod, name: Option<&str>) -> Option<OwnContainer> {
    let spec = pod.spec.as_ref()?;
    let own = match spec.containers.as_slice() {
        [only] => only,
        several => several.iter().find(|each| Some(each.name.as_str()) == name)?,
    };
    let pull_secrets = spec.image_pull_secrets.iter().flatten().map(|secret| secret.name.clone()).collect();
    Some(OwnContainer { image: own.image.clone()?, pull_secrets })
}

/// The name of this container: the kubelet mounts `…/pods/UID/containers/NAME/ID` as its termination log.
fn container_name(mounts: &str) -> Option<&str> {
    let source = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (source, target) = (fields.next()?, fields.next()?);
        (target == TERMINATION_LOG).then_some(source)
    })?;
    source.rsplit_once("/containers/")?.1.split('/').next()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{OwnContainer, container_name, find};

    #[test]
    fn the_image_is_that_of_the_only_container_or_of_the_one_with_this_termination_log() {
        let mounts = "\
            1 0 0:1 / / rw - overlay overlay rw\n\
            22 1 8:1 /var/lib/kubelet/pods/uid/etc-hosts /etc/hosts rw,relatime - ext4 /dev/vda rw\n\
            23 1 8:1 /var/lib/kubelet/pods/uid/containers/sync-ctl/5f0a /dev/termination-log rw - ext4 /dev/vda rw\n";
        assert_eq!(container_name(mounts), Some("sync-ctl"));
        assert_eq!(container_name("1 0 0:1 / / rw - overlay overlay rw\n"), None);
        assert_eq!(container_name("damaged"), None);
        let pod = |containers: &[&str]| {
            let containers: Vec<_> =
                containers.iter().map(|name| json!({"name": name, "image": format!("{name}:1")})).collect();
            serde_json::from_value(
                json!({"spec": {"containers": containers, "imagePullSecrets": [{"name": "registry"}]}}),
            )
            .expect("a Pod")
        };
        for (containers, name, expected) in [
            (&["jitsu"][..], None, Some("jitsu:1")),
            (&["jitsu"], Some("other"), Some("jitsu:1")),
            (&["proxy", "sync-ctl"], Some("sync-ctl"), Some("sync-ctl:1")),
            (&["proxy", "sync-ctl"], None, None),
            (&["proxy", "sync-ctl"], Some("gone"), None),
        ] {
            let expected = expected
                .map(|image: &str| OwnContainer { image: image.to_owned(), pull_secrets: vec!["registry".to_owned()] });
            assert_eq!(find(&pod(containers), name), expected, "{containers:?} {name:?}");
        }
    }
}
