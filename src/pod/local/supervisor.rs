//! The supervisor: a process of its own that does for one task what a kubelet does for a Pod.
//!
//! It resolves the connector, starts sidecar and source, updates the task's record, ends both on request and removes
//! everything that the task leaves behind. It ends the task at once when the process that launched it has died: that one
//! holds the other end of the supervisor's stdin. Everything that happens arrives as an [`Event`] in one channel.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::cgroup::{ControlGroup, Limits};
use super::process::{self, UsageSampler};
use super::record::{ConnectorSettings, TaskRecord, abandoned};
use super::store::{HOME, REPORTS, TaskDirectory, TaskStore, io_failure};
use super::watch::DirectoryWatch;
use super::{cleanup, containers};
use crate::failure::{Class, Failure};
use crate::handover::{self, Secrets};
use crate::pod::connector::{self, Connector, ConnectorRequest, ResolvedConnector};
use crate::pod::isolation::{Isolation, Isolator};
use crate::pod::status::{Exit, SIDECAR, SOURCE};
use crate::task::Task;

/// How often to look at what no event reports: until the containers run, and later the usage of the connector.
const POLL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));
/// How often a request to end the task is looked for if the file system does not report it.
const REQUEST_POLL: Duration = Duration::from_secs(1);
/// How long an installation may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

enum Event {
    /// Progress of resolving the connector.
    Progress(String),
    /// The connector was resolved, or cannot be.
    Resolved(Result<ResolvedConnector, Failure>),
    /// A container has ended.
    Exited(&'static str, Exit),
    /// End the task with this grace period. `None`: that of the Pod.
    Delete(Option<Duration>),
    /// The process that launched the task has died.
    LauncherDied,
}

/// Supervises the task of a directory until it is gone.
pub fn supervise(path: &Path) -> Result<(), Failure> {
    // Adopts the orphans among its descendants.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).ok();
    let directory = TaskDirectory::at(path);
    let store = TaskStore::new(path.parent().and_then(Path::parent).unwrap_or(Path::new("/")));
    let file = directory.join(ConnectorSettings::FILE);
    let settings = std::fs::read(&file).and_then(|text| Ok(serde_json::from_slice(&text)?));
    let settings = settings.map_err(|error| io_failure("read", &file, &error))?;
    let record = store.read(directory.name())?;
    let record = record.ok_or_else(|| Failure::new(Class::Internal, "the task has no record"))?;
    let (events, inbox) = mpsc::channel();
    let secrets = handover::read(std::io::stdin().lock());
    let secrets = secrets.map_err(|error| io_failure("read the secrets of", path, &error))?;
    let has_launcher = secrets.is_some();
    let (isolator, not_isolated) = match isolator(&settings, path) {
        Ok(isolator) => (isolator.map(Arc::new), None),
        Err(failure) => (None, Some(failure)),
    };
    let mut supervisor = Supervisor {
        store,
        directory,
        settings,
        isolator,
        record,
        events,
        is_cancelled: Arc::default(),
        resolving: None,
        sidecar: None,
        source: None,
        usage: None,
        secrets: secrets.unwrap_or_default(),
    };
    supervisor.start_listeners();
    match not_isolated {
        // The launcher has died, which the listeners report.
        _ if !has_launcher => {}
        None => supervisor.start_resolving(),
        Some(failure) => _ = supervisor.events.send(Event::Resolved(Err(failure))),
    }
    supervisor.run(&inbox);
    Ok(())
}

/// What isolates foreign code of this task; `None` where there is none, or where that is not possible.
fn isolator(settings: &ConnectorSettings, directory: &Path) -> Result<Option<Isolator>, Failure> {
    if settings.exec.is_some() || matches!(settings.isolation, Isolation::Unavailable(_)) {
        return Ok(None);
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let state = directory.parent().and_then(Path::parent).unwrap_or(directory);
    let isolator = Isolator::new(&[state, &settings.cache, &home]);
    isolator
        .map(Some)
        .map_err(|reason| Failure::new(Class::StartError, format!("cannot isolate the connector: {reason}")))
}

struct Supervisor {
    store: TaskStore,
    directory: TaskDirectory,
    settings: ConnectorSettings,
    /// Isolates the connector and its installation; `None` where that is not possible or not wanted.
    isolator: Option<Arc<Isolator>>,
    record: TaskRecord,
    events: Sender<Event>,
    /// Cancels the resolution of the connector.
    is_cancelled: Arc<AtomicBool>,
    resolving: Option<JoinHandle<()>>,
    /// The process that leads the group of the sidecar while it runs.
    sidecar: Option<u32>,
    /// The same for the connector.
    source: Option<u32>,
    usage: Option<UsageSampler>,
    /// Documents and credentials for the sidecar.
    secrets: Secrets,
}

impl Supervisor {
    /// Runs until the task is gone.
    fn run(&mut self, inbox: &Receiver<Event>) {
        self.record.supervisor = Some(std::process::id());
        self.record.set_progress("Resolving connector");
        self.save_record();
        let mut deadline: Option<Instant> = None;
        loop {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline || !self.is_active()) {
                return self.remove_task();
            }
            let are_containers_running = self.sidecar.is_some() || self.source.is_some();
            match inbox.recv_timeout(if are_containers_running { POLL.1 } else { POLL.0 }) {
                Ok(Event::Progress(text)) => {
                    self.record.set_progress(&text);
                    self.save_record();
                }
                Ok(Event::Resolved(resolved)) if deadline.is_none() => {
                    if let Err(failure) = resolved.and_then(|resolved| self.start_containers(&resolved)) {
                        self.record.failure = Some(failure);
                        self.save_record();
                    }
                }
                Ok(Event::Exited(name, exit)) => self.container_exited(name, &exit),
                Ok(Event::Delete(grace)) => {
                    let until = Instant::now() + grace.unwrap_or(self.grace());
                    if deadline.is_none() {
                        self.record.set_deleting();
                        self.save_record();
                        self.terminate();
                    }
                    // A repeated request may shorten the grace period.
                    deadline = Some(deadline.map_or(until, |deadline| deadline.min(until)));
                }
                Ok(Event::LauncherDied) => return self.abandon(),
                // A connector that is resolved now is too late.
                Ok(Event::Resolved(_)) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("self holds a sender"),
            }
            self.poll();
        }
    }

    /// Starts the threads that report requests to end the task.
    fn start_listeners(&self) {
        let events = self.events.clone();
        std::thread::spawn(move || {
            // Nothing is ever written: this returns when the other end is closed.
            std::io::stdin().read_to_end(&mut Vec::new()).ok();
            events.send(Event::LauncherDied).ok();
        });
        let (events, directory) = (self.events.clone(), self.directory.clone());
        std::thread::spawn(move || {
            let changes = DirectoryWatch::new(directory.path());
            loop {
                if let Ok(grace) = directory.take_deletion_request()
                    && events.send(Event::Delete(grace)).is_err()
                {
                    return;
                }
                changes.wait(REQUEST_POLL);
            }
        });
        let events = self.events.clone();
        match signal_hook::iterator::Signals::new([SIGTERM, SIGINT]) {
            Ok(mut signals) => drop(std::thread::spawn(move || {
                for _ in signals.forever() {
                    events.send(Event::Delete(None)).ok();
                }
            })),
            Err(error) => tracing::warn!(%error, "cannot listen for signals"),
        }
    }

    /// Resolves the connector on its own thread.
    fn start_resolving(&mut self) {
        let (events, is_cancelled, settings) =
            (self.events.clone(), Arc::clone(&self.is_cancelled), self.settings.clone());
        let isolator = self.isolator.clone();
        let task = Task::from_annotations(&self.record.pod.metadata.annotations.clone().unwrap_or_default());
        self.resolving = Some(std::thread::spawn(move || {
            let environment = process::environment();
            let resolved = task.map_err(|error| Failure::new(Class::Internal, error)).and_then(|task| {
                let request = ConnectorRequest {
                    image: &task.image,
                    exec: settings.exec.as_deref(),
                    runtime: settings.runtime,
                    cache: &settings.cache,
                    environment: &environment,
                    working_directory: &settings.working_directory,
                    isolator: isolator.as_deref(),
                };
                let mut on_progress = |text: &str| drop(events.send(Event::Progress(text.to_owned())));
                connector::resolve(&request, &mut on_progress, &|| is_cancelled.load(Ordering::SeqCst))
            });
            events.send(Event::Resolved(resolved)).ok();
        }));
    }

    /// The sidecar first: the connector waits for its pipes.
    fn start_containers(&mut self, resolved: &ResolvedConnector) -> Result<(), Failure> {
        self.record.notice = Some(self.notice(resolved));
        if let Connector::Container { engine, .. } = &resolved.connector {
            // Before the container exists: a later cleanup must know of it.
            self.record.container = Some(engine.clone());
            self.save_record();
        }
        let sidecar = containers::start_sidecar(&self.record.pod, &self.directory, &std::mem::take(&mut self.secrets))?;
        self.sidecar = Some(self.watch_container(SIDECAR, sidecar)?);
        let (pod, settings, isolator) = (&self.record.pod, &self.settings, self.isolator.as_deref());
        let source = containers::start_source(pod, &self.directory, &resolved.connector, settings, isolator)?;
        self.source = Some(self.watch_container(SOURCE, source)?);
        self.record.set_started(SIDECAR);
        self.record.set_started(SOURCE);
        self.save_record();
        Ok(())
    }

    /// What was chosen, and what that lacks.
    fn notice(&self, resolved: &ResolvedConnector) -> String {
        let is_package = matches!(&resolved.connector, Connector::Host { package: Some(_), .. });
        match &self.settings.isolation {
            Isolation::Unavailable(reason) if is_package => format!(
                "{}\nwarning: the connector is not isolated, it runs with all rights of this user: {reason}",
                resolved.summary
            ),
            _ => resolved.summary.clone(),
        }
    }

    /// Limits a container and waits for its end on its own thread. Returns its process.
    fn watch_container(&mut self, name: &'static str, mut child: Child) -> Result<u32, Failure> {
        let pid = child.id();
        // An engine limits and measures its containers itself.
        let engine = self.record.container.clone().filter(|_| name == SOURCE);
        let limits = if engine.is_none() { containers::limits(&self.record.pod, name) } else { Limits::default() };
        let group = ControlGroup::create(self.directory.name(), name, limits);
        group.add(pid, limits);
        if let Some(stdin) = &mut child.stdin {
            // An isolated connector starts now, within its limits.
            stdin.write_all(b"\n").ok();
        }
        let usage = (name == SOURCE && engine.is_none()).then(|| UsageSampler::new(pid, &self.directory.join(REPORTS)));
        if usage.is_some() {
            self.usage.clone_from(&usage);
        }
        let (events, directory) = (self.events.clone(), self.directory.clone());
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                process::wait_for_exit(pid);
                if let Some(usage) = usage {
                    usage.sample_last();
                }
                let status = child.wait();
                let is_oom_killed = group.is_oom_killed()
                    || engine.is_some_and(|engine| {
                        let state = engine.state(directory.name()).ok().flatten();
                        state.is_some_and(|state| engine.ran_out_of_memory(state, &directory.join(HOME)))
                    });
                let exit = containers::exit(name, &status, is_oom_killed, &directory);
                events.send(Event::Exited(name, exit)).ok();
            })
            .map_err(|error| io_failure("start a thread for", self.directory.path(), &error))?;
        Ok(pid)
    }

    fn container_exited(&mut self, name: &'static str, exit: &Exit) {
        let container = if name == SOURCE { &mut self.source } else { &mut self.sidecar };
        if let Some(pid) = container.take() {
            // The processes that it started end with it, as in a container.
            process::kill_group(pid);
        }
        if name == SOURCE {
            self.usage = None;
            if let Some(sidecar) = self.sidecar {
                process::kill_descendants(std::process::id(), &[sidecar]);
            }
        }
        self.record.set_ended(name, exit);
        self.save_record();
    }

    /// Whether a container or an installation is still running.
    fn is_active(&self) -> bool {
        self.source.is_some() || self.sidecar.is_some() || self.is_resolving()
    }

    fn is_resolving(&self) -> bool {
        self.resolving.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn terminate(&self) {
        self.is_cancelled.store(true, Ordering::SeqCst);
        for pid in [self.sidecar, self.source].into_iter().flatten() {
            process::signal(pid, Signal::TERM);
        }
    }

    /// The grace period of the Pod.
    fn grace(&self) -> Duration {
        let spec = self.record.pod.spec.as_ref();
        let seconds = spec.and_then(|spec| spec.termination_grace_period_seconds).unwrap_or_default();
        Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    }

    /// Does what no event reports.
    fn poll(&mut self) {
        if let Some(usage) = &mut self.usage {
            usage.sample_if_due();
        }
        if self.source.is_some()
            && self.record.failure.is_none()
            && let Some(failure) = containers::exceeded_storage(&self.directory)
        {
            // As the kubelet evicts a Pod. The controller deletes the task.
            self.record.failure = Some(failure);
            self.save_record();
            self.terminate();
        }
    }

    /// Kills and removes everything of the task.
    fn remove_task(&mut self) {
        self.kill();
        if let Err(error) = self.store.remove(self.directory.name()) {
            tracing::error!(%error, "the record of the task remains");
        }
        cleanup::remove_files(&self.directory);
    }

    /// Kills and removes everything of the task but its record, from which the next process stores the outcome.
    fn abandon(&mut self) {
        self.kill();
        // A sidecar that has ended has stored the result or its own failure.
        if self.record.failure.is_none() && self.record.is_running(SIDECAR) {
            self.record.failure = Some(abandoned());
        }
        self.save_record();
        cleanup::remove_files(&self.directory);
    }

    fn kill(&mut self) {
        self.is_cancelled.store(true, Ordering::SeqCst);
        if let Some(engine) = &self.record.container
            && let Err(error) = engine.remove(self.directory.name())
        {
            tracing::error!(error, "the container of the task remains");
        }
        // An installation that is cancelled removes its incomplete files.
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.is_resolving() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        process::kill_descendants(std::process::id(), &[]);
    }

    fn save_record(&self) {
        if let Err(error) = self.store.write(self.directory.name(), &self.record) {
            tracing::error!(%error, "other processes cannot see the state of the task");
        }
    }
}
