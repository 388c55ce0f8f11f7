use std::time::Duration;

use super::support::{Events, Namespace, launch};
use crate::pod::{ApiServer, Launcher, Ownership, PodEvent, PodRef, Scope, Watcher};

const RARELY: Duration = Duration::from_mins(10);

fn updated(pod: &PodRef) -> impl Fn(&PodEvent) -> bool {
    move |event| matches!(event, PodEvent::Updated(seen) if seen.id == *pod)
}

fn running(pod: &PodRef) -> impl Fn(&PodEvent) -> bool {
    move |event| matches!(event, PodEvent::Updated(seen) if seen.id == *pod && seen.observation.phase_label() == "running")
}

fn deleted(pod: &PodRef) -> impl Fn(&PodEvent) -> bool {
    move |event| matches!(event, PodEvent::Deleted { uid, .. } if *uid == pod.uid)
}

fn synced(event: &PodEvent) -> bool {
    matches!(event, PodEvent::Synced)
}

#[test]
fn a_watch_reports_existing_pods_then_changes_and_deletions() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    let first = launch(&cluster, "first", Ownership::Now).expect("a launch");
    let (on_event, events) = Events::new();
    let subscription = cluster.watch(Scope::All, RARELY, on_event);
    let received = events.until(synced);
    assert_eq!(received.iter().filter(|event| updated(&first)(event)).count(), 1, "{received:?}");
    let PodEvent::Updated(pod) = &received[0] else { panic!("{received:?}") };
    assert_eq!(pod.task.as_ref().expect("a task").task_id, "first");
    let second = launch(&cluster, "second", Ownership::Now).expect("a launch");
    events.until(updated(&second));
    namespace.set_running(&first.name);
    events.until(running(&first));
    cluster.delete_exact(&first, Some(Duration::ZERO)).expect("a deletion");
    events.until(deleted(&first));
    drop(subscription);
    cluster.delete_exact(&second, Some(Duration::ZERO)).expect("a deletion");
    std::thread::sleep(Duration::from_millis(500));
    assert!(!events.rest().iter().any(deleted(&second)));
    assert_eq!(cluster.failed_calls(), 0);
}

#[test]
fn a_watch_of_one_pod_reports_no_other() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    let [pod, other] = ["one", "other"].map(|task| launch(&cluster, task, Ownership::Now).expect("a launch"));
    let (on_event, events) = Events::new();
    let _subscription = cluster.watch(Scope::Pod(&pod), Duration::from_secs(1), on_event);
    let mut received = events.until(synced);
    namespace.set_running(&other.name);
    namespace.set_running(&pod.name);
    received.extend(events.until(running(&pod)));
    cluster.delete_exact(&other, Some(Duration::ZERO)).expect("a deletion");
    cluster.delete_exact(&pod, Some(Duration::ZERO)).expect("a deletion");
    received.extend(events.until(deleted(&pod)));
    received.extend(events.until(synced));
    assert!(!received.iter().any(|event| updated(&other)(event) || deleted(&other)(event)), "{received:?}");
}

#[test]
fn a_watch_of_a_pod_that_is_gone_reports_its_deletion() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    let pod = launch(&cluster, "gone", Ownership::Now).expect("a launch");
    cluster.delete(&pod.name, Some(Duration::ZERO)).expect("a deletion");
    let (on_event, events) = Events::new();
    let _subscription = cluster.watch(Scope::Pod(&pod), RARELY, on_event);
    let received = events.until(synced);
    assert!(matches!(&received[..], [PodEvent::Deleted { .. }, PodEvent::Synced]), "{received:?}");
}

#[test]
fn changes_during_a_cut_connection_are_reported_afterwards() {
    let Some(namespace) = Namespace::new() else { return };
    let (near, proxy) = (namespace.cluster(), namespace.proxy());
    let far = namespace.cluster_through(&proxy);
    let launch = |task: &str| launch(&near, task, Ownership::Now).expect("a launch");
    let (vanished, before, changed) = (launch("vanishes"), launch("twice"), launch("changes"));
    let (on_event, events) = Events::new();
    let _subscription = far.watch(Scope::All, Duration::from_secs(2), on_event);
    events.until(synced);
    proxy.cut();
    events.until(|event| matches!(event, PodEvent::Failed(_)));
    for pod in [&vanished, &before] {
        near.delete(&pod.name, Some(Duration::ZERO)).expect("a deletion");
    }
    let after = launch("twice");
    namespace.set_running(&changed.name);
    events.rest();
    proxy.mend();
    let received = events.until(synced);
    let position = |wanted: &dyn Fn(&PodEvent) -> bool| received.iter().position(wanted);
    assert!(position(&deleted(&vanished)).is_some() && position(&running(&changed)).is_some(), "{received:?}");
    let (end, next) = (position(&deleted(&before)), position(&updated(&after)));
    assert!(end.is_some() && end < next, "{received:?}");
    assert!(far.failed_calls() > 0);
}

#[test]
fn a_list_reports_what_a_dead_connection_misses() {
    let Some(namespace) = Namespace::new() else { return };
    let (near, proxy) = (namespace.cluster(), namespace.proxy());
    let far = namespace.cluster_through(&proxy);
    let launch = |task: &str| launch(&near, task, Ownership::Now).expect("a launch");
    let (changed, vanished) = (launch("changes"), launch("vanishes"));
    let (on_event, events) = Events::new();
    let _subscription = far.watch(Scope::All, Duration::from_secs(1), on_event);
    events.until(synced);
    events.until(synced);
    proxy.freeze();
    namespace.set_running(&changed.name);
    near.delete(&vanished.name, Some(Duration::ZERO)).expect("a deletion");
    let mut received = events.until(running(&changed));
    received.extend(events.until(synced));
    assert!(received.iter().any(deleted(&vanished)), "{received:?}");
    // The new watch reports it before the next list does.
    let late = launch("late");
    let received = events.until(updated(&late));
    assert!(!received.iter().any(|event| matches!(event, PodEvent::Failed(_))), "{received:?}");
}
