//! All tasks of the namespace, pure: the last observation of each, and the next action for each that has ended.
//!
//! A task that has ended passes through the same stages whatever ended it: its outcome is recorded, its Pod is deleted,
//! its Secrets are deleted. Each stage is a [`Job`] for a worker. A Pod has at most one job at a time, and a failed job is
//! handed out again until it succeeds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::controller::lifecycle::{TaskLifecycle, Termination, Transition};
use crate::controller::start_log::StartLog;
use crate::pod::status::{Observation, Phase};
use crate::pod::{PodRef, TaskPod};
use crate::retry::Backoff;
use crate::task::{Task, TaskKind};

/// Added to the grace period of a Pod, at whose end the kubelet has killed its containers. Afterwards the object is
/// deleted without waiting for the node.
const DELETION_SLACK: Duration = Duration::from_secs(10);
/// Delays before a failed job is repeated. The longest bounds how late a recovered database or API server is noticed.
const JOB_BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));

/// How long the console is asked to start the read after a discover: it may be starting itself.
const THEN_RUN_TIMEOUT: Duration = Duration::from_mins(5);

/// The values of [`TrackedTasks::counts`] in their order.
pub const PHASES: [&str; 5] = ["waiting", "error", "running", "ended", "deleting"];

/// The time limits of all tasks.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the creation of a Pod until both containers run.
    pub init_timeout: Duration,
    /// From TERM until a container is killed.
    pub grace: Duration,
}

/// How long each part of a task took; `None` where it is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Durations {
    /// From the creation of the Pod until it was scheduled.
    pub queue: Option<Duration>,
    /// From there until both containers ran: images and volumes.
    pub pull: Option<Duration>,
    /// From there until the last container ended.
    pub run: Option<Duration>,
}

/// An action for one Pod.
#[derive(Debug, Clone)]
pub struct Job {
    /// The Pod.
    pub pod: Arc<PodRef>,
    /// Its task.
    pub task: Arc<Task>,
    /// What to do.
    pub action: Action,
}

/// One step of ending a task.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Record the outcome.
    RecordOutcome {
        /// Recorded if the sidecar stored no result.
        termination: Termination,
        /// When the Pod ended; `None` unless this process observed the change.
        ended_at: Option<Instant>,
        /// For metrics.
        durations: Durations,
    },
    /// Ask the console to start the read that follows this discover.
    ThenRun {
        /// The grace period of the deletion that follows.
        grace: Option<Duration>,
        /// When no further attempt is made.
        give_up_at: Instant,
    },
    /// Delete the Pod, and with a grace period of zero its Secrets.
    DeletePod {
        /// `None`: the Pod's own grace period.
        grace: Option<Duration>,
    },
    /// Delete the Secrets of a Pod that is gone.
    DeleteSecrets,
}

#[derive(Debug)]
struct TrackedTask {
    pod: Arc<PodRef>,
    task: Arc<Task>,
    lifecycle: TaskLifecycle,
    phase: &'static str,
    durations: Durations,
    start_log: StartLog,
    stage: Stage,
    /// The Pod no longer exists.
    is_gone: bool,
    /// The Pod has a deletion timestamp.
    is_deleting: bool,
    /// When it was first observed as ended, if it was observed before.
    ended_at: Option<Instant>,
    backoff: Backoff,
}

/// How far the end of a task has been handled.
#[derive(Debug)]
enum Stage {
    /// The task has not ended.
    Following,
    /// The task has ended, and its sidecar may store a result until then.
    Settling(Termination, Instant),
    /// A worker has the job.
    Working(Action),
    /// The job failed and is handed out again at that time.
    Retrying(Action, Instant),
    /// The Pod shuts down; it is deleted by force at that time.
    ShuttingDown(Instant),
    /// Nothing is left to do.
    Done,
}

/// See the module.
pub struct TrackedTasks {
    /// By Pod name; boxed, because a map allocates more slots than it has entries.
    tasks: HashMap<String, Box<TrackedTask>>,
    limits: Limits,
    /// The initial list is complete: a Pod that appears now was created now.
    is_synced: bool,
}

impl TrackedTasks {
    /// No tasks.
    pub fn new(limits: Limits) -> Self {
        Self { tasks: HashMap::new(), limits, is_synced: false }
    }

    /// Applies an observation of a Pod. `now` is the same moment on both clocks.
    pub fn observe(&mut self, pod: &TaskPod, task: &Task, now: (Instant, Timestamp)) -> Option<Job> {
        let (now, clock) = now;
        let observation = &pod.observation;
        let is_known = self.get_mut(&pod.id.name, &pod.id.uid).is_some();
        if !is_known {
            let tracked = TrackedTask::new(pod, task, &self.limits, now, self.age(pod, clock));
            self.tasks.insert(pod.id.name.clone(), Box::new(tracked));
        }
        let grace = self.limits.grace;
        let tracked = self.tasks.get_mut(&pod.id.name)?;
        tracked.phase = if pod.deleting { "deleting" } else { observation.phase_label() };
        tracked.durations = durations(observation);
        tracked.is_deleting |= pod.deleting;
        // The end of a Pod that had ended before the first observation is not measured.
        if is_known && matches!(observation.phase, Phase::Ended(_)) {
            tracked.ended_at.get_or_insert(now);
        }
        let is_settling = match tracked.stage {
            Stage::Following => false,
            Stage::Settling(..) => true,
            _ => return None,
        };
        let Transition::Terminate(termination) = tracked.lifecycle.observe(observation, now) else { return None };
        if termination.settle_time.is_zero() {
            // While settling too: the cause that is known now may be better than the first one.
            return Some(tracked.record(termination));
        }
        if !is_settling {
            let until = now + termination.settle_time.min(grace);
            tracked.stage = Stage::Settling(termination, until);
        }
        None
    }

    /// Terminates a Pod of a one-off command that no longer runs.
    pub fn adopt(
        &mut self,
        pod: &TaskPod,
        task: &Task,
        termination: Termination,
        now: (Instant, Timestamp),
    ) -> Option<Job> {
        if self.get_mut(&pod.id.name, &pod.id.uid).is_some() {
            return None;
        }
        let mut tracked = TrackedTask::new(pod, task, &self.limits, now.0, self.age(pod, now.1));
        tracked.is_deleting = pod.deleting;
        let job = tracked.record(termination);
        self.tasks.insert(pod.id.name.clone(), Box::new(tracked));
        Some(job)
    }

    /// What the log has of the start of a tracked task.
    pub fn start_log(&mut self, pod: &PodRef) -> Option<&mut StartLog> {
        self.get_mut(&pod.name, &pod.uid).map(|tracked| &mut tracked.start_log)
    }

    /// The initial list is complete.
    pub fn synced(&mut self) {
        self.is_synced = true;
    }

    /// The age of a Pod. The API server's clock matters only for Pods that are older than this process: a Pod that appears
    /// later is new, whatever the two clocks show.
    fn age(&self, pod: &TaskPod, clock: Timestamp) -> Duration {
        let created = pod.created_at.filter(|_| !self.is_synced);
        created.and_then(|created| Duration::try_from(clock.duration_since(created)).ok()).unwrap_or_default()
    }

    fn get_mut(&mut self, pod: &str, uid: &str) -> Option<&mut TrackedTask> {
        self.tasks.get_mut(pod).filter(|tracked| tracked.pod.uid == uid).map(Box::as_mut)
    }

    /// The Pod no longer exists.
    pub fn deleted(&mut self, pod: &str, uid: &str) -> Option<Job> {
        let tracked = self.get_mut(pod, uid)?;
        tracked.is_gone = true;
        match &tracked.stage {
            Stage::Done => {
                self.tasks.remove(pod);
                None
            }
            Stage::Following => Some(tracked.record(Termination::deleted())),
            Stage::Settling(termination, _) => {
                let termination = termination.clone();
                Some(tracked.record(termination))
            }
            Stage::ShuttingDown(_) => Some(tracked.start(Action::DeleteSecrets)),
            Stage::Working(_) | Stage::Retrying(..) => None,
        }
    }

    /// A worker finished the job of a Pod.
    pub fn job_succeeded(&mut self, pod: &str, uid: &str, now: Instant) -> Option<Job> {
        let force_at = now + self.limits.grace + DELETION_SLACK;
        let tracked = self.get_mut(pod, uid)?;
        let action = tracked.take_action()?;
        tracked.backoff.reset();
        let next = match action {
            Action::DeletePod { grace: Some(Duration::ZERO) } | Action::DeleteSecrets => {
                if tracked.is_gone {
                    self.tasks.remove(pod);
                }
                return None;
            }
            // The Pod stays until then: after a restart it shows that the console must be asked.
            Action::RecordOutcome { termination, .. } if tracked.task.then_run.is_some() => {
                Some(Action::ThenRun { grace: termination.grace, give_up_at: now + THEN_RUN_TIMEOUT })
            }
            _ if tracked.is_gone => Some(Action::DeleteSecrets),
            Action::RecordOutcome { termination: Termination { grace, .. }, .. } | Action::ThenRun { grace, .. } => {
                // Containers of a Pod that is being deleted have a grace period already.
                let needs_deletion = !tracked.is_deleting || grace.is_some_and(|grace| !grace.is_zero());
                needs_deletion.then_some(Action::DeletePod { grace })
            }
            Action::DeletePod { .. } => None,
        };
        if next.is_none() {
            tracked.stage = Stage::ShuttingDown(force_at);
        }
        next.map(|action| tracked.start(action))
    }

    /// The job of a Pod failed; it is handed out again later.
    pub fn job_failed(&mut self, pod: &str, uid: &str, now: Instant) {
        let Some(tracked) = self.get_mut(pod, uid) else { return };
        if let Some(action) = tracked.take_action() {
            tracked.stage = Stage::Retrying(action, now + tracked.backoff.next_delay());
        }
    }

    /// The jobs of all deadlines that have passed.
    pub fn due(&mut self, now: Instant) -> Vec<Job> {
        let due = |tracked: &mut Box<TrackedTask>| match &tracked.stage {
            Stage::Following => tracked.lifecycle.deadline_exceeded(now).map(|termination| tracked.record(termination)),
            Stage::Settling(termination, until) if now >= *until => {
                let termination = termination.clone();
                Some(tracked.record(termination))
            }
            Stage::Retrying(action, at) if now >= *at => {
                let action = action.clone();
                Some(tracked.start(action))
            }
            Stage::ShuttingDown(until) if now >= *until => {
                Some(tracked.start(Action::DeletePod { grace: Some(Duration::ZERO) }))
            }
            _ => None,
        };
        self.tasks.values_mut().filter_map(due).collect()
    }

    /// The number of Pods in each of [`PHASES`].
    pub fn counts(&self) -> [usize; PHASES.len()] {
        let mut counts = [0; PHASES.len()];
        for tracked in self.existing() {
            if let Some(index) = PHASES.iter().position(|phase| *phase == tracked.phase) {
                counts[index] += 1;
            }
        }
        counts
    }

    /// The number of tasks that have not ended.
    pub fn running(&self) -> usize {
        self.tasks.values().filter(|tracked| matches!(tracked.stage, Stage::Following)).count()
    }

    /// The existing Pods by name.
    pub fn pods(&self) -> HashMap<String, Arc<PodRef>> {
        self.existing().map(|tracked| (tracked.pod.name.clone(), Arc::clone(&tracked.pod))).collect()
    }

    /// The Pods of tasks with a row in `source_task` by task id. Of a discover and the read that follows it, the read.
    pub fn with_rows(&self) -> HashMap<String, Arc<PodRef>> {
        let of = |is_wanted: fn(&TrackedTask) -> bool| {
            let tracked = self.tasks.values().map(Box::as_ref).filter(move |tracked| is_wanted(tracked));
            tracked.map(|tracked| (tracked.task.task_id.clone(), Arc::clone(&tracked.pod)))
        };
        let discovers = of(|tracked| tracked.task.then_run.is_some() && (!tracked.is_gone || tracked.is_before_read()));
        let reads = of(|tracked| tracked.task.kind == TaskKind::Read && !tracked.is_gone);
        discovers.chain(reads).collect()
    }

    fn existing(&self) -> impl Iterator<Item = &TrackedTask> {
        self.tasks.values().map(Box::as_ref).filter(|tracked| !tracked.is_gone)
    }
}

impl TrackedTask {
    fn new(pod: &TaskPod, task: &Task, limits: &Limits, now: Instant, age: Duration) -> Self {
        let launched_at = now.checked_sub(age).unwrap_or(now);
        Self {
            pod: Arc::new(pod.id.clone()),
            // Its row holds `started_by`.
            task: Arc::new(Task { started_by: None, ..task.clone() }),
            lifecycle: TaskLifecycle::new(launched_at, task.timeout, limits.init_timeout),
            phase: PHASES[0],
            durations: Durations::default(),
            start_log: StartLog::default(),
            stage: Stage::Following,
            is_gone: false,
            is_deleting: false,
            ended_at: None,
            backoff: JOB_BACKOFF,
        }
    }

    /// Whether the console is being asked to start the read.
    fn is_before_read(&self) -> bool {
        matches!(
            self.stage,
            Stage::Working(Action::RecordOutcome { .. } | Action::ThenRun { .. })
                | Stage::Retrying(Action::RecordOutcome { .. } | Action::ThenRun { .. }, _)
        )
    }

    fn record(&mut self, termination: Termination) -> Job {
        let (ended_at, durations) = (self.ended_at, self.durations);
        self.start(Action::RecordOutcome { termination, ended_at, durations })
    }

    /// Ends the current job. `None` if there is none.
    fn take_action(&mut self) -> Option<Action> {
        let Stage::Working(action) = &self.stage else { return None };
        let action = action.clone();
        self.stage = Stage::Done;
        Some(action)
    }

    fn start(&mut self, action: Action) -> Job {
        self.stage = Stage::Working(action.clone());
        Job { pod: Arc::clone(&self.pod), task: Arc::clone(&self.task), action }
    }
}

fn durations(observation: &Observation) -> Durations {
    let between = |from: Option<Timestamp>, to: Option<Timestamp>| Duration::try_from(to?.duration_since(from?)).ok();
    let ended_at = match &observation.phase {
        Phase::Ended(ended) => ended.at,
        _ => None,
    };
    Durations {
        queue: between(observation.created_at, observation.scheduled_at),
        pull: between(observation.scheduled_at, observation.started_at),
        run: between(observation.started_at, ended_at),
    }
}

#[cfg(test)]
#[path = "tracked_tasks_tests.rs"]
mod tests;
