//! `GET /cancel`: ends whatever runs under the name of a task.
//!
//! Callers cancel tasks whose rows they have changed or never had, with any package: Pods are found by the ids that they
//! carry. A Pod of another sync is not touched, so that the id of a task alone does not give access to it.

use std::collections::BTreeSet;

use serde_json::json;

use super::app::App;
use super::handlers::{ok, respond};
use super::params::{self, Cancel};
use super::service::Response;
use crate::controller::outcome;
use crate::db::StoredTask;
use crate::failure::{Class, Failure};
use crate::pod::PodError;
use crate::task::{Task, TaskKind, TaskStatus};

/// `GET /cancel`.
pub fn cancel(app: &App, query: &[(String, String)]) -> Response {
    respond(params::cancel(query), |request| {
        let (db, task_id) = (app.db()?, &request.task_id);
        let row = db.task(task_id)?.filter(|row| row.sync_id == request.sync_id);
        let cancelled = Failure::new(Class::Cancelled, "the task was cancelled");
        // Before the Pods are deleted: the outcome of a task is recorded first.
        if let Some(row) = row.as_ref().filter(|row| row.status == Some(TaskStatus::Running)) {
            outcome::record_failure(&db, &read_of(row), &cancelled)?;
        }
        let mut pods = BTreeSet::new();
        match app.backend.watcher.find(task_id) {
            Ok(found) => {
                for pod in found.into_iter().filter(|pod| pod.sync_id.is_empty() || pod.sync_id == request.sync_id) {
                    if let Ok(task) = &pod.task {
                        outcome::conclude(&db, task, &cancelled)?;
                    }
                    pods.insert(pod.name);
                }
            }
            Err(error @ PodError::Forbidden { .. }) => {
                tracing::warn!(%error, "cannot look for the Pods of a cancelled task; deleting those that it may have");
                pods = possible_pods(&request, row.as_ref());
            }
            Err(error) => return Err(error.into()),
        }
        // A read that is accepted at this moment has documents, and no Pod yet.
        pods.extend(row.as_ref().map(|row| read_of(row).pod_name()));
        for pod in pods {
            app.backend.launcher.delete(&pod, None)?;
        }
        let row = db.task(task_id)?.filter(|row| row.sync_id == request.sync_id);
        let mut answer = json!({"taskId": task_id});
        if let Some(row) = row {
            answer["taskStatus"] = json!(row.status_text);
        }
        Ok(ok(answer))
    })
}

fn read_of(row: &StoredTask) -> Task {
    Task::of_read(&row.package, &row.version, &row.sync_id, &row.task_id, row.started_at)
}

/// The names of the Pods that a task may have, where Pods cannot be listed.
fn possible_pods(request: &Cancel, row: Option<&StoredTask>) -> BTreeSet<String> {
    let packages = [request.package.as_deref(), row.map(|row| row.package.as_str())];
    let kinds = [
        (TaskKind::Read, request.sync_id.as_str()),
        (TaskKind::Discover, &request.sync_id),
        (TaskKind::Discover, ""),
        (TaskKind::Check, ""),
        (TaskKind::Spec, ""),
    ];
    let names = packages.into_iter().flatten().flat_map(|package| {
        kinds.map(|(kind, sync_id)| {
            let read = Task::of_read(package, "", sync_id, &request.task_id, jiff::Timestamp::UNIX_EPOCH);
            Task { kind, ..read }.pod_name()
        })
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::{Cancel, possible_pods};

    #[test]
    fn the_names_of_pods_depend_on_the_kind_and_on_the_package() {
        let request = |package: Option<&str>| Cancel {
            package: package.map(str::to_owned),
            sync_id: "s".to_owned(),
            task_id: "t".to_owned(),
        };
        let names = possible_pods(&request(Some("airbyte/source-faker")), None);
        assert_eq!(names.len(), 5, "{names:?}");
        for kind in ["read", "discover", "check", "spec"] {
            assert!(names.iter().any(|name| name.starts_with(&format!("source-faker-{kind}-"))), "{kind}: {names:?}");
        }
        assert!(possible_pods(&request(None), None).is_empty());
    }
}
