//! One connection: reads one request, forwards it, sends the response and closes. Nothing is left in the connection that
//! could be read as another request.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout};

use super::body::{self, Body, BodyReader};
use super::head::{self, Parsed};
use super::limits::{Limits, REJECTIONS};
use super::slots::{Slot, Slots};
use crate::server::auth::Caller;
use crate::server::http::{self, HttpServer};
use crate::server::service::{Admission, Exchange, Pool, Response, Service};

/// Bytes of a head read at a time: most are smaller.
const HEAD_READ: usize = 2 << 10;
/// Bytes discarded at a time.
const DISCARD_READ: usize = 16 << 10;
/// How long to read and discard what the client of a rejected connection sends.
const REJECTION_LINGER: Duration = Duration::from_millis(200);

/// Called once when no request can be served any more.
type OnFailure = Box<dyn FnOnce(io::Error) + Send>;

/// What all connections share.
pub struct Shared {
    pub limits: Limits,
    pub slots: Arc<Slots>,
    /// For connections without a slot.
    rejections: Arc<Semaphore>,
    /// Ends accepting.
    pub stop: Notify,
    pub stopping: AtomicBool,
    service: Arc<dyn Service>,
    http: HttpServer,
    body_budget: Arc<Semaphore>,
    fast: Queue,
    blocking: Queue,
    on_failure: Mutex<Option<OnFailure>>,
}

/// The requests of one pool: those that have a thread, and a bounded number that wait for one.
struct Queue {
    admitted: Arc<Semaphore>,
    threads: Arc<Semaphore>,
}

impl Queue {
    fn new(threads: usize, waiting: usize) -> Self {
        Self { admitted: Arc::new(Semaphore::new(threads + waiting)), threads: Arc::new(Semaphore::new(threads)) }
    }

    /// Waits for a thread; `None` if too many requests wait or `wait` is over.
    async fn thread(&self, wait: Duration) -> Option<[OwnedSemaphorePermit; 2]> {
        let admitted = Arc::clone(&self.admitted).try_acquire_owned().ok()?;
        let thread = timeout(wait, Arc::clone(&self.threads).acquire_owned()).await.ok()?.ok()?;
        Some([admitted, thread])
    }
}

impl Shared {
    pub fn new(limits: Limits, service: Arc<dyn Service>, on_failure: OnFailure) -> io::Result<Self> {
        Ok(Self {
            http: HttpServer::start(&service, limits.threads(), limits.response_bytes)?,
            body_budget: body::budget(&limits),
            fast: Queue::new(limits.fast_threads, limits.queue),
            blocking: Queue::new(limits.blocking_threads, limits.queue),
            slots: Slots::new(limits.connections),
            rejections: Arc::new(Semaphore::new(REJECTIONS)),
            stop: Notify::new(),
            stopping: AtomicBool::new(false),
            on_failure: Mutex::new(Some(on_failure)),
            limits,
            service,
        })
    }

    /// Reports that no request can be served any more.
    pub fn fail(&self, error: io::Error) {
        let on_failure = self.on_failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(on_failure) = on_failure.filter(|_| !self.stopping.load(Ordering::SeqCst)) {
            on_failure(error);
        }
    }

    /// Forwards a request to the HTTP server; returns the bytes of the response.
    async fn forward(self: &Arc<Self>, admission: Admission, request: Parsed, body: Body) -> Result<Vec<u8>, Response> {
        let limits = &self.limits;
        let Admission { pool, caller } = admission;
        let queue = match pool {
            Pool::Fast => &self.fast,
            Pool::Blocking => &self.blocking,
        };
        let Some(permits) = queue.thread(limits.queue_timeout).await else {
            return Err(Response::busy("too many requests are being handled: try again"));
        };
        let path = request.head.target.path;
        let shared = Arc::clone(self);
        // Continues after the timeout: the handler keeps its thread.
        let exchange = tokio::spawn(async move {
            let response = shared.http.exchange(&request.method, &request.raw_target, body.bytes, caller).await;
            drop((permits, body.share));
            response
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

    /// Sends a response and ends the sending side; whether the client has read it in time.
    async fn send(&self, stream: &mut TcpStream, response: &[u8], mut exchange: Exchange<'_>) -> bool {
        // "HTTP/1.1 200 OK"
        let status = response.get(9..12).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
        exchange.status = status.unwrap_or_default();
        if catch_unwind(AssertUnwindSafe(|| self.service.completed(&exchange))).is_err() {
            tracing::error!("recording a response panicked: this is a bug");
        }
        let write = async {
            stream.write_all(response).await?;
            stream.shutdown().await
        };
        timeout(self.limits.write_timeout, write).await.is_ok_and(|written| written.is_ok())
    }
}

/// Serves a new connection: evicts another one for it if needed, or rejects it.
pub async fn spawn(shared: &Arc<Shared>, mut stream: TcpStream, peer: SocketAddr) {
    // A response is one write: there is nothing to coalesce.
    stream.set_nodelay(true).ok();
    let shared = Arc::clone(shared);
    if let Some(mut slot) = shared.slots.take().await {
        // Before the task runs for the first time: many new connections must not look busy.
        let evicted = slot.set_idle();
        let connection = Connection {
            shared,
            stream,
            peer,
            slot,
            buffer: Vec::new(),
            started: None,
            method: None,
            path: None,
            caller: None,
        };
        tokio::spawn(connection.serve(evicted));
    } else if let Ok(permit) = Arc::clone(&shared.rejections).try_acquire_owned() {
        tokio::spawn(async move {
            let response = http::bytes(Response::busy("too many connections: try again"), false);
            if shared.send(&mut stream, &response, Exchange::default()).await {
                discard(&mut stream, REJECTION_LINGER, DISCARD_READ).await;
            }
            drop(permit);
        });
    }
}

/// Why there is no response of the HTTP server.
enum Stop {
    Rejected(Response),
    Evicted(Response),
    /// The client has gone, or has sent nothing.
    Disconnected,
}

impl From<Response> for Stop {
    fn from(response: Response) -> Self {
        Self::Rejected(response)
    }
}

/// A connection, and what is known of its request.
struct Connection {
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    slot: Slot,
    buffer: Vec<u8>,
    /// When the first byte arrived.
    started: Option<Instant>,
    method: Option<String>,
    path: Option<String>,
    /// Set when the request is admitted.
    caller: Option<Caller>,
}

impl Connection {
    /// Serves the connection, unless `evicted` resolves before its head is complete.
    async fn serve(mut self, evicted: oneshot::Receiver<()>) {
        match self.exchange(evicted).await {
            Ok(response) => self.finish(response).await,
            Err(Stop::Rejected(response)) => {
                let response = http::bytes(response, self.method.as_deref() == Some("HEAD"));
                self.finish(response).await;
            }
            Err(Stop::Evicted(response)) => {
                // Fits into the empty send buffer of the kernel.
                let send = self.send(http::bytes(response, false));
                timeout(Duration::from_secs(1), send).await.ok();
                // Closing with unread bytes would reset the connection.
                self.stream.try_read(&mut [0; HEAD_READ]).ok();
            }
            Err(Stop::Disconnected) => {}
        }
    }

    /// Reads and forwards the request; returns the bytes of the response.
    async fn exchange(&mut self, evicted: oneshot::Receiver<()>) -> Result<Vec<u8>, Stop> {
        let shared = Arc::clone(&self.shared);
        let request = self.read_head(evicted).await?;
        self.buffer.drain(..request.length);
        self.method = Some(request.method.clone());
        self.path = Some(request.head.target.path.clone());
        let admitted = catch_unwind(AssertUnwindSafe(|| shared.service.admit(&request.head)));
        let admission = admitted.unwrap_or_else(|_| {
            tracing::error!(path = self.path, "admitting a request panicked: this is a bug");
            Err(Response::error(500, "internal error"))
        })?;
        self.caller = Some(admission.caller.clone());
        if request.expects_continue && self.buffer.is_empty() {
            let write = self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
            let written = timeout(shared.limits.write_timeout, write).await;
            written.ok().and_then(Result::ok).ok_or(Stop::Disconnected)?;
        }
        let buffer = std::mem::take(&mut self.buffer);
        let reader = BodyReader::new(&mut self.stream, buffer, &shared.limits, &shared.body_budget);
        let body = reader.read(request.framing).await?;
        Ok(shared.forward(admission, request, body).await?)
    }

    /// Reads the head, unless the connection is evicted before.
    async fn read_head(&mut self, evicted: oneshot::Receiver<()>) -> Result<Parsed, Stop> {
        let shared = Arc::clone(&self.shared);
        let read = timeout(shared.limits.head_timeout, self.read_until_parsed());
        let read = tokio::select! {
            biased;
            _ = evicted => None,
            read = read => Some(read),
        };
        if !self.slot.set_busy() {
            let is_stopping = shared.stopping.load(Ordering::SeqCst);
            let why = if is_stopping { "the service is stopping" } else { "too many connections: try again" };
            return Err(Stop::Evicted(Response::busy(why)));
        }
        match read {
            Some(Ok(parsed)) => parsed,
            // The client would read a response as the one to its next request.
            _ if self.buffer.is_empty() => Err(Stop::Disconnected),
            _ => {
                let seconds = shared.limits.head_timeout.as_secs_f64();
                Err(Response::error(408, &format!("the head took longer than {seconds} s")).into())
            }
        }
    }

    async fn read_until_parsed(&mut self) -> Result<Parsed, Stop> {
        loop {
            // An idle connection needs no buffer.
            self.stream.readable().await.map_err(|_| Stop::Disconnected)?;
            self.buffer.reserve(HEAD_READ);
            match self.stream.try_read_buf(&mut self.buffer) {
                Ok(0) if self.buffer.is_empty() => return Err(Stop::Disconnected),
                Ok(0) => return Err(Response::error(400, "the connection ended before the head was complete").into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => return Err(Stop::Disconnected),
            }
            self.started.get_or_insert_with(Instant::now);
            if let Some(parsed) = head::parse(&self.buffer, self.peer, &self.shared.limits)? {
                return Ok(parsed);
            }
        }
    }

    async fn send(&mut self, response: Vec<u8>) -> bool {
        let duration = self.started.map(|started| started.elapsed()).unwrap_or_default();
        let (method, path, caller) = (self.method.as_deref(), self.path.as_deref(), self.caller.as_ref());
        let exchange = Exchange { method, path, caller, status: 0, duration };
        self.shared.send(&mut self.stream, &response, exchange).await
    }

    /// Sends the response, then discards what the client still sends. Meanwhile the connection may be evicted.
    async fn finish(mut self, response: Vec<u8>) {
        if self.send(response).await {
            let evicted = self.slot.set_idle();
            tokio::select! {
                biased;
                _ = evicted => {}
                () = discard(&mut self.stream, self.shared.limits.linger, self.shared.limits.body_bytes) => {}
            }
        }
    }
}

/// Reads and discards bytes until the client closes, at most for `time` and about `max` bytes.
async fn discard(stream: &mut TcpStream, time: Duration, max: usize) {
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
