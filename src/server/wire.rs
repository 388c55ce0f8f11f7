//! What the parts of the HTTP front hand to each other, and what it asks of the program behind it.
//!
//! Knows no sockets and no HTTP library.

use std::net::SocketAddr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use url::form_urlencoded;

/// What every answer with a document says of itself.
pub const JSON: &str = "application/json";

/// What is behind the front.
pub trait Service: Send + Sync + 'static {
    /// Decides by the head alone whether the body is read and the request handled: authorization, route, method.
    /// Called on the thread that serves all connections: it must not wait for anything.
    fn admit(&self, head: &Head) -> Result<Lane, Response>;

    /// Answers a request. A panic is contained and answered with 500.
    fn handle(&self, request: Request) -> Response;

    /// Called once for each answer, also for those that the front gives by itself. Must not wait for anything.
    fn done(&self, served: &Served<'_>);
}

/// Who handles a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Threads of its own that are never taken by slow requests: for answers that need no database and no cluster.
    Light,
    /// One of the many threads that may wait.
    Worker,
}

/// The target of a request, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The path as it was sent, without the query.
    pub path: String,
    /// The parts of the path, decoded: a slash inside a part stays inside.
    pub segments: Vec<String>,
    /// The query's pairs, decoded, in their order.
    pub query: Vec<(String, String)>,
}

impl Target {
    /// Takes a target such as `/tasks/a%2Fb?x=1` apart. The error completes "the request's target ".
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if !text.starts_with('/') {
            return Err("has to begin with a slash");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err("has a character that has to be percent-encoded");
        }
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let segments: Result<Vec<String>, _> = path[1..]
            .split('/')
            .map(|part| percent_decode_str(part).decode_utf8().map(std::borrow::Cow::into_owned))
            .collect();
        // The parser of forms would replace what is no UTF-8, and two different ids would become the same.
        let (Ok(segments), Ok(_)) = (segments, percent_decode_str(query).decode_utf8()) else {
            return Err("is no UTF-8 once it is decoded");
        };
        let query = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        Ok(Self { path: path.to_owned(), segments, query })
    }
}

/// The head of a request. Has no `Debug`: it holds the token.
pub struct Head {
    /// `GET` for a HEAD request, too: its answer only loses its body.
    pub method: String,
    /// What is asked for.
    pub target: Target,
    /// Names in lower case. Those that decide, such as `authorization`, are there once at most.
    pub headers: Vec<(String, String)>,
    /// Who asks.
    pub peer: SocketAddr,
}

impl Head {
    /// The first header of this name, which has to be in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(each, _)| each == name).map(|(_, value)| value.as_str())
    }
}

/// An admitted request with its whole body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method; HEAD comes as `GET`.
    pub method: String,
    /// What is asked for.
    pub target: Target,
    /// Only those of [`FORWARDED`], names in lower case.
    pub headers: Vec<(String, String)>,
    /// At most [`Limits::body_bytes`].
    pub body: Vec<u8>,
}

/// The headers that a handler sees. The token is not among them: it was judged before.
pub const FORWARDED: [&str; 4] = ["accept", "content-type", "user-agent", "x-request-id"];

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: String,
    /// More headers. Those about length, connection, date and server are the front's own.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// A document.
    pub fn json(status: u16, document: &Value) -> Self {
        Self { status, content_type: JSON.to_owned(), headers: Vec::new(), body: format!("{document}\n").into_bytes() }
    }

    /// A refusal, in the form that callers of all versions understand.
    pub fn refusal(status: u16, error: &str) -> Self {
        Self::json(status, &json!({"ok": false, "error": error}))
    }

    /// A refusal of a request that may be sent again in a second.
    pub fn busy(error: &str) -> Self {
        Self::refusal(503, error).with_header("Retry-After", "1")
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// What came of a request, for metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served<'a> {
    /// The method as it was sent, HEAD included. `None`: there was no readable head.
    pub method: Option<&'a str>,
    /// The path as it was sent: whoever makes a label of it has to map it to a route.
    pub path: Option<&'a str>,
    /// The status of the answer.
    pub status: u16,
    /// From the first byte of the request to the answer.
    pub duration: Duration,
}

/// All limits of the front.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time. An idle one costs about 2 KiB, one that sends its head at most [`Self::head_bytes`].
    pub connections: usize,
    /// Bytes of the request line and all headers: four times what a browser sends.
    pub head_bytes: usize,
    /// Bytes of the request's target: a `startedBy` document of a read fits.
    pub target_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// From accepting a connection to the end of its head.
    pub head_time: Duration,
    /// Bytes of a body: configurations and catalogs of large sources have 4 to 30 MB.
    pub body_bytes: usize,
    /// How long a client may send nothing while its body is read.
    pub body_idle: Duration,
    /// Bytes a second that a body has to come with after the first [`Self::body_idle`]: far below any working network.
    pub body_rate: u32,
    /// Bytes of all bodies together, but for the first 64 KiB of each: large bodies never hinder small ones. Raised to
    /// [`Self::body_bytes`] if it is less.
    pub bodies_bytes: usize,
    /// How long a request waits for its share of [`Self::bodies_bytes`].
    pub bodies_wait: Duration,
    /// Threads for requests that may wait for the database and the cluster, which is most of what they do. At least 1.
    pub workers: usize,
    /// Threads for requests that wait for nothing: probes and metrics. At least 1.
    pub light: usize,
    /// Requests of each lane that wait for a thread.
    pub queue: usize,
    /// How long a request waits for a thread.
    pub queue_wait: Duration,
    /// How long a handler may take: the calls of a launch have deadlines of 30 s each, and clients seldom wait longer.
    pub handler_time: Duration,
    /// Bytes of an answer's body: it is held until the client has taken it.
    pub response_bytes: usize,
    /// How long a client may take to read its answer.
    pub write_time: Duration,
    /// How long a client that still sends is listened to after its answer, so that it reads the answer and not a reset.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            head_bytes: 16 << 10,
            target_bytes: 8 << 10,
            headers: 64,
            head_time: Duration::from_secs(10),
            body_bytes: 32 << 20,
            body_idle: Duration::from_secs(10),
            body_rate: 64 << 10,
            bodies_bytes: 4 * (32 << 20),
            bodies_wait: Duration::from_secs(5),
            workers: 32,
            light: 2,
            queue: 256,
            queue_wait: Duration::from_secs(5),
            handler_time: Duration::from_mins(1),
            response_bytes: 8 << 20,
            write_time: Duration::from_secs(30),
            linger: Duration::from_secs(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Target;

    #[test]
    fn a_target_is_decoded_after_it_was_taken_apart() {
        let target = Target::parse("/tasks/a%2Fb%20c?syncId=x%26y&plus=a+b&empty=&syncId=z").expect("a target");
        assert_eq!(target.path, "/tasks/a%2Fb%20c");
        assert_eq!(target.segments, ["tasks", "a/b c"]);
        let pairs: Vec<(&str, &str)> = target.query.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        assert_eq!(pairs, [("syncId", "x&y"), ("plus", "a b"), ("empty", ""), ("syncId", "z")]);
        assert_eq!(Target::parse("/").expect("the root").segments, [""]);
    }

    #[test]
    fn targets_of_other_forms_and_encodings_are_refused() {
        for (label, text) in [
            ("absolute", "http://host/health"),
            ("authority", "host:80"),
            ("asterisk", "*"),
            ("nothing", ""),
            ("fragment", "/health#a"),
            ("blank", "/a b"),
            ("not ASCII", "/ä"),
            ("a path that is no UTF-8", "/%ff"),
            ("a query that is no UTF-8", "/a?b=%c3"),
        ] {
            assert!(Target::parse(text).is_err(), "{label}");
        }
    }
}
