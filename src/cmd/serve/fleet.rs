//! All tasks of the namespace, pure: what was seen of each, how far its end has been dealt with, and what comes next.
//!
//! A task that is over goes through the same steps whatever ended it: its outcome is recorded, its Pod deleted, its
//! Secrets cleared. Each step is a [`Job`] for somebody else; the fleet hands out at most one at a time per Pod and hands
//! it out again until it has worked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::metrics::{Durations, PHASES};
use crate::cmd::course::{Course, Ending, Step};
use crate::pod::Owned;
use crate::pod::status::{Observation, Phase};
use crate::task::{Task, TaskKind};

/// Beyond the grace period of a Pod, at whose end the kubelet has killed everything; then the object is removed without
/// the node's word.
const GONE_SLACK: Duration = Duration::from_secs(10);
/// The first pause after a job that did not work; each further one is twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// The longest pause: a database or an API server that is back is noticed within this time.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// The settings that decide when something is late.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long a Pod may take to start.
    pub init_timeout: Duration,
    /// How long a container may take to end after TERM.
    pub grace: Duration,
}

/// What is to be done about one Pod.
#[derive(Debug, Clone)]
pub struct Job {
    /// The Pod, as it was first seen.
    pub pod: Arc<Owned>,
    /// The task.
    pub task: Arc<Task>,
    /// What.
    pub work: Work,
}

/// One step towards the end of a task.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Record the outcome.
    Record {
        /// What is recorded where the sidecar has written nothing.
        ending: Ending,
        /// When the Pod ended, by this machine's clock and only where we saw it happen.
        ended: Option<Instant>,
        /// How long its parts took.
        took: Durations,
    },
    /// Delete the Pod, and with a grace period of zero its Secrets.
    Delete {
        /// `None`: as long as the Pod says.
        grace: Option<Duration>,
    },
    /// Delete the Secrets of a Pod that is gone.
    Clear,
}

#[derive(Debug)]
struct Member {
    /// Without its task and its state, which are beside it: there may be thousands.
    pod: Arc<Owned>,
    task: Arc<Task>,
    course: Course,
    phase: &'static str,
    took: Durations,
    stage: Stage,
    /// It was seen to vanish.
    gone: bool,
    /// Somebody has asked for its deletion.
    deleting: bool,
    /// When it was first seen to have ended, if it was seen before.
    ended: Option<Instant>,
    retries: u32,
}

/// How far the end of a task has been dealt with.
#[derive(Debug)]
enum Stage {
    /// The task goes on.
    Following,
    /// It is over; its sidecar may still write until then.
    Settling(Ending, Instant),
    /// A job is being done.
    Busy(Work),
    /// A job did not work and waits for its next turn.
    Waiting(Work, Instant),
    /// The Pod was asked to go; until then it may take its time.
    Leaving(Instant),
    /// Nothing is left to do but to forget it.
    Done,
}

/// See the module.
pub struct Fleet {
    /// By name; boxed, because a map has more places than entries.
    members: HashMap<String, Box<Member>>,
    limits: Limits,
    /// A whole list was seen: who is new now was created now.
    listed: bool,
}

impl Fleet {
    /// Nothing is known yet.
    pub fn new(limits: Limits) -> Self {
        Self { members: HashMap::new(), limits, listed: false }
    }

    /// A Pod was seen. `now` is the time of both clocks.
    pub fn seen(&mut self, pod: &Owned, task: &Task, now: (Instant, Timestamp)) -> Option<Job> {
        let (now, clock) = now;
        let observation = pod.observation.as_ref()?;
        let known = self.members.get(&pod.name).is_some_and(|member| member.pod.uid == pod.uid);
        if !known {
            let member = Member::new(pod, task, &self.limits, now, self.age(pod, clock));
            self.members.insert(pod.name.clone(), Box::new(member));
        }
        let grace = self.limits.grace;
        let member = self.members.get_mut(&pod.name)?;
        member.phase = phase(pod, observation);
        member.took = durations(observation);
        member.deleting |= pod.deleting;
        if let Phase::Ended(_) = observation.phase {
            // One that had ended before we looked tells nothing about our own speed.
            if known && member.ended.is_none() {
                member.ended = Some(now);
            }
        }
        let over = match &mut member.stage {
            Stage::Following => match member.course.see(observation, now) {
                Step::End(ending) => Some(ending),
                Step::Wait(_) => None,
            },
            // What is known now may be better than what was known when its end began.
            Stage::Settling(..) => match member.course.see(observation, now) {
                Step::End(ending) if ending.settle.is_zero() => Some(ending),
                _ => None,
            },
            _ => None,
        };
        let ending = over?;
        if !ending.settle.is_zero() {
            let until = now + ending.settle.min(grace);
            member.stage = Stage::Settling(ending, until);
            return None;
        }
        Some(member.record(ending))
    }

    /// Makes a Pod of ours that nobody follows end.
    pub fn abandon(&mut self, pod: &Owned, task: &Task, ending: Ending, now: (Instant, Timestamp)) -> Option<Job> {
        if self.members.get(&pod.name).is_some_and(|member| member.pod.uid == pod.uid) {
            return None;
        }
        let mut member = Member::new(pod, task, &self.limits, now.0, self.age(pod, now.1));
        member.deleting = pod.deleting;
        let job = member.record(ending);
        self.members.insert(pod.name.clone(), Box::new(member));
        Some(job)
    }

    /// A whole list was seen.
    pub fn listed(&mut self) {
        self.listed = true;
    }

    /// How long a Pod has been there. The API server's clock is only asked about those that were there before us: who
    /// comes later is new, whatever the two clocks say.
    fn age(&self, pod: &Owned, clock: Timestamp) -> Duration {
        let created = pod.created_at.filter(|_| !self.listed);
        created.and_then(|created| Duration::try_from(clock.duration_since(created)).ok()).unwrap_or_default()
    }

    /// A Pod is not there any more.
    pub fn gone(&mut self, pod: &str, uid: &str) -> Option<Job> {
        let member = self.members.get_mut(pod).filter(|member| member.pod.uid == uid)?;
        member.gone = true;
        match &member.stage {
            Stage::Done => {
                self.members.remove(pod);
                None
            }
            Stage::Following => Some(member.record(Ending::gone())),
            Stage::Settling(ending, _) => {
                let ending = ending.clone();
                Some(member.record(ending))
            }
            Stage::Leaving(_) => Some(member.next(Work::Clear)),
            Stage::Busy(_) | Stage::Waiting(..) => None,
        }
    }

    /// A job has been done.
    pub fn done(&mut self, pod: &str, uid: &str, now: Instant) -> Option<Job> {
        let limits = self.limits;
        let member = self.members.get_mut(pod).filter(|member| member.pod.uid == uid)?;
        let work = member.take_job()?;
        member.retries = 0;
        let leaving = Stage::Leaving(now + limits.grace + GONE_SLACK);
        let next = match work {
            Work::Record { .. } if member.gone => Some(Work::Clear),
            // Its containers have their time already.
            Work::Record { ending, .. } if member.deleting && ending.grace.is_none_or(|grace| grace.is_zero()) => {
                member.stage = leaving;
                None
            }
            Work::Record { ending, .. } => Some(Work::Delete { grace: ending.grace }),
            Work::Delete { grace: Some(Duration::ZERO) } | Work::Clear => None,
            Work::Delete { .. } if member.gone => Some(Work::Clear),
            Work::Delete { .. } => {
                member.stage = leaving;
                None
            }
        };
        if let Some(work) = next {
            return Some(member.next(work));
        }
        if member.gone && matches!(member.stage, Stage::Done) {
            self.members.remove(pod);
        }
        None
    }

    /// A job did not work; it will be handed out again.
    pub fn failed(&mut self, pod: &str, uid: &str, now: Instant) {
        let Some(member) = self.members.get_mut(pod).filter(|member| member.pod.uid == uid) else { return };
        if let Some(work) = member.take_job() {
            let pause = FIRST_RETRY.saturating_mul(1 << member.retries.min(10)).min(LONGEST_RETRY);
            member.retries += 1;
            member.stage = Stage::Waiting(work, now + pause);
        }
    }

    /// What has become due.
    pub fn due(&mut self, now: Instant) -> Vec<Job> {
        let mut jobs = Vec::new();
        for member in self.members.values_mut() {
            let job = match &member.stage {
                Stage::Following => member.course.expired(now).map(|ending| member.record(ending)),
                Stage::Settling(ending, until) if now >= *until => {
                    let ending = ending.clone();
                    Some(member.record(ending))
                }
                Stage::Waiting(work, at) if now >= *at => {
                    let work = work.clone();
                    Some(member.next(work))
                }
                Stage::Leaving(until) if now >= *until => {
                    Some(member.next(Work::Delete { grace: Some(Duration::ZERO) }))
                }
                _ => None,
            };
            jobs.extend(job);
        }
        jobs
    }

    /// Pods in each of [`PHASES`].
    pub fn counts(&self) -> [usize; PHASES.len()] {
        let mut counts = [0; PHASES.len()];
        for member in self.members.values().filter(|member| !member.gone) {
            if let Some(index) = PHASES.iter().position(|phase| *phase == member.phase) {
                counts[index] += 1;
            }
        }
        counts
    }

    /// The Pods that are there, by name.
    pub fn pods(&self) -> HashMap<String, Arc<Owned>> {
        let there = self.members.iter().filter(|(_, member)| !member.gone);
        there.map(|(name, member)| (name.clone(), Arc::clone(&member.pod))).collect()
    }

    /// The Pods of reads that are there, by the id of the task.
    pub fn reads(&self) -> HashMap<String, Arc<Owned>> {
        let there = self.members.values().filter(|member| !member.gone && member.task.kind == TaskKind::Read);
        there.map(|member| (member.task.task_id.clone(), Arc::clone(&member.pod))).collect()
    }
}

impl Member {
    fn new(pod: &Owned, task: &Task, limits: &Limits, now: Instant, age: Duration) -> Self {
        let launched = now.checked_sub(age).unwrap_or(now);
        let pod = Owned { task: Err("it is kept beside the pod".to_owned()), observation: None, ..pod.clone() };
        Self {
            pod: Arc::new(pod),
            // Who asked for it is in its row.
            task: Arc::new(Task { started_by: None, ..task.clone() }),
            course: Course::new(launched, task.timeout, limits.init_timeout),
            phase: PHASES[0],
            took: Durations::default(),
            stage: Stage::Following,
            gone: false,
            deleting: false,
            ended: None,
            retries: 0,
        }
    }

    fn record(&mut self, ending: Ending) -> Job {
        let work = Work::Record { ending, ended: self.ended, took: self.took };
        self.next(work)
    }

    /// What is being done, which is over now. Whatever else is going on goes on.
    fn take_job(&mut self) -> Option<Work> {
        let Stage::Busy(work) = &self.stage else { return None };
        let work = work.clone();
        self.stage = Stage::Done;
        Some(work)
    }

    fn next(&mut self, work: Work) -> Job {
        self.stage = Stage::Busy(work.clone());
        Job { pod: Arc::clone(&self.pod), task: Arc::clone(&self.task), work }
    }
}

fn phase(pod: &Owned, observation: &Observation) -> &'static str {
    if pod.deleting { "deleting" } else { observation.phase_label() }
}

fn durations(observation: &Observation) -> Durations {
    let between = |from: Option<Timestamp>, to: Option<Timestamp>| Duration::try_from(to?.duration_since(from?)).ok();
    let ended = match &observation.phase {
        Phase::Ended(ended) => ended.at,
        _ => None,
    };
    Durations {
        queue: between(observation.created_at, observation.scheduled_at),
        pull: between(observation.scheduled_at, observation.started_at),
        run: between(observation.started_at, ended),
    }
}

#[cfg(test)]
mod tests {
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
        let going =
            Owned { deleting: true, ..world.pod(Phase::Ended(Ended { pod: Some(deleted), ..Ended::default() })) };
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
}
