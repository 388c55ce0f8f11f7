//! A namespace per test in the cluster of `SYNCCTL_TEST_KUBECONFIG`, and a proxy that breaks connections.

use std::collections::BTreeMap;
use std::env;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use crate::pod::kubernetes::Cluster;
use crate::pod::kubernetes::client::{ClientSettings, Source};
use crate::pod::manifest::{Launch, PodSettings, Resources};
use crate::pod::payload::Payload;
use crate::pod::{Launcher, Ownership, PodError, PodRef};
use crate::secret::Secret;
use crate::task::{Image, ReadOptions, Task, TaskKind};

/// The path of an administrator's kubeconfig; `None` if tests that need a cluster are skipped.
fn kubeconfig() -> Option<String> {
    if env::var("SYNCCTL_TEST_SKIP_CLUSTER").is_ok_and(|value| value == "1") {
        let test = thread::current().name().unwrap_or("a test").to_owned();
        // Written past the harness's capture, so that a skipped test does not look like a passed one.
        writeln!(std::io::stderr(), "{test} SKIPPED: SYNCCTL_TEST_SKIP_CLUSTER=1 is set").ok();
        return None;
    }
    Some(env::var("SYNCCTL_TEST_KUBECONFIG").expect(
        "set SYNCCTL_TEST_KUBECONFIG to the path of an administrator's kubeconfig: `make test` brings up a cluster and \
         sets it; SYNCCTL_TEST_SKIP_CLUSTER=1 skips every test that needs one",
    ))
}

/// A deadline that only means "hangs".
pub(super) const DEADLINE: Duration = Duration::from_mins(5);

/// A namespace that is deleted on drop.
pub(super) struct Namespace {
    pub(super) name: String,
    kubeconfig: String,
}

impl Namespace {
    pub(super) fn new() -> Option<Self> {
        let kubeconfig = kubeconfig()?;
        let namespace = Self { name: format!("pod-{}", &Uuid::new_v4().simple().to_string()[..10]), kubeconfig };
        namespace.kubectl(&["create", "namespace", &namespace.name], "");
        // Pods are refused until it exists.
        wait_for("a service account", || {
            let get = ["get", "serviceaccounts", "-n", &namespace.name, "-o", "name"];
            (!namespace.kubectl(&get, "").is_empty()).then_some(())
        });
        Some(namespace)
    }

    #[track_caller]
    pub(super) fn kubectl(&self, arguments: &[&str], stdin: &str) -> String {
        let mut child = Command::new("kubectl")
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl is installed");
        child.stdin.take().expect("it is piped").write_all(stdin.as_bytes()).ok();
        let output = child.wait_with_output().expect("kubectl ends");
        assert!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// One object; `None` when it is not there.
    pub(super) fn object(&self, kind: &str, name: &str) -> Option<Value> {
        let text = self.kubectl(&["get", kind, name, "-n", &self.name, "-o", "json", "--ignore-not-found"], "");
        (!text.is_empty()).then(|| serde_json::from_str(&text).expect("JSON"))
    }

    /// The cluster as the program sees it.
    pub(super) fn cluster(&self) -> Cluster {
        self.connect(Source::Path(self.kubeconfig.clone().into()))
    }

    /// The cluster behind a proxy.
    pub(super) fn cluster_through(&self, proxy: &Proxy) -> Cluster {
        let (mut config, mut server) = self.config();
        let cluster = &mut config["clusters"][0]["cluster"];
        if let Some(url::Host::Domain(host)) = server.host() {
            cluster["tls-server-name"] = json!(host);
        }
        server.set_host(Some("127.0.0.1")).expect("a valid host");
        server.set_port(Some(proxy.port)).expect("a URL with a port");
        cluster["server"] = json!(server.as_str());
        self.connect(Source::Inline(config.to_string()))
    }

    /// The kubeconfig with only its current context, and the URL of its server.
    fn config(&self) -> (Value, Url) {
        let text = self.kubectl(&["config", "view", "--minify", "--flatten", "--raw", "-o", "json"], "");
        let config: Value = serde_json::from_str(&text).expect("JSON");
        let server = config["clusters"][0]["cluster"]["server"].as_str().expect("a server");
        let server = server.parse().expect("a URL");
        (config, server)
    }

    fn connect(&self, source: Source) -> Cluster {
        connect(source, &self.name).expect("a client")
    }

    /// A proxy in front of the API server.
    pub(super) fn proxy(&self) -> Proxy {
        let addresses = self.config().1.socket_addrs(|| None).expect("the address of the API server");
        Proxy::start(addresses[0])
    }

    /// Sets the status that a kubelet would set: both containers run.
    pub(super) fn set_running(&self, pod: &str) {
        let state = json!({"running": {"startedAt": "2026-01-02T03:04:05Z"}});
        let container = |name: &str| json!({"name": name, "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": state});
        let mut object = self.object("pod", pod).expect("a pod");
        object["status"] =
            json!({"phase": "Running", "containerStatuses": [container("source"), container("sidecar")]});
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/status", self.name);
        self.kubectl(&["replace", "--raw", &path, "-f", "-"], &object.to_string());
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let arguments = ["delete", "namespace", &self.name, "--wait=false"];
        // Errors are ignored: the test may be failing already.
        Command::new("kubectl").args(arguments).env("KUBECONFIG", &self.kubeconfig).output().ok();
    }
}

/// A client of any server.
pub(super) fn connect(source: Source, namespace: &str) -> Result<Cluster, PodError> {
    // An error means that another test has installed it.
    rustls::crypto::ring::default_provider().install_default().ok();
    Cluster::connect(&ClientSettings { source, context: None, namespace: Some(namespace.to_owned()) })
}

/// A task that is never scheduled.
pub(super) fn task(task_id: &str) -> Task {
    Task {
        kind: TaskKind::Read,
        image: Image { package: "airbyte/source-faker".to_owned(), version: "1".to_owned() },
        connector_type: "airbyte".to_owned(),
        task_id: task_id.to_owned(),
        sync_id: "sync".to_owned(),
        storage_key: String::new(),
        started_at: "2026-01-02T03:04:05.678Z".parse().expect("a time"),
        started_by: None,
        options: ReadOptions::default(),
        timeout: Duration::from_mins(1),
        then_run: None,
    }
}

pub(super) fn settings() -> PodSettings {
    let resources = Resources { cpu_request: 0, cpu_limit: 0, memory_request: 0, memory_limit: 0, storage_limit: 0 };
    PodSettings {
        source_capabilities: Vec::new(),
        sidecar_image: "syncctl:none".to_owned(),
        init_image: None,
        sidecar_database_url: Secret::from("postgresql://u@127.0.0.1:1/none"),
        own_schema: "syncctl".to_owned(),
        node_selector: BTreeMap::from([("syncctl/nowhere".to_owned(), "true".to_owned())]),
        pull_secrets: Vec::new(),
        service_account: None,
        grace_seconds: 1,
        init_timeout_seconds: 180,
        silence_seconds: 8000,
        source_resources: resources,
        sidecar_resources: resources,
        java_opts: String::new(),
        log_level: "INFO".to_owned(),
        db_log_level: "INFO".to_owned(),
    }
}

/// Launches a task with one document.
pub(super) fn launch(cluster: &Cluster, task_id: &str, ownership: Ownership) -> Result<PodRef, PodError> {
    let payload = Payload { config: Some("{}".to_owned()), ..Payload::default() };
    launch_with(cluster, task_id, &payload, ownership)
}

pub(super) fn launch_with(
    cluster: &Cluster,
    task_id: &str,
    payload: &Payload,
    ownership: Ownership,
) -> Result<PodRef, PodError> {
    let (task, settings, attempt) = (task(task_id), settings(), Uuid::new_v4().to_string());
    let launch = Launch { task: &task, payload, settings: &settings, attempt: &attempt, owner: None };
    cluster.launch(&launch, ownership)
}

/// The events that a callback has received, in order.
pub(super) struct Events<T> {
    received: mpsc::Receiver<T>,
}

impl<T: std::fmt::Debug + Send + 'static> Events<T> {
    /// A callback and its events.
    pub(super) fn new() -> (Box<dyn Fn(T) + Send>, Self) {
        let (sender, received) = mpsc::channel();
        // The test may have dropped the receiver.
        (Box::new(move |event| drop(sender.send(event))), Self { received })
    }

    /// Waits for an event. Returns it as the last of all that came before it.
    #[track_caller]
    pub(super) fn until(&self, mut wanted: impl FnMut(&T) -> bool) -> Vec<T> {
        let deadline = Instant::now() + DEADLINE;
        let mut all = Vec::new();
        loop {
            let Ok(next) = self.received.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                panic!("the event did not come; received {all:?}");
            };
            let found = wanted(&next);
            all.push(next);
            if found {
                return all;
            }
        }
    }

    /// The events that came so far.
    pub(super) fn rest(&self) -> Vec<T> {
        self.received.try_iter().collect()
    }
}

/// Polls until there is a result.
#[track_caller]
pub(super) fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(Instant::now() < deadline, "waiting for {what} hangs");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A proxy between the program and the API server. Its threads end with their connections.
pub(super) struct Proxy {
    port: u16,
    mode: Arc<AtomicU8>,
    open: Arc<Mutex<Vec<Connection>>>,
}

struct Connection {
    client: TcpStream,
    frozen: Arc<AtomicU8>,
}

const PASS: u8 = 0;
const REFUSE: u8 = 1;

impl Proxy {
    fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let mode = Arc::new(AtomicU8::new(PASS));
        let open = Arc::new(Mutex::new(Vec::new()));
        let (accept_mode, connections) = (mode.clone(), open.clone());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accept_mode.load(Ordering::SeqCst) == REFUSE {
                    continue;
                }
                let server = TcpStream::connect(server).expect("the API server");
                let frozen = Arc::new(AtomicU8::new(PASS));
                let copy_of = |stream: &TcpStream| stream.try_clone().expect("a copy");
                let connection = Connection { client: copy_of(&client), frozen: frozen.clone() };
                connections.lock().expect("no test panics with it").push(connection);
                let (client_out, server_in, frozen_back) = (copy_of(&client), copy_of(&server), frozen.clone());
                thread::spawn(move || copy(client, server, &frozen));
                thread::spawn(move || copy(server_in, client_out, &frozen_back));
            }
        });
        Self { port, mode, open }
    }

    /// Cuts all connections and accepts no new ones.
    pub(super) fn cut(&self) {
        self.mode.store(REFUSE, Ordering::SeqCst);
        for connection in self.open.lock().expect("no test panics with it").drain(..) {
            connection.client.shutdown(Shutdown::Both).ok();
        }
    }

    /// Accepts connections again.
    pub(super) fn mend(&self) {
        self.mode.store(PASS, Ordering::SeqCst);
    }

    /// Open connections silently lose all data from now on. New ones work.
    pub(super) fn freeze(&self) {
        for connection in self.open.lock().expect("no test panics with it").drain(..) {
            connection.frozen.store(REFUSE, Ordering::SeqCst);
        }
    }
}

/// Copies until one side ends, then closes both. Data on a frozen connection is lost.
fn copy(mut from: TcpStream, mut to: TcpStream, frozen: &AtomicU8) {
    let mut buffer = vec![0; 65536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if frozen.load(Ordering::SeqCst) == PASS && to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Errors are ignored: one of them may be closed already.
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}

/// A kubeconfig of a server without TLS.
pub(super) fn plain_kubeconfig(port: u16) -> Source {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    });
    Source::Inline(config.to_string())
}
