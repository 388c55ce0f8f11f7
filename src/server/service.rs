//! The interface between the HTTP front and the application: the trait [`Service`], requests and responses.
//!
//! Knows neither sockets nor the HTTP library.

use std::net::SocketAddr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use url::form_urlencoded;

use crate::printable;

use super::auth::Caller;

/// The application behind the HTTP front.
pub trait Service: Send + Sync + 'static {
    /// Decides from the head alone what happens with a request: authorization, route, method. The error is the response.
    /// Runs on the thread that serves all connections: must not block.
    fn admit(&self, head: &Head) -> Result<Admission, Response>;

    /// Handles a request. A panic is caught and answered with 500.
    fn handle(&self, request: Request) -> Response;

    /// Called once for each response, including those that the front sends itself. Must not block.
    fn completed(&self, exchange: &Exchange<'_>);
}

/// What the service allows a request whose head it has accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// Bytes of its body at most. More than [`Head`] declares is refused before any of it is read.
    pub body_bytes: usize,
    /// Who responds.
    pub action: Action,
}

/// Who responds to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The front itself, with this response: the request takes no place, no thread and no memory that others could
    /// occupy.
    Respond(Response),
    /// A handler.
    Handle {
        /// Its threads.
        pool: Pool,
        /// Bytes of the response at most, as far as they can be known in advance; reserved until it is sent.
        response_bytes: usize,
        /// Who sends it.
        caller: Caller,
    },
}

/// The thread pool that handles a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// For requests that need neither the database nor the cluster. Slow requests never occupy its threads and places.
    Fast,
    /// For requests that may block.
    Blocking,
}

/// The parsed target of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The path as sent, without the query.
    pub path: String,
    /// The decoded segments of the path; a segment may contain an encoded slash.
    pub segments: Vec<String>,
    /// The decoded pairs of the query, in order.
    pub query: Vec<(String, String)>,
}

impl Target {
    /// Parses a target such as `/tasks/a%2Fb?x=1`. The error completes "the request's target ".
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if !text.starts_with('/') {
            return Err("must begin with a slash");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err("contains a character that must be percent-encoded");
        }
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let segments: Result<Vec<String>, _> = path[1..]
            .split('/')
            .map(|part| percent_decode_str(part).decode_utf8().map(std::borrow::Cow::into_owned))
            .collect();
        // The form parser replaces invalid UTF-8, which would make two different ids equal.
        let (Ok(segments), Ok(_)) = (segments, percent_decode_str(query).decode_utf8()) else {
            return Err("is not UTF-8 after decoding");
        };
        let query = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        Ok(Self { path: path.to_owned(), segments, query })
    }
}

/// The head of a request. Does not implement `Debug`: it contains the token.
pub struct Head {
    /// `GET` also for a HEAD request.
    pub method: String,
    /// The target.
    pub target: Target,
    /// Names in lower case. `authorization` occurs at most once.
    pub headers: Vec<(String, String)>,
    /// The address of the client.
    pub peer: SocketAddr,
    /// Whether the client has presented a certificate that TLS has verified.
    pub has_certificate: bool,
}

impl Head {
    /// The first header with this lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(each, _)| each == name).map(|(_, value)| value.as_str())
    }
}

/// An admitted request with its complete body. Its headers were evaluated by [`Service::admit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method; `GET` also for a HEAD request.
    pub method: String,
    /// The target.
    pub target: Target,
    /// At most `Limits::body_bytes`.
    pub body: Vec<u8>,
    /// Who sends it, as [`Service::admit`] has found.
    pub caller: Caller,
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: String,
    /// Other headers, except those of the front: `Connection`, `Content-Length`, `Date`, `Server`.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// A JSON document.
    pub fn json(status: u16, document: &Value) -> Self {
        let body = format!("{}\n", printable::json(&document.to_string())).into_bytes();
        Self { status, content_type: "application/json".to_owned(), headers: Vec::new(), body }
    }

    /// An error. Clients of all versions understand this form.
    pub fn error(status: u16, error: &str) -> Self {
        Self::json(status, &json!({"ok": false, "error": error}))
    }

    /// The response to a request without a valid token.
    pub fn unauthorized() -> Self {
        Self::unauthorized_because("a valid token is required: send the header Authorization: Bearer TOKEN")
    }

    /// The response to a request with a token that is not valid for this reason.
    pub fn unauthorized_because(text: &str) -> Self {
        Self::error(401, text).with_header("WWW-Authenticate", "Bearer realm=\"syncctl\"")
    }

    /// The response to a request that its caller may not make; the text names the rule.
    pub fn forbidden(text: &str) -> Self {
        Self::error(403, text)
    }

    /// The response to a request beyond a limit of its caller, which may be repeated after some seconds.
    pub fn too_many(text: &str, seconds: u64) -> Self {
        Self::error(429, text).with_header("Retry-After", &seconds.to_string())
    }

    /// An error of a request that the client may repeat after a second.
    pub fn busy(error: &str) -> Self {
        Self::error(503, error).with_header("Retry-After", "1")
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A request and the status of its response, for metrics and logs.
#[derive(Debug, Default)]
pub struct Exchange<'a> {
    /// The method as sent; `None` if the head could not be read.
    pub method: Option<&'a str>,
    /// Who sends it; `None` if it was not admitted.
    pub caller: Option<&'a Caller>,
    /// The path as sent. Unbounded: map it to a route before it becomes a metric label.
    pub path: Option<&'a str>,
    /// The status of the response.
    pub status: u16,
    /// From the first byte of the request to the response.
    pub duration: Duration,
}

#[cfg(test)]
mod tests {
    use super::{Response, Target};

    #[test]
    fn unauthorized_response_names_the_scheme() {
        let response = Response::unauthorized();
        assert_eq!(response.status, 401);
        assert_eq!(response.headers, [("WWW-Authenticate".to_owned(), "Bearer realm=\"syncctl\"".to_owned())]);
    }

    #[test]
    fn target_is_split_before_it_is_decoded() {
        let target = Target::parse("/tasks/a%2Fb%20c?syncId=x%26y&plus=a+b&empty=&syncId=z").expect("a target");
        assert_eq!(target.path, "/tasks/a%2Fb%20c");
        assert_eq!(target.segments, ["tasks", "a/b c"]);
        let pairs: Vec<(&str, &str)> = target.query.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        assert_eq!(pairs, [("syncId", "x&y"), ("plus", "a b"), ("empty", ""), ("syncId", "z")]);
        assert_eq!(Target::parse("/").expect("the root").segments, [""]);
    }

    #[test]
    fn other_forms_and_encodings_of_targets_are_rejected() {
        for (label, text) in [
            ("absolute", "http://host/health"),
            ("authority", "host:80"),
            ("asterisk", "*"),
            ("nothing", ""),
            ("fragment", "/health#a"),
            ("blank", "/a b"),
            ("not ASCII", "/ä"),
            ("a path that is not UTF-8", "/%ff"),
            ("a query that is not UTF-8", "/a?b=%c3"),
        ] {
            assert!(Target::parse(text).is_err(), "{label}");
        }
    }
}
