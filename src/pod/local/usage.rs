//! What a connector uses that runs on this machine: noted where the wrapper of a container notes it.
//!
//! Without a control group of its own there is no file to read: the processes are summed up.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::processes;
use crate::contract::METRICS_FILE;

/// Early once, for a short task, then as often as somebody looks.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Notes what a process and all below it use. Clones share the most memory that was seen.
#[derive(Clone)]
pub struct Usage {
    pid: u32,
    pipes: PathBuf,
    pause: Duration,
    due: Instant,
    most: Arc<AtomicU64>,
}

impl Usage {
    /// Of a process that has just started.
    pub fn of(pid: u32, pipes: &Path) -> Self {
        let (pause, _) = PAUSES;
        Self { pid, pipes: pipes.to_owned(), pause, due: Instant::now() + pause, most: Arc::default() }
    }

    /// Notes it if it is time.
    pub fn look(&mut self) {
        if Instant::now() >= self.due {
            self.pause = (self.pause * 2).min(PAUSES.1);
            self.due = Instant::now() + self.pause;
            let (nanoseconds, bytes) = self.now();
            self.note(nanoseconds, bytes);
        }
    }

    /// Notes it for a process that has ended and was not asked yet how: the most memory that it ever used.
    pub fn last(&self) {
        let (nanoseconds, _) = self.now();
        self.note(nanoseconds, self.most.load(Ordering::Relaxed));
    }

    fn now(&self) -> (u64, u64) {
        let used = processes::usage(self.pid);
        let bytes = used.pages * rustix::param::page_size() as u64;
        self.most.fetch_max(bytes, Ordering::Relaxed);
        (used.nanoseconds, bytes)
    }

    fn note(&self, nanoseconds: u64, bytes: u64) {
        let (new, file) = (self.pipes.join("metrics.new"), self.pipes.join(METRICS_FILE));
        // Nothing depends on it.
        if std::fs::write(&new, format!("{nanoseconds} {bytes}\n")).is_ok() {
            std::fs::rename(&new, &file).ok();
        }
    }
}
