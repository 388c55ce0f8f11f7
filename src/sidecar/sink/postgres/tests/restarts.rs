//! Connections that end in the middle: nothing is lost, nothing is there twice.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use serde_json::json;

use super::support::{World, keyed, record, write_many};
use crate::sidecar::sink::{Sink, WriteMode};

const MODES: [WriteMode; 3] = [WriteMode::Append, WriteMode::Merge, WriteMode::Replace];

#[test]
fn rows_survive_restarts_between_all_steps() {
    for mode in MODES {
        let mut world = World::new();
        let mut sink = world.sink();
        world.terminate();
        let stream = sink.open(keyed("t", mode)).expect("open");
        let mut ended = 0;
        for round in 0..4 {
            write_many(&mut sink, stream, round * 1500..(round + 1) * 1500, 1000);
            ended += world.terminate();
        }
        assert!(ended > 0, "{mode:?}: no connection was there to be ended");
        sink.commit(stream).expect("commit");
        world.terminate();
        write_many(&mut sink, stream, 6000..6010, 10);
        world.terminate();
        sink.finish(stream).expect("finish");
        assert_eq!(world.rows("SELECT count(*), count(DISTINCT id) FROM t"), ["6010|6010"], "{mode:?}");
        assert_eq!(world.tables(), ["t"], "{mode:?}");
    }
}

#[test]
fn a_server_that_is_just_starting_is_waited_for() {
    let mut world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (mut config, server) = (world.config(), world.port());
    config["host"] = json!("127.0.0.1");
    config["port"] = json!(listener.local_addr().expect("an address").port());
    let host = std::thread::spawn(move || {
        // Two connections end before they have begun, the third one is the server's.
        drop((listener.accept(), listener.accept()));
        let (client, _) = listener.accept().expect("a connection");
        let server = TcpStream::connect(("127.0.0.1", server)).expect("the server");
        let clone = |stream: &TcpStream| stream.try_clone().expect("a second handle");
        let (mut answers, mut to_client) = (clone(&server), clone(&client));
        std::thread::spawn(move || std::io::copy(&mut answers, &mut to_client));
        std::io::copy(&mut &client, &mut &server).ok();
        server.shutdown(Shutdown::Both).ok();
    });
    let mut sink = World::sink_of(&config, Duration::from_secs(20));
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    sink.write(stream, &record(r#"{"id":1}"#)).expect("a row");
    sink.finish(stream).expect("finish");
    drop(sink);
    host.join().expect("no panic");
    assert_eq!(world.count("t"), 1);
}

#[test]
fn columns_of_a_transaction_that_was_lost_come_again() {
    let mut world = World::new();
    let mut sink = world.sink();
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    write_many(&mut sink, stream, 0..1500, 1000);
    sink.write(stream, &record(r#"{"id":-1,"late":1}"#)).expect("a row");
    write_many(&mut sink, stream, 1500..3000, 1000);
    world.terminate();
    write_many(&mut sink, stream, 3000..4500, 1000);
    sink.finish(stream).expect("finish");
    assert_eq!(world.rows("SELECT count(*), count(DISTINCT id), count(late) FROM t"), ["4501|4501|1"]);
}

#[test]
fn an_append_beyond_what_is_kept_says_so() {
    let mut world = World::new();
    let mut sink = world.sink();
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    write_many(&mut sink, stream, 0..12_000, 1000);
    world.terminate();
    let error = sink.commit(stream).expect_err("the rows are gone");
    assert!(error.transient && error.text.contains("the next run resumes"), "{}", error.text);
    assert!(sink.finish(stream).is_err(), "a failed stream must not seem finished");
    drop(sink);
    assert_eq!(world.count("t"), 0);
}

#[test]
fn staged_streams_survive_at_any_size() {
    let mut world = World::new();
    let mut sink = world.sink();
    let stream = sink.open(keyed("t", WriteMode::Replace)).expect("open");
    write_many(&mut sink, stream, 0..12_000, 1000);
    world.terminate();
    write_many(&mut sink, stream, 12_000..20_000, 1000);
    world.terminate();
    sink.finish(stream).expect("finish");
    assert_eq!(world.rows("SELECT count(*), count(DISTINCT id) FROM t"), ["20000|20000"]);
}

#[test]
fn a_lost_answer_to_commit_is_found_out() {
    for mode in MODES {
        for (label, fault) in [("before the server had it", Fault::Before), ("after the server had it", Fault::After)] {
            let mut world = World::new();
            let proxy = Proxy::start(world.port());
            let mut config = world.config();
            (config["host"], config["port"]) = (json!("127.0.0.1"), json!(proxy.port));
            let mut sink = World::sink_of(&config, Duration::from_secs(20));
            let stream = sink.open(keyed("t", mode)).expect("open");
            write_many(&mut sink, stream, 0..1500, 1000);
            write_many(&mut sink, stream, 1500..3000, 1000);
            proxy.arm(fault);
            sink.commit(stream).expect(label);
            assert!(mode == WriteMode::Replace || proxy.has_struck(), "{mode:?}, {label}");
            proxy.arm(fault);
            write_many(&mut sink, stream, 3000..3010, 10);
            sink.finish(stream).expect(label);
            assert!(proxy.has_struck(), "{mode:?}, {label}");
            assert_eq!(world.rows("SELECT count(*), count(DISTINCT id) FROM t"), ["3010|3010"], "{mode:?}, {label}");
            drop(sink);
            assert_eq!(world.tables(), ["t"], "{mode:?}, {label}");
        }
    }
}

#[test]
fn a_server_that_stays_away_ends_the_stream_in_bounded_time() {
    let world = World::new();
    let proxy = Proxy::start(world.port());
    let mut config = world.config();
    (config["host"], config["port"]) = (json!("127.0.0.1"), json!(proxy.port));
    let mut sink = World::sink_of(&config, Duration::from_millis(500));
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    write_many(&mut sink, stream, 0..10, 10);
    proxy.arm(Fault::Always);
    let error = sink.finish(stream).expect_err("nobody answers");
    assert!(error.transient, "{}", error.text);
}

/// What happens to a connection that sends COMMIT.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Fault {
    Never = 0,
    Before = 1,
    After = 2,
    /// Every connection ends at once.
    Always = 3,
}

/// Stands between the sink and the server, and strikes once.
struct Proxy {
    port: u16,
    fault: Arc<AtomicU8>,
}

impl Proxy {
    fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let fault = Arc::new(AtomicU8::new(Fault::Never as u8));
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
                std::thread::spawn(move || answers(from, to, &silent));
                std::thread::spawn(move || questions(client, server, &fault, &muted));
            }
        });
        Self { port, fault }
    }

    fn arm(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
    }

    fn has_struck(&self) -> bool {
        self.fault.load(Ordering::SeqCst) == Fault::Never as u8
    }
}

/// Passes on what the server says, unless it is to be lost.
fn answers(mut from: TcpStream, mut to: TcpStream, muted: &AtomicBool) {
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

/// Passes on what the sink says, until the fault strikes.
fn questions(mut from: TcpStream, mut to: TcpStream, fault: &AtomicU8, muted: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length) = from.read(&mut buffer) {
        let bytes = &buffer[..length];
        let armed = fault.load(Ordering::SeqCst);
        if length == 0 || armed == Fault::Always as u8 {
            break;
        }
        if armed != Fault::Never as u8 && bytes.windows(7).any(|window| window == b"COMMIT\0") {
            muted.store(true, Ordering::SeqCst);
            fault.store(Fault::Never as u8, Ordering::SeqCst);
            if armed == Fault::After as u8 {
                to.write_all(bytes).expect("the server takes it");
                // The server is to have done it before the connection ends.
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
