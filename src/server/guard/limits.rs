//! The limits of the HTTP front.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files other than connections: the database, the cluster, the standard streams.
const OTHER_FILES: u64 = 256;
/// Files per request that is being handled: both ends of its connection to the HTTP library, which duplicates its own.
const FILES_PER_REQUEST: u64 = 3;

/// All limits of the HTTP front.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections. One without an admitted request costs about 2 KiB, one that sends its head at most
    /// [`Self::head_bytes`]. Three quarters may have an admitted request: see [`Self::places`].
    pub connections: usize,
    /// Bytes of the request line and all headers: four times what a browser sends.
    pub head_bytes: usize,
    /// Bytes of the target: a `startedBy` document of a read fits.
    pub target_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// From accepting a connection to the end of its head.
    pub head_timeout: Duration,
    /// Bytes of a body: configurations and catalogs of large sources have 4 to 30 MB.
    pub body_bytes: usize,
    /// How long a client may pause while it sends its body or reads its response.
    pub idle_timeout: Duration,
    /// Minimal bytes per second of a body and of a response after the first [`Self::idle_timeout`].
    pub min_rate: u32,
    /// Bytes of all bodies and responses together, except the first 64 KiB of each: large ones never delay small ones.
    /// At least twice [`Self::body_bytes`], so that one client never takes what the largest body of another one needs.
    pub total_bytes: usize,
    /// How long a request waits for its share of [`Self::total_bytes`].
    pub total_bytes_timeout: Duration,
    /// Threads of the blocking pool. Requests of one client occupy at most three quarters.
    pub blocking_threads: usize,
    /// Threads of the fast pool.
    pub fast_threads: usize,
    /// Requests that wait for a thread, per pool.
    pub queue: usize,
    /// How long a request waits for a thread.
    pub queue_timeout: Duration,
    /// How long a handler may take: each call of a launch has a deadline of 30 s, and few clients wait longer.
    pub handler_timeout: Duration,
    /// Bytes of the body of a response: it is in memory until the client has read it.
    pub response_bytes: usize,
    /// How long to read and discard what a client still sends after its response: closing at once would reset the
    /// connection, and the client would lose the response.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            head_bytes: 16 << 10,
            target_bytes: 8 << 10,
            headers: 64,
            head_timeout: Duration::from_secs(10),
            body_bytes: 32 << 20,
            idle_timeout: Duration::from_secs(10),
            min_rate: 64 << 10,
            total_bytes: 3 * (32 << 20),
            total_bytes_timeout: Duration::from_secs(5),
            blocking_threads: 42,
            fast_threads: 2,
            queue: 256,
            queue_timeout: Duration::from_secs(5),
            handler_timeout: Duration::from_mins(1),
            response_bytes: 8 << 20,
            linger: Duration::from_secs(2),
        }
    }
}

/// How many requests may be in progress, from their admission to the end of their response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    pub fast: usize,
    pub blocking: usize,
    /// All connections: always more than requests in progress.
    pub connections: usize,
}

impl Limits {
    /// The places of each pool. The other connections are left for clients that send a head, probes among them.
    pub fn places(&self) -> Places {
        let fast = (self.connections / 16).max(1);
        let blocking = (self.connections - self.connections / 4).max(1);
        Places { fast, blocking, connections: self.connections.max(fast + blocking + 1) }
    }

    /// The threads of both pools.
    pub fn threads(&self) -> usize {
        self.fast_threads + self.blocking_threads
    }

    /// Raises the process's limit of open files as far as needed and permitted, else lowers the limit of connections.
    pub fn fit_open_files(&mut self) {
        let reserved = FILES_PER_REQUEST * self.threads() as u64 + OTHER_FILES;
        let needed = self.places().connections as u64 + reserved;
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let Some(current) = current.filter(|current| *current < needed) else { return };
        let raised = maximum.map_or(needed, |maximum| needed.min(maximum)).max(current);
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
        let open_files = getrlimit(Resource::Nofile).current.unwrap_or(needed);
        if open_files < needed {
            self.connections = usize::try_from(open_files.saturating_sub(reserved)).unwrap_or(usize::MAX).max(1);
            let connections = self.connections;
            tracing::warn!(open_files, connections, "serving fewer connections: raise the limit of open files");
        }
    }
}
