//! spec, check and discover: output, exit code and stored rows.

use std::time::Duration;

use serde_json::{Value, json};

use super::support::{World, catalog, cluster, eventually, script, unique};

const INSTANT: &str = "syncctl-test/instant:1";
const FAKER: &str = "airbyte/source-faker:7.2.1";

#[test]
fn spec_prints_the_specification_and_stores_it() {
    let Some(world) = World::new() else { return };
    let done = world.syncctl(&["spec", INSTANT, "-o", "json"]).run();
    done.code(0);
    let spec = done.json();
    assert_eq!(spec["documentationUrl"], "https://example.com/instant");
    assert_eq!(spec["connectionSpecification"]["properties"]["password"]["airbyte_secret"], true);
    let rows = world.schema.rows("SELECT package, version, specs::text, error FROM source_spec");
    assert_eq!(rows.len(), 1);
    let columns: Vec<String> = (0..2).map(|at| rows[0].get(at)).collect();
    assert_eq!(columns, ["syncctl-test/instant", "1"]);
    let stored: Value = serde_json::from_str(rows[0].get(2)).expect("JSON");
    assert_eq!(stored, spec);
    assert_eq!(rows[0].get::<_, Option<String>>(3), None);
}

#[test]
fn results_are_printed_as_json_yaml_or_text() {
    let Some(world) = World::new() else { return };
    let spec = |more: &[&str]| {
        let done = world.syncctl(&["spec", "--package", "syncctl-test/instant", "--version", "1"]).with(more).run();
        done.code(0);
        done.stdout
    };
    let (json, yaml, text) = (spec(&["-o", "json"]), spec(&["-o", "yaml"]), spec(&["--output", "text"]));
    assert_eq!(json.trim_end().lines().count(), 1, "JSON has one line");
    assert!(text.lines().count() > 5 && text.contains("\n  "), "text is indented: {text}");
    let value: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(serde_json::from_str::<Value>(&text).expect("text is JSON, too"), value);
    assert_eq!(serde_yaml::from_str::<Value>(&yaml).expect("YAML"), value);
}

#[test]
fn progress_goes_to_stderr_unless_quiet() {
    let Some(world) = World::new() else { return };
    let quiet = world.syncctl(&["spec", INSTANT, "-q"]).run();
    assert_eq!(quiet.code(0).stderr, "");
    let done = world.syncctl(&["spec", INSTANT]).run();
    assert!(done.code(0).stderr.contains(world.place.name()), "{done}");
}

#[test]
fn check_succeeds_and_stores_success() {
    let Some(world) = World::new() else { return };
    let config = world.json("config.json", &json!({"user": "ann", "password": "right-one"}));
    let done = world.syncctl(&["check", INSTANT, "--config", &config, "--storage-key", "key/1", "-o", "json"]).run();
    assert_eq!(done.code(0).json(), json!({"status": "SUCCEEDED", "message": null}));
    done.hides("right-one");
    let query = "SELECT concat_ws('|', package, version, key, status, description) FROM source_check";
    assert_eq!(world.schema.texts(query), ["syncctl-test/instant|1|key/1|SUCCESS"]);
}

#[test]
fn a_failed_check_exits_with_1_and_the_reason_of_the_connector() {
    let Some(world) = World::new() else { return };
    let done = world
        .syncctl(&["check", INSTANT, "--config", "-", "--storage-key", "k", "-o", "json"])
        .stdin(r#"{"password": "wrong"}"#)
        .run();
    let expected = json!({"status": "FAILED", "message": "the password is wrong"});
    // The message contains the password as a word, which is masked.
    let masked = json!({"status": "FAILED", "message": "the password is ***"});
    let document = done.code(1).json();
    assert!(document == masked || document == expected, "{done}");
    assert_eq!(world.schema.text("SELECT status FROM source_check WHERE key = 'k'"), "FAILED");
}

#[test]
fn the_first_connection_status_counts_and_contains_no_secret() {
    let Some(world) = World::new() else { return };
    let config = world.json("config.json", &json!({"mode": "any", "password": "hunter2-hunter2"}));
    let done = world.syncctl(&["check", "syncctl-test/odd:1", "--config", &config, "-o", "json"]).run();
    let document = done.code(1).hides("hunter2-hunter2").json();
    assert_eq!(document, json!({"status": "FAILED", "message": "cannot log in with ***"}));
    let described = world.schema.text("SELECT description FROM source_check");
    assert_eq!(described, "cannot log in with ***");
}

/// A connector whose every message begins like a failure class of ours.
const MISLEADING: &str = r#"
fail() { printf '{"type":"TRACE","trace":{"type":"ERROR","emitted_at":1,"error":{"message":"%s"}}}\n' "$1"; }
case $1 in
    check) echo '{"type":"CONNECTION_STATUS","connectionStatus":{"status":"FAILED","message":"CANCELLED: by the vendor"}}' ;;
    discover) fail "INTERNAL: upstream error"; exit 1 ;;
    read) fail "TIME_EXCEEDED: quota of the day"; exit 1 ;;
esac
"#;

#[test]
fn a_connector_message_that_begins_like_a_class_is_a_failure_of_the_connector() {
    let Some(world) = World::new() else { return };
    let config = world.json("config.json", &script::config(MISLEADING));
    let run = |command: &str| world.syncctl(&[command, script::SCRIPT, "--config", &config, "-o", "json"]).run();
    let check = run("check");
    let document = check.code(1).json();
    assert_eq!(document, json!({"status": "FAILED", "message": "CANCELLED: by the vendor"}));
    assert!(check.stderr.contains("error: CONNECTOR_FAILED: CANCELLED: by the vendor"), "{check}");
    let description = world.schema.text("SELECT description FROM source_check");
    assert_eq!(description, "CONNECTOR_FAILED: CANCELLED: by the vendor");

    run("discover").fails(1, "CONNECTOR_FAILED", &["INTERNAL: upstream error"]);
    let description = world.schema.text("SELECT description FROM source_catalog");
    assert_eq!(description, "CONNECTOR_FAILED: INTERNAL: upstream error");

    let read = world.run_script(MISLEADING, &catalog(&["items"]));
    let document = read.code(1).json();
    assert_eq!((&document["status"], &document["class"]), (&json!("FAILED"), &json!("CONNECTOR_FAILED")), "{document}");
    assert_eq!(document["error"], "CONNECTOR_FAILED: TIME_EXCEEDED: quota of the day");
}

#[test]
fn text_of_a_connector_does_not_control_the_terminal() {
    let Some(world) = World::new() else { return };
    let script = r#"
        printf 'stderr \033]0;title\007 \377\n' >&2
        echo '{"type":"CONNECTION_STATUS","connectionStatus":{"status":"FAILED","message":"a\u001b]0;title\u0007\u009b2J\u202eb\u0000\nerror: forged"}}'
    "#;
    let config = world.json("config.json", &script::config(script));
    for format in ["json", "yaml", "text"] {
        let check = world.syncctl(&["check", script::SCRIPT, "--config", &config, "-vv", "-o", format]).run();
        check.code(1);
        for text in [&check.stdout, &check.stderr] {
            assert!(!text.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}'), "{format}: {text:?}");
        }
        let line = "error: CONNECTOR_FAILED: a\\u001b]0;title\\u0007\\u009b2J\\u202eb\\u0000\n  error: forged\n";
        assert!(check.stderr.contains(line), "{check}");
    }
}

#[test]
fn the_default_storage_key_depends_on_the_configuration() {
    let Some(world) = World::new() else { return };
    let check = |password: &str| {
        let config = world.json("config.json", &json!({"password": password}));
        world.syncctl(&["check", INSTANT, "--config", &config, "-o", "json"]).run().code(0);
        world.schema.count("source_check")
    };
    assert_eq!(check("first"), 1);
    assert_eq!(check("first"), 1);
    assert_eq!(check("second"), 2);
}

#[test]
fn discover_prints_the_catalog_and_stores_it() {
    let Some(world) = World::new() else { return };
    let config = world.file("config.yaml", "user: ann\npassword: right-one\n");
    let done = world.syncctl(&["discover", INSTANT, "--config", &config, "--storage-key", "k", "-o", "json"]).run();
    let catalog = done.code(0).json();
    assert_eq!(catalog["streams"][0]["name"], "items");
    let rows = world.schema.rows("SELECT package, version, key, status, catalog::text FROM source_catalog");
    assert_eq!(rows.len(), 1);
    let columns: Vec<String> = (0..4).map(|at| rows[0].get(at)).collect();
    assert_eq!(columns, ["syncctl-test/instant", "1", "k", "SUCCESS"]);
    assert_eq!(serde_json::from_str::<Value>(rows[0].get(4)).expect("JSON"), catalog);
}

#[test]
fn a_failed_discover_keeps_the_stored_catalog() {
    let Some(world) = World::new() else { return };
    let config = world.json("config.json", &json!({}));
    let discover = |image: &str| {
        world.syncctl(&["discover", image, "--config", &config, "--storage-key", "k", "-o", "json"]).run()
    };
    discover(INSTANT).code(0);
    world.schema.execute("UPDATE source_catalog SET package = 'syncctl-test/odd'");
    discover("syncctl-test/odd:1").fails(1, "CONNECTOR_FAILED", &["the configuration has no account"]);
    let query = "SELECT concat_ws('|', status, catalog IS NOT NULL, description) FROM source_catalog";
    assert_eq!(world.schema.texts(query), ["FAILED|t|CONNECTOR_FAILED: the configuration has no account"]);
}

#[test]
fn spec_check_and_discover_of_a_real_connector() {
    let Some(world) = World::new() else { return };
    let spec = world.syncctl(&["spec", FAKER, "-o", "json"]).run();
    assert!(spec.code(0).json()["connectionSpecification"]["properties"]["count"].is_object(), "{spec}");
    let config = world.json("config.json", &json!({"count": 10, "seed": 1, "parallelism": 1}));
    let check = world.syncctl(&["check", FAKER, "--config", &config, "-o", "json"]).run();
    assert_eq!(check.code(0).json()["status"], "SUCCEEDED", "{check}");
    let catalog = world.syncctl(&["discover", FAKER, "--config", &config, "-o", "json"]).run();
    let catalog = catalog.code(0).json();
    let names: Vec<&str> =
        catalog["streams"].as_array().expect("a list").iter().filter_map(|s| s["name"].as_str()).collect();
    assert_eq!(names, ["products", "users", "purchases"], "in the order of the source");
    assert_eq!(world.schema.text("SELECT version FROM source_spec"), "7.2.1");
    assert_eq!(world.schema.text("SELECT status FROM source_check"), "SUCCESS");
    assert_eq!(world.schema.text("SELECT status FROM source_catalog"), "SUCCESS");
}

#[test]
fn a_real_connector_rejects_an_invalid_configuration() {
    let Some(world) = World::new() else { return };
    let config = world.json("config.json", &json!({"count": "many"}));
    let check = world.syncctl(&["check", FAKER, "--config", &config, "-o", "json"]).run();
    assert_eq!(check.code(1).json()["status"], "FAILED", "{check}");
    assert_eq!(world.schema.text("SELECT status FROM source_check"), "FAILED");
}

#[test]
fn pods_run_the_image_that_the_program_writes() {
    let Some(world) = World::in_cluster() else { return };
    let task = unique("image-");
    let read = world.read("syncctl-test/slow:1", "s", &task, &["ticks"]).start();
    let pod = eventually("a running pod", Duration::from_mins(1), || {
        world.place.pods().into_iter().find(|pod| pod["status"]["phase"] == "Running")
    });
    let image = cluster::sidecar_image(world.setup);
    let containers = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    let sidecar = containers.iter().find(|container| container["name"] == "sidecar").expect("a sidecar");
    let id = sidecar["imageID"].as_str().unwrap_or_default();
    // `sha256:…` or `docker.io/…@sha256:…`, depending on the runtime; the hash is that of the image's configuration.
    assert!(id.ends_with(&image.config_digest), "{id} is not {}", image.config_digest);
    read.signal(rustix::process::Signal::INT);
    read.wait().code(130);
}
