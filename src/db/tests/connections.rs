//! TLS modes, unreachable servers, and errors without secrets.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use super::support::{Schema, base_url, ca_file, setting, target, url_with};
use crate::db::{Db, DbError, Options, Target};
use crate::failure::{Class, Failure};
use crate::secret::Secret;

fn options() -> Options {
    Options {
        application_name: "test".to_owned(),
        pool_size: 1,
        retry_timeout: Duration::from_mins(1),
        own_schema: "test_own".to_owned(),
    }
}

/// Whether a new connection is encrypted.
fn is_encrypted(parameters: &str) -> Result<bool, DbError> {
    let url = url_with(parameters);
    let mut client = Target::parse(&Secret::from(url), "URL")?.connect("test")?;
    let row =
        client.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).expect("the view exists");
    Ok(row.get(0))
}

#[test]
fn each_ssl_mode_verifies_what_libpq_does() {
    let ca = format!("sslrootcert={}", ca_file());
    for (label, parameters, expected) in [
        ("disable", "sslmode=disable".to_owned(), Some(false)),
        ("allow", "sslmode=allow".to_owned(), Some(true)),
        ("prefer", "sslmode=prefer".to_owned(), Some(true)),
        ("require takes any certificate", "sslmode=require".to_owned(), Some(true)),
        ("require with the right root", format!("sslmode=require&{ca}"), Some(true)),
        ("verify-ca with the right root", format!("sslmode=verify-ca&{ca}"), Some(true)),
        ("verify-ca with the system roots", "sslmode=verify-ca".to_owned(), None),
        ("verify-full with the right root", format!("sslmode=verify-full&{ca}"), Some(true)),
        ("verify-full with the system roots", "sslmode=verify-full".to_owned(), None),
    ] {
        let result = is_encrypted(&parameters);
        assert_eq!(result.as_ref().ok().copied(), expected, "{label}: {result:?}");
        if let Err(error) = result {
            assert!(matches!(error, DbError::Unreachable { transient: false, .. }), "{label}: {error:?}");
            assert!(error.to_string().contains("certificate"), "{label}: {error}");
        }
    }
}

#[test]
fn only_verify_full_checks_the_host_name() {
    // The certificate names localhost and 127.0.0.1.
    let url = base_url();
    let (before, after) = url.split_once('@').map_or(("", url.as_str()), |(before, after)| (before, after));
    let host = after.split([':', '/', '?']).next().unwrap_or_default().to_owned();
    let ca = ca_file();
    // The socket connects to the address, and the certificate is checked against the name.
    let connect = |mode: &str| {
        let parameters = format!("sslmode={mode}&sslrootcert={ca}&hostaddr=127.0.0.1");
        let url = url_with(&parameters).replacen(&format!("{before}@{host}"), &format!("{before}@db.example"), 1);
        Target::parse(&Secret::from(url), "URL").and_then(|target| target.connect("test")).map(|_| ())
    };
    assert_eq!(connect("verify-ca"), Ok(()));
    assert_eq!(connect("require"), Ok(()));
    let error = connect("verify-full").expect_err("the name does not match");
    assert!(error.to_string().contains("db.example"), "{error}");
}

/// The address is checked and connected to, and the certificate is that of the name.
#[test]
fn rules_for_addresses_leave_the_check_of_the_name_to_tls() {
    let url = url_with(&format!("sslmode=verify-full&sslrootcert={}&host=localhost", ca_file()));
    let connect = |rules: &str| {
        let rules = Arc::new(rules.parse().expect("rules"));
        target(&url).restricted_to(rules).connect("test").map(|_| ())
    };
    for rules in ["127.0.0.0/8, ::1", "localhost", "*"] {
        assert_eq!(connect(rules), Ok(()), "{rules}");
    }
    let error = connect("10.0.0.0/8, db.example").expect_err("not listed");
    assert!(!error.is_transient() && error.to_string().contains("localhost"), "{error}");
}

#[test]
fn certificates_may_be_pem_text() {
    let pem = std::fs::read_to_string(ca_file()).expect("a readable file");
    let mut client = connect_with(&[("sslmode", "verify-ca"), ("sslrootcert", &pem)]);
    assert_eq!(client.query_one("SELECT current_setting('search_path')", &[]).expect("SQL").get::<_, &str>(0), "x, y");
}

fn connect_with(parameters: &[(&str, &str)]) -> postgres::Client {
    let config: postgres::Config = base_url().split('?').next().and_then(|url| url.parse().ok()).expect("a plain URL");
    let port = config.get_ports().first().copied().unwrap_or(5432).to_string();
    let base = [
        ("host", "localhost"),
        ("port", &port),
        ("dbname", config.get_dbname().unwrap_or("postgres")),
        ("user", config.get_user().unwrap_or("postgres")),
        ("password", std::str::from_utf8(config.get_password().unwrap_or_default()).expect("UTF-8")),
        ("search_path", "x, y"),
    ];
    Target::from_parameters(base.into_iter().chain(parameters.iter().copied()))
        .and_then(|target| target.connect("test"))
        .expect("a connection")
}

#[test]
fn open_does_not_retry_a_refused_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let url = format!("postgres://someone:hunter2@127.0.0.1:{port}/db");
    let error = Db::open(target(&url), options()).err().expect("the port is closed");
    assert!(matches!(error, DbError::Unreachable { transient: true, .. }), "{error:?}");
    let failure = Failure::from(error);
    assert_eq!(failure.class, Class::DatabaseUnreachable);
    let text = failure.to_string();
    assert!(text.contains(&format!("database \"db\" at 127.0.0.1:{port}")) && text.contains("refused"), "{text}");
    assert!(!text.contains("hunter2") && !text.contains("someone"), "{text}");
}

#[test]
fn open_does_not_block_on_a_silent_server() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let url = format!("postgres://u@127.0.0.1:{port}/db?connect_timeout=1");
    let error = Db::open(target(&url), options()).err().expect("the server is silent");
    assert!(error.is_transient() && error.to_string().contains("no answer within 2 s"), "{error}");
}

#[test]
fn server_errors_do_not_name_the_user() {
    let schema = Schema::new();
    for (label, parameters, expected) in [
        ("role", format!("user={}", schema.name), " ***"),
        ("database", "dbname=no_such_database".to_owned(), "database \"no_such_database\" does not exist"),
        ("setting", "options=-c%20no_such_setting=1".to_owned(), "no_such_setting"),
    ] {
        let error = Db::open(target(&url_with(&parameters)), options()).err().expect(label);
        assert!(!error.is_transient() && error.class() == Class::DatabaseUnreachable, "{label}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(expected) && !text.contains(&schema.name), "{label}: {text}");
    }
}

#[test]
fn the_search_path_applies_to_plain_and_pooled_connections() {
    let mut schema = Schema::new();
    let name = schema.name.clone();
    assert_eq!(schema.value("SELECT current_setting('search_path')").as_ref(), Some(&name));
    let db = schema.open(Duration::from_secs(5));
    for _ in 0..3 {
        assert_eq!(setting(&db, "search_path"), name);
    }
}
