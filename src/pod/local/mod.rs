//! Pods of this machine: each task as two processes, looked after by a third one.
//!
//! The Pod is the one that a cluster would get, and so are the script, the pipes, the documents and the sidecar's
//! variables; what a kubelet does with it, [`supervisor`] does. A record of each task is kept on disk ([`store`]), so that
//! any process sees the tasks of all, and cleans up after those that were killed. A task lives no longer than the process
//! that launched it.

mod containers;
mod election;
mod limits;
mod processes;
mod record;
mod store;
mod supervisor;
mod usage;
mod watch;

use std::collections::HashMap;
use std::io::{self, ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use uuid::Uuid;

use super::manifest::Launch;
use super::{
    Backend, Callback, Coordination, Launcher, LeaderElection, Leadership, Ownership, PodError, PodEvent, PodRef,
    Scope, Shutdown, Subscription, TaskPod, Watcher, attempt_of,
};
use crate::failure::Failure;
use crate::pod::connector::Runtime;
use record::Record;
use store::{Folder, Store, private_file, trouble};
pub use supervisor::supervise;
use supervisor::{DELETE, PLAN, Plan};

/// How tasks are run on this machine.
#[derive(Debug, Clone)]
pub struct LocalSettings {
    /// The folder of this user's states.
    pub state: PathBuf,
    /// Where what can be had again is kept: installed connectors.
    pub cache: PathBuf,
    /// A connector under development, which takes the place of the image.
    pub exec: Option<String>,
    /// Where connectors come from.
    pub runtime: Runtime,
}

/// This machine, as a place for Pods.
pub struct Machine {
    store: Store,
    settings: LocalSettings,
    /// The other end of each supervisor's stdin: when it goes, the task goes.
    lifelines: Arc<Mutex<HashMap<String, ChildStdin>>>,
}

/// How often it is looked whether a task is gone.
const GONE_POLL: Duration = Duration::from_millis(10);
/// How long a supervisor may take to kill and remove everything.
const VANISH: Duration = Duration::from_secs(15);

impl Machine {
    /// Makes the folders that are needed, and removes what killed processes have left in them.
    pub fn open(settings: LocalSettings) -> Result<Self, Failure> {
        let store = Store::new(&settings.state);
        store.ready().map_err(|error| trouble("making", store.root(), &error))?;
        store.sweep().map_err(|error| trouble("looking through", store.root(), &error))?;
        Ok(Self { store, settings, lifelines: Arc::default() })
    }

    /// Puts everything of a task where its supervisor looks for it, and starts that.
    fn begin(&self, pod: Pod, secrets: &[Secret], name: &str) -> Result<(), PodError> {
        let mut record = Record { pod, ..Record::default() };
        record.waits("starting");
        let fill = |folder: &Folder| self.fill(folder, secrets);
        let lock = self.store.make(name, fill).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => PodError::Exists { name: name.to_owned() },
            _ => trouble("making", self.store.folder(name).path(), &error).into(),
        })?;
        let folder = self.store.folder(name);
        let path = self.store.record(name);
        let started = record.write(&path).map_err(|error| trouble("writing", &path, &error)).and_then(|()| {
            let log = private_file(&folder.join("supervisor.log"))
                .map_err(|error| trouble("writing", folder.path(), &error))?;
            let mut command = containers::ourselves();
            command.arg("supervise").arg("--mark").arg(containers::mark(&folder)).arg(folder.path());
            // Nothing of ours goes on to connectors: neither settings nor secrets.
            for (variable, _) in std::env::vars_os() {
                if variable.to_string_lossy().starts_with("SYNCCTL_") {
                    command.env_remove(variable);
                }
            }
            command.env(processes::MARK, folder.path());
            // The lock goes with it: it is held from now until the supervisor's end, without a gap.
            command.stdin(Stdio::piped()).stdout(lock).stderr(log);
            // Out of the terminal's reach: Ctrl-C is for this process, which ends the task in order.
            command.process_group(0);
            command.spawn().map_err(|error| trouble("starting the supervisor in", folder.path(), &error))
        });
        let mut supervisor = match started {
            Ok(supervisor) => supervisor,
            Err(failure) => {
                self.store.clear(&folder);
                self.store.forget(name).ok();
                return Err(failure.into());
            }
        };
        if let Some(lifeline) = supervisor.stdin.take() {
            self.lifelines().insert(name.to_owned(), lifeline);
        }
        let (lifelines, name, store) = (Arc::clone(&self.lifelines), name.to_owned(), self.store.clone());
        std::thread::spawn(move || {
            // Whatever its end: nobody is to wait for it for ever, and what it leaves is cleaned up.
            supervisor.wait().ok();
            let folder = store.folder(&name);
            if folder.path().exists() && !folder.is_supervised() {
                store.clear(&folder);
            }
            lifelines.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        });
        Ok(())
    }

    fn fill(&self, folder: &Folder, secrets: &[Secret]) -> io::Result<()> {
        // What is mounted into a container has to be open to its user; the folder above is not.
        for (name, mode) in [("pipes", 0o777), ("config", 0o755), ("secrets", 0o700), ("home", 0o700), ("tmp", 0o700)] {
            let path = folder.join(name);
            std::fs::create_dir(&path)?;
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        }
        for (key, value) in secrets.iter().flat_map(|secret| secret.data.iter().flatten()) {
            private_file(&folder.join("secrets").join(key))?.write_all(&value.0)?;
        }
        let plan = Plan {
            exec: self.settings.exec.clone(),
            runtime: self.settings.runtime,
            cache: self.settings.cache.clone(),
            working_directory: std::env::current_dir().unwrap_or_else(|_| folder.join("home")),
        };
        private_file(&folder.join(PLAN))?.write_all(&serde_json::to_vec(&plan)?)
    }

    fn lifelines(&self) -> std::sync::MutexGuard<'_, HashMap<String, ChildStdin>> {
        self.lifelines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the supervisor to end the task; where there is none, does what it would have done.
    fn ask(&self, name: &str, grace: Option<Duration>) -> Result<(), PodError> {
        let folder = self.store.folder(name);
        if !folder.is_supervised() {
            return self.remove(name);
        }
        let text = grace.map(|grace| grace.as_secs().to_string()).unwrap_or_default();
        let (new, file) = (folder.join("delete.new"), folder.join(DELETE));
        match std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &file)) {
            // It has just gone.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => result.map_err(|error| trouble("writing", &file, &error).into()),
        }
    }

    fn remove(&self, name: &str) -> Result<(), PodError> {
        let folder = self.store.folder(name);
        if folder.path().exists() {
            self.store.clear(&folder);
        }
        self.store.forget(name).map_err(|error| trouble("removing", &self.store.record(name), &error).into())
    }

    fn is_gone(&self, name: &str) -> bool {
        !self.store.record(name).exists() && !self.store.folder(name).path().exists()
    }

    /// Waits for the end of everything that has to do with a task; says whether it has come.
    fn vanishes(&self, name: &str, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.is_gone(name) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(GONE_POLL);
        }
        true
    }
}

impl From<Machine> for Backend {
    fn from(machine: Machine) -> Self {
        let machine = Arc::new(machine);
        Self {
            launcher: machine.clone(),
            watcher: machine.clone(),
            coordination: machine.clone(),
            // A task's documents are files in its folder and deleted with it.
            secrets: None,
            api_server: None,
            shutdown: Some(machine),
        }
    }
}

impl Launcher for Machine {
    fn location(&self) -> String {
        "on this machine".to_owned()
    }

    fn launch(&self, launch: &Launch<'_>, _: Ownership) -> Result<PodRef, PodError> {
        let objects = launch.objects()?;
        let mut pod = objects.pod.clone();
        let name = pod.metadata.name.clone().unwrap_or_default();
        // What a killed process left was cleaned up except for its record: its outcome is not stored yet.
        if let Some(record) = self.store.read(&name).ok().flatten() {
            let is_same_launch = attempt_of(&record.pod.metadata) == Some(launch.attempt);
            return if is_same_launch { Ok(PodRef::of(&record.pod)) } else { Err(PodError::Exists { name }) };
        }
        pod.metadata.uid = Some(Uuid::new_v4().to_string());
        pod.metadata.creation_timestamp = Some(Time(Timestamp::now()));
        let launched = PodRef::of(&pod);
        self.begin(pod, &objects.secrets, &name)?;
        Ok(launched)
    }

    fn delete(&self, pod: &str, grace: Option<Duration>) -> Result<(), PodError> {
        self.ask(pod, grace)
    }

    fn delete_exact(&self, pod: &PodRef, grace: Option<Duration>) -> Result<(), PodError> {
        let path = self.store.record(&pod.name);
        let record = self.store.read(&pod.name).map_err(|error| trouble("reading", &path, &error))?;
        if record.is_some_and(|record| record.uid() == pod.uid) { self.ask(&pod.name, grace) } else { Ok(()) }
    }

    fn wait_deleted(&self, pod: &str, limit: Duration) -> Result<(), PodError> {
        if self.vanishes(pod, limit) {
            return Ok(());
        }
        self.ask(pod, Some(Duration::ZERO))?;
        if self.vanishes(pod, VANISH) {
            return Ok(());
        }
        if let Some(supervisor) = self.store.read(pod).ok().flatten().and_then(|record| record.supervisor) {
            processes::signal(supervisor, rustix::process::Signal::KILL);
        }
        processes::kill_marked(self.store.folder(pod).path());
        self.remove(pod)
    }

    /// Whether the folder of the tasks can be read.
    fn check_reachable(&self) -> Result<(), PodError> {
        self.store.names().map(drop).map_err(|error| trouble("looking through", self.store.root(), &error).into())
    }
}

impl Watcher for Machine {
    fn list(&self) -> Result<Vec<TaskPod>, PodError> {
        self.store.tasks()
    }

    fn get(&self, name: &str) -> Result<Option<TaskPod>, PodError> {
        self.store.task(name)
    }

    fn watch(&self, scope: Scope<'_>, resync: Duration, on_event: Callback<PodEvent>) -> Subscription {
        watch::start(self.store.clone(), scope, resync, on_event)
    }
}

impl Coordination for Machine {
    /// Stored in the folder of states.
    fn installation_id(&self) -> Result<String, PodError> {
        let path = self.settings.state.join("installation");
        let made = |path: &Path| -> io::Result<String> {
            if let Ok(id) = std::fs::read_to_string(path) {
                return Ok(id);
            }
            let new = path.with_extension(Uuid::new_v4().simple().to_string());
            private_file(&new)?.write_all(Uuid::new_v4().to_string().as_bytes())?;
            // Of two that come at the same time one wins.
            let linked = std::fs::hard_link(&new, path);
            std::fs::remove_file(&new)?;
            match linked {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
                _ => std::fs::read_to_string(path),
            }
        };
        made(&path).map_err(|error| trouble("reading", &path, &error).into())
    }

    fn join_election(&self, identity: &str, _: Duration, on_change: Callback<Leadership>) -> Box<dyn LeaderElection> {
        Box::new(election::Election::start(self.settings.state.join("serve.lock"), identity, on_change))
    }
}

impl Shutdown for Machine {
    fn end_tasks(&self) {
        let names: Vec<String> = self.lifelines().keys().cloned().collect();
        for name in &names {
            self.ask(name, None).ok();
        }
        for name in &names {
            let grace = Duration::from_mins(1);
            self.vanishes(name, grace);
        }
    }
}
