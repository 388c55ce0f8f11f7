//! TLS.

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use serde_json::json;

use super::support::{Behavior, FakeServer, LIMITS, TOKEN, rows, spec, write};
use crate::sidecar::sink::bulker::BulkerSink;
use crate::sidecar::sink::bulker::config::Settings;
use crate::sidecar::sink::bulker::request::Limits;
use crate::sidecar::sink::{Sink, WriteMode};

/// A self-signed certificate for `localhost`.
fn certificate() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "-"])
        .output()
        .expect("openssl is installed");
    let pem = output.stdout;
    let certificate = CertificateDer::from_pem_slice(&pem).expect("a certificate");
    (certificate, PrivateKeyDer::from_pem_slice(&pem).expect("a key"))
}

/// A server with a certificate, and a sink that connects to it by this name and may trust it.
fn server_and_sink(host: &str, trusted: bool, script: &[Behavior]) -> (FakeServer, BulkerSink) {
    let (certificate, key) = certificate();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let server = server.expect("versions").with_no_client_auth();
    let server = server.with_single_cert(vec![certificate.clone()], key).expect("a certificate with its key");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = FakeServer::with_tls(listener, script, Some(Arc::new(server)));
    let config = json!({"url": format!("https://{host}:{}", server.port), "authToken": TOKEN});
    let limits = Limits { retry_timeout: Duration::from_secs(2), ..LIMITS };
    let mut sink =
        BulkerSink::new(&Settings::parse(&config).expect("settings"), "sync", "task", limits).expect("a sink");
    if trusted {
        let mut roots = RootCertStore::empty();
        roots.add(certificate).expect("a root");
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let client = client.expect("versions").with_root_certificates(roots).with_no_client_auth();
        sink.server.tls = Some(Arc::new(client));
    }
    (server, sink)
}

#[test]
fn rows_are_sent_over_tls() {
    let (server, mut sink) = server_and_sink("localhost", true, &[Behavior::Close(300_000)]);
    let stream = sink.open(spec("s", WriteMode::Append)).expect("a stream");
    let row = |id: usize| format!(r#"{{"id":{id},"x":"{}"}}"#, "x".repeat(1000 * id));
    for id in 0..60 {
        write(&mut sink, stream, &row(id)).expect("a row");
    }
    sink.finish(stream).expect("the end");
    let requests = server.requests();
    assert_eq!(requests.len(), 2, "the interrupted request is sent again");
    assert_eq!(requests[1].lines, (0..60).map(row).collect::<Vec<_>>());
    assert_eq!(requests[1].header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
}

#[test]
fn early_responses_are_received_over_tls() {
    let (server, mut sink) =
        server_and_sink("localhost", true, &[Behavior::RespondEarly(400, json!({"error": "no such column"}))]);
    let stream = sink.open(spec("s", WriteMode::Replace)).expect("a stream");
    let row = format!(r#"{{"x":"{}"}}"#, "x".repeat(100_000));
    let error = (0..500).find_map(|_| write(&mut sink, stream, &row).err()).expect("a refusal");
    assert!(error.text.contains("it refused the rows (400): no such column"), "{error}");
    assert_eq!(server.calls(), 1);
}

#[test]
fn invalid_certificates_fail_at_once_and_receive_no_token() {
    for (label, host, trusted) in [("an unknown issuer", "localhost", false), ("another host", "127.0.0.1", true)] {
        let (server, mut sink) = server_and_sink(host, trusted, &[]);
        let stream = sink.open(spec("s", WriteMode::Append)).expect("a stream");
        rows(&mut sink, stream, 1..=1);
        let error = sink.finish(stream).expect_err(label);
        assert!(error.text.contains("certificate") && !error.transient, "{label}: {error}");
        let requests = server.requests();
        assert_eq!((requests.len(), requests[0].headers.len()), (1, 0), "{label}");
    }
}
