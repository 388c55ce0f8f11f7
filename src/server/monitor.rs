//! The status-check loop: one thread that hears of every Pod and decides, and a few that do what it decides.
//!
//! It runs in the process that holds the Lease. A term begins with a complete list, so whatever an earlier process left
//! (a Pod that ended meanwhile, an outcome that is recorded while its Pod is still there) is taken up where it was.
//! Deciding never waits: neither for the database nor for the API server.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::app::App;
use super::fleet::{Fleet, Job, Limits, Work};
use super::metrics::PHASES;
use crate::controller::lifecycle::Ending;
use crate::controller::{cleanup, outcome};
use crate::failure::Failure;
use crate::pod::{Event, Guard, Leadership, Owned, PodError};

/// What the monitor hears.
pub enum Signal {
    /// Of the watch of a term.
    Pods(u64, Event),
    /// The Lease changed hands.
    Leadership(Leadership),
    /// A job has been done, or not.
    Job {
        /// The term in which it was handed out.
        term: u64,
        /// The Pod.
        pod: Arc<Owned>,
        /// Whether it worked.
        done: bool,
    },
    /// Somebody wants to know what there is; answered only while this process leads and has seen a whole list.
    Census(Sender<Census>),
    /// The process ends.
    Stop,
}

/// What the fleet is at one moment.
pub struct Census {
    /// By name.
    pub pods: HashMap<String, Arc<Owned>>,
    /// The Pods of reads, by the id of the task.
    pub reads: HashMap<String, Arc<Owned>>,
}

/// A job, and the term in which it was handed out.
type TermJob = (u64, Job);

/// How many jobs are done at a time: each waits for a database and an API server, so more than there are processors.
const WORKERS: usize = 8;
/// How often it is looked what has become due. Deadlines are seconds and minutes.
const TICK: Duration = Duration::from_millis(250);
/// A watch tells at each resync that it lives. One that says nothing for so much longer never will again.
const SILENCE: Duration = Duration::from_mins(5);
/// While there is no Pod nothing becomes due.
const IDLE_TICK: Duration = Duration::from_secs(1);

/// Starts the workers; they end when the sender is dropped.
pub fn start_workers(app: &Arc<App>, signals: &Sender<Signal>) -> Sender<TermJob> {
    let (jobs, inbox) = mpsc::channel::<TermJob>();
    let inbox = Arc::new(Mutex::new(inbox));
    for _ in 0..WORKERS {
        let (app, inbox, signals) = (Arc::clone(app), Arc::clone(&inbox), signals.clone());
        Arc::clone(&app).thread("outcomes", move || {
            loop {
                let job = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok((term, job)) = job else { return };
                let done = app.leads() && work(&app, &job);
                if signals.send(Signal::Job { term, pod: job.pod, done }).is_err() {
                    return;
                }
            }
        });
    }
    jobs
}

/// Does one job and says whether it worked.
fn work(app: &App, job: &Job) -> bool {
    let result = match &job.work {
        Work::Record { ending, ended, took } => record_outcome(app, job, ending.clone()).map(|outcome| {
            app.metrics.task_finished(job.task.kind, outcome.code, *took);
            if let Some(ended) = ended.filter(|_| outcome.is_ours) {
                app.metrics.outcome_written(ended.elapsed());
            }
        }),
        Work::Delete { grace } => delete(app, &job.pod, *grace).map_err(Failure::from),
        Work::Clear => app.cluster.delete_secrets(&job.pod).map_err(Failure::from),
    };
    match result {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(pod = job.pod.name, task = job.task.task_id, %error, "will be tried again");
            false
        }
    }
}

/// What is not given time goes with its Secrets at once; the others follow when the Pod has gone.
fn delete(app: &App, pod: &Owned, grace: Option<Duration>) -> Result<(), PodError> {
    app.cluster.delete_uid(&pod.name, &pod.uid, grace)?;
    if grace == Some(Duration::ZERO) { app.cluster.delete_secrets(pod) } else { Ok(()) }
}

struct Recorded {
    /// SUCCESS or a class of failure.
    code: &'static str,
    /// The sidecar had written nothing.
    is_ours: bool,
}

fn record_outcome(app: &App, job: &Job, mut ending: Ending) -> Result<Recorded, Failure> {
    ending.explain(|| app.cluster.warnings(&job.pod.name));
    let db = app.patient_db()?;
    let verdict = outcome::conclude(db, &job.task, &ending.failure)?;
    let failure = match &verdict.outcome {
        Ok(outcome) => outcome.failure(),
        Err(failure) => Some(failure.clone()),
    };
    let code = failure.as_ref().map_or("SUCCESS", |failure| failure.class.code());
    let (pod, kind, task) = (&job.pod.name, job.task.kind, &job.task.task_id);
    let error = failure.map(|failure| failure.text);
    tracing::info!(pod, %kind, task, outcome = code, error, by_sidecar = !verdict.is_ours, "a task has ended");
    Ok(Recorded { code, is_ours: verdict.is_ours })
}

/// The loop.
pub struct Monitor {
    app: Arc<App>,
    signals: Sender<Signal>,
    jobs: Sender<TermJob>,
    limits: Limits,
    term: Option<Term>,
    terms: u64,
}

/// A time in which this process leads.
struct Term {
    number: u64,
    fleet: Fleet,
    /// Pods of one-off commands: theirs as long as they live.
    strangers: HashMap<String, Owned>,
    /// Whether a whole list was seen.
    listed: bool,
    /// When the watch last said something.
    heard: Instant,
    /// Ends with the term.
    _watch: Guard,
}

impl Monitor {
    /// Ready to run.
    pub fn new(app: &Arc<App>, signals: &Sender<Signal>) -> Self {
        let grace = Duration::from_secs(u64::from(app.settings.pod.grace_seconds));
        Self {
            app: Arc::clone(app),
            signals: signals.clone(),
            jobs: start_workers(app, signals),
            limits: Limits { init_timeout: app.settings.init_timeout, grace },
            term: None,
            terms: 0,
        }
    }

    /// Runs until [`Signal::Stop`].
    pub fn run(mut self, inbox: &Receiver<Signal>) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            match inbox.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(signal) => self.hear(signal),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= next_tick {
                let empty = self.tick();
                next_tick = Instant::now() + if empty { IDLE_TICK } else { TICK };
            }
        }
    }

    fn hear(&mut self, signal: Signal) {
        match signal {
            Signal::Stop => {}
            Signal::Leadership(leadership) => self.leadership(leadership),
            Signal::Pods(term, event) => {
                if self.term.as_ref().is_some_and(|current| current.number == term) {
                    self.pods(event);
                }
            }
            Signal::Job { term: number, pod, done } => {
                // One of an earlier term says nothing about what this term has handed out for the same Pod.
                let Some(term) = self.term.as_mut().filter(|term| term.number == number) else { return };
                if done {
                    let job = term.fleet.done(&pod.name, &pod.uid, Instant::now());
                    self.give(job);
                } else {
                    term.fleet.failed(&pod.name, &pod.uid, Instant::now());
                }
            }
            Signal::Census(answer) => {
                if let Some(term) = self.term.as_ref().filter(|term| term.listed) {
                    // Who asked may have gone.
                    answer.send(Census { pods: term.fleet.pods(), reads: term.fleet.reads() }).ok();
                }
            }
        }
    }

    fn leadership(&mut self, leadership: Leadership) {
        match leadership {
            Leadership::Leads { term } => {
                tracing::info!(term, "this process holds the lease and runs the status-check loop");
                self.begin();
            }
            Leadership::Follows { holder } => {
                tracing::info!(holder, "another process holds the lease");
                self.end();
                self.app.ready.follows(holder.is_some());
            }
            Leadership::Failed(error) => tracing::warn!(%error, "the lease could not be looked after"),
        }
    }

    /// Begins a term with nothing known.
    fn begin(&mut self) {
        self.terms += 1;
        let number = self.terms;
        let signals = self.signals.clone();
        let tell = Box::new(move |event| {
            // Without a monitor the process ends.
            signals.send(Signal::Pods(number, event)).ok();
        });
        let watch = self.app.cluster.watch(self.app.settings.status_check, tell);
        let fleet = Fleet::new(self.limits);
        self.term = Some(Term {
            number,
            fleet,
            strangers: HashMap::new(),
            listed: false,
            heard: Instant::now(),
            _watch: watch,
        });
        self.app.ready.follows(false);
        self.app.ready.listed(false);
        self.app.metrics.leads(true);
    }

    /// What the next holder does is not ours to disturb.
    fn end(&mut self) {
        self.term = None;
        self.app.ready.listed(false);
        self.app.metrics.leads(false);
        self.app.metrics.pods([0; PHASES.len()]);
    }

    fn pods(&mut self, event: Event) {
        let Some(term) = &mut self.term else { return };
        let now = (Instant::now(), Timestamp::now());
        term.heard = now.0;
        let job = match event {
            Event::Seen(pod) => match &pod.task {
                Err(error) => {
                    tracing::warn!(pod = pod.name, error, "the annotations of the pod tell no task");
                    None
                }
                Ok(_) if pod.owner.is_some() => {
                    term.strangers.insert(pod.name.clone(), *pod);
                    None
                }
                Ok(task) => term.fleet.seen(&pod, task, now),
            },
            Event::Gone { name, uid } => {
                term.strangers.remove(&name);
                term.fleet.gone(&name, &uid)
            }
            Event::Listed => {
                if !term.listed {
                    tracing::info!(pods = term.fleet.pods().len(), "the pods of the namespace are known");
                }
                term.listed = true;
                term.fleet.listed();
                self.app.ready.listed(true);
                self.sweep(now);
                None
            }
            Event::Failed(error) => {
                tracing::warn!(%error, "the pods are not being watched for the moment");
                None
            }
        };
        self.give(job);
    }

    /// Pods of one-off commands that were killed.
    fn sweep(&mut self, now: (Instant, Timestamp)) {
        let Some(term) = &mut self.term else { return };
        let abandoned: Vec<Owned> =
            term.strangers.values().filter(|pod| cleanup::is_abandoned(pod, now.1)).cloned().collect();
        let mut jobs = Vec::new();
        for pod in abandoned {
            let Ok(task) = &pod.task else { continue };
            jobs.push(term.fleet.abandon(&pod, task, cleanup::ending(&pod), now));
        }
        for job in jobs {
            self.give(job);
        }
    }

    /// Hands out what has become due; says whether there is nothing to look after.
    fn tick(&mut self) -> bool {
        // A term ends by itself when the API server does not answer, and goes on if it answers just in time: neither is
        // told to us in this moment.
        match (self.term.is_some(), self.app.leads()) {
            (true, false) => {
                tracing::warn!("the lease was not renewed in time");
                self.end();
            }
            (false, true) => self.begin(),
            _ => {}
        }
        let silence = self.app.settings.status_check + SILENCE;
        if self.term.as_ref().is_some_and(|term| term.heard.elapsed() > silence) {
            tracing::error!("the watch of the pods has died: this is a bug; a new one begins");
            self.begin();
        }
        let Some(term) = &mut self.term else { return true };
        let jobs = term.fleet.due(Instant::now());
        let counts = term.fleet.counts();
        self.app.metrics.pods(counts);
        for job in jobs {
            self.give(Some(job));
        }
        counts.iter().all(|count| *count == 0)
    }

    fn give(&self, job: Option<Job>) {
        if let Some(job) = job
            && self.jobs.send((self.terms, job)).is_err()
        {
            unreachable!("the workers live as long as this sender");
        }
    }
}
