//! `GET /cancel`: ends whatever runs under the name of a task.
//!
//! Callers cancel tasks whose rows they have changed or never had, with any package: Pods are found by the ids that they
//! carry. A Pod of another sync is not touched, so that the id of a task alone does not give access to it.

use std::collections::BTreeSet;

use serde_json::json;

use super::app::App;
use super::auth::Caller;
use super::authorize;
use super::handlers::{ok, respond};
use super::params::{self, Cancel};
use super::service::Response;
use crate::controller::outcome;
use crate::db::StoredTask;
use crate::failure::{Class, Failure};
use crate::pod::{PodError, PodOfTask};
use crate::task::{Task, TaskKind, TaskStatus};

/// `GET /cancel`.
pub fn cancel(app: &App, caller: &Caller, query: &[(String, String)]) -> Response {
    respond(params::cancel(query), |request| {
        if let Err(denial) = caller.check_sync(&request.sync_id) {
            return Ok(authorize::denied(caller, &denial));
        }
        let is_visible = |row: &StoredTask| row.sync_id == request.sync_id && authorize::sees(caller, row);
        let (db, task_id) = (app.db()?, &request.task_id);
        let row = db.task(task_id)?.filter(is_visible);
        let cancelled = Failure::new(Class::Cancelled, "the task was cancelled");
        // Before the Pods are deleted: the outcome of a task is recorded first.
        if let Some(row) = row.as_ref().filter(|row| row.status == Some(TaskStatus::Running)) {
            outcome::record_failure(&db, &read_of(row), &cancelled)?;
        }
        let mut pods = BTreeSet::new();
        match app.backend.watcher.find(task_id) {
            Ok(found) => {
                for pod in found.into_iter().filter(|pod| may_end(caller, &request.sync_id, pod)) {
                    if let Ok(task) = &pod.task {
                        outcome::conclude(&db, task, &cancelled)?;
                    }
                    pods.insert(pod.name);
                }
            }
            Err(error @ PodError::Forbidden { .. }) => {
                tracing::warn!(%error, "cannot look for the Pods of a cancelled task; deleting those that it may have");
                pods = possible_pods(caller, &request, row.as_ref());
            }
            Err(error) => return Err(error.into()),
        }
        // A read that is accepted at this moment has documents, and no Pod yet.
        pods.extend(row.as_ref().map(|row| read_of(row).pod_name()));
        for pod in pods {
            app.backend.launcher.delete(&pod, None)?;
        }
        let row = db.task(task_id)?.filter(is_visible);
        let mut answer = json!({"taskId": task_id});
        if let Some(row) = row {
            answer["taskStatus"] = json!(row.status_text);
        }
        tracing::info!(task = task_id, token = caller.name(), "cancelled a task, if it was running");
        Ok(ok(answer))
    })
}

/// Whether a request for this sync may end a Pod with the id of its task. A Pod without a sync is that of a spec, check or
/// discover.
fn may_end(caller: &Caller, sync_id: &str, pod: &PodOfTask) -> bool {
    let is_of_sync = pod.sync_id.is_empty() || pod.sync_id == sync_id;
    is_of_sync && pod.task.as_ref().map_or(!caller.is_limited(), |task| caller.owns(task))
}

fn read_of(row: &StoredTask) -> Task {
    Task::of_read(&row.package, &row.version, &row.sync_id, &row.task_id, row.started_at)
}

/// The kinds of tasks, and whether they belong to a sync.
const KINDS: [(TaskKind, bool); 5] = [
    (TaskKind::Read, true),
    (TaskKind::Discover, true),
    (TaskKind::Discover, false),
    (TaskKind::Check, false),
    (TaskKind::Spec, false),
];

/// The names of the Pods that a task may have, where Pods cannot be listed.
fn possible_pods(caller: &Caller, request: &Cancel, row: Option<&StoredTask>) -> BTreeSet<String> {
    // Who has started one without a sync is not known.
    let kinds = if caller.is_limited() { &KINDS[..2] } else { &KINDS };
    let packages = [request.package.as_deref(), row.map(|row| row.package.as_str())];
    let names = packages.into_iter().flatten().flat_map(|package| {
        kinds.iter().map(move |(kind, has_sync)| {
            let (kind, sync_id) = (*kind, if *has_sync { request.sync_id.as_str() } else { "" });
            let read = Task::of_read(package, "", sync_id, &request.task_id, jiff::Timestamp::UNIX_EPOCH);
            Task { kind, ..read }.pod_name()
        })
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::{Caller, Cancel, possible_pods};

    #[test]
    fn the_names_of_pods_depend_on_the_kind_and_on_the_package() {
        let request = |package: Option<&str>| Cancel {
            package: package.map(str::to_owned),
            sync_id: "s".to_owned(),
            task_id: "t".to_owned(),
        };
        let names = possible_pods(&Caller::default(), &request(Some("airbyte/source-faker")), None);
        assert_eq!(names.len(), 5, "{names:?}");
        for kind in ["read", "discover", "check", "spec"] {
            assert!(names.iter().any(|name| name.starts_with(&format!("source-faker-{kind}-"))), "{kind}: {names:?}");
        }
        assert!(possible_pods(&Caller::default(), &request(None), None).is_empty());
    }
}
