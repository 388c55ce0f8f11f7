//! The only file that knows tiny_http: turns its requests into ours and our answers into its own.
//!
//! The library trusts what reaches it: it has no timeouts and no limits, allocates what a request declares, and reads
//! an unread body as the next request. So only the gate reaches it (see [`super::gate`]), over connections that were
//! made before it began to accept and with requests in one form. Each connection has a thread here that handles what
//! comes over it, so nothing ever waits in this file.

use std::io;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tiny_http::{Header, Server};

use super::wire::{FORWARDED, Limits, Request, Response, Service, Target};

/// Connections that one server of the library may have when they last: it starts four threads and may queue a new
/// connection behind them although they are all taken, and there it would wait for ever.
pub const LASTING_CONNECTIONS: usize = 4;

/// The threads that handle requests.
pub struct Engine {
    /// Each with the number of its threads.
    servers: Vec<(&'static Server, usize)>,
    stopping: Arc<AtomicBool>,
}

impl Engine {
    /// No threads yet.
    pub fn new() -> Self {
        Self { servers: Vec::new(), stopping: Arc::new(AtomicBool::new(false)) }
    }

    /// Serves the connections, so many and at most [`LASTING_CONNECTIONS`], that are in the queue of `listener`.
    pub fn serve(
        &mut self,
        listener: UnixListener,
        count: usize,
        name: &str,
        service: &Arc<dyn Service>,
        limits: &Limits,
    ) -> io::Result<()> {
        assert!(count <= LASTING_CONNECTIONS, "the library would let some wait for ever");
        let server = Server::from_listener(listener, None).map_err(io::Error::other)?;
        // It must not be dropped: its destructor expects a path, and the socket has none.
        let server: &'static Server = Box::leak(Box::new(server));
        for _ in 0..count {
            let (service, stopping, most) = (Arc::clone(service), Arc::clone(&self.stopping), limits.response_bytes);
            std::thread::Builder::new().name(name.to_owned()).spawn(move || {
                while !stopping.load(Ordering::SeqCst) {
                    // An error is the end of accepting, which comes once all connections are there.
                    if let Ok(request) = server.recv() {
                        answer(service.as_ref(), request, most);
                    }
                }
            })?;
        }
        self.servers.push((server, count));
        Ok(())
    }
}

impl Drop for Engine {
    /// Ends the threads, each when it has done what it does.
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        for (server, count) in &self.servers {
            (0..*count).for_each(|_| server.unblock());
        }
    }
}

/// Handles one request; whatever happens, there is one answer.
fn answer(service: &dyn Service, mut request: tiny_http::Request, most: usize) {
    let response = catch_unwind(AssertUnwindSafe(|| match read(&mut request) {
        Ok(ours) => service.handle(ours),
        Err(error) => {
            tracing::error!(%error, path = request.url(), "a request did not arrive whole");
            Response::refusal(500, "an internal error happened")
        }
    }));
    let path = || request.url().split('?').next().unwrap_or_default().to_owned();
    let response = match response {
        Ok(response) if response.body.len() <= most => response,
        Ok(response) => {
            tracing::error!(path = path(), bytes = response.body.len(), "an answer is too large");
            Response::refusal(500, "the answer is too large")
        }
        Err(_) => {
            tracing::error!(path = path(), "handling a request panicked: this is a bug");
            Response::refusal(500, "an internal error happened")
        }
    };
    if let Err(error) = request.respond(theirs(response)) {
        tracing::debug!(%error, "nobody waits for an answer");
    }
}

fn read(request: &mut tiny_http::Request) -> io::Result<Request> {
    let target = Target::parse(request.url()).map_err(io::Error::other)?;
    let headers = request
        .headers()
        .iter()
        .map(|header| (header.field.as_str().as_str().to_ascii_lowercase(), header.value.as_str().to_owned()))
        .filter(|(name, _)| FORWARDED.contains(&name.as_str()))
        .collect();
    let method = request.method().to_string();
    let length = request.body_length().unwrap_or_default();
    let mut body = Vec::with_capacity(length);
    request.as_reader().read_to_end(&mut body)?;
    if body.len() == length {
        Ok(Request { method, target, headers, body })
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Always with a length, so that the gate knows where it ends.
fn theirs(response: Response) -> tiny_http::Response<io::Cursor<Vec<u8>>> {
    let Response { status, content_type, headers, mut body } = response;
    if status == 204 || status == 304 {
        body.clear();
    }
    let all = [("Content-Type".to_owned(), content_type)].into_iter().chain(headers);
    let mut theirs = tiny_http::Response::from_data(body).with_chunked_threshold(usize::MAX).with_status_code(status);
    for (name, value) in all {
        // A line break in a value would be a header of its own.
        let is_clean = value.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
        match Header::from_bytes(name.as_bytes(), value.as_bytes()) {
            Ok(header) if is_clean => theirs.add_header(header),
            _ => tracing::error!(name, "a header of an answer cannot be sent"),
        }
    }
    theirs
}
