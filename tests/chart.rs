//! The service as the charts of the existing implementation install it: their settings, and a Role with fewer rights.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::cluster::{SERVICE, sidecar_image};
use crate::support::{Http, Program, World, catalog, database, eventually, unique};

const INSTANT: &str = "syncctl-test/instant:1";
const SLOW: &str = "syncctl-test/slow:1";
const MISSING: &str = "syncctl-test/none:1";
/// A deadline that only means "hangs".
const DEADLINE: Duration = Duration::from_mins(5);

/// Installs the service with these rules, starts it without arguments, and waits until it is ready.
fn install(world: &World, rules: &Value, environment: &[(&str, &str)]) -> Http {
    let url = database::in_schema(&world.setup.sidecar_database_url, &world.schema.name);
    let settings = [
        ("SYNCCTL_DATABASE_URL", url.as_str()),
        ("SYNCCTL_KUBERNETES_NAMESPACE", world.namespace().name.as_str()),
        ("SYNCCTL_CONTAINER_GRACE_SHUTDOWN_SECONDS", "5"),
        ("SYNCCTL_CONTAINER_INIT_TIMEOUT_SECONDS", "60"),
        ("SYNCCTL_SOURCE_CPU_REQUEST_MILLICORES", "1"),
        ("SYNCCTL_SOURCE_MEMORY_REQUEST_MI", "16"),
    ];
    let environment: Vec<Value> =
        settings.iter().chain(environment).map(|(name, value)| json!({"name": name, "value": value})).collect();
    let labels = json!({SERVICE.0: SERVICE.1});
    let name = json!({"name": "chart"});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "chart"});
    let container = json!({"name": "jitsu", "image": sidecar_image(world.setup).name, "env": environment});
    let spec = json!({
        "serviceAccountName": "chart", "enableServiceLinks": false, "containers": [container],
        // The cluster need not have it: the image is on the node.
        "imagePullSecrets": [{"name": "registry"}],
    });
    let objects = json!([
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": name},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": name, "rules": rules},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": name, "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", "name": "chart", "namespace": world.namespace().name}],
        },
        {
            "apiVersion": "v1", "kind": "Service", "metadata": name,
            "spec": {"selector": labels, "ports": [{"port": 3043}]},
        },
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": name,
            "spec": {
                "replicas": 1, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": spec},
            },
        },
    ]);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let namespace = world.namespace();
    namespace.kubectl(&["create", "-n", &namespace.name, "-f", &world.json("chart.json", &list)]);
    let service = namespace.kubectl(&["get", "service", "chart", "-n", &namespace.name, "-o", "json"]);
    let service: Value = serde_json::from_str(&service).expect("a Service");
    let address = format!("{}:3043", service["spec"]["clusterIP"].as_str().expect("an address"));
    let http = Http::new(address.parse().expect("an address"));
    let ready = || http.try_send("GET", "/ready", &[], &[]).is_ok_and(|response| response.status == 200).then_some(());
    eventually("a ready service", DEADLINE, ready);
    http
}

/// The log of the service.
fn log(world: &World) -> String {
    let namespace = world.namespace();
    namespace.kubectl(&["logs", "-n", &namespace.name, "-l", &format!("{}={}", SERVICE.0, SERVICE.1), "--tail=-1"])
}

fn body(streams: &[&str]) -> Value {
    json!({"config": {}, "catalog": catalog(streams), "destinationConfig": {"destinationType": "discard"}})
}

/// Waits for status and error of the only row of a query.
fn outcome(world: &World, query: &str) -> (String, String) {
    eventually(query, DEADLINE, || {
        let rows = world.schema.rows(query);
        let row = rows.first().map(|row| (row.get::<_, String>(0), row.get::<_, String>(1)))?;
        (row.0 != "RUNNING" && !row.1.starts_with("TERMINATED: ")).then_some(row)
    })
}

fn task_outcome(world: &World, task: &str) -> (String, String) {
    outcome(world, &format!("SELECT status, coalesce(error, '') FROM source_task WHERE task_id = '{task}'"))
}

/// One task of each fate; asserts that nothing is left of them.
fn run_tasks(world: &World, http: &Http) {
    let read = unique("read-");
    assert_eq!(http.read(INSTANT, &read, &read, &body(&["items"])).0, 200);
    assert_eq!(http.check(INSTANT, "wrong", &json!({"password": "wrong"})).0, 200);
    assert_eq!(http.check(SLOW, "deleted", &json!({})).0, 200);
    assert_eq!(http.discover(MISSING, "missing", &json!({})).0, 200);
    let cancelled = unique("cancelled-");
    assert_eq!(http.read(SLOW, &cancelled, &cancelled, &body(&["ticks"])).0, 200);
    eventually("a running stream", DEADLINE, || {
        (world.schema.streams(&cancelled)["ticks"]["status"] == "RUNNING").then_some(())
    });
    assert_eq!(http.cancel(SLOW, &cancelled, &cancelled).0, 200);
    let namespace = world.namespace();
    let slow = eventually("the Pod of the check", DEADLINE, || {
        let pods = namespace.pods();
        let pod = pods.iter().find(|pod| pod["metadata"]["annotations"]["StorageKey"] == "deleted")?;
        assert_eq!(pod["spec"]["imagePullSecrets"], json!([{"name": "registry"}]), "that of the service");
        (pod["status"]["phase"] == "Running").then(|| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned())
    });
    namespace.kubectl(&["delete", "pod", &slow, "-n", &namespace.name, "--wait=false"]);

    assert_eq!(task_outcome(world, &read), ("SUCCESS".to_owned(), String::new()));
    let check = |key: &str| {
        outcome(world, &format!("SELECT status, coalesce(description, '') FROM source_check WHERE key = '{key}'"))
    };
    assert_eq!(check("wrong").0, "FAILED");
    let deleted = check("deleted");
    assert!(deleted.0 == "FAILED" && deleted.1.starts_with("POD_DELETED: "), "{deleted:?}");
    let missing = "SELECT status, coalesce(description, '') FROM source_catalog WHERE key = 'missing'";
    let missing = outcome(world, missing);
    assert!(missing.0 == "FAILED" && missing.1.starts_with("IMAGE_"), "{missing:?}");
    assert_eq!(task_outcome(world, &cancelled).0, "CANCELLED");
    eventually("an empty namespace", DEADLINE, || world.place.leftovers().is_empty().then_some(()));
}

#[test]
fn a_role_without_leases_events_and_lists_of_secrets_runs_every_task_and_leaves_nothing() {
    let Some(world) = World::in_cluster() else { return };
    let rules = json!([
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "create", "update", "delete"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "create", "delete"]},
    ]);
    let http = install(&world, &rules, &[("SYNCCTL_SIDECAR_IMAGE", "jitsucom/sidecar:latest")]);
    run_tasks(&world, &http);
    let log = log(&world);
    for part in [
        "get leases, create leases, update leases",
        "run one replica",
        "list events",
        "patch secrets",
        "instead of jitsucom/sidecar:latest",
        "SYNCCTL_INIT_IMAGE",
    ] {
        assert_eq!(log.matches(part).count(), 1, "{part}\n{log}");
    }
    assert!(!log.contains("forbidden") && !log.contains("maintenance failed"), "{log}");
}

#[test]
fn the_fewest_rights_are_enough() {
    let Some(world) = World::in_cluster() else { return };
    let rules = json!([
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "delete"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "create", "delete"]},
    ]);
    let http = install(&world, &rules, &[]);
    run_tasks(&world, &http);
    let log = log(&world);
    assert!(log.contains("get secrets") && log.contains("the sidecar has the image of this program"), "{log}");
    assert!(!log.contains("forbidden"), "{log}");
}

#[test]
fn missing_essential_rights_are_named() {
    let Some(world) = World::in_cluster() else { return };
    let kubeconfig = world.namespace().powerless().display().to_string();
    let done = world
        .syncctl(&["serve"])
        .env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", &kubeconfig)
        .env("SYNCCTL_HTTP_PORT", "0")
        .run();
    done.code(3);
    for part in
        ["FORBIDDEN", "create pods, get pods, list pods, watch pods, delete pods, create secrets, delete secrets"]
    {
        assert!(done.stderr.contains(part), "{part}\n{done}");
    }
}

#[test]
fn outside_of_a_pod_or_without_its_image_the_error_names_the_setting() {
    let url = "postgresql://none@127.0.0.1:1/none";
    let program = |environment: &[(&str, &str)]| {
        let program = Program::new(&["serve"]).env("SYNCCTL_DATABASE_URL", url);
        environment.iter().fold(program, |program, (name, value)| program.env(name, value))
    };
    let in_pod = [("KUBERNETES_SERVICE_HOST", "127.0.0.1"), ("KUBERNETES_SERVICE_PORT", "1"), ("HOSTNAME", "pod")];
    let foreign = ("SYNCCTL_SIDECAR_IMAGE", "registry:5000/jitsucom/sidecar");
    for (label, environment, parts) in [
        ("nowhere", &[][..], &["missing settings", "SYNCCTL_SIDECAR_IMAGE"][..]),
        ("a foreign sidecar", &[foreign], &["SYNCCTL_SIDECAR_IMAGE", "SYNCCTL_INIT_IMAGE"]),
        ("a Pod without a token", &in_pod, &["SYNCCTL_SIDECAR_IMAGE", "service account"]),
    ] {
        let done = program(environment).run();
        done.code(2);
        for part in parts {
            assert!(done.stderr.contains(part), "{label}: {part}\n{done}");
        }
    }
}

#[test]
fn a_service_that_is_switched_off_needs_no_other_setting() {
    for value in ["false", "0", "False", "f"] {
        let done = Program::new(&["serve"]).env("SYNCCTL_SYNCS_ENABLED", value).run();
        assert!(done.code(0).stderr.contains("SYNCCTL_SYNCS_ENABLED"), "{value}\n{done}");
    }
    let done = Program::new(&["serve"]).env("SYNCCTL_SYNCS_ENABLED", "perhaps").run();
    assert!(done.code(2).stderr.contains("SYNCCTL_SYNCS_ENABLED is \"perhaps\""), "{done}");
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

#[test]
fn the_variables_of_the_existing_implementation_are_honored() {
    let Some(world) = World::in_cluster() else { return };
    let namespace = world.namespace();
    namespace.kubectl(&["create", "serviceaccount", "tasks", "-n", &namespace.name]);
    let kubeconfig = std::fs::read_to_string(&namespace.kubeconfig).expect("the kubeconfig");
    let context = serde_json::from_str::<Value>(&kubeconfig).expect("JSON")["current-context"].clone();
    let port = free_port();
    let environment = [
        // Text with a line break.
        ("SYNCCTL_KUBERNETES_CLIENT_CONFIG", format!("{kubeconfig}\n")),
        ("SYNCCTL_KUBERNETES_CONTEXT", context.as_str().expect("a context").to_owned()),
        ("SYNCCTL_KUBERNETES_NAMESPACE", namespace.name.clone()),
        ("SYNCCTL_KUBERNETES_NODE_SELECTOR", r#"{"syncctl.test/none":"yes"}"#.to_owned()),
        ("SYNCCTL_PODS_SERVICE_ACCOUNT", "tasks".to_owned()),
        ("SYNCCTL_CONTAINER_GRACE_SHUTDOWN_SECONDS", "7".to_owned()),
        ("SYNCCTL_TASK_TIMEOUT_HOURS", "3".to_owned()),
        ("SYNCCTL_SOURCE_CPU_REQUEST_MILLICORES", "2".to_owned()),
        ("SYNCCTL_SOURCE_CPU_LIMIT_MILLICORES", "300".to_owned()),
        ("SYNCCTL_SOURCE_MEMORY_REQUEST_MI", "17".to_owned()),
        ("SYNCCTL_SOURCE_MEMORY_LIMIT_MI", "333".to_owned()),
        ("SYNCCTL_SIDECAR_CPU_REQUEST_MILLICORES", "3".to_owned()),
        ("SYNCCTL_SIDECAR_CPU_LIMIT_MILLICORES", "400".to_owned()),
        ("SYNCCTL_SIDECAR_MEMORY_REQUEST_MI", "18".to_owned()),
        ("SYNCCTL_SIDECAR_MEMORY_LIMIT_MI", "444".to_owned()),
        ("SYNCCTL_SOURCE_JAVA_OPTS", "-Xmx99m".to_owned()),
        ("SYNCCTL_LOG_LEVEL", "warn".to_owned()),
        ("SYNCCTL_DB_LOG_LEVEL", "Error".to_owned()),
        ("SYNCCTL_LOG_FORMAT", "json".to_owned()),
        ("SYNCCTL_RAW_AUTH_TOKENS", "plain.with.dots".to_owned()),
        ("SYNCCTL_INSTANCE_ID", "env://OTHER".to_owned()),
        ("OTHER", "the-instance".to_owned()),
        ("SYNCCTL_PORT", port.to_string()),
        ("SYNCCTL_HTTP_HOST", "127.0.0.1".to_owned()),
        ("SYNCCTL_SYNCS_ENABLED", "1".to_owned()),
    ];
    let program = environment.iter().fold(world.syncctl(&["serve"]), |program, (name, value)| program.env(name, value));
    let running = program.start();
    let http = Http::new(SocketAddr::from(([127, 0, 0, 1], port))).token(Some("plain.with.dots"));
    let ready = || http.try_send("GET", "/ready", &[], &[]).is_ok_and(|response| response.status == 200).then_some(());
    eventually("a ready service", DEADLINE, ready);
    assert!(http.get("/metrics").text().contains(r#"instance_id="the-instance""#));
    let task = unique("task-");
    assert_eq!(http.read(SLOW, &task, &task, &body(&["ticks"])).0, 200);
    let pods = namespace.pods();
    let spec = &pods.first().expect("the Pod")["spec"];
    let container = |name: &str| {
        let containers = spec["containers"].as_array().expect("containers");
        containers.iter().find(|container| container["name"] == name).expect("a container").clone()
    };
    let (source, sidecar) = (container("source"), container("sidecar"));
    let variable = |container: &Value, name: &str| {
        let variables = container["env"].as_array().expect("variables");
        variables.iter().find(|variable| variable["name"] == name).expect("a variable")["value"].clone()
    };
    let resources = |cpu: [&str; 2], memory: [&str; 2], storage: &str| {
        json!({
            "requests": {"cpu": cpu[0], "memory": memory[0], "ephemeral-storage": "0"},
            "limits": {"cpu": cpu[1], "memory": memory[1], "ephemeral-storage": storage},
        })
    };
    for (label, found, expected) in [
        ("node selector", &spec["nodeSelector"], json!({"syncctl.test/none": "yes"})),
        ("service account", &spec["serviceAccountName"], json!("tasks")),
        ("grace", &spec["terminationGracePeriodSeconds"], json!(7)),
        ("deadline", &spec["activeDeadlineSeconds"], json!(3 * 3600 + 300)),
        ("source", &source["resources"], resources(["2m", "300m"], ["17Mi", "333Mi"], "20Gi")),
        ("sidecar", &sidecar["resources"], resources(["3m", "400m"], ["18Mi", "444Mi"], "1Gi")),
        ("JAVA_OPTS", &variable(&source, "JAVA_OPTS"), json!("-Xmx99m")),
        ("LOG_LEVEL", &variable(&sidecar, "LOG_LEVEL"), json!("WARN")),
        ("DB_LOG_LEVEL", &variable(&sidecar, "DB_LOG_LEVEL"), json!("ERROR")),
        ("TASK_TIMEOUT_HOURS", &variable(&sidecar, "TASK_TIMEOUT_HOURS"), json!("3")),
    ] {
        assert_eq!(*found, expected, "{label}");
    }
    assert_eq!(http.cancel(SLOW, &task, &task).0, 200);
    eventually("an empty namespace", DEADLINE, || world.place.leftovers().is_empty().then_some(()));
    running.signal(Signal::TERM);
    running.wait().code(0);
}

/// `kubectl proxy`; ended when dropped.
struct Proxy {
    process: Child,
    address: String,
}

impl Proxy {
    fn start(world: &World) -> Self {
        let mut process = Command::new("kubectl")
            .args(["proxy", "--port=0"])
            .env("KUBECONFIG", &world.namespace().kubeconfig)
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl is installed");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("it is piped")).read_line(&mut line).expect("a line");
        let address = line.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        Self { process, address: format!("http://{address}") }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[test]
fn the_cluster_may_be_the_address_of_a_proxy() {
    let Some(world) = World::in_cluster() else { return };
    let proxy = Proxy::start(&world);
    let run = |address: &str| {
        let config = world.json("config.json", &json!({}));
        world
            .syncctl(&["discover", INSTANT, "--config", &config, "--storage-key", "k", "-o", "json"])
            .env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", address)
            .env("SYNCCTL_KUBERNETES_NAMESPACE", &world.namespace().name)
            .run()
    };
    assert!(run(&proxy.address).code(0).json()["streams"].is_array());
    world.place.assert_empty();
    let refused = run("http://user:hunter2@127.0.0.1:1");
    assert!(
        refused.code(2).stderr.contains("http://127.0.0.1:8001") && !refused.stderr.contains("hunter2"),
        "{refused}"
    );
}
