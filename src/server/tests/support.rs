//! A service that does what its path says, and a client that sends any bytes.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::auth::{self, Tokens};
use crate::server::guard::{Guard, Limits};
use crate::server::service::{Exchange, Head, Pool, Request, Response, Service};

/// No answer of a test takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// One answer as it was recorded: method, path, status.
pub type Record = (Option<String>, Option<String>, u16);

/// Its paths: `/health` (light), `/echo`, `/panic`, `/panic-in-admit`, `/wait` (until released), `/large`, `/header`,
/// `/empty`; any other is answered with what has arrived.
/// All but `/health` and `/open` need the token `good`.
pub struct TestService {
    tokens: Tokens,
    pub handled: AtomicUsize,
    pub waiting: AtomicUsize,
    pub records: Mutex<Vec<Record>>,
    released: Mutex<bool>,
    release: Condvar,
}

impl Service for TestService {
    fn admit(&self, head: &Head) -> Result<Pool, Response> {
        assert!(head.peer.ip().is_loopback());
        match head.target.path.as_str() {
            "/health" => return Ok(Pool::Fast),
            "/panic-in-admit" => panic!("a test wants it"),
            "/open" => {}
            _ if self.tokens.accept(head.header("authorization")) => {}
            _ => return Err(auth::refusal()),
        }
        if head.target.path == "/nothing" {
            return Err(Response::error(404, "no such path"));
        }
        Ok(Pool::Blocking)
    }

    fn handle(&self, request: Request) -> Response {
        self.handled.fetch_add(1, Ordering::SeqCst);
        match request.target.path.as_str() {
            "/health" => Response::json(200, &json!({"status": "pass"})),
            "/panic" => panic!("a test wants it"),
            "/wait" => {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                let released = self.released.lock().expect("no panic");
                let waited = self.release.wait_timeout_while(released, PATIENCE, |released| !*released);
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
    /// Lets all handlers of `/wait` go on.
    pub fn release(&self) {
        *self.released.lock().expect("no panic") = true;
        self.release.notify_all();
    }

    /// Waits until so many handlers are in `/wait`.
    pub fn wait_for_waiting(&self, count: usize) {
        wait_until(&format!("{count} requests in work"), || self.waiting.load(Ordering::SeqCst) >= count);
    }
}

/// A running server.
pub struct World {
    pub server: Guard,
    pub service: Arc<TestService>,
    pub address: SocketAddr,
    pub listener: TcpListener,
    pub failed: Mutex<Receiver<std::io::Error>>,
}

impl World {
    pub fn new(limits: Limits) -> Self {
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
        let (tell, failed) = mpsc::channel();
        let theirs = listener.try_clone().expect("a socket");
        let ours = Arc::clone(&service) as Arc<dyn Service>;
        let server = Guard::start(theirs, limits, ours, move |error| tell.send(error).unwrap_or_default());
        let server = server.expect("a server");
        let address = server.address();
        Self { server, service, address, listener, failed: Mutex::new(failed) }
    }

    /// Opens a connection.
    pub fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        Client { stream, before: Vec::new() }
    }

    /// Sends bytes over a connection of their own and reads the answer.
    pub fn ask(&self, bytes: impl AsRef<[u8]>) -> Reply {
        let mut client = self.connect();
        client.send(bytes);
        client.reply()
    }

    /// A request that is fine.
    pub fn get(&self, path: &str) -> Reply {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n"))
    }

    /// Asserts that the server is well, and answers at once.
    #[track_caller]
    pub fn is_well(&self) {
        let started = Instant::now();
        assert_eq!(self.get("/health").status, 200);
        assert!(started.elapsed() < Duration::from_secs(1), "it took {:?}", started.elapsed());
        assert_eq!(self.get("/echo").status, 200);
    }
}

/// The head of a request with the token.
pub fn post(path: &str, headers: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n{headers}\r\n")
}

/// A connection.
pub struct Client {
    pub stream: TcpStream,
    before: Vec<u8>,
}

impl Client {
    /// Sends bytes; a server that has answered already need not take them.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).ok();
    }

    /// Waits for these very bytes.
    #[track_caller]
    pub fn expect(&mut self, bytes: &[u8]) {
        let mut found = vec![0; bytes.len()];
        self.stream.read_exact(&mut found).expect("bytes");
        assert_eq!(found.escape_ascii().to_string(), bytes.escape_ascii().to_string());
    }

    /// Reads until the server ends the connection. A reset is no answer.
    #[track_caller]
    pub fn reply(&mut self) -> Reply {
        let mut bytes = std::mem::take(&mut self.before);
        self.stream.read_to_end(&mut bytes).expect("an answer and an end");
        Reply::parse(&bytes)
    }

    /// Whether the server has ended the connection without a word.
    pub fn is_ended(&mut self) -> bool {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).is_ok() && bytes.is_empty()
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// What came after the body.
    pub rest: Vec<u8>,
}

impl Reply {
    #[track_caller]
    fn parse(bytes: &[u8]) -> Self {
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
            assert!(headers.insert(name.to_ascii_lowercase(), value.to_owned()).is_none(), "{name} is there twice");
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

    /// Asserts a refusal in the form that all callers understand, and nothing after it.
    #[track_caller]
    pub fn refuses(&self, status: u16, label: &str) {
        assert_eq!(self.status, status, "{label}: {self:?}");
        assert_eq!(self.headers["content-type"], "application/json", "{label}");
        let document = self.json();
        assert_eq!(document["ok"], false, "{label}");
        assert!(document["error"].as_str().is_some_and(|text| !text.is_empty()), "{label}: {document}");
        assert_eq!(self.rest, b"", "{label}");
    }
}

/// Waits for something that comes soon.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "still waiting for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Limits with little of everything that costs memory or threads.
pub fn small() -> Limits {
    Limits { blocking_threads: 4, fast_threads: 1, body_bytes: 1 << 20, total_body_bytes: 1 << 20, ..Limits::default() }
}
