use std::time::Duration;

use super::support::{Namespace, launch, launch_with, wait_for};
use crate::pod::manifest::secret_name;
use crate::pod::payload::Payload;
use crate::pod::{ApiServer, Launcher, Ownership, PodError, SecretStore, Watcher};

const NOW: Option<Duration> = Some(Duration::ZERO);

#[test]
fn a_secret_gets_its_owner_later_and_is_then_deleted_with_it() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    cluster.check_reachable().expect("an answer");
    let pod = launch(&cluster, "later", Ownership::Later).expect("a launch");
    let secret = format!("{}-config", pod.name);
    let owner = || namespace.object("secret", &secret).map(|secret| secret["metadata"]["ownerReferences"].clone());
    assert_eq!(owner(), Some(serde_json::Value::Null));
    cluster.adopt_secrets(&pod).expect("an owner");
    cluster.adopt_secrets(&pod).expect("the same owner again");
    assert_eq!(owner().expect("the secret")[0]["uid"], pod.uid);
    cluster.delete_exact(&pod, NOW).expect("a deletion");
    wait_for("the secret to be deleted with its pod", || owner().is_none().then_some(()));
}

#[test]
fn a_late_deletion_does_not_delete_the_next_pod_of_its_name() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    let first = launch(&cluster, "again", Ownership::Later).expect("a launch");
    let name = &first.name;
    assert_eq!(cluster.get(name).expect("an answer").expect("a pod").id, first);
    cluster.delete(name, NOW).expect("a deletion");
    assert!(cluster.get(name).expect("an answer").is_none());
    cluster.delete_exact(&first, NOW).expect("it is gone already");
    let second = launch(&cluster, "again", Ownership::Later).expect("a second launch");
    cluster.delete_exact(&first, NOW).expect("it is another one");
    cluster.delete_secrets_of(&first).expect("they are another one's");
    let after = cluster.get(name).expect("an answer").expect("a pod");
    assert_eq!((&after.id, after.deleting), (&second, false));
    let secret = || namespace.object("secret", &format!("{name}-config"));
    assert!(secret().is_some());
    cluster.delete_secrets_of(&second).expect("a deletion");
    assert!(secret().is_none());
}

#[test]
fn secrets_are_deleted_although_an_earlier_one_is_missing() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    let mut seed = 1_u64;
    // Text that does not compress, for three Secrets.
    let noise = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b' ' + u8::try_from(seed >> 58).expect("six bits"))
    });
    let payload = Payload { catalog: Some(noise.take(3_000_000).collect()), ..Payload::default() };
    let secrets = |pod: &str| {
        let names = (0..4).map(|index| secret_name(pod, index));
        names.filter(|name| namespace.object("secret", name).is_some()).collect::<Vec<_>>()
    };
    for (label, missing, pod_exists) in
        [("first", "-config", true), ("middle", "-config-1", true), ("pod", "-config", false)]
    {
        let pod = launch_with(&cluster, label, &payload, Ownership::Later).expect("a launch");
        assert_eq!((pod.secrets, secrets(&pod.name).len()), (3, 3), "{label}");
        assert_eq!(cluster.get(&pod.name).expect("an answer").expect("a pod").id, pod, "{label}");
        let name = format!("{}{missing}", pod.name);
        let deleted = cluster.api.delete_secret(&name, None);
        assert!(cluster.runtime.block_on(deleted).expect("a deletion"), "{label}");
        if !pod_exists {
            cluster.delete_exact(&pod, NOW).expect("a deletion");
        }
        cluster.delete(&pod.name, NOW).expect("a deletion");
        assert_eq!(secrets(&pod.name), [""; 0], "{label}");
    }
}

#[test]
fn a_missing_server_is_unreachable() {
    let kubeconfig = super::support::plain_kubeconfig(1);
    let cluster = super::support::connect(kubeconfig, "x").expect("a client");
    assert!(matches!(cluster.check_reachable(), Err(PodError::Unreachable { .. })));
    assert_eq!(cluster.failed_calls(), 1);
}
