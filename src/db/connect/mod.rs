//! One connection to a server: its address, TLS and settings, and how it is opened within bounded time.
//!
//! Knows nothing of pools, tables or tasks: destinations use it, too.

mod tls;
mod url;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use postgres::config::{Host, SslNegotiation};
use postgres::error::SqlState;
use postgres::{Client, Config, NoTls};
use secrecy::ExposeSecret;
use tokio_postgres_rustls::MakeRustlsConnect;

pub use tls::SslMode;
use url::Parameters;

use super::error::{self, DbError};
use super::text::quote_literal;
use crate::secret::Secret;

/// Limit of the TCP connection to one address, where the URL has no `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One host may take this many times the connect timeout, from the name look-up to the server's "ready": a name with a
/// dead IPv6 address still leads to its IPv4 address.
const ATTEMPT_FACTOR: u32 = 2;
/// A peer that vanished is noticed after idle + 3 × interval = 60 s without traffic …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;
/// … or when it has not acknowledged data for this long.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// A database to connect to. Its settings are valid as far as that can be decided without a connection.
#[derive(Clone)]
pub struct Target {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    /// Server settings of the user, `search_path` among them.
    settings: Vec<(String, String)>,
    /// Settings of ours, which a server that does not know them goes without.
    defaults: Vec<(String, String)>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("address", &self.address())
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl Target {
    /// Parses a URL (`postgresql://`, `postgres://`) or a `key=value` text. Errors name the `variable` that holds it.
    pub fn parse(url: &Secret, variable: &str) -> Result<Self, DbError> {
        Self::new(url::parse(url.expose_secret()), variable)
    }

    /// Takes parameters by their names in a URL: `host`, `user`, `sslmode` and so on. Of two for one name the later one
    /// counts.
    pub fn from_parameters<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, DbError> {
        Self::new(Parameters::of(parameters), "connection settings")
    }

    fn new(parameters: Result<Parameters, String>, variable: &str) -> Result<Self, DbError> {
        parameters
            .and_then(Self::configure)
            .map_err(|problem| DbError::InvalidSettings { variable: variable.to_owned(), problem })
    }

    fn configure(parameters: Parameters) -> Result<Self, String> {
        let mut config = parameters.config()?;
        // As with libpq, Unix sockets are never encrypted, whatever the mode.
        let local =
            config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_))) && !config.get_hosts().is_empty();
        let ssl = if local { SslMode::Disable } else { parameters.ssl.unwrap_or(SslMode::Prefer) };
        let direct = config.get_ssl_negotiation() == SslNegotiation::Direct;
        let tls = tls::connector(ssl, &parameters.certificates, direct)?;
        config.ssl_mode(match ssl {
            SslMode::Disable => postgres::config::SslMode::Disable,
            SslMode::Prefer => postgres::config::SslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => postgres::config::SslMode::Require,
        });
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(TCP_USER_TIMEOUT);
        }
        if config.get_keepalives_interval().is_none() {
            config
                .keepalives_idle(KEEPALIVE_IDLE)
                .keepalives_interval(KEEPALIVE_INTERVAL)
                .keepalives_retries(KEEPALIVE_RETRIES);
        }
        // By default notices ("schema exists, skipping") are logged.
        config.notice_callback(|_| {});
        Ok(Self { config, tls, settings: parameters.settings, defaults: Vec::new() })
    }

    /// `database "x" at host:port`, for messages.
    pub fn address(&self) -> String {
        let database =
            self.config.get_dbname().map_or("the default database".to_owned(), |name| format!("database {name:?}"));
        let ports = self.config.get_ports();
        let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        let mut hosts: Vec<String> = self
            .config
            .get_hosts()
            .iter()
            .enumerate()
            .map(|(index, host)| match host {
                Host::Tcp(name) if name.contains(':') => format!("[{name}]:{}", port(index)),
                Host::Tcp(name) => format!("{name}:{}", port(index)),
                Host::Unix(path) => format!("{}:{}", path.display(), port(index)),
            })
            .collect();
        if hosts.is_empty() {
            hosts = self.config.get_hostaddrs().iter().map(|address| format!("{address}:{}", port(0))).collect();
        }
        format!("{database} at {}", hosts.join(","))
    }

    /// Whether both addresses certainly lead to the same database, if they are used on the same machine. A name server, a
    /// proxy or a pooler may have more addresses of it.
    pub fn is_same_database(&self, other: &Self) -> bool {
        let database =
            |target: &Self| target.config.get_dbname().or(target.config.get_user()).unwrap_or_default().to_owned();
        let (ours, theirs) = (self.endpoints(), other.endpoints());
        database(self) == database(other) && ours.iter().any(|endpoint| theirs.contains(endpoint))
    }

    /// Hosts in one spelling, and their ports.
    fn endpoints(&self) -> Vec<(String, u16)> {
        const LOOPBACK: &str = "localhost";
        let of_name = |name: &str| match name.parse::<IpAddr>() {
            Ok(address) if address.is_loopback() => LOOPBACK.to_owned(),
            Ok(address) => address.to_string(),
            Err(_) => name.trim_end_matches('.').to_ascii_lowercase(),
        };
        let hosts = self.config.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => of_name(name),
            Host::Unix(path) => path.display().to_string().trim_end_matches('/').to_owned(),
        });
        let addresses = self.config.get_hostaddrs().iter().map(|address| of_name(&address.to_string()));
        let ports = self.config.get_ports();
        let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        let with_ports = |(index, host)| (host, port(index));
        hosts.enumerate().map(with_ports).chain(addresses.enumerate().map(with_ports)).collect()
    }

    /// The `search_path` of the URL, in SQL syntax.
    pub fn search_path(&self) -> Option<&str> {
        self.settings.iter().find(|(name, _)| name == "search_path").map(|(_, value)| value.as_str())
    }

    /// Adds a server setting unless the URL has it. A server that is too old for it goes without.
    #[must_use]
    pub fn with_default_setting(mut self, name: &str, value: &str) -> Self {
        if !self.settings.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
            self.defaults.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Opens a connection and applies the server settings of the URL. One attempt, bounded in time.
    ///
    /// The settings are applied after connecting, because `PgBouncer` refuses them as start-up parameters. Behind a
    /// `PgBouncer` that pools transactions, callers must apply them in each transaction
    /// ([`settings_sql`](Self::settings_sql)).
    pub fn connect(&self, application_name: &str) -> Result<Client, DbError> {
        let mut client = self.connect_without_settings(application_name)?;
        if let Some(sql) = self.settings_sql(false) {
            client.batch_execute(&sql).map_err(|error| self.unreachable(&error))?;
        }
        Ok(client)
    }

    /// Opens a connection with the settings of the server.
    pub(super) fn connect_without_settings(&self, application_name: &str) -> Result<Client, DbError> {
        let mut config = self.config.clone();
        if config.get_application_name().is_none() {
            config.application_name(application_name);
        }
        let limit = self.connect_limit();
        let tls = self.tls.clone();
        // The crate's own limit covers only the TCP connection, and not a server that accepts and then is silent. Such
        // a thread ends when the peer closes the connection.
        let (sender, receiver) = mpsc::sync_channel(1);
        let run = move || {
            let result = match tls {
                Some(tls) => match config.connect(tls) {
                    Err(error) if may_retry_without_tls(&config, &error) => {
                        config.ssl_mode(postgres::config::SslMode::Disable).connect(NoTls)
                    }
                    result => result,
                },
                None => config.connect(NoTls),
            };
            // Drops the connection if the caller no longer waits.
            let _ = sender.send(result);
        };
        let transient = |reason: String| DbError::Unreachable {
            address: self.address(),
            reason,
            transient: true,
            no_server: false,
        };
        thread::Builder::new()
            .name("db-connect".to_owned())
            .spawn(run)
            .map_err(|error| transient(format!("cannot start a thread: {error}")))?;
        match receiver.recv_timeout(limit) {
            Ok(result) => result.map_err(|error| self.unreachable(&error)),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(transient(format!("no answer within {} s", limit.as_secs_f32())))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(transient("the attempt ended without a result".to_owned()))
            }
        }
    }

    /// The limit of one attempt, which may try all hosts.
    fn connect_limit(&self) -> Duration {
        let hosts = self.config.get_hosts().len().max(self.config.get_hostaddrs().len()).max(1);
        let one = self.config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
        one.saturating_mul(ATTEMPT_FACTOR).saturating_mul(u32::try_from(hosts).unwrap_or(u32::MAX))
    }

    /// The statement that applies the server settings, to the session or, if `local`, to the current transaction.
    pub fn settings_sql(&self, local: bool) -> Option<String> {
        let set = |(name, value): &(String, String)| {
            format!("pg_catalog.set_config({}, {}, {local})", quote_literal(name), quote_literal(value))
        };
        let set_if_known = |setting: &(String, String)| {
            let name = quote_literal(&setting.0);
            format!("CASE WHEN pg_catalog.current_setting({name}, true) IS NOT NULL THEN {} END", set(setting))
        };
        let calls: Vec<String> = self.settings.iter().map(set).chain(self.defaults.iter().map(set_if_known)).collect();
        (!calls.is_empty()).then(|| format!("SELECT {}", calls.join(", ")))
    }

    /// The message of an error of this database, without user and password.
    pub fn describe(&self, error: &postgres::Error) -> String {
        error::describe(error, self.config.get_user(), self.config.get_password())
    }

    pub(super) fn unreachable(&self, error: &postgres::Error) -> DbError {
        DbError::Unreachable {
            address: self.address(),
            reason: self.describe(error),
            transient: error::is_transient(error),
            no_server: error::is_no_server(error),
        }
    }
}

/// Whether to connect without TLS, as libpq's `prefer` does: the handshake failed, or the server does not accept the user
/// with TLS.
fn may_retry_without_tls(config: &Config, error: &postgres::Error) -> bool {
    config.get_ssl_mode() == postgres::config::SslMode::Prefer
        && (error::is_tls(error) || error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION))
}
