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
use crate::controller::lifecycle::{Course, Ending, Step};
use crate::pod::Owned;
use crate::pod::status::{Observation, Phase};
use crate::retry::Backoff;
use crate::task::{Task, TaskKind};

/// Beyond the grace period of a Pod, at whose end the kubelet has killed everything; then the object is removed without
/// the node's word.
const GONE_SLACK: Duration = Duration::from_secs(10);
/// Delays before a failed job is repeated; the longest bounds how late a database or an API server that is back is noticed.
const JOB_BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));

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
    backoff: Backoff,
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
        member.backoff.reset();
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
            member.stage = Stage::Waiting(work, now + member.backoff.next_delay());
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
            backoff: JOB_BACKOFF,
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
mod tests;
