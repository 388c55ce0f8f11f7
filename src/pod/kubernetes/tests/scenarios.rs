//! What an API server does rarely: a scripted server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kube::api::ListParams;
use serde_json::{Value, json};

use super::support::{DEADLINE, connect, launch, plain_kubeconfig};
use crate::pod::kubernetes::Cluster;
use crate::pod::kubernetes::watch::{Change, changes};
use crate::pod::{ApiServer, Coordination, Launcher, Ownership, PodError};

/// One request: method and path without its query.
type Request = (String, String);
/// The answer to the n-th request of its kind: status, and the object.
type Scenario = Box<dyn Fn(&Request, usize, Value) -> (u16, Value) + Send + Sync>;

/// Answers from its scenario and records the requests.
struct Server {
    requests: Arc<Mutex<Vec<Request>>>,
    cluster: Cluster,
}

impl Server {
    fn start(scenario: impl Fn(&Request, usize, Value) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let scenario: Arc<Scenario> = Arc::new(Box::new(scenario));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (log, scenario) = (log.clone(), scenario.clone());
                thread::spawn(move || serve(client, &log, &scenario));
            }
        });
        Self { requests, cluster: connect(plain_kubeconfig(port), "ns").expect("a client") }
    }

    fn count(&self, method: &str, path: &str) -> usize {
        let requests = self.requests.lock().expect("no thread panics with it");
        requests.iter().filter(|(m, p)| m == method && p.contains(path)).count()
    }
}

/// Serves one connection until it ends.
fn serve(mut client: TcpStream, log: &Mutex<Vec<Request>>, scenario: &Scenario) {
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
        let request = (words.next().expect("a method"), words.next().expect("a path"));
        let nth = {
            let mut log = log.lock().expect("no thread panics with it");
            log.push(request.clone());
            log.iter().filter(|before| **before == request).count()
        };
        let (status, answer) = scenario(&request, nth, serde_json::from_slice(&body).unwrap_or_default());
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

/// The answer to a create.
fn created(mut object: Value) -> (u16, Value) {
    object["metadata"]["uid"] = json!("uid-1");
    (201, object)
}

#[test]
fn a_launch_survives_repeated_429_answers() {
    let server = Server::start(|(method, path), nth, object| match method.as_str() {
        "post" if nth <= 3 => status(429, "too many requests, please try again later"),
        "post" => created(object),
        _ => status(404, path),
    });
    let started = Instant::now();
    let pod = launch(&server.cluster, "storm", Ownership::Later).expect("a launch");
    assert_eq!(pod.uid, "uid-1");
    assert_eq!((server.count("post", "/secrets"), server.count("post", "/pods")), (4, 4));
    // Six times not before `Retry-After` allows it.
    assert!(started.elapsed() >= Duration::from_secs(6));
    assert_eq!(server.cluster.failed_calls(), 0);
}

#[test]
fn a_repeated_create_distinguishes_its_own_pod_from_another_one() {
    for own in [true, false] {
        let stored = Mutex::new(Value::Null);
        let server = Server::start(move |(method, path), nth, object| {
            match (method.as_str(), path.contains("/pods")) {
                // Stored, although the answer is an error.
                ("post", true) if nth == 1 => {
                    *stored.lock().expect("no thread panics with it") = created(object).1;
                    status(503, "etcdserver: leader changed")
                }
                ("post", true) => status(409, "it exists"),
                ("post", false) => created(object),
                ("get", true) if own => (200, stored.lock().expect("no thread panics with it").clone()),
                ("get", true) => (200, json!({"metadata": {"name": "p", "uid": "other"}})),
                _ => status(404, path),
            }
        });
        match launch(&server.cluster, "mine", Ownership::Later) {
            Ok(pod) => assert_eq!((own, pod.uid.as_str()), (true, "uid-1")),
            Err(error) => assert!(!own && matches!(error, PodError::Exists { .. }), "{error}"),
        }
        assert_eq!((server.count("post", "/pods"), server.count("delete", "/pods")), (2, 0));
    }
}

#[test]
fn rights_are_examined_and_a_refused_question_counts_as_granted() {
    let review = |lacking: &'static [&'static str]| {
        move |(method, path): &Request, _, mut object: Value| {
            let attributes = &object["spec"]["resourceAttributes"];
            let right = format!("{} {}", attributes["verb"].as_str()?, attributes["resource"].as_str()?);
            let is_review = method == "post" && path.ends_with("/selfsubjectaccessreviews");
            let is_of_namespace = attributes["namespace"] == "ns";
            object["status"] = json!({"allowed": !lacking.contains(&right.as_str())});
            (is_review && is_of_namespace).then_some((201, object))
        }
    };
    let server = |lacking| {
        let review = review(lacking);
        Server::start(move |request, nth, object| {
            review(request, nth, object).unwrap_or_else(|| status(500, &request.1))
        })
    };
    assert_eq!(server(&[]).cluster.examine_rights().expect("rights"), Vec::<String>::new());
    let poor = server(&["list events", "update leases", "get secrets", "patch secrets"]);
    let lines = poor.cluster.examine_rights().expect("the essential rights");
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines[0].starts_with("no right to update leases in namespace ns: "), "{lines:?}");
    // None of these asks the server.
    assert_eq!(poor.cluster.warnings("p"), Vec::<String>::new());
    let id = poor.cluster.installation_id().expect("an id");
    assert_eq!(server(&["get secrets"]).cluster.examine_rights().expect("patch is enough"), Vec::<String>::new());
    assert_eq!(server(&["get leases"]).cluster.examine_rights().map(|lines| lines.len()).ok(), Some(1));
    assert!(!id.is_empty() && poor.cluster.failed_calls() == 0);
    let error = server(&["delete pods", "create secrets"]).cluster.examine_rights().expect_err("no task can run");
    let is_named = error.to_string().ends_with("lack the rights delete pods, create secrets");
    assert!(matches!(error, PodError::Forbidden { .. }) && is_named, "{error}");
    let silent = Server::start(|_, _, _| status(403, "no questions"));
    assert_eq!(silent.cluster.examine_rights().expect("unknown rights"), Vec::<String>::new());
}

#[test]
fn a_server_that_answers_429_until_the_deadline_is_unreachable() {
    let server = Server::start(|_, _, _| status(429, "too many requests"));
    let error = server.cluster.check_reachable().expect_err("it refuses");
    assert!(matches!(error, PodError::Unreachable { .. }), "{error}");
    assert_eq!(server.cluster.failed_calls(), 1);
    assert!(server.count("get", "/pods") >= 2);
}

#[test]
fn a_secret_that_was_replaced_meanwhile_is_kept() {
    let server = Server::start(|(_, path), _, options| match options["preconditions"]["uid"].as_str() {
        Some("old") => status(409, "the UID in the precondition is not that of the object"),
        Some("new") => (200, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})),
        _ => status(500, path),
    });
    for uid in ["old", "new"] {
        let deleted = server.cluster.runtime.block_on(server.cluster.api.delete_secret("p-config", Some(uid)));
        assert!(deleted.is_ok(), "{uid}");
    }
    assert_eq!(server.count("delete", "/secrets"), 2);
}

#[test]
fn an_expired_version_ends_the_changes() {
    let forgotten = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired", "code": 410,
        "message": "too old resource version: 1 (5)",
    });
    let event = json!({"type": "ERROR", "object": forgotten});
    for (label, status, answer) in [("as an event", 200, event), ("as the answer", 410, forgotten)] {
        let server = Server::start(move |_, _, _| (status, answer.clone()));
        let api = server.cluster.api.clone();
        let last = server.cluster.runtime.block_on(async {
            let mut changes = changes(api, &ListParams::default(), 1);
            tokio::time::timeout(DEADLINE, changes.next()).await
        });
        assert!(matches!(last, Ok(Some(Change::Expired))), "{label}");
        assert_eq!(server.count("get", "/pods"), 1, "{label}");
    }
}
