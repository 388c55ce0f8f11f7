//! `syncctl serve` as a process, and a small HTTP client that speaks to it; also in bytes that no client would send.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::{Done, Program, Running, World, program, unique};

/// No answer of the service takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// From the start of the process to an answer of any kind.
const START: Duration = Duration::from_secs(10);
/// From then to the first complete list of Pods.
const READY: Duration = Duration::from_secs(30);

/// What the service has answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads an answer; the error names what is missing.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut headers);
        let told = || String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
        let length = match head.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Err(format!("no complete answer: {:?}", told())),
            Err(error) => return Err(format!("no HTTP: {error}: {:?}", told())),
        };
        // Only the last answer is one.
        if head.code.is_some_and(|code| code < 200) {
            return Self::parse(&bytes[length..]);
        }
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let headers: Vec<_> =
            head.headers.iter().map(|header| (header.name.to_lowercase(), text(header.value))).collect();
        let mut answer =
            Self { status: head.code.expect("the head is complete"), headers, body: bytes[length..].to_vec() };
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = unchunk(&answer.body)?;
        } else if let Some(declared) = answer.header("content-length") {
            let declared: usize = declared.parse().map_err(|_| format!("Content-Length {declared:?}"))?;
            if answer.body.len() < declared {
                return Err(format!("{} of {declared} bytes of the body", answer.body.len()));
            }
            answer.body.truncate(declared);
        }
        Ok(answer)
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
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON: {error}: {self:?}"))
    }
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let Ok(httparse::Status::Complete((start, size))) = httparse::parse_chunk_size(rest) else {
            return Err("a chunk without its size".to_owned());
        };
        let size = usize::try_from(size).map_err(|_| "a chunk of impossible size".to_owned())?;
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(rest.get(start..start + size).ok_or("a chunk that is cut off")?);
        rest = rest.get(start + size + 2..).ok_or("a chunk without its end")?;
    }
}

/// A client of one service. Each request has a connection of its own.
#[derive(Clone)]
pub struct Http {
    pub address: SocketAddr,
    /// Sent as `Authorization: Bearer …`.
    pub token: Option<String>,
    /// For a request as a whole.
    pub limit: Duration,
}

impl Http {
    /// Without a token.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, token: None, limit: PATIENCE }
    }

    /// With this token, or none.
    pub fn token(&self, token: Option<&str>) -> Self {
        Self { token: token.map(str::to_owned), ..self.clone() }
    }

    /// With another time limit.
    pub fn limit(&self, limit: Duration) -> Self {
        Self { limit, ..self.clone() }
    }

    /// A connection on which nothing was sent yet.
    pub fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.address, self.limit)?;
        stream.set_read_timeout(Some(self.limit))?;
        stream.set_write_timeout(Some(self.limit))?;
        Ok(stream)
    }

    /// Sends bytes and reads until the service closes the connection; what came until the time limit otherwise.
    pub fn raw(&self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = self.connect()?;
        // A service that has already refused does not read the rest: its answer is there all the same.
        let written = stream.write_all(bytes);
        let answer = read_to_close(&mut stream, Instant::now() + self.limit);
        if answer.is_empty() {
            written?;
        }
        Ok(answer)
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
    ) -> Result<Answer, String> {
        let answer = self.raw(&self.bytes(method, target, headers, body));
        Answer::parse(&answer.map_err(|error| format!("{method} {target}: {error}"))?)
            .map_err(|error| format!("{method} {target}: {error}"))
    }

    /// The same; it has to be answered.
    #[track_caller]
    pub fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_send(method, target, headers, body).unwrap_or_else(|error| panic!("{error}"))
    }

    /// GET.
    #[track_caller]
    pub fn get(&self, target: &str) -> Answer {
        self.send("GET", target, &[], &[])
    }

    /// POST of a JSON document.
    #[track_caller]
    pub fn post(&self, target: &str, body: &Value) -> Answer {
        self.send("POST", target, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }
}

/// The endpoints: each call's status and document.
impl Http {
    /// A request with a query: status and document.
    #[track_caller]
    pub fn call(&self, path: &str, query: &[(&str, &str)], body: Option<&Value>) -> (u16, Value) {
        let target = target(path, query);
        let answer = body.map_or_else(|| self.get(&target), |body| self.post(&target, body));
        (answer.status, answer.json())
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

/// Whatever comes until the other side closes or resets, or the time is over.
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

/// `syncctl serve` of one world. Killed with it.
pub struct Service {
    /// Speaks to it, with its token.
    pub http: Http,
    program: Program,
    running: Option<Running>,
    /// The stderr of its earlier lives.
    said: String,
}

impl Service {
    /// Starts it, on a free port, with a token, and waits until it is ready.
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

    /// Everything but the start.
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
        Self { http, program: settings(program), running: None, said: String::new() }
    }

    /// Starts the process and waits for nothing. After an end it is the same service: settings, token and port.
    pub fn launch(&mut self) {
        assert!(self.running.is_none(), "the service runs already");
        self.running = Some(self.program.start());
    }

    /// Waits until it takes requests.
    #[track_caller]
    pub fn wait_healthy(&mut self) {
        self.wait_for("/health", START);
    }

    /// Waits until it can do what is asked of it.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        self.wait_healthy();
        self.wait_for("/ready", READY);
    }

    #[track_caller]
    fn wait_for(&mut self, path: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        let http = self.http.token(None).limit(Duration::from_secs(5));
        loop {
            let answer = http.try_send("GET", path, &[], &[]);
            if answer.as_ref().is_ok_and(|answer| answer.status == 200) {
                return;
            }
            let ended = self.running.as_mut().is_none_or(Running::has_ended);
            if ended || Instant::now() >= deadline {
                let why = if ended { "it has ended".to_owned() } else { format!("{answer:?}") };
                let said = self.end(Signal::KILL).map(|done| done.to_string()).unwrap_or_default();
                panic!("no good answer of {path} within {} s: {why}\n{said}", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("the service runs").pid()
    }

    /// A line of `/proc/PID/status` in bytes: VmRSS is what it uses now, VmHWM the most that it ever used.
    pub fn memory(&self, line: &str) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&path).expect("the service runs");
        let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
        let number = found.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or_else(|| panic!("no {line} in {status}")) * 1024
    }

    /// Ends it with a signal and waits for that; `None` when it does not run.
    fn end(&mut self, signal: Signal) -> Option<Done> {
        let running = self.running.take()?;
        running.signal(signal);
        let done = running.wait();
        self.said.push_str(&done.stderr);
        Some(done)
    }

    /// TERM, and what came of it.
    pub fn stop(&mut self) -> Done {
        self.end(Signal::TERM).expect("the service runs")
    }
}

impl Service {
    /// kill -9. Nothing of it is left but what is in the cluster and in the database.
    pub fn kill(&mut self) -> Done {
        self.end(Signal::KILL).expect("the service runs")
    }

    /// Starts it again on the same port, and waits until it is ready.
    pub fn start_again(&mut self) {
        self.launch();
        self.wait_ready();
    }

    /// The stderr of all its lives that have ended.
    pub fn stderr(&self) -> &str {
        &self.said
    }
}

impl std::ops::Deref for Service {
    type Target = Http;

    fn deref(&self) -> &Http {
        &self.http
    }
}

impl Drop for Service {
    /// A failed test is told what the service said.
    fn drop(&mut self) {
        self.end(Signal::KILL);
        if std::thread::panicking() {
            program::print_line(&format!("--- stderr of the service\n{}", self.said));
        }
    }
}

/// The parameters that name an image: `PACKAGE:VERSION`.
fn package(image: &str) -> [(&str, &str); 2] {
    let (package, version) = image.rsplit_once(':').expect("an image with a version");
    [("package", package), ("version", version)]
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

#[test]
fn an_answer_is_read_whatever_its_framing() {
    for (label, bytes, expected) in [
        ("length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", Ok((200, "{}"))),
        (
            "chunks",
            "HTTP/1.1 400 X\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x\r\n}\r\n0\r\n\r\n",
            Ok((400, "{}")),
        ),
        ("until the end", "HTTP/1.0 503 X\r\n\r\nno", Ok((503, "no"))),
        ("behind a 100", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n", Ok((413, ""))),
        ("a body that is cut off", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", Err("2 of 3 bytes of the body")),
        ("a chunk that is cut off", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}", Err("cut off")),
        ("half a head", "HTTP/1.1 200 OK\r\nContent-", Err("no complete answer")),
        ("silence", "", Err("no complete answer")),
        ("no HTTP", "SSH-2.0-x\r\n\r\n", Err("no HTTP")),
    ] {
        let found = Answer::parse(bytes.as_bytes());
        match (&found, expected) {
            (Ok(answer), Ok((status, body))) => {
                assert_eq!((answer.status, answer.text().as_str()), (status, body), "{label}");
            }
            (Err(error), Err(part)) => assert!(error.contains(part), "{label}: {error}"),
            _ => panic!("{label}: {found:?}"),
        }
    }
}
