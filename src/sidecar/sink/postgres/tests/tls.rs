//! Encryption: each `sslMode` loads rows, or says clearly why not.

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

use super::support::{World, keyed, write};
use crate::sidecar::sink::postgres::{PostgresSink, Settings};
use crate::sidecar::sink::{Sink, WriteMode};

/// A file beside the certificate that vouches for the test server's.
fn pki(name: &str) -> PathBuf {
    let ca = std::env::var("SYNCCTL_TEST_CA_FILE")
        .expect("SYNCCTL_TEST_CA_FILE has to hold the path of the test server's root certificate");
    PathBuf::from(ca).with_file_name(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(pki(name)).expect(name)
}

/// Loads a row; returns whether the connection was encrypted, or the error.
fn load(world: &mut World, fields: &Value) -> Result<bool, String> {
    let mut config = world.config();
    for (field, value) in fields.as_object().expect("fields") {
        config[field] = value.clone();
    }
    let settings = Settings::parse(&config).map_err(|failure| failure.to_string())?;
    let mut sink = PostgresSink::connect(&settings, Duration::from_secs(20)).map_err(|error| {
        assert!(!error.transient, "{}: no later attempt can do better", error.text);
        error.text
    })?;
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    let before = if world.tables().is_empty() { 0 } else { world.count("t") };
    write(&mut sink, stream, &[r#"{"id":1}"#]);
    sink.commit(stream).map_err(|error| error.text)?;
    assert_eq!(world.count("t"), before + 1);
    let encrypted = world.rows(&format!(
        "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = '{}'",
        world.schema
    ));
    Ok(encrypted == ["t"])
}

#[test]
fn each_mode_loads_rows() {
    let mut world = World::new();
    let (path, pem) = (pki("ca.crt"), text("ca.crt"));
    // The address goes to the socket, the name to the verification.
    let at_home = json!({"hostaddr": "127.0.0.1", "application_name": world.schema});
    for (fields, expected) in [
        (json!({"sslMode": "disable"}), false),
        (json!({"sslMode": null}), true),
        (json!({"sslMode": "require"}), true),
        (json!({"sslMode": "require", "sslServerCA": pem}), true),
        (json!({"sslMode": "verify-ca", "sslServerCA": pem}), true),
        (json!({"sslMode": "verify-ca", "sslServerCA": path}), true),
        (json!({"sslMode": "verify-ca", "sslServerCA": path, "host": "db.example", "parameters": at_home}), true),
        (json!({"sslMode": "verify-full", "sslServerCA": pem}), true),
        (json!({"sslMode": "verify-full", "sslServerCA": path, "host": "localhost"}), true),
    ] {
        assert_eq!(load(&mut world, &fields), Ok(expected), "{fields}");
    }
}

#[test]
fn what_cannot_be_trusted_is_refused_with_the_reason() {
    let mut world = World::new();
    let (key, at_home) = (text("postgres.key"), json!({"hostaddr": "127.0.0.1"}));
    for (label, fields, expected) in [
        ("no root of ours", json!({"sslMode": "verify-ca"}), "certificate"),
        ("another root", json!({"sslMode": "verify-full", "sslServerCA": text("admin.crt")}), "certificate"),
        ("another root beside require", json!({"sslMode": "require", "sslServerCA": text("admin.crt")}), "certificate"),
        (
            "another host",
            json!({"sslMode": "verify-full", "sslServerCA": text("ca.crt"), "host": "db.example", "parameters": at_home}),
            "db.example",
        ),
        ("no certificate", json!({"sslMode": "verify-ca", "sslServerCA": "nonsense\n"}), "root certificate"),
        ("no such file", json!({"sslMode": "verify-ca", "sslServerCA": "/no/such"}), "/no/such"),
        ("a certificate alone", json!({"sslMode": "require", "sslClientCert": text("admin.crt")}), "client"),
        (
            "another's key",
            json!({"sslMode": "require", "sslClientCert": text("admin.crt"), "sslClientKey": key}),
            "do not match",
        ),
    ] {
        let error = load(&mut world, &fields).expect_err(label);
        assert!(error.contains(expected), "{label}: {error}");
        assert!(!error.contains("PRIVATE KEY") && !error.contains("BEGIN"), "{label}: {error}");
    }
    assert_eq!(world.tables(), Vec::<String>::new());
}

#[test]
fn a_server_that_asks_for_a_certificate_gets_it() {
    let mut world = World::new();
    let port = Doorkeeper::start(world.port());
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
        // Behind the doorkeeper the way goes on without encryption.
        assert_eq!(load(&mut world, &at(fields.clone())), Ok(false));
        let error = load(&mut world, &at(json!({"sslMode": "require"}))).expect_err("nobody gets in without one");
        assert!(error.to_lowercase().contains("certificate"), "{error}");
    }
}

/// Stands before the server and lets in who has a certificate of our root's.
struct Doorkeeper;

impl Doorkeeper {
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
        // The request for encryption, and its answer.
        let mut request = [0; 8];
        client.read_exact(&mut request).expect("a request");
        client.write_all(b"S").expect("an answer");
        let mut server = TcpStream::connect(("127.0.0.1", server)).expect("the server");
        let connection = ServerConnection::new(config).expect("a connection");
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(Duration::from_millis(2))).expect("a timeout");
        }
        let mut client = StreamOwned::new(connection, client);
        while pass(&mut client, &mut server) && pass(&mut server, &mut client) {}
    }
}

/// Passes on what is there; `false` at the end.
fn pass(from: &mut impl Read, to: &mut impl Write) -> bool {
    let mut buffer = [0; 1 << 14];
    match from.read(&mut buffer) {
        Ok(0) => false,
        Ok(length) => to.write_all(&buffer[..length]).and_then(|()| to.flush()).is_ok(),
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}
