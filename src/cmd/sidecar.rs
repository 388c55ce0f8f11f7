//! `syncctl sidecar`: runs in the task's Pod. Its arguments are the environment that the wire contract names.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::contract;
use crate::failure::{Class, Failure};
use crate::secret::Secret;
use crate::sidecar::{CommitLimits, End, Sidecar};
use crate::task::{self, Image, ReadOptions, Task, TaskKind};

/// Capture a connector's output; runs in the task's Pod
///
/// Everything it needs comes from the environment that `syncctl` gives the Pod.
#[derive(Debug, clap::Args)]
pub struct SidecarArgs {
    /// What the connector was asked to do: spec, check, discover or read
    #[arg(long, env = "COMMAND", hide_env_values = true)]
    command: Option<String>,
    /// FIFO of the connector's stdout
    #[arg(long, env = "STDOUT_PIPE_FILE", default_value = "/pipes/stdout", hide_env_values = true)]
    stdout_pipe_file: PathBuf,
    /// FIFO of the connector's stderr
    #[arg(long, env = "STDERR_PIPE_FILE", default_value = "/pipes/stderr", hide_env_values = true)]
    stderr_pipe_file: PathBuf,
    /// Folder of the task's compressed documents
    #[arg(long, env = "SYNCCTL_SECRETS_DIR", default_value = contract::SECRETS_DIR, hide_env_values = true)]
    secrets_dir: PathBuf,
    /// Folder where the connector looks for its documents
    #[arg(long, env = "SYNCCTL_CONFIG_DIR", default_value = contract::CONFIG_DIR, hide_env_values = true)]
    config_dir: PathBuf,
    /// Where its last words go when it can write to no database
    #[arg(long, env = "SYNCCTL_TERMINATION_LOG", default_value = contract::TERMINATION_LOG, hide_env_values = true)]
    termination_log: PathBuf,
    /// What marks a process of a task that runs on this machine
    #[arg(long, hide = true)]
    mark: Option<String>,
    /// Postgres database of results
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// When the task was accepted (RFC 3339)
    #[arg(long, env = "STARTED_AT", hide_env_values = true)]
    started_at: Option<String>,
    /// Connector image without its version
    #[arg(long, env = "PACKAGE", hide_env_values = true, default_value = "")]
    package: String,
    /// Its version
    #[arg(long, env = "PACKAGE_VERSION", hide_env_values = true, default_value = "")]
    package_version: String,
    /// Its type
    #[arg(long, env = "CONNECTOR_TYPE", hide_env_values = true, default_value = task::CONNECTOR_TYPE_AIRBYTE)]
    connector_type: String,
    /// Key of the result of check and discover
    #[arg(long, env = "STORAGE_KEY", hide_env_values = true, default_value = "")]
    storage_key: String,
    /// The sync of a read
    #[arg(long, env = "SYNC_ID", hide_env_values = true, default_value = "")]
    sync_id: String,
    /// The task
    #[arg(long, env = "TASK_ID", hide_env_values = true, default_value = "")]
    task_id: String,
    /// Who asked for it (JSON)
    #[arg(long, env = "STARTED_BY", hide_env_values = true, default_value = "")]
    started_by: String,
    /// Schema for the tables
    #[arg(long, env = "NAMESPACE", hide_env_values = true, default_value = "")]
    namespace: String,
    /// Put before every table name
    #[arg(long, env = "TABLE_NAME_PREFIX", hide_env_values = true, default_value = "")]
    table_name_prefix: String,
    /// Lower-case names
    #[arg(long, env = "TO_SAME_CASE", hide_env_values = true, default_value = "")]
    to_same_case: String,
    /// Add a column `_jitsu_timestamp`
    #[arg(long, env = "ADD_META", hide_env_values = true, default_value = "")]
    add_meta: String,
    /// Merge by primary key
    #[arg(long, env = "DEDUPLICATE", hide_env_values = true, default_value = "")]
    deduplicate: String,
    /// Start from scratch
    #[arg(long, env = "FULL_SYNC", hide_env_values = true, default_value = "")]
    full_sync: String,
    /// Least level of the sidecar's own log
    #[arg(long, env = "LOG_LEVEL", hide_env_values = true, default_value = "INFO")]
    log_level: String,
    /// Least level in `task_log`
    #[arg(long, env = "DB_LOG_LEVEL", hide_env_values = true, default_value = "INFO")]
    db_log_level: String,
    /// How long the task may run
    #[arg(long, env = "TASK_TIMEOUT_HOURS", hide_env_values = true, default_value = "")]
    task_timeout_hours: String,
    /// The same, finer
    #[arg(long, env = "SYNCCTL_TASK_TIMEOUT_SECONDS", hide_env_values = true, default_value = "")]
    task_timeout_seconds: String,
    /// How long the connector may take to start
    #[arg(long, env = "SYNCCTL_INIT_TIMEOUT_SECONDS", hide_env_values = true, default_value = "")]
    init_timeout_seconds: String,
    /// How long the connector may be silent
    #[arg(long, env = "SYNCCTL_SILENCE_SECONDS", hide_env_values = true, default_value = "")]
    silence_seconds: String,
    /// How long rows may wait for a state until they are committed without one
    #[arg(long, env = "SYNCCTL_COMMIT_SECONDS", hide_env_values = true, default_value = "")]
    commit_seconds: String,
    /// How much row JSON may wait, in MiB
    #[arg(long, env = "SYNCCTL_COMMIT_MI", hide_env_values = true, default_value = "")]
    commit_mi: String,
    /// After how many records to end
    #[arg(long, env = "SYNCCTL_MAX_RECORDS", hide_env_values = true, default_value = "")]
    max_records: String,
    /// The controller's version of the contract
    #[arg(long, env = "SYNCCTL_CONTRACT", hide_env_values = true)]
    contract: Option<String>,
}

/// How long a connector may take to start where the controller does not say.
const INIT_SECONDS: u64 = 180;

pub(super) fn run(args: SidecarArgs) -> u8 {
    super::init_log(&args.log_level.to_ascii_lowercase(), 0, false);
    let (terminated, last_words_file) = (Arc::new(AtomicBool::new(false)), args.termination_log.clone());
    if args.mark.is_some() {
        // Beside a connector of the same user: it must not look into this process.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).ok();
    }
    let result = listen(&terminated).and_then(|()| args.into_sidecar()).and_then(|sidecar| sidecar.run(&terminated));
    match result {
        Ok(End::Done) => 0,
        Ok(End::LeavesVerdict) => contract::LEAVES_VERDICT,
        Err(failure) => {
            tracing::error!("{failure}");
            // Nobody reads it outside a task, where the place is not there either.
            let last_words = json!({"class": failure.class.code(), "error": failure.text}).to_string();
            std::fs::write(last_words_file, last_words).ok();
            failure.class.exit_code()
        }
    }
}

/// As PID 1 a signal without a handler does nothing at all.
fn listen(terminated: &Arc<AtomicBool>) -> Result<(), Failure> {
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(terminated))
            .map_err(|error| Failure::new(Class::Internal, format!("listening for signals: {error}")))?;
    }
    Ok(())
}

impl SidecarArgs {
    fn into_sidecar(self) -> Result<Sidecar, Failure> {
        let Self {
            command,
            stdout_pipe_file,
            stderr_pipe_file,
            secrets_dir,
            config_dir,
            termination_log: _,
            mark: _,
            database_url,
            started_at,
            package,
            package_version,
            connector_type,
            storage_key,
            sync_id,
            task_id,
            started_by,
            namespace,
            table_name_prefix,
            to_same_case,
            add_meta,
            deduplicate,
            full_sync,
            log_level: _,
            db_log_level,
            task_timeout_hours,
            task_timeout_seconds,
            init_timeout_seconds,
            silence_seconds,
            commit_seconds,
            commit_mi,
            max_records,
            contract,
        } = self;
        let commit = commit_limits(&commit_seconds, &commit_mi)?;
        let kind: TaskKind = required(command, "COMMAND")?
            .parse()
            .map_err(|error: String| Failure::new(Class::Usage, format!("COMMAND: {error}")))?;
        let started_at = match started_at.filter(|text| !text.is_empty()) {
            Some(text) => {
                text.parse().map_err(|error| Failure::new(Class::Usage, format!("STARTED_AT is {text:?}: {error}")))?
            }
            None => Timestamp::now(),
        };
        let hours = number(&task_timeout_hours, "TASK_TIMEOUT_HOURS", task::DEFAULT_TIMEOUT_HOURS)?;
        let timeout = number(&task_timeout_seconds, "SYNCCTL_TASK_TIMEOUT_SECONDS", hours.saturating_mul(3600))?;
        let task = Task {
            kind,
            image: Image { package, version: package_version },
            connector_type,
            task_id,
            sync_id,
            storage_key,
            started_at: task::to_millis(started_at),
            started_by: serde_json::from_str(&started_by).ok(),
            options: ReadOptions {
                namespace: Some(namespace).filter(|namespace| !namespace.is_empty()),
                table_name_prefix,
                to_same_case: flag(&to_same_case, false),
                add_meta: flag(&add_meta, false),
                deduplicate: flag(&deduplicate, true),
                full_sync: flag(&full_sync, false),
                debug: false,
                silence_seconds: None,
                max_records: optional_records(&max_records)?,
            },
            timeout: Duration::from_secs(timeout),
        };
        Ok(Sidecar {
            task,
            database_url: Secret::from(required(database_url, "DATABASE_URL")?),
            stdout: stdout_pipe_file,
            stderr: stderr_pipe_file,
            secrets: secrets_dir,
            config: config_dir,
            db_log_level,
            init_timeout: Duration::from_secs(number(
                &init_timeout_seconds,
                "SYNCCTL_INIT_TIMEOUT_SECONDS",
                INIT_SECONDS,
            )?),
            silence: Duration::from_secs(number(
                &silence_seconds,
                "SYNCCTL_SILENCE_SECONDS",
                u64::from(task::DEFAULT_SILENCE_SECONDS),
            )?),
            commit,
            contract: contract.filter(|contract| !contract.is_empty()),
        })
    }
}

fn commit_limits(seconds: &str, mebibytes: &str) -> Result<CommitLimits, Failure> {
    let default = CommitLimits::default();
    let seconds = number(seconds, "SYNCCTL_COMMIT_SECONDS", default.interval.as_secs())?;
    let mebibytes = number(mebibytes, "SYNCCTL_COMMIT_MI", default.bytes >> 20)?;
    if seconds == 0 || mebibytes == 0 {
        return Err(Failure::new(Class::Usage, "SYNCCTL_COMMIT_SECONDS and SYNCCTL_COMMIT_MI have to be 1 or more"));
    }
    Ok(CommitLimits { bytes: mebibytes.saturating_mul(1 << 20), interval: Duration::from_secs(seconds) })
}

fn optional_records(text: &str) -> Result<Option<u64>, Failure> {
    let records = Some(text).filter(|text| !text.is_empty()).map(ReadOptions::parse_max_records).transpose();
    records.map_err(|error| Failure::new(Class::Usage, format!("SYNCCTL_MAX_RECORDS: {error}")))
}

fn required(value: Option<String>, variable: &str) -> Result<String, Failure> {
    value.filter(|value| !value.is_empty()).ok_or_else(|| {
        Failure::new(Class::Usage, format!("{variable} is not set: the sidecar runs in a Pod that syncctl makes"))
    })
}

fn number(text: &str, variable: &str, default: u64) -> Result<u64, Failure> {
    if text.is_empty() {
        return Ok(default);
    }
    text.parse().map_err(|_| Failure::new(Class::Usage, format!("{variable} is {text:?}: expected a whole number")))
}

/// The existing implementation writes `true`, `1` or leaves the variable out.
fn flag(text: &str, default: bool) -> bool {
    match text.to_ascii_lowercase().as_str() {
        "" => default,
        "true" | "1" | "yes" => true,
        _ => false,
    }
}
