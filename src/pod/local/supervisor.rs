//! What looks after one task: a process of its own that plays the kubelet's part for one Pod.
//!
//! It finds the connector, starts sidecar and source, keeps the task's record current, ends both when asked to, and
//! removes all that the task has left. It ends everything at once when the process that launched the task has died: that
//! one holds the other end of its stdin. Everything that happens arrives as an [`Event`] in one channel.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{DumpableBehavior, Signal};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::containers::{self, Container};
use super::limits;
use super::processes;
use super::record::{Record, abandoned};
use super::store::{Folder, Store, trouble};
use super::usage::Usage;
use super::watch::Changes;
use crate::contract::READY_FILE;
use crate::failure::Failure;
use crate::pod::connector::{self, ConnectorRequest, ResolvedConnector, Runtime};
use crate::pod::status::{SIDECAR, SOURCE};

/// What the supervisor is told beside the record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// A connector under development.
    pub exec: Option<String>,
    /// Where connectors come from.
    pub runtime: Runtime,
    /// Where installed connectors are kept.
    pub cache: PathBuf,
    /// Where the command was given.
    pub working_directory: PathBuf,
}

/// The file of the plan.
pub const PLAN: &str = "plan.json";
/// Asks for the end of the task: how many seconds its containers have, or nothing for as long as the Pod says.
pub const DELETE: &str = "delete";
/// How often it is looked what nobody tells: whether the sidecar has read its secrets, later what the connector uses.
const TICKS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));
/// How long an installation may take to stop.
const STOP: Duration = Duration::from_secs(10);

enum Event {
    /// What is going on while the connector is looked for.
    Told(String),
    /// It was found, or not.
    Found(Result<ResolvedConnector, Failure>),
    /// A container has ended.
    Ended(&'static str, crate::pod::status::Exit),
    /// The task is to end, in so much time.
    Delete(Option<Duration>),
    /// Who launched the task is gone.
    Orphaned,
}

/// Looks after the task of a folder until it is gone.
pub fn supervise(path: &Path) -> Result<(), Failure> {
    // Parent of everything that loses its own.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).ok();
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).ok();
    let folder = Folder::at(path);
    let store = Store::new(path.parent().and_then(Path::parent).unwrap_or(Path::new("/")));
    let read = |file: &Path| std::fs::read(file).map_err(|error| trouble("reading", file, &error));
    let plan: Plan = serde_json::from_slice(&read(&folder.join(PLAN))?)
        .map_err(|error| trouble("reading", &folder.join(PLAN), &error.into()))?;
    let file = store.record(folder.name());
    let record = Record::read(&file).map_err(|error| trouble("reading", &file, &error))?;
    let (events, inbox) = mpsc::channel();
    let mut supervisor = Supervisor {
        store,
        plan,
        file,
        record,
        events,
        stop: Arc::default(),
        finder: None,
        sidecar: None,
        source: None,
        usage: None,
        secrets_read: false,
        folder,
    };
    supervisor.listen();
    supervisor.find();
    supervisor.run(&inbox);
    Ok(())
}

struct Supervisor {
    store: Store,
    plan: Plan,
    folder: Folder,
    /// The file of the record.
    file: PathBuf,
    record: Record,
    events: Sender<Event>,
    /// Set when nothing more is to be installed.
    stop: Arc<AtomicBool>,
    finder: Option<JoinHandle<()>>,
    sidecar: Option<Container>,
    source: Option<Container>,
    usage: Option<Usage>,
    secrets_read: bool,
}

impl Supervisor {
    /// Until the task is gone.
    fn run(&mut self, inbox: &Receiver<Event>) {
        self.record.supervisor = Some(std::process::id());
        self.record.waits("the connector is looked for");
        self.tell();
        let mut deadline: Option<Instant> = None;
        loop {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline || !self.lives()) {
                return self.vanish();
            }
            match inbox.recv_timeout(if self.secrets_read { TICKS.1 } else { TICKS.0 }) {
                Ok(Event::Told(text)) => {
                    self.record.waits(&text);
                    self.tell();
                }
                Ok(Event::Found(found)) if deadline.is_none() => self.found(found),
                Ok(Event::Ended(name, exit)) => self.ended(name, &exit),
                Ok(Event::Delete(grace)) => {
                    let until = Instant::now() + grace.unwrap_or(self.grace());
                    if deadline.is_none() {
                        self.record.deleting();
                        self.tell();
                        self.end();
                    }
                    // Who asks once more may want it sooner.
                    deadline = Some(deadline.map_or(until, |deadline| deadline.min(until)));
                }
                Ok(Event::Orphaned) => return self.orphaned(),
                // What is found now comes too late.
                Ok(Event::Found(_)) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("this one holds a sender"),
            }
            self.look();
        }
    }

    /// Hears of all that may end the task.
    fn listen(&self) {
        let events = self.events.clone();
        std::thread::spawn(move || {
            // Nothing is ever written: it ends when the other side does.
            std::io::stdin().read_to_end(&mut Vec::new()).ok();
            events.send(Event::Orphaned).ok();
        });
        let (events, folder) = (self.events.clone(), self.folder.clone());
        std::thread::spawn(move || {
            let changes = Changes::of(folder.path());
            loop {
                if let Some(request) = request(&folder)
                    && events.send(request).is_err()
                {
                    return;
                }
                changes.wait(Duration::from_secs(1));
            }
        });
        let events = self.events.clone();
        match signal_hook::iterator::Signals::new([SIGTERM, SIGINT]) {
            Ok(mut signals) => drop(std::thread::spawn(move || {
                for _ in signals.forever() {
                    events.send(Event::Delete(None)).ok();
                }
            })),
            Err(error) => tracing::warn!(%error, "signals are not heard"),
        }
    }

    /// Looks for the connector, on a thread of its own.
    fn find(&mut self) {
        let (events, stop, plan) = (self.events.clone(), Arc::clone(&self.stop), self.plan.clone());
        let image =
            crate::task::Task::from_annotations(&self.record.pod.metadata.annotations.clone().unwrap_or_default())
                .map(|task| task.image);
        self.finder = Some(std::thread::spawn(move || {
            let environment = containers::inherited();
            let found = image.map_err(|error| Failure::new(crate::failure::Class::Internal, error)).and_then(|image| {
                let request = ConnectorRequest {
                    image: &image,
                    exec: plan.exec.as_deref(),
                    runtime: plan.runtime,
                    cache: &plan.cache,
                    environment: &environment,
                    working_directory: &plan.working_directory,
                };
                let mut tell = |text: &str| drop(events.send(Event::Told(text.to_owned())));
                connector::resolve(&request, &mut tell, &|| stop.load(Ordering::SeqCst))
            });
            events.send(Event::Found(found)).ok();
        }));
    }

    fn found(&mut self, found: Result<ResolvedConnector, Failure>) {
        if let Err(failure) = found.and_then(|found| self.start(&found)) {
            self.record.failure = Some(failure);
            self.tell();
        }
    }

    /// Starts both, the sidecar first: the pipes should be there when the connector starts.
    fn start(&mut self, found: &ResolvedConnector) -> Result<(), Failure> {
        self.record.notice = Some(found.summary.clone());
        if let connector::Connector::Container { engine, .. } = &found.connector {
            // Before it is there: whoever cleans up must know of it.
            self.record.container = Some(engine.clone());
            self.tell();
        }
        let sidecar = containers::sidecar(&self.record.pod, &self.folder)?;
        self.sidecar = Some(self.watch(SIDECAR, sidecar)?);
        let source = containers::source(&self.record.pod, &self.folder, &found.connector, &self.plan)?;
        self.source = Some(self.watch(SOURCE, source)?);
        self.record.started(SIDECAR);
        self.record.started(SOURCE);
        self.tell();
        Ok(())
    }

    /// Waits for the end of a container on a thread of its own.
    fn watch(&mut self, name: &'static str, mut child: Child) -> Result<Container, Failure> {
        let pid = child.id();
        // One that runs elsewhere is limited, and looked at, there.
        let here = name == SIDECAR || self.record.container.is_none();
        let limits = if here { containers::limits(&self.record.pod, name) } else { limits::Limits::default() };
        let group = limits::Group::make(self.folder.name(), name, limits);
        group.add(pid, limits);
        let container = Container { pid };
        let (events, folder) = (self.events.clone(), self.folder.clone());
        let elsewhere = self.record.container.clone().filter(|_| name == SOURCE);
        let usage = (name == SOURCE && here).then(|| Usage::of(pid, &folder.join("pipes")));
        if usage.is_some() {
            self.usage.clone_from(&usage);
        }
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                containers::wait_for_end(pid);
                if let Some(usage) = usage {
                    usage.last();
                }
                let status = child.wait();
                let ran_out = elsewhere.is_some_and(|tool| {
                    let state = tool.state(folder.name()).ok().flatten();
                    state.is_some_and(|state| tool.ran_out_of_memory(state, &folder.join("home")))
                });
                let used_too_much = group.has_killed() || ran_out;
                let exit = containers::exit(name, &status, used_too_much, &folder);
                events.send(Event::Ended(name, exit)).ok();
            })
            .map_err(|error| trouble("starting a thread for", self.folder.path(), &error))?;
        Ok(container)
    }

    fn ended(&mut self, name: &'static str, exit: &crate::pod::status::Exit) {
        let container = if name == SOURCE { &mut self.source } else { &mut self.sidecar };
        if let Some(container) = container.take() {
            // What a connector leaves running ends with it, as in a container.
            processes::kill_group(container.pid);
        }
        if name == SOURCE {
            self.usage = None;
            let sidecar: Vec<u32> = self.sidecar.iter().map(|container| container.pid).collect();
            if !sidecar.is_empty() {
                processes::kill_descendants(std::process::id(), &sidecar);
            }
        }
        self.record.ended(name, exit);
        self.tell();
    }

    /// Whether a container, or an installation, has not ended yet.
    fn lives(&self) -> bool {
        self.source.is_some()
            || self.sidecar.is_some()
            || self.finder.as_ref().is_some_and(|finder| !finder.is_finished())
    }

    /// Asks everything to end.
    fn end(&self) {
        self.stop.store(true, Ordering::SeqCst);
        for container in [&self.sidecar, &self.source].into_iter().flatten() {
            processes::signal(container.pid, Signal::TERM);
        }
    }

    fn grace(&self) -> Duration {
        let spec = self.record.pod.spec.as_ref();
        let seconds = spec.and_then(|spec| spec.termination_grace_period_seconds).unwrap_or_default();
        Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    }

    /// What nobody tells.
    fn look(&mut self) {
        if !self.secrets_read && self.folder.join("pipes").join(READY_FILE).exists() {
            // The sidecar has them in its memory, and the connector, which starts now, is none of those who may see them.
            self.secrets_read = true;
            if let Err(error) = std::fs::remove_dir_all(self.folder.join("secrets"))
                && error.kind() != ErrorKind::NotFound
            {
                tracing::warn!(%error, "the task's documents stay until its end");
            }
        }
        if let Some(usage) = &mut self.usage {
            usage.look();
        }
    }

    /// Kills what is left, and removes everything that has to do with the task.
    fn vanish(&mut self) {
        self.kill();
        if let Err(error) = self.store.forget(self.folder.name()) {
            tracing::error!(%error, "the record of the task stays");
        }
        self.clear();
    }

    /// The same, but for the record: who comes next has to tell the database how the task ended.
    fn orphaned(&mut self) {
        self.kill();
        // What the sidecar has said before counts.
        if self.record.failure.is_none() && self.record.runs(SIDECAR) {
            self.record.failure = Some(abandoned());
        }
        self.tell();
        self.clear();
    }

    fn kill(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(tool) = &self.record.container
            && let Err(error) = tool.remove(self.folder.name())
        {
            tracing::error!(error, "the container of the task stays");
        }
        // An installation removes what it has half made, which takes it a moment.
        let deadline = Instant::now() + STOP;
        while self.finder.as_ref().is_some_and(|finder| !finder.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        processes::kill_descendants(std::process::id(), &[]);
    }

    fn clear(&self) {
        limits::remove(self.folder.name());
        if let Err(error) = self.folder.remove() {
            tracing::error!(%error, "the folder of the task stays");
        }
    }

    fn tell(&self) {
        if let Err(error) = self.record.write(&self.file) {
            tracing::error!(%error, "the state of the task is not known to others");
        }
    }
}

/// The event of a request for the end of the task, if there is one.
fn request(folder: &Folder) -> Option<Event> {
    let file = folder.join(DELETE);
    let mut text = String::new();
    File::open(&file).and_then(|mut file| file.read_to_string(&mut text)).ok()?;
    std::fs::remove_file(&file).ok();
    Some(Event::Delete(text.trim().parse().ok().map(Duration::from_secs)))
}
