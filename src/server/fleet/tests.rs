//! The state machine of one Pod, step by step.

use super::{Fleet, Job, Limits, Work};
use crate::failure::{Class, Failure};
use crate::pod::Owned;
use crate::pod::status::{Ended, Exit, Observation, Phase};
use crate::task::Task;
use jiff::Timestamp;
use std::time::{Duration, Instant};

const ZERO: Option<Duration> = Some(Duration::ZERO);

struct World {
    fleet: Fleet,
    start: (Instant, Timestamp),
}

impl World {
    fn new() -> Self {
        let limits = Limits { init_timeout: Duration::from_mins(3), grace: Duration::from_mins(1) };
        Self { fleet: Fleet::new(limits), start: (Instant::now(), Timestamp::now()) }
    }

    fn at(&self, seconds: u64) -> (Instant, Timestamp) {
        let later = Duration::from_secs(seconds);
        (self.start.0 + later, self.start.1 + later)
    }

    fn pod(&self, phase: Phase) -> Owned {
        Owned {
            name: "pod".to_owned(),
            uid: "1".to_owned(),
            attempt: None,
            owner: None,
            created_at: Some(self.start.1),
            task: Ok(Task::of_read("a/b", "1", "s", "t", self.start.1)),
            observation: Some(Observation {
                phase,
                created_at: Some(self.start.1),
                scheduled_at: None,
                started_at: None,
                notice: None,
            }),
            deleting: false,
            has_controller: false,
            secrets: 1,
        }
    }

    fn see(&mut self, pod: &Owned, second: u64) -> Option<Job> {
        let task = pod.task.clone().expect("a task");
        let now = self.at(second);
        self.fleet.seen(pod, &task, now)
    }

    fn done(&mut self, second: u64) -> Option<Job> {
        let now = self.at(second).0;
        self.fleet.done("pod", "1", now)
    }

    fn due(&mut self, second: u64) -> Vec<Job> {
        let now = self.at(second).0;
        self.fleet.due(now)
    }
}

fn ended() -> Phase {
    let exit = Exit { code: 0, ..Exit::default() };
    Phase::Ended(Ended { source: Some(exit.clone()), sidecar: Some(exit), ..Ended::default() })
}

fn recorded(job: Option<Job>) -> Class {
    match job.expect("a job").work {
        Work::Record { ending, .. } => ending.failure.class,
        other => panic!("{other:?}"),
    }
}

fn work(job: Option<Job>) -> Work {
    job.expect("a job").work
}

#[test]
fn the_outcome_comes_first_the_pod_goes_second_and_each_is_asked_for_once() {
    let mut world = World::new();
    let (running, over) = (world.pod(Phase::Running), world.pod(ended()));
    assert!(world.see(&running, 1).is_none());
    assert_eq!(recorded(world.see(&over, 2)), Class::SidecarFailed);
    assert!(world.see(&over, 3).is_none(), "it is being recorded");
    assert_eq!(work(world.done(3)), Work::Delete { grace: ZERO });
    assert!(world.done(4).is_none());
    // A word of the watch that comes late.
    assert!(world.see(&over, 5).is_none());
    assert!(world.fleet.gone("pod", "1").is_none());
    assert!(world.fleet.pods().is_empty());
}

#[test]
fn a_job_that_does_not_work_is_done_again_and_later_each_time() {
    let mut world = World::new();
    let over = world.pod(ended());
    world.see(&over, 1).expect("a job");
    for second in [2, 20, 40, 60] {
        world.fleet.failed("pod", "1", world.at(second).0);
        assert!(world.due(second).is_empty());
        assert_eq!(recorded(world.due(second + 11).pop()), Class::SidecarFailed);
        assert!(world.due(second + 12).is_empty(), "one at a time");
    }
    assert_eq!(work(world.done(80)), Work::Delete { grace: ZERO });
}

#[test]
fn the_end_of_a_job_that_is_not_being_done_changes_nothing() {
    let mut world = World::new();
    let (running, over) = (world.pod(Phase::Running), world.pod(ended()));
    world.see(&running, 1);
    assert!(world.done(2).is_none());
    world.fleet.failed("pod", "1", world.at(2).0);
    assert_eq!(recorded(world.see(&over, 3)), Class::SidecarFailed, "it is still being followed");
    world.fleet.failed("pod", "1", world.at(4).0);
    world.fleet.failed("pod", "1", world.at(4).0);
    assert!(world.done(4).is_none());
    assert_eq!(recorded(world.due(15).pop()), Class::SidecarFailed, "it still waits for its turn");
}

#[test]
fn a_pod_that_vanishes_is_recorded_whatever_is_going_on() {
    let mut world = World::new();
    let running = world.pod(Phase::Running);
    world.see(&running, 1);
    assert_eq!(recorded(world.fleet.gone("pod", "1")), Class::PodDeleted);
    assert_eq!(work(world.done(2)), Work::Clear);
    assert!(world.done(3).is_none());
    assert!(world.fleet.reads().is_empty());

    let over = world.pod(ended());
    world.see(&over, 4).expect("a job");
    assert!(world.fleet.gone("pod", "1").is_none(), "its outcome is being recorded");
    assert_eq!(work(world.done(5)), Work::Clear);
}

#[test]
fn a_pod_that_somebody_deletes_has_a_moment_and_then_its_own_time() {
    let mut world = World::new();
    let deleted = Failure::new(Class::PodDeleted, "somebody else deleted the pod");
    let going = Owned { deleting: true, ..world.pod(Phase::Ended(Ended { pod: Some(deleted), ..Ended::default() })) };
    assert!(world.see(&going, 0).is_none());
    assert!(world.due(4).is_empty());
    assert_eq!(recorded(world.due(5).pop()), Class::PodDeleted);
    assert!(world.done(6).is_none(), "its containers have their time already");
    assert!(world.due(75).is_empty());
    assert_eq!(work(world.due(76).pop()), Work::Delete { grace: ZERO });
}

#[test]
fn a_task_whose_time_is_over_gets_the_time_to_end_in_order() {
    let mut world = World::new();
    let running = world.pod(Phase::Running);
    world.see(&running, 1);
    let late = 48 * 3600;
    assert!(world.due(late - 1).is_empty());
    assert_eq!(recorded(world.due(late).pop()), Class::TimeExceeded);
    assert_eq!(work(world.done(late)), Work::Delete { grace: None });
    assert!(world.done(late).is_none());
    assert_eq!(work(world.fleet.gone("pod", "1")), Work::Clear);
}

#[test]
fn after_a_restart_time_counts_from_the_creation_of_the_pod() {
    let mut world = World::new();
    let waiting = world.pod(Phase::Waiting("scheduling".to_owned()));
    world.see(&waiting, 179);
    assert_eq!(recorded(world.due(180).pop()), Class::InitTimeout);
}

#[test]
fn a_new_pod_of_an_old_name_is_another_one() {
    let mut world = World::new();
    let over = world.pod(ended());
    world.see(&over, 1).expect("a job");
    let second = Owned { uid: "2".to_owned(), ..world.pod(Phase::Running) };
    assert!(world.see(&second, 2).is_none());
    assert!(world.done(3).is_none(), "that was about the first one");
    assert!(world.fleet.gone("pod", "1").is_none());
    assert_eq!(world.fleet.reads().into_keys().collect::<Vec<_>>(), ["t"]);
}
