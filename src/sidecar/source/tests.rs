use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Input, Pipes, Settings, Source, Stop, Stopped};
use crate::airbyte::message::Message;
use crate::contract::{EXIT_CODE_FILE, METRICS_FILE};
use crate::secret::Masker;
use crate::shared_folder::SharedFolder;
use crate::sidecar::documents::Documents;
use crate::sidecar::log::TaskLog;
use crate::task::Task;

/// Only reached when a test hangs.
const DEADLINE: Duration = Duration::from_mins(2);

fn settings(folder: &Path, is_wrapped: bool) -> Settings {
    Settings {
        stdout: folder.join("stdout"),
        stderr: folder.join("stderr"),
        reports: folder.to_owned(),
        config: folder.to_owned(),
        init_timeout: DEADLINE,
        silence: DEADLINE,
        is_wrapped,
    }
}

fn source(folder: &Path, timeout: Duration) -> Source {
    let pipes = Pipes::create(&settings(folder, true), &Documents::default()).expect("pipes");
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

/// What a connector may put in place of a file; `host` is a file of the sidecar.
type Attack = (&'static str, fn(path: &Path, host: &Path));
const ATTACKS: [Attack; 5] = [
    ("a link", |path, host| std::os::unix::fs::symlink(host, path).expect("a link")),
    ("a FIFO", |path, _| {
        let folder = SharedFolder::open(path.parent().expect("a folder")).expect("a folder");
        folder.create_fifo("attack").expect("a FIFO");
        std::fs::rename(path.with_file_name("attack"), path).expect("a FIFO");
    }),
    ("an endless file", |path, _| std::fs::File::create(path).and_then(|file| file.set_len(1 << 40)).expect("a file")),
    ("a folder", |path, _| std::fs::create_dir(path).expect("a folder")),
    ("a link to a device", |path, _| std::os::unix::fs::symlink("/dev/zero", path).expect("a link")),
];

#[test]
fn reports_that_are_no_bounded_regular_files_are_ignored() {
    for (label, attack) in ATTACKS {
        let (folder, host) = (tempfile::tempdir().expect("a folder"), tempfile::NamedTempFile::new().expect("a file"));
        std::fs::write(host.path(), "0\n").expect("a file");
        let mut source = source(folder.path(), DEADLINE);
        attack(&folder.path().join(EXIT_CODE_FILE), host.path());
        attack(&folder.path().join(METRICS_FILE), host.path());
        // It writes nothing: this alone is not its end.
        assert!(matches!(source.next(), Ok(Input::Idle)), "{label}");
        drop(OpenOptions::new().write(true).open(folder.path().join("stdout")).expect("a reader"));
        let end = loop {
            match source.next().expect("reading") {
                Input::Idle => {}
                end => break matches!(end, Input::Killed),
            }
        };
        assert!(end, "{label}");
        assert_eq!(std::fs::read_to_string(host.path()).expect("a file"), "0\n", "{label}");
    }
}

#[test]
fn links_and_files_in_place_of_a_pipe_are_refused() {
    let pipes = |folder: &Path| Pipes::create(&settings(folder, false), &Documents::default());
    for name in ["stdout", "stderr"] {
        for (label, attack) in ATTACKS.into_iter().filter(|(label, _)| *label != "a FIFO") {
            let (folder, host) =
                (tempfile::tempdir().expect("a folder"), tempfile::NamedTempFile::new().expect("a file"));
            std::fs::set_permissions(host.path(), PermissionsExt::from_mode(0o600)).expect("a file");
            attack(&folder.path().join(name), host.path());
            let failure = pipes(folder.path()).err().expect(label);
            assert!(failure.text.contains("not a FIFO"), "{label}: {failure}");
            assert_eq!(host.path().metadata().expect("a file").permissions().mode() & 0o777, 0o600, "{label}");
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let shared = SharedFolder::open(folder.path()).expect("a folder");
    for name in ["stdout", "stderr"] {
        shared.create_fifo(name).expect("a FIFO");
    }
    assert!(pipes(folder.path()).is_ok(), "those of a foreign controller");
}
