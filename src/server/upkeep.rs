//! What has to be done from time to time, off the watch path: signs of life, rows and Secrets without a Pod, old logs,
//! and whether database and cluster answer.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use super::app::App;
use super::monitor::{Census, Signal};
use crate::controller::{cleanup, outcome};
use crate::failure::{Class, Failure};
use crate::pod::Owned;
use crate::task::Task;

/// Until a chore is tried again for which it was not the time, or which failed.
const SOON: Duration = Duration::from_secs(2);
/// How often database and cluster are asked whether they answer.
const PROBE: Duration = Duration::from_secs(5);
/// How often running tasks get a sign of life; the stale sweep looks an hour back.
const HEARTBEAT: Duration = Duration::from_mins(1);
/// How often Pods are looked for that must not run.
const UNWANTED: Duration = Duration::from_mins(1);
/// How often rows and Secrets without a Pod are looked for.
const STRAYS: Duration = Duration::from_mins(1);
/// How often stale rows are looked for.
const STALE: Duration = Duration::from_mins(5);
/// A discover takes ten minutes at most and its Pod five more: a catalog that says RUNNING for longer never ends.
const STALE_CATALOG: Duration = Duration::from_mins(20);
/// How often old logs are deleted.
const TRIM: Duration = Duration::from_hours(1);
/// A row without a Pod may be a launch of another process that has not come to its Pod yet.
const LAUNCHING: Duration = Duration::from_secs(30);
/// The same for a Secret, by the API server's clock.
const LAUNCHING_SECRET: SignedDuration = SignedDuration::from_secs(30);
/// How long the monitor may take to answer.
const CENSUS: Duration = Duration::from_secs(10);

/// Ends the threads.
pub struct Upkeep {
    stop: Arc<AtomicBool>,
}

impl Upkeep {
    /// Starts the threads.
    pub fn start(app: &Arc<App>, signals: &Sender<Signal>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        Arc::clone(app).thread("probe", {
            let (app, stop) = (Arc::clone(app), Arc::clone(&stop));
            move || repeat(&stop, &mut [(PROBE, &mut || probe(&app))])
        });
        Arc::clone(app).thread("upkeep", {
            let (app, stop, signals) = (Arc::clone(app), Arc::clone(&stop), signals.clone());
            move || upkeep(&app, &signals, &stop)
        });
        Arc::clone(app).thread("logs", {
            let (app, stop) = (Arc::clone(app), Arc::clone(&stop));
            move || repeat(&Arc::clone(&stop), &mut [(TRIM, &mut || trim(&app, &stop))])
        });
        Self { stop }
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Something to do, and how often.
type Chore<'a> = (Duration, &'a mut dyn FnMut() -> bool);

/// Does each chore in its turn until it is stopped. One that says that it was not the time for it is tried again soon.
fn repeat(stop: &AtomicBool, chores: &mut [Chore<'_>]) {
    let mut next: Vec<Instant> = chores.iter().map(|_| Instant::now()).collect();
    while !stop.load(Ordering::Relaxed) {
        for (index, (period, chore)) in chores.iter_mut().enumerate() {
            if Instant::now() >= next[index] {
                let done = chore();
                next[index] = Instant::now() + if done { *period } else { SOON };
            }
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn probe(app: &App) -> bool {
    app.ready.database(app.patient_db().is_ok_and(|db| db.ping().is_ok()));
    app.ready.cluster(app.cluster.reachable().is_ok());
    true
}

/// Only in the process that leads; every chore says whether it was done.
fn upkeep(app: &Arc<App>, signals: &Sender<Signal>, stop: &AtomicBool) {
    let tell = |what: &str, result: Result<(), Failure>| match result {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, what, "will be tried again");
            false
        }
    };
    let led = || census(app, signals);
    repeat(
        stop,
        &mut [
            (HEARTBEAT, &mut || led().is_some_and(|census| tell("signs of life", heartbeat(app, &census)))),
            (UNWANTED, &mut || led().is_some_and(|census| tell("unwanted pods", unwanted(app, &census)))),
            (STRAYS, &mut || led().is_some_and(|_| tell("rows and secrets without a pod", strays(app, &led)))),
            (STALE, &mut || led().is_some_and(|census| tell("stale rows", stale(app, &census)))),
        ],
    );
}

fn census(app: &App, signals: &Sender<Signal>) -> Option<Census> {
    if !app.leads() {
        return None;
    }
    let (answer, inbox) = mpsc::channel();
    signals.send(Signal::Census(answer)).ok()?;
    inbox.recv_timeout(CENSUS).ok()
}

fn heartbeat(app: &App, census: &Census) -> Result<(), Failure> {
    let ids: Vec<&str> = census.reads.keys().map(String::as_str).collect();
    app.patient_db()?.heartbeats(&ids)?;
    Ok(())
}

/// Pods that run although their rows say that they must not: a process was killed between the row and the Pod of a task
/// that it cancelled, or a Pod was made after all when the API server did not answer in time.
fn unwanted(app: &App, census: &Census) -> Result<(), Failure> {
    let ids: Vec<&str> = census.reads.keys().map(String::as_str).collect();
    for id in app.patient_db()?.unwanted_of(&ids, Class::ClusterUnreachable)? {
        if let Some(pod) = census.reads.get(&id) {
            // One that is being deleted already keeps its time.
            app.cluster.delete_uid(&pod.name, &pod.uid, None)?;
        }
    }
    Ok(())
}

fn stale(app: &App, census: &Census) -> Result<(), Failure> {
    let db = app.patient_db()?;
    // After a long outage of the database, or of ours, what runs has given no sign of life either.
    heartbeat(app, census)?;
    for task in db.sweep_stale(cleanup::STALE)? {
        tracing::warn!(task, "a task that gave no sign of life was closed");
    }
    for key in db.sweep_stale_catalogs(STALE_CATALOG)? {
        tracing::warn!(package = key.package, key = key.key, "a discover that gave no sign of life was closed");
    }
    Ok(())
}

/// The process that accepted a task was killed before its Pod was there, or the Pod went while nobody looked.
fn strays(app: &App, census: &dyn Fn() -> Option<Census>) -> Result<(), Failure> {
    let db = app.patient_db()?;
    let rows = db.running_tasks_marked(app.marker()?, LAUNCHING)?;
    let secrets = app.cluster.secrets()?;
    // Asked for after the rows and Secrets were read: what is running had its Pod by then.
    let Some(census) = census() else { return Ok(()) };
    let now = Timestamp::now();
    let is_young = |secret: &Owned| secret.created_at.is_none_or(|at| now.duration_since(at) < LAUNCHING_SECRET);
    // A launch with large documents makes many Secrets, one after the other: the newest tells whether it goes on.
    let launching: HashSet<&str> = secrets.iter().filter(|secret| is_young(secret)).map(pod_of).collect();
    let mut seen = HashSet::new();
    for secret in secrets.iter().filter(|secret| !secret.has_controller) {
        // All Secrets of a Pod get their owner at once.
        if census.pods.contains_key(pod_of(secret)) && !seen.insert(pod_of(secret)) {
            continue;
        }
        let left = match secret.owner {
            None => !launching.contains(pod_of(secret)),
            // A one-off command that was killed: perhaps there is no other one that would look for it.
            Some(_) => cleanup::is_abandoned(secret, now),
        };
        if left {
            stray_secret(app, secret, &census)?;
        }
    }
    // After the Secrets, which tell more of a task that never had a Pod.
    for row in rows.iter().filter(|row| !census.reads.contains_key(&row.task_id)) {
        let task = Task::of_read(&row.package, &row.version, &row.sync_id, &row.task_id, row.started_at);
        if launching.contains(task.pod_name().as_str()) {
            continue;
        }
        if app.cluster.pod(&task.pod_name())?.is_none() {
            let failure = Failure::new(Class::PodDeleted, "the pod is gone, and nobody saw how it ended");
            tracing::warn!(task = task.task_id, "closing a task whose pod is gone");
            outcome::conclude(db, &task, &failure)?;
        }
    }
    Ok(())
}

/// The name of the Pod that a Secret is for.
fn pod_of(secret: &Owned) -> &str {
    secret.name.rsplit_once("-config").map_or("", |(pod, _)| pod)
}

/// A Secret that its Pod does not own: either that was left for later, or there is no such Pod.
fn stray_secret(app: &App, secret: &Owned, census: &Census) -> Result<(), Failure> {
    let pod = pod_of(secret);
    if let Some(pod) = census.pods.get(pod) {
        app.cluster.own_secrets(&pod.name, &pod.uid, pod.secrets)?;
        return Ok(());
    }
    if app.cluster.pod(pod)?.is_some() {
        return Ok(());
    }
    if let Ok(task) = &secret.task {
        let failure =
            Failure::new(Class::Abandoned, "the process that accepted the task ended before its pod was created");
        outcome::conclude(app.patient_db()?, task, &failure)?;
    }
    tracing::warn!(secret = secret.name, "removing a secret without a pod");
    // A task that was asked for once more may have one of this name by now.
    app.cluster.delete_secret_uid(&secret.name, &secret.uid)?;
    Ok(())
}

fn trim(app: &App, stop: &AtomicBool) -> bool {
    if !app.leads() {
        return false;
    }
    let Ok(db) = app.patient_db() else { return false };
    match db.trim_logs(app.serve.log_rows, app.serve.log_age, &|| stop.load(Ordering::Relaxed)) {
        Ok(trimmed) => tracing::info!(?trimmed, "old log lines were deleted"),
        Err(error) => tracing::warn!(%error, "old log lines could not be deleted"),
    }
    true
}
