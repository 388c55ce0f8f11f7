//! What runs next to the connector: captures the connector's output and stores it.
//!
//! Its environment and files are those of the wire contract. Knows nothing of Kubernetes: it runs wherever the pipes and
//! the documents are.

pub mod crash;
pub mod documents;
pub mod lines;
mod log;
pub mod progress;
mod read;
mod result;
mod saved_states;
pub mod sink;
pub mod source;
mod stored_config;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use documents::{CONFIG, Documents};
use log::TaskLog;
use read::Read;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use source::{Pipes, Source, Stop, Stopped};
use stored_config::StoredConfig;
use url::Url;

pub use self::source::Settings as SourceSettings;
pub use self::streams::{CommitLimits, merge_key, stream_specs};
use crate::contract::{self, SidecarExit, variable};
use crate::db::{Db, Options, SpecKey, Target};
use crate::failure::{Class, Failure};
use crate::handover::Secrets;
use crate::host_rules::HostRules;
use crate::logging;
use crate::retry::Backoff;
use crate::secret::{self, Masker, Secret};
use crate::task::{Task, TaskKind};

/// How long the database may be unavailable during a task. Meanwhile the connector blocks on a full pipe.
const RETRY_TIMEOUT: Duration = Duration::from_mins(15);
/// How long the database may be unavailable at the start: then a wrong address is more likely than an outage.
const FIRST_RETRY_TIMEOUT: Duration = Duration::from_secs(20);

/// A task as the sidecar sees it.
pub struct Sidecar {
    /// The task.
    pub task: Task,
    /// The database of results.
    pub database_url: Secret,
    /// The schema for tables that other programs do not know.
    pub own_schema: String,
    /// The connector.
    pub source: SourceSettings,
    /// The folder of the compressed documents.
    pub secrets: PathBuf,
    /// Its content, where another process has passed it on instead.
    pub passed_on: Option<Secrets>,
    /// The hosts that the destination may be at; `None`: any.
    pub destination_hosts: Option<Arc<HostRules>>,
    /// The least level in `task_log`.
    pub db_log_level: String,
    /// When to commit rows without a state.
    pub commit: CommitLimits,
    /// The contract version of the controller; `None` if the controller is a foreign one.
    pub contract: Option<String>,
}

impl Sidecar {
    /// Runs until the task has ended. `terminated` is set by the signal handler. An error is a failure that could not be
    /// stored.
    pub fn run(self, terminated: Arc<AtomicBool>) -> Result<SidecarExit, Failure> {
        if let Some(version) = self.contract.as_deref().filter(|version| *version != contract::VERSION) {
            let text = format!("the controller implements contract {version}, the sidecar {}", contract::VERSION);
            return Err(Failure::new(Class::VersionMismatch, text));
        }
        let documents = match &self.passed_on {
            Some(secrets) => Documents::of(secrets),
            None => Documents::read(&self.secrets, &self.source.config),
        }?;
        let mut masker = documents.masker(None);
        let database = Masker::default();
        mask_database_url(&database, self.database_url.expose_secret());
        mask_own_log(&masker, &database);
        let exit = self.run_task(documents, terminated, &mut masker, &database);
        exit.map_err(|failure| log::mask_failure(&database, &log::mask_failure(&masker, &failure)))
    }

    /// `masker` is replaced by a better one once the connector's specification is known.
    fn run_task(
        self,
        mut documents: Documents,
        terminated: Arc<AtomicBool>,
        masker: &mut Masker,
        database: &Masker,
    ) -> Result<SidecarExit, Failure> {
        let on_term = if self.contract.is_some() { Stopped::Terminated } else { Stopped::Cancelled };
        let stop = Stop::new(terminated, on_term, self.task.timeout);
        let (exit, db, log);
        if self.task.kind == TaskKind::Spec {
            // The pipes first: the connector starts while the sidecar connects.
            let pipes = Pipes::create(&self.source, &documents)?;
            (db, log) = self.connect(&documents)?;
            *masker = log.masker();
            mask_own_log(masker, database);
            exit = result::run(&self.task, Source::start(pipes, &log, stop), None, &db, &log);
        } else {
            // The database first: it may hold a renewed configuration for the connector.
            (db, log) = self.connect(&documents)?;
            *masker = log.masker();
            mask_own_log(masker, database);
            if self.task.kind == TaskKind::Read {
                if self.contract.is_none() {
                    documents.filter_state(self.task.options.full_sync);
                }
                documents.add_global_state(&db, &self.task)?;
            }
            let stored_config = StoredConfig::restore(&db, &self.task, &mut documents, &log)?;
            let source = Source::start(Pipes::create(&self.source, &documents)?, &log, stop);
            exit = if self.task.kind == TaskKind::Read {
                let read = Read {
                    task: &self.task,
                    limits: self.commit,
                    destination_hosts: self.destination_hosts.as_ref(),
                    stored_config: &stored_config,
                    db: &db,
                    log: &log,
                };
                read.run(source, &documents)
            } else {
                result::run(&self.task, source, Some(&stored_config), &db, &log)
            };
        }
        log.finish();
        // Our own controller reads the outcome.
        let exit = exit.map(|exit| match exit {
            SidecarExit::Failed if self.contract.is_some() => SidecarExit::Finished,
            exit => exit,
        });
        if exit.is_ok()
            && let Err(error) = db.notify(&self.task.task_id)
        {
            // Clients that wait for the outcome also poll.
            tracing::debug!(%error, "cannot notify clients of the task's end");
        }
        exit
    }

    fn connect(&self, documents: &Documents) -> Result<(Db, TaskLog), Failure> {
        let target = Target::parse(&self.database_url, variable::DATABASE_URL)?;
        let application_name = format!("syncctl {}", self.task.kind);
        let own_schema = self.own_schema.clone();
        let options = Options { application_name, pool_size: 3, retry_timeout: RETRY_TIMEOUT, own_schema };
        let db = open(&target, &options)?;
        db.find_own_schema()?;
        let schema = documents.get(CONFIG).and_then(|_| stored_schema(&db, &self.task));
        let masker = documents.masker(schema);
        let log_db = db.clone();
        let log = TaskLog::start(&self.task, masker, &self.db_log_level, move |rows| log_db.insert_logs(rows));
        Ok((db, log))
    }
}

/// Masks what the Secrets of a task hold, as its sidecar does.
pub fn masker_of(db: &Db, task: &Task, secrets: &BTreeMap<String, Vec<u8>>) -> io::Result<Masker> {
    let masker = Documents::join(secrets)?.masker(stored_schema(db, task));
    if let Some(url) = secrets.get(variable::DATABASE_URL) {
        mask_database_url(&masker, &String::from_utf8_lossy(url));
    }
    Ok(masker)
}

/// Masks the secrets of the documents and of the database in this process's own log.
fn mask_own_log(masker: &Masker, database: &Masker) {
    let (masker, database) = (masker.clone(), database.clone());
    logging::mask_with(Box::new(move |text| database.mask_own(&masker.mask_own(text)).into_owned()));
}

/// Masks the password of the database of results.
fn mask_database_url(masker: &Masker, url: &str) {
    let password = Url::parse(url).ok().and_then(|url| url.password().map(str::to_owned));
    masker.add_document("the database URL", &json!({"url": url, "password": password}).to_string());
}

/// The JSON Schema of the connector's configuration, if its specification is stored.
fn stored_schema(db: &Db, task: &Task) -> Option<Value> {
    let stored = db.spec(&SpecKey::of(task)).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read which fields the specification marks as secret");
        None
    });
    let mut spec = secret::parse_value(&stored?.specs?)?;
    spec.get_mut("connectionSpecification").map(Value::take)
}

/// Opens the database, which may still be starting.
fn open(target: &Target, options: &Options) -> Result<Db, Failure> {
    let mut retry = Backoff::new(Duration::from_millis(100), Duration::from_secs(2)).within(FIRST_RETRY_TIMEOUT);
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
