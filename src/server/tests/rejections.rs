//! Requests that are rejected before they reach a handler.

use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::support::{World, post, small, wait_until};

#[test]
fn ambiguous_and_oversized_requests_reach_no_handler() {
    let world = World::new(small());
    let inner = "GET /echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n";
    let smuggled = |headers: &str| format!("{}0\r\n\r\n{inner}", post("/echo", headers));
    for (label, status, bytes) in [
        ("length and chunks", 400, smuggled("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n")),
        ("chunks and length", 400, smuggled("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n")),
        ("two lengths", 400, smuggled("Content-Length: 5\r\nContent-Length: 60\r\n")),
        ("another coding", 400, smuggled("Transfer-Encoding: xchunked\r\n")),
        ("a coding with a tab", 400, smuggled("Transfer-Encoding:\tchunked, identity\r\n")),
        ("a blank before the colon", 400, smuggled("Transfer-Encoding : chunked\r\n")),
        ("a folded line", 400, smuggled("Transfer-Encoding:\r\n chunked\r\n")),
        ("line feeds alone", 400, smuggled("").replace("\r\n", "\n")),
        ("a header that is not ASCII", 400, smuggled("X-A: ä\r\n")),
        ("a null byte", 400, smuggled("X-A: \0\r\n")),
        ("an absolute target", 400, inner.replace("/echo", "http://x/echo")),
        ("no host", 400, inner.replace("Host: x\r\n", "")),
        ("another version", 505, inner.replace("HTTP/1.1", "HTTP/1.7")),
        ("another expectation", 417, smuggled("Expect: a-miracle\r\n")),
        ("a token twice", 400, smuggled("Authorization: Bearer bad\r\n")),
        ("headers", 431, smuggled(&"X-A: b\r\n".repeat(64))),
        ("a large head", 431, smuggled(&format!("X-A: {}\r\n", "b".repeat(20_000)))),
        ("a long target", 414, format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(9000))),
        ("a huge target", 414, format!("GET /{}", "a".repeat(3_000_000))),
        ("a body that is too large", 413, smuggled("Content-Length: 1048577\r\n")),
        ("a body beyond any memory", 413, smuggled("Content-Length: 1000000000000000\r\n")),
        ("TLS", 400, "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03".to_owned()),
        ("HTTP/2", 505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
    ] {
        world.send(bytes).assert_error(status, label);
    }
    assert_eq!(world.service.handled.load(Ordering::SeqCst), 0);
    assert_eq!(world.service.records.lock().expect("no panic").len(), 23, "each response is recorded");
    world.assert_healthy();
}

#[test]
fn second_request_on_a_connection_is_discarded() {
    let world = World::new(small());
    let second = "GET /echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n";
    for (label, first) in [
        ("GET", second.to_owned()),
        ("a body", format!("{}ab", post("/echo", "Content-Length: 2\r\n"))),
        ("chunks", format!("{}2\r\nab\r\n0\r\n\r\n", post("/echo", "Transfer-Encoding: chunked\r\n"))),
    ] {
        let before = world.service.handled.load(Ordering::SeqCst);
        let reply = world.send(format!("{first}{}", second.repeat(20)));
        assert_eq!((reply.status, reply.rest.as_slice()), (200, &b""[..]), "{label}");
        assert_eq!(world.service.handled.load(Ordering::SeqCst), before + 1, "{label}");
    }
}

#[test]
fn malformed_chunks_reach_no_handler() {
    let world = World::new(small());
    for (label, status, body) in [
        ("no size", 400, "\r\n"),
        ("no hex", 400, "xyz\r\n"),
        ("too short", 400, "3\r\nabcd\r\n0\r\n\r\n"),
        ("a line feed alone", 400, "3\nabc\n0\n\n"),
        ("a chunk that is too large", 413, "100001\r\n"),
        ("a size beyond usize", 413, "ffffffffffffffffff\r\n"),
    ] {
        world.send(format!("{}{body}", post("/echo", "Transfer-Encoding: chunked\r\n"))).assert_error(status, label);
    }
    let mut client = world.connect();
    client.send(post("/echo", "Transfer-Encoding: chunked\r\n"));
    client.send("80000\r\n");
    client.send(vec![b'a'; 0x80000]);
    client.send("\r\n80001\r\n");
    client.reply().assert_error(413, "a sum that is too large");
    assert_eq!(world.service.handled.load(Ordering::SeqCst), 0);
    world.assert_healthy();
}

#[test]
fn incomplete_request_reaches_no_handler() {
    let world = World::new(small());
    for (label, bytes) in [
        ("in the head", "GET /echo HTTP/1.1\r\nHost:".to_owned()),
        ("in the body", format!("{}abc", post("/echo", "Content-Length: 4\r\n"))),
        ("in the chunks", format!("{}3\r\nab", post("/echo", "Transfer-Encoding: chunked\r\n"))),
    ] {
        let mut client = world.connect();
        client.send(bytes);
        client.stream.shutdown(std::net::Shutdown::Write).expect("an end");
        client.reply().assert_error(400, label);
    }
    let mut silent = world.connect();
    silent.stream.shutdown(std::net::Shutdown::Write).expect("an end");
    assert!(silent.is_closed_without_response(), "a client that sends nothing gets no response");
    assert_eq!(world.service.handled.load(Ordering::SeqCst), 0);
}

#[test]
fn invalid_token_is_rejected_before_the_body_is_sent() {
    let world = World::new(small());
    let reply = world
        .send("POST /echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer hunter2\r\nContent-Length: 1000000\r\n\r\n");
    reply.assert_error(401, "an invalid token");
    assert_eq!(reply.headers["www-authenticate"], "Bearer realm=\"syncctl\"");
    assert!(!String::from_utf8_lossy(&reply.body).contains("hunter2"));
}

#[test]
fn body_that_an_endpoint_does_not_take_is_rejected_before_it_is_sent() {
    let world = World::new(small());
    for path in ["/health", "/fast"] {
        for headers in ["Content-Length: 1\r\n", "Content-Length: 1000000\r\n", "Transfer-Encoding: chunked\r\n"] {
            for expect in ["", "Expect: 100-continue\r\n"] {
                world.send(post(path, &format!("{headers}{expect}"))).assert_error(413, path);
            }
        }
        assert_eq!(world.send(post(path, "Content-Length: 0\r\n")).status, 200, "{path}");
    }
    assert_eq!(world.service.handled.load(Ordering::SeqCst), 1, "without a body");
}

#[test]
fn client_that_sends_its_body_anyway_reads_the_rejection() {
    let world = World::new(small());
    for length in [1000, 1 << 20] {
        let mut client = world.connect();
        client.send(format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"));
        client.send(vec![b'a'; length]);
        client.reply().assert_error(401, "no token");
    }
    assert_eq!(world.service.handled.load(Ordering::SeqCst), 0);
}

#[test]
fn client_that_continues_to_send_reads_the_rejection_and_no_reset() {
    let world = World::new(small());
    let mut client = world.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n");
    wait_until("the rejection", || client.stream.peek(&mut [0]).is_ok_and(|read| read == 1));
    for _ in 0..2 {
        // Time for a reset to come back, if there is one.
        std::thread::sleep(Duration::from_millis(50));
        client.stream.write_all(&[b'a'; 100]).expect("the server still reads");
    }
    client.reply().assert_error(401, "no token");
}

#[test]
fn a_thousand_invalid_tokens_are_rejected() {
    let world = World::new(small());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let world = &world;
            scope.spawn(move || {
                for number in 0..250 {
                    let token = format!("wrong-{thread}-{number}-{}", "x".repeat(number * 30));
                    let reply =
                        world.send(format!("GET /echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"));
                    reply.assert_error(401, "an invalid token");
                }
            });
        }
    });
    assert_eq!(world.service.handled.load(Ordering::SeqCst), 0);
    world.assert_healthy();
}
