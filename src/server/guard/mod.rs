//! The guard in front of the HTTP library: accepts connections, reads one request from each, and forwards those that
//! are complete, within the limits and admitted. The library has no limits of its own.
//!
//! Guarantees:
//! * At most [`Limits::connections`] connections are open, and always some of them are left for clients that send a head:
//!   a new connection evicts an idle one, that is, one without an admitted request.
//! * The service decides from the head, before any of the body is read. Until then a request costs its head and what the
//!   decision costs. Probes are answered then, and take no place that others could occupy.
//! * Head, body and response are limited in bytes and in time, and all bodies and responses together in bytes.
//! * Of places, threads and bytes one client (an IP address) leaves a part for others.
//! * A request is forwarded in canonical form, and each response ends its connection. Whatever follows the first request
//!   on a connection is discarded.
//!
//! With TLS the handshake is a part of the head: it shares its deadline, and the connection may be evicted meanwhile.
//!
//! Asynchronous and on one thread: thousands of idle connections need no threads.

mod body;
mod budget;
mod connection;
mod head;
mod limits;
mod memory;
mod pace;
mod slots;
mod stream;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::runtime::Runtime;

use self::connection::Shared;
pub use self::limits::Limits;
use super::service::Service;
use super::tls::Tls;

/// Connections that the kernel queues until they are accepted; the kernel may lower this.
const BACKLOG: i32 = 4096;
/// Bytes of a response that the kernel holds for a client that does not read: more than a probe or an error has.
const SEND_BUFFER: usize = 128 << 10;
/// How long an evicted connection needs to close its file.
const EVICTION_TIME: Duration = Duration::from_millis(1);
/// How long to wait for a free file if no connection can be evicted.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// How often the files of TLS are read.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// How often to log the same error.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Accepts connections until the guard stops or fails. The socket closes when it returns.
async fn accept(shared: Arc<Shared>, listener: tokio::net::TcpListener) {
    let mut logged: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.stop.notified() => return,
            accepted = listener.accept() => accepted,
        };
        let error = match accepted {
            Ok((stream, peer)) => {
                connection::spawn(&shared, stream, peer).await;
                continue;
            }
            Err(error) => error,
        };
        let kind = classify(&error);
        if kind == AcceptError::Fatal {
            return shared.fail(io::Error::new(error.kind(), format!("cannot accept connections: {error}")));
        }
        if logged.is_none_or(|logged| logged.elapsed() > LOG_INTERVAL) {
            logged = Some(Instant::now());
            tracing::warn!(%error, "cannot accept a connection");
        }
        if kind == AcceptError::OutOfResources {
            let evicted = shared.slots.evict_one().is_some();
            tokio::time::sleep(if evicted { EVICTION_TIME } else { RETRY_DELAY }).await;
        }
    }
}

/// Reads the files of TLS again and again.
async fn reload(tls: Arc<Tls>) {
    loop {
        tokio::time::sleep(RELOAD_INTERVAL).await;
        let tls = Arc::clone(&tls);
        tokio::task::spawn_blocking(move || tls.reload()).await.ok();
    }
}

/// What an error of accept(2) means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AcceptError {
    /// It concerns one connection: Linux reports pending network errors of the new connection.
    Transient,
    /// Out of files or memory.
    OutOfResources,
    /// The socket is unusable.
    Fatal,
}

fn classify(error: &io::Error) -> AcceptError {
    match Errno::from_io_error(error) {
        None | Some(Errno::BADF | Errno::FAULT | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP) => {
            AcceptError::Fatal
        }
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => AcceptError::OutOfResources,
        Some(_) => AcceptError::Transient,
    }
}

/// A running guard with its HTTP server.
pub struct Guard {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Mutex<Option<Runtime>>,
}

impl Guard {
    /// Serves `listener`, with TLS if given. Calls `on_failure`, once and on a thread that it must not block, when no request can be served
    /// any more: the process should end.
    pub fn start(
        listener: TcpListener,
        tls: Option<Arc<Tls>>,
        mut limits: Limits,
        service: Arc<dyn Service>,
        on_failure: impl FnOnce(io::Error) + Send + 'static,
    ) -> io::Result<Self> {
        limits.fit_open_files();
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        rustix::net::listen(&listener, BACKLOG)?;
        // Inherited by connections.
        rustix::net::sockopt::set_socket_send_buffer_size(&listener, SEND_BUFFER)?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("guard").enable_all().build()?;
        let shared = Arc::new(Shared::new(limits, tls, service, Box::new(on_failure))?);
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        if let Some(tls) = &shared.tls {
            runtime.spawn(reload(Arc::clone(tls)));
        }
        runtime.spawn(accept(Arc::clone(&shared), listener));
        Ok(Self { shared, address, runtime: Mutex::new(Some(runtime)) })
    }

    /// The address of the listener.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the socket and idle connections, and waits until busy connections have ended, at most for `timeout`;
    /// whether all have. Must not be called by a handler, which would wait for itself, nor by `on_failure`.
    pub fn stop(&self, timeout: Duration) -> bool {
        let Some(runtime) = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take() else { return true };
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.stop.notify_one();
        self.shared.slots.close();
        let drained =
            runtime.block_on(async { tokio::time::timeout(timeout, self.shared.slots.drained()).await.is_ok() });
        if !drained {
            tracing::warn!(requests = self.shared.slots.taken(), "abandoning requests that are still being handled");
        }
        runtime.shutdown_background();
        drained
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{AcceptError, Errno, classify};

    #[test]
    fn only_an_unusable_socket_is_fatal() {
        for (errno, expected) in [
            (Errno::CONNABORTED, AcceptError::Transient),
            (Errno::PERM, AcceptError::Transient),
            (Errno::MFILE, AcceptError::OutOfResources),
            (Errno::NFILE, AcceptError::OutOfResources),
            (Errno::NOMEM, AcceptError::OutOfResources),
            (Errno::BADF, AcceptError::Fatal),
            (Errno::INVAL, AcceptError::Fatal),
            (Errno::NOTSOCK, AcceptError::Fatal),
        ] {
            assert_eq!(classify(&io::Error::from(errno)), expected, "{errno}");
        }
        assert_eq!(classify(&io::Error::other("no errno")), AcceptError::Fatal);
    }
}
