//! Task → Pod and Secrets, pure. Names, paths and variables are those of the wire contract.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret as KubeSecret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::payload::{Payload, TooLarge};
use super::status::{INIT, SIDECAR, SOURCE};
use crate::contract::{self, MAX_REPORTS_MI, PIPES_DIR, REPORTS_DIR, variable};
use crate::secret::Secret;
use crate::task::{Task, TaskKind};

/// On every object that we create. The value of the existing implementation, so that both see the same Pods.
pub const CREATOR_LABEL: (&str, &str) = ("jitsu.com/creator", "bulker-sync-controller");
/// The launch that created an object: distinguishes our own repeated create from another launch's Pod.
pub const ATTEMPT: &str = "syncctl/attempt";
/// The one-off command that follows the Pod; absent when `serve` does.
pub const OWNER: &str = "syncctl/owner";
/// The user of the sidecar: any but root. Distroless images use this one.
const SIDECAR_USER: i64 = 65532;
/// The volume of the FIFOs.
const PIPES: &str = "pipes";
/// The volume of what the connector's container reports.
const REPORTS: &str = "reports";
/// The key of the functions' environment in the first Secret.
const FUNCTIONS_ENV_KEY: &str = "FUNCTIONS_ENV";
/// How long after the task's timeout the cluster ends a Pod that no process follows any more.
const DEADLINE_SLACK_SECONDS: u64 = 300;

/// How long after TERM the connector next to a foreign sidecar gets it. Enough for the sidecar to get its own.
const TERM_DELAY_SECONDS: &str = "3";

/// The command of the connector's container.
const SOURCE_SCRIPT: &str = include_str!("source.sh");

#[cfg(test)]
#[path = "script_tests.rs"]
mod script_tests;

/// Creates the FIFOs and unpacks the documents for a foreign sidecar. Our own sidecar does both itself.
const INIT_SCRIPT: &str = r#"set -e
mkfifo /pipes/stdout /pipes/stderr
chmod 666 /pipes/stdout /pipes/stderr
unpack() {
  [ -e "/secrets/$1.gz.000" ] || return 0
  cat "/secrets/$1".gz.* | gunzip >"$2/$1"
  chmod 444 "$2/$1"
}
for name in config.json catalog.json state.json; do unpack "$name" /source-config; done
for name in catalog.json state.json destinationConfig.json; do unpack "$name" /sidecar-config; done
: >/pipes/ready
echo OK
"#;

/// CPU and memory of one container; 0 means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// CPU request in millicores.
    pub cpu_request: u32,
    /// CPU limit in millicores.
    pub cpu_limit: u32,
    /// Memory request in MiB.
    pub memory_request: u32,
    /// Memory limit in MiB.
    pub memory_limit: u32,
    /// Limit of files on the node in MiB: logs, the root file system and volumes that are not in memory.
    pub storage_limit: u32,
}

/// The settings of all Pods.
#[derive(Debug, Clone)]
pub struct PodSettings {
    /// The image of the sidecar.
    pub sidecar_image: String,
    /// For a foreign sidecar: an image with a shell, gunzip and mkfifo.
    pub init_image: Option<String>,
    /// Secrets with the credentials of registries.
    pub pull_secrets: Vec<String>,
    /// The database of results as Pods reach it.
    pub sidecar_database_url: Secret,
    /// The schema of that database for tables that other programs do not know.
    pub own_schema: String,
    /// Labels of the nodes for tasks.
    pub node_selector: BTreeMap<String, String>,
    /// The ServiceAccount of the Pods; its token is not mounted.
    pub service_account: Option<String>,
    /// From TERM until a container is killed.
    pub grace_seconds: u32,
    /// How long the sidecar waits for the connector to start.
    pub init_timeout_seconds: u32,
    /// How long a connector may write nothing.
    pub silence_seconds: u32,
    /// Resources of the connector.
    pub source_resources: Resources,
    /// Resources of the sidecar.
    pub sidecar_resources: Resources,
    /// The Linux capabilities that the connector keeps, without `CAP_`.
    pub source_capabilities: Vec<String>,
    /// `JAVA_OPTS` of the connector.
    pub java_opts: String,
    /// The minimum level of the sidecar's own log.
    pub log_level: String,
    /// The minimum level in `task_log`.
    pub db_log_level: String,
}

/// The objects of one task.
pub struct Objects {
    /// In the order of their creation: the first contains the database URL.
    pub secrets: Vec<KubeSecret>,
    /// The Pod.
    pub pod: Pod,
}

/// A request to launch a task.
pub struct Launch<'a> {
    /// The task.
    pub task: &'a Task,
    /// Its documents.
    pub payload: &'a Payload,
    /// The settings of all Pods.
    pub settings: &'a PodSettings,
    /// The random id of this launch.
    pub attempt: &'a str,
    /// The process that follows the task, if it is a one-off command.
    pub owner: Option<&'a str>,
}

impl Launch<'_> {
    /// Builds the objects.
    pub fn objects(&self) -> Result<Objects, TooLarge> {
        let pieces = self.payload.pieces()?;
        let keys: Vec<Vec<String>> = pieces.iter().map(|data| data.keys().cloned().collect()).collect();
        let secrets = pieces.into_iter().enumerate().map(|(index, data)| self.secret(index, data)).collect();
        let pod = serde_json::from_value(self.pod(&keys)).expect("the document is a Pod by construction");
        Ok(Objects { secrets, pod })
    }

    fn metadata(&self, name: String) -> ObjectMeta {
        let mut annotations = self.task.to_annotations();
        annotations.insert(ATTEMPT.to_owned(), self.attempt.to_owned());
        annotations.insert("sidecar.istio.io/inject".to_owned(), "false".to_owned());
        annotations.insert("cluster-autoscaler.kubernetes.io/safe-to-evict".to_owned(), "false".to_owned());
        annotations.insert("karpenter.sh/do-not-disrupt".to_owned(), "true".to_owned());
        if let Some(owner) = self.owner {
            annotations.insert(OWNER.to_owned(), owner.to_owned());
        }
        let labels = BTreeMap::from([
            (CREATOR_LABEL.0.to_owned(), CREATOR_LABEL.1.to_owned()),
            ("app.kubernetes.io/managed-by".to_owned(), "syncctl".to_owned()),
            ("syncctl/kind".to_owned(), self.task.kind.to_string()),
        ]);
        ObjectMeta { name: Some(name), annotations: Some(annotations), labels: Some(labels), ..ObjectMeta::default() }
    }

    fn secret(&self, index: usize, data: BTreeMap<String, Vec<u8>>) -> KubeSecret {
        let mut data: BTreeMap<_, _> = data.into_iter().map(|(key, bytes)| (key, ByteString(bytes))).collect();
        if index == 0 {
            let url = self.settings.sidecar_database_url.expose_secret().as_bytes().to_vec();
            data.insert(variable::DATABASE_URL.to_owned(), ByteString(url));
            if let Some(env) = &self.payload.functions_env {
                data.insert(FUNCTIONS_ENV_KEY.to_owned(), ByteString(env.as_bytes().to_vec()));
            }
        }
        let metadata = self.metadata(secret_name(&self.task.pod_name(), index));
        KubeSecret { metadata, data: Some(data), type_: Some("Opaque".to_owned()), ..KubeSecret::default() }
    }

    fn pod(&self, keys: &[Vec<String>]) -> Value {
        let settings = self.settings;
        let metadata = self.metadata(self.task.pod_name());
        let foreign = settings.init_image.is_some();
        let has_files = keys.iter().any(|keys| !keys.is_empty());
        let reports_size = format!("{MAX_REPORTS_MI}Mi");
        let mut volumes = vec![
            json!({"name": PIPES, "emptyDir": {"sizeLimit": "1Mi"}}),
            json!({"name": REPORTS, "emptyDir": {"medium": "Memory", "sizeLimit": reports_size}}),
        ];
        if has_files {
            volumes.push(json!({"name": "config", "emptyDir": {"medium": "Memory"}}));
            volumes.push(json!({"name": "secrets", "projected": {"sources": self.secret_sources(keys)}}));
            if foreign {
                volumes.push(json!({"name": "sidecar-config", "emptyDir": {"medium": "Memory"}}));
            }
        }
        let mut spec = json!({
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": settings.grace_seconds,
            "activeDeadlineSeconds": self.task.timeout.as_secs() + DEADLINE_SLACK_SECONDS,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            // The kubelet starts them in this order, so that the connector need not wait for the pipes.
            "containers": [self.sidecar(has_files), self.source(has_files)],
            "volumes": volumes,
        });
        if !settings.pull_secrets.is_empty() {
            let names = settings.pull_secrets.iter().map(|name| json!({"name": name}));
            spec["imagePullSecrets"] = names.collect();
        }
        if let Some(account) = &settings.service_account {
            spec["serviceAccountName"] = json!(account);
        }
        if !settings.node_selector.is_empty() {
            spec["nodeSelector"] = json!(settings.node_selector);
        }
        if let Some(image) = &settings.init_image {
            spec["initContainers"] = json!([init(image, has_files)]);
        }
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    }

    fn secret_sources(&self, keys: &[Vec<String>]) -> Vec<Value> {
        let name = self.task.pod_name();
        keys.iter()
            .enumerate()
            .filter(|(_, keys)| !keys.is_empty())
            .map(|(index, keys)| {
                let items: Vec<Value> = keys.iter().map(|key| json!({"key": key, "path": key})).collect();
                json!({"secret": {"name": secret_name(&name, index), "items": items}})
            })
            .collect()
    }

    fn source(&self, has_files: bool) -> Value {
        let mut mounts = vec![
            json!({"name": PIPES, "mountPath": PIPES_DIR, "readOnly": true}),
            json!({"name": REPORTS, "mountPath": REPORTS_DIR}),
        ];
        if has_files {
            mounts.push(json!({"name": "config", "mountPath": "/config", "readOnly": true}));
        }
        let mut command = ["sh", "-c", SOURCE_SCRIPT, "sh", PIPES_DIR, REPORTS_DIR].map(str::to_owned).to_vec();
        command.extend(self.connector_arguments());
        let mut capabilities = json!({"drop": ["ALL"]});
        if !self.settings.source_capabilities.is_empty() {
            capabilities["add"] = json!(self.settings.source_capabilities);
        }
        let mut environment = environment(&[
            ("USE_STREAM_CAPABLE_STATE", "true"),
            ("AUTO_DETECT_SCHEMA", "true"),
            ("JAVA_OPTS", &self.settings.java_opts),
        ]);
        if self.settings.init_image.is_some() {
            environment.push(json!({"name": "SYNCCTL_TERM_DELAY", "value": TERM_DELAY_SECONDS}));
        }
        json!({
            "name": SOURCE,
            "image": self.task.image.reference(),
            "imagePullPolicy": "IfNotPresent",
            "command": command,
            "env": environment,
            "resources": resources(self.settings.source_resources),
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": capabilities},
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": mounts,
        })
    }

    /// The arguments of `AIRBYTE_ENTRYPOINT`.
    fn connector_arguments(&self) -> Vec<String> {
        let mut arguments = vec![self.task.kind.to_string()];
        if self.task.kind == TaskKind::Read && self.task.options.debug {
            arguments.push("--debug".to_owned());
        }
        let documents = [
            ("--config", "config.json", &self.payload.config),
            ("--catalog", "catalog.json", &self.payload.catalog),
            ("--state", "state.json", &self.payload.state),
        ];
        for (option, file, document) in documents {
            if document.is_some() {
                arguments.extend([option.to_owned(), format!("/config/{file}")]);
            }
        }
        arguments
    }

    fn sidecar(&self, has_files: bool) -> Value {
        let settings = self.settings;
        let mut mounts = vec![json!({"name": PIPES, "mountPath": PIPES_DIR})];
        let mut container = json!({
            "name": SIDECAR,
            "image": settings.sidecar_image,
            "imagePullPolicy": "IfNotPresent",
            "env": self.sidecar_environment(),
            "resources": resources(settings.sidecar_resources),
        });
        if settings.init_image.is_some() {
            if has_files {
                mounts.push(json!({"name": "sidecar-config", "mountPath": "/config", "readOnly": true}));
            }
        } else {
            mounts.push(json!({"name": REPORTS, "mountPath": REPORTS_DIR, "readOnly": true}));
            if has_files {
                mounts.push(json!({"name": "config", "mountPath": "/config"}));
                mounts.push(json!({"name": "secrets", "mountPath": "/secrets", "readOnly": true}));
            }
            container["command"] = json!(["/syncctl", "sidecar"]);
            container["securityContext"] = json!({
                "runAsNonRoot": true,
                "runAsUser": SIDECAR_USER,
                "runAsGroup": SIDECAR_USER,
                "readOnlyRootFilesystem": true,
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
            });
        }
        container["volumeMounts"] = json!(mounts);
        container
    }

    fn sidecar_environment(&self) -> Vec<Value> {
        let task = self.task;
        let options = &task.options;
        let started_at = task.started_at.to_string();
        let timeout_hours = task.timeout.as_secs().div_ceil(3600).to_string();
        let timeout_seconds = task.timeout.as_secs().to_string();
        let init_timeout = self.settings.init_timeout_seconds.to_string();
        let silence = options.silence_seconds.unwrap_or(self.settings.silence_seconds).to_string();
        let started_by = task.started_by.as_ref().map(ToString::to_string).unwrap_or_default();
        let flag = |on: bool| if on { "true" } else { "false" };
        let mut variables = environment(&[
            (variable::STDOUT_PIPE_FILE, contract::STDOUT_PIPE),
            (variable::STDERR_PIPE_FILE, contract::STDERR_PIPE),
            (variable::COMMAND, task.kind.as_str()),
            (variable::STARTED_AT, &started_at),
            (variable::PACKAGE, &task.image.package),
            (variable::PACKAGE_VERSION, &task.image.version),
            (variable::CONNECTOR_TYPE, &task.connector_type),
            (variable::STORAGE_KEY, &task.storage_key),
            (variable::SYNC_ID, &task.sync_id),
            (variable::TASK_ID, &task.task_id),
            (variable::STARTED_BY, &started_by),
            (variable::NAMESPACE, options.namespace.as_deref().unwrap_or_default()),
            (variable::TABLE_NAME_PREFIX, &options.table_name_prefix),
            (variable::TO_SAME_CASE, flag(options.to_same_case)),
            (variable::ADD_META, flag(options.add_meta)),
            (variable::DEDUPLICATE, flag(options.deduplicate)),
            (variable::FULL_SYNC, flag(options.full_sync)),
            (variable::CONSOLE_OVERWRITE, flag(options.console_overwrite)),
            (variable::LOG_LEVEL, &self.settings.log_level),
            (variable::DB_LOG_LEVEL, &self.settings.db_log_level),
            (variable::TASK_TIMEOUT_HOURS, &timeout_hours),
            (variable::TASK_TIMEOUT_SECONDS, &timeout_seconds),
            (variable::INIT_TIMEOUT_SECONDS, &init_timeout),
            (variable::SILENCE_SECONDS, &silence),
            (variable::OWN_SCHEMA, &self.settings.own_schema),
            (variable::CONTRACT, contract::VERSION),
        ]);
        if let Some(deletion) = options.cdc_deletion {
            variables.extend(environment(&[(variable::CDC_DELETION, deletion.into())]));
        }
        if let Some(records) = options.max_records {
            variables.extend(environment(&[(variable::MAX_RECORDS, &records.to_string())]));
        }
        if let Some(hosts) = &self.payload.destination_hosts {
            variables.extend(environment(&[(variable::DESTINATION_HOSTS, hosts)]));
        }
        let secret = secret_name(&task.pod_name(), 0);
        let functions_env = self.payload.functions_env.as_ref().map(|_| FUNCTIONS_ENV_KEY);
        for key in [Some(variable::DATABASE_URL), functions_env].into_iter().flatten() {
            variables.push(json!({"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}));
        }
        variables
    }
}

/// `<pod>-config`, then `<pod>-config-1` and so on for the documents that do not fit.
pub fn secret_name(pod: &str, index: usize) -> String {
    if index == 0 { format!("{pod}-config") } else { format!("{pod}-config-{index}") }
}

fn init(image: &str, has_files: bool) -> Value {
    let mut mounts = vec![json!({"name": PIPES, "mountPath": PIPES_DIR})];
    if has_files {
        mounts.push(json!({"name": "config", "mountPath": "/source-config"}));
        mounts.push(json!({"name": "sidecar-config", "mountPath": "/sidecar-config"}));
        mounts.push(json!({"name": "secrets", "mountPath": "/secrets", "readOnly": true}));
    }
    json!({
        "name": INIT,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", INIT_SCRIPT],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    })
}

fn environment(variables: &[(&str, &str)]) -> Vec<Value> {
    // The kubelet expands `$(NAME)`, and replaces a doubled dollar sign by a single one.
    variables.iter().map(|(name, value)| json!({"name": name, "value": value.replace('$', "$$")})).collect()
}

fn resources(resources: Resources) -> Value {
    let Resources { cpu_request, cpu_limit, memory_request, memory_limit, storage_limit } = resources;
    // A limit below the default request wins: the API server rejects a Pod with a request above its limit.
    let at_most = |request: u32, limit: u32| if limit > 0 { request.min(limit) } else { request };
    let (cpu_request, memory_request) = (at_most(cpu_request, cpu_limit), at_most(memory_request, memory_limit));
    // With a limit, a missing request defaults to the limit: no request is written as 0.
    let side = |cpu: Option<u32>, memory: Option<u32>, storage: Option<u32>| {
        let mut map = serde_json::Map::new();
        if let Some(cpu) = cpu {
            map.insert("cpu".to_owned(), json!(format!("{cpu}m")));
        }
        if let Some(memory) = memory {
            map.insert("memory".to_owned(), json!(format!("{memory}Mi")));
        }
        if let Some(storage) = storage {
            map.insert("ephemeral-storage".to_owned(), json!(format!("{storage}Mi")));
        }
        Value::Object(map)
    };
    let limit = |limit: u32| Some(limit).filter(|limit| *limit > 0);
    let request = |request: u32, limit: u32| Some(request).filter(|request| *request > 0 || limit > 0);
    // No connector has storage reserved.
    let storage_request = request(0, storage_limit);
    let requests = side(request(cpu_request, cpu_limit), request(memory_request, memory_limit), storage_request);
    json!({"requests": requests, "limits": side(limit(cpu_limit), limit(memory_limit), limit(storage_limit))})
}

#[cfg(test)]
mod tests {
    use super::{Launch, Objects, PodSettings, Resources, SOURCE_SCRIPT};
    use crate::pod::payload::Payload;
    use crate::secret::Secret;
    use crate::task::{Image, ReadOptions, Task, TaskKind};
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn settings() -> PodSettings {
        PodSettings {
            sidecar_image: "syncctl:1".to_owned(),
            init_image: None,
            pull_secrets: Vec::new(),
            sidecar_database_url: Secret::from("postgresql://u:hunter2@db/x"),
            own_schema: "ours".to_owned(),
            node_selector: BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]),
            service_account: None,
            grace_seconds: 60,
            init_timeout_seconds: 180,
            silence_seconds: 8000,
            source_resources: Resources {
                cpu_request: 100,
                cpu_limit: 1000,
                memory_request: 256,
                memory_limit: 128,
                storage_limit: 2048,
            },
            sidecar_resources: Resources {
                cpu_request: 0,
                cpu_limit: 500,
                memory_request: 0,
                memory_limit: 0,
                storage_limit: 0,
            },
            source_capabilities: Vec::new(),
            java_opts: "-Xmx7000m".to_owned(),
            log_level: "INFO".to_owned(),
            db_log_level: "INFO".to_owned(),
        }
    }

    fn task(kind: TaskKind) -> Task {
        Task {
            kind,
            image: Image { package: "airbyte/source-faker".to_owned(), version: "7.2.1".to_owned() },
            connector_type: "airbyte".to_owned(),
            task_id: "task $(HOME)".to_owned(),
            sync_id: "sync".to_owned(),
            storage_key: String::new(),
            started_at: "2026-01-02T03:04:05.678Z".parse().expect("a time"),
            started_by: None,
            options: ReadOptions { debug: true, ..ReadOptions::default() },
            timeout: Duration::from_secs(90),
            then_run: None,
        }
    }

    fn objects(kind: TaskKind, payload: &Payload, settings: &PodSettings) -> Objects {
        let launch = Launch { task: &task(kind), payload, settings, attempt: "attempt", owner: Some("me") };
        launch.objects().expect("it fits")
    }

    fn full_payload() -> Payload {
        let document = |name: &str| Some(format!(r#"{{"{name}":"hunter3"}}"#));
        Payload {
            destination_hosts: None,
            config: document("config"),
            catalog: document("catalog"),
            state: document("state"),
            destination_config: document("destination"),
            functions_env: document("functions"),
        }
    }

    fn yaml(pod: &impl serde::Serialize) -> String {
        // The script has its own tests.
        let script = serde_json::to_string(SOURCE_SCRIPT).expect("JSON");
        let json = serde_json::to_string(pod).expect("JSON");
        assert!(json.contains(&script), "{json}");
        let document: serde_json::Value = serde_json::from_str(&json.replace(&script, r#""SCRIPT""#)).expect("JSON");
        serde_yaml::to_string(&document).expect("YAML")
    }

    #[test]
    fn pod_of_a_read() {
        insta::assert_snapshot!(yaml(&objects(TaskKind::Read, &full_payload(), &settings()).pod.spec));
    }

    #[test]
    fn pod_of_a_spec_with_a_foreign_sidecar() {
        let settings = PodSettings { init_image: Some("alpine:3".to_owned()), ..settings() };
        insta::assert_snapshot!(yaml(&objects(TaskKind::Spec, &Payload::default(), &settings).pod.spec));
    }

    #[test]
    fn the_credentials_of_registries_are_referenced() {
        for names in [&[][..], &["one", "two"]] {
            let settings =
                PodSettings { pull_secrets: names.iter().map(|name| (*name).to_owned()).collect(), ..settings() };
            let spec = objects(TaskKind::Spec, &Payload::default(), &settings).pod.spec.expect("a spec");
            let found = spec.image_pull_secrets.unwrap_or_default().into_iter().map(|secret| secret.name);
            assert_eq!(found.collect::<Vec<_>>(), names);
        }
    }

    #[test]
    fn max_records_is_only_passed_to_the_sidecar_if_requested() {
        let (payload, settings) = (full_payload(), settings());
        for records in [None, Some(10)] {
            let mut task = task(TaskKind::Read);
            task.options.max_records = records;
            let launch =
                Launch { task: &task, payload: &payload, settings: &settings, attempt: "attempt", owner: None };
            let spec = launch.objects().expect("it fits").pod.spec.expect("a spec");
            let variables = spec.containers.iter().flat_map(|container| container.env.iter().flatten());
            let limits = variables.filter(|variable| variable.name == "SYNCCTL_MAX_RECORDS");
            let limits: Vec<_> = limits.map(|variable| variable.value.as_deref()).collect();
            assert_eq!(limits, Vec::from_iter(records.map(|_| Some("10"))));
        }
    }

    #[test]
    fn the_source_keeps_the_capabilities_of_the_settings_alone() {
        for (added, expected) in
            [(&[][..], None), (&["CHOWN", "SETUID"], Some(vec!["CHOWN".to_owned(), "SETUID".into()]))]
        {
            let source_capabilities = added.iter().map(|name| (*name).to_owned()).collect();
            let settings = PodSettings { source_capabilities, ..settings() };
            let spec = objects(TaskKind::Spec, &Payload::default(), &settings).pod.spec.expect("a spec");
            let source = spec.containers.into_iter().find(|container| container.name == "source").expect("a source");
            let context = source.security_context.expect("a context");
            let capabilities = context.capabilities.expect("capabilities");
            assert_eq!((capabilities.drop, capabilities.add), (Some(vec!["ALL".to_owned()]), expected));
            assert_eq!(context.allow_privilege_escalation, Some(false));
        }
    }

    #[test]
    fn the_pod_contains_no_credentials_and_the_source_mounts_no_secret() {
        let foreign = PodSettings { init_image: Some("alpine:3".to_owned()), ..settings() };
        for (label, settings) in [("own sidecar", settings()), ("foreign sidecar", foreign)] {
            let objects = objects(TaskKind::Read, &full_payload(), &settings);
            let text = serde_json::to_string(&objects.pod).expect("JSON");
            assert!(!text.contains("hunter"), "{label}: {text}");
            let spec = objects.pod.spec.expect("a spec");
            let source = spec.containers.iter().find(|container| container.name == "source").expect("a source");
            let mounts: Vec<&str> = source.volume_mounts.iter().flatten().map(|mount| mount.name.as_str()).collect();
            assert_eq!(mounts, ["pipes", "reports", "config"], "{label}");
            let mut writable = source.volume_mounts.iter().flatten().filter(|mount| mount.read_only != Some(true));
            assert!(writable.all(|mount| mount.name == "reports"), "{label}");
            assert!(source.env.iter().flatten().all(|variable| variable.value_from.is_none()), "{label}");
        }
    }
}
