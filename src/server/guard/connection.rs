//! One connection: reads one request, forwards it, sends the response and closes. Nothing is left in the connection that
//! could be read as another request.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::body::BodyReader;
use super::budget::{Budget, Peer, Share};
use super::head::{self, Parsed, body_too_large};
use super::limits::Limits;
use super::memory::{self, Memory};
use super::pace::Pace;
use super::slots::{Slot, Slots};
use super::stream::Stream;
use crate::server::auth::Caller;
use crate::server::http::{self, HttpServer};
use crate::server::service::{Action, Exchange, Pool, Response, Service};
use crate::server::tls::Tls;

/// Bytes of a head read at a time: most are smaller.
const HEAD_READ: usize = 2 << 10;
/// Bytes discarded at a time.
const DISCARD_READ: usize = 16 << 10;
/// Bytes of a response written at a time.
const WRITE: usize = 64 << 10;

/// Called once when no request can be served any more.
type OnFailure = Box<dyn FnOnce(io::Error) + Send>;

/// What all connections share.
pub struct Shared {
    pub limits: Limits,
    pub slots: Arc<Slots>,
    /// `None`: plain HTTP.
    pub tls: Option<Arc<Tls>>,
    /// Ends accepting.
    pub stop: Notify,
    pub stopping: AtomicBool,
    service: Arc<dyn Service>,
    http: HttpServer,
    memory: Arc<Budget>,
    fast: Queue,
    blocking: Queue,
    on_failure: Mutex<Option<OnFailure>>,
}

/// The requests of one pool: those in progress, and of these the ones that have a thread or wait for one.
struct Queue {
    places: Budget,
    admitted: Budget,
    threads: Budget,
}

impl Queue {
    fn new(places: usize, threads: usize, waiting: usize) -> Self {
        Self {
            places: Budget::for_many(places),
            admitted: Budget::for_many(threads + waiting),
            threads: Budget::for_many(threads),
        }
    }

    /// Waits for a thread; `None` if too many requests wait or `wait` is over.
    async fn thread(&self, peer: Peer, wait: Duration) -> Option<[Share; 2]> {
        let admitted = self.admitted.try_take(peer)?;
        let thread = timeout(wait, self.threads.take(peer, 1)).await.ok()??;
        Some([admitted, thread])
    }
}

impl Shared {
    pub fn new(
        limits: Limits,
        tls: Option<Arc<Tls>>,
        service: Arc<dyn Service>,
        on_failure: OnFailure,
    ) -> io::Result<Self> {
        let places = limits.places();
        Ok(Self {
            http: HttpServer::start(&service, limits.threads(), limits.response_bytes)?,
            memory: memory::budget(&limits),
            fast: Queue::new(places.fast, limits.fast_threads, limits.queue),
            blocking: Queue::new(places.blocking, limits.blocking_threads, limits.queue),
            slots: Slots::new(places.connections),
            tls,
            stop: Notify::new(),
            stopping: AtomicBool::new(false),
            on_failure: Mutex::new(Some(on_failure)),
            limits,
            service,
        })
    }

    fn queue(&self, pool: Pool) -> &Queue {
        match pool {
            Pool::Fast => &self.fast,
            Pool::Blocking => &self.blocking,
        }
    }

    /// Reports that no request can be served any more.
    pub fn fail(&self, error: io::Error) {
        let on_failure = self.on_failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(on_failure) = on_failure.filter(|_| !self.stopping.load(Ordering::SeqCst)) {
            on_failure(error);
        }
    }

    /// Forwards a request to the HTTP server; returns the bytes of the response, and the memory that holds them.
    async fn forward(
        self: &Arc<Self>,
        (pool, peer, caller): (Pool, Peer, Caller),
        request: Parsed,
        body: Vec<u8>,
        memory: Memory,
    ) -> Result<(Vec<u8>, Memory), Response> {
        let limits = &self.limits;
        let Some(permits) = self.queue(pool).thread(peer, limits.queue_timeout).await else {
            return Err(Response::busy("too many requests are being handled: try again"));
        };
        let path = request.head.target.path;
        let shared = Arc::clone(self);
        // Continues after the timeout: the handler keeps its thread.
        let exchange = tokio::spawn(async move {
            let response = shared.http.exchange(&request.method, &request.raw_target, body, caller).await;
            drop(permits);
            response.map(|response| (response, memory))
        });
        match timeout(limits.handler_timeout, exchange).await {
            Ok(Ok(Ok(response))) => Ok(response),
            Ok(Ok(Err(error))) => {
                tracing::error!(%error, path, "cannot forward a request");
                if error.kind() == io::ErrorKind::ConnectionRefused {
                    self.fail(io::Error::new(error.kind(), format!("the HTTP server has stopped: {error}")));
                }
                Err(Response::error(500, "internal error"))
            }
            Ok(Err(_)) => Err(Response::error(500, "internal error")),
            Err(_) => {
                let seconds = limits.handler_timeout.as_secs_f64();
                Err(Response::error(504, &format!("handling the request takes longer than {seconds} s")))
            }
        }
    }

    /// Records a response.
    fn completed(&self, response: &[u8], mut exchange: Exchange<'_>) {
        // "HTTP/1.1 200 OK"
        let status = response.get(9..12).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
        exchange.status = status.unwrap_or_default();
        if catch_unwind(AssertUnwindSafe(|| self.service.completed(&exchange))).is_err() {
            tracing::error!("recording a response panicked: this is a bug");
        }
    }
}

/// Serves a new connection. Evicts another one for it if needed.
pub async fn spawn(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
    // A response is one write: there is nothing to coalesce.
    stream.set_nodelay(true).ok();
    let shared = Arc::clone(shared);
    let mut slot = shared.slots.take(peer.ip().into()).await;
    // Before the task runs for the first time: many new connections must not look busy.
    let mut evicted = slot.set_idle();
    tokio::spawn(async move {
        let deadline = Instant::now() + shared.limits.head_timeout;
        let stream = if let Some(tls) = &shared.tls {
            let secured = tokio::select! {
                biased;
                _ = &mut evicted => return,
                secured = timeout_at(deadline, Stream::secure(stream, tls.config())) => secured,
            };
            match secured {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%peer, %error, "a TLS handshake failed"),
                Err(_) => return,
            }
        } else {
            Stream::Plain(stream)
        };
        let (buffer, started, method, path, caller) = Default::default();
        let connection = Connection { shared, stream, peer, slot, deadline, buffer, started, method, path, caller };
        connection.serve(evicted).await;
    });
}

/// Why a request does not reach the HTTP server.
enum Stop {
    /// It is rejected, or its response needs no handler.
    Respond(Response),
    /// The connection is evicted.
    Evicted,
    /// The client has gone, or has sent nothing.
    Disconnected,
}

impl From<Response> for Stop {
    fn from(response: Response) -> Self {
        Self::Respond(response)
    }
}

/// A request that is admitted to a pool.
struct Admitted {
    request: Parsed,
    pool: Pool,
    caller: Caller,
    body_bytes: usize,
    response_bytes: usize,
    /// Held until the response is sent.
    place: Share,
}

/// A connection, and what is known of its request.
struct Connection {
    shared: Arc<Shared>,
    stream: Stream,
    peer: SocketAddr,
    slot: Slot,
    /// When its head must be complete.
    deadline: Instant,
    buffer: Vec<u8>,
    /// When the first byte arrived.
    started: Option<Instant>,
    method: Option<String>,
    path: Option<String>,
    /// Set when the request is admitted.
    caller: Option<Caller>,
}

impl Connection {
    /// Serves the connection, unless `evicted` resolves before its request is admitted.
    async fn serve(mut self, mut evicted: oneshot::Receiver<()>) {
        let admitted = tokio::select! {
            biased;
            _ = &mut evicted => Err(Stop::Evicted),
            admitted = self.admit() => admitted,
        };
        let result = match admitted {
            Ok(_) if !self.slot.set_busy() => Err(Stop::Evicted),
            Ok(admitted) => {
                let result = self.exchange(admitted).await;
                evicted = self.slot.set_idle();
                result
            }
            Err(stop) => Err(stop),
        };
        match result {
            Ok(()) => self.linger(evicted).await,
            Err(Stop::Respond(response)) => {
                let response = http::bytes(response, self.method.as_deref() == Some("HEAD"));
                let sent = tokio::select! {
                    biased;
                    _ = &mut evicted => false,
                    sent = self.send(response) => sent,
                };
                if sent {
                    self.linger(evicted).await;
                }
            }
            Err(Stop::Evicted) => {
                let is_stopping = self.shared.stopping.load(Ordering::SeqCst);
                let why = if is_stopping { "the service is stopping" } else { "too many connections: try again" };
                // Fits into the empty send buffer of the kernel.
                let send = self.send(http::bytes(Response::busy(why), false));
                timeout(Duration::from_secs(1), send).await.ok();
                // Closing with unread bytes would reset the connection.
                self.stream.socket().try_read(&mut [0; HEAD_READ]).ok();
            }
            Err(Stop::Disconnected) => {}
        }
    }

    /// Reads the head and decides what happens with the request.
    async fn admit(&mut self) -> Result<Admitted, Stop> {
        let shared = Arc::clone(&self.shared);
        if shared.tls.is_some() && matches!(self.stream, Stream::Plain(_)) {
            return Err(Response::error(
                400,
                "this port requires TLS: send the request to https:// instead of http://",
            )
            .into());
        }
        let request = match timeout_at(self.deadline, self.read_head()).await {
            Ok(parsed) => parsed?,
            // The client would read a response as the one to its next request.
            Err(_) if self.buffer.is_empty() => return Err(Stop::Disconnected),
            Err(_) => {
                let seconds = shared.limits.head_timeout.as_secs_f64();
                return Err(Response::error(408, &format!("the head took longer than {seconds} s")).into());
            }
        };
        self.buffer.drain(..request.length);
        self.method = Some(request.method.clone());
        self.path = Some(request.head.target.path.clone());
        let admission = catch_unwind(AssertUnwindSafe(|| shared.service.admit(&request.head)));
        let admission = admission.unwrap_or_else(|_| {
            tracing::error!(path = self.path, "admitting a request panicked: this is a bug");
            Err(Response::error(500, "internal error"))
        })?;
        let body_bytes = admission.body_bytes.min(shared.limits.body_bytes);
        if !request.framing.fits(body_bytes) {
            return Err(body_too_large(body_bytes).into());
        }
        match admission.action {
            Action::Respond(response) => Err(response.into()),
            Action::Handle { pool, response_bytes, caller } => {
                self.caller = Some(caller.clone());
                let place = shared.queue(pool).places.try_take(self.peer.ip().into());
                let place = place.ok_or_else(|| Response::busy("too many requests are in progress: try again"))?;
                Ok(Admitted { request, pool, caller, body_bytes, response_bytes, place })
            }
        }
    }

    async fn read_head(&mut self) -> Result<Parsed, Stop> {
        loop {
            match self.stream.read_some(&mut self.buffer, HEAD_READ).await {
                Ok(0) if self.buffer.is_empty() => return Err(Stop::Disconnected),
                Ok(0) => return Err(Response::error(400, "the connection ended before the head was complete").into()),
                Ok(_) => {}
                Err(_) => return Err(Stop::Disconnected),
            }
            self.started.get_or_insert_with(Instant::now);
            if let Some(mut parsed) = head::parse(&self.buffer, self.peer, &self.shared.limits)? {
                parsed.head.has_certificate = self.stream.has_certificate();
                return Ok(parsed);
            }
        }
    }

    /// Reads the body, forwards the request and sends the response.
    async fn exchange(&mut self, admitted: Admitted) -> Result<(), Stop> {
        let Admitted { request, pool, caller, body_bytes, response_bytes, place } = admitted;
        let (shared, peer) = (Arc::clone(&self.shared), self.peer.ip().into());
        let limits = &shared.limits;
        if request.expects_continue && self.buffer.is_empty() {
            let write = async {
                self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                self.stream.flush().await
            };
            let written = timeout(limits.idle_timeout, write).await;
            written.ok().and_then(Result::ok).ok_or(Stop::Disconnected)?;
        }
        let mut memory = Memory::new(&shared.memory, peer);
        let buffer = std::mem::take(&mut self.buffer);
        let reader = BodyReader::new(&mut self.stream, buffer, body_bytes, limits, &mut memory);
        let body = reader.read(request.framing).await?;
        // The handler and the guard each have a copy for a moment.
        memory.reserve(2 * response_bytes.min(limits.response_bytes), limits).await?;
        let (response, mut memory) = shared.forward((pool, peer, caller), request, body, memory).await?;
        memory.shrink(response.len());
        memory.reserve(response.len(), limits).await?;
        let sent = self.send(response).await;
        drop((memory, place));
        if sent { Ok(()) } else { Err(Stop::Disconnected) }
    }

    /// Sends a response and ends the sending side; whether the client has read it in time.
    async fn send(&mut self, response: Vec<u8>) -> bool {
        let duration = self.started.map(|started| started.elapsed()).unwrap_or_default();
        let (method, path, caller) = (self.method.as_deref(), self.path.as_deref(), self.caller.as_ref());
        let exchange = Exchange { method, path, caller, status: 0, duration };
        self.shared.completed(&response, exchange);
        let limits = &self.shared.limits;
        let (mut pace, mut rest) = (Pace::start(), response.as_slice());
        while !rest.is_empty() {
            let write = self.stream.write(&rest[..rest.len().min(WRITE)]);
            match timeout_at(pace.deadline(limits), write).await {
                Ok(Ok(count @ 1..)) => {
                    pace.count(count);
                    rest = &rest[count..];
                }
                Ok(_) => return false,
                Err(_) => {
                    tracing::debug!(peer = %self.peer, "disconnecting a client that reads its response too slowly");
                    // Otherwise the kernel keeps what it has not sent yet.
                    set_socket_linger(self.stream.socket(), Some(Duration::ZERO)).ok();
                    return false;
                }
            }
        }
        timeout_at(pace.deadline(limits), self.stream.shutdown()).await.is_ok_and(|end| end.is_ok())
    }

    /// Discards what the client still sends, unless the connection is evicted.
    async fn linger(&mut self, evicted: oneshot::Receiver<()>) {
        let limits = &self.shared.limits;
        tokio::select! {
            biased;
            _ = evicted => {}
            () = discard(&mut self.stream, limits.linger, limits.body_bytes) => {}
        }
    }
}

/// Reads and discards bytes until the client closes, at most for `time` and about `max` bytes.
async fn discard(stream: &mut Stream, time: Duration, max: usize) {
    let drain = async {
        let (mut buffer, mut discarded) = (vec![0; DISCARD_READ], 0);
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            discarded += count;
            if discarded > max {
                return;
            }
        }
    };
    timeout(time, drain).await.ok();
}
