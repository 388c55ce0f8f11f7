//! Servers that a test stops for a while.

use std::process::Command;

/// A server that is away until it is dropped.
pub struct Away<'a> {
    switch: &'a str,
}

impl<'a> Away<'a> {
    /// Stops it. `switch` is a command of `tests/cluster` that takes `stop` and `start`.
    pub fn stop(switch: &'a str) -> Self {
        // Made first: what was half stopped is started, too.
        let away = Self { switch };
        away.turn("stop");
        away
    }

    fn turn(&self, word: &str) {
        let turned = Command::new(self.switch).arg(word).output().expect("the switch of a server");
        let said = String::from_utf8_lossy(&turned.stderr);
        // A panic here, while one is on its way, would hide it.
        assert!(turned.status.success() || std::thread::panicking(), "{} {word}: {said}", self.switch);
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        self.turn("start");
    }
}
