//! Servers that a test stops for a while.

use std::process::Command;

/// A server that is stopped until this is dropped.
pub struct StoppedServer<'a> {
    switch: &'a str,
}

impl<'a> StoppedServer<'a> {
    /// Stops the server. `switch` is a command of `tests/cluster` that takes `stop` and `start`.
    pub fn stop(switch: &'a str) -> Self {
        // Created first, so that the server is started again even if stopping fails.
        let server = Self { switch };
        server.run("stop");
        server
    }

    fn run(&self, action: &str) {
        let output = Command::new(self.switch).arg(action).output().expect("the switch of a server");
        let stderr = String::from_utf8_lossy(&output.stderr);
        // A second panic would abort the tests and hide the first.
        assert!(output.status.success() || std::thread::panicking(), "{} {action}: {stderr}", self.switch);
    }
}

impl Drop for StoppedServer<'_> {
    fn drop(&mut self) {
        self.run("start");
    }
}
