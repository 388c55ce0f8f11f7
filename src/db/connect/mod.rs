//! One connection: where it goes, how it is secured, how it is opened within bounded time.
//!
//! Knows nothing of pools, tables or tasks: destinations use it, too.

mod tls;
pub mod url;

use std::fmt;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use postgres::config::Host;
use postgres::error::SqlState;
use postgres::{Client, Config, NoTls};
use secrecy::ExposeSecret;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{self, DbError};
use crate::secret::Secret;
use url::{Parts, quote_literal};

/// How long one address of a host may take to accept a connection, where the URL has no `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An attempt as a whole, from the look-up of the name to the server's "ready", may take that many times longer: a name
/// with a dead IPv6 address still leads to the other one, and nobody at a prompt waits for more than ten seconds.
const ATTEMPT_FACTOR: u32 = 2;
/// A peer that vanished without a word is noticed after idle + 3 × interval = 60 s of silence …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;
/// … or when it has not acknowledged what we sent.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// What TLS has to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// None.
    Disable,
    /// If the server has it, without checking its certificate (`allow`, `prefer`).
    Prefer,
    /// With any certificate; with a root certificate given, like `verify-ca` (as libpq does).
    Require,
    /// With a certificate that a root vouches for.
    VerifyCa,
    /// With a certificate that a root vouches for and that is made out to the host.
    VerifyFull,
}

impl SslMode {
    /// Reads libpq's word.
    pub fn parse(word: &str) -> Result<Self, String> {
        Ok(match word {
            "disable" => Self::Disable,
            "allow" | "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => {
                return Err(format!(
                    "unknown sslmode {word:?}: expected disable, allow, prefer, require, verify-ca or verify-full"
                ));
            }
        })
    }
}

/// Certificates as PEM text or as paths of files.
#[derive(Clone, Default)]
pub struct Certificates {
    /// Roots that vouch for the server, instead of the usual ones.
    pub server_ca: Option<String>,
    /// The certificate by which we authenticate.
    pub client_cert: Option<String>,
    /// Its key.
    pub client_key: Option<String>,
}

/// A database to connect to. Everything that can be wrong without a connection is known to be right.
#[derive(Clone)]
pub struct Target {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    /// Server settings, `search_path` among them.
    settings: Vec<(String, String)>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("place", &self.address())
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl Target {
    /// Reads a URL (`postgresql://`, `postgres://`) or a `key=value` text. `variable` is what an error calls it.
    pub fn parse(url: &Secret, variable: &str) -> Result<Self, DbError> {
        let invalid = |problem| DbError::InvalidSettings { variable: variable.to_owned(), problem };
        url::parse(url.expose_secret()).and_then(Self::new).map_err(invalid)
    }

    /// Puts a target together from single values; `parameters` are those that a URL could have after its `?`.
    ///
    /// A parameter `sslmode` wins over `ssl`.
    #[expect(clippy::too_many_arguments, reason = "a destination's configuration is just that flat")]
    pub fn from_parts(
        host: &str,
        port: u16,
        database: &str,
        username: &str,
        password: &Secret,
        ssl: SslMode,
        certificates: Certificates,
        parameters: &[(String, String)],
    ) -> Result<Self, DbError> {
        let mut parts = Parts { ssl: Some(ssl), certificates, ..Parts::default() };
        parts.config.dbname(database).user(username).password(password.expose_secret());
        let port = port.to_string();
        let parameters = parameters.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        [("host", host), ("port", &port)]
            .into_iter()
            .chain(parameters)
            .try_for_each(|(key, value)| parts.apply(key, value))
            .and_then(|()| parts.complete())
            .and_then(Self::new)
            .map_err(|problem| DbError::InvalidSettings { variable: "connection settings".to_owned(), problem })
    }

    fn new(parts: Parts) -> Result<Self, String> {
        let Parts { mut config, ssl, certificates, settings, direct_tls, hosts: _, ports: _ } = parts;
        // Sockets of this machine are never encrypted, whatever the mode (as libpq has it).
        let local =
            config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_))) && !config.get_hosts().is_empty();
        let ssl = if local { SslMode::Disable } else { ssl.unwrap_or(SslMode::Prefer) };
        let tls = tls::connector(ssl, &certificates, direct_tls)?;
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
        // Notices ("schema exists, skipping") are of no use to anybody; by default they would be logged.
        config.notice_callback(|_| {});
        Ok(Self { config, tls, settings })
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

    /// The search path of the URL, in the syntax of the server.
    pub fn search_path(&self) -> Option<&str> {
        self.settings.iter().find(|(name, _)| name == "search_path").map(|(_, value)| value.as_str())
    }

    /// Sets a server setting that the URL did not set.
    #[must_use]
    pub fn with_default_setting(mut self, name: &str, value: &str) -> Self {
        if !self.settings.iter().any(|(other, _)| other == name) {
            self.settings.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Opens a connection with the settings of the URL in force. One attempt, bounded in time.
    ///
    /// The settings are set after connecting, because `PgBouncer` refuses them as start-up parameters. Behind a
    /// `PgBouncer` that pools transactions they only hold if the caller sets them in each transaction
    /// ([`settings_sql`](Self::settings_sql)).
    pub fn connect(&self, application_name: &str) -> Result<Client, DbError> {
        let mut client = self.connect_bare(application_name)?;
        if let Some(sql) = self.settings_sql(false) {
            client.batch_execute(&sql).map_err(|error| self.unreachable(&error))?;
        }
        Ok(client)
    }

    /// Opens a connection as it comes from the server.
    pub(super) fn connect_bare(&self, application_name: &str) -> Result<Client, DbError> {
        let mut config = self.config.clone();
        if config.get_application_name().is_none() {
            config.application_name(application_name);
        }
        let limit = self.connect_limit();
        let tls = self.tls.clone();
        // The crate's own limit covers the TCP connection alone: a server that accepts and then says nothing would
        // hold us for ever. A thread that is given up on ends when the peer closes the connection.
        let (sender, receiver) = mpsc::sync_channel(1);
        let run = move || {
            let result = match tls {
                Some(tls) => match config.connect(tls) {
                    Err(error) if may_go_without_tls(&config, &error) => {
                        config.ssl_mode(postgres::config::SslMode::Disable).connect(NoTls)
                    }
                    result => result,
                },
                None => config.connect(NoTls),
            };
            // Nobody waits any more: the connection is dropped here.
            let _ = sender.send(result);
        };
        let transient = |reason: String| DbError::Unreachable { address: self.address(), reason, transient: true };
        thread::Builder::new()
            .name("db-connect".to_owned())
            .spawn(run)
            .map_err(|error| transient(format!("starting a thread: {error}")))?;
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

    /// The limit of one attempt at all hosts.
    fn connect_limit(&self) -> Duration {
        let hosts = self.config.get_hosts().len().max(self.config.get_hostaddrs().len()).max(1);
        let one = self.config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
        one.saturating_mul(ATTEMPT_FACTOR).saturating_mul(u32::try_from(hosts).unwrap_or(u32::MAX))
    }

    /// The statement that sets the settings, for the session or for the current transaction alone.
    pub fn settings_sql(&self, local: bool) -> Option<String> {
        let calls: Vec<String> = self
            .settings
            .iter()
            .map(|(name, value)| {
                format!("pg_catalog.set_config({}, {}, {local})", quote_literal(name), quote_literal(value))
            })
            .collect();
        (!calls.is_empty()).then(|| format!("SELECT {}", calls.join(", ")))
    }

    /// The text of an error of this database for people, without user and password.
    pub fn describe(&self, error: &postgres::Error) -> String {
        error::describe(error, self.config.get_user(), self.config.get_password())
    }

    pub(super) fn unreachable(&self, error: &postgres::Error) -> DbError {
        DbError::Unreachable {
            address: self.address(),
            reason: self.describe(error),
            transient: error::is_transient(error),
        }
    }
}

/// libpq's `prefer`: where TLS is offered but does not come about, or is not wanted for this user, go without.
fn may_go_without_tls(config: &Config, error: &postgres::Error) -> bool {
    config.get_ssl_mode() == postgres::config::SslMode::Prefer
        && (error::is_tls(error) || error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION))
}
