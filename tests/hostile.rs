//! Attacks on `syncctl serve`: it serves others meanwhile, and its memory is bounded.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::support::http::{DEADLINE, Response, read_to_close};
use super::support::{Http, Service, World, eventually, unique};

/// The memory of the service once the attack is over.
const MEMORY_AFTER: u64 = 100 << 20;
/// The maximum: the limit of the container in `deploy/`.
const MEMORY_MAX: u64 = 256 << 20;
/// The default of SYNCCTL_HTTP_MAX_CONNECTIONS.
const MAX_CONNECTIONS: usize = 1024;
/// The largest body.
const BODY_LIMIT: usize = 32 << 20;

/// Requests `/health` all the time, as the kubelet does: from another address than the attackers.
struct Prober {
    stop: Arc<AtomicBool>,
    responses: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    fn start(service: &Service) -> Self {
        let (stop, responses): (Arc<AtomicBool>, Arc<AtomicUsize>) = (Arc::default(), Arc::default());
        let thread = std::thread::spawn({
            let (stop, responses, http) =
                (Arc::clone(&stop), Arc::clone(&responses), service.http.token(None).with_source(9));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let response = http.get("/health");
                    assert_eq!(response.status, 200, "{}", response.text());
                    responses.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        });
        Self { stop, responses, thread: Some(thread) }
    }

    /// Waits for another response, and asserts that all requests were answered.
    fn finish(mut self) {
        let before = self.responses.load(Ordering::Relaxed);
        let has_responded = || (self.responses.load(Ordering::Relaxed) > before).then_some(());
        eventually("a response of /health", DEADLINE, has_responded);
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is joined once");
        thread.join().expect("every request of /health is answered");
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Runs an attack: others are served meanwhile and afterwards, the memory is bounded, and no Pod is created.
fn under_attack(attack: impl FnOnce(&World, &Service)) {
    under_attack_with(&[], attack);
}

/// The same with other settings.
fn under_attack_with(settings: &[(&str, &str)], attack: impl FnOnce(&World, &Service)) {
    let Some(world) = World::in_cluster() else { return };
    let mut service = Service::start_with(&world, |program| {
        settings.iter().fold(program, |program, (name, value)| program.env(name, value))
    });
    let pid = service.pid();
    let prober = Prober::start(&service);
    attack(&world, &service);
    prober.finish();
    let response = service.http.get("/tasks?syncId=none");
    assert_eq!(response.status, 200, "{response:?}");
    assert_eq!(service.http.token(None).get("/ready").status, 200);
    assert_eq!(service.pid(), pid);
    // The allocator returns freed memory within seconds.
    eventually("less memory in use", DEADLINE, || (service.memory("VmRSS") < MEMORY_AFTER).then_some(()));
    let (now, max) = (service.memory("VmRSS"), service.memory("VmHWM"));
    println!("{} MiB now, {} MiB at most", now >> 20, max >> 20);
    assert!(max < MEMORY_MAX, "{} MiB were in use", max >> 20);
    world.place.assert_empty();
    let done = service.stop();
    done.code(0);
    assert!(!done.stderr.contains("panicked"), "{done}");
}

/// Both ends of a connection are files of this process or of its child.
fn allow_open_files(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(count), ..limit });
        raised.unwrap_or_else(|error| panic!("this test needs {count} open files (ulimit -n): {error}"));
    }
}

/// Sends bytes and asserts the status of the response, which must be the only one on its connection.
#[track_caller]
fn expect(http: &Http, label: &str, bytes: &[u8], statuses: &[u16]) -> Response {
    let response = http.raw(bytes).unwrap_or_else(|error| panic!("{label}: {error}"));
    let parsed = Response::parse(&response).unwrap_or_else(|error| panic!("{label}: {error}"));
    assert!(statuses.contains(&parsed.status), "{label}: not {statuses:?} but {parsed:?}");
    let head = response.windows(4).position(|window| window == b"\r\n\r\n").expect("it was parsed") + 4;
    let rest = response.len() - head - parsed.body.len();
    assert_eq!(rest, 0, "{label}: more than one response: {}", String::from_utf8_lossy(&response));
    assert_eq!(parsed.header("connection").map(str::to_lowercase).as_deref(), Some("close"), "{label}: {parsed:?}");
    if parsed.status >= 400 {
        assert_eq!(parsed.json()["ok"], false, "{label}: {parsed:?}");
        assert!(parsed.json()["error"].is_string(), "{label}: {parsed:?}");
    }
    parsed
}

/// `POST /check` with these headers and this body, and a valid token.
fn check(http: &Http, headers: &str, body: &[u8]) -> Vec<u8> {
    let token = http.token.as_deref().expect("the service has a token");
    let head = format!(
        "POST /check?package=syncctl-test/none&version=1&storageKey={} HTTP/1.1\r\nHost: x\r\n\
         Authorization: Bearer {token}\r\nContent-Type: application/json\r\n{headers}\r\n",
        unique("hostile-")
    );
    [head.as_bytes(), body].concat()
}

/// Whether the service has responded or closed the connection.
fn is_readable(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket");
    let readable = stream.peek(&mut [0]).is_ok();
    stream.set_nonblocking(false).expect("a socket");
    readable
}

#[track_caller]
fn expect_408(label: &str, stream: &mut TcpStream) {
    let response = Response::parse(&read_to_close(stream, Instant::now() + DEADLINE));
    let response = response.unwrap_or_else(|error| panic!("{label}: {error}"));
    assert_eq!(response.status, 408, "{label}: {response:?}");
}

/// An endpoint as the OpenAPI document describes it.
struct Endpoint {
    method: String,
    target: String,
    is_open: bool,
    takes_body: bool,
    /// The documented statuses.
    statuses: Vec<u16>,
}

/// All endpoints. A unit test compares the document with the routing table.
fn endpoints(service: &Service, task_id: &str) -> Vec<Endpoint> {
    let document = service.http.get("/openapi.json").json();
    let mut endpoints = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let codes = operation["responses"].as_object().expect("responses").keys();
            endpoints.push(Endpoint {
                method: method.to_uppercase(),
                target: path.replace("{taskId}", task_id),
                is_open: operation["security"].as_array().is_some_and(Vec::is_empty),
                takes_body: operation.get("requestBody").is_some(),
                statuses: codes.map(|code| code.parse().expect("a status")).collect(),
            });
        }
    }
    assert!(endpoints.len() > 9 && endpoints.iter().any(|each| each.takes_body), "{document}");
    endpoints
}

/// What a client sends after its head, and what it declares there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Bodyless,
    Body,
    SlowBody,
    SlowChunks,
    LargeBody,
    TooLargeBody,
    /// A complete request without its body, whose response is never read.
    SlowReader,
}

impl Shape {
    const ALL: [Self; 7] = [
        Self::Bodyless,
        Self::Body,
        Self::SlowBody,
        Self::SlowChunks,
        Self::LargeBody,
        Self::TooLargeBody,
        Self::SlowReader,
    ];

    fn headers(self) -> String {
        match self {
            Self::Bodyless | Self::SlowReader => String::new(),
            Self::Body => "Content-Length: 2\r\n".to_owned(),
            Self::SlowBody => "Content-Length: 1000\r\n".to_owned(),
            Self::SlowChunks => "Transfer-Encoding: chunked\r\n".to_owned(),
            Self::LargeBody => format!("Content-Length: {BODY_LIMIT}\r\n"),
            Self::TooLargeBody => format!("Content-Length: {}\r\n", BODY_LIMIT + 1),
        }
    }

    /// What is sent of the body.
    fn body(self) -> &'static [u8] {
        match self {
            Self::Bodyless | Self::SlowReader => b"",
            Self::SlowChunks => b"3e8\r\n{\"config\"",
            _ => b"{}",
        }
    }
}

impl Endpoint {
    /// The status of a request without any parameters.
    fn expected(&self, shape: Shape, has_token: bool) -> &'static [u16] {
        let has_body = ![Shape::Bodyless, Shape::SlowReader].contains(&shape);
        match shape {
            Shape::TooLargeBody => &[413],
            _ if !self.is_open && !has_token => &[401],
            _ if has_body && !self.takes_body => &[413],
            Shape::SlowBody | Shape::SlowChunks | Shape::LargeBody => &[408],
            _ => &[200, 400],
        }
    }
}

#[test]
fn every_endpoint_survives_every_kind_of_request_with_and_without_a_token() {
    under_attack_with(&[("SYNCCTL_HTTP_IDLE_SECONDS", "2")], |world, service| {
        let task_id = task_with_long_log(world);
        let mut connections = Vec::new();
        for endpoint in endpoints(service, &task_id) {
            for shape in Shape::ALL {
                for token in [None, service.http.token.as_deref()] {
                    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
                    let head = format!(
                        "{} {} HTTP/1.1\r\nHost: x\r\n{}{}\r\n",
                        endpoint.method,
                        endpoint.target,
                        authorization.unwrap_or_default(),
                        shape.headers()
                    );
                    let label =
                        format!("{} {} {shape:?}, token: {}", endpoint.method, endpoint.target, token.is_some());
                    let expected = endpoint.expected(shape, token.is_some());
                    assert!(
                        expected.iter().any(|status| endpoint.statuses.contains(status)),
                        "{label}: not documented"
                    );
                    let mut stream = service.http.connect().unwrap_or_else(|error| panic!("{label}: {error}"));
                    stream.write_all(&[head.as_bytes(), shape.body()].concat()).expect("an open connection");
                    connections.push((label, shape, expected, stream));
                }
            }
        }
        println!("{} requests", connections.len());
        let other = service.http.with_source(8);
        assert_eq!(other.get("/tasks?syncId=none").status, 200, "another client is served meanwhile");
        for (label, shape, expected, stream) in &mut connections {
            if *shape == Shape::SlowReader {
                eventually("a response that is not read", DEADLINE, || is_readable(stream).then_some(()));
                continue;
            }
            let response = Response::parse(&read_to_close(stream, Instant::now() + DEADLINE));
            let response = response.unwrap_or_else(|error| panic!("{label}: {error}"));
            assert!(expected.contains(&response.status), "{label}: not {expected:?} but {response:?}");
        }
    });
}

/// The id of a task with 1000 log lines, as long as those that a response shows.
fn task_with_long_log(world: &World) -> String {
    let task_id = unique("hostile-");
    world.schema.execute(&format!(
        "INSERT INTO source_task (sync_id, task_id, package, version, started_at, updated_at, status)
             VALUES ('hostile', '{task_id}', 'p', '1', now(), now(), 'SUCCESS');
         INSERT INTO task_log (id, level, logger, message, sync_id, task_id, timestamp)
             SELECT gen_random_uuid(), 'INFO', 'source', repeat('\"', 4000), 'hostile', '{task_id}', now()
             FROM generate_series(1, 1000)"
    ));
    task_id
}

#[test]
fn sixty_unread_responses_are_bounded_in_memory() {
    under_attack_with(&[("SYNCCTL_HTTP_IDLE_SECONDS", "2")], |world, service| {
        let task_id = task_with_long_log(world);
        let target = format!("/tasks/{task_id}?logs=1000");
        let before = service.memory("VmRSS");
        let request = service.http.bytes("GET", &target, &[], &[]);
        let mut connections: Vec<TcpStream> = (0..60).map(|_| service.http.connect().expect("a connection")).collect();
        for stream in &mut connections {
            stream.write_all(&request).expect("an open connection");
        }
        // Of another client.
        let response = service.http.with_source(8).get(&target);
        assert_eq!(response.status, 200);
        assert!(response.body.len() > 7 << 20, "{} bytes", response.body.len());
        for stream in &connections {
            eventually("a response", DEADLINE, || is_readable(stream).then_some(()));
        }
        println!("{} MiB before, {} MiB after", before >> 20, service.memory("VmRSS") >> 20);
        let is_cut_off = |stream: &TcpStream| stream.take_error().is_ok_and(|error| error.is_some());
        let cut_off = || connections.iter().any(is_cut_off).then_some(());
        eventually("a slow reader to be disconnected", DEADLINE, cut_off);
    });
}

#[test]
fn bodies_that_do_not_arrive_do_not_starve_others() {
    allow_open_files(6000);
    under_attack(|_, service| {
        let http = &service.http;
        let probe = |length: usize| format!("GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        for length in [1, BODY_LIMIT] {
            expect(http, "a probe with a body", probe(length).as_bytes(), &[413]);
        }
        // With a token: more bodies than there are places, and as many large ones as there is memory.
        let slow = check(http, "Content-Length: 100\r\n", b"{");
        let large = check(http, &format!("Content-Length: {BODY_LIMIT}\r\n"), b"{");
        let mut connections = Vec::new();
        for number in 0..2 * MAX_CONNECTIONS {
            let mut stream = http.connect().expect("a connection");
            // The service may have rejected it.
            stream.write_all(if number < 8 { &large } else { &slow }).ok();
            connections.push(stream);
        }
        let other = http.with_source(8);
        let body = [b"{".repeat(BODY_LIMIT - 1).as_slice(), b"}"].concat();
        for round in 0..3 {
            assert_eq!(other.get("/tasks?syncId=none").status, 200, "{round}");
            let request = check(&other, &format!("Content-Length: {}\r\n", body.len()), &body);
            expect(&other, "a large body of another client", &request, &[400]);
            assert_eq!(other.get("/metrics").status, 200, "{round}");
        }
    });
}

#[test]
fn slow_heads_on_200_connections_end_with_408_and_do_not_delay_others() {
    under_attack(|_, service| {
        let mut connections: Vec<TcpStream> = (0..200).map(|_| service.http.connect().expect("a connection")).collect();
        for stream in &mut connections {
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ").expect("an open connection");
        }
        assert_eq!(service.http.get("/tasks?syncId=none").status, 200);
        // A byte now and then does not extend the time for a head.
        eventually("the end of the first connection", DEADLINE, || {
            std::thread::sleep(Duration::from_millis(500));
            for stream in &mut connections {
                // The service may have closed it.
                stream.write_all(b"x").ok();
            }
            is_readable(&connections[0]).then_some(())
        });
        for stream in &mut connections {
            expect_408("slow head", stream);
        }
    });
}

#[test]
fn incomplete_body_ends_with_408() {
    under_attack(|_, service| {
        let shapes = [
            ("length", check(&service.http, "Content-Length: 1000\r\n", b"{\"config\"")),
            ("chunked", check(&service.http, "Transfer-Encoding: chunked\r\n", b"9\r\n{\"config\"\r\n")),
            ("no byte at all", check(&service.http, "Content-Length: 1000\r\n", b"")),
        ];
        let mut connections = Vec::new();
        for (label, bytes) in shapes.iter().cycle().take(60) {
            let mut stream = service.http.connect().expect("a connection");
            stream.write_all(bytes).expect("an open connection");
            connections.push((label, stream));
        }
        for (label, stream) in &mut connections {
            expect_408(label, stream);
        }
    });
}

#[test]
fn five_thousand_idle_connections_do_not_lock_out_others() {
    allow_open_files(6000);
    under_attack(|_, service| {
        let mut connections = Vec::new();
        for number in 0..5000 {
            let stream = service.http.connect();
            connections.push(stream.unwrap_or_else(|error| panic!("connection {number}: {error}")));
        }
        let is_open = |stream: &&TcpStream| !is_readable(stream);
        let bounded = || (connections.iter().filter(is_open).count() <= MAX_CONNECTIONS).then_some(());
        eventually("a bounded number of open connections", DEADLINE, bounded);
        let mut evicted = 0;
        for mut stream in connections.iter().filter(|stream| is_readable(stream)) {
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).expect("a response or the end");
            // A connection that has sent nothing for 10 s is closed without a response.
            if count > 0 {
                let response = Response::parse(&bytes[..count]).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(response.status, 503, "{response:?}");
                evicted += 1;
            }
        }
        println!("{evicted} of 5000 connections were evicted");
        assert!(evicted > 0, "no connection was evicted");
        let response = service.http.get("/tasks?syncId=none");
        assert_eq!(response.status, 200, "{response:?}");
    });
}

#[test]
fn oversized_requests_are_rejected_with_their_status() {
    under_attack(|_, service| {
        let http = &service.http;
        let many = "X-Header: 1\r\n".repeat(200);
        let long = "x".repeat(20 << 10);
        let endless = "x".repeat(4 << 20);
        let get = |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        for (label, request, status) in [
            ("a long URI", get(&format!("/health?{}", &long[..9 << 10]), ""), 414),
            ("an endless URI", get(&format!("/{endless}"), ""), 414),
            ("an endless request line without an end", endless.clone(), 414),
            ("200 headers", get("/health", &many), 431),
            ("a long header", get("/health", &format!("X: {long}\r\n")), 431),
            ("an endless header", get("/health", &format!("X: {endless}\r\n")), 431),
            ("an endless name of a header", get("/health", &endless), 431),
            ("headers without an end", format!("GET /health HTTP/1.1\r\nHost: x\r\n{}", many.repeat(200)), 431),
        ] {
            expect(http, label, request.as_bytes(), &[status]);
        }
        for length in ["33554433", "1000000000000000", "18446744073709551615"] {
            let request = check(http, &format!("Content-Length: {length}\r\n"), b"{}");
            expect(http, &format!("Content-Length {length}"), &request, &[413]);
            let request = check(http, &format!("Content-Length: {length}\r\nExpect: 100-continue\r\n"), b"");
            expect(http, &format!("Content-Length {length}, expecting 100"), &request, &[413]);
        }
        let request = check(http, "Content-Length: 99999999999999999999999999\r\n", b"");
        expect(http, "a Content-Length of 26 digits", &request, &[400, 413]);
    });
}

#[test]
fn chunked_body_is_cut_off_at_the_limit() {
    under_attack(|_, service| {
        let mut stream = service.http.connect().expect("a connection");
        stream.write_all(&check(&service.http, "Transfer-Encoding: chunked\r\n", b"")).expect("an open connection");
        let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000)).into_bytes();
        // The service may stop reading once it has rejected the request.
        let sent = (0..4 * BODY_LIMIT / 0x10000).take_while(|_| stream.write_all(&chunk).is_ok()).count() * 0x10000;
        let response = read_to_close(&mut stream, Instant::now() + DEADLINE);
        assert!((BODY_LIMIT..4 * BODY_LIMIT).contains(&sent), "{sent} bytes were taken");
        let response = Response::parse(&response).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(response.status, 413, "{response:?}");
        let large = check(&service.http, "Transfer-Encoding: chunked\r\n", b"2000001\r\n");
        expect(&service.http, "a chunk larger than the limit", &large, &[413]);
    });
}

#[test]
fn concurrent_large_bodies_are_bounded_in_memory() {
    under_attack(|_, service| {
        // At the limit, and not JSON.
        let body = Arc::new(vec![b'x'; BODY_LIMIT - 1]);
        let senders: Vec<_> = (0..24)
            .map(|_| {
                let (http, body) = (service.http.clone(), Arc::clone(&body));
                std::thread::spawn(move || {
                    let request = check(&http, &format!("Content-Length: {}\r\n", body.len()), &body);
                    let response = http.raw(&request).map_err(|error| error.to_string())?;
                    Response::parse(&response).map(|response| response.status)
                })
            })
            .collect();
        let mut read = 0;
        for sender in senders {
            match sender.join().expect("a sender") {
                Ok(400) => read += 1,
                // Over the shared limit.
                Ok(503) => {}
                other => panic!("{other:?}"),
            }
        }
        println!("{read} of 24 bodies were read");
        assert!(read > 0, "no body was read");
    });
}

#[test]
fn malformed_requests_are_rejected() {
    under_attack(|_, service| {
        let http = &service.http;
        let clear = "GET /health HTTP/1.1\r\nHost: x\r\n";
        for (label, request, statuses) in [
            ("HTTP/2.0", b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n".to_vec(), &[505][..]),
            ("HTTP/1.2", b"GET /health HTTP/1.2\r\nHost: x\r\n\r\n".to_vec(), &[505, 400]),
            ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), &[505, 400]),
            ("HTTP/0.9", b"GET /health\r\n\r\n".to_vec(), &[400, 505]),
            (
                "a TLS client",
                [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], &[7; 64], b"\r\n\r\n"].concat(),
                &[400],
            ),
            ("zeros", [&[0; 100][..], b"\r\n\r\n"].concat(), &[400]),
            ("lines that end with LF", b"GET /health HTTP/1.1\nHost: x\n\n".to_vec(), &[400]),
            ("no host", b"GET /health HTTP/1.1\r\n\r\n".to_vec(), &[400]),
            ("two hosts", format!("{clear}Host: y\r\n\r\n").into_bytes(), &[400]),
            ("a blank before the colon", format!("{clear}X : y\r\n\r\n").into_bytes(), &[400]),
            ("a folded header", format!("{clear}X: y\r\n z\r\n\r\n").into_bytes(), &[400]),
            ("a NUL in a header", format!("{clear}X: \0\r\n\r\n").into_bytes(), &[400]),
            ("not ASCII in a header", [clear.as_bytes(), b"X: \xff\xfe\r\n\r\n"].concat(), &[400]),
            ("not ASCII in the path", "GET /h\u{e4}lth HTTP/1.1\r\nHost: x\r\n\r\n".as_bytes().to_vec(), &[400]),
            ("CONNECT", b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n".to_vec(), &[400, 405, 501]),
            ("an absolute target", b"GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &[400]),
            ("no target", b"GET  HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &[400]),
            ("a negative length", check(http, "Content-Length: -1\r\n", b""), &[400]),
            ("a length with a sign", check(http, "Content-Length: +2\r\n", b"{}"), &[400]),
            ("a length in hex", check(http, "Content-Length: 0x2\r\n", b"{}"), &[400]),
            ("a list of lengths", check(http, "Content-Length: 2, 2\r\n", b"{}"), &[400]),
            ("an unknown expectation", check(http, "Content-Length: 2\r\nExpect: x\r\n", b"{}"), &[417]),
        ] {
            expect(http, label, &request, statuses);
        }
    });
}

#[test]
fn malformed_chunks_are_rejected() {
    under_attack(|_, service| {
        let http = &service.http;
        for (label, body) in [
            ("no size", &b"hello\r\n0\r\n\r\n"[..]),
            ("a negative size", b"-1\r\n{}\r\n0\r\n\r\n"),
            ("a size of 17 digits", b"10000000000000000\r\n{}\r\n0\r\n\r\n"),
            ("more than the size says", b"1\r\n{}{}\r\n0\r\n\r\n"),
            ("a size with a blank", b"2 \r\nxx\r\n0\r\n\r\n"),
            ("a line that ends with LF", b"2\n{}\n0\n\n"),
            ("an endless extension", &[&b"2;"[..], &b"x".repeat(1 << 20)].concat()),
            ("endless trailers", &[&b"2\r\n{}\r\n0\r\n"[..], &b"X: y\r\n".repeat(100_000)].concat()),
        ] {
            let request = check(http, "Transfer-Encoding: chunked\r\n", body);
            expect(http, label, &request, &[400, 413, 431]);
        }
    });
}

#[test]
fn request_inside_another_is_not_executed() {
    under_attack(|world, service| {
        let http = &service.http;
        let inner = check(http, "Content-Length: 13\r\n", b"{\"config\":{}}");
        let behind = |bytes: &[u8]| [bytes, &inner].concat();
        let both = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n";
        let get = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
        for (label, request, statuses) in [
            ("pipelined", behind(get), &[200][..]),
            (
                "behind a GET with a length",
                behind(b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
                &[200, 400],
            ),
            ("behind a rejected request", behind(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"), &[401, 404]),
            (
                "behind an unread body",
                behind(b"POST /check HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"),
                &[401],
            ),
            ("CL and TE", check(http, both, &[b"0\r\n\r\n", &inner[..]].concat()), &[400]),
            ("two lengths", check(http, "Content-Length: 2\r\nContent-Length: 6\r\n", &behind(b"{}")), &[400]),
            ("TE: xchunked", check(http, "Transfer-Encoding: xchunked\r\n", &behind(b"0\r\n\r\n")), &[400, 501]),
            (
                "TE: chunked, identity",
                check(http, "Transfer-Encoding: chunked, identity\r\n", &behind(b"0\r\n\r\n")),
                &[400, 501],
            ),
            (
                "TE twice",
                check(http, "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", &behind(b"0\r\n\r\n")),
                &[400, 501],
            ),
            ("behind chunks", check(http, "Transfer-Encoding: chunked\r\n", &behind(b"2\r\n{}\r\n0\r\n\r\n")), &[400]),
        ] {
            expect(http, label, &request, statuses);
        }
        // The service would create the Pod of an inner request before it handles this one.
        assert_eq!(http.get("/tasks?syncId=none").status, 200);
        world.place.assert_empty();
        let (pods, checks) = (world.place.pods().len(), world.schema.count("source_check"));
        assert_eq!((pods, checks), (0, 0), "a request inside another one was executed");
    });
}

#[test]
fn two_thousand_invalid_tokens_are_rejected_and_not_repeated() {
    under_attack(|_, service| {
        let valid = service.http.token.clone().expect("the service has a token");
        let invalid = unique("invalid-");
        let guessers: Vec<_> = (0..8)
            .map(|guesser| {
                let (http, invalid, valid) = (service.http.clone(), invalid.clone(), valid.clone());
                std::thread::spawn(move || {
                    for number in 0..250 {
                        let token = match number % 4 {
                            0 => format!("{valid}x"),
                            1 => valid[..valid.len() - 1].to_owned(),
                            2 => format!("{invalid}{}", "x".repeat(4096)),
                            _ => format!("{invalid}{guesser}-{number}"),
                        };
                        // The declared body is never sent: the head is enough to reject the request.
                        let request = check(&http.token(Some(&token)), "Content-Length: 1000000\r\n", b"");
                        let response = expect(&http, "an invalid token", &request, &[401]);
                        let scheme = response.header("www-authenticate").unwrap_or_default();
                        assert!(scheme.starts_with("Bearer"), "{response:?}");
                        assert!(
                            !response.text().contains(&invalid) && !response.text().contains(&valid),
                            "{response:?}"
                        );
                    }
                })
            })
            .collect();
        for guesser in guessers {
            guesser.join().expect("each is rejected");
        }
        let http = &service.http;
        for (label, header) in [
            ("none", String::new()),
            ("empty", "Authorization: Bearer \r\n".to_owned()),
            ("another scheme", format!("Authorization: Basic {valid}\r\n")),
            ("no scheme", format!("Authorization: {valid}\r\n")),
            ("with a suffix", format!("Authorization: Bearer {valid} x\r\n")),
            ("in another header", format!("X-Authorization: Bearer {valid}\r\n")),
        ] {
            let request = format!("GET /openapi.json HTTP/1.1\r\nHost: x\r\n{header}\r\n");
            expect(http, label, request.as_bytes(), &[401]);
        }
        let twice = format!("Authorization: Bearer {valid}\r\nAuthorization: Bearer {invalid}\r\n");
        let request = format!("GET /openapi.json HTTP/1.1\r\nHost: x\r\n{twice}\r\n");
        expect(http, "two tokens", request.as_bytes(), &[400, 401]);
    });
}
