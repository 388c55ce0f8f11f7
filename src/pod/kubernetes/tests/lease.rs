use std::time::Duration;

use super::support::{Events, Namespace, wait_for};
use crate::pod::{ApiServer, Coordination, Leadership};

const LEASE: Duration = Duration::from_secs(10);

fn leads(event: &Leadership) -> bool {
    matches!(event, Leadership::Leads { .. })
}

fn follows(event: &Leadership) -> bool {
    matches!(event, Leadership::Follows { .. })
}

#[test]
fn a_second_process_leads_after_the_first_has_died() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    let uid = cluster.installation_id().expect("a lease");
    let (on_change, first_events) = Events::new();
    let first = cluster.join_election("one", LEASE, on_change);
    first_events.until(leads);
    let (on_change, events) = Events::new();
    let second = cluster.join_election("two", LEASE, on_change);
    let received = events.until(follows);
    assert!(
        matches!(&received[..], [Leadership::Follows { holder: Some(holder) }] if holder.starts_with("one_")),
        "{received:?}"
    );
    // It is renewed for longer than it lasts.
    std::thread::sleep(LEASE + Duration::from_secs(2));
    assert!(first.is_leader() && !second.is_leader());
    let before = namespace.object("lease", "syncctl").expect("the lease")["spec"].clone();
    drop(first);
    events.until(leads);
    assert!(second.is_leader());
    let after = namespace.object("lease", "syncctl").expect("the lease")["spec"].clone();
    assert!(after["holderIdentity"].as_str().is_some_and(|holder| holder.starts_with("two_")), "{after}");
    assert_eq!(before["leaseTransitions"], 0);
    assert_eq!(after["leaseTransitions"], 1);
    assert_eq!(after["leaseDurationSeconds"], 10);
    assert!(before["renewTime"].as_str() > before["acquireTime"].as_str(), "{before}");
    assert!(after["acquireTime"].as_str() > before["renewTime"].as_str(), "{after}");
    assert_eq!(cluster.installation_id().expect("a lease"), uid);
    assert_eq!(cluster.failed_calls(), 0);
}

#[test]
fn a_released_lease_is_taken_over_before_it_expires() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    let holder = || {
        let lease = namespace.object("lease", "syncctl").expect("the lease");
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    };
    let (on_change, events) = Events::new();
    let first = cluster.join_election("same", LEASE, on_change);
    events.until(leads);
    let first_holder = holder();
    let (on_change, events) = Events::new();
    let second = cluster.join_election("same", LEASE, on_change);
    events.until(follows);
    first.release();
    assert_ne!(holder(), first_holder);
    let received = events.until(leads);
    assert!(matches!(received.last(), Some(Leadership::Leads { term: 1 })), "{received:?}");
    second.release();
    assert_eq!(holder(), "");
}

#[test]
fn a_holder_that_is_cut_off_stops_leading_before_another_starts() {
    let Some(namespace) = Namespace::new() else { return };
    let proxy = namespace.proxy();
    let (far, near) = (namespace.cluster_through(&proxy), namespace.cluster());
    let (on_change, far_events) = Events::new();
    let first = far.join_election("far", LEASE, on_change);
    far_events.until(leads);
    let (on_change, _events) = Events::new();
    let second = near.join_election("near", LEASE, on_change);
    proxy.cut();
    wait_for("the second to lead", || {
        let second_leads = second.is_leader();
        // Asked afterwards: a process that does not lead now did not start meanwhile either.
        assert!(!(second_leads && first.is_leader()), "both lead");
        second_leads.then_some(())
    });
    let received = far_events.until(|event| matches!(event, Leadership::Follows { holder: None }));
    assert!(received.iter().any(|event| matches!(event, Leadership::Failed(_))), "{received:?}");
    assert!(far.failed_calls() > 0);
    proxy.mend();
    far_events.until(|event| matches!(event, Leadership::Follows { holder: Some(_) }));
    assert!(second.is_leader() && !first.is_leader());
}

#[test]
fn a_deleted_lease_is_created_again() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    let (on_change, events) = Events::new();
    let election = cluster.join_election("one", LEASE, on_change);
    events.until(leads);
    namespace.kubectl(&["delete", "lease", "syncctl", "-n", &namespace.name], "");
    wait_for("the lease", || {
        let lease = namespace.object("lease", "syncctl")?;
        lease["spec"]["holderIdentity"].as_str().is_some_and(|holder| holder.starts_with("one_")).then_some(())
    });
    assert!(election.is_leader());
}
