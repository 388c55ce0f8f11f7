//! Clients that send or read slowly, and handlers that do not end.

use std::io::Read;
use std::time::Duration;

use super::support::{Client, DEADLINE, World, post, small, wait_until};
use crate::server::guard::Limits;

/// Sends a piece every few milliseconds until the server responds.
fn drip(client: &mut Client, piece: &[u8]) {
    client.stream.set_nonblocking(true).expect("a mode");
    wait_until("a response", || {
        client.send(piece);
        std::thread::sleep(Duration::from_millis(20));
        client.stream.peek(&mut [0]).is_ok()
    });
    client.stream.set_nonblocking(false).expect("a mode");
}

#[test]
fn slow_head_is_rejected() {
    let world = World::new(Limits { head_timeout: Duration::from_millis(600), ..small() });
    let mut client = world.connect();
    client.send("GET /echo HTTP/1.1\r\nX-A: ");
    drip(&mut client, b"a");
    client.reply().assert_error(408, "a slow head");
    assert!(world.connect().is_closed_without_response(), "a client that sends nothing gets no response");
    world.assert_healthy();
}

#[test]
fn body_that_stops_is_rejected() {
    let world = World::new(Limits { idle_timeout: Duration::from_millis(300), ..small() });
    for (label, headers, sent) in
        [("sized", "Content-Length: 100\r\n", "abc"), ("chunked", "Transfer-Encoding: chunked\r\n", "64\r\nabc")]
    {
        world.send(format!("{}{sent}", post("/echo", headers))).assert_error(408, label);
    }
    world.assert_healthy();
}

#[test]
fn slow_body_is_rejected() {
    let limits = Limits { idle_timeout: Duration::from_millis(300), min_rate: 10_000, ..small() };
    let world = World::new(limits);
    for (label, headers, piece) in [
        ("sized", "Content-Length: 100000\r\n", &b"a"[..]),
        ("chunked", "Transfer-Encoding: chunked\r\n", b"1\r\na\r\n"),
    ] {
        let mut client = world.connect();
        client.send(post("/echo", headers));
        drip(&mut client, piece);
        client.reply().assert_error(408, label);
    }
}

#[test]
fn body_at_the_minimal_rate_arrives() {
    let limits = Limits { idle_timeout: Duration::from_secs(2), min_rate: 10_000, ..small() };
    let world = World::new(limits);
    let mut client = world.connect();
    client.send(post("/echo", "Content-Length: 60000\r\n"));
    for _ in 0..60 {
        client.send([b'a'; 1000]);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(client.reply().json()["length"], 60_000);
}

#[test]
fn handler_timeout_is_an_error_and_the_thread_is_reused() {
    let world = World::new(Limits { handler_timeout: Duration::from_millis(600), blocking_threads: 1, ..small() });
    world.get("/wait").assert_error(504, "a slow handler");
    world.service.release();
    // The only thread is free again, and the late response is discarded.
    for _ in 0..3 {
        assert_eq!(world.get("/echo").json()["path"], "/echo");
    }
}

const LARGE: &str = "GET /large?bytes=50000000 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n";

/// Responses of 50 MB, more than the buffers of the kernel hold.
fn large_responses() -> Limits {
    Limits { response_bytes: 50_000_000, blocking_threads: 1, ..small() }
}

#[test]
fn client_that_does_not_read_is_disconnected_and_its_memory_is_freed() {
    let limits =
        Limits { idle_timeout: Duration::from_millis(300), total_bytes_timeout: DEADLINE, ..large_responses() };
    let world = World::new(limits);
    for _ in 0..4 {
        let mut stalled = world.connect_from(2);
        stalled.send(LARGE);
        wait_until("the response", || stalled.stream.peek(&mut [0]).is_ok_and(|read| read == 1));
        wait_until("a reset", || stalled.stream.take_error().is_ok_and(|error| error.is_some()));
    }
    world.assert_healthy();
}

#[test]
fn client_that_reads_slowly_is_disconnected() {
    let limits = Limits { idle_timeout: Duration::from_millis(300), min_rate: 50 << 20, ..large_responses() };
    let world = World::new(limits);
    let mut slow = world.connect();
    slow.send(LARGE);
    let mut buffer = [0; 10_000];
    wait_until("a reset", || {
        std::thread::sleep(Duration::from_millis(10));
        slow.stream.read(&mut buffer).is_err()
    });
    world.assert_healthy();
}

#[test]
fn unread_responses_count_as_memory() {
    let total_bytes_timeout = Duration::from_millis(200);
    let world = World::new(Limits { total_bytes: 250_000_000, total_bytes_timeout, ..large_responses() });
    let mut stalled: Vec<Client> = (0..2).map(|_| world.connect_from(2)).collect();
    for client in &mut stalled {
        client.send(LARGE);
        wait_until("the response", || client.stream.peek(&mut [0]).is_ok_and(|read| read == 1));
    }
    // While it is made it counts twice: with two others that is more than one client may have.
    let mut third = world.connect_from(2);
    third.send(LARGE);
    third.reply().assert_error(503, "unread responses");
    let mut other = world.connect_from(3);
    other.send(LARGE);
    assert_eq!(other.reply().body.len(), 50_000_000, "the memory of another client");
    for client in &mut stalled {
        assert_eq!(client.reply().body.len(), 50_000_000, "it may still read everything");
    }
}

#[test]
fn client_that_does_not_read_occupies_no_thread() {
    let world = World::new(large_responses());
    let mut stalled = world.connect();
    stalled.send(LARGE);
    wait_until("the response", || stalled.stream.peek(&mut [0]).is_ok_and(|read| read == 1));
    world.assert_healthy();
    assert_eq!(stalled.reply().body.len(), 50_000_000, "it may still read everything");
}
