//! One connection: one request, one answer, and then it ends. Nothing is left over that could be taken for a request.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::Gate;
use super::body::{Body, Reader};
use super::head;
use super::table::Place;
use crate::server::wire::{FORWARDED, Head, Lane, Response, Served, Target};

/// How much is read of a head at a time: most are smaller.
const HEAD_READ: usize = 2 << 10;
/// Bytes read and forgotten at a time.
const DRAIN_READ: usize = 64 << 10;
/// How long a client that is turned away at the door is listened to.
const FAREWELL: Duration = Duration::from_millis(200);

/// Why there is no request to answer.
enum Stop {
    /// This is the answer.
    Refused(Response),
    /// It has to go, and this is all that it is told.
    SentAway(Response),
    /// There is nobody to answer.
    Gone,
}

impl From<Response> for Stop {
    fn from(response: Response) -> Self {
        Self::Refused(response)
    }
}

/// A connection, and what is known of its request.
pub struct Connection {
    gate: Arc<Gate>,
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    buffer: Vec<u8>,
    /// When the first byte came.
    started: Option<Instant>,
    method: Option<String>,
    path: Option<String>,
    /// Whether the client has sent, or may still send, what nobody reads.
    unread: bool,
}

impl Connection {
    pub fn new(gate: Arc<Gate>, stream: TcpStream, peer: SocketAddr, place: Place) -> Self {
        let buffer = Vec::new();
        Self { gate, stream, peer, place, buffer, started: None, method: None, path: None, unread: true }
    }

    /// The whole life of it. It has to make room when `told` resolves, until its request is in work.
    pub async fn serve(mut self, told: oneshot::Receiver<()>) {
        match self.request(told).await {
            Ok(response) | Err(Stop::Refused(response)) => {
                let sent = self.answer(&response).await;
                // Bytes of a second request that was never looked at would make the kernel send a reset.
                if sent && (self.unread || !self.buffer.is_empty() || self.has_more()) {
                    self.linger().await;
                }
            }
            Err(Stop::SentAway(response)) => {
                // Into an empty buffer of the kernel's: it takes no time but that for our own turn.
                timeout(self.gate.limits.linger, self.answer(&response)).await.ok();
                self.has_more();
            }
            Err(Stop::Gone) => {}
        }
    }

    async fn request(&mut self, told: oneshot::Receiver<()>) -> Result<Response, Stop> {
        let end = self.read_head(told).await?;
        let (head, framing) = head::parse(&self.buffer[..end], self.peer, &self.gate.limits)?;
        self.buffer.drain(..end);
        self.method = Some(framing.method);
        self.path = Some(head.target.path.clone());
        let lane = self.admit(&head)?;
        if framing.expects_continue && self.buffer.is_empty() {
            let write = self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
            timeout(self.gate.limits.write_time, write).await.map_err(|_| Stop::Gone)?.map_err(|_| Stop::Gone)?;
        }
        let gate = Arc::clone(&self.gate);
        let reader =
            Reader { stream: &mut self.stream, buffer: &mut self.buffer, limits: &gate.limits, budget: &gate.budget };
        let body = reader.read(framing.body).await?;
        self.unread = false;
        Ok(self.forward(&head, lane, body).await)
    }

    /// Reads until the end of the head, unless the connection has to make room before.
    async fn read_head(&mut self, told: oneshot::Receiver<()>) -> Result<usize, Stop> {
        let gate = Arc::clone(&self.gate);
        let read = timeout(gate.limits.head_time, self.read_to_end_of_head());
        let read = tokio::select! {
            biased;
            _ = told => None,
            read = read => Some(read),
        };
        if !self.place.work() {
            let busy = if gate.is_stopping() { "the service is stopping" } else { "too many connections: try again" };
            return Err(Stop::SentAway(Response::busy(busy)));
        }
        match read {
            Some(Ok(end)) => end,
            // Who has asked nothing gets no answer: it would be taken for the one to the next request.
            _ if self.buffer.is_empty() => Err(Stop::Gone),
            _ => {
                let text = format!("the request's head took longer than {} s", gate.limits.head_time.as_secs_f64());
                Err(Stop::Refused(Response::refusal(408, &text)))
            }
        }
    }

    async fn read_to_end_of_head(&mut self) -> Result<usize, Stop> {
        let mut checked = 0;
        loop {
            // No memory before there is something to read.
            self.stream.readable().await.map_err(|_| Stop::Gone)?;
            self.buffer.reserve(HEAD_READ);
            match self.stream.try_read_buf(&mut self.buffer) {
                Ok(0) if self.buffer.is_empty() => return Err(Stop::Gone),
                Ok(0) => {
                    let text = "the connection ended before the request's head was complete";
                    return Err(Stop::Refused(Response::refusal(400, text)));
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(_) => return Err(Stop::Gone),
            }
            self.started.get_or_insert_with(Instant::now);
            if let Some(end) = head::end(&self.buffer, &mut checked, &self.gate.limits)? {
                return Ok(end);
            }
        }
    }

    /// What the service says to the head.
    fn admit(&self, head: &Head) -> Result<Lane, Response> {
        catch_unwind(AssertUnwindSafe(|| self.gate.service.admit(head))).unwrap_or_else(|_| {
            tracing::error!(path = head.target.path, "judging a request failed: this is a bug");
            Err(Response::refusal(500, "an internal error happened"))
        })
    }

    /// Gives the request to the library and waits for the answer.
    async fn forward(&self, head: &Head, lane: Lane, body: Body) -> Response {
        let limits = &self.gate.limits;
        let Some(way) = self.gate.lane(lane).enter(limits.queue, limits.queue_wait).await else {
            return Response::busy("too many requests are being handled: try again");
        };
        let canonical = canonical(head, body.length);
        let (tell, told) = oneshot::channel();
        let (gate, most) = (Arc::clone(&self.gate), limits.response_bytes);
        // It goes on when nobody waits for it any more, because its thread does as well.
        tokio::spawn(async move {
            let Body { pieces, share, .. } = body;
            let result = way.exchange(canonical, pieces, most).await;
            if result.is_err() && gate.lane(lane).is_dead() {
                gate.fail(std::io::Error::other("no thread that handles requests is left"));
            }
            tell.send(result).ok();
            drop(share);
        });
        match timeout(limits.handler_time, told).await {
            Ok(Ok(Ok(response))) => response,
            Ok(Ok(Err(error))) => {
                tracing::error!(%error, path = head.target.path, "handing a request on failed");
                Response::refusal(500, "an internal error happened")
            }
            Ok(Err(_)) => Response::refusal(500, "an internal error happened"),
            Err(_) => {
                let text = format!("handling the request takes longer than {} s", limits.handler_time.as_secs_f64());
                Response::refusal(504, &text)
            }
        }
    }

    /// Writes the answer and ends the writing side. `false`: the client is gone or too slow.
    async fn answer(&mut self, response: &Response) -> bool {
        let served = Served {
            method: self.method.as_deref(),
            path: self.path.as_deref(),
            status: response.status,
            duration: self.started.map(|started| started.elapsed()).unwrap_or_default(),
        };
        if catch_unwind(AssertUnwindSafe(|| self.gate.service.done(&served))).is_err() {
            tracing::error!("recording an answer failed: this is a bug");
        }
        let mut bytes = head_of(response).into_bytes();
        if self.method.as_deref() != Some("HEAD") {
            bytes.extend_from_slice(&response.body);
        }
        let write = async {
            self.stream.write_all(&bytes).await?;
            self.stream.shutdown().await
        };
        timeout(self.gate.limits.write_time, write).await.is_ok_and(|written| written.is_ok())
    }

    /// Forgets what is there to be read right now; whether there was something.
    fn has_more(&mut self) -> bool {
        self.buffer.clear();
        self.stream.try_read_buf(&mut self.buffer).is_ok_and(|read| read > 0)
    }

    /// Reads on for a while, so that a client that is still sending gets to read its answer. Who lingers makes room
    /// like who is idle.
    async fn linger(&mut self) {
        let told = self.place.idle();
        let deadline = Instant::now() + self.gate.limits.linger;
        let mut left = self.gate.limits.body_bytes;
        self.buffer = vec![0; DRAIN_READ];
        let drain = async {
            while let Ok(Ok(read @ 1..)) = timeout_at(deadline, self.stream.read(&mut self.buffer)).await {
                let Some(rest) = left.checked_sub(read) else { return };
                left = rest;
            }
        };
        tokio::select! {
            biased;
            _ = told => {}
            () = drain => {}
        }
    }
}

/// Tells a connection that there is no room for it.
pub async fn turn_away(gate: Arc<Gate>, mut stream: TcpStream) {
    let response = Response::busy("too many connections: try again");
    let served = Served { method: None, path: None, status: response.status, duration: Duration::ZERO };
    if catch_unwind(AssertUnwindSafe(|| gate.service.done(&served))).is_err() {
        tracing::error!("recording an answer failed: this is a bug");
    }
    let mut bytes = head_of(&response).into_bytes();
    bytes.extend_from_slice(&response.body);
    let write = async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await
    };
    if timeout(gate.limits.linger, write).await.is_ok_and(|written| written.is_ok()) {
        let mut scratch = vec![0; HEAD_READ];
        let drain = async { while stream.read(&mut scratch).await.is_ok_and(|read| read > 0) {} };
        timeout(FAREWELL, drain).await.ok();
    }
}

/// The request as the library gets it: nothing in it can be read in two ways, and the token is not in it.
fn canonical(head: &Head, length: usize) -> Vec<u8> {
    let Target { path, query, .. } = &head.target;
    let mut text = format!("{} {path}", head.method);
    if !query.is_empty() {
        let mut pairs = url::form_urlencoded::Serializer::new(String::new());
        pairs.extend_pairs(query);
        write!(text, "?{}", pairs.finish()).expect("writing to a string");
    }
    text.push_str(" HTTP/1.1\r\nHost: syncctl\r\n");
    for (name, value) in head.headers.iter().filter(|(name, _)| FORWARDED.contains(&name.as_str())) {
        write!(text, "{name}: {value}\r\n").expect("writing to a string");
    }
    write!(text, "Content-Length: {length}\r\n\r\n").expect("writing to a string");
    text.into_bytes()
}

/// The head of an answer. Every one ends its connection.
fn head_of(response: &Response) -> String {
    let Response { status, content_type, headers, body } = response;
    let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&jiff::Timestamp::now());
    let mut text = format!("HTTP/1.1 {status} {}\r\nServer: syncctl\r\n", reason(*status));
    if let Ok(date) = date {
        write!(text, "Date: {date}\r\n").expect("writing to a string");
    }
    for (name, value) in headers.iter().chain([&("Content-Type".to_owned(), content_type.clone())]) {
        write!(text, "{name}: {value}\r\n").expect("writing to a string");
    }
    write!(text, "Content-Length: {}\r\nConnection: close\r\n\r\n", body.len()).expect("writing to a string");
    text
}

/// The words beside a status, for people who read the wire.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Status",
    }
}
