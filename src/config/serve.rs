//! The settings of `serve`, beside those that every command has.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Problems, present};
use crate::failure::Failure;
use crate::secret::Secret;

/// What only `serve` takes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Settings of the service (each is also an environment variable)")]
pub struct ServeSettingsArgs {
    /// Port to listen on [default: SYNCCTL_PORT, else 3043]
    #[arg(long, env = "SYNCCTL_HTTP_PORT", value_name = "PORT")]
    http_port: Option<String>,
    /// The same, under its older name
    #[arg(long, env = "SYNCCTL_PORT", value_name = "PORT", hide = true)]
    port: Option<String>,
    /// Address to listen on [default: 0.0.0.0]
    #[arg(long, env = "SYNCCTL_HTTP_HOST", value_name = "ADDRESS")]
    http_host: Option<String>,
    /// Tokens that callers may use, separated by commas: plain ones, or salt.hash as `syncctl token` makes them. Give
    /// them in the environment [default: everybody may call]
    #[arg(long, env = "SYNCCTL_AUTH_TOKENS", hide_env_values = true, value_name = "TOKENS")]
    auth_tokens: Option<String>,
    /// More tokens, all of them plain
    #[arg(long, env = "SYNCCTL_RAW_AUTH_TOKENS", hide_env_values = true, value_name = "TOKENS")]
    raw_auth_tokens: Option<String>,
    /// Secret that tokens are hashed with; several, separated by commas, while one takes the place of another
    #[arg(long, env = "SYNCCTL_TOKEN_SECRET", hide_env_values = true, value_name = "SECRET")]
    token_secret: Option<String>,
    /// Name of this process in metrics and in the Lease; env://NAME takes it from another variable [default: a UUID
    /// that is kept in ~/.syncctl/instance_id]
    #[arg(long, env = "SYNCCTL_INSTANCE_ID", value_name = "ID")]
    instance_id: Option<String>,
    /// The largest request body [default: 32]
    #[arg(long, env = "SYNCCTL_HTTP_MAX_BODY_MI", value_name = "MI")]
    http_max_body_mi: Option<String>,
    /// The most connections at a time [default: 1024]
    #[arg(long, env = "SYNCCTL_HTTP_MAX_CONNECTIONS", value_name = "COUNT")]
    http_max_connections: Option<String>,
    /// Rows of task_log that are kept of each sync [default: 3000]
    #[arg(long, env = "SYNCCTL_SYNC_TASK_LOG_SIZE", value_name = "ROWS")]
    sync_task_log_size: Option<String>,
    /// How long rows of task_log are kept [default: 60]
    #[arg(long, env = "SYNCCTL_SYNC_TASK_LOG_AGE", value_name = "DAYS")]
    sync_task_log_age: Option<String>,
    /// Form of the program's own log: text or json [default: text]
    #[arg(long, env = "SYNCCTL_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<String>,
    /// `false` or `0` ends the program at once: how a deployment is switched off without removing it
    #[arg(long, env = "SYNCCTL_SYNCS_ENABLED", value_name = "BOOL")]
    syncs_enabled: Option<String>,
}

/// The settings of `serve`, typed.
#[derive(Debug, Clone)]
pub struct ServeSettings {
    /// Where to listen.
    pub address: SocketAddr,
    /// What is said of tokens; taken apart by the service.
    pub auth: AuthSettings,
    /// The name of this process, if it was given one.
    pub instance_id: Option<String>,
    /// The largest request body in bytes.
    pub max_body: usize,
    /// The most connections at a time.
    pub max_connections: usize,
    /// Rows of `task_log` that are kept of each sync.
    pub log_rows: u64,
    /// How long rows of `task_log` are kept.
    pub log_age: Duration,
    /// Whether the log is written as JSON.
    pub log_json: bool,
    /// Whether there is anything to do at all.
    pub enabled: bool,
}

/// Who may call, as it was given.
#[derive(Debug, Clone, Default)]
pub struct AuthSettings {
    /// `SYNCCTL_AUTH_TOKENS`.
    pub tokens: Option<Secret>,
    /// `SYNCCTL_RAW_AUTH_TOKENS`.
    pub raw_tokens: Option<Secret>,
    /// `SYNCCTL_TOKEN_SECRET`.
    pub secrets: Option<Secret>,
}

const MIB: usize = 1024 * 1024;
/// A day in seconds.
const DAY: u64 = 24 * 3600;

/// Tokens that were given: blanks are a mistake, and must not open the service.
fn given(tokens: Option<String>) -> Option<String> {
    tokens.filter(|tokens| !tokens.is_empty())
}

/// `env://NAME`: the value is in another variable, e.g. one that the downward API fills.
const FROM_ENVIRONMENT: &str = "env://";

impl Problems {
    fn indirect(&mut self, value: String, variable: &str) -> Option<String> {
        let Some(name) = value.strip_prefix(FROM_ENVIRONMENT) else { return Some(value) };
        let found = present(std::env::var(name).ok());
        if found.is_none() {
            self.malformed.push(format!("  {variable} is {value:?}, and the variable {name:?} is not set"));
        }
        found
    }
}

impl ServeSettingsArgs {
    /// Checks and types everything, or says all that is wrong.
    pub fn resolve(self) -> Result<ServeSettings, Failure> {
        let Self {
            http_port,
            port,
            http_host,
            auth_tokens,
            raw_auth_tokens,
            token_secret,
            instance_id,
            http_max_body_mi,
            http_max_connections,
            sync_task_log_size,
            sync_task_log_age,
            log_format,
            syncs_enabled,
        } = self;
        let mut problems = Problems::default();
        // Kubernetes itself sets SYNCCTL_PORT=tcp://… where there is a Service of this name.
        let port = present(port).filter(|port| !port.starts_with("tcp://"));
        let (port, variable) = match (present(http_port), port) {
            (None, Some(port)) => (Some(port), "SYNCCTL_PORT"),
            (port, _) => (port, "SYNCCTL_HTTP_PORT"),
        };
        let port = problems.number(port, variable, 3043);
        let port = u16::try_from(port).unwrap_or_else(|_| {
            problems.malformed.push(format!("  {variable} is {port}: expected a port up to 65535"));
            0
        });
        let host = present(http_host).unwrap_or_else(|| "0.0.0.0".to_owned());
        let host: IpAddr = host.parse().unwrap_or_else(|_| {
            problems.malformed.push(format!("  SYNCCTL_HTTP_HOST is {host:?}: expected an address such as 127.0.0.1"));
            IpAddr::from([127, 0, 0, 1])
        });
        let max_body = problems.at_least_one(http_max_body_mi, "SYNCCTL_HTTP_MAX_BODY_MI", 32);
        let max_connections = problems.at_least_one(http_max_connections, "SYNCCTL_HTTP_MAX_CONNECTIONS", 1024);
        let log_rows = problems.at_least_one(sync_task_log_size, "SYNCCTL_SYNC_TASK_LOG_SIZE", 3000);
        let log_days = problems.at_least_one(sync_task_log_age, "SYNCCTL_SYNC_TASK_LOG_AGE", 60);
        let log_json = match present(log_format).map(|format| format.to_ascii_lowercase()).as_deref() {
            None | Some("text") => false,
            Some("json") => true,
            Some(other) => {
                problems.malformed.push(format!("  SYNCCTL_LOG_FORMAT is {other:?}: expected text or json"));
                false
            }
        };
        let enabled = match present(syncs_enabled).map(|text| text.to_ascii_lowercase()).as_deref() {
            None | Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(other) => {
                problems.malformed.push(format!("  SYNCCTL_SYNCS_ENABLED is {other:?}: expected true or false"));
                true
            }
        };
        let instance_id = present(instance_id).and_then(|id| problems.indirect(id, "SYNCCTL_INSTANCE_ID"));
        problems.into_result()?;
        Ok(ServeSettings {
            address: SocketAddr::new(host, port),
            auth: AuthSettings {
                tokens: given(auth_tokens).map(Secret::from),
                raw_tokens: given(raw_auth_tokens).map(Secret::from),
                secrets: present(token_secret).map(Secret::from),
            },
            instance_id,
            max_body: max_body as usize * MIB,
            max_connections: max_connections as usize,
            log_rows: u64::from(log_rows),
            log_age: Duration::from_secs(u64::from(log_days) * DAY),
            log_json,
            enabled,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Problems;

    #[test]
    fn a_value_may_come_from_another_variable() {
        let mut problems = Problems::default();
        assert_eq!(problems.indirect("a".to_owned(), "V"), Some("a".to_owned()));
        assert_eq!(problems.indirect("env://PATH".to_owned(), "V"), std::env::var("PATH").ok());
        assert_eq!(problems.indirect("env://SYNCCTL_NO_SUCH_VARIABLE".to_owned(), "V"), None);
        let failure = problems.into_result().expect_err("it is not set");
        assert!(failure.text.contains("SYNCCTL_NO_SUCH_VARIABLE"), "{failure}");
    }
}
