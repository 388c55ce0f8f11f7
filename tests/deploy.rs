//! The manifests of `deploy/`: a real API server accepts them unchanged, and they match the program.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::cluster::{self, SERVICE, Service, image_archive, image_config, sidecar_image};
use crate::support::{Namespace, World, eventually, root};

/// A deadline that only means "hangs".
const DEADLINE: Duration = Duration::from_mins(5);

fn shipped(file: &str) -> String {
    std::fs::read_to_string(root().join("deploy").join(file)).expect("a file of deploy/")
}

/// The objects of a folder of `deploy/` or an overlay of it; `None` without kubectl.
fn rendered(folder: &Path) -> Option<Vec<Value>> {
    let rendered = Command::new("kubectl").arg("kustomize").arg(folder).output().ok()?;
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    Some(documents(&String::from_utf8(rendered.stdout).expect("text")))
}

fn documents(yaml: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(yaml);
    documents.map(|document| serde::Deserialize::deserialize(document).expect("YAML")).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// The Pods of the service that are not being deleted and whose container has started: its settings and Secrets exist.
fn started(namespace: &Namespace) -> Vec<Value> {
    let mut pods = namespace.list("pods", &["-l", &format!("{}={}", SERVICE.0, SERVICE.1)]);
    pods.retain(|pod| {
        let started = pod["status"]["containerStatuses"][0]["containerID"].is_string();
        started && pod["metadata"]["deletionTimestamp"].is_null()
    });
    pods
}

/// The variables of the container, each with its value or source.
fn environment(pod: &Value) -> BTreeMap<String, Value> {
    let list = pod["spec"]["containers"][0]["env"].as_array().expect("variables");
    let value =
        |entry: &Value| if entry["value"].is_null() { entry["valueFrom"].clone() } else { entry["value"].clone() };
    list.iter().map(|entry| (entry["name"].as_str().expect("a name").to_owned(), value(entry))).collect()
}

#[test]
fn an_overlay_sets_the_image_the_secret_and_the_variables_of_the_deployment() {
    let Some(world) = World::in_cluster() else { return };
    let image = sidecar_image(world.setup);
    let secret = [("SYNCCTL_DATABASE_URL", "postgresql://u@h/d"), ("SYNCCTL_AUTH_TOKENS", "token")];
    let environment_of_the_overlay = [("SYNCCTL_LOG_LEVEL", "DEBUG")];
    let mut service =
        Service { image: &image.name, replicas: 2, secret: &secret, environment: &environment_of_the_overlay };
    let address = world.namespace().serve(&service);
    assert!(address.starts_with("http://") && address.ends_with(":3043"), "{address}");

    let pods = eventually("two Pods of the service", DEADLINE, || {
        Some(started(world.namespace())).filter(|pods| pods.len() == 2)
    });
    for pod in &pods {
        let spec = &pod["spec"];
        assert_eq!(spec["containers"][0]["image"], *image.name);
        assert_eq!(spec["serviceAccountName"], "syncctl");
        let variables = environment(pod);
        assert_eq!(variables["SYNCCTL_SIDECAR_IMAGE"], *image.name);
        assert_eq!(variables["SYNCCTL_KUBERNETES_CLIENT_CONFIG"], "local");
        assert_eq!(variables["SYNCCTL_LOG_LEVEL"], "DEBUG");
        assert_eq!(variables["SYNCCTL_INSTANCE_ID"], "env://POD_NAME");
        assert_eq!(variables["POD_NAME"]["fieldRef"]["fieldPath"], "metadata.name");
        for secret in [
            "SYNCCTL_DATABASE_URL",
            "SYNCCTL_AUTH_TOKENS",
            "SYNCCTL_TOKEN_SECRET",
            "SYNCCTL_BULKER_URL",
            "SYNCCTL_BULKER_AUTH_TOKEN",
        ] {
            assert_eq!(variables[secret]["secretKeyRef"]["key"], secret);
        }
        // The variables of Service links would look like settings, and the token is needed.
        assert_eq!(spec["enableServiceLinks"], false);
        let mounts = spec["containers"][0]["volumeMounts"].as_array().expect("the token is mounted");
        assert_eq!(mounts[0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    }

    service.replicas = 1;
    assert_eq!(world.namespace().serve(&service), address, "the address of the Service when the overlay changes");
    eventually("one Pod of the service", DEADLINE, || Some(()).filter(|()| started(world.namespace()).len() == 1));
}

#[test]
fn the_service_account_may_hold_a_lease_but_has_no_needless_permissions() {
    let Some(world) = World::in_cluster() else { return };
    let account = format!("system:serviceaccount:{}:syncctl", world.namespace().name);
    let list = world.namespace().kubectl(&["auth", "can-i", "--list", "--as", &account, "-n", &world.namespace().name]);
    let may = |verb: &str, kind: &str| {
        let line = list.lines().find(|line| line.starts_with(&format!("{kind} "))).unwrap_or_default().to_owned();
        line.rsplit_once('[').is_some_and(|(_, verbs)| verbs.trim_end_matches(']').split(' ').any(|one| one == verb))
    };
    for verb in ["get", "create", "update"] {
        assert!(may(verb, "leases.coordination.k8s.io"), "{verb} leases");
    }
    for (verb, kind) in [
        ("list", "leases.coordination.k8s.io"),
        ("delete", "leases.coordination.k8s.io"),
        ("create", "pods/exec"),
        ("update", "secrets"),
        ("get", "secrets"),
        ("list", "secrets"),
        ("watch", "secrets"),
        ("create", "events"),
    ] {
        assert!(!may(verb, kind), "{verb} {kind}");
    }
}

#[test]
fn task_pods_reach_neither_link_local_addresses_nor_the_api_server() {
    let Some(objects) = rendered(&root().join("deploy/egress")) else { return };
    let policy = of_kind(&objects, "NetworkPolicy")[0];
    let (label, value) = cluster::CREATOR.split_once('=').expect("a label");
    assert_eq!(policy["spec"]["podSelector"]["matchLabels"], json!({label: value}), "{policy}");
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(policy["spec"]["ingress"].as_array().map_or(0, Vec::len), 0);
    let rules = policy["spec"]["egress"].as_array().expect("rules");
    let blocks = rules.iter().flat_map(|rule| rule["to"].as_array().cloned().unwrap_or_default());
    let blocks: Vec<Value> = blocks.map(|peer| peer["ipBlock"].clone()).filter(|block| !block.is_null()).collect();
    assert_eq!(
        blocks,
        [
            json!({"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16", "10.96.0.1/32"]}),
            json!({"cidr": "::/0", "except": ["fe80::/10", "fd00:ec2::254/128"]}),
        ]
    );
    for rule in rules.iter().filter(|rule| rule["to"].is_null()) {
        let ports = rule["ports"].as_array().expect("a rule for all addresses names its ports");
        assert!(ports.iter().all(|port| port["port"] == 53), "{rule}");
    }
    // The path of the comment in kustomization.yaml.
    assert!(policy["spec"]["egress"][2]["to"][0]["ipBlock"]["except"].is_array());
}

#[test]
fn tasks_may_have_a_namespace_in_which_alone_the_service_has_rights() {
    let Some(objects) = rendered(&root().join("deploy/task-namespace")) else { return };
    assert_eq!(of_kind(&objects, "Namespace")[0]["metadata"]["name"], "syncctl-tasks");
    let role = of_kind(&objects, "Role")[0];
    assert_eq!(role["metadata"]["namespace"], "syncctl-tasks");
    assert_eq!(role["rules"], documents(&shipped("rbac/role.yaml"))[0]["rules"], "the same rights in both places");
    let binding = of_kind(&objects, "RoleBinding")[0];
    assert_eq!(binding["subjects"], json!([{"kind": "ServiceAccount", "name": "syncctl", "namespace": "syncctl"}]));

    let folder = tempfile::tempdir().expect("a folder");
    cluster::copy(&root().join("deploy"), &folder.path().join("deploy"));
    std::fs::write(folder.path().join("service.yaml"), shipped("task-namespace/service.yaml")).expect("a file");
    let overlay = json!({"namespace": "syncctl", "bases": ["deploy"], "patchesStrategicMerge": ["service.yaml"]});
    std::fs::write(folder.path().join("kustomization.yaml"), overlay.to_string()).expect("a file");
    let objects = rendered(folder.path()).expect("kubectl");
    assert!(of_kind(&objects, "Role").is_empty() && of_kind(&objects, "RoleBinding").is_empty());
    let deployment = of_kind(&objects, "Deployment")[0];
    assert_eq!(deployment["spec"]["template"]["spec"]["serviceAccountName"], "syncctl");
    let variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().expect("variables");
    let namespace: Vec<_> =
        variables.iter().filter(|variable| variable["name"] == "SYNCCTL_KUBERNETES_NAMESPACE").collect();
    assert_eq!(namespace, [&json!({"name": "SYNCCTL_KUBERNETES_NAMESPACE", "value": "syncctl-tasks"})]);
}

#[test]
fn the_dockerfile_builds_the_same_image_as_the_program() {
    let instructions: Vec<String> =
        shipped("Dockerfile").lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    let archive = image_archive("syncctl:same");
    let image: Value = serde_json::from_slice(&image_config(archive.path())).expect("the image's configuration");
    let config = &image["config"];
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let expected = [
        "FROM scratch".to_owned(),
        "COPY syncctl /syncctl".to_owned(),
        format!("USER {}", text(&config["User"])),
        format!("WORKDIR {}", text(&config["WorkingDir"])),
        format!("ENTRYPOINT {}", config["Entrypoint"]),
    ];
    assert_eq!(instructions, expected);
    assert_eq!(config["Entrypoint"][0], "/syncctl");
    assert_eq!(image["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(1), "one layer: {image}");
}

#[test]
fn the_deployment_names_the_image_of_this_version() {
    let image = format!("syncctl:{}", env!("CARGO_PKG_VERSION"));
    let deployment = shipped("deployment.yaml");
    assert!(deployment.contains(&format!("image: {image}\n")), "{deployment}");
    assert!(deployment.contains(&format!("value: {image}\n")), "{deployment}");
}
