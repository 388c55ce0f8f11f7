//! The settings of `serve`, in addition to those of all commands.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::{Problems, SWITCH, describe, present};
use crate::db::Retention;
use crate::env;
use crate::failure::Failure;
use crate::http_client::{Endpoint, EndpointError};
use crate::secret::Secret;

/// Settings that only `serve` takes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Settings of the service (each is also an environment variable)", mut_args(describe))]
pub struct ServeSettingsArgs {
    #[arg(long, env = env::HTTP_PORT.name)]
    http_port: Option<String>,
    #[arg(long, env = env::PORT.name, hide = true)]
    port: Option<String>,
    #[arg(long, env = env::HTTP_HOST.name)]
    http_host: Option<String>,
    #[arg(long, env = env::AUTH_TOKENS.name)]
    auth_tokens: Option<String>,
    #[arg(long, env = env::RAW_AUTH_TOKENS.name)]
    raw_auth_tokens: Option<String>,
    #[arg(long, env = env::TOKENS_FILE.name)]
    tokens_file: Option<PathBuf>,
    #[arg(long, env = env::TOKEN_SECRET.name)]
    token_secret: Option<String>,
    #[arg(long, env = env::CONSOLE_URL.name)]
    console_url: Option<String>,
    #[arg(long, env = env::CONSOLE_TOKEN.name)]
    console_token: Option<String>,
    #[arg(long, env = env::INSTANCE_ID.name)]
    instance_id: Option<String>,
    #[arg(long, env = env::HTTP_MAX_BODY_MI.name)]
    http_max_body_mi: Option<String>,
    #[arg(long, env = env::HTTP_MAX_CONNECTIONS.name)]
    http_max_connections: Option<String>,
    #[arg(long, env = env::HTTP_IDLE_SECONDS.name)]
    http_idle_seconds: Option<String>,
    #[arg(long, env = env::TLS_CERT.name)]
    tls_cert: Option<String>,
    #[arg(long, env = env::TLS_KEY.name)]
    tls_key: Option<String>,
    #[arg(long, env = env::TLS_CLIENT_CA.name)]
    tls_client_ca: Option<String>,
    #[arg(long, env = env::START_SPREAD_SECONDS.name)]
    start_spread_seconds: Option<String>,
    #[arg(long, env = env::SYNC_TASK_LOG_SIZE.name)]
    sync_task_log_size: Option<String>,
    #[arg(long, env = env::SYNC_TASK_LOG_AGE.name)]
    sync_task_log_age: Option<String>,
    #[arg(long, env = env::TASK_LOG_KEEP_DAYS.name)]
    task_log_keep_days: Option<String>,
    #[arg(long, env = env::ALLOW_UNISOLATED.name, num_args = 0..=1, default_missing_value = "true")]
    allow_unisolated: Option<String>,
    #[arg(long, env = env::LOG_FORMAT.name)]
    log_format: Option<String>,
    #[arg(long, env = env::SYNCS_ENABLED.name)]
    syncs_enabled: Option<String>,
}

/// The settings of `serve`, typed.
#[derive(Debug, Clone)]
pub struct ServeSettings {
    /// Where the service listens.
    pub address: SocketAddr,
    /// Unparsed tokens.
    pub auth: AuthSettings,
    /// The console that starts the read after a discover; `None` unless both its URL and its token are set.
    pub console: Option<ConsoleSettings>,
    /// Name of this process; generated where absent.
    pub instance_id: Option<String>,
    /// Size limit of a request body in bytes.
    pub max_body: usize,
    /// Longest delay of a scheduled read.
    pub start_spread: Duration,
    /// Limit of concurrent connections.
    pub max_connections: usize,
    /// How long a client may pause.
    pub idle_timeout: Duration,
    /// `None`: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// The retention of the tables.
    pub retention: Retention,
    /// Whether connectors on this machine may run with all rights of the service.
    pub allow_unisolated: bool,
    /// JSON instead of text as the format of the own log.
    pub log_json: bool,
}

/// The files of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// `SYNCCTL_TLS_CERT`.
    pub certificate: PathBuf,
    /// `SYNCCTL_TLS_KEY`.
    pub key: PathBuf,
    /// `SYNCCTL_TLS_CLIENT_CA`.
    pub client_ca: Option<PathBuf>,
}

/// The console.
#[derive(Debug, Clone)]
pub struct ConsoleSettings {
    /// `SYNCCTL_CONSOLE_URL`.
    pub endpoint: Endpoint,
    /// `SYNCCTL_CONSOLE_TOKEN`.
    pub token: Secret,
}

/// Who may call, unparsed.
#[derive(Debug, Clone, Default)]
pub struct AuthSettings {
    /// `SYNCCTL_AUTH_TOKENS`.
    pub tokens: Option<Secret>,
    /// `SYNCCTL_RAW_AUTH_TOKENS`.
    pub raw_tokens: Option<Secret>,
    /// `SYNCCTL_TOKENS_FILE`.
    pub file: Option<PathBuf>,
    /// `SYNCCTL_TOKEN_SECRET`.
    pub secrets: Option<Secret>,
}

const MIB: usize = 1024 * 1024;
/// Seconds.
const DAY: u64 = 24 * 3600;

/// Seconds.
const LONGEST_SPREAD: u32 = 3600;

/// Blank tokens are a mistake: they must not open the service, so only an empty value counts as absent.
fn given(tokens: Option<String>) -> Option<String> {
    tokens.filter(|tokens| !tokens.is_empty())
}

/// `env://NAME` takes the value from another variable, e.g. one that the downward API sets.
const FROM_ENVIRONMENT: &str = "env://";

impl Problems {
    fn instance_id(&mut self, value: Option<String>) -> Option<String> {
        let value = present(value)?;
        let Some(name) = value.strip_prefix(FROM_ENVIRONMENT) else { return Some(value) };
        let found = present(std::env::var(name).ok());
        if found.is_none() {
            let variable = env::INSTANCE_ID.name;
            self.malformed.push(format!("  {variable} is {value:?}, and the variable {name:?} is not set"));
        }
        found
    }
}

impl Problems {
    fn console(&mut self, url: Option<String>, token: Option<String>) -> Option<ConsoleSettings> {
        let (url, token) = (present(url)?, present(token)?);
        // Neither is shown: a URL may hold a password.
        let (url, token) = (url.trim(), token.trim());
        let endpoint = Endpoint::parse(url).map_err(|error| match error {
            EndpointError::Malformed => "is not a URL such as https://console.example.com",
            EndpointError::Credentials => "contains credentials: set SYNCCTL_CONSOLE_TOKEN instead",
            EndpointError::Query => "contains a query or a fragment: expected none",
        });
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let expected = "expected ASCII without spaces";
            self.malformed.push(format!("  {} cannot be sent in a header: {expected}", env::CONSOLE_TOKEN.name));
        }
        let endpoint =
            endpoint.map_err(|why| self.malformed.push(format!("  {} {why}", env::CONSOLE_URL.name))).ok()?;
        Some(ConsoleSettings { endpoint, token: Secret::from(token) })
    }
}

impl Problems {
    fn tls(&mut self, [certificate, key, client_ca]: [Option<String>; 3]) -> Option<TlsFiles> {
        let variables = [&env::TLS_CERT, &env::TLS_KEY, &env::TLS_CLIENT_CA];
        let paths = [certificate, key, client_ca].map(present);
        for (variable, path) in variables.iter().zip(&paths) {
            // Not shown: it may be the key itself.
            if path.as_ref().is_some_and(|path| path.contains("-----BEGIN") || path.contains('\n')) {
                self.malformed.push(format!("  {} is no path: expected the path of a file", variable.name));
                return None;
            }
        }
        let [certificate, key, client_ca] = paths.map(|path| path.map(PathBuf::from));
        match (certificate, key) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key, client_ca }),
            (None, None) if client_ca.is_none() => None,
            (certificate, key) => {
                for (variable, path) in [(&env::TLS_CERT, certificate), (&env::TLS_KEY, key)] {
                    if path.is_none() {
                        let why = "TLS needs a certificate and its key";
                        self.malformed.push(format!("  {} is not set: {why}", variable.name));
                    }
                }
                None
            }
        }
    }
}

impl ServeSettingsArgs {
    /// Whether the service is switched off. Then nothing else needs to be set.
    pub fn is_disabled(&self) -> bool {
        !Problems::default().choice(self.syncs_enabled.clone(), &env::SYNCS_ENABLED, &SWITCH)
    }

    /// Checks and types everything, or reports all that is wrong.
    pub fn resolve(self) -> Result<ServeSettings, Failure> {
        let mut problems = Problems::default();
        // Kubernetes itself sets SYNCCTL_PORT=tcp://… where there is a Service of this name.
        let port = present(self.port).filter(|port| !port.starts_with("tcp://"));
        let (port, name) = match (present(self.http_port), port) {
            (None, Some(port)) => (Some(port), env::PORT.name),
            (port, _) => (port, env::HTTP_PORT.name),
        };
        let variable = env::Variable { name, ..env::HTTP_PORT };
        let port = problems.number(port, &variable);
        let port = u16::try_from(port).unwrap_or_else(|_| {
            problems.malformed(&variable, port, "a port up to 65535");
            0
        });
        let host = present(self.http_host).unwrap_or_else(|| env::HTTP_HOST.default.to_owned());
        let host: IpAddr = host.parse().unwrap_or_else(|_| {
            problems.malformed(&env::HTTP_HOST, format_args!("{host:?}"), "an address such as 127.0.0.1");
            IpAddr::from([127, 0, 0, 1])
        });
        let max_body = problems.at_least_one(self.http_max_body_mi, &env::HTTP_MAX_BODY_MI);
        let max_connections = problems.at_least_one(self.http_max_connections, &env::HTTP_MAX_CONNECTIONS);
        let task_rows = problems.at_least_one(self.sync_task_log_size, &env::SYNC_TASK_LOG_SIZE);
        let task_days = problems.at_least_one(self.sync_task_log_age, &env::SYNC_TASK_LOG_AGE);
        let log_days = problems.optional_number(self.task_log_keep_days, &env::TASK_LOG_KEEP_DAYS);
        let log_json = problems.choice(self.log_format, &env::LOG_FORMAT, &[("text", false), ("json", true)]);
        problems.choice(self.syncs_enabled, &env::SYNCS_ENABLED, &SWITCH);
        let [yes, no, others @ ..] = SWITCH;
        let off_by_default = [&[no, yes], &others[..]].concat();
        let allow_unisolated = problems.choice(self.allow_unisolated, &env::ALLOW_UNISOLATED, &off_by_default);
        let spread_seconds = problems.number(self.start_spread_seconds, &env::START_SPREAD_SECONDS);
        if spread_seconds > LONGEST_SPREAD {
            problems.malformed(&env::START_SPREAD_SECONDS, spread_seconds, "at most 3600");
        }
        let instance_id = problems.instance_id(self.instance_id);
        let idle_timeout = problems.seconds(self.http_idle_seconds, &env::HTTP_IDLE_SECONDS);
        let tls = problems.tls([self.tls_cert, self.tls_key, self.tls_client_ca]);
        let console = problems.console(self.console_url, self.console_token);
        problems.into_result()?;
        Ok(ServeSettings {
            address: SocketAddr::new(host, port),
            auth: AuthSettings {
                tokens: given(self.auth_tokens).map(Secret::from),
                raw_tokens: given(self.raw_auth_tokens).map(Secret::from),
                file: self.tokens_file.filter(|path| !path.as_os_str().is_empty()),
                secrets: present(self.token_secret).map(Secret::from),
            },
            console,
            instance_id,
            max_body: max_body as usize * MIB,
            start_spread: Duration::from_secs(u64::from(spread_seconds)),
            max_connections: max_connections as usize,
            idle_timeout,
            tls,
            retention: Retention {
                task_rows: u64::from(task_rows),
                task_age: Duration::from_secs(u64::from(task_days) * DAY),
                log_age: log_days.map(|days| Duration::from_secs(u64::from(days) * DAY)),
            },
            allow_unisolated,
            log_json,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Problems;

    #[test]
    fn a_console_has_a_plain_url_and_a_token_and_errors_show_neither() {
        let console = |url: &str, token: &str| {
            let mut problems = Problems::default();
            let console = problems.console(Some(url.to_owned()), Some(token.to_owned()));
            (console, problems.into_result().map_err(|failure| failure.text).err())
        };
        let (found, problem) = console(" https://console.example.com:3000/jitsu/ ", "t0ken");
        assert_eq!(found.expect("settings").endpoint.to_string(), "https://console.example.com:3000/jitsu");
        assert_eq!(problem, None);
        assert!(console("", "t0ken").0.is_none() && console("http://console", "").0.is_none());
        for (url, token, expected) in [
            ("ftp://hunter2", "t", "SYNCCTL_CONSOLE_URL is not a URL"),
            ("hunter2", "t", "SYNCCTL_CONSOLE_URL is not a URL"),
            ("http://u:hunter2@console", "t", "SYNCCTL_CONSOLE_URL contains credentials"),
            ("http://console?hunter2", "t", "SYNCCTL_CONSOLE_URL contains a query"),
            ("http://console", "hunter2\r\nX: y", "SYNCCTL_CONSOLE_TOKEN cannot be sent"),
        ] {
            let problem = console(url, token).1.expect(expected);
            assert!(problem.contains(expected) && !problem.contains("hunter2"), "{problem}");
        }
    }

    #[test]
    fn tls_needs_a_certificate_and_its_key() {
        for (files, expected) in [
            ([None, None, None], ""),
            ([Some("c"), Some("k"), None], ""),
            ([Some("c"), Some("k"), Some("a")], ""),
            ([Some("c"), None, None], "SYNCCTL_TLS_KEY is not set"),
            ([None, Some("k"), None], "SYNCCTL_TLS_CERT is not set"),
            ([None, None, Some("a")], "SYNCCTL_TLS_CERT is not set"),
            ([Some("c"), Some("-----BEGIN PRIVATE KEY-----\nhunter2"), None], "SYNCCTL_TLS_KEY is no path"),
        ] {
            let mut problems = Problems::default();
            let found = problems.tls(files.map(|path| path.map(str::to_owned)));
            let problem = problems.into_result().map_err(|failure| failure.text).err().unwrap_or_default();
            assert_eq!(found.is_some(), expected.is_empty() && files[0].is_some());
            assert!(problem.contains(expected) && problem.is_empty() == expected.is_empty(), "{problem}");
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }

    #[test]
    fn a_value_may_come_from_another_variable() {
        let mut problems = Problems::default();
        assert_eq!(problems.instance_id(Some("a".to_owned())), Some("a".to_owned()));
        assert_eq!(problems.instance_id(Some("env://PATH".to_owned())), std::env::var("PATH").ok());
        assert_eq!(problems.instance_id(Some("env://SYNCCTL_NO_SUCH_VARIABLE".to_owned())), None);
        let failure = problems.into_result().expect_err("it is not set");
        assert!(failure.text.contains("SYNCCTL_NO_SUCH_VARIABLE"), "{failure}");
    }
}
