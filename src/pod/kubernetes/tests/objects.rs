use std::time::Duration;

use super::support::{Namespace, launch, launch_with, wait_for};
use crate::pod::payload::Payload;
use crate::pod::{Ownership, PodError, Pods};

const NOW: Option<Duration> = Some(Duration::ZERO);

#[test]
fn a_secret_gets_its_owner_later_and_then_goes_with_it() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    cluster.reachable().expect("it answers");
    let (pod, made) = launch(&cluster, "later", Ownership::Later).expect("a launch");
    let secret = format!("{pod}-config");
    let owner = || namespace.object("secret", &secret).map(|secret| secret["metadata"]["ownerReferences"].clone());
    assert_eq!(owner(), Some(serde_json::Value::Null));
    cluster.own_secrets(&pod, &made.uid, made.secrets).expect("it can be owned");
    cluster.own_secrets(&pod, &made.uid, made.secrets).expect("it can be owned twice");
    assert_eq!(owner().expect("it is there")[0]["uid"], made.uid);
    cluster.delete_uid(&pod, &made.uid, NOW).expect("it goes");
    wait_for("the secret goes with its pod", Duration::from_secs(20), || owner().is_none().then_some(()));
}

#[test]
fn a_late_deletion_does_not_hit_the_next_pod_of_its_name() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    let (pod, first) = launch(&cluster, "again", Ownership::Later).expect("a launch");
    let before = cluster.pod(&pod).expect("an answer").expect("it is there");
    cluster.delete(&pod, NOW).expect("it goes");
    assert!(cluster.pod(&pod).expect("an answer").is_none());
    cluster.delete_uid(&pod, &first.uid, NOW).expect("it is gone already");
    let (_, second) = launch(&cluster, "again", Ownership::Later).expect("a second launch");
    cluster.delete_uid(&pod, &first.uid, NOW).expect("it is another one");
    cluster.delete_secrets(&before).expect("they are another one's");
    let after = cluster.pod(&pod).expect("an answer").expect("it is there");
    assert_eq!((after.uid.as_str(), after.deleting), (second.uid.as_str(), false));
    assert!(namespace.object("secret", &format!("{pod}-config")).is_some());
    cluster.delete_secrets(&after).expect("they are its own");
    assert!(namespace.object("secret", &format!("{pod}-config")).is_none());
}

#[test]
fn secrets_go_although_an_earlier_one_is_missing() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    let mut seed = 1_u64;
    // Text that does not compress, for three Secrets.
    let noise = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b' ' + u8::try_from(seed >> 58).expect("six bits"))
    });
    let payload = Payload { catalog: Some(noise.take(3_000_000).collect()), ..Payload::default() };
    let secrets = || cluster.secrets().expect("secrets").len();
    for (label, missing, whole) in
        [("first", "-config", true), ("middle", "-config-1", true), ("pod", "-config", false)]
    {
        let (pod, made) = launch_with(&cluster, label, &payload, Ownership::Later).expect("a launch");
        assert_eq!((made.secrets, secrets()), (3, 3), "{label}");
        assert_eq!(cluster.pod(&pod).expect("an answer").expect("it is there").secrets, 3, "{label}");
        cluster.delete_secret(&format!("{pod}{missing}")).expect("it goes");
        if !whole {
            cluster.delete_uid(&pod, &made.uid, NOW).expect("it goes");
        }
        cluster.delete(&pod, NOW).expect("it goes");
        assert_eq!(secrets(), 0, "{label}");
    }
}

#[test]
fn nobody_is_reachable_where_no_server_is() {
    let kubeconfig = super::support::plain_kubeconfig(1);
    let cluster = super::support::connect(kubeconfig, "x").expect("a client");
    assert!(matches!(cluster.reachable(), Err(PodError::Unreachable { .. })));
    assert_eq!(cluster.troubles(), 1);
}
