//! What the controller and the sidecar have agreed on, where the wire contract does not already say it.
//!
//! Both ends are this program, but maybe not in the same version: what is here may only change together with
//! [`VERSION`].

/// Raised when one side can no longer work with an older other one.
pub const VERSION: &str = "1";

/// The sidecar's exit code when the connector was killed from outside: only the container's status knows why, so the
/// controller gives the verdict.
pub const LEAVES_VERDICT: u8 = 75;

/// Where the documents of the task are mounted into the sidecar, compressed: `config.json.gz.000`, ….
pub const SECRETS_DIR: &str = "/secrets";

/// Where the sidecar unpacks what the connector may see.
pub const CONFIG_DIR: &str = "/config";

/// Appears beside the pipes once they, and the connector's files, are there.
pub const READY_FILE: &str = "ready";

/// Appears beside the pipes when the connector has ended: its exit code as decimal text.
pub const EXIT_CODE_FILE: &str = "exit_code";

/// What the connector's container uses, beside the pipes, if that can be seen: nanoseconds of CPU and bytes of memory;
/// once the connector has ended, the most memory that it ever used.
pub const METRICS_FILE: &str = "metrics";

/// The last words of a sidecar that cannot write to its database: `{"class":"…","error":"…"}`.
pub const TERMINATION_LOG: &str = "/dev/termination-log";
