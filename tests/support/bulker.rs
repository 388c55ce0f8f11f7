//! A fake Bulker that Pods can reach. It holds tables in memory, by the rules of the real one.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::World;

/// The accepted token.
pub const TOKEN: &str = "bulker-t0ken-of-the-test";

/// A finished request.
#[derive(Debug, Clone)]
pub struct Call {
    /// Path and query.
    pub target: String,
    /// By name in lower case.
    pub headers: HashMap<String, String>,
    pub rows: usize,
    /// The status of the response; 0 for an incomplete request.
    pub status: u16,
}

#[derive(Default)]
struct State {
    tables: BTreeMap<String, Vec<Value>>,
    calls: Vec<Call>,
    /// How many requests to interrupt within their body.
    interruptions: u32,
}

/// The server.
pub struct Bulker {
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl Bulker {
    /// Interrupts the first requests within their body.
    pub fn start(world: &World, interruptions: u32) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(Mutex::new(State { interruptions, ..State::default() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, shared) = (client.expect("a connection"), Arc::clone(&shared));
                std::thread::spawn(move || serve(&client, &shared));
            }
        });
        Self { url: format!("http://{}:{port}", world.setup.pod_host), state }
    }

    /// The finished requests; at least one.
    #[track_caller]
    pub fn calls(&self) -> Vec<Call> {
        let calls = lock(&self.state).calls.clone();
        assert!(!calls.is_empty(), "no requests");
        calls
    }

    /// The ids in a table, in order.
    pub fn ids(&self, table: &str) -> Option<Vec<u64>> {
        let id = |row: &Value| row["id"].as_u64().expect("an id");
        lock(&self.state).tables.get(table).map(|rows| rows.iter().map(id).collect())
    }

    /// All rows, as text.
    pub fn text(&self) -> String {
        format!("{:?}", lock(&self.state).tables)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(client: &TcpStream, state: &Mutex<State>) {
    let mut from = BufReader::new(client);
    let mut line = || {
        let mut line = String::new();
        from.read_line(&mut line).expect("a head");
        line.trim_end().to_owned()
    };
    let first = line();
    assert!(first.starts_with("POST /bulk/") && first.ends_with(" HTTP/1.1"), "{first}");
    let target = first.split(' ').nth(1).expect("a target").to_owned();
    let pairs = std::iter::from_fn(|| {
        let line = line();
        line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()))
    });
    let headers: HashMap<String, String> = pairs.collect();
    let allowed = headers.get("authorization").is_some_and(|value| *value == format!("Bearer {TOKEN}"));
    let is_interrupted = {
        let mut state = lock(state);
        let is_interrupted = state.interruptions > 0;
        state.interruptions = state.interruptions.saturating_sub(1);
        is_interrupted
    };
    let body = if is_interrupted {
        from.take(100).read_to_end(&mut Vec::new()).ok();
        None
    } else {
        body(&mut from)
    };
    let lines: Vec<&[u8]> = body.as_deref().unwrap_or_default().split_inclusive(|byte| *byte == b'\n').collect();
    let aborted = lines.iter().any(|line| line.starts_with(b"ABORT"));
    let (status, answer) = match (&body, allowed) {
        (None, _) => (0, Value::Null),
        (_, false) => {
            let given = headers.get("authorization").map(String::as_str).unwrap_or_default();
            (401, json!({"error": format!("invalid auth token: {given}")}))
        }
        _ if aborted => (400, json!({"error": "aborted: ABORT"})),
        _ => (200, load(&mut lock(state).tables, &target, &lines)),
    };
    let rows = lines.len() - usize::from(aborted);
    lock(state).calls.push(Call { target, headers, rows, status });
    if status > 0 {
        let body = answer.to_string();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
        // The client may have closed the connection.
        let mut client = client;
        client.write_all(format!("{head}{body}").as_bytes()).ok();
    }
}

/// A chunked body; `None` if it is incomplete.
fn body(from: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        let length = u64::from_str_radix(line.trim_end(), 16).ok()?;
        if from.take(length).read_to_end(&mut body).ok()? as u64 != length {
            return None;
        }
        from.read_line(&mut line).ok()?;
        if length == 0 {
            return Some(body);
        }
    }
}

/// Loads the rows of a complete request, and returns the response.
fn load(tables: &mut BTreeMap<String, Vec<Value>>, target: &str, lines: &[&[u8]]) -> Value {
    if lines.is_empty() {
        return json!({"message": "ok"});
    }
    let url = url::Url::parse(&format!("http://x{target}")).expect("a target");
    let get = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    let keyed = get("pk").is_some();
    let table = tables.entry(get("tableName").expect("a table")).or_default();
    if get("mode").is_none_or(|mode| mode == "replace_table") {
        table.clear();
    }
    for line in lines {
        assert!(line.len() < 1 << 20, "a line of {} bytes", line.len());
        let row: Value = serde_json::from_slice(line).expect("a row");
        table.retain(|other| !keyed || other["id"] != row["id"]);
        table.push(row);
    }
    let rows = lines.len();
    json!({"message": "ok", "state": {"status": "COMPLETED", "processedRows": rows, "successfulRows": rows}})
}
