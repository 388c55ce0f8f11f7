//! One at a time, between processes: a lock that the kernel releases when its holders are dead.
//!
//! The file is there while somebody holds the lock, and tells who.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// How often a lock that somebody else holds is tried.
const STEP: Duration = Duration::from_millis(50);

/// A lock that is held.
pub struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Takes the lock; `None` when `stop` says true first. `waits` is told the holder's process id, if it is known, as
    /// often as the lock is tried.
    pub fn take(
        path: &Path,
        stop: &dyn Fn() -> bool,
        waits: &mut dyn FnMut(Option<u32>),
    ) -> std::io::Result<Option<Self>> {
        loop {
            if let Some(lock) = Self::try_take(path)? {
                return Ok(Some(lock));
            }
            waits(holder(path));
            if stop() {
                return Ok(None);
            }
            std::thread::sleep(STEP);
        }
    }

    /// Takes the lock if nobody has it.
    pub fn try_take(path: &Path) -> std::io::Result<Option<Self>> {
        loop {
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            // Its last holder may have removed the file between our two steps: then the lock is another file by now.
            if path.metadata().is_ok_and(|now| file.metadata().is_ok_and(|ours| ours.ino() == now.ino())) {
                // Only told to others; a full disk is noticed where it matters.
                file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).ok();
                return Ok(Some(Self { path: path.to_owned(), file }));
            }
        }
    }

    /// For a child that is to hold the lock, too.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is held, so that nobody else's file is removed.
        std::fs::remove_file(&self.path).ok();
    }
}

fn holder(path: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(path).ok()?.take(20).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
