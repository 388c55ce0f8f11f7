//! What nobody polite would send to `syncctl serve`. Meanwhile it answers others, and afterwards it is as it was.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::support::http::{Answer, read_to_close};
use super::support::{Http, Service, World, eventually, unique};

/// The service's word: others are answered within this.
const PROMPT: Duration = Duration::from_secs(1);
/// The service gives a head, and a pause in a body, this long.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// What this machine may need beyond it.
const SLACK: Duration = Duration::from_secs(8);
/// What the service may use once it is calm again.
const MEMORY_AFTER: u64 = 100 << 20;
/// What it may use at its worst: the limit of the container in `deploy/`.
const MEMORY_EVER: u64 = 256 << 20;
/// The largest body.
const BODY_LIMIT: usize = 32 << 20;

/// Asks for `/health` all the time.
struct Pulse {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(u32, Duration)>>,
}

impl Pulse {
    fn start(service: &Service) -> Self {
        let (stop, http) = (Arc::new(AtomicBool::new(false)), service.http.token(None));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let (mut beats, mut worst) = (0, Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    // In the middle of a flood a prober may be told to try again, and has its answer then.
                    loop {
                        let answer = http.get("/health");
                        if answer.status == 200 {
                            break;
                        }
                        assert_eq!(answer.status, 503, "{}", answer.text());
                        assert!(begin.elapsed() < PROMPT, "nothing but 503 for {:?}", begin.elapsed());
                    }
                    worst = worst.max(begin.elapsed());
                    beats += 1;
                    std::thread::sleep(Duration::from_millis(50));
                }
                (beats, worst)
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// Asserts that each beat was in time.
    fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is joined once");
        let (beats, worst) = thread.join().expect("every /health is answered with 200");
        assert!(beats > 0, "nobody has asked for /health meanwhile");
        assert!(worst < PROMPT, "an answer of /health took {worst:?}");
        println!("{beats} x /health, the slowest {worst:?}");
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Until memory that was freed is not in use any more.
const CALM: Duration = Duration::from_secs(20);

/// Runs an attack: others are served meanwhile and afterwards, the memory is bounded, and no Pod was made.
fn under_attack(attack: impl FnOnce(&World, &Service)) {
    attacked(World::in_cluster(), attack);
}

fn attacked(world: Option<World>, attack: impl FnOnce(&World, &Service)) {
    let Some(world) = world else { return };
    let mut service = Service::start(&world);
    let pid = service.pid();
    let pulse = Pulse::start(&service);
    attack(&world, &service);
    pulse.finish();
    let ordinary = service.http.get("/tasks?syncId=nobody");
    assert_eq!(ordinary.status, 200, "{ordinary:?}");
    assert_eq!(service.http.token(None).get("/ready").status, 200);
    assert_eq!(service.pid(), pid);
    // What was freed goes back to the system within seconds.
    eventually("little memory in use", CALM, || (service.memory("VmRSS") < MEMORY_AFTER).then_some(()));
    let (now, most) = (service.memory("VmRSS"), service.memory("VmHWM"));
    println!("{} MiB now, {} MiB at most", now >> 20, most >> 20);
    assert!(most < MEMORY_EVER, "{} MiB were in use", most >> 20);
    world.place.assert_empty();
    let done = service.stop();
    done.code(0);
    assert!(!done.stderr.contains("panicked"), "{done}");
}

/// Both ends of a connection are files of this process or of its child.
fn allow_files(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(count), ..limit });
        raised.unwrap_or_else(|error| panic!("this test needs {count} open files (ulimit -n): {error}"));
    }
}

/// Sends it and asserts the status of the answer, which is the only one on its connection.
#[track_caller]
fn expect(http: &Http, label: &str, bytes: &[u8], statuses: &[u16]) -> Answer {
    let begin = Instant::now();
    let answer = http.raw(bytes).unwrap_or_else(|error| panic!("{label}: {error}"));
    let parsed = Answer::parse(&answer).unwrap_or_else(|error| panic!("{label}: {error}"));
    assert!(statuses.contains(&parsed.status), "{label}: not {statuses:?} but {parsed:?}");
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("it was parsed") + 4;
    let rest = answer.len() - head - parsed.body.len();
    assert_eq!(rest, 0, "{label}: more than one answer: {}", String::from_utf8_lossy(&answer));
    assert_eq!(parsed.header("connection").map(str::to_lowercase).as_deref(), Some("close"), "{label}: {parsed:?}");
    if parsed.status >= 400 {
        assert_eq!(parsed.json()["ok"], false, "{label}: {parsed:?}");
        assert!(parsed.json()["error"].is_string(), "{label}: {parsed:?}");
    }
    assert!(begin.elapsed() < HEAD_LIMIT, "{label}: the connection stayed open for {:?}", begin.elapsed());
    parsed
}

/// `POST /check` with these headers and this body; the token is right.
fn check(http: &Http, headers: &str, body: &[u8]) -> Vec<u8> {
    let token = http.token.as_deref().expect("the service has a token");
    let head = format!(
        "POST /check?package=syncctl-test/none&version=1&storageKey={} HTTP/1.1\r\nHost: x\r\n\
         Authorization: Bearer {token}\r\nContent-Type: application/json\r\n{headers}\r\n",
        unique("hostile-")
    );
    [head.as_bytes(), body].concat()
}

#[test]
fn slow_headers_on_200_connections_end_with_408_and_keep_nobody_waiting() {
    under_attack(|_, service| {
        let begin = Instant::now();
        let mut connections: Vec<TcpStream> = (0..200).map(|_| service.http.connect().expect("it listens")).collect();
        for stream in &mut connections {
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ").expect("it is open");
        }
        // One byte now and then is no sign of good will.
        while begin.elapsed() + Duration::from_secs(2) < HEAD_LIMIT {
            std::thread::sleep(Duration::from_secs(1));
            for stream in &mut connections {
                stream.write_all(b"x").expect("the time for a head is not over");
            }
        }
        for stream in &mut connections {
            let answer = read_to_close(stream, begin + HEAD_LIMIT + SLACK);
            let answer = Answer::parse(&answer).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(answer.status, 408, "{answer:?}");
        }
    });
}

#[test]
fn a_body_that_stops_in_the_middle_ends_with_408() {
    under_attack(|_, service| {
        let begin = Instant::now();
        let shapes = [
            ("length", check(&service.http, "Content-Length: 1000\r\n", b"{\"config\"")),
            ("chunked", check(&service.http, "Transfer-Encoding: chunked\r\n", b"9\r\n{\"config\"\r\n")),
            ("no byte at all", check(&service.http, "Content-Length: 1000\r\n", b"")),
        ];
        let mut connections = Vec::new();
        for (label, bytes) in shapes.iter().cycle().take(60) {
            let mut stream = service.http.connect().expect("it listens");
            stream.write_all(bytes).expect("it is open");
            connections.push((label, stream));
        }
        for (label, stream) in &mut connections {
            let answer = read_to_close(stream, begin + HEAD_LIMIT + SLACK);
            let answer = Answer::parse(&answer).unwrap_or_else(|error| panic!("{label}: {error}"));
            assert_eq!(answer.status, 408, "{label}: {answer:?}");
        }
    });
}

#[test]
fn five_thousand_idle_connections_keep_nobody_waiting() {
    allow_files(6000);
    // A second is what the network waits for a packet that is lost: what is measured is the service, not other tests.
    attacked(World::alone(), |_, service| {
        let mut connections = Vec::new();
        for number in 0..5000 {
            let stream = service.http.connect();
            connections.push(stream.unwrap_or_else(|error| panic!("connection {number}: {error}")));
        }
        std::thread::sleep(Duration::from_secs(2));
        // Those that had to go were told why; the others wait in peace.
        let (mut told, mut open) = (0, 0);
        for stream in &mut connections {
            stream.set_nonblocking(true).expect("a socket");
            let mut bytes = [0; 4096];
            match stream.read(&mut bytes) {
                Ok(0) => panic!("a connection was closed without a word"),
                Ok(count) => {
                    let answer = Answer::parse(&bytes[..count]).unwrap_or_else(|error| panic!("{error}"));
                    assert!([408, 503].contains(&answer.status), "{answer:?}");
                    told += 1;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => open += 1,
                Err(error) => panic!("{error}"),
            }
        }
        println!("{told} connections were refused, {open} are open");
        assert!(told > 0, "the service keeps all of them: nothing bounds what it holds");
        let ordinary = service.http.limit(PROMPT).get("/tasks?syncId=nobody");
        assert_eq!(ordinary.status, 200, "{ordinary:?}");
    });
}

#[test]
fn what_is_too_large_is_refused_with_its_status() {
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
        // No number of ours holds it.
        let request = check(http, "Content-Length: 99999999999999999999999999\r\n", b"");
        expect(http, "a Content-Length of 26 digits", &request, &[400, 413]);
    });
}

#[test]
fn a_chunked_body_is_cut_off_at_the_limit() {
    under_attack(|_, service| {
        let mut stream = service.http.connect().expect("it listens");
        stream.write_all(&check(&service.http, "Transfer-Encoding: chunked\r\n", b"")).expect("it is open");
        let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000)).into_bytes();
        // It may stop reading as soon as it has refused.
        let sent = (0..4 * BODY_LIMIT / 0x10000).take_while(|_| stream.write_all(&chunk).is_ok()).count() * 0x10000;
        let answer = read_to_close(&mut stream, Instant::now() + HEAD_LIMIT);
        assert!((BODY_LIMIT..4 * BODY_LIMIT).contains(&sent), "{sent} bytes were taken");
        let answer = Answer::parse(&answer).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(answer.status, 413, "{answer:?}");
        let large = check(&service.http, "Transfer-Encoding: chunked\r\n", b"2000001\r\n");
        expect(&service.http, "a chunk larger than the limit", &large, &[413]);
    });
}

#[test]
fn large_bodies_at_the_same_time_are_bounded_in_memory() {
    under_attack(|_, service| {
        // As large as allowed, and no JSON.
        let body = Arc::new(vec![b'x'; BODY_LIMIT - 1]);
        let senders: Vec<_> = (0..24)
            .map(|_| {
                let (http, body) = (service.http.clone(), Arc::clone(&body));
                std::thread::spawn(move || {
                    let request = check(&http, &format!("Content-Length: {}\r\n", body.len()), &body);
                    let answer = http.raw(&request).map_err(|error| error.to_string())?;
                    Answer::parse(&answer).map(|answer| answer.status)
                })
            })
            .collect();
        let mut refused = 0;
        for sender in senders {
            match sender.join().expect("a sender") {
                Ok(400) => refused += 1,
                // No room for it now.
                Ok(503) => {}
                other => panic!("{other:?}"),
            }
        }
        println!("{refused} of 24 bodies were read");
        assert!(refused > 0, "no body was read at all");
    });
}

#[test]
fn what_is_no_http_is_refused() {
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
            ("no ASCII in a header", [clear.as_bytes(), b"X: \xff\xfe\r\n\r\n"].concat(), &[400]),
            ("no ASCII in the path", "GET /h\u{e4}lth HTTP/1.1\r\nHost: x\r\n\r\n".as_bytes().to_vec(), &[400]),
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
fn chunked_garbage_is_refused() {
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
fn a_request_inside_another_is_never_seen() {
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
            ("behind a request that is refused", behind(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"), &[401, 404]),
            (
                "behind a body that is not read",
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
        // Accepting a task takes a moment.
        std::thread::sleep(Duration::from_secs(1));
        world.place.assert_empty();
        let (pods, checks) = (world.place.pods().len(), world.schema.count("source_check"));
        assert_eq!((pods, checks), (0, 0), "a request inside another one was executed");
    });
}

#[test]
fn two_thousand_wrong_tokens_are_refused_and_never_repeated() {
    under_attack(|_, service| {
        let right = service.http.token.clone().expect("the service has a token");
        let wrong = unique("wrong-");
        let guessers: Vec<_> = (0..8)
            .map(|guesser| {
                let (http, wrong, right) = (service.http.clone(), wrong.clone(), right.clone());
                std::thread::spawn(move || {
                    for number in 0..250 {
                        let token = match number % 4 {
                            0 => format!("{right}x"),
                            1 => right[..right.len() - 1].to_owned(),
                            2 => format!("{wrong}{}", "x".repeat(4096)),
                            _ => format!("{wrong}{guesser}-{number}"),
                        };
                        // The body is declared and never comes: the head is enough to refuse.
                        let request = check(&http.token(Some(&token)), "Content-Length: 1000000\r\n", b"");
                        let answer = expect(&http, "a wrong token", &request, &[401]);
                        let scheme = answer.header("www-authenticate").unwrap_or_default();
                        assert!(scheme.starts_with("Bearer"), "{answer:?}");
                        assert!(!answer.text().contains(&wrong) && !answer.text().contains(&right), "{answer:?}");
                    }
                })
            })
            .collect();
        for guesser in guessers {
            guesser.join().expect("each is refused");
        }
        let http = &service.http;
        for (label, header) in [
            ("none", String::new()),
            ("empty", "Authorization: Bearer \r\n".to_owned()),
            ("another scheme", format!("Authorization: Basic {right}\r\n")),
            ("no scheme", format!("Authorization: {right}\r\n")),
            ("with more behind it", format!("Authorization: Bearer {right} x\r\n")),
            ("in another header", format!("X-Authorization: Bearer {right}\r\n")),
        ] {
            let request = format!("GET /openapi.json HTTP/1.1\r\nHost: x\r\n{header}\r\n");
            expect(http, label, request.as_bytes(), &[401]);
        }
        let twice = format!("Authorization: Bearer {right}\r\nAuthorization: Bearer {wrong}\r\n");
        let request = format!("GET /openapi.json HTTP/1.1\r\nHost: x\r\n{twice}\r\n");
        expect(http, "two tokens", request.as_bytes(), &[400, 401]);
    });
}
