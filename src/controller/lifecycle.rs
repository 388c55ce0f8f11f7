//! The lifecycle of one task: what each observation of its Pod means, and when a deadline has passed. Pure.
//!
//! [`one_shot`](super::one_shot) drives one of them, [`reconciler`](super::reconciler) one for each task of its namespace.
//! Callers pass the clock, so that a process that starts late can count from the creation of the Pod.

use std::time::{Duration, Instant};

use crate::failure::{Class, Failure};
use crate::pod::status::{Ended, Explanation, Observation, Phase};

/// How long a pull or start error that may be temporary can last before the task fails.
const START_ERROR_TIMEOUT: Duration = Duration::from_mins(1);
/// How long the sidecar of a Pod that another client deletes may take to store its result.
const SETTLE_TIME: Duration = Duration::from_secs(5);

/// The progress of a task, and its deadlines.
#[derive(Debug)]
pub struct TaskLifecycle {
    launched_at: Instant,
    timeout: Duration,
    init_timeout: Duration,
    has_started: bool,
    /// The current error of a Pod that has not started, and when it was first observed.
    error: Option<(Failure, Instant)>,
}

/// What an observation means.
#[derive(Debug, PartialEq)]
pub enum Transition {
    /// The task goes on. The text is the current progress.
    Continue(String),
    /// The task is over.
    Terminate(Termination),
}

/// How a task ended, as far as its Pod shows. A result that the sidecar stored takes precedence.
#[derive(Debug, Clone, PartialEq)]
pub struct Termination {
    /// Recorded if the sidecar stored no result.
    pub failure: Failure,
    /// Grace period for deleting the Pod; `None` is the Pod's own.
    pub grace: Option<Duration>,
    /// How long to wait for a result of a sidecar that is still running.
    pub settle_time: Duration,
    /// The failure has no cause: events of the cluster may name it.
    pub unexplained: bool,
    /// How much the statuses of the containers explain.
    pub explanation: Explanation,
}

impl Termination {
    /// Nothing that still runs needs time to shut down.
    pub fn immediate(failure: Failure) -> Self {
        let explanation = Explanation::Cause;
        Self { failure, grace: Some(Duration::ZERO), settle_time: Duration::ZERO, unexplained: false, explanation }
    }

    /// The Pod is gone, and this program did not delete it.
    pub fn deleted() -> Self {
        Self::immediate(Failure::new(Class::PodDeleted, "another client deleted the task"))
    }

    /// Appends the last warning of the cluster to a failure without a cause.
    pub fn explain(&mut self, warnings: impl FnOnce() -> Vec<String>) {
        if self.unexplained
            && let Some(warning) = warnings().last()
        {
            self.failure.text = format!("{}: {warning}", self.failure.text);
        }
        self.unexplained = false;
    }
}

impl TaskLifecycle {
    /// A task whose Pod was created at `launched_at`. `init_timeout` limits the start, `timeout` the whole task.
    pub fn new(launched_at: Instant, timeout: Duration, init_timeout: Duration) -> Self {
        Self { launched_at, timeout, init_timeout, has_started: false, error: None }
    }

    /// Whether both containers were observed running.
    pub fn has_started(&self) -> bool {
        self.has_started
    }

    /// Applies an observation of the Pod.
    pub fn observe(&mut self, observation: &Observation, now: Instant) -> Transition {
        match &observation.phase {
            Phase::Waiting(progress) => {
                // An earlier error is resolved: a node was found, or an image was pulled.
                self.error = None;
                Transition::Continue(progress.clone())
            }
            Phase::Running => {
                self.has_started = true;
                Transition::Continue("Running connector".to_owned())
            }
            Phase::Error { failure, permanent: true } => Transition::Terminate(Termination::immediate(failure.clone())),
            Phase::Error { failure, permanent: false } => {
                self.observe_error(failure.clone(), now);
                Transition::Continue(failure.text.clone())
            }
            Phase::Ended(ended) => Transition::Terminate(Termination {
                settle_time: settle_time(ended),
                explanation: ended.explanation(),
                ..Termination::immediate(ended.failure())
            }),
        }
    }

    /// An error that alternates between two reasons (as a failing pull does) counts from its first observation.
    fn observe_error(&mut self, failure: Failure, now: Instant) {
        let same_class = self.error.as_ref().filter(|(previous, _)| previous.class == failure.class);
        let since = same_class.map_or(now, |(_, since)| *since);
        self.error = Some((failure, since));
    }

    fn start_error_deadline(&self) -> Option<Instant> {
        let (failure, since) = self.error.as_ref()?;
        let is_temporary = matches!(failure.class, Class::ImagePull | Class::StartError);
        (!self.has_started && is_temporary).then(|| *since + START_ERROR_TIMEOUT)
    }

    /// The earliest time at which [`deadline_exceeded`](Self::deadline_exceeded) can return something.
    pub fn next_deadline(&self) -> Instant {
        let mut next = self.launched_at + self.timeout;
        if !self.has_started {
            next = next.min(self.launched_at + self.init_timeout);
        }
        self.start_error_deadline().map_or(next, |deadline| next.min(deadline))
    }

    /// The termination of a task whose deadline has passed.
    pub fn deadline_exceeded(&self, now: Instant) -> Option<Termination> {
        if now >= self.launched_at + self.timeout {
            let text = format!("the task did not end within {} s", self.timeout.as_secs());
            let failure = Failure::new(Class::TimeExceeded, text);
            // Containers that run get their grace period.
            let grace = if self.has_started { None } else { Some(Duration::ZERO) };
            return Some(Termination { grace, ..Termination::immediate(failure) });
        }
        let start_failed = self.start_error_deadline().is_some_and(|deadline| now >= deadline);
        if self.has_started || !(start_failed || now >= self.launched_at + self.init_timeout) {
            return None;
        }
        // The current error is the cause; the timeout only decides when it counts.
        if let Some((failure, _)) = &self.error {
            return Some(Termination::immediate(failure.clone()));
        }
        let text = format!("the task did not start within {} s", self.init_timeout.as_secs());
        let failure = Failure::new(Class::InitTimeout, text);
        Some(Termination { unexplained: true, ..Termination::immediate(failure) })
    }
}

/// A sidecar that ended has stored its result; one in a Pod that is being deleted may be about to.
fn settle_time(ended: &Ended) -> Duration {
    let is_deleted = ended.pod.as_ref().is_some_and(|failure| failure.class == Class::PodDeleted);
    if ended.sidecar.is_none() && is_deleted { SETTLE_TIME } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::{Class, Failure, Instant, Observation, Phase, START_ERROR_TIMEOUT, TaskLifecycle, Termination};
    use std::time::Duration;

    fn deadline_class(lifecycle: &TaskLifecycle, now: Instant) -> Option<Class> {
        lifecycle.deadline_exceeded(now).map(|termination| termination.failure.class)
    }

    #[test]
    fn timeouts_count_from_the_launch_and_errors_from_their_first_observation() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lifecycle = TaskLifecycle::new(start, Duration::from_mins(10), Duration::from_mins(3));
        assert_eq!(deadline_class(&lifecycle, at(179)), None);
        assert_eq!(deadline_class(&lifecycle, at(180)), Some(Class::InitTimeout));
        let pull_error = || Failure::new(Class::ImagePull, "back-off");
        lifecycle.observe_error(pull_error(), at(10));
        lifecycle.observe_error(pull_error(), at(60));
        assert_eq!(deadline_class(&lifecycle, at(9) + START_ERROR_TIMEOUT), None);
        assert_eq!(deadline_class(&lifecycle, at(10) + START_ERROR_TIMEOUT), Some(Class::ImagePull));
        lifecycle.has_started = true;
        assert_eq!(deadline_class(&lifecycle, at(599)), None);
        assert_eq!(deadline_class(&lifecycle, at(600)), Some(Class::TimeExceeded));
    }

    #[test]
    fn a_resolved_error_is_not_the_cause_of_a_later_timeout() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lifecycle = TaskLifecycle::new(start, Duration::from_mins(10), Duration::from_mins(3));
        let observation = |phase| Observation {
            created_at: None,
            scheduled_at: None,
            started_at: None,
            node: None,
            image_id: None,
            notice: None,
            phase,
        };
        for class in [Class::ImagePull, Class::Unschedulable] {
            let failure = Failure::new(class, "for a while");
            lifecycle.observe(&observation(Phase::Error { failure, permanent: false }), at(10));
            assert_eq!(deadline_class(&lifecycle, at(180)), Some(class));
            lifecycle.observe(&observation(Phase::Waiting("sidecar is ContainerCreating".to_owned())), at(20));
            assert_eq!(deadline_class(&lifecycle, at(20) + START_ERROR_TIMEOUT), None);
            assert_eq!(deadline_class(&lifecycle, at(180)), Some(Class::InitTimeout));
        }
    }

    #[test]
    fn the_last_warning_of_the_cluster_explains_a_pod_that_did_not_start() {
        let lifecycle = TaskLifecycle::new(Instant::now(), Duration::from_secs(9), Duration::ZERO);
        let mut termination = lifecycle.deadline_exceeded(Instant::now()).expect("the deadline has passed");
        termination.explain(|| vec!["a".to_owned(), "FailedMount: b".to_owned()]);
        assert!(termination.failure.text.ends_with("FailedMount: b"), "{termination:?}");
        let mut explained = Termination::deleted();
        explained.explain(|| vec!["unrelated".to_owned()]);
        assert_eq!(explained, Termination::deleted());
    }
}
