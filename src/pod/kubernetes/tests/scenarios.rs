//! What the API server does seldom: a server on the wire that answers as a scenario says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::{connect, launch, plain_kubeconfig};
use crate::pod::kubernetes::Cluster;
use crate::pod::kubernetes::changes::{Change, Changes};
use crate::pod::{Ownership, PodError, Pods};

/// One request: method and path without its query.
type Asked = (String, String);
/// The answer to the n-th request of its kind: status, and the object.
type Scenario = Box<dyn Fn(&Asked, usize, Value) -> (u16, Value) + Send + Sync>;

/// Answers as its scenario says, and keeps what it was asked.
struct Server {
    asked: Arc<Mutex<Vec<Asked>>>,
    cluster: Cluster,
}

impl Server {
    fn start(scenario: impl Fn(&Asked, usize, Value) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let scenario: Arc<Scenario> = Arc::new(Box::new(scenario));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (log, scenario) = (log.clone(), scenario.clone());
                thread::spawn(move || serve(client, &log, &scenario));
            }
        });
        Self { asked, cluster: connect(plain_kubeconfig(port), "ns").expect("a client") }
    }

    fn asked(&self, method: &str, path: &str) -> usize {
        let asked = self.asked.lock().expect("no thread panics with it");
        asked.iter().filter(|(m, p)| m == method && p.contains(path)).count()
    }
}

/// Serves one connection until it ends.
fn serve(mut client: TcpStream, log: &Mutex<Vec<Asked>>, scenario: &Scenario) {
    let mut lines = BufReader::new(client.try_clone().expect("a copy"));
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line == "\r\n" {
                break;
            }
            head.push(line.to_lowercase());
        }
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        lines.read_exact(&mut body).expect("the body");
        let mut words = head[0].split([' ', '?']).map(str::to_owned);
        let asked = (words.next().expect("a method"), words.next().expect("a path"));
        let nth = {
            let mut log = log.lock().expect("no thread panics with it");
            log.push(asked.clone());
            log.iter().filter(|before| **before == asked).count()
        };
        let (status, answer) = scenario(&asked, nth, serde_json::from_slice(&body).unwrap_or_default());
        let answer = answer.to_string();
        let retry = if status == 429 { "Retry-After: 1\r\n" } else { "" };
        let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{retry}");
        write!(client, "{head}Content-Length: {}\r\n\r\n{answer}", answer.len()).ok();
    }
}

fn status(code: u16, message: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code,
    });
    (code, status)
}

/// What a create answers with.
fn made(mut object: Value) -> (u16, Value) {
    object["metadata"]["uid"] = json!("uid-1");
    (201, object)
}

#[test]
fn a_launch_survives_a_short_storm_of_too_many_requests() {
    let server = Server::start(|(method, path), nth, object| match method.as_str() {
        "post" if nth <= 3 => status(429, "too many requests, please try again later"),
        "post" => made(object),
        _ => status(404, path),
    });
    let started = Instant::now();
    let (_, launched) = launch(&server.cluster, "storm", Ownership::Later).expect("a launch");
    let took = started.elapsed();
    assert_eq!(launched.uid, "uid-1");
    assert_eq!((server.asked("post", "/secrets"), server.asked("post", "/pods")), (4, 4));
    // Not before the server has said that it may be asked again, six times.
    assert!((Duration::from_secs(6)..Duration::from_secs(20)).contains(&took), "{took:?}");
    assert_eq!(server.cluster.troubles(), 0);
}

#[test]
fn a_create_that_was_sent_again_tells_its_own_pod_from_somebody_elses() {
    for own in [true, false] {
        let stored = Mutex::new(Value::Null);
        let server = Server::start(move |(method, path), nth, object| {
            match (method.as_str(), path.contains("/pods")) {
                // It was stored, and the answer went wrong.
                ("post", true) if nth == 1 => {
                    *stored.lock().expect("no thread panics with it") = made(object).1;
                    status(503, "etcdserver: leader changed")
                }
                ("post", true) => status(409, "it exists"),
                ("post", false) => made(object),
                ("get", true) if own => (200, stored.lock().expect("no thread panics with it").clone()),
                ("get", true) => (200, json!({"metadata": {"name": "p", "uid": "other"}})),
                _ => status(404, path),
            }
        });
        match launch(&server.cluster, "mine", Ownership::Later) {
            Ok((_, launched)) => assert_eq!((own, launched.uid.as_str()), (true, "uid-1")),
            Err(error) => assert!(!own && matches!(error, PodError::Exists { .. }), "{error}"),
        }
        assert_eq!((server.asked("post", "/pods"), server.asked("delete", "/pods")), (2, 0));
    }
}

#[test]
fn a_server_that_has_no_time_is_a_trouble_at_the_deadline() {
    let server = Server::start(|_, _, _| status(429, "too many requests"));
    let started = Instant::now();
    let error = server.cluster.reachable().expect_err("it refuses");
    assert!(matches!(error, PodError::Unreachable { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(3));
    assert_eq!(server.cluster.troubles(), 1);
    assert!(server.asked("get", "/pods") >= 2);
}

#[test]
fn a_secret_that_is_another_one_by_now_stays() {
    let server = Server::start(|(_, path), _, options| match options["preconditions"]["uid"].as_str() {
        Some("old") => status(409, "the UID in the precondition is not that of the object"),
        Some("new") => (200, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})),
        _ => status(500, path),
    });
    for uid in ["old", "new"] {
        assert!(server.cluster.delete_secret_uid("s", uid).is_ok(), "{uid}");
    }
    assert_eq!(server.asked("delete", "/secrets"), 2);
}

#[test]
fn a_version_that_the_api_server_has_forgotten_ends_the_changes() {
    let forgotten = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired", "code": 410,
        "message": "too old resource version: 1 (5)",
    });
    let event = json!({"type": "ERROR", "object": forgotten});
    for (label, status, answer) in [("as an event", 200, event), ("as the answer", 410, forgotten)] {
        let server = Server::start(move |_, _, _| (status, answer.clone()));
        let api = server.cluster.api.clone();
        let last = server.cluster.runtime.block_on(async {
            let mut changes = Changes::start(api, 1);
            tokio::time::timeout(Duration::from_secs(10), changes.next()).await
        });
        assert!(matches!(last, Ok(Change::Expired)), "{label}");
        assert_eq!(server.asked("get", "/pods"), 1, "{label}");
    }
}
