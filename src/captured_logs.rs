//! For tests: what the code under test logs on the test's own thread.
//!
//! The whole test process has one subscriber: tracing asks once for each call site whether a subscriber wants it, and a
//! thread without a subscriber that gets there first would answer for all others.

use std::cell::RefCell;
use std::io;
use std::sync::Once;

thread_local! {
    static TEXT: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// The result of an operation and the lines that it logged on this thread, from INFO on.
pub fn captured_logs<T>(operation: impl FnOnce() -> T) -> (T, String) {
    static SUBSCRIBED: Once = Once::new();
    SUBSCRIBED.call_once(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| OwnThread).init());
    TEXT.set(Some(Vec::new()));
    let result = operation();
    let text = TEXT.take().unwrap_or_default();
    (result, String::from_utf8_lossy(&text).into_owned())
}

/// Captures the lines of a thread that asked for them, and drops those of others.
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
