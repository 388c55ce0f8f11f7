//! Cleans up after one-off commands that were killed.
//!
//! Touches only what a one-off command created, and only if that command certainly does not follow it any more: its
//! process on this machine has ended, or the Pod ended long ago. The Pods of `serve` belong to `serve`.

use std::collections::HashSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::lifecycle::Termination;
use super::outcome;
use crate::db::{Db, OpenAttempt};
use crate::failure::{Class, Failure};
use crate::pod::status::{Observation, Phase};
use crate::pod::{Backend, PodError, TaskPod};
use crate::process::{Liveness, ProcessId};
use crate::task::Task;

/// A command on another machine deletes its Pod within seconds of its end; after this time it was killed.
const UNATTENDED: SignedDuration = SignedDuration::from_mins(10);
/// The same for one without a Pod: no spec, check or discover takes longer, and the row of a read gets heartbeats.
const WITHOUT_POD: SignedDuration = SignedDuration::from_mins(20);
/// The row of a running task gets a heartbeat more often than this.
pub const STALE: Duration = Duration::from_hours(1);
/// The same for the row of a killed command whose Pod may still run in the cluster: the sidecar sends heartbeats.
const SILENT: Duration = Duration::from_mins(2);
/// The grace period of an abandoned Pod.
const GRACE: Duration = Duration::from_secs(10);
/// How long to wait for the end of an abandoned Pod; then it is deleted without waiting for its node.
const DELETION_TIMEOUT: Duration = Duration::from_secs(20);

/// Records the outcomes of abandoned tasks and deletes their Pods and Secrets. Returns the Pods to
/// [wait for](wait_deleted). A missing permission is only logged; an unreachable cluster is an error.
pub fn clean_up(backend: &Backend, db: &Db) -> Result<Vec<String>, Failure> {
    for task in db.fail_stale_tasks(STALE)? {
        tracing::warn!(task, "closed a task without a heartbeat");
    }
    match delete_abandoned(backend, db) {
        Ok(deleted) => Ok(deleted),
        Err(error @ (PodError::Unreachable { .. } | PodError::Kubeconfig(_))) => Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, "cannot clean up after killed commands");
            Ok(Vec::new())
        }
    }
}

fn delete_abandoned(backend: &Backend, db: &Db) -> Result<Vec<String>, PodError> {
    let now = Timestamp::now();
    let pods = backend.watcher.list()?;
    let mut deleted = Vec::new();
    for pod in pods.iter().filter(|pod| is_abandoned_pod(pod, now)) {
        let name = &pod.id.name;
        tracing::info!(pod = name, "removing the task of a killed command");
        record_outcome(db, pod);
        // The end of a Pod that is being deleted already must be awaited, too.
        if !pod.deleting {
            backend.launcher.delete(name, Some(GRACE))?;
        }
        deleted.push(name.clone());
    }
    let names: HashSet<&str> = pods.iter().map(|pod| pod.id.name.as_str()).collect();
    if let Err(error) = close_rows(backend, db, &names, now) {
        tracing::warn!(%error, "cannot close the rows of killed commands");
    }
    if let Err(error) = close_attempts(backend, db, &names, now) {
        tracing::warn!(%error, "cannot remove what killed commands left before they created a Pod");
    }
    Ok(deleted)
}

/// Closes the rows of commands that were killed before they created a Pod, or whose Pod is gone, and deletes their Secrets.
fn close_rows(backend: &Backend, db: &Db, pods: &HashSet<&str>, now: Timestamp) -> Result<(), Failure> {
    let idle = if backend.shutdown.is_none() { SILENT } else { Duration::ZERO };
    for (row, process) in db.idle_cli_tasks(idle)? {
        let task = Task::of_read(&row.package, &row.version, &row.sync_id, &row.task_id, row.started_at);
        if is_unattended(Some(&process), row.updated_at, now) && !pods.contains(task.pod_name().as_str()) {
            close(backend, db, &task)?;
        }
    }
    Ok(())
}

/// The same for commands without a row of their own.
fn close_attempts(backend: &Backend, db: &Db, pods: &HashSet<&str>, now: Timestamp) -> Result<(), Failure> {
    for attempt in db.open_attempts(Duration::ZERO)? {
        let pod = attempt.task.pod_name();
        if is_abandoned_attempt(&attempt, now) && !pods.contains(pod.as_str()) {
            tracing::info!(pod, "closing the task of a killed command");
            close(backend, db, &attempt.task)?;
        }
    }
    Ok(())
}

fn close(backend: &Backend, db: &Db, task: &Task) -> Result<(), Failure> {
    // The Secrets first: a task that is closed is not found again.
    if backend.secrets.is_some() {
        backend.launcher.delete(&task.pod_name(), Some(Duration::ZERO))?;
    }
    outcome::conclude(db, task, &killed())?;
    Ok(())
}

/// Whether an attempt is that of a one-off command that no longer follows it.
pub fn is_abandoned_attempt(attempt: &OpenAttempt, now: Timestamp) -> bool {
    is_unattended(attempt.accepted_by.as_deref(), attempt.task.started_at, now)
}

fn killed() -> Failure {
    Failure::new(Class::Abandoned, "the syncctl process that followed this task was killed")
}

/// Whether a Pod belongs to a one-off command that no longer follows it.
pub fn is_abandoned_pod(pod: &TaskPod, now: Timestamp) -> bool {
    is_abandoned(pod.owner.as_deref(), pod.created_at, Some(&pod.observation), now)
}

/// Whether a command without a Pod in this namespace has ended: its Pod may be in another one, where it still runs.
fn is_unattended(process: Option<&str>, last_seen: Timestamp, now: Timestamp) -> bool {
    let Some(process) = process.and_then(|process| process.parse::<ProcessId>().ok()) else { return false };
    match process.liveness() {
        Liveness::Running => false,
        Liveness::Ended => true,
        Liveness::Unknown => now.duration_since(last_seen) > WITHOUT_POD,
    }
}

fn is_abandoned(
    owner: Option<&str>,
    created_at: Option<Timestamp>,
    observation: Option<&Observation>,
    now: Timestamp,
) -> bool {
    let Some(owner) = owner.and_then(|owner| owner.parse::<ProcessId>().ok()) else { return false };
    match owner.liveness() {
        Liveness::Running => false,
        Liveness::Ended => true,
        Liveness::Unknown => {
            let is_long_ago = |at: Timestamp| now.duration_since(at) > UNATTENDED;
            let ended = |observation: &Observation| match &observation.phase {
                Phase::Ended(ended) => ended.at.is_some_and(is_long_ago),
                _ => false,
            };
            created_at.is_some_and(is_long_ago) && observation.is_none_or(ended)
        }
    }
}

/// How an abandoned task terminates.
pub fn termination(pod: &TaskPod) -> Termination {
    let failure = match &pod.observation.phase {
        Phase::Ended(ended) => ended.failure(),
        _ => killed(),
    };
    Termination { grace: Some(GRACE), ..Termination::immediate(failure) }
}

/// Records the outcome of an abandoned task, unless the sidecar has.
fn record_outcome(db: &Db, pod: &TaskPod) {
    match &pod.task {
        Ok(task) => {
            if let Err(error) = outcome::conclude(db, task, &termination(pod).failure) {
                tracing::warn!(%error, task = task.task_id, "cannot record the outcome of the task");
            }
        }
        Err(error) => tracing::warn!(pod = pod.id.name, error, "cannot read the description of a task"),
    }
}

/// Waits until abandoned Pods are gone.
pub fn wait_deleted(backend: &Backend, pods: &[String]) {
    for pod in pods {
        if let Err(error) = backend.launcher.wait_deleted(pod, DELETION_TIMEOUT) {
            tracing::warn!(%error, "an abandoned task still exists");
        }
    }
}
