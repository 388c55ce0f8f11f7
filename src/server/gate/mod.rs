//! The only one who listens: takes connections, reads one request from each, and lets through what is whole, small
//! enough and admitted. Behind it is the HTTP library, which has no limits of its own.
//!
//! What holds whatever is sent:
//! * At most [`Limits::connections`] connections count. A new one displaces the one that has waited for the longest
//!   time without a complete head, so idle ones cannot shut others out; if all have a request in work, the new one is
//!   answered with 503.
//! * Head and body have limits in bytes and in time; all bodies together have one in bytes.
//! * The service judges the head before a byte of the body is read.
//! * A request is handed on in a form of our own, and each answer ends its connection. A request behind the first one
//!   on a connection is never looked at.
//! * A body of a request that needs none (GET) is read within the same limits; handlers do not look at it.
//!
//! Asynchronous, on one thread of its own: thousands of idle connections cost no threads.

mod body;
mod chunks;
mod connection;
mod head;
mod inner;
mod table;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, Semaphore};

use self::connection::{Connection, turn_away};
use self::inner::Lane;
use self::table::Table;
use super::http::{Engine, LASTING_CONNECTIONS};
use super::wire::{self, Limits, Service};

/// Connections that the kernel keeps for us until they are accepted; it may lower this.
const BACKLOG: i32 = 4096;
/// Connections that are told at the same time that there is no room; more are closed without a word.
const FAREWELLS: usize = 256;
/// How long a connection that was sent away takes to close its file.
const TURN: Duration = Duration::from_millis(1);
/// How long accepting rests when there are no open files left and nobody can be sent away.
const BREATH: Duration = Duration::from_millis(50);
/// The same trouble is told once in this time.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// Open files besides connections: the database, the cluster, standard streams.
const OTHER_FILES: u64 = 256;

/// Tells the owner that requests can no longer be served.
type TellFailure = Box<dyn FnOnce(io::Error) + Send>;

/// What all connections share.
struct Gate {
    limits: Limits,
    service: Arc<dyn Service>,
    table: Arc<Table>,
    budget: Arc<Semaphore>,
    farewells: Arc<Semaphore>,
    light: Arc<Lane>,
    worker: Arc<Lane>,
    stopping: AtomicBool,
    stop: Notify,
    failure: Mutex<Option<TellFailure>>,
}

impl Gate {
    fn lane(&self, lane: wire::Lane) -> &Arc<Lane> {
        match lane {
            wire::Lane::Light => &self.light,
            wire::Lane::Worker => &self.worker,
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn fail(&self, error: io::Error) {
        if self.is_stopping() {
            return;
        }
        if let Some(tell) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            tell(error);
        }
    }

    /// Takes connections until it is told to stop or cannot go on. The socket closes when it returns.
    async fn accept(self: Arc<Self>, listener: tokio::net::TcpListener) {
        let mut told: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.notified() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    if let Some(wait) = self.table.haste(self.limits.connections) {
                        tokio::time::sleep(wait).await;
                    }
                    self.take(stream, peer);
                }
                Err(error) => {
                    let verdict = judge(&error);
                    if verdict == Trouble::Fatal {
                        let text = format!("accepting connections: {error}");
                        return self.fail(io::Error::new(error.kind(), text));
                    }
                    if told.is_none_or(|told| told.elapsed() > TELL_AGAIN) {
                        told = Some(Instant::now());
                        tracing::warn!(%error, "a connection could not be accepted");
                    }
                    if verdict == Trouble::NoRoom {
                        let makes_room = self.table.send_oldest_away();
                        tokio::time::sleep(if makes_room { TURN } else { BREATH }).await;
                    }
                }
            }
        }
    }

    fn take(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        // An answer is one write; there is nothing to gather.
        stream.set_nodelay(true).ok();
        if let Some((place, told)) = self.table.enter(self.limits.connections) {
            tokio::spawn(Connection::new(Arc::clone(self), stream, peer, place).serve(told));
        } else if let Ok(permit) = Arc::clone(&self.farewells).try_acquire_owned() {
            let gate = Arc::clone(self);
            tokio::spawn(async move {
                turn_away(gate, stream).await;
                drop(permit);
            });
        }
    }
}

/// What an error of accepting means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// It concerns one connection.
    Passing,
    /// Files or memory have run out.
    NoRoom,
    /// The socket is of no use any more.
    Fatal,
}

/// Linux hands errors of the new connection to whoever accepts it; those pass.
fn judge(error: &io::Error) -> Trouble {
    let Some(errno) = Errno::from_io_error(error) else { return Trouble::Fatal };
    match errno {
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => Trouble::NoRoom,
        Errno::CONNABORTED
        | Errno::CONNRESET
        | Errno::INTR
        | Errno::AGAIN
        | Errno::PERM
        | Errno::PROTO
        | Errno::NOPROTOOPT
        | Errno::NETDOWN
        | Errno::NETUNREACH
        | Errno::HOSTDOWN
        | Errno::HOSTUNREACH
        | Errno::NONET
        | Errno::TIMEDOUT => Trouble::Passing,
        _ => Trouble::Fatal,
    }
}

/// Raises the number of files that this process may open as far as it has to and may; returns how many
/// connections fit.
fn make_room(limits: &Limits) -> usize {
    let inner = (limits.workers + limits.light) as u64;
    // Three of each inner connection: our end, and the library's to read and to write.
    let besides = 3 * inner + OTHER_FILES;
    let wanted = limits.connections as u64 + FAREWELLS as u64 + besides;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(now) = current.filter(|now| *now < wanted) else { return limits.connections };
    let raised = maximum.map_or(wanted, |maximum| wanted.min(maximum)).max(now);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(wanted);
    if allowed >= wanted {
        return limits.connections;
    }
    let fit = usize::try_from(allowed.saturating_sub(besides + FAREWELLS as u64)).unwrap_or(usize::MAX).max(1);
    tracing::warn!(open_files = allowed, connections = fit, "fewer connections are served: raise the open files limit");
    fit
}

/// A running server.
pub struct Server {
    gate: Arc<Gate>,
    address: SocketAddr,
    /// What ends when it is stopped.
    running: Mutex<Option<(Runtime, Engine)>>,
}

impl Server {
    /// Serves what comes to `listener`. `tell_failure` is called, once and on a thread that must not be held up, when
    /// no request can be served any more: the process should end then.
    pub fn start(
        listener: TcpListener,
        mut limits: Limits,
        service: Arc<dyn Service>,
        tell_failure: impl FnOnce(io::Error) + Send + 'static,
    ) -> io::Result<Self> {
        limits.connections = make_room(&limits);
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        rustix::net::listen(&listener, BACKLOG)?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("gate").enable_all().build()?;
        let mut engine = Engine::new();
        let mut lane = |name: &str, count: usize| -> io::Result<Arc<Lane>> {
            let mut ways = Vec::with_capacity(count);
            while ways.len() < count {
                let more = LASTING_CONNECTIONS.min(count - ways.len());
                let (socket, ours) = runtime.block_on(inner::connections(more))?;
                engine.serve(socket, more, name, &service, &limits)?;
                ways.extend(ours);
            }
            Ok(Arc::new(Lane::new(ways)))
        };
        let (light, worker) = (lane("light", limits.light)?, lane("worker", limits.workers)?);
        let gate = Arc::new(Gate {
            service,
            table: Arc::new(Table::default()),
            budget: body::budget(&limits),
            farewells: Arc::new(Semaphore::new(FAREWELLS)),
            light,
            worker,
            stopping: AtomicBool::new(false),
            stop: Notify::new(),
            failure: Mutex::new(Some(Box::new(tell_failure))),
            limits,
        });
        let accepting = Arc::clone(&gate);
        runtime.spawn(async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => accepting.accept(listener).await,
                Err(error) => accepting.fail(error),
            }
        });
        Ok(Self { gate, address, running: Mutex::new(Some((runtime, engine))) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops: the socket closes and idle connections end at once, requests in work may finish within `patience`.
    /// Returns whether all did. Must not be called by a handler, which would wait for itself, nor by `tell_failure`.
    pub fn stop(&self, patience: Duration) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((runtime, engine)) = running else { return true };
        self.gate.stopping.store(true, Ordering::SeqCst);
        self.gate.stop.notify_one();
        self.gate.table.close();
        let all = runtime.block_on(async { tokio::time::timeout(patience, self.gate.table.quiet()).await.is_ok() });
        if !all {
            tracing::warn!(requests = self.gate.table.working(), "requests are still being handled and are given up");
        }
        drop(engine);
        runtime.shutdown_background();
        all
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{Errno, Trouble, judge};

    #[test]
    fn only_what_cannot_pass_ends_the_server() {
        for (errno, expected) in [
            (Errno::CONNABORTED, Trouble::Passing),
            (Errno::PERM, Trouble::Passing),
            (Errno::MFILE, Trouble::NoRoom),
            (Errno::NFILE, Trouble::NoRoom),
            (Errno::NOMEM, Trouble::NoRoom),
            (Errno::BADF, Trouble::Fatal),
            (Errno::INVAL, Trouble::Fatal),
            (Errno::NOTSOCK, Trouble::Fatal),
        ] {
            assert_eq!(judge(&io::Error::from(errno)), expected, "{errno}");
        }
        assert_eq!(judge(&io::Error::other("no number")), Trouble::Fatal);
    }
}
