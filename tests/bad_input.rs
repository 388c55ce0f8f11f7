//! Invalid input: one error, the exit code, a final status in the row, and no leftovers in the cluster.

use serde_json::json;

use super::support::{Program, World, cluster, database, unique};

const INSTANT: &str = "syncctl-test/instant:1";
const CATALOG: &str = r#"{"streams":[{"stream":{"name":"items","json_schema":{}},"sync_mode":"full_refresh"}]}"#;
const DESTINATION: &str = r#"{"destinationType":"discard"}"#;

/// The files of a read. Cluster and database are unreachable, so an error about the files proves that nothing was
/// created.
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
fn malformed_files_are_reported_with_the_line_and_what_was_expected() {
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
        done.fails(2, "INVALID_INPUT", &parts);
    }
}

#[test]
fn a_stream_that_would_get_a_table_of_results_is_refused() {
    let files = Files::new();
    files.write("catalog.json", &CATALOG.replace("items", "Source.State"));
    let destination = json!({
        "destinationType": "postgres", "host": "localhost", "port": 1, "database": "none", "username": "other"
    });
    files.write("destination.json", &destination.to_string());
    let done = files.read(&["--to-same-case"]).run();
    done.fails(2, "INVALID_INPUT", &["catalog.json: ", "\"public\".\"source_state\"", "set a prefix for table names"]);
}

#[test]
fn malformed_yaml_files_and_states_are_reported_with_the_line() {
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
        // clap rejects repeated flags.
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
        done.fails(2, "INVALID_INPUT", &parts);
    }
}

#[test]
fn errors_about_files_do_not_quote_their_content() {
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
        done.fails(2, "INVALID_INPUT", &["config.json: line "]).hides("hunter2-hunter2");
        files.write("config.json", "{}");
        files.write("destination.json", text);
        files.read(&[]).run().fails(2, "INVALID_INPUT", &["destination.json: line "]).hides("hunter2-hunter2");
        files.write("destination.json", DESTINATION);
    }
}

#[test]
fn missing_settings_are_reported_together_with_variables_and_examples() {
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
fn invalid_image_names_are_rejected_before_anything_is_created() {
    for (label, image) in [("no version", "airbyte/source-faker"), ("blanks", "a b:1"), ("nothing", "")] {
        let done = cluster::nowhere(&["spec", image, "-o", "json"]).run();
        println!("{label}:\n{done}");
        done.fails(2, "USAGE", &[]);
    }
}

#[test]
fn a_missing_image_is_reported_with_its_name() {
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
    done.code(3);
    let document = done.json();
    let class = document["class"].as_str().unwrap_or_default();
    // Without an answer of the registry it is unknown whether the image exists.
    assert!(["IMAGE_PULL", "IMAGE_NOT_FOUND"].contains(&class), "{done}");
    assert!(document["error"].as_str().is_some_and(|text| text.contains("syncctl-test/none:1")), "{done}");
    assert!(document["hint"].is_string(), "{done}");
    let stored = world.schema.text("SELECT error FROM source_spec");
    assert!(stored.starts_with(&format!("{class}: ")), "{stored}");
}

#[test]
fn a_read_of_a_missing_image_is_not_reported_as_cancelled() {
    let Some(world) = World::new() else { return };
    let task = unique("pulls-");
    let init_timeout = ["--container-init-timeout-seconds", world.place.patience()];
    // The sidecar runs, and is terminated together with the Pod.
    let done = world.read("syncctl-test/none:1", "s", &task, &["one"]).with(&init_timeout).run();
    done.code(3);
    let document = done.json();
    let class = document["class"].as_str().unwrap_or_default();
    assert!(["IMAGE_PULL", "IMAGE_NOT_FOUND"].contains(&class), "{done}");
    let (status, error) = world.schema.task(&task).expect("a row");
    assert!(status == "FAILED" && error.starts_with(&format!("{class}: ")), "{status} {error}");
}

#[test]
fn a_missing_sidecar_image_is_reported_with_its_setting() {
    let Some(world) = World::in_cluster() else { return };
    let done = world
        .syncctl(&["spec", INSTANT, "-o", "json", "--container-init-timeout-seconds", world.place.patience()])
        .env("SYNCCTL_SIDECAR_IMAGE", "syncctl:none")
        .run();
    done.code(3);
    assert!(done.json()["error"].as_str().is_some_and(|text| text.contains("SYNCCTL_SIDECAR_IMAGE")), "{done}");
}

#[test]
fn garbage_is_not_a_result() {
    let Some(world) = World::new() else { return };
    let done = world.syncctl(&["spec", "syncctl-test/garbage:1", "-o", "json"]).run();
    done.fails(1, "NO_RESULT", &["SPEC", "something on stderr too"]);
    let stored = world.schema.text("SELECT error FROM source_spec WHERE specs IS NULL");
    assert!(stored.starts_with("NO_RESULT: "), "{stored}");
}

#[test]
fn a_read_of_garbage_ends_with_a_final_status() {
    let Some(world) = World::new() else { return };
    let task = unique("garbage-");
    let done = world.read("syncctl-test/garbage:1", "s", &task, &["items"]).run();
    assert!(matches!(done.code, Some(0 | 1)), "{done}");
    let (status, _) = world.schema.task(&task).expect("a row");
    assert_ne!(status, "RUNNING");
}

#[test]
fn a_connector_that_cannot_start_is_reported_with_its_stderr() {
    let Some(world) = World::new() else { return };
    let config = world.json("config.json", &json!({}));
    let spec = world.syncctl(&["spec", "syncctl-test/stillborn:1", "-o", "json"]).run();
    spec.fails(1, "CONNECTOR_FAILED", &["No module named stillborn", "1"]);
    let check = world
        .syncctl(&["check", "syncctl-test/stillborn:1", "--config", &config, "--storage-key", "k", "-o", "json"])
        .run();
    check.fails(1, "CONNECTOR_FAILED", &["No module named stillborn"]);
    let task = unique("stillborn-");
    let read = world.read("syncctl-test/stillborn:1", "s", &task, &["items"]).run();
    read.fails(1, "CONNECTOR_FAILED", &["No module named stillborn"]);
    assert!(world.schema.text("SELECT error FROM source_spec").starts_with("CONNECTOR_FAILED: "));
    assert_eq!(world.schema.text("SELECT status FROM source_check WHERE key = 'k'"), "FAILED");
    let (status, error) = world.schema.task(&task).expect("a row");
    assert_eq!(status, "FAILED");
    assert!(error.starts_with("CONNECTOR_FAILED: "), "{error}");
    assert_eq!(world.schema.streams(&task)["items"]["status"], "FAILED");
}

#[test]
fn an_image_without_an_entrypoint_has_a_class_of_its_own() {
    let Some(world) = World::in_cluster() else { return };
    let done = world.syncctl(&["spec", "syncctl-test/noentrypoint:1", "-o", "json"]).run();
    done.fails(1, "NO_ENTRYPOINT", &["AIRBYTE_ENTRYPOINT"]);
    assert!(world.schema.text("SELECT error FROM source_spec").starts_with("NO_ENTRYPOINT: "));
}

#[test]
fn exit_code_137_alone_is_not_reported_as_out_of_memory() {
    let Some(world) = World::new() else { return };
    let done = world.syncctl(&["spec", "syncctl-test/exit137:1", "-o", "json"]).run();
    done.fails(1, "CONNECTOR_FAILED", &["137"]);
}

#[test]
fn an_oom_killed_connector_is_reported_with_its_limit() {
    let Some(world) = World::new() else { return };
    let task = unique("oom-");
    let done = world
        .read("syncctl-test/oom:1", "s", &task, &["items"])
        .with(&["--source-memory-limit-mi", "64", "--source-memory-request-mi", "16"])
        .run();
    done.fails(3, "OOM_KILLED", &["64Mi"]);
    assert!(done.json()["hint"].as_str().is_some_and(|hint| hint.contains("SYNCCTL_SOURCE_MEMORY_LIMIT_MI")));
    let (status, error) = world.schema.task(&task).expect("a row");
    assert_eq!(status, "FAILED");
    assert!(error.starts_with("OOM_KILLED: "), "{error}");
}

#[test]
fn a_missing_permission_is_reported_in_the_words_of_the_api_server() {
    let Some(world) = World::in_cluster() else { return };
    let task = unique("powerless-");
    let kubeconfig = world.namespace().powerless().display().to_string();
    let done = world.read(INSTANT, "s", &task, &["items"]).env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", &kubeconfig).run();
    done.fails(3, "FORBIDDEN", &["cannot create resource \"secrets\"", &world.namespace().name]);
    assert!(done.json()["hint"].as_str().is_some_and(|hint| hint.contains("deploy/rbac/role.yaml")), "{done}");
    let (status, error) = world.schema.task(&task).expect("a row");
    assert_eq!(status, "FAILED");
    assert!(error.starts_with("FORBIDDEN: "), "{error}");
}

#[test]
fn an_invalid_token_is_forbidden() {
    let Some(world) = World::in_cluster() else { return };
    let text = std::fs::read_to_string(&world.namespace().kubeconfig).expect("the kubeconfig");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    config["users"][0]["user"] = json!({"token": "no-such-token"});
    let kubeconfig = world.json("kubeconfig", &config);
    let done =
        world.syncctl(&["spec", INSTANT, "-o", "json"]).env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", &kubeconfig).run();
    done.fails(3, "FORBIDDEN", &["credentials"]).hides("no-such-token");
}

#[test]
fn a_missing_namespace_is_reported() {
    let Some(world) = World::in_cluster() else { return };
    let kubeconfig = &world.setup.kubeconfig;
    let done = world
        .syncctl(&["spec", INSTANT, "-o", "json", "--namespace", "no-such-namespace"])
        .env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", kubeconfig)
        .run();
    done.code(3);
    assert!(done.json()["error"].as_str().is_some_and(|text| text.contains("no-such-namespace")), "{done}");
    assert_ne!(world.schema.text("SELECT error FROM source_spec"), "NULL");
}

#[test]
fn an_unreachable_api_server_is_reported_with_its_address() {
    let Some(world) = World::in_cluster() else { return };
    let task = unique("unreachable-");
    let kubeconfig = world.namespace().kubeconfig_of("https://127.0.0.1:1").display().to_string();
    let done = world.read(INSTANT, "s", &task, &["items"]).env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", &kubeconfig).run();
    done.fails(3, "CLUSTER_UNREACHABLE", &["127.0.0.1:1"]);
    let (status, error) = world.schema.task(&task).expect("a row");
    assert_eq!(status, "FAILED");
    assert!(error.starts_with("CLUSTER_UNREACHABLE: "), "{error}");
}

#[test]
fn an_unreadable_kubeconfig_of_the_settings_is_an_error() {
    let Some(world) = World::in_cluster() else { return };
    let broken = world.file("broken", "apiVersion: v1\nclusters: [\n");
    let inline = "apiVersion: v1\nkind: Config\nclusters: 7\n";
    for (label, value) in [("no file", "/nonexistent/kubeconfig"), ("no YAML", &broken), ("inline", inline)] {
        let done = world
            .syncctl(&["spec", INSTANT, "-o", "json"])
            .env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", value)
            // The kubeconfig of kubectl works, but the setting has precedence.
            .env("KUBECONFIG", &world.namespace().kubeconfig.display().to_string())
            .run();
        println!("{label}:\n{done}");
        done.fails(2, "USAGE", &[]);
        assert!(done.json()["error"].as_str().is_some_and(|text| text.contains("kubeconfig")), "{done}");
    }
}

#[test]
fn an_unreachable_database_is_reported_without_its_password() {
    let Some(world) = World::new() else { return };
    let done = world
        .syncctl(&["spec", INSTANT, "-o", "json"])
        .env("SYNCCTL_DATABASE_URL", "postgresql://ann:hunter2-hunter2@127.0.0.1:1/ledger?sslmode=disable")
        .run();
    done.fails(3, "DATABASE_UNREACHABLE", &["127.0.0.1", "1", "ledger"]).hides("hunter2-hunter2");
}

#[test]
fn a_rejected_database_password_is_reported_without_the_password() {
    let Some(world) = World::new() else { return };
    let mut url = url::Url::parse(&world.setup.database_url).expect("a URL");
    url.set_password(Some("hunter2-hunter2")).expect("a URL with a host");
    let done = world.syncctl(&["spec", INSTANT, "-o", "json"]).env("SYNCCTL_DATABASE_URL", url.as_str()).run();
    done.hides("hunter2-hunter2").code(3);
    assert!(done.json()["class"].as_str().is_some_and(|class| class.starts_with("DATABASE_")), "{done}");
}

#[test]
fn a_database_that_only_the_pod_cannot_reach_is_reported_by_the_pod() {
    let Some(world) = World::in_cluster() else { return };
    let url = database::in_schema("postgresql://ann:hunter2-hunter2@127.0.0.1:1/ledger?sslmode=disable", "x");
    let done = world
        .syncctl(&["spec", INSTANT, "-o", "json", "--container-init-timeout-seconds", "60"])
        .env("SYNCCTL_SIDECAR_DATABASE_URL", &url)
        .run();
    done.fails(3, "DATABASE_UNREACHABLE", &["127.0.0.1", "ledger"]).hides("hunter2-hunter2");
    let stored = world.schema.text("SELECT error FROM source_spec");
    assert!(stored.starts_with("DATABASE_UNREACHABLE: ") && !stored.contains("hunter2"), "{stored}");
}

#[test]
fn a_destination_that_rejects_the_connection_is_reported_and_recorded() {
    let Some(world) = World::new() else { return };
    let task = unique("refused-");
    let mut destination = world.destination_config();
    destination["password"] = json!("hunter2-hunter2");
    let destination = world.json("bad.json", &destination);
    let config = world.json("config.json", &json!({}));
    let catalog = world.file("catalog.json", CATALOG);
    let arguments = ["read", INSTANT, "--config", &config, "--catalog", &catalog, "--destination-config", &destination];
    let done = world.syncctl(&arguments).with(&["--sync-id", "s", "--task-id", &task, "-o", "json"]).run();
    done.fails(3, "DESTINATION_FAILED", &[&world.setup.pod_host]).hides("hunter2-hunter2");
    let (status, error) = world.schema.task(&task).expect("a row");
    assert_eq!(status, "FAILED");
    assert!(error.starts_with("DESTINATION_FAILED: ") && !error.contains("hunter2"), "{error}");
}

#[test]
fn a_configuration_larger_than_one_secret_is_split() {
    let Some(world) = World::new() else { return };
    // Random text, which does not compress.
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
