//! One request: its rows, and what is kept of them in case the connection breaks before its end.
//!
//! Bulker takes all rows of a request or none, and none without its end. So until the end is sent everything may be sent
//! again; afterwards only where the same rows twice make the same table.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memchr::memrchr;
use rustls::ClientConfig;

use super::answer::{self, Verdict};
use super::config::Place;
use super::http::{self, Answer, Chunk};
use super::row::LONGEST_LINE;
use super::wire::{Sent, Wire};
use crate::retry::Retry;
use crate::sidecar::sink::BACKOFF;

/// What one request may keep for being sent again.
const KEPT_BY_REQUEST: usize = 4 << 20;
/// What all requests together may keep.
const KEPT_BY_ALL: usize = 8 << 20;
/// How long the goodbye of a request that is given up may take.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long an answer that has begun before the request's end may take to be complete.
const EARLY_ANSWER: Duration = Duration::from_secs(10);

/// Limits of time.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long a server that is not there, or that hangs up, is waited for.
    pub patience: Duration,
    /// How long a server may take no data.
    pub stall: Duration,
    /// How long a server may take to answer once it has all rows.
    pub answer: Duration,
    /// How long nothing may be sent in the middle of a request.
    pub idle: Duration,
    /// How long a request may be open: Bulker and what is in front of it end longer ones.
    pub open: Duration,
}

/// What all requests of a sink share.
pub struct Server {
    /// Where it is.
    pub place: Place,
    /// The destination within Bulker.
    pub destination_id: String,
    /// There when it is reached over TLS.
    pub tls: Option<Arc<ClientConfig>>,
    /// Limits of time.
    pub limits: Limits,
    /// What all requests keep.
    pub kept: usize,
    /// It was waited for in vain: the next ones are not, or each of a thousand streams would wait anew.
    pub given_up: bool,
}

impl Server {
    /// Waits until somebody takes a connection.
    pub fn reach(&self, patience: Duration) -> Result<(), Trouble> {
        let mut retry = BACKOFF.within(patience);
        loop {
            let Err(error) = Wire::connect(&self.place, self.tls.as_ref()) else { return Ok(()) };
            let trouble = Trouble::of_connection(CONNECTING, &error);
            if trouble.passing == Passing::No || !retry.wait() {
                return Err(trouble);
            }
        }
    }

    fn retry(&self) -> Retry {
        BACKOFF.within(if self.given_up { Duration::ZERO } else { self.limits.patience })
    }
}

/// Why a request did not succeed.
#[derive(Debug)]
pub struct Trouble {
    /// A part of a sentence.
    pub text: String,
    /// The same rows may get in later.
    pub transient: bool,
    passing: Passing,
}

/// Whether it is worth to wait here and to send the request again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passing {
    /// It will not help.
    No,
    /// It may help.
    Soon,
    /// It may, and the server says that it did not look at the rows at all.
    Untouched,
    /// It may, but if it had all rows, then the server may be busy with them even now.
    UnderWay,
}

impl Trouble {
    /// One that waiting here does not heal.
    pub fn of(text: impl Into<String>, transient: bool) -> Self {
        Self { text: text.into(), transient, passing: Passing::No }
    }

    /// One that may heal while we wait.
    pub fn passing(text: impl Into<String>) -> Self {
        Self { text: text.into(), transient: true, passing: Passing::Soon }
    }

    /// The server did not look at the rows.
    pub fn untouched(text: impl Into<String>) -> Self {
        Self { text: text.into(), transient: true, passing: Passing::Untouched }
    }

    /// The server may be busy with the rows.
    pub fn under_way(text: impl Into<String>) -> Self {
        Self { text: text.into(), transient: true, passing: Passing::UnderWay }
    }

    fn of_connection(doing: &str, error: &std::io::Error) -> Self {
        let text = format!("{doing}: {error}");
        match error.kind() {
            // A certificate that does not fit.
            ErrorKind::InvalidData => Self::of(text, false),
            // It had its time.
            ErrorKind::TimedOut if doing != CONNECTING => Self::of(text, true),
            _ => Self::passing(text),
        }
    }
}

const CONNECTING: &str = "connecting";
const SENDING: &str = "sending rows";

/// A request that is filled row by row. Nothing is connected to before there is a chunk to be sent.
pub struct Request {
    /// Secret.
    head: Arc<str>,
    /// The same rows twice make the same table.
    repeatable: bool,
    wire: Option<Wire>,
    opened: Option<Instant>,
    chunk: Chunk,
    rows: u64,
    /// Of `rows`, those in the chunk.
    waiting: u64,
    /// When something was sent last, and how long the line is that has not ended yet.
    sent: Instant,
    line: usize,
    kept: Vec<Vec<u8>>,
    kept_bytes: usize,
    /// More was sent than may be kept.
    overflowed: bool,
}

impl Request {
    /// With this head; nothing is sent.
    pub fn new(head: Arc<str>, repeatable: bool) -> Self {
        Self {
            head,
            repeatable,
            wire: None,
            opened: None,
            chunk: Chunk::default(),
            rows: 0,
            waiting: 0,
            sent: Instant::now(),
            line: 0,
            kept: Vec::new(),
            kept_bytes: 0,
            overflowed: false,
        }
    }

    /// The chunk that is being filled; whole rows only.
    pub fn chunk(&mut self) -> &mut Chunk {
        &mut self.chunk
    }

    /// One more row is in the chunk.
    pub fn count_row(&mut self) {
        self.rows += 1;
        self.waiting += 1;
    }

    /// Whether it is open for longer than it may.
    pub fn is_old(&self, server: &Server) -> bool {
        self.opened.is_some_and(|opened| opened.elapsed() >= server.limits.open)
    }

    /// Sends the chunk, but for the end of its last line: until there is another one, blanks may follow.
    pub fn flush(&mut self, server: &mut Server) -> Result<(), Trouble> {
        if self.waiting == 0 {
            return Ok(());
        }
        let mut chunk = std::mem::take(&mut self.chunk);
        let body = chunk.body();
        body.pop();
        self.line = body.len() - memrchr(b'\n', body).map_or(0, |at| at + 1);
        let sealed = chunk.seal();
        self.persist(server, |request, server| request.attempt(server, &sealed))?;
        self.waiting = 0;
        self.keep(server, sealed);
        self.chunk.body().push(b'\n');
        Ok(())
    }

    /// Sends something if nothing was sent for long: who stands in between ends what seems dead.
    pub fn keep_alive(&mut self, server: &mut Server) -> Result<(), Trouble> {
        if self.opened.is_none() || self.sent.elapsed() < server.limits.idle {
            return Ok(());
        }
        if self.waiting > 0 {
            return self.flush(server);
        }
        // Blanks count for the length of the line.
        if self.line + 2 >= LONGEST_LINE {
            return Ok(());
        }
        self.persist(server, |request, server| request.attempt(server, b"1\r\n \r\n"))?;
        self.line += 1;
        Ok(())
    }

    /// Sends the rest and the end, and hears what became of the rows.
    pub fn finish(mut self, server: &mut Server) -> Result<Verdict, Trouble> {
        self.flush(server)?;
        let last = std::mem::take(&mut self.chunk).seal();
        let done = self.persist(server, |request, server| {
            // By itself: whatever goes wrong until here, no row is in the table.
            request.attempt(server, &last)?;
            request.end(server).map_err(|trouble| request.in_doubt(trouble))
        });
        self.release(server);
        done
    }

    /// Takes the rows back: Bulker forgets them at this line, and also when the end is missing.
    pub fn abort(mut self, server: &mut Server) {
        if let Some(mut wire) = self.wire.take() {
            let mut chunk = Chunk::default();
            chunk.body().extend_from_slice(b"\nABORT\n");
            // Without it the connection's end says the same.
            let _ = wire.send(&chunk.seal(), GOODBYE);
        }
        self.release(server);
    }

    /// Repeats what fails for a reason that passes, as long as everything can be sent again.
    fn persist<T>(
        &mut self,
        server: &mut Server,
        mut attempt: impl FnMut(&mut Self, &Server) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let mut retry = server.retry();
        loop {
            let mut trouble = match attempt(self, server) {
                Ok(done) => {
                    server.given_up = false;
                    return Ok(done);
                }
                Err(trouble) => trouble,
            };
            // In an unknown state: nothing more can be said over it, not even a goodbye.
            self.wire = None;
            if trouble.passing != Passing::No && self.overflowed {
                trouble.text.push_str(
                    "; more rows were under way than are kept for being sent again: \
                     the next run resumes from the state that was saved last",
                );
            }
            let worth_it = trouble.passing != Passing::No && !self.overflowed;
            if worth_it {
                tracing::warn!(why = %trouble.text, server = %server.place, "may be tried again");
            }
            if !worth_it || !retry.wait() {
                server.given_up |= worth_it;
                self.release(server);
                return Err(trouble);
            }
        }
    }

    /// Makes sure that there is a connection over which the head and what is kept were sent.
    fn prepare(&mut self, server: &Server) -> Result<(), Trouble> {
        if self.wire.is_some() {
            return Ok(());
        }
        let wire = Wire::connect(&server.place, server.tls.as_ref());
        self.wire = Some(wire.map_err(|error| Trouble::of_connection(CONNECTING, &error))?);
        self.opened = Some(Instant::now());
        let head = Arc::clone(&self.head);
        self.send(server, head.as_bytes())?;
        let kept = std::mem::take(&mut self.kept);
        let sent = kept.iter().try_for_each(|chunk| self.send(server, chunk));
        self.kept = kept;
        sent
    }

    fn attempt(&mut self, server: &Server, bytes: &[u8]) -> Result<(), Trouble> {
        self.prepare(server)?;
        self.send(server, bytes)
    }

    /// Sends bytes in the middle of the request.
    fn send(&mut self, server: &Server, bytes: &[u8]) -> Result<(), Trouble> {
        let Some(wire) = &mut self.wire else { return Err(gone()) };
        match wire.send(bytes, server.limits.stall) {
            Ok(Sent::All) => {
                self.sent = Instant::now();
                Ok(())
            }
            Ok(Sent::Interrupted) => {
                let answer = hear(wire, EARLY_ANSWER)?;
                Err(answer::refusal(server, &answer))
            }
            Err(error) => Err(Trouble::of_connection(SENDING, &error)),
        }
    }

    fn end(&mut self, server: &Server) -> Result<Verdict, Trouble> {
        let Some(wire) = &mut self.wire else { return Err(gone()) };
        let sent = wire.send(http::END, server.limits.stall);
        sent.map_err(|error| Trouble::of_connection("sending the end of the rows", &error))?;
        let answer = hear(wire, server.limits.answer)?;
        answer::verdict(server, &answer, self.rows)
    }

    /// After the end was sent: what may have succeeded is not tried again where that would double rows, and what may
    /// still be under way not at all: it could overtake what is sent after it.
    fn in_doubt(&self, trouble: Trouble) -> Trouble {
        match trouble.passing {
            Passing::No | Passing::Untouched => return trouble,
            Passing::Soon if self.repeatable => return trouble,
            Passing::Soon | Passing::UnderWay => {}
        }
        let twice = if self.repeatable { "" } else { ", and the next run may bring them a second time" };
        let text = format!(
            "{}; whether the {} rows of the request are in the table is not known{twice}",
            trouble.text, self.rows
        );
        Trouble { text, passing: Passing::No, ..trouble }
    }

    /// Keeps what was sent as long as there is room; afterwards nothing, for it is of use only together.
    fn keep(&mut self, server: &mut Server, mut sealed: Vec<u8>) {
        if !self.overflowed {
            sealed.shrink_to_fit();
            let size = sealed.capacity();
            if self.kept_bytes + size <= KEPT_BY_REQUEST && server.kept + size <= KEPT_BY_ALL {
                self.kept_bytes += size;
                server.kept += size;
                self.kept.push(sealed);
                return;
            }
            self.release(server);
            self.overflowed = true;
        }
        self.chunk = Chunk::reusing(sealed);
    }

    fn release(&mut self, server: &mut Server) {
        server.kept -= self.kept_bytes;
        self.kept_bytes = 0;
        self.kept.clear();
    }
}

/// Waits for an answer.
fn hear(wire: &mut Wire, limit: Duration) -> Result<Answer, Trouble> {
    let deadline = Instant::now() + limit;
    loop {
        if wire.received.is_empty() && wire.ended {
            return Err(Trouble::passing("it closed the connection without an answer"));
        }
        match http::parse(&wire.received, wire.ended) {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(why) => return Err(Trouble::of(why, false)),
        }
        wire.wait_for_more(deadline).map_err(|error| match error.kind() {
            ErrorKind::TimedOut => Trouble::under_way(error.to_string()),
            _ => Trouble::of_connection("waiting for the answer", &error),
        })?;
    }
}

fn gone() -> Trouble {
    Trouble::passing("the connection is gone")
}
