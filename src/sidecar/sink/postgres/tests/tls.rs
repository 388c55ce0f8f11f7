//! TLS: each `sslMode` loads rows, or fails with a clear reason.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use super::support::{TestSchema, keyed, write};
use crate::sidecar::sink::postgres::{PostgresSink, Settings, read_files};
use crate::sidecar::sink::{Sink, WriteMode};

/// A file in the directory of the test server's root certificate.
fn pki(name: &str) -> PathBuf {
    let ca = std::env::var("SYNCCTL_TEST_CA_FILE")
        .expect("SYNCCTL_TEST_CA_FILE must contain the path of the test server's root certificate");
    PathBuf::from(ca).with_file_name(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(pki(name)).expect(name)
}

/// Loads a row. Returns whether the connection was encrypted, or the error.
fn load(db: &mut TestSchema, fields: &Value) -> Result<bool, String> {
    let mut config = db.config();
    for (field, value) in fields.as_object().expect("fields") {
        config[field] = value.clone();
    }
    // As the command line does.
    read_files(&mut config).map_err(|failure| failure.to_string())?;
    let settings = Settings::parse(&config).map_err(|failure| failure.to_string())?;
    let mut sink = PostgresSink::connect(&settings, Duration::from_secs(20)).map_err(|error| {
        assert!(!error.transient, "{}: a retry cannot succeed", error.text);
        error.text
    })?;
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    let before = if db.tables().is_empty() { 0 } else { db.count("t") };
    write(&mut sink, stream, &[r#"{"id":1}"#]);
    sink.commit(stream).map_err(|error| error.text)?;
    assert_eq!(db.count("t"), before + 1);
    let encrypted = db.rows(&format!(
        "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = '{}'",
        db.schema
    ));
    Ok(encrypted == ["t"])
}

#[test]
fn each_ssl_mode_loads_rows() {
    let mut db = TestSchema::new();
    let (path, pem) = (pki("ca.crt"), text("ca.crt"));
    // `hostaddr` is the address to connect to, `host` the name to verify.
    let local = json!({"hostaddr": "127.0.0.1", "application_name": db.schema});
    for (fields, expected) in [
        (json!({"sslMode": "disable"}), false),
        (json!({"sslMode": null}), true),
        (json!({"sslMode": "require"}), true),
        (json!({"sslMode": "require", "sslServerCA": pem}), true),
        (json!({"sslMode": "verify-ca", "sslServerCA": pem}), true),
        (json!({"sslMode": "verify-ca", "sslServerCA": path}), true),
        (json!({"sslMode": "verify-ca", "sslServerCA": path, "host": "db.example", "parameters": local}), true),
        (json!({"sslMode": "verify-full", "sslServerCA": pem}), true),
        (json!({"sslMode": "verify-full", "sslServerCA": path, "host": "localhost"}), true),
    ] {
        assert_eq!(load(&mut db, &fields), Ok(expected), "{fields}");
    }
}

#[test]
fn untrusted_certificates_are_rejected_with_the_reason() {
    let mut db = TestSchema::new();
    let (key, local) = (text("postgres.key"), json!({"hostaddr": "127.0.0.1"}));
    for (label, fields, expected) in [
        ("no root certificate", json!({"sslMode": "verify-ca"}), "certificate"),
        ("wrong root certificate", json!({"sslMode": "verify-full", "sslServerCA": text("admin.crt")}), "certificate"),
        (
            "wrong root certificate with require",
            json!({"sslMode": "require", "sslServerCA": text("admin.crt")}),
            "certificate",
        ),
        (
            "wrong host",
            json!({"sslMode": "verify-full", "sslServerCA": text("ca.crt"), "host": "db.example", "parameters": local}),
            "db.example",
        ),
        ("not a certificate", json!({"sslMode": "verify-ca", "sslServerCA": "nonsense\n"}), "sslServerCA"),
        ("missing file", json!({"sslMode": "verify-ca", "sslServerCA": "/no/such"}), "/no/such"),
        (
            "client certificate without a key",
            json!({"sslMode": "require", "sslClientCert": text("admin.crt")}),
            "client",
        ),
        (
            "key of another certificate",
            json!({"sslMode": "require", "sslClientCert": text("admin.crt"), "sslClientKey": key}),
            "do not match",
        ),
    ] {
        let error = load(&mut db, &fields).expect_err(label);
        assert!(error.contains(expected), "{label}: {error}");
        assert!(!error.contains("PRIVATE KEY") && !error.contains("BEGIN"), "{label}: {error}");
    }
    assert_eq!(db.tables(), Vec::<String>::new());
}

#[test]
fn client_certificate_is_sent_if_the_server_requires_it() {
    let mut db = TestSchema::new();
    let port = MutualTlsProxy::start(db.port());
    let at = |fields: Value| {
        let mut all = json!({"sslMode": "verify-full", "sslServerCA": text("ca.crt"), "port": port});
        all.as_object_mut().expect("fields").extend(fields.as_object().cloned().unwrap_or_default());
        all
    };
    let (certificate, key) = (pki("admin.crt"), pki("admin.key"));
    for fields in [
        json!({"sslClientCert": certificate, "sslClientKey": key}),
        json!({"sslClientCert": text("admin.crt"), "sslClientKey": text("admin.key")}),
    ] {
        // The proxy connects to the server without TLS.
        assert_eq!(load(&mut db, &at(fields.clone())), Ok(false));
        let error = load(&mut db, &at(json!({"sslMode": "require"}))).expect_err("the proxy requires a certificate");
        assert!(error.to_lowercase().contains("certificate"), "{error}");
    }
}

/// A proxy in front of the server that requires a client certificate of the test's root.
struct MutualTlsProxy;

impl MutualTlsProxy {
    fn start(server: u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let config = Arc::new(Self::config());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let config = config.clone();
                std::thread::spawn(move || Self::serve(client, config, server));
            }
        });
        port
    }

    fn config() -> ServerConfig {
        let certificates = |name| CertificateDer::pem_file_iter(pki(name)).expect(name).map(|one| one.expect(name));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates("ca.crt"));
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(
                certificates("postgres.crt").collect(),
                PrivateKeyDer::from_pem_file(pki("postgres.key")).expect("a key"),
            )
            .expect("a certificate")
    }

    fn serve(mut client: TcpStream, config: Arc<ServerConfig>, server: u16) {
        // The SSLRequest message, and the response that accepts it.
        let mut request = [0; 8];
        client.read_exact(&mut request).expect("SSLRequest");
        client.write_all(b"S").expect("the response");
        let mut server = TcpStream::connect(("127.0.0.1", server)).expect("the server");
        let connection = ServerConnection::new(config).expect("a connection");
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(Duration::from_millis(2))).expect("a timeout");
        }
        let mut client = StreamOwned::new(connection, client);
        while forward(&mut client, &mut server) && forward(&mut server, &mut client) {}
    }
}

/// Forwards available data. Returns `false` at the end of the stream.
fn forward(from: &mut impl Read, to: &mut impl Write) -> bool {
    let mut buffer = [0; 1 << 14];
    match from.read(&mut buffer) {
        Ok(0) => false,
        Ok(length) => to.write_all(&buffer[..length]).and_then(|()| to.flush()).is_ok(),
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}
