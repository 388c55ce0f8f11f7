//! A Bulker that does what a test says, connection by connection, and remembers what it heard.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::airbyte::message::{Record, StreamName};
use crate::sidecar::sink::bulker::BulkerSink;
use crate::sidecar::sink::bulker::config::Settings;
use crate::sidecar::sink::bulker::request::Limits;
use crate::sidecar::sink::{Generation, Sink, SinkError, StreamIndex, StreamSpec, WriteMode};

pub const TOKEN: &str = "t0ken-t0ken";

/// Short enough for a test that fails, long enough for a busy machine.
pub const LIMITS: Limits = Limits {
    patience: Duration::from_secs(10),
    stall: Duration::from_secs(10),
    answer: Duration::from_secs(10),
    idle: Duration::from_secs(10),
    open: Duration::from_mins(1),
};

/// What the server does with one connection.
#[derive(Debug, Clone)]
pub enum Does {
    /// Takes all rows, and answers as Bulker does.
    Load,
    /// Takes all rows, and answers this.
    Answer(u16, Value),
    /// Answers this as soon as it has heard the head and some of the body, and reads on.
    Early(u16, Value),
    /// Hangs up when it has heard so many bytes of the body.
    HangUp(usize),
    /// Takes all rows, and hangs up without an answer.
    HangUpAfterEnd,
    /// Hears the head, and nothing more.
    Freeze(Duration),
}

/// One request as it was heard.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: Vec<(String, String)>,
    pub lines: Vec<String>,
    /// The end of the body was heard, so that the rows count.
    pub complete: bool,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.query.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }

    /// Table, mode and rows, and whether they count.
    pub fn summary(&self) -> String {
        let end = if self.complete { "" } else { " …" };
        format!("{} {}: {}{end}", self.all("tableName")[0], self.all("mode")[0], self.lines.join(" "))
    }
}

/// The server; it must have been called.
pub struct Fake {
    pub port: u16,
    seen: Arc<Mutex<Vec<Arc<Mutex<Seen>>>>>,
}

impl Fake {
    /// Does this with the first connections, and [`Does::Load`] with all others.
    pub fn start(script: &[Does]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        Self::on(listener, script)
    }

    pub fn on(listener: TcpListener, script: &[Does]) -> Self {
        Self::with_tls(listener, script, None)
    }

    /// With a TLS configuration it speaks nothing else.
    pub fn with_tls(listener: TcpListener, script: &[Does], tls: Option<Arc<ServerConfig>>) -> Self {
        let port = listener.local_addr().expect("an address").port();
        let mut script: VecDeque<Does> = script.iter().cloned().collect();
        let seen: Arc<Mutex<Vec<Arc<Mutex<Seen>>>>> = Arc::default();
        let all = Arc::clone(&seen);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let does = script.pop_front().unwrap_or(Does::Load);
                let one: Arc<Mutex<Seen>> = Arc::default();
                all.lock().expect("no panic").push(Arc::clone(&one));
                let (client, tls) = (client.expect("a connection"), tls.clone());
                std::thread::spawn(move || match tls {
                    None => serve(client, &does, &one),
                    Some(tls) => {
                        let connection = ServerConnection::new(tls).expect("a connection");
                        serve(StreamOwned::new(connection, client), &does, &one);
                    }
                });
            }
        });
        Self { port, seen }
    }

    pub fn sink(&self, limits: Limits) -> BulkerSink {
        sink_at(self.port, limits)
    }

    /// All requests so far, after those that are under way had a moment to come to an end.
    pub fn seen(&self) -> Vec<Seen> {
        let all = self.seen.lock().expect("no panic").clone();
        assert!(!all.is_empty(), "it was never called");
        // The thread of a connection lets go of its record when it is over.
        for one in &all {
            for _ in 0..500 {
                if Arc::strong_count(one) <= 2 {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        all.iter().map(|one| one.lock().expect("no panic").clone()).collect()
    }

    pub fn summaries(&self) -> Vec<String> {
        self.seen().iter().map(Seen::summary).collect()
    }

    pub fn calls(&self) -> usize {
        self.seen.lock().expect("no panic").len()
    }
}

/// A sink for a server that listens here, or does not.
pub fn sink_at(port: u16, limits: Limits) -> BulkerSink {
    let config = json!({"url": format!("http://127.0.0.1:{port}/to"), "authToken": TOKEN});
    BulkerSink::new(&Settings::parse(&config).expect("settings"), "sync", "task", limits).expect("a sink")
}

fn serve(client: impl Read + Write, does: &Does, seen: &Mutex<Seen>) {
    let mut from = BufReader::new(client);
    let Some((method, target)) = head(&mut from, seen) else { return };
    let url = url::Url::parse(&format!("http://x{target}")).expect("a target");
    {
        let mut seen = seen.lock().expect("no panic");
        (seen.method, seen.path) = (method, url.path().to_owned());
        seen.query = url.query_pairs().into_owned().collect();
    }
    match does {
        Does::Early(status, body) => {
            from.fill_buf().expect("some of the body");
            answer(from.get_mut(), *status, body);
            take(&mut from, usize::MAX, seen);
        }
        Does::HangUp(bytes) => {
            take(&mut from, *bytes, seen);
        }
        Does::Freeze(time) => std::thread::sleep(*time),
        Does::Load | Does::Answer(..) | Does::HangUpAfterEnd => {
            if !take(&mut from, usize::MAX, seen) {
                return;
            }
            let rows = seen.lock().expect("no panic").lines.len();
            let state = json!({"status": "COMPLETED", "processedRows": rows, "successfulRows": rows});
            match does {
                Does::Answer(status, body) => answer(from.get_mut(), *status, body),
                Does::HangUpAfterEnd => {}
                _ if rows == 0 => answer(from.get_mut(), 200, &json!({"message": "ok"})),
                _ => answer(from.get_mut(), 200, &json!({"message": "ok", "state": state})),
            }
        }
    }
}

fn head(from: &mut impl BufRead, seen: &Mutex<Seen>) -> Option<(String, String)> {
    let mut line = String::new();
    from.read_line(&mut line).ok()?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    loop {
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        let Some((key, value)) = line.trim_end().split_once(": ") else { return Some((method, target)) };
        seen.lock().expect("no panic").headers.push((key.to_owned(), value.to_owned()));
    }
}

/// Reads the body, chunk by chunk; returns whether its end came.
fn take(from: &mut impl BufRead, most: usize, seen: &Mutex<Seen>) -> bool {
    let (mut body, mut told) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).unwrap_or_default() == 0 {
            return false;
        }
        let length = usize::from_str_radix(line.trim_end(), 16).expect("a chunk's length");
        let wanted = length.min(most - body.len());
        if from.take(wanted as u64).read_to_end(&mut body).unwrap_or_default() < wanted || wanted < length {
            return false;
        }
        from.read_line(&mut String::new()).expect("the end of a chunk");
        let end = body.iter().rposition(|byte| *byte == b'\n').map_or(told, |at| at + 1).max(told);
        let lines: Vec<String> = body[told..end].split_inclusive(|byte| *byte == b'\n').map(text).collect();
        told = end;
        let mut seen = seen.lock().expect("no panic");
        seen.lines.extend(lines);
        if length == 0 {
            assert_eq!(told, body.len(), "the last line has no end");
            seen.complete = true;
            return true;
        }
    }
}

fn text(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\n").expect("it was cut there");
    String::from_utf8(line.to_vec()).expect("text")
}

fn answer(client: &mut impl Write, status: u16, body: &Value) {
    let body = body.to_string();
    let head =
        format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    // Who has gone does not want to hear it.
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
        generation: Generation::default(),
    }
}

pub fn write(sink: &mut BulkerSink, stream: StreamIndex, data: &str) -> Result<(), SinkError> {
    let record = Record {
        stream: Cow::Borrowed("s"),
        namespace: None,
        data: Cow::Borrowed(data),
        emitted_at: Some(1_700_000_000_000),
    };
    sink.write(stream, &record)
}

/// Rows `{"id":N}`, that must be taken.
pub fn rows(sink: &mut BulkerSink, stream: StreamIndex, ids: std::ops::RangeInclusive<u32>) {
    for id in ids {
        write(sink, stream, &format!(r#"{{"id":{id}}}"#)).expect("a row");
    }
}
