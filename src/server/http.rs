//! The only file that uses tiny_http: the server behind the guard, its handler threads, and the bytes of a response.
//!
//! tiny_http has no timeouts and no limits, allocates what a request declares, and parses an unread body as the next
//! request. So only the guard (see [`super::guard`]) connects to it, with one complete request per connection: the name
//! of its socket is removed before it listens, and the guard opens the socket through its own file descriptor.
//!
//! Its thread pool may queue a connection although no thread is free. Every thread is free again as soon as a handler
//! thread has read the body, and the guard has at most one request in progress per handler thread, so nothing waits.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tiny_http::{HTTPVersion, Header, Method, Server, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use super::auth::Caller;
use super::service::{Request, Response, Service, Target};

/// Bytes that are read from a response before its length is known.
const RESPONSE_READ: usize = 8 << 10;

/// The HTTP server behind the guard. Dropping it ends each thread after the request that it handles.
pub struct HttpServer {
    library: Arc<Library>,
    threads: usize,
    stopping: Arc<AtomicBool>,
}

struct Library {
    /// `None` while it is being dropped.
    server: Option<Server>,
    socket: PathBuf,
    /// Behind [`Self::socket`].
    _socket_file: OwnedFd,
    /// Who sends each request, by the number in the header [`NUMBER`].
    callers: Mutex<HashMap<u64, Caller>>,
    next_number: AtomicU64,
}

/// The header of a forwarded request that identifies it. Only the guard can set it: it forwards no header of a client.
const NUMBER: &str = "Number";

impl Library {
    fn callers(&self) -> MutexGuard<'_, HashMap<u64, Caller>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Library {
    /// The thread that accepts connections ends at the first connection after the server is dropped.
    fn drop(&mut self) {
        self.server.take();
        UnixStream::connect(&self.socket).ok();
    }
}

impl HttpServer {
    /// Starts the handler threads. Responses with a larger body than `max_response` bytes become 500.
    pub fn start(service: &Arc<dyn Service>, threads: usize, max_response: usize) -> io::Result<Self> {
        let (listener, socket_file) = private_socket(threads)?;
        let socket = PathBuf::from(format!("/proc/self/fd/{}", socket_file.as_raw_fd()));
        let server = Some(Server::from_listener(listener, None).map_err(io::Error::other)?);
        let (callers, next_number) = (Mutex::default(), AtomicU64::default());
        let library = Arc::new(Library { server, socket, _socket_file: socket_file, callers, next_number });
        let http = Self { library, threads, stopping: Arc::default() };
        for _ in 0..threads {
            let (service, library, stopping) =
                (Arc::clone(service), Arc::clone(&http.library), Arc::clone(&http.stopping));
            std::thread::Builder::new().name("handler".to_owned()).spawn(move || {
                while let Some(server) = library.server.as_ref().filter(|_| !stopping.load(Ordering::SeqCst)) {
                    // An error means that it no longer accepts connections: the guard notices.
                    if let Ok(request) = server.recv() {
                        answer(service.as_ref(), &library, request, max_response);
                    }
                }
            })?;
        }
        Ok(http)
    }

    /// Sends a request and returns the bytes of the response. `ConnectionRefused`: the server no longer works.
    pub async fn exchange(&self, method: &str, target: &str, body: Vec<u8>, caller: Caller) -> io::Result<Vec<u8>> {
        let number = self.library.next_number.fetch_add(1, Ordering::Relaxed);
        self.library.callers().insert(number, caller);
        let response = self.send(method, target, number, body).await;
        // Where no handler has read the request.
        self.library.callers().remove(&number);
        response
    }

    async fn send(&self, method: &str, target: &str, number: u64, body: Vec<u8>) -> io::Result<Vec<u8>> {
        let length = body.len();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nConnection: close\r\n{NUMBER}: {number}\r\nContent-Length: {length}\r\n\r\n"
        );
        let mut stream = tokio::net::UnixStream::connect(&self.library.socket).await?;
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        drop(body);
        let mut response = Vec::with_capacity(RESPONSE_READ);
        while stream.read_buf(&mut response).await? > 0 {
            // A vector that grows as it is read would take up to twice the size.
            if response.len() <= RESPONSE_READ
                && let Some(length) = total_length(&response)
            {
                response.reserve_exact(length.saturating_sub(response.len()) + 1);
            }
        }
        if response.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(response) }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        if let Some(server) = &self.library.server {
            (0..self.threads).for_each(|_| server.unblock());
        }
    }
}

/// A Unix socket without a name, and a file descriptor to connect to it. Needs a writable directory for a moment.
fn private_socket(backlog: usize) -> io::Result<(UnixListener, OwnedFd)> {
    let in_directory = |directory: &Path| {
        let path = directory.join(format!("syncctl-{}.socket", Uuid::new_v4()));
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // The mode of the file: until its name is removed, other users could open it.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?)?;
        let file = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        std::fs::remove_file(&path)?;
        rustix::net::listen(&socket, i32::try_from(backlog).unwrap_or(i32::MAX))?;
        Ok((UnixListener::from(socket), file?))
    };
    // A container without a writable file system still has the latter.
    let temporary = std::env::temp_dir();
    let result = in_directory(&temporary).or_else(|_| in_directory(Path::new("/dev/shm")));
    result.map_err(|error: io::Error| {
        let text = format!("cannot create a socket in {} or /dev/shm: {error}", temporary.display());
        io::Error::new(error.kind(), text)
    })
}

/// The bytes of a response as its head, which we wrote, declares them; `None` where the head is incomplete.
fn total_length(response: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"\r\nContent-Length: ";
    let head = memchr::memmem::find(response, b"\r\n\r\n")? + 4;
    let start = memchr::memmem::find(&response[..head], NAME)? + NAME.len();
    let digits = response[start..head].split(|byte| *byte == b'\r').next()?;
    head.checked_add(std::str::from_utf8(digits).ok()?.parse().ok()?)
}

/// Handles one request; there is always one response.
fn answer(service: &dyn Service, library: &Library, mut request: tiny_http::Request, max_response: usize) {
    let (path, without_body) =
        (request.url().split('?').next().unwrap_or_default().to_owned(), *request.method() == Method::Head);
    let ours = read(library, &mut request);
    // Before the request is handled: it frees the library's thread.
    let mut writer = request.into_writer();
    let response = ours.map(|ours| catch_unwind(AssertUnwindSafe(|| service.handle(ours))));
    let response = match response {
        Ok(Ok(response)) if response.body.len() <= max_response => response,
        Ok(Ok(response)) => {
            tracing::error!(path, bytes = response.body.len(), "the response is too large");
            Response::error(500, "the response is too large")
        }
        Ok(Err(_)) => {
            tracing::error!(path, "a request handler panicked: this is a bug");
            Response::error(500, "internal error")
        }
        Err(error) => {
            tracing::error!(path, %error, "cannot read a forwarded request");
            Response::error(500, "internal error")
        }
    };
    let (head, body) = print(response, without_body);
    if let Err(error) = writer.write_all(&head).and_then(|()| writer.write_all(&body)).and_then(|()| writer.flush()) {
        tracing::debug!(path, %error, "cannot send a response");
    }
}

fn read(library: &Library, request: &mut tiny_http::Request) -> io::Result<Request> {
    let target = Target::parse(request.url()).map_err(io::Error::other)?;
    let method = if *request.method() == Method::Head { "GET".to_owned() } else { request.method().to_string() };
    let number = request.headers().iter().find(|header| header.field.equiv(NUMBER));
    let number: Option<u64> = number.and_then(|header| header.value.as_str().parse().ok());
    let caller = number.and_then(|number| library.callers().remove(&number));
    let caller = caller.ok_or_else(|| io::Error::other("nothing is known of its caller"))?;
    let length = request.body_length().unwrap_or_default();
    let mut body = Vec::with_capacity(length);
    request.as_reader().read_to_end(&mut body)?;
    if body.len() != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Request { method, target, body, caller })
}

/// The bytes of a response that ends its connection.
pub fn bytes(response: Response, without_body: bool) -> Vec<u8> {
    let (mut head, body) = print(response, without_body);
    head.extend_from_slice(&body);
    head
}

/// The head and the body of a response that ends its connection. The body is not copied.
fn print(response: Response, without_body: bool) -> (Vec<u8>, Vec<u8>) {
    let Response { status, content_type, headers, body } = response;
    let standard = [("Server".to_owned(), "syncctl".to_owned()), ("Content-Type".to_owned(), content_type)];
    let mut response = tiny_http::Response::new(StatusCode(status), Vec::new(), io::empty(), Some(body.len()), None)
        .with_chunked_threshold(usize::MAX);
    for (name, value) in standard.into_iter().chain(headers) {
        // A line break in a value would start another header.
        let is_clean = value.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
        match Header::from_bytes(name.as_bytes(), value.as_bytes()) {
            Ok(header) if is_clean => response.add_header(header),
            _ => tracing::error!(name, "omitting an invalid header of a response"),
        }
    }
    let mut head = Vec::new();
    response.raw_print(&mut head, HTTPVersion(1, 1), &[], true, None).expect("writing to a Vec does not fail");
    // The library does not let us set this header.
    if let Some(end) = memchr::memmem::find(&head, b"\r\n") {
        head.splice(end + 2..end + 2, *b"Connection: close\r\n");
    }
    // Their responses have no body.
    let is_empty = without_body || matches!(status, 100..=199 | 204 | 304);
    (head, if is_empty { Vec::new() } else { body })
}
