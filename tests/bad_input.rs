//! What bad input gets: one sentence, the right exit code, a terminal row, and nothing left in the cluster.

use std::time::Duration;

use serde_json::json;

use super::support::{Program, World, cluster, database, unique};

const INSTANT: &str = "syncctl-test/instant:1";
/// A fault of a connector is told when its Pod has ended, with room for a busy machine.
const SOON: Duration = Duration::from_mins(1);

const CATALOG: &str = r#"{"streams":[{"stream":{"name":"items","json_schema":{}},"sync_mode":"full_refresh"}]}"#;
const DESTINATION: &str = r#"{"destinationType":"discard"}"#;

/// Files of a read; the program that gets them reaches neither cluster nor database, so an answer about the files
/// proves that nothing was created.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { folder: tempfile::tempdir().expect("a folder") };
        files.write("config.json", "{}");
        files.write("catalog.json", CATALOG);
        files.write("destination.json", DESTINATION);
        files
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).expect("a file");
    }

    fn read(&self, more: &[&str]) -> Program {
        let arguments = ["read", INSTANT, "--config", "config.json", "--catalog", "catalog.json", "--sync-id", "s"];
        let output = ["--destination-config", "destination.json", "-o", "json"];
        cluster::nowhere(&arguments).with(&output).with(more).current_dir(self.folder.path())
    }
}

#[test]
fn a_malformed_file_is_told_with_its_line_and_what_was_expected() {
    for (label, name, text, parts) in [
        (
            "JSON that is cut off",
            "config.json",
            "{\n\"a\": 1,\n",
            ["config.json: line 3", "expected a JSON or YAML object"],
        ),
        ("a list as configuration", "config.json", "[1]", ["config.json: line 1", "found a list"]),
        ("an empty file", "config.json", " \n", ["config.json: line 1", "empty"]),
        ("a comma too much", "catalog.json", "{\n\"streams\": [],\n}", ["catalog.json: line 3", "configured catalog"]),
        (
            "streams that are no list",
            "catalog.json",
            "{\"streams\": 7}",
            ["catalog.json: line 1", "configured catalog"],
        ),
        ("no streams", "catalog.json", "{\"streams\": []}", ["catalog.json: ", "stream"]),
        (
            "an unknown mode",
            "catalog.json",
            &CATALOG.replace("full_refresh", "sometimes"),
            ["catalog.json: line 1", "configured catalog"],
        ),
        (
            "a generation below the minimum",
            "catalog.json",
            &CATALOG.replacen("\"sync_mode\"", "\"generation_id\": 1, \"minimum_generation_id\": 2, \"sync_mode\"", 1),
            ["catalog.json: ", "minimum_generation_id is 2, but generation_id is 1"],
        ),
        ("a destination that is cut off", "destination.json", "{\n", ["destination.json: line 2", "expected"]),
        ("no type", "destination.json", "{}", ["destination.json: ", "destinationType"]),
        ("an unknown type", "destination.json", r#"{"destinationType":"oracle"}"#, ["oracle", "postgres"]),
        (
            "a field that is missing",
            "destination.json",
            r#"{"destinationType":"postgres"}"#,
            ["destination.json: ", "destinationConfig.host: is required"],
        ),
    ] {
        let files = Files::new();
        files.write(name, text);
        let done = files.read(&[]).run();
        println!("{label}:\n{done}");
        done.fails(2, "INVALID_INPUT", &parts).within(Duration::from_secs(5));
    }
}

#[test]
fn a_malformed_yaml_file_or_state_is_told_with_its_line() {
    for (label, flag, name, text, parts) in [
        ("YAML", "--config", "bad.yaml", "a: 1\nb: [\n", ["bad.yaml: line ", "expected a JSON or YAML object"]),
        (
            "YAML catalog",
            "--catalog",
            "bad.yml",
            "streams:\n  - x: 1\n   y: 2\n",
            ["bad.yml: line ", "configured catalog"],
        ),
        ("state", "--state", "state.json", "[\n{\"type\":\n", ["state.json: line 3", "state messages"]),
        ("state that is a number", "--state", "state.json", "7", ["state.json: ", "state"]),
        ("state that is not there", "--state", "none.json", "", ["none.json", "No such file"]),
    ] {
        let files = Files::new();
        if !text.is_empty() {
            files.write(name, text);
        }
        // The last of a repeated flag would be refused by clap: so the right one is left out.
        let mut arguments = vec!["read", INSTANT, "--sync-id", "s", "-o", "json", flag, name];
        for (other, file) in
            [("--config", "config.json"), ("--catalog", "catalog.json"), ("--destination-config", "destination.json")]
        {
            if other != flag {
                arguments.extend([other, file]);
            }
        }
        let done = cluster::nowhere(&arguments).current_dir(files.folder.path()).run();
        println!("{label}:\n{done}");
        done.fails(2, "INVALID_INPUT", &parts).within(Duration::from_secs(5));
    }
}

#[test]
fn no_message_about_a_file_quotes_what_is_in_it() {
    let files = Files::new();
    for (label, text) in [
        ("JSON", "{\"password\": \"hunter2-hunter2\",\n"),
        ("a wrong type", "\"hunter2-hunter2\""),
        ("YAML", "password: hunter2-hunter2\n  x: [\n"),
        ("a scalar", "hunter2-hunter2"),
    ] {
        files.write("config.json", text);
        let done = files.read(&[]).run();
        println!("{label}");
        done.fails(2, "INVALID_INPUT", &["config.json: line "]).keeps("hunter2-hunter2");
        files.write("config.json", "{}");
        files.write("destination.json", text);
        files.read(&[]).run().fails(2, "INVALID_INPUT", &["destination.json: line "]).keeps("hunter2-hunter2");
        files.write("destination.json", DESTINATION);
    }
}

#[test]
fn missing_settings_are_told_all_at_once_each_with_its_variable_and_an_example() {
    let done = Program::new(&["spec", INSTANT, "-o", "json"]).run();
    done.fails(
        2,
        "USAGE",
        &[
            "SYNCCTL_DATABASE_URL",
            "--database-url",
            "e.g. postgresql://",
            "SYNCCTL_SIDECAR_IMAGE",
            "--sidecar-image",
            "e.g. syncctl:",
        ],
    );
    let empty = Program::new(&["spec", INSTANT, "-o", "json"])
        .env("SYNCCTL_DATABASE_URL", "")
        .env("SYNCCTL_SIDECAR_IMAGE", " ")
        .env("SYNCCTL_CONTAINER_INIT_TIMEOUT_SECONDS", "soon")
        .env("SYNCCTL_KUBERNETES_NODE_SELECTOR", "disk")
        .run();
    empty.fails(
        2,
        "USAGE",
        &[
            "SYNCCTL_DATABASE_URL",
            "SYNCCTL_SIDECAR_IMAGE",
            "SYNCCTL_CONTAINER_INIT_TIMEOUT_SECONDS is \"soon\"",
            "SYNCCTL_KUBERNETES_NODE_SELECTOR",
        ],
    );
}

#[test]
fn an_image_name_that_cannot_be_is_refused_before_anything_is_done() {
    for (label, image) in [("no version", "airbyte/source-faker"), ("blanks", "a b:1"), ("nothing", "")] {
        let done = cluster::nowhere(&["spec", image, "-o", "json"]).run();
        println!("{label}:\n{done}");
        done.fails(2, "USAGE", &[]).within(Duration::from_secs(5));
    }
}

#[test]
fn an_image_that_does_not_exist_ends_within_the_init_timeout() {
    let Some(world) = World::new() else { return };
    let done = world
        .syncctl(&[
            "spec",
            "syncctl-test/none:1",
            "-o",
            "json",
            "--container-init-timeout-seconds",
            world.place.patience(),
        ])
        .run();
    done.within(Duration::from_mins(1)).code(3);
    let document = done.json();
    let class = document["class"].as_str().unwrap_or_default();
    // Where no registry answers, nobody can say that the image does not exist.
    assert!(["IMAGE_PULL", "IMAGE_NOT_FOUND"].contains(&class), "{done}");
    assert!(document["error"].as_str().is_some_and(|text| text.contains("syncctl-test/none:1")), "{done}");
    assert!(document["hint"].is_string(), "{done}");
    let stored = world.schema.text("SELECT error FROM source_spec");
    assert!(stored.starts_with(&format!("{class}: ")), "{stored}");
}

#[test]
fn a_read_that_ends_because_of_its_image_is_not_told_to_be_cancelled() {
    let Some(world) = World::new() else { return };
    let task = unique("pulls-");
    let patience = ["--container-init-timeout-seconds", world.place.patience()];
    // The sidecar runs meanwhile, and is ended with the Pod.
    let done = world.read("syncctl-test/none:1", "s", &task, &["one"]).with(&patience).run();
    done.within(Duration::from_secs(30)).code(3);
    let document = done.json();
    let class = document["class"].as_str().unwrap_or_default();
    assert!(["IMAGE_PULL", "IMAGE_NOT_FOUND"].contains(&class), "{done}");
    let (status, error) = world.schema.task(&task).expect("a row");
    assert!(status == "FAILED" && error.starts_with(&format!("{class}: ")), "{status} {error}");
}

#[test]
fn a_sidecar_image_that_does_not_exist_is_named_with_its_setting() {
    let Some(world) = World::in_cluster() else { return };
    let done = world
        .syncctl(&["spec", INSTANT, "-o", "json", "--container-init-timeout-seconds", "8"])
        .env("SYNCCTL_SIDECAR_IMAGE", "syncctl:none")
        .run();
    done.within(Duration::from_secs(30)).code(3);
    assert!(done.json()["error"].as_str().is_some_and(|text| text.contains("SYNCCTL_SIDECAR_IMAGE")), "{done}");
}

#[test]
fn garbage_is_no_result() {
    let Some(world) = World::new() else { return };
    let done = world.syncctl(&["spec", "syncctl-test/garbage:1", "-o", "json"]).run();
    done.fails(1, "NO_RESULT", &["SPEC", "something on stderr too"]).within(SOON);
    let stored = world.schema.text("SELECT error FROM source_spec WHERE specs IS NULL");
    assert!(stored.starts_with("NO_RESULT: "), "{stored}");
}

#[test]
fn a_read_of_garbage_ends_without_a_row_lost_in_silence() {
    let Some(world) = World::new() else { return };
    let task = unique("garbage-");
    let done = world.read("syncctl-test/garbage:1", "s", &task, &["items"]).run();
    done.within(SOON);
    assert!(matches!(done.code, Some(0 | 1)), "{done}");
    let (status, _) = world.schema.task(&task).expect("a row");
    assert_ne!(status, "RUNNING");
}

#[test]
fn a_stillborn_connector_is_told_with_its_last_words() {
    let Some(world) = World::new() else { return };
    let config = world.json("config.json", &json!({}));
    let spec = world.syncctl(&["spec", "syncctl-test/stillborn:1", "-o", "json"]).run();
    spec.fails(1, "CONNECTOR_FAILED", &["No module named stillborn", "1"]).within(SOON);
    let check = world
        .syncctl(&["check", "syncctl-test/stillborn:1", "--config", &config, "--storage-key", "k", "-o", "json"])
        .run();
    check.fails(1, "CONNECTOR_FAILED", &["No module named stillborn"]).within(SOON);
    let task = unique("stillborn-");
    let read = world.read("syncctl-test/stillborn:1", "s", &task, &["items"]).run();
    read.fails(1, "CONNECTOR_FAILED", &["No module named stillborn"]).within(SOON);
    assert!(world.schema.text("SELECT error FROM source_spec").starts_with("CONNECTOR_FAILED: "));
    assert_eq!(world.schema.text("SELECT status FROM source_check WHERE key = 'k'"), "FAILED");
    let (status, error) = world.schema.task(&task).expect("a row");
    assert_eq!(status, "FAILED");
    assert!(error.starts_with("CONNECTOR_FAILED: "), "{error}");
    assert_eq!(world.schema.streams(&task)["items"]["status"], "FAILED");
}

#[test]
fn an_image_without_an_entrypoint_is_told_as_such() {
    let Some(world) = World::in_cluster() else { return };
    let done = world.syncctl(&["spec", "syncctl-test/noentrypoint:1", "-o", "json"]).run();
    done.fails(1, "NO_ENTRYPOINT", &["AIRBYTE_ENTRYPOINT"]).within(SOON);
    assert!(world.schema.text("SELECT error FROM source_spec").starts_with("NO_ENTRYPOINT: "));
}

#[test]
fn exit_code_137_alone_is_not_called_a_lack_of_memory() {
    let Some(world) = World::new() else { return };
    let done = world.syncctl(&["spec", "syncctl-test/exit137:1", "-o", "json"]).run();
    done.fails(1, "CONNECTOR_FAILED", &["137"]).within(SOON);
}

#[test]
fn a_connector_that_runs_out_of_memory_is_told_with_its_limit() {
    let Some(world) = World::new() else { return };
    let task = unique("oom-");
    let done = world
        .read("syncctl-test/oom:1", "s", &task, &["items"])
        .with(&["--source-memory-limit-mi", "64", "--source-memory-request-mi", "16"])
        .run();
    done.fails(3, "OOM_KILLED", &["64Mi"]).within(SOON);
    assert!(done.json()["hint"].as_str().is_some_and(|hint| hint.contains("SYNCCTL_SOURCE_MEMORY_LIMIT_MI")));
    let (status, error) = world.schema.task(&task).expect("a row");
    assert_eq!(status, "FAILED");
    assert!(error.starts_with("OOM_KILLED: "), "{error}");
}

#[test]
fn a_missing_right_is_told_in_the_clusters_own_words() {
    let Some(world) = World::in_cluster() else { return };
    let task = unique("powerless-");
    let kubeconfig = world.namespace().powerless().display().to_string();
    let done = world.read(INSTANT, "s", &task, &["items"]).env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", &kubeconfig).run();
    done.fails(3, "FORBIDDEN", &["cannot create resource \"secrets\"", &world.namespace().name]).within(SOON);
    assert!(done.json()["hint"].as_str().is_some_and(|hint| hint.contains("deploy/rbac/role.yaml")), "{done}");
    let (status, error) = world.schema.task(&task).expect("a row");
    assert_eq!(status, "FAILED");
    assert!(error.starts_with("FORBIDDEN: "), "{error}");
}

#[test]
fn a_token_that_is_not_accepted_is_forbidden() {
    let Some(world) = World::in_cluster() else { return };
    let text = std::fs::read_to_string(&world.namespace().kubeconfig).expect("the kubeconfig");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    config["users"][0]["user"] = json!({"token": "no-such-token"});
    let kubeconfig = world.json("stranger", &config);
    let done =
        world.syncctl(&["spec", INSTANT, "-o", "json"]).env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", &kubeconfig).run();
    done.fails(3, "FORBIDDEN", &["credentials"]).within(SOON).keeps("no-such-token");
}

#[test]
fn a_namespace_that_does_not_exist_is_told() {
    let Some(world) = World::in_cluster() else { return };
    let kubeconfig = &world.setup.kubeconfig;
    let done = world
        .syncctl(&["spec", INSTANT, "-o", "json", "--namespace", "no-such-namespace"])
        .env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", kubeconfig)
        .run();
    done.within(SOON).code(3);
    assert!(done.json()["error"].as_str().is_some_and(|text| text.contains("no-such-namespace")), "{done}");
    assert_ne!(world.schema.text("SELECT error FROM source_spec"), "NULL");
}

#[test]
fn an_unreachable_api_server_is_named() {
    let Some(world) = World::in_cluster() else { return };
    let task = unique("nobody-");
    let kubeconfig = world.namespace().kubeconfig_of("https://127.0.0.1:1").display().to_string();
    let done = world.read(INSTANT, "s", &task, &["items"]).env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", &kubeconfig).run();
    done.fails(3, "CLUSTER_UNREACHABLE", &["127.0.0.1:1"]).within(SOON);
    let (status, error) = world.schema.task(&task).expect("a row");
    assert_eq!(status, "FAILED");
    assert!(error.starts_with("CLUSTER_UNREACHABLE: "), "{error}");
}

#[test]
fn a_kubeconfig_that_was_named_and_cannot_be_read_is_an_error() {
    let Some(world) = World::in_cluster() else { return };
    let broken = world.file("broken", "apiVersion: v1\nclusters: [\n");
    let inline = "apiVersion: v1\nkind: Config\nclusters: 7\n";
    for (label, value) in [("no file", "/nonexistent/kubeconfig"), ("no YAML", &broken), ("inline", inline)] {
        let done = world
            .syncctl(&["spec", INSTANT, "-o", "json"])
            .env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", value)
            // What kubectl would use works; but it was not asked for.
            .env("KUBECONFIG", &world.namespace().kubeconfig.display().to_string())
            .run();
        println!("{label}:\n{done}");
        done.within(SOON);
        done.fails(2, "USAGE", &[]);
        assert!(done.json()["error"].as_str().is_some_and(|text| text.contains("kubeconfig")), "{done}");
    }
}

#[test]
fn an_unreachable_database_is_named_without_its_password() {
    let Some(world) = World::new() else { return };
    let done = world
        .syncctl(&["spec", INSTANT, "-o", "json"])
        .env("SYNCCTL_DATABASE_URL", "postgresql://ann:hunter2-hunter2@127.0.0.1:1/ledger?sslmode=disable")
        .run();
    done.fails(3, "DATABASE_UNREACHABLE", &["127.0.0.1", "1", "ledger"]).keeps("hunter2-hunter2");
    done.within(Duration::from_secs(90));
}

#[test]
fn a_password_that_the_database_refuses_is_told_at_once() {
    let Some(world) = World::new() else { return };
    let mut url = url::Url::parse(&world.setup.database_url).expect("a URL");
    url.set_password(Some("hunter2-hunter2")).expect("a URL with a host");
    let done = world.syncctl(&["spec", INSTANT, "-o", "json"]).env("SYNCCTL_DATABASE_URL", url.as_str()).run();
    done.within(Duration::from_secs(10)).keeps("hunter2-hunter2").code(3);
    assert!(done.json()["class"].as_str().is_some_and(|class| class.starts_with("DATABASE_")), "{done}");
}

#[test]
fn a_database_that_only_the_pod_cannot_reach_is_told_by_the_pod() {
    let Some(world) = World::in_cluster() else { return };
    let url = database::in_schema("postgresql://ann:hunter2-hunter2@127.0.0.1:1/ledger?sslmode=disable", "x");
    let done = world
        .syncctl(&["spec", INSTANT, "-o", "json", "--container-init-timeout-seconds", "20"])
        .env("SYNCCTL_SIDECAR_DATABASE_URL", &url)
        .run();
    done.fails(3, "DATABASE_UNREACHABLE", &["127.0.0.1", "ledger"]).keeps("hunter2-hunter2");
    done.within(Duration::from_secs(90));
    let stored = world.schema.text("SELECT error FROM source_spec");
    assert!(stored.starts_with("DATABASE_UNREACHABLE: ") && !stored.contains("hunter2"), "{stored}");
}

#[test]
fn a_destination_that_refuses_is_told_with_the_row_of_the_task() {
    let Some(world) = World::new() else { return };
    let task = unique("refused-");
    let mut destination = world.destination_config();
    destination["password"] = json!("hunter2-hunter2");
    let destination = world.json("bad.json", &destination);
    let config = world.json("config.json", &json!({}));
    let catalog = world.file("catalog.json", CATALOG);
    let arguments = ["read", INSTANT, "--config", &config, "--catalog", &catalog, "--destination-config", &destination];
    let done = world.syncctl(&arguments).with(&["--sync-id", "s", "--task-id", &task, "-o", "json"]).run();
    done.fails(3, "DESTINATION_FAILED", &[&world.setup.pod_host]).keeps("hunter2-hunter2").within(SOON);
    let (status, error) = world.schema.task(&task).expect("a row");
    assert_eq!(status, "FAILED");
    assert!(error.starts_with("DESTINATION_FAILED: ") && !error.contains("hunter2"), "{error}");
}

#[test]
fn a_configuration_larger_than_a_secret_travels_in_several() {
    let Some(world) = World::new() else { return };
    // Noise, so that compression does not make it small.
    let mut seed = 1_u64;
    let noise: String = (0..4_000_000)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b'#' + u8::try_from((seed >> 33) % 56).expect("below 56"))
        })
        .collect();
    let config = world.json("config.json", &json!({ "noise": noise }));
    let done = world.syncctl(&["check", INSTANT, "--config", &config, "-o", "json"]).run();
    assert_eq!(done.code(0).json()["status"], "SUCCEEDED");
}
