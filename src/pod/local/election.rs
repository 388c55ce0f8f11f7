//! Leader election among the services of one machine: the leader holds a file lock, which the kernel releases when it dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use super::store::io_failure;
use crate::pod::{Callback, LeaderElection, Leadership};

/// How often the lock is tried.
const LOCK_POLL: Duration = Duration::from_millis(250);

/// Takes part until it is dropped.
pub struct Election {
    is_leader: Arc<AtomicBool>,
    /// Dropping it stops the thread.
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Election {
    /// `path` is the file of the lock, which contains the identity of the leader.
    pub fn start(path: PathBuf, identity: &str, on_change: Callback<Leadership>) -> Self {
        let is_leader = Arc::new(AtomicBool::new(false));
        let (stop, stopped) = mpsc::channel();
        let (leads, identity) = (Arc::clone(&is_leader), identity.to_owned());
        let thread = std::thread::spawn(move || {
            let mut is_reported = false;
            loop {
                match acquire(&path, &identity) {
                    Ok(Some(_lock)) => {
                        leads.store(true, Ordering::SeqCst);
                        on_change(Leadership::Leads { term: 1 });
                        stopped.recv().ok();
                        return;
                    }
                    Ok(None) if is_reported => {}
                    Ok(None) => {
                        is_reported = true;
                        on_change(Leadership::Follows { holder: std::fs::read_to_string(&path).ok() });
                    }
                    Err(error) => on_change(Leadership::Failed(io_failure("lock", &path, &error).into())),
                }
                if stopped.recv_timeout(LOCK_POLL) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Self { is_leader, stop, thread }
    }
}

impl LeaderElection for Election {
    fn is_leader(&self) -> bool {
        self.is_leader.load(Ordering::SeqCst)
    }

    fn release(self: Box<Self>) {
        let Self { stop, thread, .. } = *self;
        drop(stop);
        // A panic has released the lock too.
        thread.join().ok();
    }
}

/// Takes the lock; `None` if another process holds it.
fn acquire(path: &Path, identity: &str) -> io::Result<Option<File>> {
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            file.write_all(identity.as_bytes())?;
            Ok(Some(file))
        }
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
