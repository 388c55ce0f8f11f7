use super::{Target, url};
use crate::db::error::DbError;
use crate::failure::Class;
use crate::secret::Secret;

const BASE: &str = "postgresql://user:pass@host:5433/db";

fn target(url: &str) -> Result<Target, DbError> {
    Target::parse(&Secret::from(url), "SYNCCTL_DATABASE_URL")
}

#[test]
fn parse_accepts_every_form_of_url() {
    for (label, url, address, path) in [
        ("plain", BASE, r#"database "db" at host:5433"#, None),
        ("short scheme", "postgres://u@h/d", r#"database "d" at h:5432"#, None),
        ("no database", "postgres://u@h", "the default database at h:5432", None),
        ("search_path", "postgres://u@h/d?search_path=bulker", r#"database "d" at h:5432"#, Some("bulker")),
        ("two schemas", "postgres://u@h/d?search_path=a,public", r#"database "d" at h:5432"#, Some("a,public")),
        ("Prisma", "postgres://u@h/d?schema=newJitsu", r#"database "d" at h:5432"#, Some("\"newJitsu\"")),
        (
            "Prisma's extras",
            "postgres://u@h/d?pgbouncer=true&connection_limit=5&pool_timeout=0&schema=s&sslmode=require",
            r#"database "d" at h:5432"#,
            Some("\"s\""),
        ),
        (
            "options",
            "postgres://u@h/d?options=-c%20search_path%3Dx%20-cstatement_timeout=5s",
            r#"database "d" at h:5432"#,
            Some("x"),
        ),
        ("long option", "postgres://u@h/d?options=--search_path%3Dy", r#"database "d" at h:5432"#, Some("y")),
        ("escaped password", "postgres://u:p%40%2F%3F@h/d", r#"database "d" at h:5432"#, None),
        ("IPv6", "postgres://u@[::1]:6000/d", r#"database "d" at [::1]:6000"#, None),
        ("two hosts", "postgres://u@a:1,b:2/d", r#"database "d" at a:1,b:2"#, None),
        ("socket", "postgres:///d?host=/run/pg&user=u", r#"database "d" at /run/pg:5432"#, None),
        (
            "pairs",
            "host=h port=7 dbname=d user=u password='a b\\'c' search_path=s",
            r#"database "d" at h:7"#,
            Some("s"),
        ),
        (
            "later parameters win",
            "postgres://u@h:1/d?host=x,y&port=2&dbname=e&port=3",
            r#"database "e" at x:3,y:3"#,
            None,
        ),
        ("parameters win", "postgres://u@h:1/d?host=x&port=2&dbname=e", r#"database "e" at x:2"#, None),
        ("port alone", "postgres://u@h/d?port=2", r#"database "d" at h:2"#, None),
        ("allow", "postgres://u@h/d?sslmode=allow", r#"database "d" at h:5432"#, None),
        ("verify-ca", "postgres://u@h/d?sslmode=verify-ca", r#"database "d" at h:5432"#, None),
        ("verify-full", "postgres://u@h/d?sslmode=verify-full", r#"database "d" at h:5432"#, None),
        ("trailing line break", "postgres://u@h/d\n", r#"database "d" at h:5432"#, None),
    ] {
        let target = target(url).unwrap_or_else(|error| panic!("{label}: {error}"));
        assert_eq!((target.address().as_str(), target.search_path()), (address, path), "{label}");
    }
}

#[test]
fn spellings_of_one_address_are_the_same_database() {
    for (one, other, expected) in [
        ("postgres://u@localhost/d", "postgres://v@127.0.0.1:5432/d?sslmode=disable", true),
        ("postgres://u@LocalHost:6000/d", "host=::1 port=6000 dbname=d user=w", true),
        ("postgres://u@db.example.com/d", "postgres://u@DB.example.com.:5432/d?search_path=s", true),
        ("postgres://u@a,b/d", "postgres://u@b/d", true),
        ("postgres://d@h", "postgres://u@h/d", true),
        ("postgres://u@%2Frun%2Fsocket:7/d", "host=/run/socket/ port=7 dbname=d user=u", true),
        ("postgres://u@h/d", "postgres://u@h:5433/d", false),
        ("postgres://u@h/d", "postgres://u@h/e", false),
        ("postgres://u@h/d", "postgres://u@i/d", false),
        ("postgres://u@%2Frun%2Fsocket/d", "postgres://u@localhost/d", false),
    ] {
        let [one, other] = [one, other].map(|url| target(url).unwrap_or_else(|error| panic!("{url}: {error}")));
        assert_eq!(one.is_same_database(&other), expected, "{one:?} and {other:?}");
    }
}

#[test]
fn errors_of_a_url_do_not_quote_secrets() {
    for (label, url, expected) in [
        ("empty", " ", "is empty"),
        ("other scheme", "mysql://user:hunter2@h/d", "is not the URL of a PostgreSQL database"),
        ("no scheme", "hunter2", "is not the URL of a PostgreSQL database"),
        ("unknown parameter", "postgres://u:hunter2@h/d?foo=hunter2", "unknown option `foo`"),
        ("unknown mode", "postgres://u:hunter2@h/d?sslmode=maybe", r#"unknown sslmode "maybe""#),
        ("bad port", "postgres://u:hunter2@h:no/d", "cannot be parsed"),
        ("bare question mark", "postgres://u:hunter2?x@h/d", "cannot be parsed"),
        ("no host", "postgres:///d?user=u", "names no host"),
        ("two schemas", "postgres://u@h/d?schema=a&search_path=b", "names two different schemas"),
        ("empty schema", "postgres://u@h/d?schema=", "names an empty schema"),
        ("odd options", "postgres://u@h/d?options=-f", "-c NAME=VALUE"),
        ("number", "postgres://u@h/d?connect_timeout=hunter2", "invalid value for option `connect_timeout`"),
        ("cut escape", "postgres://u@h/d?user=a%4", r#"parameter "user""#),
        ("odd name", "postgres://u@h/d?a'b=hunter2", "unknown option"),
        ("bad port parameter", "postgres://u@h/d?port=hunter2", "invalid value for option `port`"),
        ("bad timeout", "postgres://u@h/d?tcp_user_timeout=hunter2", "invalid value for option `tcp_user_timeout`"),
        ("bad escape", "postgres://u@h/d?user=%zz", r#"parameter "user""#),
        ("open quote", "host=h password='hunter2", "cannot be parsed"),
        ("word at the end", "host=h password=x hunter2", "cannot be parsed"),
        ("stray word", "host=h password=x hunter2 y=z", "cannot be parsed"),
        ("missing file", "postgres://u@h/d?sslmode=verify-ca&sslrootcert=/no/such", "cannot read the root certificate"),
        ("half a client", "postgres://u@h/d?sslcert=/no/such", "needs both sslcert and sslkey"),
    ] {
        let error = target(url).expect_err(label);
        let text = error.to_string();
        assert!(text.starts_with("SYNCCTL_DATABASE_URL: ") && text.contains(expected), "{label}: {text}");
        assert!(!text.contains("hunter2"), "{label}: {text}");
        assert_eq!(error.class(), Class::InvalidInput, "{label}");
    }
}

#[test]
fn only_a_regular_file_of_bounded_size_is_read() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let made = std::process::Command::new("mkfifo").arg(path("fifo")).status().expect("mkfifo");
    assert!(made.success());
    std::fs::write(path("large"), vec![b'-'; (1 << 20) + 1]).expect("a file");
    std::fs::write(path("text"), "no certificate").expect("a file");
    for (file, expected) in [
        (path("fifo"), "not a regular file"),
        ("/dev/zero".to_owned(), "not a regular file"),
        (path(""), "not a regular file"),
        (path("large"), "larger than 1 MiB"),
        (path("text"), "not PEM text"),
        (path("missing"), "No such file"),
    ] {
        let url = format!("postgres://u@h/d?sslmode=verify-ca&sslrootcert={file}");
        let text = target(&url).expect_err(&file).to_string();
        assert!(text.contains(&file) && text.contains(expected), "{file}: {text}");
    }
}

#[test]
fn debug_output_of_a_target_contains_no_secret() {
    let target = target("postgres://someone:hunter2@h/d").expect("a valid URL");
    let text = format!("{target:?}");
    assert!(!text.contains("hunter2") && !text.contains("someone"), "{text}");
}

#[test]
fn percent_encoding_and_quotes_are_decoded() {
    for (label, url, user, password) in [
        ("URL", "postgres://a%40b:p%25w@h/d", "a@b", "p%w"),
        ("parameters", "postgres://h/d?user=a%26b&password=x%3Dy%2Bz+", "a&b", "x=y+z+"),
        ("pairs", r"host=h user='a b' password=x\'y", "a b", "x'y"),
    ] {
        let (config, _) = url::parse(url).and_then(|parameters| parameters.config()).expect(label);
        assert_eq!(config.get_user(), Some(user), "{label}");
        assert_eq!(config.get_password(), Some(password.as_bytes()), "{label}");
    }
}

#[test]
fn values_with_special_characters_reach_the_driver_unchanged() {
    let config = url::parse(r"host=h application_name='it\'s \\ here' password='\\\''")
        .and_then(|parameters| parameters.config());
    let (config, _) = config.expect("valid pairs");
    assert_eq!(config.get_application_name(), Some(r"it's \ here"));
    assert_eq!(config.get_password(), Some(br"\'".as_slice()));
}

#[test]
fn tcp_user_timeout_is_in_milliseconds() {
    let config = url::parse("postgres://u@h/d?tcp_user_timeout=1500").and_then(|parameters| parameters.config());
    let timeout = config.expect("a valid URL").0.get_tcp_user_timeout().copied();
    assert_eq!(timeout, Some(std::time::Duration::from_millis(1500)));
}
