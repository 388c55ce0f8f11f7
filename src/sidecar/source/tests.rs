use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Input, Pipes, Settings, Source, Stop, Stopped};
use crate::airbyte::message::Message;
use crate::contract::EXIT_CODE_FILE;
use crate::secret::Masker;
use crate::sidecar::documents::Documents;
use crate::sidecar::log::TaskLog;
use crate::task::Task;

/// Only reached when a test hangs.
const DEADLINE: Duration = Duration::from_mins(2);

fn source(folder: &Path, timeout: Duration) -> Source {
    let settings = Settings {
        stdout: folder.join("stdout"),
        stderr: folder.join("stderr"),
        reports: folder.to_owned(),
        config: folder.to_owned(),
        init_timeout: DEADLINE,
        silence: DEADLINE,
        is_wrapped: true,
    };
    let pipes = Pipes::create(&settings, &Documents::default()).expect("pipes");
    let task = Task::of_read("test", "1", "sync", "task", jiff::Timestamp::now());
    let log = TaskLog::start(&task, Masker::default(), "INFO", |_| Ok(()));
    Source::start(pipes, &log, Stop::new(Arc::default(), Stopped::Terminated, timeout))
}

#[test]
fn sources_that_write_all_the_time_are_stopped_at_the_timeout() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut source = source(folder.path(), Duration::from_millis(300));
    let mut stdout = OpenOptions::new().write(true).open(folder.path().join("stdout")).expect("a reader");
    let writer = std::thread::spawn(move || {
        // More often than a tick, until the reader is gone.
        while stdout.write_all(b"a line\n").is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let stopped = loop {
        if let Input::Stopped(stopped) = source.next().expect("reading") {
            break stopped;
        }
    };
    assert_eq!(stopped, Stopped::TimeExceeded);
    drop(source);
    writer.join().expect("a writer");
}

#[test]
fn output_before_a_quick_exit_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut source = source(folder.path(), DEADLINE);
    let mut stdout = OpenOptions::new().write(true).open(folder.path().join("stdout")).expect("a reader");
    stdout.write_all(b"{\"type\":\"A\"}\ntext\n{\"type\":\"B\"}\n").expect("capacity");
    std::fs::write(folder.path().join(EXIT_CODE_FILE), "3\n").expect("a file");
    drop(stdout);
    for expected in [Some("A"), None, Some("B")] {
        match (source.next().expect("reading"), expected) {
            (Input::Message(Message::Invalid { kind, .. }), Some(expected)) => assert_eq!(kind, expected),
            (Input::Idle, None) => {}
            _ => panic!("expected {expected:?}"),
        }
    }
    assert!(matches!(source.next(), Ok(Input::Exited(3))));
    assert_eq!(source.failure(3, "").text, "the connector ended with code 3; its last lines: text");
}
