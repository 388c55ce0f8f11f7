//! What runs beside the connector: it captures what the connector prints and writes it where it belongs.
//!
//! The environment and the files are the wire contract's. Knows nothing of Kubernetes: the same program runs wherever
//! the pipes and the documents are.

#[cfg(test)]
mod checkpoint_tests;
mod documents;
mod kept;
mod log;
mod metrics;
pub mod pipes;
mod plan;
mod read;
mod reporter;
mod result;
pub mod sink;
mod source;
mod streams;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use documents::{CONFIG, Documents, Maskers};
use kept::Kept;
use log::TaskLog;
use serde_json::Value;
use source::Source;
pub use streams::CommitLimits;

use crate::contract;
use crate::db::{Db, Options, SpecKey, Target};
use crate::failure::{Class, Failure};
use crate::retry::Backoff;
use crate::secret::Secret;
use crate::task::{Task, TaskKind};

/// How long the database may be away in the middle of a task. Meanwhile the connector waits at a full pipe.
const PATIENCE: Duration = Duration::from_mins(15);
/// How long it may be away before anything has begun: then a wrong address is more likely than an outage.
const FIRST_PATIENCE: Duration = Duration::from_secs(20);

/// The sidecar's side of the contract.
pub struct Sidecar {
    /// The task, as the environment tells it.
    pub task: Task,
    /// The database of results.
    pub database_url: Secret,
    /// The FIFO of the connector's stdout.
    pub stdout: PathBuf,
    /// The FIFO of its stderr.
    pub stderr: PathBuf,
    /// Where the documents are mounted.
    pub secrets: PathBuf,
    /// Where the connector looks for what it may see.
    pub config: PathBuf,
    /// The least level in `task_log`.
    pub db_log_level: String,
    /// How long to wait for a connector that does not start.
    pub init_timeout: Duration,
    /// How long the connector may be silent.
    pub silence: Duration,
    /// When rows are committed though the connector has sent no state.
    pub commit: CommitLimits,
    /// The controller's version of the contract; absent when the controller is not ours.
    pub contract: Option<String>,
}

/// How the sidecar ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The rows tell everything.
    Done,
    /// The connector was killed from outside: the controller knows more.
    LeavesVerdict,
}

/// Says whether to stop, and why.
pub struct Stop {
    terminated: Arc<AtomicBool>,
    deadline: Instant,
}

/// Why a task stops before the connector has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// TERM: somebody cancels, or deletes the Pod.
    Cancelled,
    /// The task ran longer than it may.
    TimeExceeded,
}

impl Stop {
    /// `terminated` is set by the signal handler.
    pub fn new(terminated: Arc<AtomicBool>, timeout: Duration) -> Self {
        let now = Instant::now();
        // A timeout beyond what the clock can hold is none.
        let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_hours(10 * 365 * 24));
        Self { terminated, deadline }
    }

    /// Whether to stop now. In the middle of a run of lines (`busy`) the clock is not asked.
    pub fn reason(&self, busy: bool) -> Option<Stopped> {
        if self.terminated.load(Ordering::Relaxed) {
            return Some(Stopped::Cancelled);
        }
        (!busy && Instant::now() >= self.deadline).then_some(Stopped::TimeExceeded)
    }
}

impl Sidecar {
    /// Runs beside the connector until the task has ended. An error is what could not be written into any row.
    pub fn run(self, terminated: &Arc<AtomicBool>) -> Result<End, Failure> {
        if let Some(theirs) = self.contract.as_deref().filter(|theirs| *theirs != contract::VERSION) {
            let text = format!("the controller speaks contract {theirs}, this sidecar {}", contract::VERSION);
            return Err(Failure::new(Class::VersionMismatch, text));
        }
        let mut documents = Documents::read(&self.secrets)?;
        let maskers = documents.maskers();
        let stop = Stop::new(Arc::clone(terminated), self.task.timeout);
        let (end, db, log) = if self.task.kind == TaskKind::Read {
            // The connector may have to start with another configuration than the caller's: so the database comes first.
            let (db, log) = self.connect(&documents, &maskers)?;
            let kept = Kept::restore(&db, &self.task, &mut documents, &log)?;
            let source = Source::prepare(&self, &documents, &maskers.errors)?;
            let read = read::Read { task: &self.task, limits: self.commit, kept: &kept, db: &db, log: &log };
            (read::run(read, source, &documents, &stop), db, log)
        } else {
            // The pipes come first: the connector starts while we connect.
            let source = Source::prepare(&self, &documents, &maskers.errors)?;
            let (db, log) = self.connect(&documents, &maskers)?;
            (result::run(&self.task, source, &db, &log, &stop), db, log)
        };
        log.finish();
        if end.is_ok() {
            // Only a hint to whoever waits: the rows are the truth.
            if let Err(error) = db.notify(&self.task.task_id) {
                tracing::debug!(%error, "nobody is told that the task has ended");
            }
        }
        end
    }

    fn connect(&self, documents: &Documents, maskers: &Maskers) -> Result<(Db, TaskLog), Failure> {
        let target = Target::parse(&self.database_url, "DATABASE_URL")?;
        let name = format!("syncctl {}", self.task.kind);
        let db = open(&target, &Options { application_name: name, pool_size: 3, retry_timeout: PATIENCE })?;
        if let Some(config) = documents.get(CONFIG).and_then(|config| serde_json::from_str(config).ok())
            && let Some(schema) = stored_schema(&db, &self.task)
        {
            maskers.learn_marked(&config, &schema);
        }
        let log = TaskLog::start(db.clone(), &self.task, maskers.clone(), &self.db_log_level);
        Ok((db, log))
    }
}

/// The JSON Schema of the connector's configuration, if its specification was ever asked for.
fn stored_schema(db: &Db, task: &Task) -> Option<Value> {
    let stored = db.spec(&SpecKey::of(task)).unwrap_or_else(|error| {
        tracing::warn!(%error, "what the specification marks as secret is not known");
        None
    });
    let mut spec: Value = serde_json::from_str(&stored?.specs?).ok()?;
    spec.get_mut("connectionSpecification").map(Value::take)
}

/// Opens the database; one that is just starting has a moment.
fn open(target: &Target, options: &Options) -> Result<Db, Failure> {
    let mut retry = Backoff::new(Duration::from_millis(100), Duration::from_secs(2)).within(FIRST_PATIENCE);
    loop {
        match Db::open(target.clone(), options.clone()) {
            Ok(db) => return Ok(db),
            Err(error) if error.is_transient() && retry.wait() => {
                tracing::warn!(%error, "the database does not answer; trying again");
            }
            Err(error) => return Err(error.into()),
        }
    }
}
