//! Valid requests.

use serde_json::json;

use super::support::{World, post, small};
use crate::server::guard::Limits;

#[test]
fn request_reaches_its_handler_unchanged() {
    let world = World::new(small());
    let reply = world.send(
        "POST /echo/a%2Fb?x=1%262&y=%C3%A4+b&x= HTTP/1.1\r\nHost: x\r\nauthorization: bearer good\r\n\
         Content-Type: application/json\r\nX-Other: no\r\nConnection: keep-alive, upgrade\r\nUpgrade: h2c\r\n\
         Content-Length: 3\r\n\r\nabc",
    );
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.json(),
        json!({
            "method": "POST",
            "path": "/echo/a%2Fb",
            "segments": ["echo", "a/b"],
            "query": [["x", "1&2"], ["y", "ä b"], ["x", ""]],
            "length": 3,
            "sum": 294,
        })
    );
    assert_eq!(reply.rest, b"");
    let records = world.service.records.lock().expect("no panic").clone();
    assert_eq!(records, [(Some("POST".to_owned()), Some("/echo/a%2Fb".to_owned()), 200)]);
}

#[test]
fn bodies_up_to_the_limit_arrive_completely() {
    let world = World::new(small());
    for length in [0, 1, 1023, 1024, 1025, 65_535, 65_536, 65_537, 200_000, 1 << 20] {
        let body = vec![b'a'; length];
        let sum = json!(length * usize::from(b'a'));
        let sized = [post("/echo", &format!("Content-Length: {length}\r\n")).into_bytes(), body.clone()].concat();
        let reply = world.send(sized);
        assert_eq!((reply.json()["length"].clone(), reply.json()["sum"].clone()), (json!(length), sum.clone()));
        let mut chunked = post("/echo", "Transfer-Encoding: chunked\r\n").into_bytes();
        for chunk in body.chunks(10_000) {
            chunked.extend_from_slice(format!("{:x};ext=1\r\n", chunk.len()).as_bytes());
            chunked.extend_from_slice(chunk);
            chunked.extend_from_slice(b"\r\n");
        }
        chunked.extend_from_slice(b"0\r\nTrailer: x\r\n\r\n");
        let reply = world.send(chunked);
        assert_eq!((reply.json()["length"].clone(), reply.json()["sum"].clone()), (json!(length), sum));
    }
}

#[test]
fn request_may_arrive_byte_by_byte() {
    let world = World::new(small());
    let mut client = world.connect();
    for byte in [post("/echo", "Transfer-Encoding: chunked\r\n").as_bytes(), b"2\r\nab\r\n0\r\n\r\n"].concat() {
        client.send([byte]);
    }
    assert_eq!(client.reply().json()["sum"], json!(195));
}

#[test]
fn admitted_client_that_expects_continue_gets_it() {
    let world = World::new(small());
    let mut client = world.connect();
    client.send(post("/echo", "Expect: 100-continue\r\nContent-Length: 2\r\n"));
    client.expect(b"HTTP/1.1 100 Continue\r\n\r\n");
    client.send("ab");
    assert_eq!(client.reply().json()["length"], json!(2));
}

#[test]
fn rejected_client_that_expects_continue_does_not_get_it() {
    let world = World::new(small());
    let reply = world
        .send("POST /echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer bad\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    reply.assert_error(401, "an invalid token");
}

#[test]
fn http_1_0_client_is_served() {
    let world = World::new(small());
    let reply = world.send("GET /echo HTTP/1.0\r\nAuthorization: Bearer good\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!((reply.status, reply.json()["path"].clone()), (200, json!("/echo")));
    assert_eq!(world.send("GET /health HTTP/1.0\r\n\r\n").status, 200);
}

#[test]
fn head_is_get_without_the_body() {
    let world = World::new(small());
    let body = world.get("/health").body;
    let reply = world.send("HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((reply.status, reply.body), (200, vec![]));
    assert_eq!(reply.headers["content-length"], body.len().to_string());
    let reply = world.send("HEAD /echo HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((reply.status, reply.body), (401, vec![]), "an error has no body either");
    let length = world.get("/fast").body.len();
    let reply = world.send("HEAD /fast HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n");
    assert_eq!((reply.status, reply.body), (200, vec![]));
    assert_eq!(reply.headers["content-length"], length.to_string());
    let methods: Vec<_> = world.service.records.lock().expect("no panic").iter().map(|each| each.0.clone()).collect();
    assert_eq!(methods, ["GET", "HEAD", "HEAD", "GET", "HEAD"].map(|method| Some(method.to_owned())));
}

#[test]
fn responses_of_all_kinds_are_copied() {
    let world = World::new(small());
    let large = world.get("/large");
    assert_eq!((large.status, large.body.len(), large.rest.len()), (200, 300_000, 0));
    let header = world.get("/header");
    assert_eq!((header.status, header.headers["x-fine"].as_str()), (202, "1"));
    assert!(!header.headers.contains_key("x-injected") && !header.headers.contains_key("x-broken"), "{header:?}");
    let empty = world.get("/empty");
    assert_eq!((empty.status, empty.body.len()), (204, 0));
}

#[test]
fn oversized_response_becomes_an_error() {
    let world = World::new(Limits { response_bytes: 299_999, ..small() });
    world.get("/large").assert_error(500, "too large");
    world.assert_healthy();
}

#[test]
fn panic_becomes_an_error_of_one_request() {
    let world = World::new(small());
    for _ in 0..10 {
        world.get("/panic").assert_error(500, "handle");
        world.get("/panic-in-admit").assert_error(500, "admit");
    }
    world.assert_healthy();
}

#[test]
fn concurrent_requests_are_all_answered() {
    let world = World::new(Limits::default());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..100).for_each(|_| assert_eq!(world.get("/echo").status, 200)));
        }
    });
}
