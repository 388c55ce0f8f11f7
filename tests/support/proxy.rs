//! A proxy between the service and the API server that holds the calls that a test names, so that the service can be
//! killed at an exact point of a task's lifecycle. It passes all other calls.
//!
//! `kubectl proxy` behind it adds TLS and the credentials of the shipped Role.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::World;

/// The limit of the head of a request, in bytes.
const MAX_HEAD_LENGTH: usize = 64 * 1024;
/// How long a call is held at most.
const MAX_HOLD: Duration = Duration::from_mins(2);

/// When a call is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before it reaches the API server, which never gets it.
    Before,
    /// After the API server has executed it; the caller never gets the answer.
    After,
}

/// The calls that are held.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub moment: Moment,
    pub method: &'static str,
    /// `pods`, `secrets`, `leases`.
    pub kind: &'static str,
}

struct Rule {
    call: Call,
    /// A part of the body of the call, or of the call that created its object.
    mark: String,
    reached: Sender<()>,
}

#[derive(Default)]
struct Shared {
    rules: Vec<Rule>,
    /// Names and bodies of created objects.
    created: Vec<(String, String)>,
    /// Held calls wait until these are dropped.
    held: Vec<Sender<()>>,
    ended: bool,
}

type Rules = Arc<Mutex<Shared>>;

fn lock(rules: &Rules) -> MutexGuard<'_, Shared> {
    rules.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Proxy {
    /// A kubeconfig with the address of the proxy.
    pub kubeconfig: String,
    address: SocketAddr,
    rules: Rules,
    kubectl: Child,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy with the permissions of the shipped Role in the namespace of a world.
    pub fn start(world: &World) -> Self {
        let (kubectl, upstream) = kubectl_proxy(&world.namespace().kubeconfig.display().to_string());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let rules = Rules::default();
        let accepting = std::thread::spawn({
            let rules = Arc::clone(&rules);
            move || accept(&listener, upstream, &rules)
        });
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": format!("http://{address}")}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "namespace": world.namespace().name}}],
        });
        let kubeconfig = world.json("proxy.json", &config);
        Self { kubeconfig, address, rules, kubectl, accepting: Some(accepting) }
    }

    /// Holds each such call on the object with this mark. The receiver gets a message for each.
    pub fn hold(&self, call: Call, mark: &str) -> Receiver<()> {
        let (reached, held) = mpsc::channel();
        lock(&self.rules).rules.push(Rule { call, mark: mark.to_owned(), reached });
        held
    }

    /// Removes all rules and ends the held calls without executing them.
    pub fn release(&self) {
        let mut shared = lock(&self.rules);
        shared.rules.clear();
        shared.held.clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.release();
        lock(&self.rules).ended = true;
        // Ends relayed calls, too.
        self.kubectl.kill().ok();
        self.kubectl.wait().ok();
        // Unblocks `accept`.
        TcpStream::connect(self.address).ok();
        if let Some(thread) = self.accepting.take() {
            thread.join().ok();
        }
    }
}

/// Starts `kubectl proxy` and returns its address.
fn kubectl_proxy(kubeconfig: &str) -> (Child, SocketAddr) {
    let mut child = Command::new("kubectl")
        .args(["proxy", "--port=0", "--address=127.0.0.1", "--kubeconfig", kubeconfig])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("kubectl is installed");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("kubectl prints the address");
    let address = line.trim().rsplit(' ').next().and_then(|address| address.parse().ok());
    (child, address.unwrap_or_else(|| panic!("kubectl proxy prints {line:?}")))
}

fn accept(listener: &TcpListener, upstream: SocketAddr, rules: &Rules) {
    for client in listener.incoming() {
        if lock(rules).ended {
            return;
        }
        let Ok(client) = client else { continue };
        let rules = Arc::clone(rules);
        std::thread::spawn(move || {
            // Fails when the caller is killed, which is what the tests do.
            serve(client, upstream, &rules).ok();
        });
    }
}

struct Request {
    method: String,
    path: String,
    head: String,
    body: Vec<u8>,
}

/// Serves the only request of a connection.
fn serve(mut client: TcpStream, upstream: SocketAddr, rules: &Rules) -> io::Result<()> {
    let Some(request) = read(&mut client)? else { return Ok(()) };
    let held = lock(rules).hold(&request);
    if let Some((Moment::Before, held)) = held {
        held.recv_timeout(MAX_HOLD).ok();
        return Ok(());
    }
    let mut server = TcpStream::connect(upstream)?;
    server.write_all(request.head.as_bytes())?;
    server.write_all(&request.body)?;
    if let Some((_, held)) = held {
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        // A repeated call fails and is not the one that the test waits for.
        if answer.starts_with(b"HTTP/1.1 2") {
            lock(rules).notify_executed(&request);
        }
        held.recv_timeout(MAX_HOLD).ok();
        return Ok(());
    }
    relay(client, server)
}

/// Copies the answer until either side ends: a watch lasts until its caller closes the connection.
fn relay(mut client: TcpStream, mut server: TcpStream) -> io::Result<()> {
    let (mut client_side, server_side) = (client.try_clone()?, server.try_clone()?);
    let watcher = std::thread::spawn(move || {
        // The request is complete, so the next event is the end of the connection.
        io::copy(&mut client_side, &mut io::sink()).ok();
        server_side.shutdown(Shutdown::Both).ok();
    });
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match server.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                if client.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
        }
    }
    client.shutdown(Shutdown::Both).ok();
    watcher.join().ok();
    Ok(())
}

impl Shared {
    /// The index of the rule that applies to a call.
    fn rule(&self, request: &Request) -> Option<usize> {
        let segments: Vec<&str> = request.path.split('?').next().unwrap_or_default().split('/').collect();
        let body = String::from_utf8_lossy(&request.body);
        self.rules.iter().position(|rule| {
            let Some(at) = segments.iter().position(|segment| *segment == rule.call.kind) else { return false };
            let of_object = segments.get(at + 1).is_some_and(|name| {
                self.created.iter().any(|(created, body)| created == name && body.contains(&rule.mark))
            });
            rule.call.method == request.method && (body.contains(&rule.mark) || of_object)
        })
    }

    /// The moment of a call that is to be held, and the receiver on which it waits.
    fn hold(&mut self, request: &Request) -> Option<(Moment, Receiver<()>)> {
        if request.method == "POST"
            && let Ok(object) = serde_json::from_slice::<Value>(&request.body)
            && let Some(name) = object["metadata"]["name"].as_str()
        {
            self.created.push((name.to_owned(), String::from_utf8_lossy(&request.body).into_owned()));
        }
        let rule = self.rule(request)?;
        let (holder, held) = mpsc::channel();
        self.held.push(holder);
        let Rule { call, reached, .. } = &self.rules[rule];
        if call.moment == Moment::Before {
            // Fails if the test has got an earlier call and no longer waits.
            reached.send(()).ok();
        }
        Some((call.moment, held))
    }

    /// Notifies the test that a call held for its answer was executed.
    fn notify_executed(&self, request: &Request) {
        if let Some(rule) = self.rule(request) {
            self.rules[rule].reached.send(()).ok();
        }
    }
}

/// Reads a request and makes it the last one of its connection. `None` if the connection ends before.
fn read(client: &mut TcpStream) -> io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = client.read(&mut buffer)?;
        if count == 0 {
            return Ok(None);
        }
        bytes.extend_from_slice(&buffer[..count]);
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Request::new(&mut headers);
        match head.parse(&bytes) {
            Ok(httparse::Status::Complete(length)) => {
                let (mut request, declared) = rewrite(&head);
                let mut body = bytes.split_off(length);
                let missing = declared.saturating_sub(body.len());
                client.take(missing as u64).read_to_end(&mut body)?;
                request.body = body;
                return Ok(Some(request));
            }
            Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD_LENGTH => {}
            other => panic!("the service sent invalid HTTP: {other:?}"),
        }
    }
}

/// The request without its body, and the length of the body.
fn rewrite(head: &httparse::Request<'_, '_>) -> (Request, usize) {
    let (method, path) = (head.method.unwrap_or_default().to_owned(), head.path.unwrap_or_default().to_owned());
    let mut lines = vec![format!("{method} {path} HTTP/1.1"), "Connection: close".to_owned()];
    let mut declared = 0;
    for header in head.headers.iter() {
        let value = String::from_utf8_lossy(header.value);
        let name = header.name.to_ascii_lowercase();
        assert_ne!(name, "transfer-encoding", "the client sends the length");
        if name == "content-length" {
            declared = value.trim().parse().expect("a length");
        }
        if name != "connection" {
            lines.push(format!("{}: {value}", header.name));
        }
    }
    (Request { method, path, head: lines.join("\r\n") + "\r\n\r\n", body: Vec::new() }, declared)
}

/// Waits until a call is held.
#[track_caller]
pub fn wait_held(label: &str, held: &Receiver<()>, limit: Duration) {
    match held.recv_timeout(limit) {
        Ok(()) => {}
        Err(RecvTimeoutError::Timeout) => panic!("{label}: no call within {} s", limit.as_secs()),
        Err(RecvTimeoutError::Disconnected) => panic!("{label}: its rule was removed"),
    }
}
