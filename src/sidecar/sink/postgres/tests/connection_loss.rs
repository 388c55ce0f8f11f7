//! Lost connections: no row is lost or written twice.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use serde_json::json;

use super::support::{TestSchema, keyed, record, write_many};
use crate::sidecar::sink::{Sink, WriteMode};

const MODES: [WriteMode; 3] = [WriteMode::Append, WriteMode::Merge, WriteMode::Replace];

#[test]
fn rows_survive_lost_connections_between_all_operations() {
    for mode in MODES {
        let mut db = TestSchema::new();
        let mut sink = db.sink();
        db.terminate_connections();
        let stream = sink.open(keyed("t", mode)).expect("open");
        let mut terminated = 0;
        for round in 0..4 {
            write_many(&mut sink, stream, round * 1500..(round + 1) * 1500, 1000);
            terminated += db.terminate_connections();
        }
        assert!(terminated > 0, "{mode:?}: the sink had no connections");
        sink.commit(stream).expect("commit");
        db.terminate_connections();
        write_many(&mut sink, stream, 6000..6010, 10);
        db.terminate_connections();
        sink.finish(stream).expect("finish");
        assert_eq!(db.rows("SELECT count(*), count(DISTINCT id) FROM t"), ["6010|6010"], "{mode:?}");
        assert_eq!(db.tables(), ["t"], "{mode:?}");
    }
}

#[test]
fn first_connection_is_retried() {
    let mut db = TestSchema::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (mut config, server) = (db.config(), db.port());
    config["host"] = json!("127.0.0.1");
    config["port"] = json!(listener.local_addr().expect("an address").port());
    let host = std::thread::spawn(move || {
        // Two connections are closed at once; the third one reaches the server.
        drop((listener.accept(), listener.accept()));
        let (client, _) = listener.accept().expect("a connection");
        let server = TcpStream::connect(("127.0.0.1", server)).expect("the server");
        let clone = |stream: &TcpStream| stream.try_clone().expect("a second handle");
        let (mut answers, mut to_client) = (clone(&server), clone(&client));
        std::thread::spawn(move || std::io::copy(&mut answers, &mut to_client));
        std::io::copy(&mut &client, &mut &server).ok();
        server.shutdown(Shutdown::Both).ok();
    });
    let mut sink = TestSchema::sink_with(&config, Duration::from_secs(20));
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    sink.write(stream, &record(r#"{"id":1}"#)).expect("a row");
    sink.finish(stream).expect("finish");
    drop(sink);
    host.join().expect("no panic");
    assert_eq!(db.count("t"), 1);
}

#[test]
fn columns_of_a_lost_transaction_are_added_again() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    write_many(&mut sink, stream, 0..1500, 1000);
    sink.write(stream, &record(r#"{"id":-1,"late":1}"#)).expect("a row");
    write_many(&mut sink, stream, 1500..3000, 1000);
    db.terminate_connections();
    write_many(&mut sink, stream, 3000..4500, 1000);
    sink.finish(stream).expect("finish");
    assert_eq!(db.rows("SELECT count(*), count(DISTINCT id), count(late) FROM t"), ["4501|4501|1"]);
}

#[test]
fn direct_load_beyond_the_replay_buffer_fails_with_the_reason() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    write_many(&mut sink, stream, 0..12_000, 1000);
    db.terminate_connections();
    let error = sink.commit(stream).expect_err("the transaction cannot be repeated");
    assert!(error.transient && error.text.contains("the next run resumes"), "{}", error.text);
    assert!(sink.finish(stream).is_err(), "a failed stream stays failed");
    drop(sink);
    assert_eq!(db.count("t"), 0);
}

#[test]
fn staged_load_survives_lost_connections_at_any_size() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let stream = sink.open(keyed("t", WriteMode::Replace)).expect("open");
    write_many(&mut sink, stream, 0..12_000, 1000);
    db.terminate_connections();
    write_many(&mut sink, stream, 12_000..20_000, 1000);
    db.terminate_connections();
    sink.finish(stream).expect("finish");
    assert_eq!(db.rows("SELECT count(*), count(DISTINCT id) FROM t"), ["20000|20000"]);
}

#[test]
fn unanswered_commit_is_resolved() {
    for mode in MODES {
        for (label, fault) in [
            ("before the server received it", Fault::BeforeCommit),
            ("after the server received it", Fault::AfterCommit),
        ] {
            let mut db = TestSchema::new();
            let proxy = Proxy::start(db.port());
            let mut config = db.config();
            (config["host"], config["port"]) = (json!("127.0.0.1"), json!(proxy.port));
            let mut sink = TestSchema::sink_with(&config, Duration::from_secs(20));
            let stream = sink.open(keyed("t", mode)).expect("open");
            write_many(&mut sink, stream, 0..1500, 1000);
            write_many(&mut sink, stream, 1500..3000, 1000);
            proxy.arm(fault);
            sink.commit(stream).expect(label);
            assert!(mode == WriteMode::Replace || proxy.has_failed(), "{mode:?}, {label}");
            proxy.arm(fault);
            write_many(&mut sink, stream, 3000..3010, 10);
            sink.finish(stream).expect(label);
            assert!(proxy.has_failed(), "{mode:?}, {label}");
            assert_eq!(db.rows("SELECT count(*), count(DISTINCT id) FROM t"), ["3010|3010"], "{mode:?}, {label}");
            drop(sink);
            assert_eq!(db.tables(), ["t"], "{mode:?}, {label}");
        }
    }
}

#[test]
fn unreachable_server_fails_the_stream_after_the_retry_timeout() {
    let db = TestSchema::new();
    let proxy = Proxy::start(db.port());
    let mut config = db.config();
    (config["host"], config["port"]) = (json!("127.0.0.1"), json!(proxy.port));
    let mut sink = TestSchema::sink_with(&config, Duration::from_millis(500));
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    write_many(&mut sink, stream, 0..10, 10);
    proxy.arm(Fault::Always);
    let error = sink.finish(stream).expect_err("the server is unreachable");
    assert!(error.transient, "{}", error.text);
}

/// When the proxy closes a connection.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Fault {
    None = 0,
    /// Instead of forwarding COMMIT.
    BeforeCommit = 1,
    /// After forwarding COMMIT, without the response.
    AfterCommit = 2,
    /// At once, for all connections.
    Always = 3,
}

/// A proxy between the sink and the server, with one fault.
struct Proxy {
    port: u16,
    fault: Arc<AtomicU8>,
}

impl Proxy {
    fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let fault = Arc::new(AtomicU8::new(Fault::None as u8));
        let shared = fault.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.load(Ordering::SeqCst) == Fault::Always as u8 {
                    continue;
                }
                let server = TcpStream::connect(("127.0.0.1", server)).expect("the server");
                let (from, to) = (server.try_clone().expect("a clone"), client.try_clone().expect("a clone"));
                let (fault, muted) = (shared.clone(), Arc::new(AtomicBool::new(false)));
                let silent = muted.clone();
                std::thread::spawn(move || forward_responses(from, to, &silent));
                std::thread::spawn(move || forward_requests(client, server, &fault, &muted));
            }
        });
        Self { port, fault }
    }

    fn arm(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
    }

    fn has_failed(&self) -> bool {
        self.fault.load(Ordering::SeqCst) == Fault::None as u8
    }
}

/// Forwards data from the server, unless it is muted.
fn forward_responses(mut from: TcpStream, mut to: TcpStream, muted: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length) = from.read(&mut buffer) {
        if length == 0 {
            break;
        }
        if !muted.load(Ordering::SeqCst) && to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// Forwards data from the sink until the fault.
fn forward_requests(mut from: TcpStream, mut to: TcpStream, fault: &AtomicU8, muted: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length) = from.read(&mut buffer) {
        let bytes = &buffer[..length];
        let armed = fault.load(Ordering::SeqCst);
        if length == 0 || armed == Fault::Always as u8 {
            break;
        }
        if armed != Fault::None as u8 && bytes.windows(7).any(|window| window == b"COMMIT\0") {
            muted.store(true, Ordering::SeqCst);
            fault.store(Fault::None as u8, Ordering::SeqCst);
            if armed == Fault::AfterCommit as u8 {
                to.write_all(bytes).expect("the server accepts COMMIT");
                // Gives the server time to commit before the connection is closed.
                std::thread::sleep(Duration::from_millis(100));
            }
            break;
        }
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
