use secrecy::ExposeSecret;

use super::{first_schema, parse};
use crate::db::connect::Target;
use crate::db::error::DbError;
use crate::failure::Class;
use crate::secret::Secret;

const BASE: &str = "postgresql://user:pass@host:5433/db";

fn target(url: &str) -> Result<Target, DbError> {
    Target::parse(&Secret::from(url), "SYNCCTL_DATABASE_URL")
}

#[test]
fn every_form_of_url_leads_to_its_place_and_search_path() {
    for (label, url, place, path) in [
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
        ("parameters win", "postgres://u@h:1/d?host=x&port=2&dbname=e", r#"database "e" at x:2"#, None),
        ("port alone", "postgres://u@h/d?port=2", r#"database "d" at h:2"#, None),
        ("allow", "postgres://u@h/d?sslmode=allow", r#"database "d" at h:5432"#, None),
        ("verify-ca", "postgres://u@h/d?sslmode=verify-ca", r#"database "d" at h:5432"#, None),
        ("verify-full", "postgres://u@h/d?sslmode=verify-full", r#"database "d" at h:5432"#, None),
        ("trailing line break", "postgres://u@h/d\n", r#"database "d" at h:5432"#, None),
    ] {
        let target = target(url).unwrap_or_else(|error| panic!("{label}: {error}"));
        assert_eq!((target.address().as_str(), target.search_path()), (place, path), "{label}");
    }
}

#[test]
fn what_is_wrong_with_a_url_is_told_without_its_secrets() {
    for (label, url, expected) in [
        ("empty", " ", "is empty"),
        ("other scheme", "mysql://user:hunter2@h/d", "is not the URL of a PostgreSQL database"),
        ("no scheme", "hunter2", "is not the URL of a PostgreSQL database"),
        ("unknown parameter", "postgres://u:hunter2@h/d?foo=hunter2", r#"unknown parameter "foo""#),
        ("unknown mode", "postgres://u:hunter2@h/d?sslmode=maybe", r#"unknown sslmode "maybe""#),
        ("bad port", "postgres://u:hunter2@h:no/d", "cannot be read"),
        ("bare question mark", "postgres://u:hunter2?x@h/d", "cannot be read"),
        ("no host", "postgres:///d?user=u", "names no host"),
        ("two schemas", "postgres://u@h/d?schema=a&search_path=b", "names two different schemas"),
        ("empty schema", "postgres://u@h/d?schema=", "names an empty schema"),
        ("odd options", "postgres://u@h/d?options=-f", "-c NAME=VALUE"),
        ("number", "postgres://u@h/d?connect_timeout=hunter2", r#"parameter "connect_timeout""#),
        ("bad escape", "postgres://u@h/d?user=%zz", r#"parameter "user""#),
        ("open quote", "host=h password='hunter2", "cannot be read"),
        ("stray word", "host=h password=x hunter2 y=z", "cannot be read"),
        ("missing file", "postgres://u@h/d?sslmode=verify-ca&sslrootcert=/no/such", "reading the root certificate"),
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
fn the_debug_form_of_a_target_holds_no_secret() {
    let target = target("postgres://someone:hunter2@h/d").expect("a valid URL");
    let text = format!("{target:?}");
    assert!(!text.contains("hunter2") && !text.contains("someone"), "{text}");
}

#[test]
fn percent_encoding_and_quotes_are_undone() {
    for (label, url, user, password) in [
        ("URL", "postgres://a%40b:p%25w@h/d", "a@b", "p%w"),
        ("parameters", "postgres://h/d?user=a%26b&password=x%3Dy%2Bz+", "a&b", "x=y+z+"),
        ("pairs", r"host=h user='a b' password=x\'y", "a b", "x'y"),
    ] {
        let parts = parse(Secret::from(url).expose_secret()).expect(label);
        assert_eq!(parts.config.get_user(), Some(user), "{label}");
        assert_eq!(parts.config.get_password(), Some(password.as_bytes()), "{label}");
    }
}

#[test]
fn the_first_schema_of_a_search_path_is_where_tables_are_made() {
    for (path, expected) in [
        ("bulker", Some("bulker")),
        ("Bulker, public", Some("bulker")),
        ("\"newJitsu\"", Some("newJitsu")),
        ("\"a\"\"b,c\",d", Some("a\"b,c")),
        ("\"$user\", public", None),
        ("$user", None),
    ] {
        assert_eq!(first_schema(path).as_deref(), expected, "{path}");
    }
}
