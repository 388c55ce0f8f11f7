//! A scripted Bulker: one behavior per connection. It records what it receives.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::airbyte::message::{Record, StreamName};
use crate::sidecar::sink::bulker::BulkerSink;
use crate::sidecar::sink::bulker::config::Settings;
use crate::sidecar::sink::bulker::request::Limits;
use crate::sidecar::sink::{Generation, Sink, SinkError, StreamIndex, StreamSpec, WriteMode};

pub const TOKEN: &str = "t0ken-t0ken";

/// Only reached when a test hangs.
pub const DEADLINE: Duration = Duration::from_mins(2);

pub const LIMITS: Limits = Limits {
    retry_timeout: DEADLINE,
    stall_timeout: DEADLINE,
    response_timeout: DEADLINE,
    idle: DEADLINE,
    open: DEADLINE,
};

/// What the server does on one connection.
#[derive(Debug, Clone)]
pub enum Behavior {
    /// Reads all rows, and responds like Bulker.
    Load,
    /// Reads all rows, and responds this.
    Respond(u16, Value),
    /// Responds this once it has read the head and a part of the body, and continues to read.
    RespondEarly(u16, Value),
    /// Closes the connection after this number of bytes of the body.
    Close(usize),
    /// Reads all rows, and closes the connection without a response.
    CloseAfterEnd,
    /// Reads the head, and nothing more.
    Stall,
}

/// One request as received.
#[derive(Debug, Clone, Default)]
pub struct ReceivedRequest {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: Vec<(String, String)>,
    pub lines: Vec<String>,
    /// The end of the body was received: the rows count.
    pub complete: bool,
}

impl ReceivedRequest {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.query.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }

    /// Table, mode and rows; incomplete requests end in `…`.
    pub fn summary(&self) -> String {
        let end = if self.complete { "" } else { " …" };
        format!("{} {}: {}{end}", self.all("tableName")[0], self.all("mode")[0], self.lines.join(" "))
    }
}

/// The server.
pub struct FakeServer {
    pub port: u16,
    requests: Arc<Mutex<Vec<Arc<Mutex<ReceivedRequest>>>>>,
}

impl FakeServer {
    /// Behaves like this on the first connections, and like [`Behavior::Load`] on all others.
    pub fn start(script: &[Behavior]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        Self::on(listener, script)
    }

    pub fn on(listener: TcpListener, script: &[Behavior]) -> Self {
        Self::with_tls(listener, script, None)
    }

    /// With a TLS configuration it accepts nothing else.
    pub fn with_tls(listener: TcpListener, script: &[Behavior], tls: Option<Arc<ServerConfig>>) -> Self {
        let port = listener.local_addr().expect("an address").port();
        let mut script: VecDeque<Behavior> = script.iter().cloned().collect();
        let requests: Arc<Mutex<Vec<Arc<Mutex<ReceivedRequest>>>>> = Arc::default();
        let all = Arc::clone(&requests);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let behavior = script.pop_front().unwrap_or(Behavior::Load);
                let request: Arc<Mutex<ReceivedRequest>> = Arc::default();
                all.lock().expect("no panic").push(Arc::clone(&request));
                let (client, tls) = (client.expect("a connection"), tls.clone());
                std::thread::spawn(move || match tls {
                    None => serve(client, &behavior, &request),
                    Some(tls) => {
                        let connection = ServerConnection::new(tls).expect("a connection");
                        serve(StreamOwned::new(connection, client), &behavior, &request);
                    }
                });
            }
        });
        Self { port, requests }
    }

    pub fn sink(&self, limits: Limits) -> BulkerSink {
        sink_at(self.port, limits)
    }

    /// All requests so far, once their connections are closed; at least one.
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        let all = self.requests.lock().expect("no panic").clone();
        assert!(!all.is_empty(), "no requests");
        // The thread of a connection drops its reference when it ends.
        for request in &all {
            let deadline = Instant::now() + DEADLINE;
            while Arc::strong_count(request) > 2 {
                assert!(Instant::now() < deadline, "an open connection");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        all.iter().map(|request| request.lock().expect("no panic").clone()).collect()
    }

    pub fn summaries(&self) -> Vec<String> {
        self.requests().iter().map(ReceivedRequest::summary).collect()
    }

    pub fn calls(&self) -> usize {
        self.requests.lock().expect("no panic").len()
    }
}

/// A sink for a server on this port.
pub fn sink_at(port: u16, limits: Limits) -> BulkerSink {
    let config = json!({"url": format!("http://127.0.0.1:{port}/to"), "authToken": TOKEN});
    BulkerSink::new(&Settings::parse(&config).expect("settings"), "sync", "task", limits).expect("a sink")
}

fn serve(client: impl Read + Write, behavior: &Behavior, request: &Mutex<ReceivedRequest>) {
    let mut from = BufReader::new(client);
    let Some((method, target)) = read_head(&mut from, request) else { return };
    let url = url::Url::parse(&format!("http://x{target}")).expect("a target");
    {
        let mut request = request.lock().expect("no panic");
        (request.method, request.path) = (method, url.path().to_owned());
        request.query = url.query_pairs().into_owned().collect();
    }
    match behavior {
        Behavior::RespondEarly(status, body) => {
            from.fill_buf().expect("a part of the body");
            respond(from.get_mut(), *status, body);
            read_body(&mut from, usize::MAX, request);
        }
        Behavior::Close(bytes) => {
            read_body(&mut from, *bytes, request);
        }
        Behavior::Stall => loop {
            std::thread::park();
        },
        Behavior::Load | Behavior::Respond(..) | Behavior::CloseAfterEnd => {
            if !read_body(&mut from, usize::MAX, request) {
                return;
            }
            let rows = request.lock().expect("no panic").lines.len();
            let state = json!({"status": "COMPLETED", "processedRows": rows, "successfulRows": rows});
            match behavior {
                Behavior::Respond(status, body) => respond(from.get_mut(), *status, body),
                Behavior::CloseAfterEnd => {}
                _ if rows == 0 => respond(from.get_mut(), 200, &json!({"message": "ok"})),
                _ => respond(from.get_mut(), 200, &json!({"message": "ok", "state": state})),
            }
        }
    }
}

fn read_head(from: &mut impl BufRead, request: &Mutex<ReceivedRequest>) -> Option<(String, String)> {
    let mut line = String::new();
    from.read_line(&mut line).ok()?;
    let mut parts = line.split(' ').map(str::to_owned);
    let (method, target) = (parts.next()?, parts.next()?);
    loop {
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        let Some((key, value)) = line.trim_end().split_once(": ") else { return Some((method, target)) };
        request.lock().expect("no panic").headers.push((key.to_owned(), value.to_owned()));
    }
}

/// Reads the body, chunk by chunk, up to a size. Returns whether it is complete.
fn read_body(from: &mut impl BufRead, limit: usize, request: &Mutex<ReceivedRequest>) -> bool {
    let (mut body, mut recorded) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).unwrap_or_default() == 0 {
            return false;
        }
        let length = usize::from_str_radix(line.trim_end(), 16).expect("a chunk's length");
        let wanted = length.min(limit - body.len());
        if from.take(wanted as u64).read_to_end(&mut body).unwrap_or_default() < wanted || wanted < length {
            return false;
        }
        from.read_line(&mut String::new()).expect("the end of a chunk");
        let end = body.iter().rposition(|byte| *byte == b'\n').map_or(recorded, |at| at + 1).max(recorded);
        let lines: Vec<String> = body[recorded..end].split_inclusive(|byte| *byte == b'\n').map(text).collect();
        recorded = end;
        let mut request = request.lock().expect("no panic");
        request.lines.extend(lines);
        if length == 0 {
            assert_eq!(recorded, body.len(), "the last line has no newline");
            request.complete = true;
            return true;
        }
    }
}

fn text(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\n").expect("a newline");
    String::from_utf8(line.to_vec()).expect("text")
}

fn respond(client: &mut impl Write, status: u16, body: &Value) {
    let body = body.to_string();
    let head =
        format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    // The client may have closed the connection.
    let _ = client.write_all(format!("{head}{body}").as_bytes()).and_then(|()| client.flush());
}

pub fn spec(name: &str, mode: WriteMode) -> StreamSpec {
    StreamSpec {
        name: StreamName::new(None, name),
        schema: None,
        table: name.to_owned(),
        json_schema: json!({"properties": {"id": {"type": "integer"}}}),
        mode,
        primary_key: if mode == WriteMode::Append { Vec::new() } else { vec![vec!["id".to_owned()]] },
        cursor: Vec::new(),
        to_same_case: false,
        add_meta: false,
        airbyte: crate::sidecar::sink::AirbyteSpec::default(),
        cdc_deletion: None,
        replaces_at_first_commit: false,
        generation: Generation::default(),
    }
}

pub fn write(sink: &mut BulkerSink, stream: StreamIndex, data: &str) -> Result<(), SinkError> {
    let record = Record {
        stream: Cow::Borrowed("s"),
        namespace: None,
        data: Cow::Borrowed(data),
        emitted_at: Some(1_700_000_000_000),
        meta: None,
        line_bytes: 20,
    };
    sink.write(stream, &record)
}

/// Writes rows `{"id":N}`.
pub fn rows(sink: &mut BulkerSink, stream: StreamIndex, ids: std::ops::RangeInclusive<u32>) {
    for id in ids {
        write(sink, stream, &format!(r#"{{"id":{id}}}"#)).expect("a row");
    }
}
