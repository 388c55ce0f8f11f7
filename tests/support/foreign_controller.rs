//! The Go controller's side of a task: its Secret, its Pod, and what it writes once a container has ended.

use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::io::Write;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{World, cluster, database, eventually, unique};

/// A Pod hangs.
const TIMEOUT: Duration = Duration::from_mins(3);
/// The tables as the console creates them.
const TABLES: &str = "
CREATE TABLE source_spec (package TEXT, version TEXT, specs JSONB, timestamp TIMESTAMPTZ(3) NOT NULL DEFAULT now(),
  error TEXT, CONSTRAINT source_spec_pkey PRIMARY KEY (package, version));
CREATE TABLE source_check (package TEXT NOT NULL, version TEXT NOT NULL, key TEXT, status TEXT NOT NULL, description TEXT,
  timestamp TIMESTAMPTZ(3) NOT NULL DEFAULT now(), CONSTRAINT source_check_pkey PRIMARY KEY (key));
CREATE TABLE source_catalog (package TEXT, version TEXT, key TEXT, catalog JSONB,
  timestamp TIMESTAMPTZ(3) NOT NULL DEFAULT now(), status TEXT NOT NULL, description TEXT,
  CONSTRAINT source_catalog_pkey PRIMARY KEY (package, version, key));
CREATE TABLE source_state (sync_id TEXT, stream TEXT, state JSONB NOT NULL, timestamp TIMESTAMPTZ(3) NOT NULL DEFAULT now(),
  CONSTRAINT source_state_pkey PRIMARY KEY (sync_id, stream));
CREATE TABLE source_task (sync_id TEXT NOT NULL, task_id TEXT, package TEXT NOT NULL, version TEXT NOT NULL,
  started_at TIMESTAMPTZ(3) NOT NULL DEFAULT now(), updated_at TIMESTAMPTZ(3) NOT NULL DEFAULT now(), started_by JSONB,
  status TEXT NOT NULL, description TEXT, metrics JSONB, error TEXT, CONSTRAINT source_task_pkey PRIMARY KEY (task_id));
CREATE TABLE task_log (id UUID, level TEXT NOT NULL, logger TEXT NOT NULL, message TEXT NOT NULL, sync_id TEXT NOT NULL,
  task_id TEXT NOT NULL, timestamp TIMESTAMPTZ(3) NOT NULL DEFAULT now(), CONSTRAINT task_log_pkey PRIMARY KEY (id));";

/// A controller in the namespace of a test.
pub struct ForeignController<'a> {
    world: &'a World,
}

/// A task as it creates it.
pub struct ForeignTask<'a> {
    /// spec, check, discover or read.
    pub command: &'a str,
    /// The connector's image.
    pub image: &'a str,
    pub config: Value,
    pub catalog: Value,
    pub state: Value,
    pub destination: Value,
    /// More variables of the sidecar.
    pub variables: &'a [(&'a str, &'a str)],
}

/// A task whose Pod exists.
pub struct Launched<'a> {
    world: &'a World,
    pub pod: String,
    pub id: String,
    command: String,
    started_at: String,
    package: String,
    version: String,
}

/// What the controller concludes from the Pod.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Succeeded,
    Failed(String),
}

impl ForeignTask<'_> {
    /// A task of a command without documents.
    pub fn new(command: &'static str, image: &'static str) -> Self {
        let (config, catalog, state, destination) = Default::default();
        Self { command, image, config, catalog, state, destination, variables: &[] }
    }
}

impl<'a> ForeignController<'a> {
    /// Creates the tables, as the console does.
    pub fn new(world: &'a World) -> Self {
        world.schema.execute(TABLES);
        Self { world }
    }

    /// Creates the Secret and the Pod, then the row of a read or discover.
    pub fn launch(&self, task: &ForeignTask<'_>) -> Launched<'a> {
        let world = self.world;
        let (package, version) = task.image.rsplit_once(':').expect("an image with a version");
        let id = unique("foreign-");
        let launched = Launched {
            world,
            pod: format!("{id}-{}", task.command),
            id,
            command: task.command.to_owned(),
            // Whole seconds, as the controller writes it.
            started_at: jiff::Timestamp::now().round(jiff::Unit::Second).expect("a time").to_string(),
            package: package.to_owned(),
            version: version.to_owned(),
        };
        let documents = [
            ("config", &task.config),
            ("catalog", &task.catalog),
            ("state", &task.state),
            ("destinationConfig", &task.destination),
        ];
        let documents: Vec<_> = documents.into_iter().filter(|(_, document)| !document.is_null()).collect();
        if !documents.is_empty() {
            let data: serde_json::Map<String, Value> =
                documents.iter().map(|(key, document)| ((*key).to_owned(), gzip(document).into())).collect();
            self.create(&json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": self.metadata(&format!("{}-config", launched.pod)),
                "immutable": true, "data": data,
            }));
        }
        let keys: Vec<&str> = documents.iter().map(|(key, _)| *key).collect();
        self.create(&self.pod(task, &launched, &keys));
        let Launched { id, package, version, started_at, .. } = &launched;
        match task.command {
            "read" => world.schema.execute(&format!(
                "INSERT INTO source_task AS st (sync_id, task_id, package, version, started_at, updated_at, status, error)
                 VALUES ('{id}', '{id}', '{package}', '{version}', now(), now(), 'RUNNING', '')
                 ON CONFLICT ON CONSTRAINT source_task_pkey DO UPDATE SET updated_at = now(), status = 'RUNNING', error = ''
                 WHERE st.status = 'RUNNING'"
            )),
            "discover" => world.schema.execute(&format!(
                "INSERT INTO source_catalog (package, version, key, timestamp, status, description)
                 VALUES ('{package}', '{version}', '{id}', '{started_at}', 'RUNNING', '')
                 ON CONFLICT ON CONSTRAINT source_catalog_pkey DO NOTHING"
            )),
            _ => {}
        }
        launched
    }

    fn create(&self, object: &Value) {
        let path = self.world.json(&unique("object-"), object);
        self.world.namespace().kubectl(&["create", "-f", &path]);
    }

    fn metadata(&self, name: &str) -> Value {
        let (label, value) = cluster::CREATOR.split_once('=').expect("a label");
        json!({"name": name, "namespace": self.world.namespace().name, "labels": {label: value}})
    }

    fn pod(&self, task: &ForeignTask<'_>, launched: &Launched<'_>, documents: &[&str]) -> Value {
        let mut mounts = vec![json!({"name": "pipes", "mountPath": "/pipes"})];
        let mut volumes = vec![json!({"name": "pipes", "emptyDir": {}})];
        let mut init = "mkfifo /pipes/stdout; mkfifo /pipes/stderr; chmod 777 /pipes/*; ".to_owned();
        if !documents.is_empty() {
            let items: Vec<Value> =
                documents.iter().map(|key| json!({"key": key, "path": format!("{key}.json.gz")})).collect();
            let secret = json!({"secretName": format!("{}-config", launched.pod), "items": items});
            volumes.push(json!({"name": "configmap", "secret": secret}));
            volumes.push(json!({"name": "config", "emptyDir": {}}));
            mounts.push(json!({"name": "configmap", "mountPath": "/configmap"}));
            mounts.push(json!({"name": "config", "mountPath": "/config"}));
            init += "cp /configmap/* /config/; gunzip /config/*.gz; chmod 777 /config/*; ";
        }
        init += "echo \"OK\"";
        let arguments = match task.command {
            "spec" => "spec",
            "check" => "check --config /config/config.json",
            "discover" => "discover --config /config/config.json",
            _ => "read --config /config/config.json --catalog /config/catalog.json --state /config/state.json",
        };
        let command = format!("eval \"$AIRBYTE_ENTRYPOINT {arguments}\" 2> /pipes/stderr > /pipes/stdout");
        let limits = json!({"requests": {"cpu": "1m", "memory": "16Mi"}});
        let mut metadata = self.metadata(&launched.pod);
        let mut annotations = json!({
            "TaskType": task.command, "Package": launched.package, "PackageVersion": launched.version,
            "StartedAt": launched.started_at,
        });
        let ids: &[&str] = match task.command {
            "spec" => &[],
            "read" => &["TaskID", "SyncID"],
            _ => &["StorageKey"],
        };
        for id in ids {
            annotations[id] = launched.id.clone().into();
        }
        metadata["annotations"] = annotations;
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 5,
                "initContainers": [{
                    // Any image with a shell takes the place of alpine.
                    "name": "init", "image": "syncctl-test/instant:1", "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", init], "volumeMounts": mounts, "securityContext": {"runAsUser": 0},
                }],
                "containers": [
                    {
                        "name": "source", "image": task.image, "imagePullPolicy": "IfNotPresent",
                        "command": ["sh", "-c", command],
                        "env": [{"name": "USE_STREAM_CAPABLE_STATE", "value": "true"}],
                        "volumeMounts": mounts, "resources": limits,
                    },
                    {
                        // It pulls always, which a loaded image does not allow.
                        "name": "sidecar", "image": cluster::sidecar_image(self.world.setup).name,
                        "imagePullPolicy": "IfNotPresent",
                        "env": self.variables(task, launched), "volumeMounts": mounts,
                    },
                ],
                "volumes": volumes,
            },
        })
    }

    /// Only what the Go controller sets.
    fn variables(&self, task: &ForeignTask<'_>, launched: &Launched<'_>) -> Vec<Value> {
        let (setup, schema) = (self.world.setup, &self.world.schema.name);
        let database = database::in_schema(&setup.sidecar_database_url, schema);
        let own = [
            ("STDOUT_PIPE_FILE", "/pipes/stdout"),
            ("STDERR_PIPE_FILE", "/pipes/stderr"),
            ("PACKAGE", &launched.package),
            ("PACKAGE_VERSION", &launched.version),
            ("COMMAND", task.command),
            ("NAMESPACE", ""),
            ("TO_SAME_CASE", ""),
            ("ADD_META", ""),
            ("DEDUPLICATE", ""),
            ("TABLE_NAME_PREFIX", ""),
            ("FULL_SYNC", ""),
            ("DATABASE_URL", &database),
            ("LOG_LEVEL", "INFO"),
            ("DB_LOG_LEVEL", "INFO"),
            ("STARTED_BY", ""),
            ("STARTED_AT", &launched.started_at),
            ("TASK_TIMEOUT_HOURS", "48"),
            ("LOCAL_INGEST_ENDPOINT", ""),
            ("GLOBAL_INGEST_ENDPOINT", ""),
        ];
        let ids: &[(&str, &str)] = match task.command {
            "spec" => &[],
            "read" => &[("SYNC_ID", &launched.id), ("TASK_ID", &launched.id)],
            _ => &[("STORAGE_KEY", &launched.id)],
        };
        let changed = |name: &str| task.variables.iter().any(|(variable, _)| *variable == name);
        let variables = own.iter().filter(|(name, _)| !changed(name)).chain(ids).chain(task.variables);
        variables.map(|(name, value)| json!({"name": name, "value": value})).collect()
    }
}

fn gzip(document: &Value) -> String {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(document.to_string().as_bytes()).expect("memory");
    STANDARD.encode(packed.finish().expect("memory"))
}

impl Launched<'_> {
    fn status(&self) -> Value {
        let namespace = self.world.namespace();
        let pod = namespace.kubectl(&["get", "pod", &self.pod, "-n", &namespace.name, "-o", "json"]);
        serde_json::from_str::<Value>(&pod).expect("a Pod")["status"].take()
    }

    /// The exit code of a container, if it has ended.
    fn exit_code(status: &Value, container: &str) -> Option<i64> {
        let all = status["containerStatuses"].as_array()?;
        let found = all.iter().find(|found| found["name"] == container)?;
        found["state"]["terminated"]["exitCode"].as_i64()
    }

    /// Waits for the end of both containers; returns the exit codes of source and sidecar.
    pub fn exit_codes(&self) -> (i64, i64) {
        eventually("the Pod ends", TIMEOUT, || {
            let status = self.status();
            Some((Self::exit_code(&status, "source")?, Self::exit_code(&status, "sidecar")?))
        })
    }

    /// The log of a container, from the first line that names an error where `errors` is set.
    fn logs(&self, container: &str, errors: bool, tail: &str) -> String {
        let namespace = &self.world.namespace().name;
        let arguments = ["logs", &self.pod, "-n", namespace, "-c", container, "--tail", tail];
        let text = self.world.namespace().kubectl(&arguments);
        let is_error = |line: &&str| {
            let line = line.to_lowercase();
            ["error", "panic", "errstd", "fatal"].iter().any(|word| line.contains(word))
        };
        let lines = text.lines().skip_while(|line| errors && !is_error(line));
        lines.flat_map(|line| [line, "\n"]).collect()
    }

    /// The whole log of the sidecar.
    pub fn sidecar_log(&self) -> String {
        self.logs("sidecar", false, "-1")
    }

    /// What the controller concludes from the ended Pod and writes, after which it deletes the Pod.
    pub fn conclude(&self) -> Verdict {
        let (source, sidecar) = self.exit_codes();
        let verdict = self.verdict(source, sidecar);
        if let Verdict::Failed(error) = &verdict {
            self.record(error);
        }
        self.delete();
        verdict
    }

    fn verdict(&self, source: i64, sidecar: i64) -> Verdict {
        if (source, sidecar) == (0, 0) {
            return Verdict::Succeeded;
        }
        // The exit code of a reading connector is the sidecar's business.
        let has_failed = sidecar != 0 || self.command != "read";
        let mut errors = String::new();
        if has_failed {
            errors = self.logs("source", true, "50");
            if errors.is_empty() {
                errors = self.logs("sidecar", true, "50");
            }
            if errors.is_empty() {
                errors = self.logs("source", false, "5");
            }
        }
        if errors.trim().is_empty() {
            errors = format!("[source] exit code {source}\n[sidecar] exit code {sidecar}\n");
        }
        Verdict::Failed(errors)
    }

    fn record(&self, error: &str) {
        let Self { id, package, version, .. } = self;
        let error = error.replace('\'', "''");
        self.world.schema.execute(&match self.command.as_str() {
            "spec" => format!(
                "INSERT INTO source_spec AS s (package, version, error) VALUES ('{package}', '{version}', '{error}')
                 ON CONFLICT ON CONSTRAINT source_spec_pkey DO UPDATE SET error = excluded.error WHERE s.specs IS NULL"
            ),
            "check" => format!(
                "INSERT INTO source_check AS s (package, version, key, status, description)
                 VALUES ('{package}', '{version}', '{id}', 'FAILED', 'FAILED: {error}')
                 ON CONFLICT ON CONSTRAINT source_check_pkey DO NOTHING"
            ),
            "discover" => format!(
                "INSERT INTO source_catalog AS sc (package, version, key, status, description)
                 VALUES ('{package}', '{version}', '{id}', 'FAILED', '{error}')
                 ON CONFLICT ON CONSTRAINT source_catalog_pkey DO UPDATE SET
                   status = excluded.status, description = excluded.description WHERE sc.status = 'RUNNING'"
            ),
            _ => format!(
                "INSERT INTO source_task AS st (sync_id, task_id, package, version, status, error)
                 VALUES ('{id}', '{id}', '{package}', '{version}', 'FAILED', 'FAILED: {error}')
                 ON CONFLICT ON CONSTRAINT source_task_pkey DO UPDATE SET status = excluded.status, error = excluded.error
                 WHERE st.status = 'RUNNING'"
            ),
        });
    }

    /// Deletes the Pod and its Secret: the containers receive TERM.
    pub fn delete(&self) {
        let namespace = &self.world.namespace().name;
        let secret = format!("{}-config", self.pod);
        let kubectl = |arguments: &[&str]| self.world.namespace().kubectl(arguments);
        kubectl(&["delete", "pod", &self.pod, "-n", namespace]);
        kubectl(&["delete", "secret", &secret, "-n", namespace, "--ignore-not-found"]);
    }
}
