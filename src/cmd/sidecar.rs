//! `syncctl sidecar`: runs next to the connector. Its arguments are the environment that the wire contract names.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use jiff::Timestamp;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::contract::{self, SidecarExit, variable};
use crate::env;
use crate::failure::{Class, Failure};
use crate::handover;
use crate::host_rules::{HostRules, SERVICE_DEFAULT};
use crate::secret::Secret;
use crate::sidecar::{CommitLimits, Sidecar, SourceSettings};
use crate::task::{self, CdcDeletion, Image, ReadOptions, Task, TaskKind};

/// Capture a connector's output; runs next to the connector
///
/// Everything it needs comes from the environment that `syncctl` sets.
#[derive(Debug, clap::Args)]
#[command(mut_args(|arg| arg.hide_env_values(true)))]
pub struct SidecarArgs {
    /// Command of the connector: spec, check, discover or read
    #[arg(long, env = variable::COMMAND, default_value = "")]
    command: String,
    /// FIFO of the connector's stdout
    #[arg(long, env = variable::STDOUT_PIPE_FILE, default_value = contract::STDOUT_PIPE)]
    stdout_pipe_file: PathBuf,
    /// FIFO of the connector's stderr
    #[arg(long, env = variable::STDERR_PIPE_FILE, default_value = contract::STDERR_PIPE)]
    stderr_pipe_file: PathBuf,
    /// Folder of the task's compressed documents
    #[arg(long, env = variable::SECRETS_DIR, default_value = contract::SECRETS_DIR)]
    secrets_dir: PathBuf,
    /// Folder where the connector reads its documents
    #[arg(long, env = variable::CONFIG_DIR, default_value = contract::CONFIG_DIR)]
    config_dir: PathBuf,
    /// Folder of the exit code and the resource usage of the connector
    #[arg(long, env = variable::REPORTS_DIR, default_value = contract::REPORTS_DIR)]
    reports_dir: PathBuf,
    /// File for a failure that cannot be written to the database
    #[arg(long, env = variable::TERMINATION_LOG, default_value = contract::TERMINATION_LOG)]
    termination_log: PathBuf,
    /// Takes the documents and the database's URL from stdin
    #[arg(long, hide = true)]
    secrets_from_stdin: bool,
    /// Identifies a process of a local task
    #[arg(long, hide = true)]
    mark: Option<String>,
    /// Postgres database of results
    #[arg(long, env = variable::DATABASE_URL, default_value = "")]
    database_url: String,
    /// Schema of that database for tables that other programs do not know; used where it exists
    #[arg(long, env = variable::OWN_SCHEMA, default_value = env::OWN_SCHEMA.default)]
    own_schema: String,
    /// When the task was accepted (RFC 3339)
    #[arg(long, env = variable::STARTED_AT, default_value = "")]
    started_at: String,
    /// Connector image without its version
    #[arg(long, env = variable::PACKAGE, default_value = "")]
    package: String,
    /// Version of the connector image
    #[arg(long, env = variable::PACKAGE_VERSION, default_value = "")]
    package_version: String,
    /// Type of the connector
    #[arg(long, env = variable::CONNECTOR_TYPE, default_value = task::CONNECTOR_TYPE_AIRBYTE)]
    connector_type: String,
    /// Key of the result of check and discover
    #[arg(long, env = variable::STORAGE_KEY, default_value = "")]
    storage_key: String,
    /// Id of the sync that a read belongs to
    #[arg(long, env = variable::SYNC_ID, default_value = "")]
    sync_id: String,
    /// Id of the task
    #[arg(long, env = variable::TASK_ID, default_value = "")]
    task_id: String,
    /// Who started the task (JSON)
    #[arg(long, env = variable::STARTED_BY, default_value = "")]
    started_by: String,
    /// Schema of the destination tables
    #[arg(long, env = variable::NAMESPACE, default_value = "")]
    namespace: String,
    /// Prefix of every table name
    #[arg(long, env = variable::TABLE_NAME_PREFIX, default_value = "")]
    table_name_prefix: String,
    /// Lower-case table and column names
    #[arg(long, env = variable::TO_SAME_CASE, default_value = "")]
    to_same_case: String,
    /// Add a column `_jitsu_timestamp`
    #[arg(long, env = variable::ADD_META, default_value = "")]
    add_meta: String,
    /// Merge rows by primary key
    #[arg(long, env = variable::DEDUPLICATE, default_value = "")]
    deduplicate: String,
    /// Start from scratch and replace the tables
    #[arg(long, env = variable::FULL_SYNC, default_value = "")]
    full_sync: String,
    /// Mode overwrite has the meaning of the Jitsu console: rows are merged by key, and an incremental stream without a
    /// state replaces its table; the default of other controllers
    #[arg(long, env = variable::CONSOLE_OVERWRITE, default_value = "")]
    console_overwrite: String,
    /// Least level of the sidecar's own log
    #[arg(long, env = variable::LOG_LEVEL, default_value = "INFO")]
    log_level: String,
    /// Least level in `task_log`
    #[arg(long, env = variable::DB_LOG_LEVEL, default_value = "INFO")]
    db_log_level: String,
    /// How long the task may run, in hours
    #[arg(long, env = variable::TASK_TIMEOUT_HOURS, default_value = "")]
    task_timeout_hours: String,
    /// How long the task may run, in seconds; takes precedence over the hours
    #[arg(long, env = variable::TASK_TIMEOUT_SECONDS, default_value = "")]
    task_timeout_seconds: String,
    /// How long the connector may take to start
    #[arg(long, env = variable::INIT_TIMEOUT_SECONDS, default_value = "")]
    init_timeout_seconds: String,
    /// How long the connector may be silent
    #[arg(long, env = variable::SILENCE_SECONDS, default_value = "")]
    silence_seconds: String,
    /// How long rows may wait for a state before they are committed without one
    #[arg(long, env = variable::COMMIT_SECONDS, default_value = "")]
    commit_seconds: String,
    /// How much row JSON may wait for a state, in MiB
    #[arg(long, env = variable::COMMIT_MI, default_value = "")]
    commit_mi: String,
    /// What becomes of rows that the source marks as deleted: soft or hard
    #[arg(long, env = variable::CDC_DELETION, default_value = "")]
    cdc_deletion: String,
    /// Stop after this number of records
    #[arg(long, env = variable::MAX_RECORDS, default_value = "")]
    max_records: String,
    /// Hosts that the destination may be at [default: any; of other controllers: any but link-local addresses, addresses of
    /// cloud metadata, and Unix sockets]
    #[arg(long, env = variable::DESTINATION_HOSTS, default_value = "")]
    destination_hosts: String,
    /// Version of the contract that the controller implements
    #[arg(long, env = variable::CONTRACT, default_value = "")]
    contract: String,
}

/// Whether the environment is that of a sidecar's container: `COMMAND` is a command of a connector, or the connector's pipe
/// is named.
pub(super) fn is_configured_by_environment() -> bool {
    let value = |name| std::env::var(name).unwrap_or_default();
    let command = value(variable::COMMAND);
    command.parse::<TaskKind>().is_ok() || !command.is_empty() && !value(variable::STDOUT_PIPE_FILE).is_empty()
}

pub(super) fn run(args: SidecarArgs) -> u8 {
    if args.contract.is_empty() {
        // A foreign controller copies the last lines of this log into the error of a task.
        crate::logging::start_plain(&args.log_level);
    } else {
        crate::logging::start(&args.log_level, 0, false);
    }
    let (terminated, termination_log) = (Arc::new(AtomicBool::new(false)), args.termination_log.clone());
    let result = handle_signals(&terminated).and_then(|()| args.sidecar()).and_then(|sidecar| sidecar.run(terminated));
    match result {
        Ok(SidecarExit::Finished) => 0,
        Ok(SidecarExit::Failed) => contract::EXIT_FAILED,
        Ok(SidecarExit::OutcomeUnknown) => contract::EXIT_OUTCOME_UNKNOWN,
        Ok(SidecarExit::Terminated) => contract::EXIT_TERMINATED,
        Err(failure) => {
            tracing::error!("{failure}");
            // Outside of a task the file cannot be written, and is not needed.
            if let Ok(document) = serde_json::to_vec(&failure) {
                std::fs::write(termination_log, document).ok();
            }
            failure.class.exit_code()
        }
    }
}

/// PID 1 ignores signals that it does not handle.
fn handle_signals(terminated: &Arc<AtomicBool>) -> Result<(), Failure> {
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(terminated))
            .map_err(|error| Failure::new(Class::Internal, format!("cannot handle signals: {error}")))?;
    }
    Ok(())
}

impl SidecarArgs {
    fn sidecar(mut self) -> Result<Sidecar, Failure> {
        let passed_on = self.secrets_from_stdin.then(|| {
            let secrets = handover::read(std::io::stdin().lock());
            secrets.map_err(|error| {
                Failure::new(Class::SidecarFailed, format!("cannot read the secrets of the task: {error}"))
            })
        });
        let passed_on = passed_on.transpose()?.map(Option::unwrap_or_default);
        if let Some(url) = passed_on.as_ref().and_then(|secrets| secrets.get(variable::DATABASE_URL)) {
            self.database_url = String::from_utf8_lossy(url).into_owned();
        }
        let kind = required(self.command, variable::COMMAND)?
            .parse()
            .map_err(|error: String| Failure::new(Class::Usage, format!("{}: {error}", variable::COMMAND)))?;
        let started_at = match self.started_at.as_str() {
            "" => Timestamp::now(),
            text => text.parse().map_err(|error| invalid(variable::STARTED_AT, text, &error))?,
        };
        let hours = number(
            &self.task_timeout_hours,
            variable::TASK_TIMEOUT_HOURS,
            env::TASK_TIMEOUT_HOURS.number(false).into(),
        )?;
        let timeout = number(&self.task_timeout_seconds, variable::TASK_TIMEOUT_SECONDS, hours.saturating_mul(3600))?;
        let init_timeout = number(
            &self.init_timeout_seconds,
            variable::INIT_TIMEOUT_SECONDS,
            env::CONTAINER_INIT_TIMEOUT_SECONDS.number(false).into(),
        )?;
        let silence =
            number(&self.silence_seconds, variable::SILENCE_SECONDS, env::SILENCE_SECONDS.number(false).into())?;
        let contract = Some(self.contract).filter(|contract| !contract.is_empty());
        let started_at = task::to_millis(started_at);
        let timeout = match Duration::from_secs(timeout) {
            // A foreign controller deletes the Pod that long after the start of the task, and records no reason.
            timeout if contract.is_none() => timeout.saturating_sub(elapsed_since(started_at)),
            timeout => timeout,
        };
        let task = Task {
            kind,
            image: Image { package: self.package, version: self.package_version },
            connector_type: self.connector_type,
            task_id: self.task_id,
            sync_id: self.sync_id,
            storage_key: self.storage_key,
            started_at,
            started_by: serde_json::from_str(&self.started_by).ok(),
            options: ReadOptions {
                namespace: Some(self.namespace).filter(|namespace| !namespace.is_empty()),
                table_name_prefix: self.table_name_prefix,
                to_same_case: flag(&self.to_same_case, false),
                add_meta: flag(&self.add_meta, false),
                deduplicate: flag(&self.deduplicate, true),
                full_sync: flag(&self.full_sync, false),
                // Our own controller always sets it.
                console_overwrite: flag(&self.console_overwrite, contract.is_none()),
                cdc_deletion: cdc_deletion(&self.cdc_deletion)?,
                debug: false,
                silence_seconds: None,
                max_records: max_records(&self.max_records)?,
            },
            timeout,
            then_run: None,
        };
        Ok(Sidecar {
            task,
            database_url: Secret::from(required(self.database_url, variable::DATABASE_URL)?),
            own_schema: Some(self.own_schema)
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| env::OWN_SCHEMA.default.to_owned()),
            source: SourceSettings {
                stdout: self.stdout_pipe_file,
                stderr: self.stderr_pipe_file,
                reports: self.reports_dir,
                config: self.config_dir,
                init_timeout: Duration::from_secs(init_timeout),
                silence: Duration::from_secs(silence),
                is_wrapped: contract.is_some(),
            },
            secrets: self.secrets_dir,
            passed_on,
            destination_hosts: destination_hosts(&self.destination_hosts, contract.is_some())?,
            db_log_level: self.db_log_level,
            commit: commit_limits(&self.commit_seconds, &self.commit_mi)?,
            contract,
        })
    }
}

/// The rules for the destination's host. A foreign controller takes destinations from its callers without any.
fn destination_hosts(text: &str, is_ours: bool) -> Result<Option<Arc<HostRules>>, Failure> {
    let text = match text.trim() {
        "" if is_ours => return Ok(None),
        "" => SERVICE_DEFAULT,
        text => text,
    };
    let rules = text.parse().map_err(|error: String| invalid(variable::DESTINATION_HOSTS, text, &error))?;
    Ok(Some(Arc::new(rules)))
}

/// The time since a moment; none if it is in the future of this clock.
fn elapsed_since(moment: Timestamp) -> Duration {
    Duration::try_from(Timestamp::now().duration_since(moment)).unwrap_or_default()
}

fn commit_limits(seconds: &str, mebibytes: &str) -> Result<CommitLimits, Failure> {
    let default = CommitLimits::default();
    let seconds = number(seconds, variable::COMMIT_SECONDS, default.interval.as_secs())?;
    let mebibytes = number(mebibytes, variable::COMMIT_MI, default.bytes >> 20)?;
    if seconds == 0 || mebibytes == 0 {
        let text = format!("{} and {} must be 1 or more", variable::COMMIT_SECONDS, variable::COMMIT_MI);
        return Err(Failure::new(Class::Usage, text));
    }
    Ok(CommitLimits { bytes: mebibytes.saturating_mul(1 << 20), interval: Duration::from_secs(seconds) })
}

fn cdc_deletion(text: &str) -> Result<Option<CdcDeletion>, Failure> {
    let deletion = Some(text).filter(|text| !text.is_empty()).map(str::parse).transpose();
    deletion.map_err(|error: String| Failure::new(Class::Usage, format!("{}: {error}", variable::CDC_DELETION)))
}

fn max_records(text: &str) -> Result<Option<u64>, Failure> {
    let records = Some(text).filter(|text| !text.is_empty()).map(ReadOptions::parse_max_records).transpose();
    records.map_err(|error| Failure::new(Class::Usage, format!("{}: {error}", variable::MAX_RECORDS)))
}

fn required(value: String, variable: &str) -> Result<String, Failure> {
    Some(value).filter(|value| !value.is_empty()).ok_or_else(|| {
        Failure::new(Class::Usage, format!("{variable} is not set: the sidecar runs in a task that syncctl starts"))
    })
}

fn number(text: &str, variable: &str, default: u64) -> Result<u64, Failure> {
    if text.is_empty() {
        return Ok(default);
    }
    text.parse().map_err(|_| invalid(variable, text, &"expected a whole number"))
}

fn invalid(variable: &str, value: &str, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(Class::Usage, format!("{variable} is {value:?}: {why}"))
}

/// The existing implementation sets `true` or `1`, or leaves the variable out.
fn flag(text: &str, default: bool) -> bool {
    match text.to_ascii_lowercase().as_str() {
        "" => default,
        "true" | "1" | "yes" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::destination_hosts;

    #[test]
    fn a_foreign_controller_has_the_rules_of_a_service() {
        let text =
            |text: &str, is_ours: bool| destination_hosts(text, is_ours).expect("rules").map(|rules| rules.to_string());
        assert_eq!((text("", true), text(" ", false).as_deref()), (None, Some("*")));
        assert_eq!(text("db, 10.0.0.0/8", false).as_deref(), Some("db, 10.0.0.0/8"));
        assert!(destination_hosts("http://db", true).is_err(), "a malformed list does not allow everything");
    }
}
