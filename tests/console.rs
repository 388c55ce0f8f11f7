//! What the Jitsu console relies on: its requests, the rows that it writes itself, and the answers that it accepts. It
//! takes every status but 200 for a failure of the controller.

mod cancel;
mod destinations;
mod results;
mod spread;
mod then_run;

use std::time::Duration;

use serde_json::{Value, json};

use super::support::{Http, Service, World, catalog, eventually, unique};

const SLOW: &str = "syncctl-test/slow:1";
const INSTANT: &str = "syncctl-test/instant:1";
/// A test that waits longer for a task hangs.
const DEADLINE: Duration = Duration::from_mins(3);

/// The `startedBy` of a user.
const MANUAL: &str = r#"{"trigger":"manual","internalId":"u1","email":"u@example.com"}"#;
/// The `startedBy` of a schedule.
const SCHEDULED: &str = r#"{"trigger":"scheduled"}"#;

/// The body of a read into the destination `discard`.
fn body(streams: &[&str]) -> Value {
    json!({"config": {}, "catalog": catalog(streams), "destinationConfig": {"destinationType": "discard"}})
}

/// `POST` of a task with the parameters of the console: status and answer.
#[track_caller]
fn post(http: &Http, path: &str, image: &str, query: &[(&str, &str)], body: &Value) -> (u16, Value) {
    let (package, version) = image.rsplit_once(':').expect("an image with a version");
    http.call(path, &[&[("package", package), ("version", version)], query].concat(), Some(body))
}

/// `POST /read` that must be answered with 200.
#[track_caller]
fn read(http: &Http, image: &str, sync: &str, task: &str, started_by: &str, streams: &[&str]) -> Value {
    let query = [("syncId", sync), ("taskId", task), ("startedBy", started_by), ("nodelay", "true")];
    let (status, answer) = post(http, "/read", image, &query, &body(streams));
    assert_eq!((status, &answer["ok"]), (200, &json!(true)), "{answer}");
    answer
}

/// `GET /cancel` that must be answered with 200.
#[track_caller]
fn cancel_task(http: &Http, package: &str, sync: &str, task: &str) -> Value {
    let query = [("workspaceId", "w"), ("package", package), ("syncId", sync), ("taskId", task)];
    let (status, answer) = http.call("/cancel", &query, None);
    assert_eq!((status, &answer["ok"]), (200, &json!(true)), "{answer}");
    answer
}

/// Sets the status of a row, as the console does with a run that a new one ignores.
fn set_status(world: &World, task: &str, status: &str) {
    world.schema.execute(&format!("UPDATE source_task SET status = '{status}' WHERE task_id = '{task}'"));
}

/// Waits until the stream of the slow connector runs.
fn wait_running(world: &World, task: &str) {
    eventually("a running stream", DEADLINE, || {
        world.schema.task(task)?;
        (world.schema.streams(task)["ticks"]["status"] == "RUNNING").then_some(())
    });
}

/// Waits until the row of a task is final; returns status and error.
fn ended(world: &World, task: &str) -> (String, String) {
    eventually("the end of a task", DEADLINE, || world.schema.task(task).filter(|(status, _)| status != "RUNNING"))
}

/// The tasks that have a Pod.
fn running(world: &World) -> Vec<String> {
    let pods = world.place.pods();
    pods.iter().filter_map(|pod| pod["metadata"]["annotations"]["TaskID"].as_str().map(str::to_owned)).collect()
}

/// Waits until no object of a task is left.
fn wait_empty(world: &World) {
    eventually("nothing left", DEADLINE, || world.place.leftovers().is_empty().then_some(()));
}
