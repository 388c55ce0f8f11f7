//! A server that asks for the password in clear text gets it only where no one else can read it.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::support::ca_file;
use crate::db::Target;

const PASSWORD: &str = "hunter2-hunter2";
/// The request for TLS, after its length.
const SSL_REQUEST: [u8; 4] = [0x04, 0xd2, 0x16, 0x2f];
/// The demand for the password in clear text.
const DEMAND: [u8; 9] = [b'R', 0, 0, 0, 8, 0, 0, 0, 3];
/// After this time a client that sends nothing has decided.
const SILENCE: Duration = Duration::from_secs(30);

/// Talks to one client as a server that wants its password. Returns what the client sent after that.
fn ask(mut client: impl Read + Write) -> Vec<u8> {
    let read_message = |client: &mut dyn Read| -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        client.read_exact(&mut length)?;
        let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
        client.read_exact(&mut body)?;
        Ok(body)
    };
    let mut sent = Vec::new();
    if read_message(&mut client).is_ok_and(|startup| startup.starts_with(&[0, 3])) {
        client.write_all(&DEMAND).and_then(|()| client.flush()).ok();
        // The client ends the connection, or the test does.
        let mut kind = [0];
        if client.read_exact(&mut kind).is_ok() {
            sent = read_message(&mut client).unwrap_or_default();
        }
    }
    sent
}

/// A server for as many clients as come, with or without TLS. Returns its port and what all clients sent.
fn start(tls: Option<Arc<ServerConfig>>) -> (u16, TcpListener, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let accepting = listener.try_clone().expect("a second handle");
    let serve = move || {
        let mut sent = Vec::new();
        for client in accepting.incoming().map_while(Result::ok) {
            client.set_read_timeout(Some(SILENCE)).expect("a timeout");
            sent.extend(serve(client, tls.as_ref()));
        }
        sent
    };
    (port, listener, thread::spawn(serve))
}

fn serve(mut client: TcpStream, tls: Option<&Arc<ServerConfig>>) -> Vec<u8> {
    let mut head = [0; 8];
    if client.peek(&mut head).is_err() || head[4..] != SSL_REQUEST {
        return ask(client);
    }
    client.read_exact(&mut head).expect("bytes that were peeked");
    let Some(config) = tls else {
        client.write_all(b"N").ok();
        return ask(client);
    };
    client.write_all(b"S").ok();
    let connection = ServerConnection::new(Arc::clone(config)).expect("a connection");
    ask(StreamOwned::new(connection, client))
}

/// The TLS of the test server.
fn tls() -> Arc<ServerConfig> {
    let pki = |name: &str| Path::new(&ca_file()).with_file_name(name);
    let certificates = CertificateDer::pem_file_iter(pki("postgres.crt")).expect("a file").collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_file(pki("postgres.key")).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(certificates.expect("certificates"), key);
    Arc::new(config.expect("a certificate"))
}

#[test]
fn the_password_is_sent_in_clear_text_only_where_no_one_else_reads_it() {
    let ca = format!("&sslrootcert={}", ca_file());
    for (label, parameters, has_tls, is_sent) in [
        ("the default, without TLS", "", false, false),
        ("the default, with TLS", "", true, false),
        ("allow", "sslmode=allow", false, false),
        ("prefer, without TLS", "sslmode=prefer", false, false),
        ("prefer, with TLS", "sslmode=prefer", true, false),
        ("require, without TLS", "sslmode=require", false, false),
        ("require, with TLS", "sslmode=require", true, true),
        ("verify-ca", &format!("sslmode=verify-ca{ca}"), true, true),
        ("verify-full", &format!("sslmode=verify-full{ca}"), true, true),
        ("verify-full, of another name", &format!("sslmode=verify-full{ca}&host=db.example"), true, false),
        ("disable", "sslmode=disable", false, true),
    ] {
        let (port, listener, server) = start(has_tls.then(tls));
        let url = format!("postgresql://ann:{PASSWORD}@127.0.0.1:{port}/d?hostaddr=127.0.0.1&{parameters}");
        let target = Target::parse(&url.into(), "URL").unwrap_or_else(|error| panic!("{label}: {error}"));
        let error = target.connect("test").err().expect("the server accepts no client");
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).expect("a listener");
        let sent = server.join().expect("a server");
        let found = sent.windows(PASSWORD.len()).any(|part| part == PASSWORD.as_bytes());
        assert_eq!(found, is_sent, "{label}: {error}");
        assert!(!error.to_string().contains(PASSWORD), "{label}: {error}");
        if !is_sent && !label.contains("require") && !label.contains("verify") {
            assert!(error.to_string().contains("asks for the password in clear text"), "{label}: {error}");
            assert!(error.to_string().contains("verify-full") && !error.is_transient(), "{label}: {error:?}");
        }
    }
}

#[test]
fn a_socket_of_this_machine_gets_the_password() {
    let folder = tempfile::tempdir().expect("a directory");
    let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).expect("a socket");
    let server = thread::spawn(move || {
        let (client, _) = listener.accept().expect("a client");
        ask(&client)
    });
    let url = format!("host={} user=ann password={PASSWORD} dbname=d", folder.path().display());
    let target = Target::parse(&url.into(), "URL").expect("a URL");
    target.connect("test").err().expect("the server accepts no client");
    assert_eq!(server.join().expect("a server"), format!("{PASSWORD}\0").into_bytes());
}
