//! The stages of one Pod.

use super::{Action, Job, Limits, THEN_RUN_TIMEOUT, TrackedTasks};
use crate::failure::{Class, Failure};
use crate::pod::status::{Ended, Exit, Observation, Phase};
use crate::pod::{PodRef, TaskPod};
use crate::task::{Task, TaskKind};
use jiff::Timestamp;
use std::time::{Duration, Instant};

const ZERO: Option<Duration> = Some(Duration::ZERO);

struct Fixture {
    tasks: TrackedTasks,
    start: (Instant, Timestamp),
}

impl Fixture {
    fn new() -> Self {
        let limits = Limits { init_timeout: Duration::from_mins(3), grace: Duration::from_mins(1) };
        Self { tasks: TrackedTasks::new(limits), start: (Instant::now(), Timestamp::now()) }
    }

    fn at(&self, seconds: u64) -> (Instant, Timestamp) {
        let later = Duration::from_secs(seconds);
        (self.start.0 + later, self.start.1 + later)
    }

    fn pod(&self, phase: Phase) -> TaskPod {
        TaskPod {
            id: PodRef { name: "pod".to_owned(), uid: "1".to_owned(), attempt: None, secrets: 1 },
            owner: None,
            created_at: Some(self.start.1),
            task: Ok(Task::of_read("a/b", "1", "s", "t", self.start.1)),
            observation: Observation {
                phase,
                created_at: Some(self.start.1),
                scheduled_at: None,
                started_at: None,
                node: None,
                image_id: None,
                notice: None,
            },
            deleting: false,
        }
    }

    fn observe(&mut self, pod: &TaskPod, second: u64) -> Option<Job> {
        let task = pod.task.clone().expect("a task");
        let now = self.at(second);
        self.tasks.observe(pod, &task, now)
    }

    fn succeed(&mut self, second: u64) -> Option<Job> {
        let now = self.at(second).0;
        self.tasks.job_succeeded("pod", "1", now)
    }

    fn due(&mut self, second: u64) -> Vec<Job> {
        let now = self.at(second).0;
        self.tasks.due(now)
    }
}

fn ended() -> Phase {
    let exit = Exit { code: 0, ..Exit::default() };
    Phase::Ended(Ended { source: Some(exit.clone()), sidecar: Some(exit), ..Ended::default() })
}

fn recorded_class(job: Option<Job>) -> Class {
    match job.expect("a job").action {
        Action::RecordOutcome { termination, .. } => termination.failure.class,
        other => panic!("{other:?}"),
    }
}

fn action(job: Option<Job>) -> Action {
    job.expect("a job").action
}

#[test]
fn the_outcome_is_recorded_once_before_the_pod_is_deleted_once() {
    let mut fixture = Fixture::new();
    let (running, done) = (fixture.pod(Phase::Running), fixture.pod(ended()));
    assert!(fixture.observe(&running, 1).is_none());
    assert_eq!(recorded_class(fixture.observe(&done, 2)), Class::SidecarFailed);
    assert!(fixture.observe(&done, 3).is_none(), "the outcome is being recorded");
    assert_eq!(action(fixture.succeed(3)), Action::DeletePod { grace: ZERO });
    assert!(fixture.succeed(4).is_none());
    // A late event of the watch.
    assert!(fixture.observe(&done, 5).is_none());
    assert!(fixture.tasks.deleted("pod", "1").is_none());
    assert!(fixture.tasks.pods().is_empty());
}

#[test]
fn a_failed_job_is_repeated_with_growing_delays() {
    let mut fixture = Fixture::new();
    let done = fixture.pod(ended());
    fixture.observe(&done, 1).expect("a job");
    for second in [2, 20, 40, 60] {
        fixture.tasks.job_failed("pod", "1", fixture.at(second).0);
        assert!(fixture.due(second).is_empty());
        assert_eq!(recorded_class(fixture.due(second + 11).pop()), Class::SidecarFailed);
        assert!(fixture.due(second + 12).is_empty(), "one job at a time");
    }
    assert_eq!(action(fixture.succeed(80)), Action::DeletePod { grace: ZERO });
}

#[test]
fn results_of_jobs_that_no_worker_has_are_ignored() {
    let mut fixture = Fixture::new();
    let (running, done) = (fixture.pod(Phase::Running), fixture.pod(ended()));
    fixture.observe(&running, 1);
    assert!(fixture.succeed(2).is_none());
    fixture.tasks.job_failed("pod", "1", fixture.at(2).0);
    assert_eq!(recorded_class(fixture.observe(&done, 3)), Class::SidecarFailed, "the task is still followed");
    fixture.tasks.job_failed("pod", "1", fixture.at(4).0);
    fixture.tasks.job_failed("pod", "1", fixture.at(4).0);
    assert!(fixture.succeed(4).is_none());
    assert_eq!(recorded_class(fixture.due(15).pop()), Class::SidecarFailed, "the retry is still pending");
}

#[test]
fn a_pod_that_disappears_is_recorded_in_every_stage() {
    let mut fixture = Fixture::new();
    let running = fixture.pod(Phase::Running);
    fixture.observe(&running, 1);
    assert_eq!(recorded_class(fixture.tasks.deleted("pod", "1")), Class::PodDeleted);
    assert_eq!(action(fixture.succeed(2)), Action::DeleteSecrets);
    assert!(fixture.succeed(3).is_none());
    assert!(fixture.tasks.with_rows().is_empty());

    let done = fixture.pod(ended());
    fixture.observe(&done, 4).expect("a job");
    assert!(fixture.tasks.deleted("pod", "1").is_none(), "the outcome is being recorded");
    assert_eq!(action(fixture.succeed(5)), Action::DeleteSecrets);
}

#[test]
fn a_pod_deleted_by_another_client_may_settle_and_then_shut_down() {
    let mut fixture = Fixture::new();
    let deleted = Failure::new(Class::PodDeleted, "another client deleted the task");
    let deleting =
        TaskPod { deleting: true, ..fixture.pod(Phase::Ended(Ended { pod: Some(deleted), ..Ended::default() })) };
    assert!(fixture.observe(&deleting, 0).is_none());
    assert!(fixture.due(4).is_empty());
    assert_eq!(recorded_class(fixture.due(5).pop()), Class::PodDeleted);
    assert!(fixture.succeed(6).is_none(), "the containers have a grace period already");
    assert!(fixture.due(75).is_empty());
    assert_eq!(action(fixture.due(76).pop()), Action::DeletePod { grace: ZERO });
}

#[test]
fn a_task_that_exceeds_its_timeout_gets_its_grace_period() {
    let mut fixture = Fixture::new();
    let running = fixture.pod(Phase::Running);
    fixture.observe(&running, 1);
    let late = 48 * 3600;
    assert!(fixture.due(late - 1).is_empty());
    assert_eq!(recorded_class(fixture.due(late).pop()), Class::TimeExceeded);
    assert_eq!(action(fixture.succeed(late)), Action::DeletePod { grace: None });
    assert!(fixture.succeed(late).is_none());
    assert_eq!(action(fixture.tasks.deleted("pod", "1")), Action::DeleteSecrets);
}

#[test]
fn after_a_restart_timeouts_count_from_the_creation_of_the_pod() {
    let mut fixture = Fixture::new();
    let waiting = fixture.pod(Phase::Waiting("scheduling".to_owned()));
    fixture.observe(&waiting, 179);
    assert_eq!(recorded_class(fixture.due(180).pop()), Class::InitTimeout);
}

#[test]
fn a_new_pod_with_a_reused_name_is_tracked_separately() {
    let mut fixture = Fixture::new();
    let done = fixture.pod(ended());
    fixture.observe(&done, 1).expect("a job");
    let mut second = fixture.pod(Phase::Running);
    "2".clone_into(&mut second.id.uid);
    assert!(fixture.observe(&second, 2).is_none());
    assert!(fixture.succeed(3).is_none(), "the job belonged to the first Pod");
    assert!(fixture.tasks.deleted("pod", "1").is_none());
    assert_eq!(fixture.tasks.with_rows().into_keys().collect::<Vec<_>>(), ["t"]);
}

#[test]
fn the_pod_of_a_discover_stays_until_the_console_was_asked() {
    for is_deleted in [false, true] {
        let mut fixture = Fixture::new();
        let mut done = fixture.pod(ended());
        let discover = Task {
            kind: TaskKind::Discover,
            then_run: Some("w".to_owned()),
            ..Task::of_read("a/b", "1", "s", "t", fixture.start.1)
        };
        done.task = Ok(discover);
        fixture.observe(&done, 1).expect("a job");
        let Action::ThenRun { grace, give_up_at } = action(fixture.succeed(2)) else { panic!("the console is asked") };
        assert_eq!((grace, give_up_at), (ZERO, fixture.at(2).0 + THEN_RUN_TIMEOUT));
        if is_deleted {
            assert!(fixture.tasks.deleted("pod", "1").is_none());
        }
        fixture.tasks.job_failed("pod", "1", fixture.at(3).0);
        assert_eq!(fixture.tasks.with_rows().keys().collect::<Vec<_>>(), ["t"], "its row gets heartbeats");
        assert!(
            matches!(action(fixture.due(30).pop()), Action::ThenRun { give_up_at: same, .. } if same == give_up_at)
        );
        let next = if is_deleted { Action::DeleteSecrets } else { Action::DeletePod { grace: ZERO } };
        assert_eq!(action(fixture.succeed(31)), next);
    }
}
