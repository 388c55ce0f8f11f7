//! The thread that loads: while it hands one chunk to the server, the sink's own thread encodes the next one.
//!
//! A stream gives its feed away for the time of a job and gets it back with the outcome; so nothing is shared.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::load::Feed;
use super::row::Chunk;
use crate::sidecar::sink::SinkError;

/// What comes back: the feed, and the outcome with the chunk's memory for the next one.
pub type Outcome = (Box<Feed>, Result<Option<Chunk>, SinkError>);

struct Job {
    feed: Box<Feed>,
    chunk: Chunk,
    done: SyncSender<Outcome>,
}

/// Hands chunks to the thread that loads them, one after the other.
pub struct Courier {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Courier {
    /// Starts the thread.
    pub fn start() -> Result<Self, SinkError> {
        // One job waits at most: what is encoded ahead is memory.
        let (jobs, received) = sync_channel::<Job>(1);
        let run = move || {
            for Job { mut feed, chunk, done } in received {
                let outcome = feed.load(chunk);
                // Nobody waits after an abort of everything; then the feed rolls back by being dropped.
                let _ = done.send((feed, outcome));
            }
        };
        let thread = thread::Builder::new().name("sink-postgres".to_owned()).spawn(run);
        let thread =
            thread.map_err(|error| SinkError { text: format!("starting a thread: {error}"), transient: true })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Has a chunk loaded; blocks while two others are under way.
    pub fn send(&self, feed: Box<Feed>, chunk: Chunk) -> Result<Receiver<Outcome>, SinkError> {
        let (done, outcome) = sync_channel(1);
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(Job { feed, chunk, done }).is_ok());
        if sent { Ok(outcome) } else { Err(died()) }
    }

    /// Gives the thread no more jobs: it ends with those that it has.
    pub fn stop(&mut self) -> Option<JoinHandle<()>> {
        self.jobs = None;
        self.thread.take()
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        if let Some(thread) = self.stop() {
            let _ = thread.join();
        }
    }
}

/// The thread is gone: it panicked.
pub fn died() -> SinkError {
    SinkError::permanent("the thread that loads rows ended unexpectedly")
}
