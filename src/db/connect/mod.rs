//! One connection to a server: its address, TLS and settings, and how it is opened within bounded time.
//!
//! Knows nothing of pools, tables or tasks: destinations use it, too.

mod authentication;
mod endpoint;
mod negotiation;
mod tls;
mod url;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use postgres::config::{LoadBalanceHosts, SslNegotiation};
use postgres::error::SqlState;
use postgres::{Client, Config, NoTls};
use secrecy::ExposeSecret;

use authentication::Cleartext;
use endpoint::{Endpoint, Place};
use negotiation::Negotiator;
use tls::Files;
pub use tls::{SslMode, read_pem_file};
use url::Parameters;

use super::error::{self, DbError};
use super::text::quote_literal;
use crate::host_rules::{self, HostRules, Refused};
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
    /// Without hosts.
    config: Config,
    endpoints: Vec<Endpoint>,
    negotiator: Negotiator,
    /// Without TLS after an attempt with TLS has failed.
    may_do_without_tls: bool,
    /// The hosts that it may be at; `None`: any.
    rules: Option<Arc<HostRules>>,
    /// Server settings of the user, `search_path` among them.
    settings: Vec<(String, String)>,
    /// Settings of ours, which a server that does not know them goes without.
    defaults: Vec<(String, String)>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("address", &self.address())
            .field("tls", &self.negotiator.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl Target {
    /// Parses a URL (`postgresql://`, `postgres://`) or a `key=value` text of an operator, whose certificates may be in
    /// files. Errors name the `variable` that holds it.
    pub fn parse(url: &Secret, variable: &str) -> Result<Self, DbError> {
        Self::new(url::parse(url.expose_secret()), Files::Read, variable)
    }

    /// Takes parameters by their names in a URL: `host`, `user`, `sslmode` and so on. Of two for one name the later one
    /// counts. No file is read: certificates are PEM text, because a caller of another machine may have given them.
    pub fn from_parameters<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, DbError> {
        Self::new(Parameters::of(parameters), Files::Refuse, "connection settings")
    }

    fn new(parameters: Result<Parameters, String>, files: Files, variable: &str) -> Result<Self, DbError> {
        parameters
            .and_then(|parameters| Self::configure(parameters, files))
            .map_err(|problem| DbError::InvalidSettings { variable: variable.to_owned(), problem })
    }

    fn configure(parameters: Parameters, files: Files) -> Result<Self, String> {
        let (mut config, endpoints) = parameters.config()?;
        // As with libpq, Unix sockets are never encrypted, whatever the mode.
        let local = endpoints.iter().all(Endpoint::is_socket);
        let ssl = if local { SslMode::Disable } else { parameters.ssl.unwrap_or(SslMode::Prefer) };
        let is_direct = config.get_ssl_negotiation() == SslNegotiation::Direct;
        if is_direct && ssl == SslMode::Prefer {
            return Err("sslnegotiation=direct needs an sslmode that requires TLS".to_owned());
        }
        let negotiator = Negotiator {
            tls: tls::connector(ssl, &parameters.certificates, files, is_direct)?,
            is_required: ssl != SslMode::Prefer,
            is_direct,
            cleartext: Cleartext::of(parameters.ssl, parameters.certificates.server_ca.is_some()),
        };
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
        Ok(Self {
            config,
            endpoints,
            negotiator,
            may_do_without_tls: ssl == SslMode::Prefer,
            rules: None,
            settings: parameters.settings,
            defaults: Vec::new(),
        })
    }

    /// The same database, if these rules allow its hosts: each connection checks that.
    #[must_use]
    pub fn restricted_to(self, rules: Arc<HostRules>) -> Self {
        Self { rules: Some(rules), ..self }
    }

    /// Why these rules refuse one of its hosts, as far as that can be found out soon and here.
    pub fn check_hosts(&self, rules: &HostRules) -> Result<(), Refused> {
        self.endpoints.iter().try_for_each(|endpoint| match endpoint.place() {
            Place::Socket(directory) => rules.check_socket(directory),
            Place::Network(host) => rules.check_soon(&host, endpoint.port),
        })
    }

    /// `database "x" at host:port`, for messages.
    pub fn address(&self) -> String {
        let database =
            self.config.get_dbname().map_or("the default database".to_owned(), |name| format!("database {name:?}"));
        let hosts: Vec<String> = self.endpoints.iter().map(Endpoint::to_string).collect();
        format!("{database} at {}", hosts.join(","))
    }

    /// Whether both addresses certainly lead to the same database, if they are used on the same machine. A name server, a
    /// proxy or a pooler may have more addresses of it.
    pub fn is_same_database(&self, other: &Self) -> bool {
        let database =
            |target: &Self| target.config.get_dbname().or(target.config.get_user()).unwrap_or_default().to_owned();
        let spellings = |target: &Self| target.endpoints.iter().flat_map(Endpoint::spellings).collect::<Vec<_>>();
        let (ours, theirs) = (spellings(self), spellings(other));
        database(self) == database(other) && ours.iter().any(|endpoint| theirs.contains(endpoint))
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
        // The crate's own limit covers only the TCP connection, and not a server that accepts and then is silent. Such
        // a thread ends when the peer closes the connection.
        let (sender, receiver) = mpsc::sync_channel(1);
        let target = self.clone();
        let run = move || {
            let result = target.connect_to_any(&config);
            // Drops the connection if the caller no longer waits.
            let _ = sender.send(result);
        };
        let transient = |reason: String| self.no_connection(&reason, true, false);
        thread::Builder::new()
            .name("db-connect".to_owned())
            .spawn(run)
            .map_err(|error| transient(format!("cannot start a thread: {error}")))?;
        match receiver.recv_timeout(limit) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(transient(format!("no answer within {} s", limit.as_secs_f32())))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(transient("the attempt ended without a result".to_owned()))
            }
        }
    }

    /// Connects to the first host that accepts; the error is that of the last one.
    fn connect_to_any(&self, config: &Config) -> Result<Client, DbError> {
        let mut endpoints: Vec<&Endpoint> = self.endpoints.iter().collect();
        if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
            endpoints.sort_by_cached_key(|_| uuid::Uuid::new_v4());
        }
        let mut result = None;
        for endpoint in endpoints {
            match self.connect_to(config, endpoint) {
                Ok(client) => return Ok(client),
                Err(error) => result = Some(error),
            }
        }
        let no_host = || self.no_connection("it has no host", false, false);
        Err(result.unwrap_or_else(no_host))
    }

    fn connect_to(&self, config: &Config, endpoint: &Endpoint) -> Result<Client, DbError> {
        let mut config = config.clone();
        config.port(endpoint.port);
        let host = match endpoint.place() {
            Place::Socket(directory) => {
                let allowed = self.rules.as_ref().map_or(Ok(()), |rules| rules.check_socket(directory));
                allowed.map_err(|refused| self.no_connection(&refused.to_string(), false, false))?;
                config.host_path(directory).ssl_mode(postgres::config::SslMode::Disable);
                config.ssl_negotiation(SslNegotiation::Postgres);
                return config.connect(NoTls).map_err(|error| self.unreachable(&error));
            }
            Place::Network(host) => host,
        };
        let addresses = host_rules::resolve(self.rules.as_deref(), &host, endpoint.port).map_err(|error| {
            let transient = !host_rules::is_refused(&error);
            let reason = if transient { format!("error connecting to server: {error}") } else { error.to_string() };
            self.no_connection(&reason, transient, error::is_no_server_io(&error))
        })?;
        // The addresses that were checked, and the name for the certificate.
        for address in addresses {
            config.host(&endpoint.name).hostaddr(address.ip());
        }
        // See `Negotiator`.
        config.ssl_mode(postgres::config::SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        let result = match config.connect(self.negotiator.clone()) {
            Err(error) if self.may_do_without_tls && may_retry_without_tls(&error) => {
                config.connect(Negotiator { tls: None, ..self.negotiator.clone() })
            }
            result => result,
        };
        result.map_err(|error| self.unreachable(&error))
    }

    /// The limit of one attempt, which may try all hosts.
    fn connect_limit(&self) -> Duration {
        let one = self.config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
        one.saturating_mul(ATTEMPT_FACTOR).saturating_mul(u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX))
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
        self.no_connection(&self.describe(error), error::is_transient(error), error::is_no_server(error))
    }

    fn no_connection(&self, reason: &str, transient: bool, no_server: bool) -> DbError {
        DbError::Unreachable { address: self.address(), reason: reason.to_owned(), transient, no_server }
    }
}

/// Whether to connect without TLS, as libpq's `prefer` does: the handshake failed, or the server does not accept the user
/// with TLS.
fn may_retry_without_tls(error: &postgres::Error) -> bool {
    error::is_tls(error) || error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}
