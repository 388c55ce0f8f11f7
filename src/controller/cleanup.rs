//! Cleaning up after one-off commands that were killed.
//!
//! Only what a one-off command made is touched, and only when it is certain that nobody follows it: its process on this
//! machine is dead, or the Pod ended long ago and nobody came. Pods of `serve` belong to `serve`.

use std::collections::HashSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::lifecycle::Termination;
use super::outcome;
use super::owner::{Life, Owner};
use crate::db::{Db, DbError};
use crate::failure::{Class, Failure};
use crate::pod::status::{Observation, Phase};
use crate::pod::{Backend, PodError, TaskPod, TaskSecret};
use crate::task::Task;

/// A Pod of another machine's command: that command would have removed it within seconds.
const UNATTENDED: SignedDuration = SignedDuration::from_mins(10);
/// A row that says RUNNING and was not touched for this long belongs to nothing that runs.
pub const STALE: Duration = Duration::from_hours(1);
/// A row of a command that was killed is left alone for so long where its Pod may go on somewhere else: sidecars give
/// signs of life much more often.
const SILENT: Duration = Duration::from_mins(2);
/// How long the containers of an abandoned Pod get.
const GRACE: Duration = Duration::from_secs(10);
/// How long their end is waited for; then the Pod goes without its node's word.
const GONE: Duration = Duration::from_secs(20);

/// Records and deletes what nobody follows; returns the Pods whose end is still to be waited for.
///
/// A missing right is no reason to refuse a task; a cluster that does not answer is.
pub fn sweep(backend: &Backend, db: &Db) -> Result<Vec<String>, Failure> {
    for task in db.fail_stale_tasks(STALE)? {
        tracing::warn!(task, "a task that gave no sign of life was closed");
    }
    match try_sweep(backend, db) {
        Ok(swept) => Ok(swept),
        Err(error @ (PodError::Unreachable { .. } | PodError::Kubeconfig(_))) => Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, "what killed commands left behind could not be looked for");
            Ok(Vec::new())
        }
    }
}

fn try_sweep(backend: &Backend, db: &Db) -> Result<Vec<String>, PodError> {
    let now = Timestamp::now();
    let pods = backend.watcher.list()?;
    let mut swept = Vec::new();
    for pod in pods.iter().filter(|pod| is_abandoned_pod(pod, now)) {
        tracing::info!(pod = %pod.id.name, "removing a pod whose command was killed");
        close(db, pod);
        // One that is being deleted already still has to be seen off.
        if !pod.deleting {
            backend.launcher.delete(&pod.id.name, Some(GRACE))?;
        }
        swept.push(pod.id.name.clone());
    }
    let names: HashSet<&str> = pods.iter().map(|pod| pod.id.name.as_str()).collect();
    if let Err(error) = close_rows(backend, db, &names) {
        tracing::warn!(%error, "the rows of killed commands stay open");
    }
    if let Some(secrets) = &backend.secrets {
        for secret in secrets.list_secrets()? {
            if !secret.is_owned && !names.contains(secret.pod.as_str()) && is_abandoned_secret(&secret, now) {
                tracing::info!(secret = %secret.name, "removing a secret whose command was killed");
                secrets.delete_secret(&secret)?;
            }
        }
    }
    Ok(swept)
}

/// Closes the rows of commands that were killed before they had made a Pod, or whose Pod is gone.
fn close_rows(backend: &Backend, db: &Db, pods: &HashSet<&str>) -> Result<(), DbError> {
    let idle = if backend.shutdown.is_none() { SILENT } else { Duration::ZERO };
    for (row, process) in db.idle_cli_tasks(idle)? {
        let task = Task::of_read(&row.package, &row.version, &row.sync_id, &row.task_id, row.started_at);
        let dead = process.parse::<Owner>().is_ok_and(|owner| owner.life() == Life::Dead);
        if dead && !pods.contains(task.pod_name().as_str()) {
            outcome::conclude(db, &task, &killed())?;
        }
    }
    Ok(())
}

fn killed() -> Failure {
    Failure::new(Class::Abandoned, "the syncctl that followed this task was killed")
}

/// Whether nobody follows a Pod that a one-off command made.
pub fn is_abandoned_pod(pod: &TaskPod, now: Timestamp) -> bool {
    is_abandoned(pod.owner.as_deref(), pod.created_at, Some(&pod.observation), now)
}

/// Whether nobody follows the task of a Secret that a one-off command made.
pub fn is_abandoned_secret(secret: &TaskSecret, now: Timestamp) -> bool {
    is_abandoned(secret.owner.as_deref(), secret.created_at, None, now)
}

fn is_abandoned(
    owner: Option<&str>,
    created_at: Option<Timestamp>,
    observation: Option<&Observation>,
    now: Timestamp,
) -> bool {
    let Some(owner) = owner.and_then(|owner| owner.parse::<Owner>().ok()) else { return false };
    match owner.life() {
        Life::Alive => false,
        Life::Dead => true,
        Life::Elsewhere => {
            let is_long_ago = |at: Timestamp| now.duration_since(at) > UNATTENDED;
            let ended =
                |seen: &Observation| matches!(&seen.phase, Phase::Ended(ended) if ended.at.is_some_and(is_long_ago));
            created_at.is_some_and(is_long_ago) && observation.is_none_or(ended)
        }
    }
}

/// How an abandoned task ends.
pub fn termination(pod: &TaskPod) -> Termination {
    let failure = match &pod.observation.phase {
        Phase::Ended(ended) => ended.failure(),
        _ => killed(),
    };
    Termination { failure, grace: Some(GRACE), settle_time: Duration::ZERO, unexplained: false }
}

/// A terminal row, unless the sidecar has written one.
fn close(db: &Db, pod: &TaskPod) {
    let task = match &pod.task {
        Ok(task) => task,
        Err(error) => {
            tracing::warn!(pod = %pod.id.name, error, "the annotations of the pod tell no task");
            return;
        }
    };
    if matches!(outcome::outcome(db, task), Ok(Some(_)) | Err(_)) {
        return;
    }
    if let Err(error) = outcome::failure(db, task, &termination(pod).failure) {
        tracing::warn!(%error, task = task.task_id, "the outcome could not be recorded");
    }
}

/// Waits until what was swept is gone.
pub fn wait(backend: &Backend, swept: &[String]) {
    for pod in swept {
        if let Err(error) = backend.launcher.wait_deleted(pod, GONE) {
            tracing::warn!(%error, "an abandoned pod is still there");
        }
    }
}
