//! Types of destinations that the console knows and syncctl does not load itself.

use super::super::support::bulker::{Bulker, TOKEN};
use super::{INSTANT, MANUAL, Service, World, catalog, ended, json, post, running, unique, wait_empty};

const SECRET: &str = "hunter2-hunter2";

#[test]
fn destinations_that_syncctl_does_not_load_are_refused_before_a_task_exists() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    for kind in ["clickhouse", "bigquery", "snowflake", "redshift", "mysql", "s3", "gcs", "of-a-later-version"] {
        let destination = json!({"destinationType": kind, "password": SECRET});
        let body = json!({"config": {}, "catalog": catalog(&["items"]), "destinationConfig": destination});
        let query = [("syncId", "sync"), ("taskId", kind), ("startedBy", MANUAL)];
        let (status, answer) = post(&service, "/read", INSTANT, &query, &body);
        let error = answer["error"].as_str().unwrap_or_default();
        assert_eq!(status, 400, "{answer}");
        for part in [kind, "SYNCCTL_BULKER_URL", "known types are postgres, bulker, discard"] {
            assert!(error.contains(part) && !error.contains(SECRET), "{part}: {error}");
        }
    }
    assert_eq!((running(&world).len(), world.schema.count("source_task")), (0, 0));
}

#[test]
fn destinations_that_syncctl_does_not_load_go_to_the_bulker_of_the_settings() {
    let Some(world) = World::new() else { return };
    let bulker = Bulker::start(&world, 0);
    let service = Service::start_with(&world, |program| {
        program.env("SYNCCTL_BULKER_URL", &bulker.url).env("SYNCCTL_BULKER_AUTH_TOKEN", TOKEN)
    });
    let task = unique("task-");
    // Fields of other types may have the names of ours.
    let destination = json!({"destinationType": "clickhouse", "url": "http://127.0.0.1:1", "authToken": SECRET});
    let body = json!({"config": {}, "catalog": catalog(&["items"]), "destinationConfig": destination});
    let query = [("syncId", "the-sync"), ("taskId", task.as_str()), ("startedBy", MANUAL)];
    let (status, answer) = post(&service, "/read", INSTANT, &query, &body);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(ended(&world, &task), ("SUCCESS".to_owned(), String::new()));
    for call in bulker.calls() {
        assert!(call.target.starts_with("/bulk/the-sync?tableName=items&"), "{}", call.target);
    }
    assert_eq!(bulker.ids("items").map(|ids| ids.len()), Some(1000));
    wait_empty(&world);
}
