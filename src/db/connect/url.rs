//! The forms in which a connection is described: URL, `key=value` text, single parameters.
//!
//! `search_path`, `schema`, `options` and the verifying SSL modes are unknown to the `postgres` crate and are taken out
//! here. Problems are told without the values, which may be secret.

use std::time::Duration;

use postgres::Config;
use postgres::config::{ChannelBinding, Host, LoadBalanceHosts, SslNegotiation, TargetSessionAttrs};

use super::{Certificates, SslMode};

/// What a description says, before certificates are read.
#[derive(Default)]
pub(super) struct Parts {
    /// Without hosts and ports until [`complete`](Self::complete): a parameter replaces those before the `?`, and a
    /// `Config` can only add.
    pub(super) config: Config,
    pub(super) hosts: Vec<String>,
    pub(super) ports: Vec<u16>,
    pub(super) ssl: Option<SslMode>,
    pub(super) certificates: Certificates,
    /// Server settings (`search_path` and others) to set once connected.
    pub(super) settings: Vec<(String, String)>,
    pub(super) direct_tls: bool,
}

/// Parameters that other clients know and that mean nothing here: pools and caches of Prisma and pgx, and options of
/// libpq that have no counterpart.
const IGNORED: [&str; 20] = [
    "pgbouncer",
    "connection_limit",
    "pool_timeout",
    "socket_timeout",
    "statement_cache_size",
    "statement_cache_capacity",
    "description_cache_capacity",
    "default_query_exec_mode",
    "pool_max_conns",
    "pool_min_conns",
    "pool_max_conn_lifetime",
    "pool_max_conn_idle_time",
    "pool_health_check_period",
    "fallback_application_name",
    "client_encoding",
    "gssencmode",
    "krbsrvname",
    "sslcompression",
    "sslsni",
    "uselibpqcompat",
];

/// Server settings that some clients take as parameters.
const SERVER_SETTINGS: [&str; 5] =
    ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "timezone", "role"];

const EXPECTED: &str = "expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE";

/// Reads a URL or a `key=value` text.
pub(super) fn parse(text: &str) -> Result<Parts, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err(format!("is empty: {EXPECTED}"));
    }
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        parse_url(text)
    } else if text.contains('=') && !text.contains("://") {
        parse_pairs(text)
    } else {
        Err(format!("is not the URL of a PostgreSQL database: {EXPECTED}"))
    }
}

fn parse_url(text: &str) -> Result<Parts, String> {
    let (base, query) = text.split_once('?').unwrap_or((text, ""));
    // The crate's own text may quote a part of the URL, and which part that is depends on the mistake.
    let config: Config = base
        .parse()
        .map_err(|_| format!("cannot be read: {EXPECTED}, with special characters percent-encoded (%40 for @)"))?;
    let mut parts = Parts::default();
    config.get_user().map(|user| parts.config.user(user));
    config.get_password().map(|password| parts.config.password(password));
    config.get_dbname().map(|name| parts.config.dbname(name));
    parts.hosts = config.get_hosts().iter().map(host_name).collect();
    parts.ports = config.get_ports().to_vec();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = percent_decode(key).ok_or("has a parameter whose name is not percent-encoded UTF-8")?;
        let value = percent_decode(value)
            .ok_or_else(|| format!("parameter {key:?} has a value that is not percent-encoded UTF-8"))?;
        parts.apply(&key, &value)?;
    }
    parts.complete()
}

fn parse_pairs(text: &str) -> Result<Parts, String> {
    let malformed =
        || "cannot be read: expected key=value pairs with values that hold spaces in single quotes".to_owned();
    let mut parts = Parts::default();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or_else(malformed)?;
        let key = key.trim();
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(malformed());
        }
        let after = after.trim_start();
        let quoted = after.starts_with('\'');
        let mut value = String::new();
        let mut end = None;
        let mut chars = after.char_indices().skip(usize::from(quoted));
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => value.push(chars.next().ok_or_else(malformed)?.1),
                '\'' if quoted => {
                    end = Some(at + 1);
                    break;
                }
                c if !quoted && c.is_whitespace() => {
                    end = Some(at);
                    break;
                }
                c => value.push(c),
            }
        }
        if quoted && end.is_none() {
            return Err(malformed());
        }
        rest = after[end.unwrap_or(after.len())..].trim_start();
        parts.apply(key, &value)?;
    }
    parts.complete()
}

impl Parts {
    /// Takes one parameter, whatever form it came in.
    pub(super) fn apply(&mut self, key: &str, value: &str) -> Result<(), String> {
        if value.contains('\0') {
            return Err(format!("parameter {key:?} holds a NUL character"));
        }
        match key {
            "search_path" => self.set_search_path(value.to_owned())?,
            // Prisma's name is exact, where an unquoted name in a search path would be folded to lower case.
            "schema" => self.set_search_path(quote_ident(value))?,
            "options" => self.apply_options(value)?,
            "sslmode" => self.ssl = Some(SslMode::parse(value)?),
            "sslaccept" if value == "strict" => self.ssl = Some(SslMode::VerifyFull),
            "sslaccept" if value == "accept_invalid_certs" => {}
            // libpq's word for the certificates of the system.
            "sslrootcert" if value == "system" => self.ssl = Some(SslMode::VerifyFull),
            "sslrootcert" => self.certificates.server_ca = Some(value.to_owned()),
            "sslcert" => self.certificates.client_cert = Some(value.to_owned()),
            "sslkey" => self.certificates.client_key = Some(value.to_owned()),
            key if IGNORED.contains(&key) => {}
            key if SERVER_SETTINGS.contains(&key) => self.settings.push((key.to_owned(), value.to_owned())),
            "host" => self.hosts = value.split(',').map(str::to_owned).collect(),
            "port" => {
                let ports = value.split(',').map(|port| if port.is_empty() { Ok(5432) } else { port.parse() });
                self.ports =
                    ports.collect::<Result<_, _>>().map_err(|_| "parameter \"port\" is not a number".to_owned())?;
            }
            key => apply_to_config(&mut self.config, &mut self.direct_tls, key, value)?,
        }
        Ok(())
    }

    fn set_search_path(&mut self, value: String) -> Result<(), String> {
        if value.trim().is_empty() || value == "\"\"" {
            return Err("names an empty schema".to_owned());
        }
        match self.settings.iter().find(|(name, _)| name == "search_path") {
            Some((_, other)) if *other != value => Err("names two different schemas".to_owned()),
            Some(_) => Ok(()),
            None => {
                self.settings.push(("search_path".to_owned(), value));
                Ok(())
            }
        }
    }

    /// `-c name=value`, `-cname=value` and `--name=value`, with backslashes before spaces that belong to a value.
    fn apply_options(&mut self, text: &str) -> Result<(), String> {
        let unreadable = || "parameter \"options\" may hold -c NAME=VALUE and nothing else".to_owned();
        let mut words = vec![String::new()];
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match (c, words.last_mut()) {
                ('\\', Some(word)) => word.push(chars.next().ok_or_else(unreadable)?),
                (c, Some(word)) if !c.is_whitespace() => word.push(c),
                _ => words.push(String::new()),
            }
        }
        let mut words = words.into_iter().filter(|word| !word.is_empty());
        while let Some(word) = words.next() {
            let setting = match word.strip_prefix("-c") {
                Some("") => words.next().ok_or_else(unreadable)?,
                Some(rest) => rest.to_owned(),
                None => word.strip_prefix("--").ok_or_else(unreadable)?.to_owned(),
            };
            let (name, value) = setting.split_once('=').ok_or_else(unreadable)?;
            if name == "search_path" {
                self.set_search_path(value.to_owned())?;
            } else if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
                self.settings.push((name.replace('-', "_"), value.to_owned()));
            } else {
                return Err(unreadable());
            }
        }
        Ok(())
    }

    pub(super) fn complete(mut self) -> Result<Self, String> {
        self.hosts.iter().filter(|host| !host.is_empty()).for_each(|host| _ = self.config.host(host));
        self.ports.iter().for_each(|port| _ = self.config.port(*port));
        if self.config.get_hosts().is_empty() && self.config.get_hostaddrs().is_empty() {
            return Err(format!("names no host: {EXPECTED}"));
        }
        Ok(self)
    }
}

fn host_name(host: &Host) -> String {
    match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.to_string_lossy().into_owned(),
    }
}

fn apply_to_config(config: &mut Config, direct_tls: &mut bool, key: &str, value: &str) -> Result<(), String> {
    let invalid = || format!("parameter {key:?} has a value that is not allowed");
    let number = || value.parse::<u32>().map_err(|_| invalid());
    let seconds = || number().map(|n| Duration::from_secs(n.into()));
    match key {
        "user" => _ = config.user(value),
        "password" => _ = config.password(value),
        "dbname" => _ = config.dbname(value),
        "hostaddr" => {
            for address in value.split(',') {
                config.hostaddr(address.parse().map_err(|_| invalid())?);
            }
        }
        "application_name" => _ = config.application_name(value),
        // 0 is "for ever" to libpq; nothing here waits for ever.
        "connect_timeout" if number()? == 0 => {}
        "connect_timeout" => _ = config.connect_timeout(seconds()?),
        "tcp_user_timeout" => _ = config.tcp_user_timeout(Duration::from_millis(number()?.into())),
        "keepalives" => _ = config.keepalives(number()? != 0),
        "keepalives_idle" => _ = config.keepalives_idle(seconds()?),
        "keepalives_interval" => _ = config.keepalives_interval(seconds()?),
        "keepalives_retries" | "keepalives_count" => _ = config.keepalives_retries(number()?),
        "target_session_attrs" => {
            config.target_session_attrs(match value {
                "any" => TargetSessionAttrs::Any,
                "read-write" | "primary" => TargetSessionAttrs::ReadWrite,
                "read-only" | "standby" => TargetSessionAttrs::ReadOnly,
                _ => return Err(invalid()),
            });
        }
        "channel_binding" => {
            config.channel_binding(match value {
                "disable" => ChannelBinding::Disable,
                "prefer" => ChannelBinding::Prefer,
                "require" => ChannelBinding::Require,
                _ => return Err(invalid()),
            });
        }
        "load_balance_hosts" => {
            config.load_balance_hosts(match value {
                "disable" => LoadBalanceHosts::Disable,
                "random" => LoadBalanceHosts::Random,
                _ => return Err(invalid()),
            });
        }
        "sslnegotiation" if value == "direct" => {
            *direct_tls = true;
            config.ssl_negotiation(SslNegotiation::Direct);
        }
        "sslnegotiation" if value == "postgres" => {}
        "sslnegotiation" => return Err(invalid()),
        _ => return Err(format!("unknown parameter {key:?}")),
    }
    Ok(())
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first == b'%' {
            let (hex, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// An identifier of any content.
pub(in crate::db) fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal of any content, whatever `standard_conforming_strings` is.
pub(super) fn quote_literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// The first schema of a search path: where new tables land. `None` for `"$user"`.
pub(in crate::db) fn first_schema(path: &str) -> Option<String> {
    let path = path.trim();
    let name = match path.strip_prefix('"') {
        Some(quoted) => {
            let mut name = String::new();
            let mut chars = quoted.chars().peekable();
            while let Some(c) = chars.next() {
                if c == '"' && chars.next_if_eq(&'"').is_none() {
                    break;
                }
                name.push(c);
            }
            name
        }
        None => path.split(',').next()?.trim().to_lowercase(),
    };
    (!name.is_empty() && name != "$user").then_some(name)
}

#[cfg(test)]
#[path = "url_tests.rs"]
mod tests;
