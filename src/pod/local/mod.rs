//! Tasks on this machine: each as two processes, with a third one as its supervisor.
//!
//! A task has the same Pod as in a cluster, with the same script, pipes, documents and variables of the sidecar; the
//! [`supervisor`] does what a kubelet would do with it. Every process sees the tasks of all processes of this user in the
//! [`store`], and cleans up after those that were killed. A task does not outlive the process that launched it.

mod cgroup;
mod cleanup;
mod containers;
mod election;
mod process;
mod record;
mod store;
mod supervisor;
mod waiting;
mod watch;

use std::collections::HashMap;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use uuid::Uuid;

use super::manifest::{Launch, Objects};
use super::{
    Backend, Callback, Coordination, Launcher, LeaderElection, Leadership, Ownership, PodError, PodEvent, PodOfTask,
    PodRef, Scope, Shutdown, Subscription, TaskPod, WaitingTask, Watcher, attempt_of, task_of,
};
use crate::contract;
use crate::failure::Failure;
use crate::handover;
use crate::pod::connector::Runtime;
use crate::pod::isolation::Isolation;
use crate::process::this_program;
use crate::shared_folder::SharedFolder;
use crate::task::Task;
use record::{ConnectorSettings, TaskRecord};
use store::{CONFIG, HOME, PIPES, REPORTS, TMP, TaskDirectory, TaskStore, io_failure, private_file};
pub use supervisor::supervise;
use waiting::{Prepared, WaitingStore};

/// How tasks run on this machine.
#[derive(Debug, Clone)]
pub struct LocalSettings {
    /// The directory of this user's state.
    pub state: PathBuf,
    /// The directory of what can be restored: installed connectors.
    pub cache: PathBuf,
    /// A command that replaces the connector's image: a connector under development.
    pub exec: Option<String>,
    /// Where to look for connectors.
    pub runtime: Runtime,
    /// Whether images run with a read-only file system.
    pub are_images_read_only: bool,
    /// Whether connectors that are Python packages can be isolated; `None`: not known yet.
    pub isolation: Option<Isolation>,
}

impl LocalSettings {
    /// Whether a task may run foreign code as a process of this machine.
    pub fn may_run_packages(&self) -> bool {
        self.exec.is_none() && matches!(self.runtime, Runtime::Auto | Runtime::Python)
    }
}

/// Tasks as processes of this machine.
pub struct LocalBackend {
    store: TaskStore,
    waiting: WaitingStore,
    settings: LocalSettings,
    /// Whether connectors can be isolated. A probe finds out while the command prepares its task.
    isolation: Arc<OnceLock<Isolation>>,
    /// The stdin of each supervisor by the name of its task; closing it ends the task.
    supervisors: Arc<Mutex<HashMap<String, ChildStdin>>>,
}

/// How often a deleted task is looked for.
const DELETION_POLL: Duration = Duration::from_millis(10);
/// How long a supervisor may take to kill and remove everything.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long tasks may take to end when this process does.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_mins(1);

impl LocalBackend {
    /// Creates the directories and removes what killed processes left in them.
    pub fn open(settings: LocalSettings) -> Result<Self, Failure> {
        let store = TaskStore::new(&settings.state);
        store.create().map_err(|error| io_failure("create", store.root(), &error))?;
        cleanup::remove_abandoned(&store)?;
        let waiting = WaitingStore::new(&settings.state);
        let isolation = Arc::new(settings.isolation.clone().map(OnceLock::from).unwrap_or_default());
        if settings.may_run_packages() {
            let isolation = Arc::clone(&isolation);
            std::thread::spawn(move || _ = isolation.get_or_init(Isolation::probe));
        }
        Ok(Self { store, waiting, settings, isolation, supervisors: Arc::default() })
    }

    /// Creates the record and the directory of a task and starts its supervisor.
    fn start(&self, pod: Pod, secrets: &[Secret], name: &str) -> Result<(), PodError> {
        let mut record = TaskRecord { pod, ..TaskRecord::default() };
        record.set_progress("Starting task");
        let directory = self.store.directory(name);
        let lock = self.store.create_directory(name, |new| self.fill(new, secrets));
        let lock = lock.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => PodError::Exists { name: name.to_owned() },
            _ => io_failure("create", directory.path(), &error).into(),
        })?;
        let started = self.store.write(name, &record).and_then(|()| {
            let log = directory.join("supervisor.log");
            let stderr = private_file(&log).map_err(|error| io_failure("write", &log, &error))?;
            let mut command = this_program();
            command.arg("supervise").arg("--mark").arg(process::mark(directory.path())).arg(directory.path());
            // Connectors must get neither settings nor secrets of this program.
            for (variable, _) in std::env::vars_os() {
                if variable.to_string_lossy().starts_with("SYNCCTL_") {
                    command.env_remove(variable);
                }
            }
            command.env(process::MARK, directory.path());
            // The supervisor inherits the lock, which so is held without a gap until it ends.
            command.stdin(Stdio::piped()).stdout(lock).stderr(stderr);
            // The terminal's Ctrl-C must reach this process alone, which then ends the task in order.
            command.process_group(0);
            command.spawn().map_err(|error| io_failure("start the supervisor in", directory.path(), &error))
        });
        let mut supervisor = match started {
            Ok(supervisor) => supervisor,
            Err(failure) => {
                cleanup::remove_task(&self.store, &directory);
                self.store.remove(name).ok();
                return Err(failure.into());
            }
        };
        if let Some(mut stdin) = supervisor.stdin.take() {
            let values = secrets.iter().flat_map(|secret| secret.data.iter().flatten());
            let values = values.map(|(key, value)| (key.clone(), value.0.clone())).collect();
            // A supervisor that is killed now takes nothing; its end is reported below.
            if let Err(error) = handover::write(&mut stdin, &values) {
                tracing::debug!(%error, task = name, "the supervisor does not take the secrets of its task");
            }
            self.supervisors().insert(name.to_owned(), stdin);
        }
        let (supervisors, name, store) = (Arc::clone(&self.supervisors), name.to_owned(), self.store.clone());
        std::thread::spawn(move || {
            // Reaps the supervisor, and cleans up if it was killed.
            supervisor.wait().ok();
            if directory.path().exists() && !directory.is_supervised() {
                cleanup::remove_task(&store, &directory);
            }
            supervisors.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        });
        Ok(())
    }

    /// Creates what a new task needs in its directory.
    fn fill(&self, directory: &TaskDirectory, secrets: &[Secret]) -> io::Result<()> {
        // The sidecar writes the documents that the connector reads, larger than they are in the secrets. On a full disk
        // neither it nor the supervisor could report what is wrong.
        let needed: usize =
            secrets.iter().flat_map(|secret| secret.data.iter().flatten()).map(|(_, data)| data.0.len()).sum();
        let disk = rustix::fs::statvfs(directory.path())?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < needed as u64 {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        // The user of a container needs access to what is mounted into it. The task directory itself is private.
        let folders = [(PIPES, 0o755), (REPORTS, 0o777), (CONFIG, 0o755), (HOME, 0o700), (TMP, 0o700)];
        for (name, mode) in folders {
            let path = directory.join(name);
            std::fs::create_dir(&path)?;
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
        }
        let pipes = SharedFolder::open(&directory.join(PIPES))?;
        for pipe in [contract::STDOUT_PIPE, contract::STDERR_PIPE] {
            pipes.create_fifo(pipe.rsplit('/').next().unwrap_or_default())?;
        }
        let settings = ConnectorSettings {
            exec: self.settings.exec.clone(),
            runtime: self.settings.runtime,
            cache: self.settings.cache.clone(),
            are_images_read_only: self.settings.are_images_read_only,
            isolation: self.isolation(),
            working_directory: std::env::current_dir().unwrap_or_else(|_| directory.join(HOME)),
        };
        private_file(&directory.join(ConnectorSettings::FILE))?.write_all(&serde_json::to_vec(&settings)?)
    }

    fn isolation(&self) -> Isolation {
        if !self.settings.may_run_packages() {
            return Isolation::Unavailable("the connector is no package".to_owned());
        }
        self.isolation.get_or_init(Isolation::probe).clone()
    }

    fn supervisors(&self) -> MutexGuard<'_, HashMap<String, ChildStdin>> {
        self.supervisors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing of a task is left. Returns whether that happened in time.
    fn wait_removed(&self, name: &str, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while self.store.record_path(name).exists() || self.store.directory(name).path().exists() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(DELETION_POLL);
        }
        true
    }

    /// Starts a task of which there is no record; a record of the same launch is its own.
    fn launch_objects(&self, mut pod: Pod, secrets: &[Secret]) -> Result<PodRef, PodError> {
        let name = pod.metadata.name.clone().unwrap_or_default();
        // The record of a killed process remains until the outcome of its task is stored.
        if let Some(record) = self.store.read(&name).ok().flatten() {
            let is_same_launch = attempt_of(&record.pod.metadata) == attempt_of(&pod.metadata);
            return if is_same_launch { Ok(PodRef::of(&record.pod)) } else { Err(PodError::Exists { name }) };
        }
        pod.metadata.uid = Some(Uuid::new_v4().to_string());
        pod.metadata.creation_timestamp = Some(Time(Timestamp::now()));
        let launched = PodRef::of(&pod);
        self.start(pod, secrets, &name)?;
        Ok(launched)
    }

    /// Removes a task without a supervisor.
    fn remove(&self, name: &str) -> Result<(), PodError> {
        self.waiting.remove(name)?;
        let directory = self.store.directory(name);
        if directory.path().exists() {
            cleanup::remove_task(&self.store, &directory);
        }
        Ok(self.store.remove(name)?)
    }
}

impl From<LocalBackend> for Backend {
    fn from(backend: LocalBackend) -> Self {
        let backend = Arc::new(backend);
        Self {
            launcher: backend.clone(),
            watcher: backend.clone(),
            coordination: backend.clone(),
            // Documents are files in the directory of the task and removed with it.
            secrets: None,
            api_server: None,
            shutdown: Some(backend),
        }
    }
}

impl Launcher for LocalBackend {
    fn location(&self) -> String {
        "on this machine".to_owned()
    }

    fn launch(&self, launch: &Launch<'_>, _: Ownership) -> Result<PodRef, PodError> {
        let Objects { pod, secrets } = launch.objects()?;
        self.launch_objects(pod, &secrets)
    }

    fn prepare(&self, launch: &Launch<'_>, start_at: Timestamp) -> Result<Option<String>, PodError> {
        let Objects { pod, secrets } = launch.objects()?;
        self.waiting.write(&launch.task.pod_name(), &Prepared { start_at, pod, secrets })?;
        Ok(None)
    }

    fn waiting(&self) -> Result<Vec<WaitingTask>, PodError> {
        let mut waiting = Vec::new();
        for name in self.waiting.names()? {
            let Some(Prepared { start_at, pod, .. }) = self.waiting.read(&name)? else { continue };
            match task_of(&pod.metadata) {
                Ok(task) => waiting.push(WaitingTask { pod: name, task, start_at, document: None }),
                Err(error) => tracing::warn!(pod = name, error, "cannot read the description of a task"),
            }
        }
        Ok(waiting)
    }

    fn start_waiting(&self, waiting: &WaitingTask) -> Result<bool, PodError> {
        let pod = waiting.pod.as_str();
        let Some(prepared) = self.waiting.read(pod)? else { return Ok(false) };
        self.launch_objects(prepared.pod, &prepared.secrets)?;
        self.waiting.remove(pod)?;
        Ok(true)
    }

    fn delete(&self, pod: &str, grace: Option<Duration>) -> Result<(), PodError> {
        let directory = self.store.directory(pod);
        if directory.is_supervised() { Ok(directory.request_deletion(grace)?) } else { self.remove(pod) }
    }

    fn delete_exact(&self, pod: &PodRef, grace: Option<Duration>) -> Result<(), PodError> {
        let is_same = self.store.read(&pod.name)?.is_some_and(|record| record.uid() == pod.uid);
        if is_same { self.delete(&pod.name, grace) } else { Ok(()) }
    }

    fn wait_deleted(&self, pod: &str, limit: Duration) -> Result<(), PodError> {
        if self.wait_removed(pod, limit) {
            return Ok(());
        }
        self.delete(pod, Some(Duration::ZERO))?;
        if self.wait_removed(pod, REMOVAL_TIMEOUT) {
            return Ok(());
        }
        if let Some(supervisor) = self.store.read(pod).ok().flatten().and_then(|record| record.supervisor) {
            process::signal(supervisor, rustix::process::Signal::KILL);
        }
        process::kill_marked(self.store.directory(pod).path());
        self.remove(pod)
    }

    /// Whether the directory of the tasks can be read.
    fn check_reachable(&self) -> Result<(), PodError> {
        Ok(self.store.names().map(drop)?)
    }
}

impl Watcher for LocalBackend {
    fn list(&self) -> Result<Vec<TaskPod>, PodError> {
        self.store.tasks()
    }

    fn find(&self, task_id: &str) -> Result<Vec<PodOfTask>, PodError> {
        let mut found = Vec::new();
        for name in self.store.names()? {
            if let Some(record) = self.store.read(&name)? {
                found.extend(PodOfTask::of(&record.pod.metadata, task_id));
            }
        }
        Ok(found)
    }

    fn get(&self, name: &str) -> Result<Option<TaskPod>, PodError> {
        self.store.task(name)
    }

    fn watch(&self, scope: Scope<'_>, resync: Duration, on_event: Callback<PodEvent>) -> Subscription {
        watch::start(self.store.clone(), scope, resync, on_event)
    }
}

impl Coordination for LocalBackend {
    /// Stored in the state directory.
    fn installation_id(&self) -> Result<String, PodError> {
        let path = self.settings.state.join("installation");
        let read_or_create = |path: &Path| -> io::Result<String> {
            if let Ok(id) = std::fs::read_to_string(path) {
                return Ok(id);
            }
            let new = path.with_extension(Uuid::new_v4().simple().to_string());
            private_file(&new)?.write_all(Uuid::new_v4().to_string().as_bytes())?;
            // Unlike a rename, a link does not replace what another process has created meanwhile.
            let linked = std::fs::hard_link(&new, path);
            std::fs::remove_file(&new)?;
            match linked {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
                _ => std::fs::read_to_string(path),
            }
        };
        read_or_create(&path).map_err(|error| io_failure("read", &path, &error).into())
    }

    fn join_election(&self, identity: &str, _: Duration, on_change: Callback<Leadership>) -> Box<dyn LeaderElection> {
        Box::new(election::Election::start(self.settings.state.join("serve.lock"), identity, on_change))
    }
}

impl Shutdown for LocalBackend {
    fn tasks(&self) -> Vec<Task> {
        let names: Vec<String> = self.supervisors().keys().cloned().collect();
        // A task that cannot be read has ended, or is closed by the next process.
        names.iter().filter_map(|name| self.store.task(name).ok()??.task.ok()).collect()
    }

    fn end_tasks(&self) {
        let names: Vec<String> = self.supervisors().keys().cloned().collect();
        for name in &names {
            self.delete(name, None).ok();
        }
        for name in &names {
            self.wait_removed(name, SHUTDOWN_TIMEOUT);
        }
    }
}
