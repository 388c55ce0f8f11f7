//! Which of several services on one machine leads: the one that holds a lock, which the kernel gives back when it dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::store::trouble;
use crate::failure::Failure;
use crate::pod::{Callback, LeaderElection, Leadership, PodError};

/// How often the lock is tried.
const TRY: Duration = Duration::from_millis(250);

/// Takes part until it is dropped.
pub struct Election {
    leads: Arc<AtomicBool>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Election {
    /// `path` is the lock's file; its content says who holds it.
    pub fn start(path: PathBuf, identity: &str, on_change: Callback<Leadership>) -> Self {
        let (leads, stopped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (leading, stop, identity) = (Arc::clone(&leads), Arc::clone(&stopped), identity.to_owned());
        let thread = std::thread::spawn(move || {
            let mut told = false;
            while !stop.load(Ordering::SeqCst) {
                match hold(&path, &identity) {
                    Ok(Some(lock)) => {
                        leading.store(true, Ordering::SeqCst);
                        on_change(Leadership::Leads { term: 1 });
                        while !stop.load(Ordering::SeqCst) {
                            std::thread::sleep(TRY);
                        }
                        drop(lock);
                        return;
                    }
                    Ok(None) if told => {}
                    Ok(None) => {
                        told = true;
                        on_change(Leadership::Follows { holder: std::fs::read_to_string(&path).ok() });
                    }
                    Err(error) => on_change(Leadership::Failed(PodError::from(failure(&path, &error)))),
                }
                std::thread::sleep(TRY);
            }
        });
        Self { leads, stopped, thread: Some(thread) }
    }
}

impl LeaderElection for Election {
    fn is_leader(&self) -> bool {
        self.leads.load(Ordering::SeqCst) && !self.stopped.load(Ordering::SeqCst)
    }

    fn release(mut self: Box<Self>) {
        self.stopped.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // The lock is released when the thread has ended, whether by a panic or not.
            thread.join().ok();
        }
    }
}

impl Drop for Election {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
    }
}

/// Takes the lock; `None`: somebody else has it.
fn hold(path: &Path, identity: &str) -> io::Result<Option<File>> {
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

fn failure(path: &Path, error: &io::Error) -> Failure {
    trouble("locking", path, error)
}
