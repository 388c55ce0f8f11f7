//! A service whose behaviour depends on the path, and a client that sends arbitrary bytes.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType};
use serde_json::{Value, json};

use crate::server::auth::Tokens;
use crate::server::guard::{Guard, Limits};
use crate::server::service::{Action, Admission, Exchange, Head, Pool, Request, Response, Service};
use crate::server::tls::Tls;

/// A test that waits longer hangs.
pub const DEADLINE: Duration = Duration::from_mins(2);

/// A recorded response: method, path, status.
pub type Record = (Option<String>, Option<String>, u16);

/// Its paths: `/health` (answered from its head), `/fast` (fast pool, without a body), `/panic`, `/panic-in-admit`, `/wait` (until released), `/large`, `/header`, `/empty`;
/// `/certified` (with a client certificate); the response to any other path describes the request. All but `/health` require the token `good`.
pub struct TestService {
    tokens: Tokens,
    pub handled: AtomicUsize,
    pub waiting: AtomicUsize,
    pub records: Mutex<Vec<Record>>,
    released: Mutex<bool>,
    release: Condvar,
}

impl Service for TestService {
    fn admit(&self, head: &Head) -> Result<Admission, Response> {
        assert!(head.peer.ip().is_loopback());
        match head.target.path.as_str() {
            "/health" => {
                let response = Response::json(200, &json!({"status": "pass"}));
                return Ok(Admission { body_bytes: 0, action: Action::Respond(response) });
            }
            "/panic-in-admit" => panic!("requested by the test"),
            "/certified" if !head.has_certificate => return Err(Response::error(403, "no certificate")),
            _ => {}
        }
        let caller = self.tokens.identify(head.header("authorization")).map_err(|_| Response::unauthorized())?;
        let is_fast = head.target.path == "/fast";
        let (pool, body_bytes) = if is_fast { (Pool::Fast, 0) } else { (Pool::Blocking, usize::MAX) };
        let response_bytes = if head.target.path == "/large" { usize::MAX } else { 0 };
        Ok(Admission { body_bytes, action: Action::Handle { pool, response_bytes, caller } })
    }

    fn handle(&self, request: Request) -> Response {
        self.handled.fetch_add(1, Ordering::SeqCst);
        match request.target.path.as_str() {
            "/panic" => panic!("requested by the test"),
            "/wait" => {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                let released = self.released.lock().expect("no panic");
                let waited = self.release.wait_timeout_while(released, DEADLINE, |released| !*released);
                drop(waited.expect("no panic"));
                Response::json(200, &json!({"ok": true}))
            }
            "/large" => {
                let bytes = request.target.query.first().and_then(|(_, bytes)| bytes.parse().ok()).unwrap_or(300_000);
                Response { body: vec![b'x'; bytes], ..Response::json(200, &Value::Null) }
            }
            "/header" => Response::json(202, &json!({"ok": true}))
                .with_header("X-Fine", "1")
                .with_header("X-Broken", "a\r\nX-Injected: 1"),
            "/empty" => Response::json(204, &Value::Null),
            _ => Response::json(
                200,
                &json!({
                    "method": request.method,
                    "path": request.target.path,
                    "segments": request.target.segments,
                    "query": request.target.query,
                    "length": request.body.len(),
                    "sum": request.body.iter().map(|byte| u64::from(*byte)).sum::<u64>(),
                }),
            ),
        }
    }

    fn completed(&self, exchange: &Exchange<'_>) {
        let record = (exchange.method.map(str::to_owned), exchange.path.map(str::to_owned), exchange.status);
        self.records.lock().expect("no panic").push(record);
    }
}

impl TestService {
    /// Ends all handlers of `/wait`.
    pub fn release(&self) {
        *self.released.lock().expect("no panic") = true;
        self.release.notify_all();
    }

    /// Waits until this many handlers are in `/wait`.
    pub fn wait_for_waiting(&self, count: usize) {
        wait_until(&format!("{count} busy requests"), || self.waiting.load(Ordering::SeqCst) >= count);
    }
}

/// A running server and its service.
pub struct World {
    pub guard: Guard,
    pub service: Arc<TestService>,
    pub address: SocketAddr,
    pub listener: TcpListener,
    pub failed: Mutex<Receiver<std::io::Error>>,
    connections: AtomicUsize,
}

impl World {
    pub fn new(limits: Limits) -> Self {
        Self::with_tls(limits, None)
    }

    pub fn with_tls(limits: Limits, tls: Option<Arc<Tls>>) -> Self {
        let tokens = Tokens::parse(Some(&"good".into()), None, None).expect("tokens");
        let service = Arc::new(TestService {
            tokens,
            handled: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            records: Mutex::default(),
            released: Mutex::new(false),
            release: Condvar::new(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (failures, failed) = mpsc::channel();
        let clone = listener.try_clone().expect("a socket");
        let application = Arc::clone(&service) as Arc<dyn Service>;
        let guard =
            Guard::start(clone, tls, limits, application, move |error| failures.send(error).unwrap_or_default());
        let guard = guard.expect("a server");
        let address = guard.address();
        Self { guard, service, address, listener, failed: Mutex::new(failed), connections: AtomicUsize::new(0) }
    }

    /// Opens a connection, each from another address of this machine.
    pub fn connect(&self) -> Client {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        self.connect_from(u8::try_from(number % 200).expect("it is smaller") + 50)
    }

    /// Opens a connection from 127.0.0.`number`.
    pub fn connect_from(&self, number: u8) -> Client {
        let own = SocketAddr::from((Ipv4Addr::new(127, 0, 0, number), 0));
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        rustix::net::bind(&socket, &own).expect("an address");
        rustix::net::connect(&socket, &self.address).expect("a connection");
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
        Client { stream }
    }

    /// Sends bytes over a new connection and reads the response.
    pub fn send(&self, bytes: impl AsRef<[u8]>) -> Reply {
        let mut client = self.connect();
        client.send(bytes);
        client.reply()
    }

    /// A valid request.
    pub fn get(&self, path: &str) -> Reply {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n"))
    }

    /// Asserts that the guard and both pools respond.
    #[track_caller]
    pub fn assert_healthy(&self) {
        assert_eq!(self.get("/health").status, 200);
        assert_eq!(self.get("/fast").status, 200);
        assert_eq!(self.get("/echo").status, 200);
    }
}

/// The head of a POST request with the token.
pub fn post(path: &str, headers: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n{headers}\r\n")
}

/// A connection.
pub struct Client {
    pub stream: TcpStream,
}

impl Client {
    /// Sends bytes. A server that has responded already need not read them.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).ok();
    }

    /// Waits for exactly these bytes.
    #[track_caller]
    pub fn expect(&mut self, bytes: &[u8]) {
        let mut found = vec![0; bytes.len()];
        self.stream.read_exact(&mut found).expect("bytes");
        assert_eq!(found.escape_ascii().to_string(), bytes.escape_ascii().to_string());
    }

    /// Reads the response until the server closes the connection; fails on a reset.
    #[track_caller]
    pub fn reply(&mut self) -> Reply {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).expect("a response, then the end of the connection");
        Reply::parse(&bytes)
    }

    /// Waits until the server closes the connection; whether it has sent nothing.
    pub fn is_closed_without_response(&mut self) -> bool {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).is_ok() && bytes.is_empty()
    }
}

/// A response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// What follows the body.
    pub rest: Vec<u8>,
}

impl Reply {
    #[track_caller]
    pub fn parse(bytes: &[u8]) -> Self {
        let shown = || bytes.escape_ascii().to_string();
        let end = memchr::memmem::find(bytes, b"\r\n\r\n").unwrap_or_else(|| panic!("no head: {}", shown()));
        let head = std::str::from_utf8(&bytes[..end]).expect("text");
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status: {}", shown()));
        let mut headers = BTreeMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("no header: {line}"));
            assert!(headers.insert(name.to_ascii_lowercase(), value.to_owned()).is_none(), "{name} is repeated");
        }
        let length: usize = headers["content-length"].parse().expect("a length");
        let body = &bytes[end + 4..];
        let (body, rest) = body.split_at(length.min(body.len()));
        assert_eq!(headers["connection"], "close");
        assert_eq!(headers["server"], "syncctl");
        assert!(headers["date"].ends_with(" GMT"), "{headers:?}");
        Self { status, headers, body: body.to_vec(), rest: rest.to_vec() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts an error document, and nothing after it.
    #[track_caller]
    pub fn assert_error(&self, status: u16, label: &str) {
        assert_eq!(self.status, status, "{label}: {self:?}");
        assert_eq!(self.headers["content-type"], "application/json", "{label}");
        let document = self.json();
        assert_eq!(document["ok"], false, "{label}");
        assert!(document["error"].as_str().is_some_and(|text| !text.is_empty()), "{label}: {document}");
        assert_eq!(self.rest, b"", "{label}");
    }
}

/// Waits for a condition.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "still waiting for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Limits that need little memory and few threads.
pub fn small() -> Limits {
    Limits {
        blocking_threads: 4,
        fast_threads: 1,
        body_bytes: 1 << 20,
        response_bytes: 512 << 10,
        total_bytes: 2 << 20,
        ..Limits::default()
    }
}
