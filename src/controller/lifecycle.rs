//! The course of one task, pure: what its Pod's state means for whoever follows it, and when its time is over.
//!
//! One-off commands follow one task with it, `serve` all of its namespace. Clocks are given, so that a follower that
//! starts late (after a restart) counts from the Pod's creation as well.

use std::time::{Duration, Instant};

use crate::failure::{Class, Failure};
use crate::pod::status::{Ended, Observation, Phase};

/// An image that cannot be pulled, or a container that cannot be made, for a reason that may pass has this long to heal.
const PULL_GRACE: Duration = Duration::from_mins(1);
/// How long a sidecar in a Pod that somebody deletes may take to write what it knows.
const SETTLE: Duration = Duration::from_secs(5);

/// How far a task is, and its deadlines.
#[derive(Debug)]
pub struct Course {
    launched: Instant,
    timeout: Duration,
    init_timeout: Duration,
    started: bool,
    trouble: Option<(Failure, Instant)>,
}

/// What to do after a look at the Pod.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Nothing but to wait; the text says for what.
    Wait(String),
    /// The task is over.
    End(Ending),
}

/// How a task is over as far as the cluster knows. What the sidecar wrote counts more.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// What is recorded where the sidecar has written nothing.
    pub failure: Failure,
    /// How long the containers may take to end; `None`: as long as the Pod says.
    pub grace: Option<Duration>,
    /// How long a sidecar that is about to write what it knows is waited for.
    pub settle: Duration,
    /// The cluster's events may know the cause.
    pub unexplained: bool,
}

impl Ending {
    /// Nothing of worth runs any more.
    fn now(failure: Failure) -> Self {
        Self { failure, grace: Some(Duration::ZERO), settle: Duration::ZERO, unexplained: false }
    }

    /// The Pod is not there any more, and we did not delete it.
    pub fn gone() -> Self {
        Self::now(Failure::new(Class::PodDeleted, "somebody else deleted the pod"))
    }

    /// Adds what the cluster's events say to a failure that does not tell its cause.
    pub fn explain(&mut self, warnings: impl FnOnce() -> Vec<String>) {
        if self.unexplained
            && let Some(warning) = warnings().last()
        {
            self.failure.text = format!("{}: {warning}", self.failure.text);
        }
        self.unexplained = false;
    }
}

impl Course {
    /// A task whose Pod was created at `launched`.
    pub fn new(launched: Instant, timeout: Duration, init_timeout: Duration) -> Self {
        Self { launched, timeout, init_timeout, started: false, trouble: None }
    }

    /// Whether both containers were seen to run.
    pub fn has_started(&self) -> bool {
        self.started
    }

    /// What the Pod's state means.
    pub fn see(&mut self, observation: &Observation, now: Instant) -> Step {
        match &observation.phase {
            Phase::Waiting(what) => {
                // It has healed: a node was found, an image was pulled. What comes now has a time of its own.
                self.trouble = None;
                Step::Wait(what.clone())
            }
            Phase::Running => {
                self.started = true;
                Step::Wait("the connector runs".to_owned())
            }
            Phase::Trouble { failure, permanent: true } => Step::End(Ending::now(failure.clone())),
            Phase::Trouble { failure, permanent: false } => {
                self.trouble(failure.clone(), now);
                Step::Wait(failure.text.clone())
            }
            Phase::Ended(ended) => Step::End(Ending { settle: settle_time(ended), ..Ending::now(ended.failure()) }),
        }
    }

    /// Trouble that comes and goes (two reasons for one failing pull alternate) counts from its first sight.
    fn trouble(&mut self, failure: Failure, now: Instant) {
        let before = self.trouble.as_ref().filter(|(before, _)| before.class == failure.class);
        let since = before.map_or(now, |(_, since)| *since);
        self.trouble = Some((failure, since));
    }

    fn pull_deadline(&self) -> Option<Instant> {
        let (failure, since) = self.trouble.as_ref()?;
        let may_pass = matches!(failure.class, Class::ImagePull | Class::StartError);
        (!self.started && may_pass).then(|| *since + PULL_GRACE)
    }

    /// When [`expired`](Self::expired) is to be asked at the latest.
    pub fn next_deadline(&self) -> Instant {
        let mut next = self.launched + self.timeout;
        if !self.started {
            next = next.min(self.launched + self.init_timeout);
        }
        self.pull_deadline().map_or(next, |pull| next.min(pull))
    }

    /// The end of a task whose time is over.
    pub fn expired(&self, now: Instant) -> Option<Ending> {
        if now >= self.launched + self.timeout {
            let text = format!("the task did not end within {} s", self.timeout.as_secs());
            // What was started gets the time to end in order.
            let grace = if self.started { None } else { Some(Duration::ZERO) };
            return Some(Ending { grace, ..Ending::now(Failure::new(Class::TimeExceeded, text)) });
        }
        if self.started {
            return None;
        }
        if self.pull_deadline().is_some_and(|deadline| now >= deadline) || now >= self.launched + self.init_timeout {
            // What the cluster said is the cause; the timeout is only when it counts.
            if let Some((failure, _)) = &self.trouble {
                return Some(Ending::now(failure.clone()));
            }
            let text = format!("the pod did not start within {} s", self.init_timeout.as_secs());
            return Some(Ending { unexplained: true, ..Ending::now(Failure::new(Class::InitTimeout, text)) });
        }
        None
    }
}

/// A sidecar that has ended has said what it had to say; one that is being ended may be about to.
fn settle_time(ended: &Ended) -> Duration {
    let deleted = ended.pod.as_ref().is_some_and(|failure| failure.class == Class::PodDeleted);
    if ended.sidecar.is_none() && deleted { SETTLE } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::{Class, Course, Ending, Failure, Instant, Observation, PULL_GRACE, Phase};
    use std::time::Duration;

    #[test]
    fn deadlines_count_from_the_launch_and_trouble_from_its_first_sight() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut course = Course::new(start, Duration::from_mins(10), Duration::from_mins(3));
        let class = |course: &Course, now| course.expired(now).map(|ending| ending.failure.class);
        assert_eq!(class(&course, at(179)), None);
        assert_eq!(class(&course, at(180)), Some(Class::InitTimeout));
        let pull = || Failure::new(Class::ImagePull, "back-off");
        course.trouble(pull(), at(10));
        course.trouble(pull(), at(60));
        assert_eq!(class(&course, at(9) + PULL_GRACE), None);
        assert_eq!(class(&course, at(10) + PULL_GRACE), Some(Class::ImagePull));
        course.started = true;
        assert_eq!(class(&course, at(599)), None);
        assert_eq!(class(&course, at(600)), Some(Class::TimeExceeded));
    }

    #[test]
    fn trouble_that_has_healed_is_not_what_a_task_fails_of() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut course = Course::new(start, Duration::from_mins(10), Duration::from_mins(3));
        let observation =
            |phase| Observation { created_at: None, scheduled_at: None, started_at: None, notice: None, phase };
        for class in [Class::ImagePull, Class::Unschedulable] {
            let failure = Failure::new(class, "for a while");
            course.see(&observation(Phase::Trouble { failure, permanent: false }), at(10));
            assert_eq!(course.expired(at(180)).map(|ending| ending.failure.class), Some(class));
            course.see(&observation(Phase::Waiting("sidecar is ContainerCreating".to_owned())), at(20));
            assert_eq!(course.expired(at(20) + PULL_GRACE), None);
            assert_eq!(course.expired(at(180)).map(|ending| ending.failure.class), Some(Class::InitTimeout));
        }
    }

    #[test]
    fn the_last_warning_of_the_cluster_explains_a_pod_that_did_not_start() {
        let course = Course::new(Instant::now(), Duration::from_secs(9), Duration::ZERO);
        let mut ending = course.expired(Instant::now()).expect("it is late");
        ending.explain(|| vec!["a".to_owned(), "FailedMount: b".to_owned()]);
        assert!(ending.failure.text.ends_with("FailedMount: b"), "{ending:?}");
        let mut told = Ending::gone();
        told.explain(|| vec!["unrelated".to_owned()]);
        assert_eq!(told, Ending::gone());
    }
}
