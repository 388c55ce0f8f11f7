//! `syncctl serve` with TLS.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;

use super::support::http::{DEADLINE, Response};
use super::support::{Http, Service, World, eventually};

/// Writes a certificate for `localhost` and its key, and returns the certificate.
fn write_pair(directory: &Path) -> CertificateDer<'static> {
    let (certificate, key) = (directory.join("tls.crt"), directory.join("tls.key"));
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args([Path::new("-keyout"), &key, Path::new("-out"), &certificate])
        .output()
        .expect("openssl is installed");
    assert!(output.status.success(), "{output:?}");
    CertificateDer::from_pem_file(certificate).expect("a certificate")
}

/// GET over TLS by a client that trusts this certificate alone.
fn get(http: &Http, trusted: &CertificateDer<'static>, target: &str) -> Result<Response, String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(client, name).expect("a client");
    let mut stream = StreamOwned::new(connection, http.connect().map_err(|error| error.to_string())?);
    let mut bytes = Vec::new();
    let exchanged =
        stream.write_all(&http.bytes("GET", target, &[], &[])).and_then(|()| stream.read_to_end(&mut bytes));
    exchanged.map_err(|error| error.to_string())?;
    Response::parse(&bytes)
}

#[test]
fn a_renewed_certificate_is_used_and_a_broken_one_is_logged_once() {
    let Some(world) = World::new() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let [certificate, key] = ["tls.crt", "tls.key"].map(|name| directory.path().join(name));
    let first = write_pair(directory.path());
    let settings =
        [("SYNCCTL_TLS_CERT", &certificate), ("SYNCCTL_TLS_KEY", &key), ("SYNCCTL_TLS_CLIENT_CA", &certificate)];
    let mut service = Service::prepare(&world, |program| {
        settings.iter().fold(program, |program, (name, path)| program.env(name, path.to_str().expect("a path")))
    });
    service.launch();
    let is_healthy = |http: &Http, trusted: &CertificateDer<'static>| {
        get(http, trusted, "/health").is_ok_and(|response| response.status == 200).then_some(())
    };
    eventually("a response over TLS", DEADLINE, || is_healthy(&service.http, &first));
    let response = get(&service.http, &first, "/openapi.json").expect("a response");
    assert_eq!((response.status, response.json()["error"].clone()), (403, "a client certificate is required".into()));
    let response = service.http.get("/health");
    assert_eq!(response.status, 400, "{response:?}");
    assert!(response.text().contains("https://"), "{response:?}");

    std::fs::write(&key, "broken").expect("a file");
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert_eq!(is_healthy(&service.http, &first), Some(()), "the previous certificate stays in use");
    let second = write_pair(directory.path());
    eventually("the renewed certificate", DEADLINE, || is_healthy(&service.http, &second));
    assert!(get(&service.http, &first, "/health").is_err());
    let done = service.stop();
    done.code(0);
    assert_eq!(done.stderr.matches("tls.key has no unencrypted private key").count(), 1, "{done}");
}

#[test]
fn unusable_files_end_the_service_at_its_start() {
    let Some(world) = World::new() else { return };
    let [directory, other] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let (_, _) = (write_pair(directory.path()), write_pair(other.path()));
    let path = |directory: &tempfile::TempDir, name: &str| directory.path().join(name).display().to_string();
    for (certificate, key, expected) in [
        (path(&directory, "tls.crt"), path(&other, "tls.key"), "do not match"),
        (path(&directory, "none"), path(&directory, "tls.key"), "No such file"),
        (path(&directory, "tls.crt"), String::new(), "SYNCCTL_TLS_KEY is not set"),
    ] {
        let done = world
            .syncctl(&["serve", "--http-host", "127.0.0.1", "--http-port", "1"])
            .env("SYNCCTL_TLS_CERT", &certificate)
            .env("SYNCCTL_TLS_KEY", &key)
            .run();
        assert!(done.code.is_some_and(|code| code != 0) && done.stderr.contains(expected), "{expected}: {done}");
    }
}
