//! Why a task failed: who knows the cause stores it, whichever of sidecar and controller writes first, and the task's log
//! has it once.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::processes::{self, Role};
use crate::support::{Service, World, catalog, eventually, unique};

const SLOW: &str = "syncctl-test/slow:1";
const MISSING: &str = "syncctl-test/none:1";
/// A deadline that only means "hangs".
const DEADLINE: Duration = Duration::from_mins(5);

/// A task of the service: where its outcome is stored.
struct Started {
    label: &'static str,
    task_id: String,
    /// Status and error.
    row: String,
}

impl Started {
    fn new(label: &'static str, response: &(u16, Value), row: String) -> Self {
        assert_eq!(response.0, 200, "{label}: {}", response.1);
        Self { label, task_id: response.1["taskId"].as_str().expect("an id").to_owned(), row }
    }

    /// Status and error, once there is an outcome.
    fn outcome(&self, world: &World) -> Option<(String, String)> {
        let rows = world.schema.rows(&self.row);
        let row = rows.first().map(|row| (row.get::<_, String>(0), row.get::<_, String>(1)))?;
        (row.0 != "RUNNING").then_some(row)
    }

    fn assert_fails(&self, world: &World, classes: &[&str]) {
        let (status, error) = self.outcome(world).expect("an outcome");
        let class = error.split(": ").next().unwrap_or_default();
        // A read that was ended after a commit is PARTIAL.
        let statuses: &[&str] = if self.label == "read" { &["FAILED", "PARTIAL"] } else { &["FAILED"] };
        assert!(statuses.contains(&&*status) && classes.contains(&class), "{}: {status} {error}", self.label);
        assert_eq!(log(world, &self.task_id), [("ERROR".to_owned(), error)], "{}", self.label);
    }
}

/// A task of each of these kinds.
fn start(service: &Service, image: &'static str, kinds: &[&str]) -> Vec<Started> {
    let start = |kind: &&str| {
        let id = unique("t");
        match *kind {
            "spec" => {
                let row = "SELECT CASE WHEN error IS NULL THEN 'RUNNING' ELSE 'FAILED' END, error FROM source_spec";
                Started::new("spec", &service.spec(image), row.to_owned())
            }
            "check" => {
                let row = format!("SELECT status, description FROM source_check WHERE key = '{id}'");
                Started::new("check", &service.check(image, &id, &json!({})), row)
            }
            "discover" => {
                let row = format!("SELECT status, coalesce(description, '') FROM source_catalog WHERE key = '{id}'");
                Started::new("discover", &service.discover(image, &id, &json!({})), row)
            }
            _ => {
                let destination = json!({"destinationType": "discard"});
                let body = json!({"config": {}, "catalog": catalog(&["ticks"]), "destinationConfig": destination});
                let row = format!("SELECT status, coalesce(error, '') FROM source_task WHERE task_id = '{id}'");
                Started::new("read", &service.read(image, &id, &id, &body), row)
            }
        }
    };
    kinds.iter().map(start).collect()
}

/// The warnings and errors of syncctl in a task's log.
fn log(world: &World, task_id: &str) -> Vec<(String, String)> {
    let query = format!(
        "SELECT level, message FROM task_log
         WHERE task_id = '{task_id}' AND logger = 'syncctl' AND level NOT IN ('DEBUG', 'INFO') ORDER BY timestamp, id"
    );
    world.schema.rows(&query).iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn wait_empty(world: &World) {
    eventually("an empty namespace", DEADLINE, || world.place.leftovers().is_empty().then_some(()));
}

/// Waits until this number of Pods runs.
fn wait_running(world: &World, count: usize) {
    eventually("running Pods", DEADLINE, || {
        let is_running = |pod: &Value| pod["status"]["phase"] == "Running";
        (world.place.pods().iter().filter(|pod| is_running(pod)).count() == count).then_some(())
    });
}

/// The sidecar runs, and is terminated together with the Pod.
#[test]
fn an_image_that_cannot_be_pulled_is_the_cause_for_every_command() {
    let Some(world) = World::in_cluster() else { return };
    let patience = world.place.patience();
    let service =
        Service::start_with(&world, |program| program.env("SYNCCTL_CONTAINER_INIT_TIMEOUT_SECONDS", patience));
    let tasks = start(&service, MISSING, &["spec", "check", "discover", "read"]);
    for task in &tasks {
        eventually(task.label, DEADLINE, || task.outcome(&world));
    }
    // Whatever a sidecar writes at its end is written by then.
    wait_empty(&world);
    for task in &tasks {
        task.assert_fails(&world, &["IMAGE_PULL", "IMAGE_NOT_FOUND"]);
    }
    drop(service);

    let config = world.json("config.json", &json!({}));
    let arguments = ["discover", MISSING, "--config", &config, "--storage-key", "k", "-o", "json"];
    let done = world.syncctl(&arguments).with(&["--container-init-timeout-seconds", patience]).run();
    let class = done.code(3).json()["class"].clone();
    assert!(["IMAGE_PULL", "IMAGE_NOT_FOUND"].map(Value::from).contains(&class), "{done}");
    let stored = world.schema.text("SELECT description FROM source_catalog WHERE key = 'k'");
    assert!(stored.starts_with(class.as_str().expect("a text")), "{stored}");
}

#[test]
fn a_deleted_pod_is_the_cause_for_every_command() {
    let Some(world) = World::in_cluster() else { return };
    let service = Service::start(&world);
    let kinds = ["check", "discover", "read"];
    let tasks = start(&service, SLOW, &kinds);
    let config = world.json("config.json", &json!({}));
    let arguments = ["discover", SLOW, "--config", &config, "--storage-key", "k", "-o", "json"];
    let command = world.syncctl(&arguments).start();
    wait_running(&world, kinds.len() + 1);
    world.namespace().kubectl(&["delete", "pods", "--all", "-n", &world.namespace().name, "--wait=false"]);
    command.wait().fails(3, "POD_DELETED", &[]);
    wait_empty(&world);
    for task in &tasks {
        task.assert_fails(&world, &["POD_DELETED"]);
    }
    let stored = world.schema.text("SELECT description FROM source_catalog WHERE key = 'k'");
    assert!(stored.starts_with("POD_DELETED: "), "{stored}");
}

#[test]
fn a_kill_or_a_timeout_is_an_error_in_the_log_and_a_cancellation_a_warning() {
    let Some(world) = World::in_cluster() else { return };
    let service = Service::start(&world);
    let tasks = start(&service, SLOW, &["read", "read", "read"]);
    let [sidecar, connector, cancelled] = &tasks[..] else { unreachable!("three tasks") };
    let timeout = unique("t");
    let command = world.read(SLOW, "s", &timeout, &["ticks"]).with(&["--timeout", "20s"]).start();
    let interrupted = unique("t");
    let interrupted_command = world.read(SLOW, "s", &interrupted, &["ticks"]).start();
    wait_running(&world, 5);
    for (task, role) in [(sidecar, Role::Sidecar), (connector, Role::Connector)] {
        let pid = eventually("a process", DEADLINE, || processes::of_task(&task.task_id, role));
        assert!(processes::kill(pid), "{}", task.task_id);
    }
    let id = &cancelled.task_id;
    assert_eq!(service.cancel(SLOW, id, id).0, 200);
    interrupted_command.signal(Signal::INT);
    interrupted_command.wait().code(130);
    command.wait().code(4);
    wait_empty(&world);
    for (task, level, class) in [
        (&sidecar.task_id, "ERROR", "SIDECAR_FAILED"),
        (&connector.task_id, "ERROR", "CONNECTOR_FAILED"),
        (&timeout, "ERROR", "TIME_EXCEEDED"),
        (&cancelled.task_id, "WARN", "CANCELLED"),
        (&interrupted, "WARN", "CANCELLED"),
    ] {
        let lines = log(&world, task);
        assert_eq!(lines.len(), 1, "{class}: {lines:?}");
        assert!(lines[0].0 == level && lines[0].1.starts_with(&format!("{class}: ")), "{lines:?}");
        assert_eq!(world.schema.task(task).expect("a row").1, lines[0].1);
    }
}
