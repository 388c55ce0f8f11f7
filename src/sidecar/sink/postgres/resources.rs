//! What the streams of a sink share: connections, the loader thread, buffers and limits.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::loader::LoaderThread;
use super::session::{Session, SessionConfig};
use crate::sidecar::sink::SinkError;

/// Rows are sent in chunks of about this size, in bytes: just below the capacity of a buffer that grows by doubling.
pub const CHUNK_SIZE: usize = (1 << 20) - (32 << 10);
/// Streams with an open transaction on their target at the same time. Others load into staging tables, which need no
/// connection between chunks.
const MAX_OPEN_TRANSACTIONS: usize = 8;
/// Idle connections that stay open.
const MAX_IDLE_SESSIONS: usize = 2;
/// Buffers that are retained for reuse.
const MAX_SPARE_BUFFERS: usize = 2;

/// Resources of a sink.
pub struct Resources {
    /// The settings of all sessions.
    pub config: Arc<SessionConfig>,
    /// The thread that loads chunks.
    pub loader_thread: LoaderThread,
    /// Bytes in the replay buffers of all streams.
    pub total_replay_bytes: Arc<AtomicUsize>,
    /// The last cleanup could not reach the server: further ones would only wait for it again.
    pub server_unreachable: bool,
    open_transactions: usize,
    idle_sessions: Vec<Session>,
    spare_buffers: Vec<Vec<u8>>,
}

impl Resources {
    /// Resources with one idle session.
    pub fn new(config: Arc<SessionConfig>, session: Session) -> Result<Self, SinkError> {
        Ok(Self {
            config,
            loader_thread: LoaderThread::start()?,
            total_replay_bytes: Arc::default(),
            server_unreachable: false,
            open_transactions: 0,
            idle_sessions: vec![session],
            spare_buffers: Vec::new(),
        })
    }

    /// An idle session, or a new one that is not connected yet, for operations on `subject`.
    pub fn acquire_session(&mut self, subject: &str) -> Session {
        let mut session = self.idle_sessions.pop().unwrap_or_else(|| Session::new(Arc::clone(&self.config)));
        subject.clone_into(&mut session.subject);
        session
    }

    /// Returns a session for reuse.
    pub fn release_session(&mut self, session: Option<Session>) {
        if self.idle_sessions.len() < MAX_IDLE_SESSIONS {
            self.idle_sessions.extend(session.filter(Session::is_connected));
        }
    }

    /// Registers an open transaction. Returns `false` if there are too many.
    pub fn register_transaction(&mut self) -> bool {
        let has_capacity = self.open_transactions < MAX_OPEN_TRANSACTIONS;
        self.open_transactions += usize::from(has_capacity);
        has_capacity
    }

    /// Records that a registered transaction is closed.
    pub fn unregister_transaction(&mut self) {
        self.open_transactions -= 1;
    }

    /// An empty buffer.
    pub fn acquire_buffer(&mut self) -> Vec<u8> {
        self.spare_buffers.pop().unwrap_or_default()
    }

    /// Returns a buffer for reuse.
    pub fn release_buffer(&mut self, mut buffer: Vec<u8>) {
        if self.spare_buffers.len() < MAX_SPARE_BUFFERS && buffer.capacity() <= 2 * CHUNK_SIZE {
            buffer.clear();
            self.spare_buffers.push(buffer);
        }
    }
}
