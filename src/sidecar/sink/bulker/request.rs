//! One request: its rows, and a replay buffer in case the connection breaks.
//!
//! Bulker loads all rows of a request or none, and none before its end. Until the end is sent, everything may be sent
//! again; afterwards only if the same rows twice result in the same table.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memchr::memrchr;
use rustls::ClientConfig;

use super::http::{self, Chunk};
use super::response::{self, Outcome, RequestError, Retry};
use super::row::LINE_LIMIT;
use crate::db::is_no_server_io;
use crate::host_rules::{self, HostRules};
use crate::http_client::{Connection, Endpoint, Response, Sent, parse_response};
use crate::retry;
use crate::sidecar::sink::BACKOFF;

/// Maximum size of the replay buffer of one request.
const REPLAY_PER_REQUEST: usize = 4 << 20;
/// Maximum size of all replay buffers.
const REPLAY_TOTAL: usize = 8 << 20;
/// How long sending `ABORT` may take.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a response that has begun before the request's end may take to be complete.
const EARLY_RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long to retry while the server is unavailable.
    pub retry_timeout: Duration,
    /// How long the server may accept no data.
    pub stall_timeout: Duration,
    /// How long the server may take to respond once it has all rows.
    pub response_timeout: Duration,
    /// How long nothing may be sent within a request.
    pub idle: Duration,
    /// How long a request may be open: Bulker, and proxies in front of it, end longer ones.
    pub open: Duration,
}

/// What the requests of a sink share.
pub struct Server {
    /// The Bulker instance.
    pub endpoint: Endpoint,
    /// The destination within Bulker.
    pub destination_id: String,
    /// `None` for plain connections.
    pub tls: Option<Arc<ClientConfig>>,
    /// Where the server may be; `None`: anywhere.
    pub rules: Option<Arc<HostRules>>,
    /// Time limits.
    pub limits: Limits,
    /// Size of all replay buffers.
    pub replay_bytes: usize,
    /// Retrying has timed out: later requests do not wait again, or each of a thousand streams would.
    pub is_unavailable: bool,
}

impl Server {
    /// Waits until the server accepts a connection, at most for `timeout`; where there is no server for `no_server`.
    pub fn wait_until_reachable(&self, timeout: Duration, no_server: Duration) -> Result<(), RequestError> {
        let (mut retry, mut no_server) = (BACKOFF.within(timeout), BACKOFF.within(no_server));
        loop {
            let Err(error) = Connection::open(&self.endpoint, self.tls.as_ref(), self.rules.as_deref()) else {
                return Ok(());
            };
            let retry = if is_no_server_io(&error) { &mut no_server } else { &mut retry };
            let error = connection_error(CONNECTING, &error);
            if error.retry == Retry::Never || !retry.wait() {
                return Err(error);
            }
        }
    }

    fn retry(&self) -> retry::Retry {
        BACKOFF.within(if self.is_unavailable { Duration::ZERO } else { self.limits.retry_timeout })
    }
}

const CONNECTING: &str = "connecting";

fn connection_error(action: &str, error: &std::io::Error) -> RequestError {
    let text = format!("{action}: {error}");
    match error.kind() {
        // An invalid certificate.
        ErrorKind::InvalidData => RequestError::new(text, false),
        _ if host_rules::is_refused(error) => RequestError::new(error.to_string(), false),
        ErrorKind::TimedOut if action != CONNECTING => RequestError::new(text, true),
        _ => RequestError::retryable(text, Retry::Possible),
    }
}

/// A request that is filled row by row. Connects when the first chunk is sent.
pub struct Request {
    /// Request line and headers; secret.
    head: Arc<str>,
    /// The same rows twice result in the same table.
    is_idempotent: bool,
    connection: Option<Connection>,
    opened: Option<Instant>,
    chunk: Chunk,
    rows: u64,
    /// How many of `rows` are in the chunk.
    unsent_rows: u64,
    last_sent: Instant,
    /// Length of the last line sent, which has no newline yet.
    open_line: usize,
    /// The chunks sent so far.
    replay: Vec<Vec<u8>>,
    replay_bytes: usize,
    /// More was sent than fits into the replay buffer.
    exceeds_replay: bool,
}

impl Request {
    /// Sends nothing yet.
    pub fn new(head: Arc<str>, is_idempotent: bool) -> Self {
        Self {
            head,
            is_idempotent,
            connection: None,
            opened: None,
            chunk: Chunk::default(),
            rows: 0,
            unsent_rows: 0,
            last_sent: Instant::now(),
            open_line: 0,
            replay: Vec::new(),
            replay_bytes: 0,
            exceeds_replay: false,
        }
    }

    /// The chunk under construction; it holds complete rows.
    pub fn chunk(&mut self) -> &mut Chunk {
        &mut self.chunk
    }

    /// Counts a row that was added to the chunk.
    pub fn count_row(&mut self) {
        self.rows += 1;
        self.unsent_rows += 1;
    }

    /// Whether the request is open for longer than [`Limits::open`].
    pub fn is_overdue(&self, server: &Server) -> bool {
        self.opened.is_some_and(|opened| opened.elapsed() >= server.limits.open)
    }

    /// Sends the chunk without its last newline, so that spaces may follow to keep the connection alive.
    pub fn flush(&mut self, server: &mut Server) -> Result<(), RequestError> {
        if self.unsent_rows == 0 {
            return Ok(());
        }
        let mut chunk = std::mem::take(&mut self.chunk);
        let body = chunk.body();
        body.pop();
        self.open_line = body.len() - memrchr(b'\n', body).map_or(0, |at| at + 1);
        let sealed = chunk.seal();
        self.with_retries(server, |request, server| request.send_after_replay(server, &sealed))?;
        self.unsent_rows = 0;
        self.retain(server, sealed);
        self.chunk.body().push(b'\n');
        Ok(())
    }

    /// Sends something if nothing was sent for [`Limits::idle`]: proxies close idle connections.
    pub fn keep_alive(&mut self, server: &mut Server) -> Result<(), RequestError> {
        if self.opened.is_none() || self.last_sent.elapsed() < server.limits.idle {
            return Ok(());
        }
        if self.unsent_rows > 0 {
            return self.flush(server);
        }
        // Spaces count towards the length of the line.
        if self.open_line + 2 >= LINE_LIMIT {
            return Ok(());
        }
        self.with_retries(server, |request, server| request.send_after_replay(server, b"1\r\n \r\n"))?;
        self.open_line += 1;
        Ok(())
    }

    /// Sends the remaining rows and the end, and waits for the outcome.
    pub fn finish(mut self, server: &mut Server) -> Result<Outcome, RequestError> {
        self.flush(server)?;
        let last = std::mem::take(&mut self.chunk).seal();
        let outcome = self.with_retries(server, |request, server| {
            // Separate from the end: until here, no row can be in the table.
            request.send_after_replay(server, &last)?;
            request.end(server).map_err(|error| request.error_after_end(error))
        });
        self.release_replay(server);
        outcome
    }

    /// Withdraws the rows: Bulker discards them at this line, or when the end is missing.
    pub fn abort(mut self, server: &mut Server) {
        if let Some(mut connection) = self.connection.take() {
            let mut chunk = Chunk::default();
            chunk.body().extend_from_slice(b"\nABORT\n");
            // Closing the connection has the same effect.
            let _ = connection.send(&chunk.seal(), ABORT_TIMEOUT);
        }
        self.release_replay(server);
    }

    /// Repeats an attempt after errors that a retry may fix, as long as the replay buffer is complete.
    fn with_retries<T>(
        &mut self,
        server: &mut Server,
        mut attempt: impl FnMut(&mut Self, &Server) -> Result<T, RequestError>,
    ) -> Result<T, RequestError> {
        let mut retry = server.retry();
        loop {
            let mut error = match attempt(self, server) {
                Ok(done) => {
                    server.is_unavailable = false;
                    return Ok(done);
                }
                Err(error) => error,
            };
            // Its state is unknown: not even `ABORT` may be sent.
            self.connection = None;
            let is_retryable = error.retry != Retry::Never;
            if is_retryable && self.exceeds_replay {
                error.text.push_str(
                    "; the request has sent more rows than the replay buffer holds: \
                     the next run resumes from the last stored state",
                );
            }
            let can_retry = is_retryable && !self.exceeds_replay;
            if can_retry {
                tracing::warn!(why = %error.text, server = %format_args!("Bulker at {}", server.endpoint), "the request may be sent again");
            }
            if !can_retry || !retry.wait() {
                server.is_unavailable |= can_retry;
                self.release_replay(server);
                return Err(error);
            }
        }
    }

    /// Sends bytes, over a new connection after the head and the replay buffer.
    fn send_after_replay(&mut self, server: &Server, bytes: &[u8]) -> Result<(), RequestError> {
        if self.connection.is_none() {
            let connection = Connection::open(&server.endpoint, server.tls.as_ref(), server.rules.as_deref());
            self.connection = Some(connection.map_err(|error| connection_error(CONNECTING, &error))?);
            self.opened = Some(Instant::now());
            let head = Arc::clone(&self.head);
            self.send(server, head.as_bytes())?;
            let replay = std::mem::take(&mut self.replay);
            let sent = replay.iter().try_for_each(|chunk| self.send(server, chunk));
            self.replay = replay;
            sent?;
        }
        self.send(server, bytes)
    }

    fn send(&mut self, server: &Server, bytes: &[u8]) -> Result<(), RequestError> {
        let Some(connection) = &mut self.connection else { return Err(not_connected()) };
        match connection.send(bytes, server.limits.stall_timeout) {
            Ok(Sent::All) => {
                self.last_sent = Instant::now();
                Ok(())
            }
            Ok(Sent::Interrupted) => {
                let response = receive_response(connection, EARLY_RESPONSE_TIMEOUT)?;
                Err(response::refusal(&response, &server.destination_id))
            }
            Err(error) => Err(connection_error("sending rows", &error)),
        }
    }

    fn end(&mut self, server: &Server) -> Result<Outcome, RequestError> {
        let Some(connection) = &mut self.connection else { return Err(not_connected()) };
        let sent = connection.send(http::END, server.limits.stall_timeout);
        sent.map_err(|error| connection_error("sending the end of the rows", &error))?;
        let response = receive_response(connection, server.limits.response_timeout)?;
        response::outcome(&response, self.rows, &server.destination_id)
    }

    /// An error after the end was sent: the request may have succeeded. It is not sent again if that would duplicate
    /// rows, or if the server may still be processing it, since it could overtake later requests.
    fn error_after_end(&self, error: RequestError) -> RequestError {
        match error.retry {
            Retry::Never | Retry::NotProcessed => return error,
            Retry::Possible if self.is_idempotent => return error,
            Retry::Possible | Retry::MayBeProcessing => {}
        }
        let duplicates = if self.is_idempotent { "" } else { ", and the next run may duplicate them" };
        let text = format!(
            "{}; whether the {} rows of the request are in the table is unknown{duplicates}",
            error.text, self.rows
        );
        RequestError { text, retry: Retry::Never, ..error }
    }

    /// Adds a sent chunk to the replay buffer, which is dropped as a whole once it is too large.
    fn retain(&mut self, server: &mut Server, mut sealed: Vec<u8>) {
        if !self.exceeds_replay {
            sealed.shrink_to_fit();
            let size = sealed.capacity();
            if self.replay_bytes + size <= REPLAY_PER_REQUEST && server.replay_bytes + size <= REPLAY_TOTAL {
                self.replay_bytes += size;
                server.replay_bytes += size;
                self.replay.push(sealed);
                return;
            }
            self.release_replay(server);
            self.exceeds_replay = true;
        }
        self.chunk = Chunk::reusing(sealed);
    }

    fn release_replay(&mut self, server: &mut Server) {
        server.replay_bytes -= self.replay_bytes;
        self.replay_bytes = 0;
        self.replay.clear();
    }
}

fn receive_response(connection: &mut Connection, timeout: Duration) -> Result<Response, RequestError> {
    let deadline = Instant::now() + timeout;
    loop {
        if connection.received.is_empty() && connection.ended {
            let text = "it closed the connection without a response";
            return Err(RequestError::retryable(text, Retry::Possible));
        }
        match parse_response(&connection.received, connection.ended) {
            Ok(Some(response)) => return Ok(response),
            Ok(None) => {}
            Err(why) => return Err(RequestError::new(why, false)),
        }
        connection.wait_for_more(deadline).map_err(|error| match error.kind() {
            ErrorKind::TimedOut => RequestError::retryable(error.to_string(), Retry::MayBeProcessing),
            _ => connection_error("waiting for the response", &error),
        })?;
    }
}

fn not_connected() -> RequestError {
    RequestError::retryable("the connection is lost", Retry::Possible)
}
