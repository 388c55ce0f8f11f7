//! Those who take their time: clients that send or read slowly, handlers that do not end.

use std::time::{Duration, Instant};

use super::support::{World, post, small, wait_until};
use crate::server::guard::Limits;

/// Sends a byte now and then until there is an answer.
fn drip(client: &mut super::support::Client, byte: &[u8]) -> Duration {
    let started = Instant::now();
    client.stream.set_nonblocking(true).expect("a mode");
    let mut peeked = [0];
    while client.stream.peek(&mut peeked).is_err() && started.elapsed() < Duration::from_secs(10) {
        client.send(byte);
        std::thread::sleep(Duration::from_millis(20));
    }
    client.stream.set_nonblocking(false).expect("a mode");
    started.elapsed()
}

#[test]
fn a_slow_head_is_refused_in_time() {
    let world = World::new(Limits { head_timeout: Duration::from_millis(600), ..small() });
    let mut client = world.connect();
    client.send("GET /echo HTTP/1.1\r\nX-A: ");
    let took = drip(&mut client, b"a");
    client.reply().refuses(408, "a slow head");
    assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(2), "{took:?}");
    assert!(world.connect().is_ended(), "who asks nothing gets no answer");
    world.is_well();
}

#[test]
fn a_body_that_stops_is_refused_in_time() {
    let world = World::new(Limits { body_idle_timeout: Duration::from_millis(300), ..small() });
    for (label, headers, sent) in
        [("sized", "Content-Length: 100\r\n", "abc"), ("chunked", "Transfer-Encoding: chunked\r\n", "64\r\nabc")]
    {
        let started = Instant::now();
        world.ask(format!("{}{sent}", post("/echo", headers))).refuses(408, label);
        assert!(started.elapsed() < Duration::from_secs(2), "{label}: {:?}", started.elapsed());
    }
    world.is_well();
}

#[test]
fn a_body_that_drips_is_refused_in_time() {
    let limits = Limits { body_idle_timeout: Duration::from_millis(300), body_rate: 10_000, ..small() };
    let world = World::new(limits);
    for (label, headers, piece) in [
        ("sized", "Content-Length: 100000\r\n", &b"a"[..]),
        ("chunked", "Transfer-Encoding: chunked\r\n", b"1\r\na\r\n"),
    ] {
        let mut client = world.connect();
        client.send(post("/echo", headers));
        let took = drip(&mut client, piece);
        client.reply().refuses(408, label);
        assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(2), "{label}: {took:?}");
    }
}

#[test]
fn a_body_that_is_slow_but_fast_enough_arrives() {
    let limits = Limits { body_idle_timeout: Duration::from_millis(800), body_rate: 10_000, ..small() };
    let world = World::new(limits);
    let mut client = world.connect();
    client.send(post("/echo", "Content-Length: 20000\r\n"));
    for _ in 0..20 {
        client.send([b'a'; 1000]);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(client.reply().json()["length"], 20_000);
}

#[test]
fn a_handler_that_does_not_end_is_given_up_and_its_thread_comes_back() {
    let world = World::new(Limits { handler_timeout: Duration::from_millis(600), blocking_threads: 1, ..small() });
    world.get("/wait").refuses(504, "a slow handler");
    world.service.release();
    // The only thread answers again, and nobody gets the answer of the request that was given up.
    for _ in 0..3 {
        assert_eq!(world.get("/echo").json()["path"], "/echo");
    }
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let limits = Limits { write_timeout: Duration::from_millis(300), connections: 1, blocking_threads: 1, ..small() };
    let world = World::new(Limits { response_bytes: 64 << 20, ..limits });
    let mut deaf = world.connect();
    // More than all buffers of the kernel's hold.
    deaf.send("GET /large?bytes=50000000 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n");
    wait_until("the answer", || deaf.stream.peek(&mut [0]).is_ok_and(|read| read == 1));
    world.get("/health").refuses(503, "the only connection is the deaf one's");
    wait_until("its end", || world.get("/health").status == 200);
    world.is_well();
}

#[test]
fn a_client_that_does_not_read_takes_no_thread() {
    let world = World::new(Limits { blocking_threads: 1, response_bytes: 64 << 20, ..small() });
    let mut deaf = world.connect();
    deaf.send("GET /large?bytes=50000000 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n");
    wait_until("the answer", || deaf.stream.peek(&mut [0]).is_ok_and(|read| read == 1));
    world.is_well();
    assert_eq!(deaf.reply().body.len(), 50_000_000, "it may still read all of it");
}
