//! Namespaces with the shipped Role, and the image of the program under test.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::program::print_line;
use super::{Program, Setup, root, unique};

/// The label of everything that the program creates.
pub const CREATOR: &str = "jitsu.com/creator=bulker-sync-controller";
/// The label of the Pods of the service in `deploy/`.
pub const SERVICE: (&str, &str) = ("app.kubernetes.io/name", "syncctl");

/// The image of the program under test.
pub struct Image {
    /// The name in Pods, which is unique for the content.
    pub name: String,
    /// The digest of its configuration: the image id of a container runtime.
    pub config_digest: String,
}

/// Loads the images, once per process.
pub fn prepare(setup: &Setup) {
    static CONNECTORS: OnceLock<()> = OnceLock::new();
    sidecar_image(setup);
    CONNECTORS.get_or_init(|| {
        if let Some(images) = &setup.images {
            let loaded = Command::new(images).arg("scripts").stdout(Stdio::null()).status();
            assert!(loaded.is_ok_and(|status| status.success()), "{images} scripts failed");
        }
    });
}

/// Builds the image of the program under test with the program and loads it into the cluster.
pub fn sidecar_image(setup: &Setup) -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let program = std::fs::read(env!("CARGO_BIN_EXE_syncctl")).expect("the program under test");
        let name = format!("syncctl:test-{}", &hex::encode(Sha256::digest(&program))[..16]);
        let archive = image_archive(&name);
        let config_digest = format!("sha256:{}", hex::encode(Sha256::digest(image_config(archive.path()))));
        let command = format!("{} \"$0\"", setup.load_image);
        let loaded = Command::new("sh").args(["-c", &command]).arg(archive.path()).stdout(Stdio::null()).status();
        assert!(loaded.is_ok_and(|status| status.success()), "SYNCCTL_TEST_LOAD_IMAGE failed: {}", setup.load_image);
        Image { name, config_digest }
    })
}

fn pairs<'a>(list: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = (&'a str, &'a str)> {
    list.iter().copied()
}

/// Copies a directory recursively.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder to copy") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("a copy");
        }
    }
}

/// The output of `syncctl image`.
pub fn image_archive(name: &str) -> tempfile::NamedTempFile {
    let archive = tempfile::NamedTempFile::new().expect("a temporary file");
    let made = Command::new(env!("CARGO_BIN_EXE_syncctl"))
        .args(["image", "--name", name])
        .stdout(archive.as_file().try_clone().expect("a second handle"))
        .status();
    assert!(made.is_ok_and(|status| status.success()), "`syncctl image` failed");
    archive
}

/// The image's configuration in the archive.
pub fn image_config(archive: &Path) -> Vec<u8> {
    let mut files = tar::Archive::new(std::fs::File::open(archive).expect("the archive"));
    let mut config = Vec::new();
    for entry in files.entries().expect("a tar archive") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").display().to_string();
        let is_config = path.strip_suffix(".json").is_some_and(|name| name != "manifest" && name != "index");
        if is_config {
            entry.read_to_end(&mut config).expect("its content");
        }
    }
    config
}

/// The settings of a deployed service.
pub struct Service<'a> {
    /// Its image.
    pub image: &'a str,
    pub replicas: u32,
    /// The keys of the Secret `syncctl`.
    pub secret: &'a [(&'a str, &'a str)],
    /// More variables of the container.
    pub environment: &'a [(&'a str, &'a str)],
}

/// A namespace with the ServiceAccount and Role of `deploy/`.
pub struct Namespace {
    pub name: String,
    /// A kubeconfig of that ServiceAccount.
    pub kubeconfig: PathBuf,
    admin: String,
    folder: PathBuf,
}

impl Namespace {
    /// Creates it with `deploy/rbac/`, which the one-off commands need.
    pub fn create(setup: &Setup, folder: &Path) -> Self {
        let name = unique("it-");
        let namespace = Self {
            kubeconfig: folder.join("kubeconfig"),
            admin: setup.kubeconfig.clone(),
            folder: folder.to_owned(),
            name,
        };
        namespace.grant();
        namespace.login(&namespace.kubeconfig, "syncctl");
        namespace
    }

    fn grant(&self) {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}});
        let folder = self.overlay("rbac", &[("namespace.yaml", object)], &json!({"resources": ["namespace.yaml"]}));
        self.kubectl(&["create", "--validate=false", "-k", &folder]);
    }

    /// Applies all of `deploy/`: the service. Returns its URL with the ClusterIP, which this machine must reach. May be called
    /// again with other settings.
    pub fn serve(&self, service: &Service) -> String {
        let (name, tag) = service.image.rsplit_once(':').expect("an image with a tag");
        let data: Map<String, Value> =
            pairs(service.secret).map(|(key, value)| (key.to_owned(), json!(value))).collect();
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "syncctl"}, "stringData": data});
        let own = [("SYNCCTL_SIDECAR_IMAGE", service.image)];
        let environment: Vec<Value> = pairs(&own)
            .chain(pairs(service.environment))
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect();
        let settings = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "syncctl"},
            "spec": {
                "replicas": service.replicas,
                "template": {"spec": {"containers": [{"name": "syncctl", "env": environment}]}},
            },
        });
        let mut kustomization = json!({
            "resources": ["secret.yaml"],
            "images": [{"name": "syncctl", "newName": name, "newTag": tag}],
            "patchesStrategicMerge": ["settings.yaml"],
        });
        if !self.kubectl(&["api-versions"]).lines().any(|version| version == "policy/v1") {
            kustomization["patchesJson6902"] = json!([{
                "target": {"group": "policy", "version": "v1", "kind": "PodDisruptionBudget", "name": "syncctl"},
                "path": "old-cluster.json",
            }]);
        }
        let patch = json!([{"op": "replace", "path": "/apiVersion", "value": "policy/v1beta1"}]);
        let files = [("secret.yaml", secret), ("settings.yaml", settings), ("old-cluster.json", patch)];
        let folder = self.overlay("", &files, &kustomization);
        self.kubectl(&["apply", "-k", &folder]);
        let service = self.kubectl(&["get", "service", "syncctl", "-n", &self.name, "-o", "json"]);
        let service: Value = serde_json::from_str(&service).expect("a Service");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        format!("http://{}:{}", text(&service["spec"]["clusterIP"]), service["spec"]["ports"][0]["port"])
    }

    /// An overlay as a user would write it: a part of `deploy/`, the namespace, and more. Uses only fields that the kubectl of
    /// Debian 12 knows; newer versions still support them.
    fn overlay(&self, part: &str, files: &[(&str, Value)], more: &Value) -> String {
        let folder = self.folder.join(unique("overlay-"));
        copy(&root().join("deploy").join(part), &folder.join("deploy"));
        let mut kustomization = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "namespace": self.name, "bases": ["deploy"],
        });
        for (field, value) in more.as_object().expect("an object") {
            kustomization[field] = value.clone();
        }
        for (file, content) in files.iter().chain([&("kustomization.yaml", kustomization)]) {
            std::fs::write(folder.join(file), content.to_string()).expect("a file");
        }
        folder.display().to_string()
    }

    /// Writes a kubeconfig of a ServiceAccount of this namespace.
    pub fn login(&self, path: &Path, account: &str) {
        let address = format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", self.name);
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600},
        });
        let answer = self.kubectl_with(&["create", "--raw", &address, "-f", "-"], &request.to_string());
        let answer: Value = serde_json::from_str(&answer).expect("a TokenRequest");
        let mut config: Value =
            serde_json::from_str(&self.kubectl(&["config", "view", "--minify", "--flatten", "--raw", "-o", "json"]))
                .expect("a kubeconfig");
        config["users"][0]["user"] = json!({"token": answer["status"]["token"]});
        config["contexts"][0]["context"]["namespace"] = json!(self.name);
        std::fs::write(path, config.to_string()).expect("a file");
    }

    /// A kubeconfig of a ServiceAccount without permissions.
    pub fn powerless(&self) -> PathBuf {
        self.kubectl(&["create", "serviceaccount", "powerless", "-n", &self.name]);
        let path = self.folder.join("powerless");
        self.login(&path, "powerless");
        path
    }

    /// The kubeconfig with another server.
    pub fn kubeconfig_of(&self, server: &str) -> PathBuf {
        let text = std::fs::read_to_string(&self.kubeconfig).expect("the kubeconfig");
        let mut config: Value = serde_json::from_str(&text).expect("it is JSON");
        config["clusters"][0]["cluster"]["server"] = json!(server);
        let path = self.folder.join("elsewhere");
        std::fs::write(&path, config.to_string()).expect("a file");
        path
    }

    /// kubectl as admin.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.kubectl_with(arguments, "")
    }

    #[track_caller]
    fn kubectl_with(&self, arguments: &[&str], stdin: &str) -> String {
        let mut child = Command::new("kubectl")
            .args(arguments)
            .env("KUBECONFIG", &self.admin)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl is installed");
        child.stdin.take().expect("it is piped").write_all(stdin.as_bytes()).ok();
        let output = child.wait_with_output().expect("kubectl ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Objects of this namespace.
    pub fn list(&self, kinds: &str, more: &[&str]) -> Vec<Value> {
        let arguments = [&["get", kinds, "-n", &self.name, "-o", "json"], more].concat();
        let list: Value = serde_json::from_str(&self.kubectl(&arguments)).expect("a list");
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// All Pods.
    pub fn pods(&self) -> Vec<Value> {
        self.list("pods", &[])
    }

    /// Objects that the program has left behind, except the service itself.
    pub fn leftovers(&self) -> Vec<String> {
        let name = |object: &Value| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
        };
        let mut left: Vec<String> = self.list("pods,secrets", &["-l", CREATOR]).iter().map(name).collect();
        let mut others = self.list("pods,secrets", &[]);
        others.retain(|object| object["metadata"]["labels"][SERVICE.0] != SERVICE.1);
        left.extend(others.iter().map(name).filter(|name| name.starts_with("Pod/") || name.contains("-config")));
        left.sort();
        left.dedup();
        left
    }

    /// Prints the states of Pods and the events of a failed test.
    pub fn dump(&self) {
        for arguments in [
            [
                "get",
                "pods",
                "-n",
                &self.name,
                "-o",
                "jsonpath={range .items[*]}{.metadata.name} {.status}{\"\\n\"}{end}",
            ],
            ["get", "events", "-n", &self.name, "--sort-by=.metadata.creationTimestamp", "-o=wide"],
        ] {
            let output = Command::new("kubectl").args(arguments).env("KUBECONFIG", &self.admin).output();
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
            print_line(&format!("--- kubectl {}\n{text}", arguments[..2].join(" ")));
        }
    }

    /// Deletes it, without waiting.
    pub fn remove(&self) {
        let arguments = ["delete", "namespace", &self.name, "--wait=false"];
        let deleted = Command::new("kubectl").args(arguments).env("KUBECONFIG", &self.admin).output();
        if deleted.is_err() {
            print_line(&format!("namespace {} is left", self.name));
        }
    }
}

/// The program with a cluster and a database that do not exist.
pub fn nowhere<A: AsRef<str>>(arguments: &[A]) -> Program {
    Program::new(arguments)
        .env("SYNCCTL_DATABASE_URL", "postgresql://none:nothing@127.0.0.1:1/none?sslmode=disable")
        .env("SYNCCTL_SIDECAR_IMAGE", "syncctl:none")
        .env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", "/nonexistent/kubeconfig")
}
