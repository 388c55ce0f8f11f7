//! For tests: what the code under test logs on the test's own thread.
//!
//! One subscriber for the whole test process. One per test would not do: whether anybody listens is asked once for each
//! place in the program, and a thread without a listener that comes there first would answer for all others.

use std::cell::RefCell;
use std::io;
use std::sync::Once;

thread_local! {
    static TEXT: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// The result of an operation, and what it logged on this thread from INFO on, a line each.
pub fn heard<T>(operation: impl FnOnce() -> T) -> (T, String) {
    static LISTENING: Once = Once::new();
    LISTENING.call_once(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| OwnThread).init());
    TEXT.set(Some(Vec::new()));
    let result = operation();
    let text = TEXT.take().unwrap_or_default();
    (result, String::from_utf8_lossy(&text).into_owned())
}

/// Keeps what comes from a thread that is listened to, and drops the rest.
struct OwnThread;

impl io::Write for OwnThread {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        TEXT.with_borrow_mut(|text| text.iter_mut().for_each(|text| text.extend_from_slice(bytes)));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
