//! Follows all tasks of the namespace while this process leads: one thread decides, some workers act.
//!
//! A term as leader begins with a complete list of Pods, so it continues whatever an earlier process left unfinished: a
//! Pod that ended meanwhile, or a recorded outcome whose Pod still exists. The deciding thread never waits for the
//! database or the API server.

mod maintenance;
mod shared;
mod then_run;
mod tracked_tasks;

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;

pub use shared::{Config, Observer, Role};
pub use tracked_tasks::{Durations, Limits, PHASES};

use crate::controller::lifecycle::Termination;
use crate::controller::outcome::{self, Conclusion};
use crate::controller::start_log::{LogWriter, Place};
use crate::controller::{cleanup, unrecorded};
use crate::failure::Failure;
use crate::pod::{Leadership, PodError, PodEvent, PodRef, Scope, Subscription, TaskPod};
use maintenance::Maintenance;
use shared::{Message, Shared, Snapshot};
use tracked_tasks::{Action, Job, TrackedTasks};

/// How long the lease lasts: another process takes over no later than this after the last renewal.
const LEASE: Duration = Duration::from_secs(10);
/// Jobs at a time. Each waits for a database and an API server, so more than there are processors.
const WORKERS: usize = 8;
/// Requests to the console at a time, which must not delay other jobs.
const CONSOLE_WORKERS: usize = 4;
/// How often deadlines are checked. They are seconds and minutes.
const TICK: Duration = Duration::from_millis(250);
/// The same while there is no Pod.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// A watch sends an event at each resync. One that is silent for this much longer has failed.
const WATCH_SILENCE: Duration = Duration::from_mins(5);

/// A running reconciler.
pub struct Reconciler {
    shared: Arc<Shared>,
    messages: Sender<Message>,
    thread: JoinHandle<()>,
    maintenance: Maintenance,
}

impl Reconciler {
    /// Starts the threads and takes part in the leader election.
    pub fn start(config: Config, observer: Arc<dyn Observer>) -> Self {
        let shared = Arc::new(Shared::new(config, observer));
        let (messages, inbox) = mpsc::channel();
        let place = Place::of(&shared.config.backend);
        let reconcile_loop = ReconcileLoop {
            shared: Arc::clone(&shared),
            messages: messages.clone(),
            jobs: start_workers(&shared, &messages, "reconciler-worker", WORKERS),
            console_jobs: start_workers(&shared, &messages, "console-worker", CONSOLE_WORKERS),
            log: LogWriter::start(&shared.config.db, &shared.config.log_level),
            place,
            term: None,
            terms: 0,
        };
        let thread = shared.spawn("reconciler", move || reconcile_loop.run(&inbox));
        let sender = messages.clone();
        let on_event = Box::new(move |leadership: Leadership| drop(sender.send(Message::Leadership(leadership))));
        let election = shared.config.backend.coordination.join_election(&shared.config.identity, LEASE, on_event);
        shared.set_election(Some(election));
        let maintenance = Maintenance::start(&shared, &messages);
        Self { shared, messages, thread, maintenance }
    }

    /// Stops the threads and releases the lease, so that another process can lead at once.
    pub fn stop(self) {
        let Self { shared, messages, thread, maintenance } = self;
        drop(maintenance);
        messages.send(Message::Stop).ok();
        // The observer knows of a panic.
        thread.join().ok();
        if let Some(election) = shared.set_election(None) {
            election.release();
        }
    }
}

/// A job and the term in which it was handed out.
type TermJob = (u64, Job);

/// Starts the workers; they end when the returned sender is dropped.
fn start_workers(
    shared: &Arc<Shared>,
    messages: &Sender<Message>,
    name: &'static str,
    count: usize,
) -> Sender<TermJob> {
    let (jobs, inbox) = mpsc::channel::<TermJob>();
    let inbox = Arc::new(Mutex::new(inbox));
    for _ in 0..count {
        let (worker, inbox, messages) = (Arc::clone(shared), Arc::clone(&inbox), messages.clone());
        shared.spawn(name, move || {
            loop {
                let job = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok((term, job)) = job else { return };
                let succeeded = worker.leads() && run_job(&worker, &job);
                if messages.send(Message::JobDone { term, pod: job.pod, succeeded }).is_err() {
                    return;
                }
            }
        });
    }
    jobs
}

/// Runs one job; returns whether it succeeded.
fn run_job(shared: &Shared, job: &Job) -> bool {
    let result = match &job.action {
        Action::ThenRun { give_up_at, .. } => match then_run::ask(shared, job, Instant::now() >= *give_up_at) {
            Ok(is_done) => return is_done,
            Err(failure) => Err(failure),
        },
        Action::RecordOutcome { termination, ended_at, durations } => record_outcome(shared, job, termination.clone())
            .map(|recorded| {
                shared.observer.task_finished(job.task.kind, recorded.code, *durations);
                if let Some(ended_at) = ended_at.filter(|_| !recorded.by_sidecar) {
                    shared.observer.outcome_recorded(ended_at.elapsed());
                }
            }),
        Action::DeletePod { grace } => delete_pod(shared, &job.pod, *grace).map_err(Failure::from),
        Action::DeleteSecrets => delete_secrets(shared, &job.pod).map_err(Failure::from),
    };
    if let Err(error) = &result {
        tracing::warn!(pod = job.pod.name, task = job.task.task_id, %error, "cannot end a task; retrying");
    }
    result.is_ok()
}

/// Without a grace period the Secrets are deleted at once, else when the Pod is gone.
fn delete_pod(shared: &Shared, pod: &PodRef, grace: Option<Duration>) -> Result<(), PodError> {
    shared.config.backend.launcher.delete_exact(pod, grace)?;
    if grace == Some(Duration::ZERO) { delete_secrets(shared, pod) } else { Ok(()) }
}

fn delete_secrets(shared: &Shared, pod: &PodRef) -> Result<(), PodError> {
    shared.config.backend.secrets.as_ref().map_or(Ok(()), |secrets| secrets.delete_secrets_of(pod))
}

struct Recorded {
    /// `SUCCESS` or the code of a failure class.
    code: &'static str,
    by_sidecar: bool,
}

fn record_outcome(shared: &Shared, job: &Job, mut termination: Termination) -> Result<Recorded, Failure> {
    let Config { backend, db, .. } = &shared.config;
    // A task that is closed is not found again: from here on the cluster deletes the Secrets with the Pod, whatever happens to
    // this process.
    if let Some(secrets) = &backend.secrets
        && let Err(error) = secrets.adopt_secrets(&job.pod)
    {
        tracing::warn!(pod = job.pod.name, %error, "the secrets have no owner");
    }
    termination.explain(|| backend.warnings(&job.pod.name));
    let conclusion = match outcome::load(db, &job.task)? {
        Some(result) => Conclusion { result, by_sidecar: true },
        None => match unrecorded::outcome(backend, db, &job.task, &job.pod, &termination)? {
            Ok(outcome) => Conclusion { result: Ok(outcome), by_sidecar: true },
            Err(failure) => outcome::conclude(db, &job.task, &failure)?,
        },
    };
    let by_sidecar = conclusion.by_sidecar;
    let failure = conclusion.result.map_or_else(Some, |outcome| outcome.failure());
    let code = failure.as_ref().map_or("SUCCESS", |failure| failure.class.code());
    let (pod, kind, task) = (&job.pod.name, job.task.kind, &job.task.task_id);
    let error = failure.map(|failure| failure.text);
    tracing::info!(pod, %kind, task, outcome = code, error, by_sidecar, "task ended");
    Ok(Recorded { code, by_sidecar })
}

/// The deciding thread.
struct ReconcileLoop {
    shared: Arc<Shared>,
    messages: Sender<Message>,
    jobs: Sender<TermJob>,
    console_jobs: Sender<TermJob>,
    log: LogWriter,
    place: Place,
    term: Option<Term>,
    terms: u64,
}

/// A period in which this process leads.
struct Term {
    number: u64,
    tasks: TrackedTasks,
    /// Pods of one-off commands, which follow their own tasks, by name.
    one_off_pods: HashMap<String, TaskPod>,
    is_synced: bool,
    last_event: Instant,
    /// Ends with the term.
    _watch: Subscription,
}

impl ReconcileLoop {
    /// Runs until [`Message::Stop`].
    fn run(mut self, inbox: &Receiver<Message>) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            match inbox.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(message) => self.handle(message),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= next_tick {
                let is_idle = self.tick();
                next_tick = Instant::now() + if is_idle { IDLE_TICK } else { TICK };
            }
        }
        if let Some(term) = self.term.filter(|_| self.shared.config.backend.shutdown.is_none()) {
            tracing::info!("shutting down; another process takes over {} running tasks", term.tasks.running());
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Stop => {}
            Message::Leadership(leadership) => self.handle_leadership(leadership),
            Message::Watch(term, event) => {
                if self.term.as_ref().is_some_and(|current| current.number == term) {
                    self.handle_event(event);
                }
            }
            Message::JobDone { term: number, pod, succeeded } => {
                // A job of an earlier term does not concern what this term handed out for the same Pod.
                let Some(term) = self.term.as_mut().filter(|term| term.number == number) else { return };
                if succeeded {
                    let next = term.tasks.job_succeeded(&pod.name, &pod.uid, Instant::now());
                    self.hand_out(next);
                } else {
                    term.tasks.job_failed(&pod.name, &pod.uid, Instant::now());
                }
            }
            Message::Snapshot(reply) => {
                if let Some(term) = self.term.as_ref().filter(|term| term.is_synced) {
                    // The caller may have stopped waiting.
                    reply.send(Snapshot { pods: term.tasks.pods(), with_rows: term.tasks.with_rows() }).ok();
                }
            }
        }
    }

    fn handle_leadership(&mut self, leadership: Leadership) {
        match leadership {
            Leadership::Leads { term } => {
                tracing::info!(term, "this process leads");
                self.begin_term();
            }
            Leadership::Follows { holder } => {
                tracing::info!(holder, "another process leads");
                self.end_term(if holder.is_some() { Role::Follower } else { Role::Candidate });
            }
            Leadership::Failed(error) => tracing::warn!(%error, "cannot renew or acquire the lease; retrying"),
        }
    }

    fn begin_term(&mut self) {
        self.terms += 1;
        let number = self.terms;
        let Config { backend, resync, limits, .. } = &self.shared.config;
        let messages = self.messages.clone();
        // Without a receiver the process is ending.
        let on_event = Box::new(move |event| drop(messages.send(Message::Watch(number, event))));
        let watch = backend.watcher.watch(Scope::All, *resync, on_event);
        self.term = Some(Term {
            number,
            tasks: TrackedTasks::new(*limits),
            one_off_pods: HashMap::new(),
            is_synced: false,
            last_event: Instant::now(),
            _watch: watch,
        });
        self.shared.observer.role(Role::Leader { is_synced: false });
    }

    fn end_term(&mut self, role: Role) {
        self.term = None;
        self.shared.observer.role(role);
        self.shared.observer.pods([0; PHASES.len()]);
    }

    fn handle_event(&mut self, event: PodEvent) {
        let Some(term) = &mut self.term else { return };
        let now = (Instant::now(), Timestamp::now());
        term.last_event = now.0;
        let job = match event {
            PodEvent::Updated(pod) => match &pod.task {
                Err(error) => {
                    tracing::warn!(pod = pod.id.name, error, "cannot read the description of a task");
                    None
                }
                Ok(_) if pod.owner.is_some() => {
                    term.one_off_pods.insert(pod.id.name.clone(), *pod);
                    None
                }
                Ok(task) => {
                    let job = term.tasks.observe(&pod, task, now);
                    if let Some(start_log) = term.tasks.start_log(&pod.id) {
                        self.log.write(start_log.observe(&pod, task, &self.place));
                    }
                    job
                }
            },
            PodEvent::Deleted { name, uid } => {
                term.one_off_pods.remove(&name);
                term.tasks.deleted(&name, &uid)
            }
            PodEvent::Synced => {
                if !term.is_synced {
                    tracing::info!(tasks = term.tasks.pods().len(), "listed all tasks");
                }
                term.is_synced = true;
                term.tasks.synced();
                self.shared.observer.role(Role::Leader { is_synced: true });
                self.adopt_abandoned(now);
                None
            }
            PodEvent::Failed(error) => {
                tracing::warn!(%error, "cannot watch the tasks; retrying");
                None
            }
        };
        self.hand_out(job);
    }

    /// Terminates the Pods of one-off commands that were killed.
    fn adopt_abandoned(&mut self, now: (Instant, Timestamp)) {
        let Some(term) = &mut self.term else { return };
        let mut jobs = Vec::new();
        for pod in term.one_off_pods.values().filter(|pod| cleanup::is_abandoned_pod(pod, now.1)) {
            let Ok(task) = &pod.task else { continue };
            jobs.push(term.tasks.adopt(pod, task, cleanup::termination(pod), now));
        }
        for job in jobs {
            self.hand_out(job);
        }
    }

    /// Hands out the jobs that are due; returns whether no Pod is tracked.
    fn tick(&mut self) -> bool {
        // The lease expires without an event when the API server does not answer, and a late renewal revives it.
        match (self.term.is_some(), self.shared.leads()) {
            (true, false) => {
                tracing::warn!("the lease was not renewed in time");
                self.end_term(Role::Candidate);
            }
            (false, true) => self.begin_term(),
            _ => {}
        }
        let silence = self.shared.config.resync + WATCH_SILENCE;
        if self.term.as_ref().is_some_and(|term| term.last_event.elapsed() > silence) {
            tracing::error!("the watch of the tasks has stopped, which is a bug; starting a new one");
            self.begin_term();
        }
        let Some(term) = &mut self.term else { return true };
        let jobs = term.tasks.due(Instant::now());
        let counts = term.tasks.counts();
        self.shared.observer.pods(counts);
        for job in jobs {
            self.hand_out(Some(job));
        }
        counts.iter().all(|count| *count == 0)
    }

    fn hand_out(&self, job: Option<Job>) {
        let Some(job) = job else { return };
        let queue = if matches!(job.action, Action::ThenRun { .. }) { &self.console_jobs } else { &self.jobs };
        if queue.send((self.terms, job)).is_err() {
            unreachable!("the workers live as long as this sender");
        }
    }
}
