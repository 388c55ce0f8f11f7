//! Ctrl-C and TERM: the first one cancels, the second one ends at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::failure::{Class, Failure};

/// The exit code of a program that a user interrupted.
const INTERRUPTED: i32 = 130;

/// Listens for signals until it is dropped.
pub struct Cancel {
    set: Arc<AtomicBool>,
    handle: Handle,
}

impl Cancel {
    /// Calls `tell` at the first signal.
    pub fn install(tell: impl Fn() + Send + 'static) -> Result<Self, Failure> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
            .map_err(|error| Failure::new(Class::Internal, format!("listening for signals: {error}")))?;
        let set = Arc::new(AtomicBool::new(false));
        let handle = signals.handle();
        let flag = Arc::clone(&set);
        std::thread::spawn(move || {
            for _ in signals.forever() {
                if flag.swap(true, Ordering::SeqCst) {
                    std::process::exit(INTERRUPTED);
                }
                tell();
            }
        });
        Ok(Self { set, handle })
    }

    /// Whether a signal has come.
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        self.handle.close();
    }
}
