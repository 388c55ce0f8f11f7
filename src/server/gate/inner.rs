//! The way from the gate to the HTTP library: a fixed number of connections that nobody else can have.
//!
//! The library trusts whoever reaches its socket, so nobody may: not another user of this machine, not another
//! container of the Pod. A Unix socket in a private folder would need a writable file system, which the service does
//! not have, and an abstract one, whatever its name, is listed in `/proc/net/unix` and open to all. So all connections
//! are made before the library accepts the first one, and then the socket is shut: its queue has exactly as many
//! places as we make connections, so once all of ours are in it, nobody else is. The kernel still hands out what is
//! queued, and refuses everybody afterwards.

use std::collections::VecDeque;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use crate::server::wire::{JSON, Response};

/// How often it is tried to be the only one: somebody would have to watch for the socket to be in the way once.
const ATTEMPTS: usize = 5;
/// The heads of our own answers are far shorter.
const LONGEST_HEAD: usize = 64 << 10;
/// Headers of an answer, those of the library included.
const MOST_HEADERS: usize = 64;

/// A shut socket with the library's ends of `count` connections in its queue, and our ends.
pub async fn connections(count: usize) -> io::Result<(UnixListener, Vec<UnixStream>)> {
    let mut result = attempt(count).await;
    for _ in 1..ATTEMPTS {
        if result.is_ok() {
            break;
        }
        result = attempt(count).await;
    }
    result
}

async fn attempt(count: usize) -> io::Result<(UnixListener, Vec<UnixStream>)> {
    let name = format!("syncctl-{}", Uuid::new_v4());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    // The kernel queues one more than it is told.
    let places = i32::try_from(count.saturating_sub(1)).map_err(io::Error::other)?;
    rustix::net::listen(&listener, places)?;
    let mut ours = Vec::with_capacity(count);
    for _ in 0..count {
        // Does not wait for a place: without one it fails.
        ours.push(UnixStream::connect(format!("\0{name}")).await?);
    }
    rustix::net::shutdown(&listener, Shutdown::Both)?;
    Ok((listener, ours))
}

/// The connections of one lane. Each leads to a thread that handles one request at a time.
pub struct Lane {
    idle: Mutex<Vec<UnixStream>>,
    free: Arc<Semaphore>,
    left: AtomicUsize,
    waiting: AtomicUsize,
}

/// A connection for one request.
pub struct Way {
    stream: UnixStream,
    permit: OwnedSemaphorePermit,
    lane: Arc<Lane>,
}

impl Lane {
    /// Of connections that were made.
    pub fn new(streams: Vec<UnixStream>) -> Self {
        let count = streams.len();
        Self {
            idle: Mutex::new(streams),
            free: Arc::new(Semaphore::new(count)),
            left: AtomicUsize::new(count),
            waiting: AtomicUsize::new(0),
        }
    }

    /// A free connection; waits for one in a queue of at most `queue`. `None`: too many wait, or it took too long.
    pub async fn enter(self: &Arc<Self>, queue: usize, patience: Duration) -> Option<Way> {
        let permit = match Arc::clone(&self.free).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) if self.waiting.load(Ordering::SeqCst) >= queue => return None,
            Err(_) => {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                let permit = tokio::time::timeout(patience, Arc::clone(&self.free).acquire_owned()).await;
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                permit.ok()?.ok()?
            }
        };
        let stream = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Way { stream, permit, lane: Arc::clone(self) })
    }

    /// Whether the library has closed all of its ends.
    pub fn is_dead(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }
}

impl Way {
    /// Sends a request and reads its answer. The body is let go while it is sent.
    pub async fn exchange(mut self, head: Vec<u8>, body: VecDeque<Vec<u8>>, most: usize) -> io::Result<Response> {
        let result = self.try_exchange(&head, body, most).await;
        if result.is_ok() {
            self.lane.idle.lock().unwrap_or_else(PoisonError::into_inner).push(self.stream);
            drop(self.permit);
        } else {
            // What is left on that connection could be taken for the answer to the next request.
            self.permit.forget();
            self.lane.left.fetch_sub(1, Ordering::SeqCst);
        }
        result
    }

    async fn try_exchange(&mut self, head: &[u8], body: VecDeque<Vec<u8>>, most: usize) -> io::Result<Response> {
        self.stream.write_all(head).await?;
        for part in body {
            self.stream.write_all(&part).await?;
        }
        let mut bytes = Vec::new();
        let end = loop {
            if self.stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(end) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
                break end + 4;
            }
            if bytes.len() > LONGEST_HEAD {
                return Err(io::Error::other("the head of an answer is too long"));
            }
        };
        let (mut response, length) = parse(&bytes[..end])?;
        if length > most || bytes.len() - end > length {
            return Err(io::Error::other("an answer is longer than it may be"));
        }
        response.body = bytes.split_off(end);
        let at = response.body.len();
        response.body.resize(length, 0);
        self.stream.read_exact(&mut response.body[at..]).await?;
        Ok(response)
    }
}

/// The head of an answer, and how long its body is.
fn parse(bytes: &[u8]) -> io::Result<(Response, usize)> {
    let mut slots = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Response::new(&mut slots);
    parsed.parse(bytes).map_err(io::Error::other)?;
    let status = parsed.code.ok_or_else(|| io::Error::other("an answer has no status"))?;
    let mut response = Response { status, content_type: JSON.to_owned(), headers: Vec::new(), body: Vec::new() };
    let mut length = None;
    for header in parsed.headers.iter() {
        let value = String::from_utf8_lossy(header.value).into_owned();
        match header.name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok(),
            "content-type" => response.content_type = value,
            // The front's own.
            "connection" | "date" | "server" | "transfer-encoding" => {}
            _ => response.headers.push((header.name.to_owned(), value)),
        }
    }
    let length = length.ok_or_else(|| io::Error::other("an answer has no length"))?;
    Ok((response, length))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::{Arc, AsyncWriteExt, Duration, Lane, SocketAddrExt, VecDeque};

    #[test]
    fn all_connections_are_in_the_queue_and_nobody_else_can_come() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (listener, ours) = runtime.block_on(super::connections(20)).expect("connections");
        let address = listener.local_addr().expect("an address");
        assert!(address.as_abstract_name().is_some_and(|name| name.starts_with(b"syncctl-")));
        assert!(UnixStream::connect_addr(&address).is_err(), "a stranger came in");
        let mut accepted = Vec::new();
        let error = loop {
            match listener.accept() {
                Ok((stream, _)) => accepted.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!((accepted.len(), ours.len()), (20, 20), "{error}");
        assert!(UnixStream::connect_addr(&address).is_err(), "a stranger came in later");
    }

    #[test]
    fn a_connection_that_the_library_ends_is_not_used_again() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (ours, theirs) = tokio::net::UnixStream::pair().expect("a pair");
            let lane = Arc::new(Lane::new(vec![ours]));
            drop(theirs);
            let way = lane.enter(1, Duration::from_secs(1)).await.expect("a way");
            assert!(!lane.is_dead());
            assert!(way.exchange(b"GET / HTTP/1.1\r\n\r\n".to_vec(), VecDeque::new(), 100).await.is_err());
            assert!(lane.is_dead());
            assert!(lane.enter(1, Duration::from_millis(10)).await.is_none());
        });
    }

    #[test]
    fn an_answer_that_is_not_as_agreed_is_an_error() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        for (label, answer, fine) in [
            ("as agreed", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", true),
            ("no length", "HTTP/1.1 200 OK\r\n\r\nabc", false),
            ("too much", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd", false),
            ("too little", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", false),
            ("too long", "HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n", false),
            ("no answer", "abc\r\n\r\n", false),
        ] {
            runtime.block_on(async {
                let (ours, mut theirs) = tokio::net::UnixStream::pair().expect("a pair");
                let way = Arc::new(Lane::new(vec![ours])).enter(1, Duration::from_secs(1)).await.expect("a way");
                theirs.write_all(answer.as_bytes()).await.expect("room");
                theirs.shutdown().await.expect("an end");
                let result = way.exchange(Vec::new(), VecDeque::new(), 100).await;
                assert_eq!(result.is_ok_and(|response| response.body == b"abc"), fine, "{label}");
            });
        }
    }

    #[test]
    fn a_stranger_that_was_faster_takes_a_place_and_is_noticed() {
        let name = format!("syncctl-test-{}", uuid::Uuid::new_v4());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("an address");
        let listener = std::os::unix::net::UnixListener::bind_addr(&address).expect("a socket");
        let _stranger = UnixStream::connect_addr(&address).expect("a connection");
        rustix::net::listen(&listener, 2).expect("a smaller queue");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let connected = runtime.block_on(async {
            let mut connected = Vec::new();
            while let Ok(stream) = tokio::net::UnixStream::connect(format!("\0{name}")).await {
                connected.push(stream);
            }
            connected.len()
        });
        assert_eq!(connected, 2, "the third place is the stranger's");
    }
}
