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
use crate::pod::status::Phase;
use crate::pod::{Owned, PodError, Pods};
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
pub fn sweep(cluster: &dyn Pods, db: &Db) -> Result<Vec<String>, Failure> {
    for task in db.fail_stale_tasks(STALE)? {
        tracing::warn!(task, "a task that gave no sign of life was closed");
    }
    match try_sweep(cluster, db) {
        Ok(swept) => Ok(swept),
        Err(error @ (PodError::Unreachable { .. } | PodError::Kubeconfig(_))) => Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, "what killed commands left behind could not be looked for");
            Ok(Vec::new())
        }
    }
}

fn try_sweep(cluster: &dyn Pods, db: &Db) -> Result<Vec<String>, PodError> {
    let now = Timestamp::now();
    let pods = cluster.pods()?;
    let mut swept = Vec::new();
    for pod in pods.iter().filter(|pod| is_abandoned(pod, now)) {
        tracing::info!(pod = %pod.name, "removing a pod whose command was killed");
        close(db, pod);
        // One that is being deleted already still has to be seen off.
        if !pod.deleting {
            cluster.delete(&pod.name, Some(GRACE))?;
        }
        swept.push(pod.name.clone());
    }
    let names: HashSet<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    if let Err(error) = close_rows(cluster, db, &names) {
        tracing::warn!(%error, "the rows of killed commands stay open");
    }
    for secret in cluster.secrets()? {
        let pod = secret.name.rsplit_once("-config").map_or("", |(pod, _)| pod);
        if !secret.has_controller && !names.contains(pod) && is_abandoned(&secret, now) {
            tracing::info!(secret = %secret.name, "removing a secret whose command was killed");
            cluster.delete_secret(&secret.name)?;
        }
    }
    Ok(swept)
}

/// Closes the rows of commands that were killed before they had made a Pod, or whose Pod is gone.
fn close_rows(cluster: &dyn Pods, db: &Db, pods: &HashSet<&str>) -> Result<(), DbError> {
    let idle = if cluster.outlives_us() { SILENT } else { Duration::ZERO };
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

/// Whether nobody follows an object that a one-off command made.
pub fn is_abandoned(object: &Owned, now: Timestamp) -> bool {
    let Some(owner) = object.owner.as_deref().and_then(|owner| owner.parse::<Owner>().ok()) else { return false };
    match owner.life() {
        Life::Alive => false,
        Life::Dead => true,
        Life::Elsewhere => {
            let old = object.created_at.is_some_and(|created| now.duration_since(created) > UNATTENDED);
            let ended = object.observation.as_ref().is_none_or(|seen| {
                matches!(&seen.phase, Phase::Ended(ended) if ended.at.is_some_and(|at| now.duration_since(at) > UNATTENDED))
            });
            old && ended
        }
    }
}

/// How an abandoned task ends.
pub fn termination(pod: &Owned) -> Termination {
    let failure = match pod.observation.as_ref().map(|seen| &seen.phase) {
        Some(Phase::Ended(ended)) => ended.failure(),
        _ => killed(),
    };
    Termination { failure, grace: Some(GRACE), settle_time: Duration::ZERO, unexplained: false }
}

/// A terminal row, unless the sidecar has written one.
fn close(db: &Db, pod: &Owned) {
    let task = match &pod.task {
        Ok(task) => task,
        Err(error) => {
            tracing::warn!(pod = %pod.name, error, "the annotations of the pod tell no task");
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
pub fn wait(cluster: &dyn Pods, swept: &[String]) {
    for pod in swept {
        if let Err(error) = cluster.wait_gone(pod, GONE) {
            tracing::warn!(%error, "an abandoned pod is still there");
        }
    }
}
