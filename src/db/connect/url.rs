//! The forms in which a connection is described: URL, `key=value` text, single parameters.
//!
//! `postgres::Config` parses them. What it does not know (`schema`, `search_path`, the verifying SSL modes, certificates,
//! parameters of other clients) is taken out here. Errors never quote values, which may be secret.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::iter::Peekable;
use std::str::Chars;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use postgres::Config;
use postgres::config::Host;

use super::endpoint::Endpoint;
use super::tls::{Certificates, SslMode};
use crate::db::text::quote_ident;

/// Parameters that other clients know and that have no effect here: pools and caches of Prisma and pgx, and options of
/// libpq without a counterpart.
const IGNORED: &str = "pgbouncer connection_limit pool_timeout socket_timeout statement_cache_size \
    statement_cache_capacity description_cache_capacity default_query_exec_mode pool_max_conns pool_min_conns \
    pool_max_conn_lifetime pool_max_conn_idle_time pool_health_check_period fallback_application_name client_encoding \
    gssencmode krbsrvname sslcompression sslsni uselibpqcompat";

/// Server settings that some clients take as parameters.
const SERVER_SETTINGS: &str = "statement_timeout lock_timeout idle_in_transaction_session_timeout timezone role";

const EXPECTED: &str = "expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE";

/// The parameters of a connection. Of two values for one parameter the later one counts.
#[derive(Default)]
pub(super) struct Parameters {
    /// What `postgres::Config` parses.
    known: BTreeMap<String, String>,
    /// Not text: a URL may encode any bytes.
    password: Option<Vec<u8>>,
    tcp_user_timeout: Option<Duration>,
    pub(super) ssl: Option<SslMode>,
    pub(super) certificates: Certificates,
    /// Server settings (`search_path` and others) to set once connected.
    pub(super) settings: Vec<(String, String)>,
}

/// Parses a URL or a `key=value` text.
pub(super) fn parse(text: &str) -> Result<Parameters, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err(format!("is empty: {EXPECTED}"));
    }
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        return parse_url(text);
    }
    if text.contains("://") || !text.contains('=') {
        return Err(format!("is not the URL of a PostgreSQL database: {EXPECTED}"));
    }
    let pairs = parse_pairs(text)
        .ok_or("cannot be parsed: expected key=value pairs, with single quotes around values that contain spaces")?;
    Parameters::of(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())))
}

fn parse_url(text: &str) -> Result<Parameters, String> {
    let (base, query) = text.split_once('?').unwrap_or((text, ""));
    // The reason is left out: it depends on the mistake which part of the URL it is about.
    let config: Config = base
        .parse()
        .map_err(|_| format!("cannot be parsed: {EXPECTED}, with special characters percent-encoded (%40 for @)"))?;
    let hosts: Vec<String> = config.get_hosts().iter().map(host_name).collect();
    let ports: Vec<String> = config.get_ports().iter().map(ToString::to_string).collect();
    let (user, database) = (config.get_user().unwrap_or_default(), config.get_dbname().unwrap_or_default());
    let components =
        [("host", hosts.join(",")), ("port", ports.join(",")), ("user", user.into()), ("dbname", database.into())];
    let mut parameters = Parameters {
        known: components
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.into(), value))
            .collect(),
        password: config.get_password().map(<[u8]>::to_vec),
        ..Parameters::default()
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = percent_decode(key).ok_or("has a parameter whose name is not percent-encoded UTF-8")?;
        let value = percent_decode(value)
            .ok_or_else(|| format!("parameter {key:?} has a value that is not percent-encoded UTF-8"))?;
        parameters.set(&key, &value)?;
    }
    Ok(parameters)
}

fn parse_pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        skip_whitespace(&mut chars);
        if chars.peek().is_none() {
            return Some(pairs);
        }
        let (key, has_value) = take_until(&mut chars, |c| c == '=')?;
        skip_whitespace(&mut chars);
        let quoted = chars.next_if_eq(&'\'').is_some();
        let (value, ended) = take_until(&mut chars, |c| if quoted { c == '\'' } else { c.is_whitespace() })?;
        // Such a key may be a part of a value without quotes, which must not get into a message.
        if !has_value || quoted && !ended || !is_name(key.trim()) {
            return None;
        }
        pairs.push((key.trim().to_owned(), value));
    }
}

fn skip_whitespace(chars: &mut Peekable<Chars<'_>>) {
    while chars.next_if(|c| c.is_whitespace()).is_some() {}
}

/// Reads up to a character that ends the text, where a backslash escapes the next character, and whether there was such
/// an end. `None` if the backslash is the last character.
fn take_until(chars: &mut Peekable<Chars<'_>>, is_end: impl Fn(char) -> bool) -> Option<(String, bool)> {
    let mut text = String::new();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.push(chars.next()?),
            c if is_end(c) => return Some((text, true)),
            c => text.push(c),
        }
    }
    Some((text, false))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

impl Parameters {
    pub(super) fn of<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut parameters = Self::default();
        pairs.into_iter().try_for_each(|(key, value)| parameters.set(key, value))?;
        Ok(parameters)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        if value.contains('\0') {
            return Err(format!("parameter {key:?} contains a NUL character"));
        }
        let is_in = |names: &str| names.split(' ').any(|name| name == key);
        let mut known = |key: &str, value: &str| _ = self.known.insert(key.to_owned(), value.to_owned());
        match key {
            "search_path" => self.set_search_path(value.to_owned())?,
            // Prisma's name is exact, where an unquoted name in a search path would be folded to lower case.
            "schema" => self.set_search_path(quote_ident(value))?,
            "options" => self.set_options(value)?,
            "password" => self.password = Some(value.into()),
            "sslmode" => self.ssl = Some(SslMode::parse(value)?),
            "sslaccept" if value == "strict" => self.ssl = Some(SslMode::VerifyFull),
            "sslaccept" if value == "accept_invalid_certs" => {}
            // libpq's name for the certificates of the system.
            "sslrootcert" if value == "system" => self.ssl = Some(SslMode::VerifyFull),
            "sslrootcert" => self.certificates.server_ca = Some(value.to_owned()),
            "sslcert" => self.certificates.client_cert = Some(value.to_owned()),
            "sslkey" => self.certificates.client_key = Some(value.to_owned()),
            // Milliseconds, as for libpq; postgres::Config reads seconds.
            "tcp_user_timeout" => {
                let millis = value.parse().map_err(|_| format!("invalid value for option `{key}`"))?;
                self.tcp_user_timeout = Some(Duration::from_millis(millis));
            }
            "keepalives_count" => known("keepalives_retries", value),
            "target_session_attrs" if value == "primary" => known(key, "read-write"),
            "target_session_attrs" if value == "standby" => known(key, "read-only"),
            "host" if value.is_empty() => {}
            _ if is_in(IGNORED) => {}
            _ if is_in(SERVER_SETTINGS) => self.settings.push((key.to_owned(), value.to_owned())),
            _ if is_name(key) => known(key, value),
            _ => return Err(format!("unknown option {key:?}")),
        }
        Ok(())
    }

    fn set_search_path(&mut self, value: String) -> Result<(), String> {
        if value.trim().is_empty() || value == "\"\"" {
            return Err("names an empty schema".to_owned());
        }
        match self.settings.iter().find(|(name, _)| name == "search_path") {
            Some((_, other)) if *other != value => return Err("names two different schemas".to_owned()),
            Some(_) => {}
            None => self.settings.push(("search_path".to_owned(), value)),
        }
        Ok(())
    }

    /// `-c name=value`, `-cname=value` and `--name=value`, with backslashes before spaces that belong to a value.
    fn set_options(&mut self, text: &str) -> Result<(), String> {
        let invalid = || "parameter \"options\" may contain only -c NAME=VALUE".to_owned();
        let mut chars = text.chars().peekable();
        let mut next_word = || {
            skip_whitespace(&mut chars);
            take_until(&mut chars, char::is_whitespace).map(|(word, _)| word).ok_or_else(invalid)
        };
        loop {
            let word = next_word()?;
            let setting = match word.strip_prefix("-c") {
                _ if word.is_empty() => return Ok(()),
                Some("") => next_word()?,
                Some(setting) => setting.to_owned(),
                None => word.strip_prefix("--").ok_or_else(invalid)?.to_owned(),
            };
            let (name, value) = setting.split_once('=').ok_or_else(invalid)?;
            if name == "search_path" {
                self.set_search_path(value.to_owned())?;
            } else if is_name(&name.replace(['.', '-'], "_")) {
                self.settings.push((name.replace('-', "_"), value.to_owned()));
            } else {
                return Err(invalid());
            }
        }
    }

    /// What `postgres::Config` makes of the parameters that it knows, and the hosts, which it has no longer.
    pub(super) fn config(&self) -> Result<(Config, Vec<Endpoint>), String> {
        let endpoints = Endpoint::all(&self.parsed(|_| true)?)?;
        if endpoints.is_empty() {
            return Err(format!("names no host: {EXPECTED}"));
        }
        let mut config = self.parsed(|key| !["host", "hostaddr", "port"].contains(&key))?;
        if let Some(password) = &self.password {
            config.password(password);
        }
        if let Some(timeout) = self.tcp_user_timeout {
            config.tcp_user_timeout(timeout);
        }
        Ok((config, endpoints))
    }

    fn parsed(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Config, String> {
        let escape = |value: &str| value.replace('\\', "\\\\").replace('\'', "\\'");
        let wanted = self.known.iter().filter(|(key, _)| is_wanted(key));
        let pairs: Vec<String> = wanted.map(|(key, value)| format!("{key}='{}'", escape(value))).collect();
        // The reason names the option and never quotes the value.
        let reason = |error: postgres::Error| error.source().map_or_else(|| error.to_string(), ToString::to_string);
        pairs.join(" ").parse().map_err(reason)
    }
}

fn host_name(host: &Host) -> String {
    match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.to_string_lossy().into_owned(),
    }
}

/// `None` if the text contains an incomplete escape or is not UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    let is_escape = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    let valid = text.split('%').skip(1).all(is_escape);
    valid.then(|| percent_decode_str(text).decode_utf8().ok())?.map(Into::into)
}
