//! TLS: handshakes, client certificates, and files that change.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use tempfile::TempDir;

use super::support::{Client, DEADLINE, Reply, World, small, wait_until};
use crate::config::TlsFiles;
use crate::server::guard::Limits;
use crate::server::tls::Tls;

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";

/// The files of a server.
struct Files {
    directory: TempDir,
}

impl Files {
    /// A certificate for a name with its key, signed by itself.
    fn new(name: &str) -> Self {
        let files = Self { directory: tempfile::tempdir().expect("a directory") };
        let (certificate, key) = (files.path("crt"), files.path("key"));
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=localhost", "-addext", &format!("subjectAltName=DNS:{name}")])
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", &key, "-out", &certificate])
            .output()
            .expect("openssl is installed");
        assert!(output.status.success(), "{output:?}");
        files
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().expect("a path").to_owned()
    }

    fn settings(&self, client_ca: Option<&Self>) -> TlsFiles {
        let [certificate, key] = ["crt", "key"].map(|name| self.path(name).into());
        TlsFiles { certificate, key, client_ca: client_ca.map(|files| files.path("crt").into()) }
    }

    fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path("crt")).expect("a certificate")
    }

    fn replace(&self, name: &str, other: &Self) {
        std::fs::copy(other.path(name), self.path(name)).expect("a file");
    }
}

type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// A connection that trusts this certificate alone.
fn connect(world: &World, trusted: &Files, own: Option<&Files>) -> TlsStream {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.certificate()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let client = client.with_root_certificates(roots);
    let client = match own {
        None => client.with_no_client_auth(),
        Some(files) => {
            let key = PrivateKeyDer::from_pem_file(files.path("key")).expect("a key");
            client.with_client_auth_cert(vec![files.certificate()], key).expect("a certificate with its key")
        }
    };
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(client), name).expect("a client");
    StreamOwned::new(connection, world.connect().stream)
}

/// Sends a request over TLS. The error is that of the handshake.
fn send(mut stream: TlsStream, request: &str) -> Result<Reply, String> {
    stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(Reply::parse(&bytes))
}

fn start(files: &Files, client_ca: Option<&Files>, limits: Limits) -> (World, Arc<Tls>) {
    let tls = Tls::load(files.settings(client_ca)).expect("usable files");
    (World::with_tls(limits, Some(Arc::clone(&tls))), tls)
}

#[test]
fn requests_of_every_size_are_served_over_tls() {
    let files = Files::new("localhost");
    let (world, _) = start(&files, None, small());
    for length in [0, 1000, 1 << 20] {
        let headers = format!("Authorization: Bearer good\r\nContent-Length: {length}\r\n");
        let request = format!("POST /echo HTTP/1.1\r\nHost: x\r\n{headers}\r\n{}", "a".repeat(length));
        let reply = send(connect(&world, &files, None), &request).expect("a response");
        assert_eq!(reply.json()["length"], length);
    }
    let large = "GET /large HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n";
    assert_eq!(send(connect(&world, &files, None), large).expect("a response").body.len(), 300_000);
    let anonymous = "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n";
    send(connect(&world, &files, None), anonymous).expect("a response").assert_error(401, "no token");
}

#[test]
fn plain_http_is_answered_with_one_sentence() {
    let files = Files::new("localhost");
    let (world, _) = start(&files, None, small());
    for request in [HEALTH, "POST /echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\nContent-Length: 9\r\n\r\n"]
    {
        let reply = world.send(request);
        reply.assert_error(400, "plain HTTP");
        assert!(reply.json()["error"].as_str().is_some_and(|text| text.contains("https://")), "{reply:?}");
    }
    assert_eq!(send(connect(&world, &files, None), HEALTH).expect("a response").status, 200);
}

#[test]
fn handshakes_that_stop_end_and_do_not_lock_out_others() {
    let files = Files::new("localhost");
    let limits = Limits { connections: 40, head_timeout: Duration::from_secs(2), ..small() };
    let (world, _) = start(&files, None, limits);
    // Nothing, a part of a handshake, and a handshake without a request.
    let mut clients: Vec<Client> = (0..90).map(|_| world.connect_from(2)).collect();
    for client in &mut clients[30..60] {
        client.send(b"\x16\x03\x01\x02\x00\x01");
    }
    let mut silent: Vec<TlsStream> = (0..30).map(|_| connect(&world, &files, None)).collect();
    for stream in &mut silent {
        stream.conn.complete_io(&mut stream.sock).ok();
    }
    for _ in 0..20 {
        assert_eq!(send(connect(&world, &files, None), HEALTH).expect("a response").status, 200);
    }
    for client in &mut clients {
        wait_until("the end of a connection", || client.stream.read(&mut [0; 100]).map_or(true, |count| count == 0));
    }
    for stream in &mut silent {
        stream.sock.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        wait_until("the end of a connection", || stream.sock.read(&mut [0; 100]).map_or(true, |count| count == 0));
    }
}

#[test]
fn certificate_of_a_client_is_verified_and_shown_to_the_service() {
    let [files, known, unknown] = ["localhost", "client", "client"].map(Files::new);
    let (world, _) = start(&files, Some(&known), small());
    let request = "GET /certified HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n";
    assert_eq!(send(connect(&world, &files, Some(&known)), request).expect("a response").status, 200);
    send(connect(&world, &files, None), request).expect("a response").assert_error(403, "no certificate");
    assert_eq!(send(connect(&world, &files, None), HEALTH).expect("a response").status, 200);
    let error = send(connect(&world, &files, Some(&unknown)), request).expect_err("another certificate");
    assert!(error.contains("fatal alert") || error.contains("reset"), "{error}");
}

#[test]
fn changed_files_are_used_for_new_connections_only_if_they_are_usable() {
    let [files, old, new] = ["localhost"; 3].map(Files::new);
    files.replace("crt", &old);
    files.replace("key", &old);
    let (world, tls) = start(&files, None, small());
    let accepts = |trusted: &Files| send(connect(&world, trusted, None), HEALTH).is_ok_and(|reply| reply.status == 200);
    assert!(accepts(&old) && !accepts(&new));
    let mut open = connect(&world, &old, None);
    open.write_all(b"GET /health HTTP/1.1\r\n").expect("a handshake");
    // As when the certificate is replaced before its key.
    files.replace("crt", &new);
    tls.reload();
    assert!(accepts(&old) && !accepts(&new), "a certificate with another key");
    std::fs::remove_file(files.path("key")).expect("a file");
    tls.reload();
    assert!(accepts(&old), "a key that cannot be read");
    files.replace("key", &new);
    tls.reload();
    assert!(accepts(&new) && !accepts(&old));
    assert_eq!(send(open, "Host: x\r\n\r\n").expect("a response").status, 200, "a connection from before");
}

#[test]
fn unusable_files_are_reported_without_their_content() {
    let [files, other] = ["localhost"; 2].map(Files::new);
    let key = std::fs::read_to_string(files.path("key")).expect("a key");
    let secret = key.lines().nth(1).expect("a line of it").to_owned();
    std::fs::write(files.path("headless"), &secret).expect("a file");
    std::fs::write(files.path("empty"), "").expect("a file");
    std::fs::File::create(files.path("large")).and_then(|file| file.set_len(2 << 20)).expect("a file");
    rustix::fs::mkfifoat(rustix::fs::CWD, files.path("fifo"), rustix::fs::Mode::RUSR).expect("a FIFO");
    let settings = |certificate: &str, key: &str, client_ca: Option<&str>| TlsFiles {
        certificate: files.path(certificate).into(),
        key: files.path(key).into(),
        client_ca: client_ca.map(|name| files.path(name).into()),
    };
    let foreign = TlsFiles { key: other.path("key").into(), ..settings("crt", "key", None) };
    for (settings, expected) in [
        (settings("none", "key", None), "No such file"),
        (settings("crt", "none", None), "No such file"),
        (settings("fifo", "key", None), "not a regular file"),
        (TlsFiles { certificate: Path::new("/dev/zero").into(), ..settings("crt", "key", None) }, "not a regular file"),
        (settings("large", "key", None), "larger than 1 MiB"),
        (settings("empty", "key", None), "no certificate in PEM format"),
        (settings("key", "key", None), "no certificate in PEM format"),
        (settings("crt", "headless", None), "no unencrypted private key"),
        (settings("crt", "crt", None), "no unencrypted private key"),
        (settings("crt", "key", Some("empty")), "no certificate in PEM format"),
        (foreign, "do not match"),
    ] {
        let failure = Tls::load(settings).err().expect(expected);
        let text = failure.to_string();
        assert!(text.contains(expected) && !text.contains(&secret), "{expected}: {text}");
    }
}
