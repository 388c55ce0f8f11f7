use std::time::{Duration, Instant};

use super::support::{Heard, Namespace, launch};
use crate::pod::{Event, Ownership, Pods};

const SOON: Duration = Duration::from_secs(5);
const RARELY: Duration = Duration::from_mins(10);

fn seen(pod: &str) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Seen(seen) if seen.name == pod)
}

fn running(pod: &str) -> impl Fn(&Event) -> bool {
    move |event| {
        let Event::Seen(seen) = event else { return false };
        seen.name == pod && seen.observation.as_ref().is_some_and(|seen| seen.phase_label() == "running")
    }
}

fn gone(uid: &str) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Gone { uid: gone, .. } if gone == uid)
}

fn listed(event: &Event) -> bool {
    matches!(event, Event::Listed)
}

/// The place of each event in what was told.
fn places(told: &[Event], wanted: &[&dyn Fn(&Event) -> bool]) -> Vec<Option<usize>> {
    wanted.iter().map(|wanted| told.iter().position(wanted)).collect()
}

#[test]
fn a_watch_tells_what_is_there_and_each_change_and_each_end() {
    let Some(namespace) = Namespace::new() else { return };
    let cluster = namespace.cluster();
    let (first, made) = launch(&cluster, "first", Ownership::Now).expect("a launch");
    let (tell, heard) = Heard::new();
    let watch = cluster.watch(RARELY, Box::new(tell));
    let told = heard.until(SOON, listed);
    assert_eq!(told.iter().filter(|event| seen(&first)(event)).count(), 1, "{told:?}");
    let Event::Seen(pod) = &told[0] else { panic!("{told:?}") };
    assert_eq!((&pod.uid, pod.secrets), (&made.uid, 1));
    assert_eq!(pod.task.as_ref().expect("a task").task_id, "first");
    let (second, _) = launch(&cluster, "second", Ownership::Now).expect("a launch");
    heard.until(SOON, seen(&second));
    namespace.run(&first);
    heard.until(SOON, running(&first));
    cluster.delete_uid(&first, &made.uid, Some(Duration::ZERO)).expect("it goes");
    heard.until(SOON, gone(&made.uid));
    drop(watch);
    cluster.delete(&second, Some(Duration::ZERO)).expect("it goes");
    std::thread::sleep(Duration::from_millis(500));
    assert!(!heard.rest().iter().any(|event| matches!(event, Event::Gone { .. })));
    assert_eq!(cluster.troubles(), 0);
}

#[test]
fn what_happened_while_the_connection_was_cut_is_told_afterwards() {
    let Some(namespace) = Namespace::new() else { return };
    let (near, proxy) = (namespace.cluster(), namespace.proxy());
    let far = namespace.cluster_through(&proxy);
    let launch = |task: &str| launch(&near, task, Ownership::Now).expect("a launch");
    let ((_, vanished), (twice, before), (changed, _)) = (launch("vanishes"), launch("twice"), launch("changes"));
    let (tell, heard) = Heard::new();
    let _watch = far.watch(Duration::from_secs(2), Box::new(tell));
    heard.until(SOON, listed);
    proxy.cut();
    heard.until(Duration::from_secs(10), |event| matches!(event, Event::Failed(_)));
    for pod in near.pods().expect("pods").iter().filter(|pod| pod.name != changed) {
        near.delete(&pod.name, Some(Duration::ZERO)).expect("it goes");
    }
    let (_, after) = launch("twice");
    namespace.run(&changed);
    heard.rest();
    proxy.mend();
    let told = heard.until(Duration::from_secs(15), listed);
    let second_of_its_name =
        |event: &Event| matches!(event, Event::Seen(seen) if seen.name == twice && seen.uid == after.uid);
    let [end, next, other, change] =
        places(&told, &[&gone(&before.uid), &second_of_its_name, &gone(&vanished.uid), &running(&changed)])[..]
    else {
        unreachable!("as many as were asked for")
    };
    assert!(end.is_some() && other.is_some() && change.is_some(), "{told:?}");
    assert!(end < next, "{told:?}");
    assert!(far.troubles() > 0);
}

#[test]
fn a_list_tells_what_a_dead_connection_does_not() {
    let Some(namespace) = Namespace::new() else { return };
    let (near, proxy) = (namespace.cluster(), namespace.proxy());
    let far = namespace.cluster_through(&proxy);
    let launch = |task: &str| launch(&near, task, Ownership::Now).expect("a launch");
    let ((changed, _), (_, vanished)) = (launch("changes"), launch("vanishes"));
    let (tell, heard) = Heard::new();
    let _watch = far.watch(Duration::from_secs(1), Box::new(tell));
    heard.until(SOON, listed);
    heard.until(SOON, listed);
    proxy.freeze();
    let frozen = Instant::now();
    namespace.run(&changed);
    for pod in near.pods().expect("pods").iter().filter(|pod| pod.name != changed) {
        near.delete(&pod.name, Some(Duration::ZERO)).expect("it goes");
    }
    let told = heard.until(Duration::from_secs(25), running(&changed));
    println!("a dead connection was made good after {:.1} s", frozen.elapsed().as_secs_f64());
    assert!(told.iter().any(gone(&vanished.uid)), "{told:?}");
    heard.until(SOON, listed);
    // The new watch is quicker than the next list.
    let (late, _) = launch("late");
    let told = heard.until(SOON, seen(&late));
    assert!(!told.iter().any(|event| matches!(event, Event::Failed(_))), "{told:?}");
}
