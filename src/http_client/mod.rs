//! A client of HTTP/1.1 over a connection that receives while it sends: of the destination Bulker, and of the console.
//!
//! Knows neither. It follows no redirects, and every wait has a deadline.

mod connection;
pub mod response;

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use connection::{Connection, Sent, tls_config};
pub use response::{Response, parse_response};
use rustls::ClientConfig;
use url::{Host, Url};

/// A server and the prefix of its paths: a URL without credentials, query and fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether to use TLS.
    pub secure: bool,
    /// A name, or an address without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// Host and port as in a URL.
    pub authority: String,
    /// The prefix of every path, without a trailing slash.
    pub prefix: String,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.prefix)
    }
}

/// Why a text is not the URL of an [`Endpoint`]. Errors do not quote it: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointError {
    /// Not a URL with the scheme http or https and a host.
    Malformed,
    /// A user or a password.
    Credentials,
    /// A query or a fragment.
    Query,
}

impl Endpoint {
    /// Parses a URL.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let url = Url::parse(text).map_err(|_| EndpointError::Malformed)?;
        let secure = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(EndpointError::Malformed),
        };
        // Errors show the URL.
        if !url.username().is_empty() || url.password().is_some() {
            return Err(EndpointError::Credentials);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(EndpointError::Query);
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(EndpointError::Malformed);
        };
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_string(),
        };
        let host = match host {
            Host::Domain(name) => name.to_owned(),
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        Ok(Endpoint { secure, host, port, authority, prefix: url.path().trim_end_matches('/').to_owned() })
    }
}

/// Sends a request without a body and returns the response, both within `timeout`. `head` is secret; errors do not quote
/// it.
pub fn exchange(
    endpoint: &Endpoint,
    tls: Option<&Arc<ClientConfig>>,
    head: &str,
    timeout: Duration,
) -> io::Result<Response> {
    let deadline = Instant::now() + timeout;
    // An operator has chosen the server.
    let mut connection = Connection::open(endpoint, tls, None)?;
    connection.send(head.as_bytes(), timeout)?;
    loop {
        let response = parse_response(&connection.received, connection.ended);
        if let Some(response) = response.map_err(io::Error::other)? {
            return Ok(response);
        }
        // A server that sends a byte at a time does not extend the deadline.
        if Instant::now() >= deadline {
            return Err(io::Error::new(ErrorKind::TimedOut, "it did not respond in time"));
        }
        connection.wait_for_more(deadline)?;
    }
}
