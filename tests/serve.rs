//! `syncctl serve`: its endpoints, its metrics, and how processes replace each other.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::support::http::target;
use super::support::{Http, Service, World, catalog, cluster, database, eventually, root, script, unique};

const INSTANT: &str = "syncctl-test/instant:1";
const SLOW: &str = "syncctl-test/slow:1";
/// A test that waits longer for a task or a leader hangs.
const DEADLINE: Duration = Duration::from_mins(3);

/// The body of a read into the destination `discard`.
fn body(streams: &[&str]) -> Value {
    json!({"config": {}, "catalog": catalog(streams), "destinationConfig": {"destinationType": "discard"}})
}

/// Waits for the end of a read and returns its document.
fn ended(service: &Http, task: &str) -> Value {
    eventually("the end of a task", DEADLINE, || {
        let (status, document) = service.call(&format!("/tasks/{task}"), &[], None);
        (status == 200 && document["task"]["status"] != "RUNNING").then(|| document["task"].clone())
    })
}

/// Waits until no object of a task is left.
fn wait_empty(world: &World) {
    eventually("an empty namespace", DEADLINE, || world.place.leftovers().is_empty().then_some(()));
}

/// Waits until a stream of a read is RUNNING.
fn wait_running(world: &World, task: &str, stream: &str) {
    eventually("a running stream", DEADLINE, || {
        world.schema.task(task)?;
        (world.schema.streams(task)[stream]["status"] == "RUNNING").then_some(())
    });
}

#[test]
fn a_check_message_that_begins_like_a_class_is_a_failure_of_the_connector() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    let message =
        r#"{"type":"CONNECTION_STATUS","connectionStatus":{"status":"FAILED","message":"INTERNAL: upstream error"}}"#;
    let config = script::config(&format!("echo '{message}'"));
    assert_eq!(service.check(script::SCRIPT, "misleading", &config).0, 200);
    let description = eventually("the result of the check", DEADLINE, || {
        world.schema.texts("SELECT description FROM source_check WHERE key = 'misleading'").first().cloned()
    });
    assert_eq!(description, "CONNECTOR_FAILED: INTERNAL: upstream error");
    wait_empty(&world);
    let metrics = service.http.get("/metrics").text();
    assert!(metrics.contains(r#"kind="check",outcome="CONNECTOR_FAILED"} 1"#), "{metrics}");
}

#[test]
fn each_kind_of_task_writes_its_table_and_leaves_nothing() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    let (status, accepted) = service.spec(INSTANT);
    assert_eq!((status, &accepted["ok"], &accepted["status"]), (200, &json!(true), &json!("ok")), "{accepted}");
    assert!(accepted["startedAt"].is_u64(), "{accepted}");
    assert_eq!(service.check(INSTANT, "good", &json!({"password": "right"})).0, 200);
    assert_eq!(service.check(INSTANT, "bad", &json!({"password": "wrong"})).0, 200);
    assert_eq!(service.discover(INSTANT, "catalog", &json!({})).0, 200);
    let task = unique("read-");
    let (status, accepted) = service.read(INSTANT, "sync", &task, &body(&["items"]));
    assert_eq!((status, &accepted["taskId"]), (200, &json!(task)), "{accepted}");

    let document = ended(&service, &task);
    assert_eq!(document["status"], "SUCCESS", "{document}");
    assert_eq!(document["streams"]["items"]["events"], 1000, "{document}");
    // The last log lines may be written after the outcome.
    eventually("the log of the connector", DEADLINE, || {
        let (_, document) = service.call(&format!("/tasks/{task}"), &[], None);
        let is_of_connector = |line: &Value| {
            line["message"].as_str().is_some_and(|text| text.starts_with("reading ") && text.contains("/config"))
        };
        document["task"]["logs"].as_array().expect("log lines").iter().any(is_of_connector).then_some(())
    });
    let rows = |query: &str| eventually(query, DEADLINE, || world.schema.texts(query).first().cloned());
    let title = "SELECT specs->'connectionSpecification'->>'title' FROM source_spec WHERE specs IS NOT NULL";
    assert_eq!(rows(title), "Instant");
    assert_eq!(rows("SELECT status FROM source_check WHERE key = 'good'"), "SUCCESS");
    assert_eq!(rows("SELECT status FROM source_check WHERE key = 'bad'"), "FAILED");
    let name = "SELECT catalog->'streams'->0->>'name' FROM source_catalog WHERE status = 'SUCCESS'";
    assert_eq!(rows(name), "items");
    wait_empty(&world);

    let metrics = service.http.get("/metrics").text();
    for line in [
        r#"kind="check"} 2"#,
        r#"kind="read",outcome="SUCCESS"} 1"#,
        r#"kind="check",outcome="CONNECTOR_FAILED"} 1"#,
        r#"method="POST",route="/check",status="200"} 2"#,
        r#"route="/tasks/{taskId}",status="200"}"#,
        "syncctl_leader{",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(!metrics.contains("syncctl-test/instant"), "a package is a label\n{metrics}");
}

#[test]
fn repeated_request_starts_nothing_and_a_different_one_is_a_conflict() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    let task = unique("again-");
    let same = || service.read(SLOW, "sync", &task, &body(&["ticks"]));
    assert_eq!(same().0, 200);
    wait_running(&world, &task, "ticks");
    let (status, again) = same();
    assert_eq!((status, &again["ok"], &again["taskStatus"]), (200, &json!(true), &json!("RUNNING")), "{again}");
    let (status, other) = service.read(SLOW, "sync", &task, &body(&["ticks", "others"]));
    assert_eq!((status, &other["taskId"]), (409, &json!(task)), "{other}");
    let (status, concurrent) = service.read(SLOW, "sync", &unique("concurrent-"), &body(&["ticks"]));
    assert_eq!((status, &concurrent["taskId"]), (409, &json!(task)), "{concurrent}");
    assert_eq!(world.place.pods().len(), 1);

    let (status, cancelled) = service.cancel(SLOW, "sync", &task);
    assert_eq!((status, &cancelled["taskStatus"]), (200, &json!("CANCELLED")), "{cancelled}");
    wait_empty(&world);
    assert_eq!(world.schema.task(&task).expect("a row").0, "CANCELLED");
    assert_eq!(world.schema.streams(&task)["ticks"]["status"], "CANCELLED");
    assert_eq!(same().1["taskStatus"], "CANCELLED", "a repeated request");
    assert_eq!(service.cancel(SLOW, "sync", &task).1["taskStatus"], "CANCELLED", "a repeated cancel");
    assert!(world.place.pods().is_empty());

    let next = unique("next-");
    assert_eq!(service.read(INSTANT, "sync", &next, &body(&["items"])).0, 200, "the sync has no running task");
    assert_eq!(ended(&service, &next)["status"], "SUCCESS");
    let (_, listed) = service.call("/tasks", &[("syncId", "sync")], None);
    let ids: Vec<&str> =
        listed["tasks"].as_array().expect("a list").iter().filter_map(|task| task["taskId"].as_str()).collect();
    assert_eq!(ids, [next.as_str(), task.as_str()], "newest first");
    wait_empty(&world);
}

#[test]
fn response_names_all_problems_of_a_request() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    let secret = "hunter2hunter2";
    for (label, response, status, parts) in [
        ("spec without parameters", service.http.get("/spec"), 400, vec!["package is missing", "version is missing"]),
        (
            "an unknown type",
            service.http.get("/spec?package=a/b&version=1&connectorType=x"),
            400,
            vec!["connectorType is unknown: the only known type is airbyte"],
        ),
        (
            "an incomplete read",
            service.http.post("/read?package=A%20b&version=1&syncId=s&addMeta=maybe", &json!({"config": secret})),
            400,
            vec![
                "package or version",
                "taskId is missing",
                "addMeta must be true or false",
                "invalid config in the body: expected a JSON object",
                "catalog is missing from the body",
                "there is no destination: set destinationConfig or SYNCCTL_BULKER_URL",
            ],
        ),
        (
            "an unknown destination",
            service.http.post(
                "/read?package=a/b&version=1&syncId=s&taskId=t",
                &json!({"config": {}, "catalog": catalog(&["a"]), "destinationConfig": {"destinationType": "x", "p": secret}}),
            ),
            400,
            vec!["known types are postgres, bulker, discard"],
        ),
        (
            "a stream that would get a table of results",
            service.http.post(
                "/read?package=a/b&version=1&syncId=s&taskId=t",
                &json!({"config": {}, "catalog": catalog(&["source.state"]), "destinationConfig": world.destination_config()}),
            ),
            400,
            vec!["source_state", "set a prefix for table names"],
        ),
        (
            "a destination that listens on a socket of the service's machine",
            service.http.post(
                "/read?package=a/b&version=1&syncId=s&taskId=t",
                &read_into(&json!({"host": "/run/postgresql"})),
            ),
            400,
            vec!["invalid destinationConfig", "directory of a Unix socket", "SYNCCTL_DESTINATION_HOSTS"],
        ),
        (
            "the metadata of a cloud",
            service.http.post(
                "/read?package=a/b&version=1&syncId=s&taskId=t",
                &json!({"config": {}, "catalog": catalog(&["a"]), "destinationConfig":
                    {"destinationType": "bulker", "url": "http://[::ffff:169.254.169.254]/latest", "authToken": "t"}}),
            ),
            400,
            vec!["invalid destinationConfig", "link-local", "SYNCCTL_DESTINATION_HOSTS"],
        ),
        ("no such path", service.http.get("/nothing"), 404, vec!["openapi.json"]),
        ("another method", service.http.get("/check"), 405, vec!["POST"]),
        ("no such task", service.http.get("/tasks/none"), 404, vec!["no such task"]),
        ("no task to cancel", service.http.get("/cancel?package=a&syncId=b"), 400, vec!["taskId is missing"]),
        ("no sync", service.http.get("/tasks?limit=0"), 400, vec!["syncId is missing", "limit must be a whole number"]),
    ] {
        let text = response.text();
        assert_eq!(response.status, status, "{label}: {text}");
        assert_eq!(response.json()["ok"], false, "{label}: {text}");
        for part in parts {
            assert!(text.contains(part), "{label}: {part:?} is not in {text}");
        }
        assert!(!text.contains(secret), "{label}: {text}");
    }
    world.place.assert_empty();
}

#[test]
fn token_is_required_except_for_probes() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    let anonymous = service.http.token(None);
    for (path, open) in [
        ("/health", true),
        ("/ready", true),
        ("/metrics", false),
        ("/openapi.json", false),
        ("/spec?package=a/b&version=1", false),
        ("/tasks?syncId=s", false),
        ("/nothing", false),
    ] {
        for (label, http) in
            [("no token", anonymous.clone()), ("an invalid token", anonymous.token(Some("invalid-token")))]
        {
            let response = http.get(path);
            assert_eq!(response.status == 200, open, "{path} with {label}: {}", response.text());
            if !open {
                assert_eq!(response.status, 401, "{path} with {label}");
                assert_eq!(response.header("www-authenticate"), Some(r#"Bearer realm="syncctl""#));
                assert!(!response.text().contains("invalid-token"), "{}", response.text());
            }
        }
    }
}

#[test]
fn service_without_tokens_is_open_and_logs_a_warning() {
    let Some(world) = World::new() else { return };
    let mut service = Service::start_with(&world, |program| program.env("SYNCCTL_AUTH_TOKENS", ""));
    assert_eq!(service.http.token(None).get("/metrics").status, 200);
    let done = service.stop();
    done.code(0);
    assert!(done.stderr.contains("SYNCCTL_AUTH_TOKENS is not set"), "{done}");
}

#[test]
fn failure_known_only_to_the_cluster_is_recorded() {
    let Some(world) = World::in_cluster() else { return };
    let service = Service::start_with(&world, |program| program.env("SYNCCTL_SOURCE_MEMORY_LIMIT_MI", "32"));
    assert_eq!(service.check("syncctl-test/oom:1", "k", &json!({})).0, 200);
    let task = unique("deleted-");
    assert_eq!(service.read(SLOW, "sync", &task, &body(&["ticks"])).0, 200);
    wait_running(&world, &task, "ticks");
    let pods = world.place.pods();
    let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let pod = pods.iter().map(name).find(|name| name.contains("-read-")).expect("the Pod of the read");
    world.namespace().kubectl(&["delete", "pod", &pod, "-n", &world.namespace().name, "--wait=false"]);
    // The terminated sidecar may store its outcome first.
    wait_empty(&world);
    let document = ended(&service, &task);
    assert_eq!(document["status"], "FAILED", "{document}");
    assert!(document["error"].as_str().is_some_and(|error| error.starts_with("POD_DELETED: ")), "{document}");
    let description = "SELECT description FROM source_check WHERE key = 'k' AND status = 'FAILED'";
    let stored = eventually("the outcome of the check", DEADLINE, || world.schema.texts(description).first().cloned());
    assert!(stored.starts_with("OOM_KILLED: "), "{stored}");
    wait_empty(&world);
}

#[test]
fn running_tasks_continue_after_term() {
    let Some(world) = World::in_cluster() else { return };
    let mut service = Service::start(&world);
    let task = unique("left-");
    assert_eq!(service.read(SLOW, "sync", &task, &body(&["ticks"])).0, 200);
    wait_running(&world, &task, "ticks");
    service.stop().code(0);
    assert_eq!(world.schema.task(&task).expect("a row").0, "RUNNING");
    assert_eq!(world.place.pods().len(), 1);
    service.start_again();
    assert_eq!(service.cancel(SLOW, "sync", &task).0, 200);
    wait_empty(&world);
    assert_eq!(world.schema.task(&task).expect("a row").0, "CANCELLED");
}

#[test]
fn next_process_finishes_tasks_that_ended_meanwhile() {
    let Some(world) = World::in_cluster() else { return };
    let mut service = Service::start(&world);
    let (read, check) = (unique("missed-"), unique("missed-"));
    assert_eq!(service.read(INSTANT, "sync", &read, &body(&["items"])).0, 200);
    assert_eq!(service.check("syncctl-test/stillborn:1", &check, &json!({})).0, 200);
    service.kill();
    eventually("the end of the read", DEADLINE, || (world.schema.task(&read)?.0 == "SUCCESS").then_some(()));
    service.start_again();
    wait_empty(&world);
    assert_eq!(world.schema.task(&read).expect("a row").0, "SUCCESS");
    let status = format!("SELECT status FROM source_check WHERE key = '{check}'");
    assert_eq!(world.schema.text(&status), "FAILED");
}

/// Whether this process is the leader, according to its metrics.
fn leads(service: &Service) -> bool {
    let metrics = service.http.get("/metrics").text();
    metrics.lines().any(|line| line.starts_with("syncctl_leader{") && line.ends_with(" 1"))
}

#[test]
fn one_of_two_processes_leads_and_the_other_takes_over() {
    let Some(world) = World::new() else { return };
    let mut first = Service::start(&world);
    let mut second = Service::start(&world);
    assert!(leads(&first) && !leads(&second), "the first process leads");
    // A follower accepts requests, too.
    let task = unique("follower-");
    assert_eq!(second.read(SLOW, "sync", &task, &body(&["ticks"])).0, 200);
    wait_running(&world, &task, "ticks");
    first.kill();
    eventually("another leader", DEADLINE, || leads(&second).then_some(()));
    assert_eq!(second.cancel(SLOW, "sync", &task).0, 200);
    wait_empty(&world);
    first.start_again();
    second.stop().code(0);
    eventually("a leader after a release", DEADLINE, || leads(&first).then_some(()));
    first.stop().code(0);
}

#[test]
fn ids_with_special_characters_are_found_again() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    let task = format!("{}/ä b%?#&+", unique("odd-"));
    assert_eq!(service.read(INSTANT, "a sync/of: mine", &task, &body(&["items"])).0, 200);
    let query = target("", &[("", &task)]);
    let encoded = query.trim_start_matches("?=").replace('+', "%20");
    assert_eq!(ended(&service, &encoded)["taskId"], json!(task));
    wait_empty(&world);
}

/// The service in a namespace, from the manifests in `deploy/`, once it is ready.
fn deployed(world: &World, secret: &[(&str, &str)]) -> Http {
    let image = &cluster::sidecar_image(world.setup).name;
    let environment = [
        ("SYNCCTL_SOURCE_CPU_REQUEST_MILLICORES", "1"),
        ("SYNCCTL_SOURCE_MEMORY_REQUEST_MI", "16"),
        ("SYNCCTL_CONTAINER_GRACE_SHUTDOWN_SECONDS", "5"),
    ];
    let service = cluster::Service { image, replicas: 2, secret, environment: &environment };
    let url = url::Url::parse(&world.namespace().serve(&service)).expect("a URL");
    let address = url.socket_addrs(|| None).expect("an address")[0];
    let namespace = &world.namespace().name;
    world.namespace().kubectl(&["rollout", "status", "deployment/syncctl", "-n", namespace, "--timeout=60s"]);
    let http = Http::new(address);
    let ready = || http.try_send("GET", "/ready", &[], &[]).is_ok_and(|response| response.status == 200).then_some(());
    eventually("a ready service", DEADLINE, ready);
    http
}

/// Calls every endpoint once.
fn call_all_endpoints(world: &World, http: &Http, name: &str) {
    assert_eq!(http.get("/health").json()["status"], "pass");
    assert_eq!(http.get("/openapi.json").json()["openapi"], "3.1.0");
    assert!(http.get("/metrics").text().contains("syncctl_leader{"));
    assert_eq!(http.spec(INSTANT).0, 200);
    assert_eq!(http.check(INSTANT, name, &json!({"password": "wrong"})).0, 200);
    assert_eq!(http.discover(INSTANT, name, &json!({})).0, 200);
    let (read, cancelled) = (format!("{name}-read"), format!("{name}-cancelled"));
    assert_eq!(http.read(INSTANT, name, &read, &body(&["items"])).0, 200);
    assert_eq!(ended(http, &read)["status"], "SUCCESS");
    assert_eq!(http.read(SLOW, name, &cancelled, &body(&["ticks"])).0, 200);
    wait_running(world, &cancelled, "ticks");
    assert_eq!(http.cancel(SLOW, name, &cancelled).1["taskStatus"], "CANCELLED");
    let (_, tasks) = http.call("/tasks", &[("syncId", name)], None);
    assert_eq!(tasks["tasks"].as_array().map(Vec::len), Some(2), "{tasks}");
    for query in [
        format!("SELECT status FROM source_check WHERE key = '{name}' AND status = 'FAILED'"),
        format!("SELECT status FROM source_catalog WHERE key = '{name}' AND status = 'SUCCESS'"),
        "SELECT package FROM source_spec WHERE specs IS NOT NULL".to_owned(),
    ] {
        eventually(&query, DEADLINE, || world.schema.texts(&query).first().map(|_| ()));
    }
}

#[test]
fn deployment_serves_every_endpoint_with_and_without_tokens() {
    let Some(world) = World::in_cluster() else { return };
    let url = database::in_schema(&world.setup.sidecar_database_url, &world.schema.name);
    let token = unique("token-");
    let http = deployed(&world, &[("SYNCCTL_DATABASE_URL", &url), ("SYNCCTL_AUTH_TOKENS", &token)]);
    assert_eq!(http.get("/metrics").status, 401);
    call_all_endpoints(&world, &http.token(Some(&token)), "closed");
    // A Deployment does not notice changes of a Secret.
    world.namespace().kubectl(&["delete", "deployment", "syncctl", "-n", &world.namespace().name]);
    let http = deployed(&world, &[("SYNCCTL_DATABASE_URL", &url)]);
    call_all_endpoints(&world, &http, "open");
    wait_empty(&world);
}

#[test]
fn responses_match_the_openapi_document() {
    let Some(world) = World::in_cluster() else { return };
    // Hundreds of requests are accepted: no node may run their Pods.
    let nowhere = r#"{"syncctl.test/simulated":"true"}"#;
    let mut service = Service::start_with(&world, |program| program.env("SYNCCTL_KUBERNETES_NODE_SELECTOR", nowhere));
    let token = service.http.token.clone().expect("a token");
    let output = Command::new(root().join("tests/schemathesis/run"))
        .arg(format!("http://{}", service.http.address))
        .env("SYNCCTL_TEST_TOKEN", token)
        .output()
        .expect("a script");
    let output_text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{output_text}");
    assert_eq!(service.http.get("/health").status, 200, "{output_text}");
    service.stop().code(0);
    let namespace = &world.namespace().name;
    world.namespace().kubectl(&[
        "delete",
        "pods,secrets",
        "-n",
        namespace,
        "-l",
        cluster::CREATOR,
        "--wait=true",
        "--grace-period=0",
        "--force",
    ]);
}

/// The body of a read into a Postgres with these fields besides the required ones.
fn read_into(fields: &Value) -> Value {
    let mut destination = json!({"destinationType": "postgres", "host": "db", "database": "d", "username": "u"});
    destination.as_object_mut().expect("fields").extend(fields.as_object().cloned().unwrap_or_default());
    json!({"config": {}, "catalog": catalog(&["a"]), "destinationConfig": destination})
}

/// A caller names values: a path would show which files the service has, or make it read one without an end.
#[test]
fn a_caller_names_no_files_of_the_service() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    let paths = ["/etc/passwd", "/no/such/file", "/dev/zero", "/dev/stdin", "/proc/self/environ", "Cargo.toml"];
    let answer = |fields: &Value| {
        let target = "/read?package=a/b&version=1&syncId=s&taskId=t";
        let response = service.http.post(target, &read_into(fields));
        assert_eq!(response.status, 400, "{fields}: {}", response.text());
        response.text()
    };
    for field in ["sslServerCA", "sslClientCert", "sslClientKey"] {
        let answers: Vec<String> =
            paths.iter().map(|path| answer(&json!({"sslMode": "verify-full", field: path}))).collect();
        assert!(answers.iter().all(|text| *text == answers[0] && text.contains(field)), "{answers:?}");
    }
    for parameter in ["sslrootcert", "sslcert", "sslkey", "passfile", "service", "servicefile"] {
        let answers: Vec<String> = paths.iter().map(|path| answer(&json!({"parameters": {parameter: path}}))).collect();
        assert!(answers.iter().all(|text| *text == answers[0]), "{answers:?}");
    }
    for host in ["/run/postgresql", "/no/such/directory", "db,/run/postgresql"] {
        for fields in [json!({"host": host}), json!({"parameters": {"host": host}})] {
            assert!(answer(&fields).contains("directory of a Unix socket"), "{fields}");
        }
    }
    assert!(service.memory("VmHWM") < 512 << 20, "{} bytes", service.memory("VmHWM"));
    world.place.assert_empty();
}

/// The list holds for the service and, at each connection, for the sidecar.
#[test]
fn destinations_are_where_the_operator_allows() {
    let Some(world) = World::new() else { return };
    let destination = world.destination_config();
    let host = destination["host"].as_str().expect("a host").to_owned();
    let hosts = format!("{host}:{}, *.example.com:5432", destination["port"]);
    let service = Service::start_with(&world, |program| program.env("SYNCCTL_DESTINATION_HOSTS", &hosts));
    let target = |task: &str| format!("/read?package=syncctl-test/instant&version=1&syncId={task}&taskId={task}");
    let (refused, allowed) = (unique("refused-"), unique("allowed-"));
    for fields in [
        json!({"host": "192.0.2.7"}),
        json!({"host": "db.example.com", "port": 22}),
        json!({"host": host, "port": 22}),
        json!({"host": host, "parameters": {"host": "192.0.2.7"}}),
        json!({"host": host, "parameters": {"hostaddr": "192.0.2.7"}}),
        json!({"host": format!("{host},192.0.2.7")}),
    ] {
        let response = service.http.post(&target(&refused), &read_into(&fields));
        assert_eq!(response.status, 400, "{fields}: {}", response.text());
        assert!(response.text().contains("is not among the hosts"), "{fields}: {}", response.text());
    }
    let body = json!({"config": {}, "catalog": catalog(&["items"]), "destinationConfig": destination});
    assert_eq!(service.http.post(&target(&allowed), &body).status, 200);
    let row =
        eventually("an outcome", DEADLINE, || world.schema.task(&allowed).filter(|(status, _)| status != "RUNNING"));
    assert_eq!(row.0, "SUCCESS", "{row:?}");
    assert_eq!(world.schema.task(&refused), None);
    wait_empty(&world);
}
