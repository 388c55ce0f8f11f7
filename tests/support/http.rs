//! `syncctl serve` as a process, and a small HTTP client for it, which can also send arbitrary bytes.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType};
use rustix::process::Signal;
use serde_json::Value;

use super::{Done, Program, Running, World, program, unique};

/// A test that waits longer for the service hangs.
pub const DEADLINE: Duration = Duration::from_mins(2);

/// A response of the service.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// Parses a response; the error names what is missing.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut headers);
        let start = || String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
        let length = match head.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Err(format!("incomplete response: {:?}", start())),
            Err(error) => return Err(format!("not HTTP: {error}: {:?}", start())),
        };
        // An interim response.
        if head.code.is_some_and(|code| code < 200) {
            return Self::parse(&bytes[length..]);
        }
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let headers: Vec<_> =
            head.headers.iter().map(|header| (header.name.to_lowercase(), text(header.value))).collect();
        let mut response =
            Self { status: head.code.expect("the head is complete"), headers, body: bytes[length..].to_vec() };
        if response.header("transfer-encoding") == Some("chunked") {
            response.body = unchunk(&response.body)?;
        } else if let Some(declared) = response.header("content-length") {
            let declared: usize = declared.parse().map_err(|_| format!("Content-Length {declared:?}"))?;
            if response.body.len() < declared {
                return Err(format!("{} of {declared} bytes of the body", response.body.len()));
            }
            response.body.truncate(declared);
        }
        Ok(response)
    }

    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON: {error}: {self:?}"))
    }
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let Ok(httparse::Status::Complete((start, size))) = httparse::parse_chunk_size(rest) else {
            return Err("a chunk without a size".to_owned());
        };
        let size = usize::try_from(size).map_err(|_| "an oversized chunk".to_owned())?;
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(rest.get(start..start + size).ok_or("a truncated chunk")?);
        rest = rest.get(start + size + 2..).ok_or("a chunk without an end")?;
    }
}

/// A client of one service. Each request uses a new connection.
#[derive(Clone)]
pub struct Http {
    pub address: SocketAddr,
    /// Sent as `Authorization: Bearer …`.
    pub token: Option<String>,
    /// For a whole request.
    pub limit: Duration,
    /// The address of the client: one of this machine.
    pub source: Option<Ipv4Addr>,
}

impl Http {
    /// Without a token.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, token: None, limit: DEADLINE, source: None }
    }

    /// With this token, or none.
    pub fn token(&self, token: Option<&str>) -> Self {
        Self { token: token.map(str::to_owned), ..self.clone() }
    }

    /// With another time limit.
    pub fn limit(&self, limit: Duration) -> Self {
        Self { limit, ..self.clone() }
    }

    /// From 127.0.0.`number`.
    pub fn with_source(&self, number: u8) -> Self {
        Self { source: Some(Ipv4Addr::new(127, 0, 0, number)), ..self.clone() }
    }

    /// A new connection.
    pub fn connect(&self) -> io::Result<TcpStream> {
        let stream = if let Some(source) = self.source {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
            rustix::net::bind(&socket, &SocketAddr::from((source, 0)))?;
            rustix::net::connect(&socket, &self.address)?;
            TcpStream::from(socket)
        } else {
            TcpStream::connect_timeout(&self.address, self.limit)?
        };
        stream.set_read_timeout(Some(self.limit))?;
        stream.set_write_timeout(Some(self.limit))?;
        Ok(stream)
    }

    /// Sends bytes and reads until the service closes the connection, at most until the time limit.
    pub fn raw(&self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = self.connect()?;
        // A service that has rejected the request need not read the rest.
        let written = stream.write_all(bytes);
        let response = read_to_close(&mut stream, Instant::now() + self.limit);
        if response.is_empty() {
            written?;
        }
        Ok(response)
    }

    /// The bytes of a request.
    pub fn bytes(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut lines = vec![format!("{method} {target} HTTP/1.1"), format!("Host: {}", self.address)];
        lines.extend(self.token.iter().map(|token| format!("Authorization: Bearer {token}")));
        lines.extend(headers.iter().map(|(name, value)| format!("{name}: {value}")));
        if !body.is_empty() || method == "POST" {
            lines.push(format!("Content-Length: {}", body.len()));
        }
        let head = lines.join("\r\n") + "\r\n\r\n";
        [head.as_bytes(), body].concat()
    }

    /// A request of any kind.
    pub fn try_send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, String> {
        let response = self.raw(&self.bytes(method, target, headers, body));
        Response::parse(&response.map_err(|error| format!("{method} {target}: {error}"))?)
            .map_err(|error| format!("{method} {target}: {error}"))
    }

    /// The same; fails without a response.
    #[track_caller]
    pub fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.try_send(method, target, headers, body).unwrap_or_else(|error| panic!("{error}"))
    }

    /// GET.
    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        self.send("GET", target, &[], &[])
    }

    /// POST of a JSON document.
    #[track_caller]
    pub fn post(&self, target: &str, body: &Value) -> Response {
        self.send("POST", target, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }
}

/// The endpoints; each call returns status and document.
impl Http {
    /// A request with a query: status and document.
    #[track_caller]
    pub fn call(&self, path: &str, query: &[(&str, &str)], body: Option<&Value>) -> (u16, Value) {
        let target = target(path, query);
        let response = body.map_or_else(|| self.get(&target), |body| self.post(&target, body));
        (response.status, response.json())
    }

    /// GET /spec of `PACKAGE:VERSION`.
    #[track_caller]
    pub fn spec(&self, image: &str) -> (u16, Value) {
        self.call("/spec", &package(image), None)
    }

    /// POST /check.
    #[track_caller]
    pub fn check(&self, image: &str, key: &str, config: &Value) -> (u16, Value) {
        let query = [&package(image)[..], &[("storageKey", key)]].concat();
        self.call("/check", &query, Some(&serde_json::json!({"config": config})))
    }

    /// POST /discover.
    #[track_caller]
    pub fn discover(&self, image: &str, key: &str, config: &Value) -> (u16, Value) {
        let query = [&package(image)[..], &[("storageKey", key)]].concat();
        self.call("/discover", &query, Some(&serde_json::json!({"config": config})))
    }

    /// POST /read: `body` has config, catalog, state and destinationConfig.
    #[track_caller]
    pub fn read(&self, image: &str, sync: &str, task: &str, body: &Value) -> (u16, Value) {
        let query = [&package(image)[..], &[("syncId", sync), ("taskId", task)]].concat();
        self.call("/read", &query, Some(body))
    }

    /// GET /cancel of a read.
    #[track_caller]
    pub fn cancel(&self, image: &str, sync: &str, task: &str) -> (u16, Value) {
        let [package, _] = package(image);
        self.call("/cancel", &[package, ("syncId", sync), ("taskId", task)], None)
    }
}

/// All bytes until the other side closes or resets the connection, at most until the deadline.
pub fn read_to_close(stream: &mut TcpStream, deadline: Instant) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            return all;
        }
        match stream.read(&mut buffer) {
            Ok(0) => return all,
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return all,
        }
    }
}

/// A path with a query.
pub fn target(path: &str, query: &[(&str, &str)]) -> String {
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    format!("{path}?{query}")
}

/// `syncctl serve` of one world; killed when dropped.
pub struct Service {
    /// A client with its token.
    pub http: Http,
    program: Program,
    running: Option<Running>,
    /// The stderr of its earlier processes.
    earlier_stderr: String,
}

impl Service {
    /// Starts it on a free port, with a token, and waits until it is ready.
    pub fn start(world: &World) -> Self {
        Self::start_with(world, |program| program)
    }

    /// The same with other settings.
    pub fn start_with(world: &World, settings: impl FnOnce(Program) -> Program) -> Self {
        let mut service = Self::prepare(world, settings);
        service.launch();
        service.wait_ready();
        service
    }

    /// Everything except the start.
    pub fn prepare(world: &World, settings: impl FnOnce(Program) -> Program) -> Self {
        let port = free_port();
        let token = unique("token-");
        let program = world
            .syncctl(&["serve"])
            .env("SYNCCTL_HTTP_HOST", "127.0.0.1")
            .env("SYNCCTL_HTTP_PORT", &port.to_string())
            .env("SYNCCTL_AUTH_TOKENS", &token)
            .env("SYNCCTL_INSTANCE_ID", &unique("instance-"))
            .env("SYNCCTL_KUBERNETES_NAMESPACE", world.place.name());
        let http = Http::new(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).token(Some(&token));
        Self { http, program: settings(program), running: None, earlier_stderr: String::new() }
    }

    /// Starts the process without waiting; again with the same settings, token and port.
    pub fn launch(&mut self) {
        assert!(self.running.is_none(), "the service runs already");
        self.running = Some(self.program.start());
    }

    /// Waits until it responds.
    #[track_caller]
    pub fn wait_healthy(&mut self) {
        self.wait_for("/health");
    }

    /// Waits until it is ready.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        self.wait_healthy();
        self.wait_for("/ready");
    }

    #[track_caller]
    fn wait_for(&mut self, path: &str) {
        let deadline = Instant::now() + DEADLINE;
        let http = self.http.token(None).limit(Duration::from_secs(5));
        loop {
            let response = http.try_send("GET", path, &[], &[]);
            if response.as_ref().is_ok_and(|response| response.status == 200) {
                return;
            }
            let ended = self.running.as_mut().is_none_or(Running::has_ended);
            if ended || Instant::now() >= deadline {
                let why = if ended { "the service has ended".to_owned() } else { format!("{response:?}") };
                let output = self.end(Signal::KILL).map(|done| done.to_string()).unwrap_or_default();
                panic!("GET {path}: {why}\n{output}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("the service is running").pid()
    }

    /// A value of `/proc/PID/status` in bytes: VmRSS is the current memory, VmHWM its maximum.
    pub fn memory(&self, line: &str) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&path).expect("the service is running");
        let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
        let number = found.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or_else(|| panic!("no {line} in {status}")) * 1024
    }

    /// Ends it with a signal and waits for its end; `None` if it is not running.
    fn end(&mut self, signal: Signal) -> Option<Done> {
        let running = self.running.take()?;
        running.signal(signal);
        let done = running.wait();
        self.earlier_stderr.push_str(&done.stderr);
        Some(done)
    }

    /// Sends TERM and waits for the end.
    pub fn stop(&mut self) -> Done {
        self.end(Signal::TERM).expect("the service is running")
    }
}

impl Service {
    /// Sends KILL and waits for the end.
    pub fn kill(&mut self) -> Done {
        self.end(Signal::KILL).expect("the service is running")
    }

    /// Starts it again on the same port and waits until it is ready.
    pub fn start_again(&mut self) {
        self.launch();
        self.wait_ready();
    }

    /// The stderr of all its processes that have ended.
    pub fn stderr(&self) -> &str {
        &self.earlier_stderr
    }
}

impl std::ops::Deref for Service {
    type Target = Http;

    fn deref(&self) -> &Http {
        &self.http
    }
}

impl Drop for Service {
    /// Prints the log of the service when the test has failed.
    fn drop(&mut self) {
        self.end(Signal::KILL);
        if std::thread::panicking() {
            program::print_line(&format!("--- stderr of the service\n{}", self.earlier_stderr));
        }
    }
}

/// The parameters of an image `PACKAGE:VERSION`.
fn package(image: &str) -> [(&str, &str); 2] {
    let (package, version) = image.rsplit_once(':').expect("an image with a version");
    [("package", package), ("version", version)]
}

/// A free port.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

#[test]
fn responses_of_all_framings_are_parsed() {
    for (label, bytes, expected) in [
        ("length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", Ok((200, "{}"))),
        (
            "chunks",
            "HTTP/1.1 400 X\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x\r\n}\r\n0\r\n\r\n",
            Ok((400, "{}")),
        ),
        ("until the end", "HTTP/1.0 503 X\r\n\r\nno", Ok((503, "no"))),
        ("behind a 100", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n", Ok((413, ""))),
        ("a truncated body", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", Err("2 of 3 bytes of the body")),
        ("a truncated chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}", Err("truncated")),
        ("a truncated head", "HTTP/1.1 200 OK\r\nContent-", Err("incomplete response")),
        ("nothing", "", Err("incomplete response")),
        ("not HTTP", "SSH-2.0-x\r\n\r\n", Err("not HTTP")),
    ] {
        let found = Response::parse(bytes.as_bytes());
        match (&found, expected) {
            (Ok(response), Ok((status, body))) => {
                assert_eq!((response.status, response.text().as_str()), (status, body), "{label}");
            }
            (Err(error), Err(part)) => assert!(error.contains(part), "{label}: {error}"),
            _ => panic!("{label}: {found:?}"),
        }
    }
}
