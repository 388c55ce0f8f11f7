//! The contract between the controller and the sidecar, as far as the wire contract does not already define it.
//!
//! Both ends are this program, possibly in different versions: anything here may only change together with [`VERSION`].

/// Raised when one side can no longer work with an older version of the other.
pub const VERSION: &str = "3";

/// Exit code for [`SidecarExit::Failed`].
pub const EXIT_FAILED: u8 = 1;

/// Exit code for [`SidecarExit::OutcomeUnknown`].
pub const EXIT_OUTCOME_UNKNOWN: u8 = 75;

/// Exit code for [`SidecarExit::Terminated`]: that of a process that TERM has ended.
pub const EXIT_TERMINATED: u8 = 143;

/// How a sidecar ends that has stored all it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SidecarExit {
    /// The outcome is stored.
    Finished,
    /// The outcome is stored, and it is a failure: for a foreign controller, which concludes from the exit code.
    Failed,
    /// The connector was killed from outside: only the container's status shows why, so the controller decides the
    /// outcome.
    OutcomeUnknown,
    /// TERM has ended the task. What is stored is provisional: only the controller knows why.
    Terminated,
}

/// Where the documents of the task are mounted into the sidecar, compressed: `config.json.gz.000`, ….
pub const SECRETS_DIR: &str = "/secrets";

/// Where the sidecar unpacks the documents that the connector may see.
pub const CONFIG_DIR: &str = "/config";

/// The folder of the FIFOs. The connector sees it read-only: it can write into a FIFO there, but not replace one.
pub const PIPES_DIR: &str = "/pipes";

/// FIFO of the connector's stdout.
pub const STDOUT_PIPE: &str = "/pipes/stdout";

/// FIFO of the connector's stderr.
pub const STDERR_PIPE: &str = "/pipes/stderr";

/// Created next to the pipes once the pipes and the connector's documents exist.
pub const READY_FILE: &str = "ready";

/// The folder that the connector's container writes its reports to. Only [`crate::shared_folder`] may access its content.
pub const REPORTS_DIR: &str = "/reports";

/// How much the connector may store in that folder, in MiB.
pub const MAX_REPORTS_MI: u64 = 1;

/// A report, when the connector has ended: its exit code as decimal text.
pub const EXIT_CODE_FILE: &str = "exit_code";

/// A report where the control group is readable: nanoseconds of CPU time and bytes of memory; after the connector's end,
/// its peak memory.
pub const METRICS_FILE: &str = "metrics";

/// Where a sidecar that cannot write to its database leaves its failure: `{"class":"…","error":"…"}`.
pub const TERMINATION_LOG: &str = "/dev/termination-log";

/// Environment variables of the sidecar. `syncctl sidecar --help` describes their values.
pub mod variable {
    pub const COMMAND: &str = "COMMAND";
    pub const STDOUT_PIPE_FILE: &str = "STDOUT_PIPE_FILE";
    pub const STDERR_PIPE_FILE: &str = "STDERR_PIPE_FILE";
    pub const SECRETS_DIR: &str = "SYNCCTL_SECRETS_DIR";
    pub const CONFIG_DIR: &str = "SYNCCTL_CONFIG_DIR";
    pub const REPORTS_DIR: &str = "SYNCCTL_REPORTS_DIR";
    pub const TERMINATION_LOG: &str = "SYNCCTL_TERMINATION_LOG";
    pub const DATABASE_URL: &str = "DATABASE_URL";
    pub const STARTED_AT: &str = "STARTED_AT";
    pub const PACKAGE: &str = "PACKAGE";
    pub const PACKAGE_VERSION: &str = "PACKAGE_VERSION";
    pub const CONNECTOR_TYPE: &str = "CONNECTOR_TYPE";
    pub const STORAGE_KEY: &str = "STORAGE_KEY";
    pub const SYNC_ID: &str = "SYNC_ID";
    pub const TASK_ID: &str = "TASK_ID";
    pub const STARTED_BY: &str = "STARTED_BY";
    pub const NAMESPACE: &str = "NAMESPACE";
    pub const TABLE_NAME_PREFIX: &str = "TABLE_NAME_PREFIX";
    pub const TO_SAME_CASE: &str = "TO_SAME_CASE";
    pub const ADD_META: &str = "ADD_META";
    pub const DEDUPLICATE: &str = "DEDUPLICATE";
    pub const FULL_SYNC: &str = "FULL_SYNC";
    pub const LOG_LEVEL: &str = "LOG_LEVEL";
    pub const DB_LOG_LEVEL: &str = "DB_LOG_LEVEL";
    pub const TASK_TIMEOUT_HOURS: &str = "TASK_TIMEOUT_HOURS";
    pub const TASK_TIMEOUT_SECONDS: &str = "SYNCCTL_TASK_TIMEOUT_SECONDS";
    pub const INIT_TIMEOUT_SECONDS: &str = "SYNCCTL_INIT_TIMEOUT_SECONDS";
    pub const SILENCE_SECONDS: &str = "SYNCCTL_SILENCE_SECONDS";
    pub const COMMIT_SECONDS: &str = "SYNCCTL_COMMIT_SECONDS";
    pub const COMMIT_MI: &str = "SYNCCTL_COMMIT_MI";
    pub const CONSOLE_OVERWRITE: &str = "SYNCCTL_CONSOLE_OVERWRITE";
    pub const CDC_DELETION: &str = "SYNCCTL_CDC_DELETION";
    pub const MAX_RECORDS: &str = "SYNCCTL_MAX_RECORDS";
    pub const OWN_SCHEMA: &str = "SYNCCTL_OWN_SCHEMA";
    pub const DESTINATION_HOSTS: &str = "SYNCCTL_DESTINATION_HOSTS";
    pub const CONTRACT: &str = "SYNCCTL_CONTRACT";
}
