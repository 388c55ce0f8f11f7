//! Cancelling, killing, timing out, and outages of servers during a read.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::support::{Program, Running, World, catalog, eventually, unique};

const INSTANT: &str = "syncctl-test/instant:1";
const SLOW: &str = "syncctl-test/slow:1";
const IGNORES_TERM: &str = "syncctl-test/deaf:1";
const ODD: &str = "syncctl-test/odd:1";
/// A deadline that only means "hangs".
const DEADLINE: Duration = Duration::from_mins(5);

/// Waits until the stream is RUNNING.
fn wait_for_rows(world: &World, task: &str, stream: &str) {
    eventually("a running stream", DEADLINE, || {
        world.schema.task(task)?;
        (world.schema.streams(task)[stream]["status"] == "RUNNING").then_some(())
    });
}

/// Waits until the Pod runs.
fn wait_for_running(world: &World) -> Value {
    eventually("a running pod", DEADLINE, || {
        world.place.pods().into_iter().find(|pod| pod["status"]["phase"] == "Running")
    })
}

/// A TCP listener for messages of a connector, which stay readable when its Pod is gone.
struct Messages {
    listener: TcpListener,
    /// HOST PORT, as a Pod reaches it.
    address: String,
}

impl Messages {
    fn new(world: &World) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let port = listener.local_addr().expect("an address").port();
        Self { listener, address: format!("{} {port}", world.setup.pod_host) }
    }

    fn next(&self) -> String {
        eventually("a message of the connector", DEADLINE, || {
            let (stream, _) = self.listener.accept().ok()?;
            stream.set_nonblocking(false).expect("a socket");
            let mut line = String::new();
            // One line: the connector keeps the connection open.
            BufReader::new(stream).read_line(&mut line).expect("a line");
            Some(line.trim().to_owned())
        })
    }
}

/// A read of `odd` in one of its modes.
fn odd(world: &World, mode: &Value, task: &str) -> Program {
    let config = world.json("odd.json", mode);
    let catalog = world.json("odd-catalog.json", &catalog(&["one"]));
    let nowhere = world.discard();
    let arguments = ["read", ODD, "--config", &config, "--catalog", &catalog, "--destination-config", &nowhere];
    world.syncctl(&arguments).with(&["--sync-id", "s", "--task-id", task, "-o", "json"])
}

#[test]
fn ctrl_c_cancels_and_the_connector_gets_term() {
    let Some(world) = World::new() else { return };
    let task = unique("cancelled-");
    let messages = Messages::new(&world);
    let running = odd(&world, &json!({"mode": "signals", "report": messages.address}), &task).start();
    assert_eq!(messages.next(), "started");
    wait_for_rows(&world, &task, "one");
    // A kubelet that has not reported its containers yet may be slow to end them.
    wait_for_running(&world);
    running.signal(Signal::INT);
    assert_eq!(messages.next(), "TERM");
    let done = running.wait();
    // The program ends after its task is removed.
    world.place.assert_empty();
    assert_eq!(done.code(130).json()["status"], "CANCELLED", "{done}");
    let (status, _) = world.schema.task(&task).expect("a row");
    assert_eq!(status, "CANCELLED");
    assert_eq!(world.schema.streams(&task)["one"]["status"], "CANCELLED");
}

#[test]
fn term_cancels_like_ctrl_c() {
    let Some(world) = World::new() else { return };
    let task = unique("termed-");
    let running = world.read(SLOW, "s", &task, &["ticks"]).start();
    wait_for_rows(&world, &task, "ticks");
    running.signal(Signal::TERM);
    let done = running.wait();
    world.place.assert_empty();
    done.code(130);
    assert_eq!(world.schema.task(&task).expect("a row").0, "CANCELLED");
}

#[test]
fn cancelling_a_check_leaves_nothing_behind() {
    let Some(world) = World::new() else { return };
    let config = world.json("config.json", &json!({}));
    let running = world.syncctl(&["check", SLOW, "--config", &config, "--storage-key", "k", "-o", "json"]).start();
    eventually("a pod", DEADLINE, || world.place.pods().first().cloned());
    running.signal(Signal::INT);
    let done = running.wait();
    world.place.assert_empty();
    done.fails(130, "CANCELLED", &[]);
}

#[test]
fn a_connector_that_ignores_term_is_killed() {
    let Some(world) = World::new() else { return };
    let task = unique("ignores-term-");
    let running = world.read(IGNORES_TERM, "s", &task, &["one"]).start();
    wait_for_running(&world);
    running.signal(Signal::INT);
    let done = running.wait();
    world.place.assert_empty();
    done.code(130);
    assert_eq!(world.schema.task(&task).expect("a row").0, "CANCELLED");
}

#[test]
fn a_second_ctrl_c_ends_the_program_and_the_next_command_cleans_up() {
    let Some(world) = World::new() else { return };
    let task = unique("twice-");
    let grace = ("SYNCCTL_CONTAINER_GRACE_SHUTDOWN_SECONDS", "30");
    let running = world.read(IGNORES_TERM, "s", &task, &["one"]).env(grace.0, grace.1).start();
    wait_for_running(&world);
    running.signal(Signal::INT);
    eventually("the row of the cancelled task", DEADLINE, || {
        world.schema.task(&task).filter(|(status, _)| status == "CANCELLED")
    });
    running.signal(Signal::INT);
    running.wait().code(130);
    // It did not wait for the end of its task. A local task ends with the command.
    assert!(!world.place.is_cluster() || !world.place.pods().is_empty());
    assert_eq!(world.schema.task(&task).expect("a row").0, "CANCELLED");
    world.syncctl(&["spec", INSTANT]).run().code(0);
    // The first one requested the deletion; the Pod is in its grace period.
    eventually("the removal of the task", DEADLINE, || world.place.leftovers().is_empty().then_some(()));
    assert_eq!(world.schema.task(&task).expect("a row").0, "CANCELLED");
}

#[test]
fn a_read_that_exceeds_its_timeout_is_ended() {
    let Some(world) = World::new() else { return };
    let task = unique("long-");
    let done = world.read(SLOW, "s", &task, &["ticks"]).with(&["--timeout", "8s"]).run();
    done.code(4);
    let document = done.json();
    assert_eq!(document["status"], "TIME_EXCEEDED", "{done}");
    assert_eq!(document["class"], "TIME_EXCEEDED", "{done}");
    let (status, error) = world.schema.task(&task).expect("a row");
    assert_eq!(status, "TIME_EXCEEDED");
    assert!(error.starts_with("TIME_EXCEEDED: "), "{error}");
}

#[test]
fn a_check_that_exceeds_its_timeout_is_ended() {
    let Some(world) = World::new() else { return };
    let config = world.json("config.json", &json!({}));
    let arguments = ["check", SLOW, "--config", &config, "--storage-key", "k", "-o", "json", "--timeout", "6s"];
    let done = world.syncctl(&arguments).run();
    done.fails(4, "TIME_EXCEEDED", &[]);
    let row = world.schema.text("SELECT concat_ws('|', status, description) FROM source_check WHERE key = 'k'");
    assert!(row.starts_with("FAILED|TIME_EXCEEDED: "), "{row}");
}

#[test]
fn the_next_command_cleans_up_after_a_killed_one() {
    let Some(world) = World::in_cluster() else { return };
    let task = unique("killed-");
    let running = world.read(SLOW, "s", &task, &["ticks"]).start();
    wait_for_rows(&world, &task, "ticks");
    running.signal(Signal::KILL);
    assert_eq!(running.wait().code, None);
    assert_eq!(world.place.leftovers().len(), 2, "a Pod and its Secret");
    assert_eq!(world.schema.task(&task).expect("a row").0, "RUNNING");
    world.syncctl(&["spec", INSTANT, "-o", "json"]).run().code(0);
    world.place.assert_empty();
    let (status, error) = world.schema.task(&task).expect("a row");
    // PARTIAL if the connector has lived for the five seconds until its first state.
    assert!(["FAILED", "PARTIAL"].contains(&&*status) && error.starts_with("ABANDONED: "), "{status}: {error}");
}

#[test]
fn a_command_does_not_remove_the_pod_of_another_running_command() {
    let Some(world) = World::new() else { return };
    let task = unique("alive-");
    let mut running = world.read(SLOW, "s", &task, &["ticks"]).start();
    wait_for_rows(&world, &task, "ticks");
    world.syncctl(&["spec", INSTANT, "-o", "json"]).run().code(0);
    assert!(!running.has_ended());
    assert_eq!(world.schema.task(&task).expect("a row").0, "RUNNING");
    running.signal(Signal::INT);
    running.wait().code(130);
}

#[test]
fn deleting_the_pod_ends_the_task() {
    let Some(world) = World::in_cluster() else { return };
    let task = unique("deleted-");
    let running = world.read(SLOW, "s", &task, &["ticks"]).start();
    wait_for_rows(&world, &task, "ticks");
    world.namespace().kubectl(&["delete", "pods", "--all", "-n", &world.namespace().name, "--wait=false"]);
    let done = running.wait();
    // The connector commits rows every five seconds: whether it has done so before the Pod's end depends on the machine.
    let expected = if done.code(3).json()["streams"]["ticks"]["events"] == 0 { "FAILED" } else { "PARTIAL" };
    assert_eq!(
        (done.json()["class"].as_str(), done.json()["status"].as_str()),
        (Some("POD_DELETED"), Some(expected)),
        "{done}"
    );
    let (status, error) = world.schema.task(&task).expect("a row");
    assert!(status == expected && error.starts_with("POD_DELETED: "), "{status}: {error}");
}

#[test]
fn deleting_the_pod_by_force_ends_the_task() {
    let Some(world) = World::in_cluster() else { return };
    let config = world.json("config.json", &json!({}));
    let running = world.syncctl(&["check", SLOW, "--config", &config, "--storage-key", "k", "-o", "json"]).start();
    wait_for_running(&world);
    let name = &world.namespace().name;
    world.namespace().kubectl(&["delete", "pods", "--all", "-n", name, "--force", "--grace-period=0", "--wait=false"]);
    running.wait().fails(3, "POD_DELETED", &[]);
}

#[test]
fn a_repeated_task_id_is_rejected_and_the_first_result_stays() {
    let Some(world) = World::new() else { return };
    let task = unique("once-");
    world.read(INSTANT, "s", &task, &["items"]).run().code(0);
    let query = format!("SELECT md5(t::text) FROM source_task t WHERE task_id = '{task}'");
    let before = world.schema.text(&query);
    let again = world.read(INSTANT, "s", &task, &["items"]).run();
    again.fails(2, "TASK_EXISTS", &[&task]);
    assert_eq!(world.schema.text(&query), before);
}

#[test]
fn a_repeated_task_id_does_not_disturb_the_running_task() {
    let Some(world) = World::new() else { return };
    let task = unique("both-");
    let running = world.read(SLOW, "s", &task, &["ticks"]).start();
    wait_for_rows(&world, &task, "ticks");
    world.read(SLOW, "s", &task, &["ticks"]).run().fails(2, "TASK_EXISTS", &[&task]);
    assert_eq!(world.schema.task(&task).expect("a row").0, "RUNNING");
    assert_eq!(world.place.pods().len(), 1);
    running.signal(Signal::INT);
    running.wait().code(130);
}

#[test]
fn ids_may_contain_any_text() {
    let Some(world) = World::new() else { return };
    let long = "x".repeat(300);
    for (label, sync, task) in [
        ("unicode", "Заказы 🛒", "Ω≈ç√"),
        ("long", long.as_str(), long.as_str()),
        ("slashes", "a/b/../c", "//"),
        ("spaces and quotes", " it's \"one\"; -- ", "$(reboot) `x` \\"),
        ("a line break", "a\nb", "c\td"),
        ("like a flag", "=--sync", "UPPER.case_"),
    ] {
        let done = world.read(INSTANT, sync, task, &["items"]).run();
        println!("{label}:\n{done}");
        let document = done.code(0).json();
        assert_eq!(document["taskId"], task, "{label}");
        assert_eq!(document["syncId"], sync, "{label}");
        assert_eq!(world.schema.task(task).expect(label).0, "SUCCESS", "{label}");
    }
}

/// Looks at a real Pod as the API server stores it.
#[test]
fn a_pod_contains_no_credentials_and_no_permissions() {
    let Some(world) = World::in_cluster() else { return };
    let task = unique("audit-");
    let config = world.json("config.json", &json!({"api_key": "hunter2-config"}));
    let catalog = world.json("catalog.json", &catalog(&["ticks"]));
    let destination = world.destination();
    let arguments = ["read", SLOW, "--config", &config, "--catalog", &catalog, "--destination-config", &destination];
    let running = world.syncctl(&arguments).with(&["--sync-id", "s", "--task-id", &task, "-o", "json"]).start();
    let pod = wait_for_running(&world);
    let secrets = world.namespace().list("secrets", &["-l", "jitsu.com/creator=bulker-sync-controller"]);
    running.signal(Signal::INT);

    let password = world.destination_config()["password"].as_str().expect("a password").to_owned();
    let text = pod.to_string();
    for secret in ["hunter2-config", &format!(":{password}@"), "postgres://", "postgresql://", "search_path"] {
        assert!(!text.contains(secret), "{secret} is in the pod: {text}");
    }
    let spec = &pod["spec"];
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["restartPolicy"], "Never");
    assert!(spec["initContainers"].is_null(), "our own sidecar needs no init container");
    for volume in spec["volumes"].as_array().expect("volumes") {
        assert!(volume["hostPath"].is_null() && !volume.to_string().contains("serviceAccountToken"), "{volume}");
    }
    let containers = spec["containers"].as_array().expect("containers");
    let container = |name: &str| containers.iter().find(|container| container["name"] == name).expect("a container");
    let source = container("source");
    for mount in source["volumeMounts"].as_array().expect("mounts") {
        let path = mount["mountPath"].as_str().expect("a path");
        assert!(["/config", "/pipes", "/reports"].contains(&path), "the connector sees {path}");
        assert!(mount["readOnly"] == true || path == "/reports", "the connector writes to {path}");
    }
    assert!(!source.to_string().contains("secretKeyRef"), "{source}");
    let sidecar = container("sidecar");
    let url = sidecar["env"].as_array().and_then(|env| env.iter().find(|variable| variable["name"] == "DATABASE_URL"));
    let url = url.expect("DATABASE_URL");
    assert!(url["value"].is_null() && url["valueFrom"]["secretKeyRef"].is_object(), "{url}");
    assert_eq!(source["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(source["resources"]["limits"]["ephemeral-storage"], "20Gi");
    let security = &sidecar["securityContext"];
    assert_eq!(security["runAsNonRoot"], true);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));

    assert_eq!(secrets.len(), 1);
    let owner = &secrets[0]["metadata"]["ownerReferences"][0];
    assert_eq!(owner["kind"], "Pod");
    assert_eq!(owner["uid"], pod["metadata"]["uid"]);
    let labels = &pod["metadata"]["labels"];
    assert_eq!(labels["jitsu.com/creator"], "bulker-sync-controller");
    let annotations = &pod["metadata"]["annotations"];
    for (name, value) in [("TaskID", task.as_str()), ("SyncID", "s"), ("TaskType", "read"), ("PackageVersion", "1")] {
        assert_eq!(annotations[name], value, "{annotations}");
    }
    running.wait().code(130);
}

/// Waits until the read has stored a state, so that the outage happens during the read.
fn wait_for_state(world: &World) {
    eventually("a state", DEADLINE, || {
        let exists = world.schema.number(
            "SELECT count(*) FROM pg_tables WHERE tablename = 'source_state' AND schemaname = current_schema()",
        );
        (exists > 0 && world.schema.count("source_state") > 0).then_some(())
    });
}

fn steady(world: &World, task: &str) -> Running {
    let config = world.json("config.json", &json!({"mode": "steady"}));
    let catalog = world.json("catalog.json", &catalog(&["one"]));
    let destination = world.destination();
    let arguments = ["read", ODD, "--config", &config, "--catalog", &catalog, "--destination-config", &destination];
    world.syncctl(&arguments).with(&["--sync-id", "s", "--task-id", task, "-o", "json"]).start()
}

#[test]
fn a_restart_of_postgres_during_a_read_neither_loses_nor_duplicates_rows() {
    let Some(world) = World::alone() else { return };
    let Some(postgres) = &world.setup.postgres else { return };
    let task = unique("restart-");
    let running = steady(&world, &task);
    wait_for_state(&world);
    let restarted = Command::new(postgres).arg("restart").output().expect("tests/cluster/postgres");
    assert!(restarted.status.success(), "{}", String::from_utf8_lossy(&restarted.stderr));
    let done = running.wait();
    assert_eq!(done.code(0).json()["status"], "SUCCESS", "{done}");
    assert_eq!(world.schema.count("one"), 4000);
    assert_eq!(world.schema.number("SELECT count(DISTINCT id) FROM one"), 4000);
    assert_eq!(world.schema.text("SELECT (state ->> 'id') FROM source_state WHERE stream = 'one'"), "4000");
    assert_eq!(world.schema.streams(&task)["one"]["events"], 4000);
}

#[test]
fn an_outage_of_the_api_server_does_not_end_a_read() {
    let Some(world) = World::alone() else { return };
    let Some(apiserver) = &world.setup.apiserver else { return };
    let task = unique("outage-");
    let running = steady(&world, &task);
    wait_for_state(&world);
    let run = |command: &str| {
        let output = Command::new(apiserver).arg(command).output().expect("tests/cluster/apiserver");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("stop");
    std::thread::sleep(Duration::from_secs(2));
    run("start");
    let done = running.wait();
    assert_eq!(done.code(0).json()["status"], "SUCCESS", "{done}");
    assert_eq!(world.schema.count("one"), 4000);
}
