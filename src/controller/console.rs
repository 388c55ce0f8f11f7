//! The console, which starts the read after a discover: `GET /api/{workspace}/sources/run`.
//!
//! It is trusted with its own token and with nothing else: redirects are not followed, and of a response only the status
//! and a short, printable error are used.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::ClientConfig;
use secrecy::ExposeSecret;
use serde_json::Value;

use crate::config::ConsoleSettings;
use crate::http_client::{self, Response};

/// Everything else is percent-encoded.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// How long a request may take: the console answers when this service has accepted the read.
const TIMEOUT: Duration = Duration::from_mins(1);
/// Characters of the console's error that are used.
const MAX_ERROR_CHARS: usize = 300;

/// A console.
pub struct Console {
    settings: ConsoleSettings,
    /// Built at the first request that needs it.
    tls: OnceLock<Result<Arc<ClientConfig>, String>>,
}

/// Why the console did not start a read.
#[derive(Debug, PartialEq, Eq)]
pub struct RunError {
    /// A clause without credentials.
    pub text: String,
    /// The same request may succeed later.
    pub is_temporary: bool,
}

impl Console {
    /// Connects at the first request.
    pub fn new(settings: ConsoleSettings) -> Self {
        Self { settings, tls: OnceLock::new() }
    }

    /// Asks the console to start the read of a sync under this task id.
    pub fn run(&self, workspace: &str, sync_id: &str, task_id: &str) -> Result<(), RunError> {
        self.run_within(TIMEOUT, workspace, sync_id, task_id)
    }

    fn run_within(&self, timeout: Duration, workspace: &str, sync_id: &str, task_id: &str) -> Result<(), RunError> {
        let endpoint = &self.settings.endpoint;
        let failed = |text: &dyn std::fmt::Display, is_temporary| RunError {
            text: format!("the console at {endpoint} did not start the read: {text}"),
            is_temporary,
        };
        let tls = endpoint.secure.then(|| self.tls()).transpose().map_err(|error| failed(error, false))?;
        let head = self.head(workspace, sync_id, task_id);
        match http_client::exchange(endpoint, tls, &head, timeout) {
            Ok(response) => judge(&response, self.settings.token.expose_secret())
                .map_err(|(text, is_temporary)| failed(&text, is_temporary)),
            // Such as an invalid certificate.
            Err(error) => Err(failed(&error, error.kind() != io::ErrorKind::InvalidData)),
        }
    }

    fn tls(&self) -> Result<&Arc<ClientConfig>, &String> {
        self.tls.get_or_init(|| http_client::tls_config().map_err(|error| error.to_string())).as_ref()
    }

    /// The request; secret.
    fn head(&self, workspace: &str, sync_id: &str, task_id: &str) -> String {
        let ConsoleSettings { endpoint, token } = &self.settings;
        let [workspace, sync_id, task_id] =
            [workspace, sync_id, task_id].map(|text| utf8_percent_encode(text, UNRESERVED));
        format!(
            "GET {}/api/{workspace}/sources/run?syncId={sync_id}&taskId={task_id}&skipRefresh=true&nodelay=true \
             HTTP/1.1\r\nHost: {}\r\nUser-Agent: syncctl/{}\r\nAccept: application/json\r\nConnection: close\r\n\
             Authorization: Bearer {}\r\n\r\n",
            endpoint.prefix,
            endpoint.authority,
            env!("CARGO_PKG_VERSION"),
            token.expose_secret(),
        )
    }
}

/// Whether the console has started the read; the error with whether it is temporary.
fn judge(response: &Response, token: &str) -> Result<(), (String, bool)> {
    let Response { status, body } = response;
    let document: Option<Value> = serde_json::from_str(body).ok();
    let field = |name: &str| document.as_ref().and_then(|document| document.get(name));
    // It may quote the request.
    let reason = field("error").and_then(Value::as_str).map(|text| printable(&text.replace(token, "***")));
    let with_reason = |text: String| reason.as_ref().map_or(text.clone(), |reason| format!("{text}: {reason}"));
    match status {
        200..=299 if field("ok") == Some(&Value::Bool(false)) => Err((with_reason("it refused".to_owned()), false)),
        200..=299 => Ok(()),
        300..=399 => Err((format!("it redirects ({status}): set SYNCCTL_CONSOLE_URL to the new address"), false)),
        401 | 403 => Err((format!("it refused SYNCCTL_CONSOLE_TOKEN ({status})"), false)),
        400 | 405 | 410 | 422 => Err((with_reason(format!("it answered {status}")), false)),
        // A proxy in front of a console that restarts also answers 404.
        _ => Err((with_reason(format!("it answered {status}")), true)),
    }
}

/// A text of the console on one line and cut.
fn printable(text: &str) -> String {
    text.chars().take(MAX_ERROR_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::{Console, MAX_ERROR_CHARS, RunError};
    use crate::config::ConsoleSettings;
    use crate::http_client::Endpoint;
    use crate::secret::Secret;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::mpsc;
    use std::time::Duration;

    /// Only reached when a test hangs.
    const DEADLINE: Duration = Duration::from_mins(2);

    /// The result of a run against a server that sends this, and the request that it received.
    fn run(response: &str) -> (Result<(), RunError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/jitsu/", listener.local_addr().expect("an address"));
        let (sender, receiver) = mpsc::channel();
        let response = response.to_owned();
        std::thread::spawn(move || {
            let mut client = listener.accept().expect("a client").0;
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while !request.ends_with(b"\r\n\r\n") {
                let read = client.read(&mut buffer).expect("a request");
                request.extend_from_slice(&buffer[..read]);
            }
            sender.send(String::from_utf8(request).expect("ASCII")).expect("the test waits");
            client.write_all(response.as_bytes()).ok();
        });
        let endpoint = Endpoint::parse(&url).expect("a URL");
        let console = Console::new(ConsoleSettings { endpoint, token: Secret::from("t0ken-t0ken") });
        let result = console.run_within(DEADLINE, "w/1 ?", "sync&x=1", "täsk");
        if let Err(error) = &result {
            assert!(!error.text.contains("t0ken") && !error.text.contains(char::is_control), "{error:?}");
        }
        (result, receiver.recv_timeout(DEADLINE).expect("a request"))
    }

    fn response(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn the_request_names_workspace_sync_and_task_percent_encoded() {
        let (result, request) = run(&response("200 OK", "not JSON"));
        assert_eq!(result, Ok(()));
        let target = "GET /jitsu/api/w%2F1%20%3F/sources/run?syncId=sync%26x%3D1&taskId=t%C3%A4sk&skipRefresh=true\
                      &nodelay=true HTTP/1.1\r\n";
        assert!(request.starts_with(target), "{request}");
        assert!(request.contains("\r\nAuthorization: Bearer t0ken-t0ken\r\n"), "{request}");
    }

    #[test]
    fn only_success_counts_and_errors_are_short_and_printable() {
        let long = format!(r#"{{"error":"a\nb{}"}}"#, "x".repeat(100_000));
        for (label, sent, temporary, expected) in [
            (
                "refused",
                response("200 OK", r#"{"ok":false,"error":"no such sync"}"#),
                false,
                "it refused: no such sync",
            ),
            (
                "a redirect",
                "HTTP/1.1 302 Found\r\nLocation: http://evil/t0ken-t0ken\r\nContent-Length: 0\r\n\r\n".to_owned(),
                false,
                "it redirects (302): set SYNCCTL_CONSOLE_URL to the new address",
            ),
            (
                "the token",
                response("401 X", r#"{"error":"t0ken-t0ken"}"#),
                false,
                "it refused SYNCCTL_CONSOLE_TOKEN (401)",
            ),
            ("unavailable", response("503 X", "<html>"), true, "it answered 503"),
            ("not found", response("404 X", ""), true, "it answered 404"),
            ("a reason", response("500 X", r#"{"error":"no t0ken-t0ken"}"#), true, "it answered 500: no ***"),
            ("a long reason", response("400 X", &long), false, "it answered 400: a b"),
            ("no response", String::new(), true, ""),
            ("not HTTP", "SSH-2.0\r\n\r\n".to_owned(), true, "the response is not HTTP"),
        ] {
            let error = run(&sent).0.expect_err(label);
            assert_eq!(error.is_temporary, temporary, "{label}: {error:?}");
            assert!(error.text.contains(expected), "{label}: {error:?}");
            assert!(error.text.chars().count() < MAX_ERROR_CHARS + 150, "{label}: {error:?}");
        }
    }

    #[test]
    fn an_endless_response_ends_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        std::thread::spawn(move || {
            let mut client = listener.accept().expect("a client").0;
            client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").ok();
            while client.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let endpoint = Endpoint::parse(&url).expect("a URL");
        let console = Console::new(ConsoleSettings { endpoint, token: Secret::from("t") });
        let error = console.run_within(Duration::from_millis(300), "w", "s", "t").expect_err("it is endless");
        assert!(error.is_temporary && error.text.contains("did not respond in time"), "{error:?}");
    }
}
