//! Configurations that connectors have updated.

use super::support::Schema;

#[test]
fn a_stored_config_belongs_to_sync_package_and_given_config() {
    let schema = Schema::new();
    let db = schema.ready();
    let stored = |sync: &str, package: &str, given: &str| {
        db.stored_config(sync, package, given).expect("readable").map(|stored| stored.config)
    };
    assert_eq!(stored("s", "p", "a"), None);
    assert!(db.save_config("s", "p", "a", r#"{"token": "one\u0000"}"#).expect("writable"));
    assert!(db.save_config("other", "p", "a", r#"{"token": "theirs"}"#).expect("writable"));
    assert_eq!(stored("s", "p", "a").as_deref(), Some(r#"{"token": "one"}"#));
    assert_eq!((stored("s", "p", "b"), stored("s", "q", "a")), (None, None));
    assert!(db.save_config("s", "p", "b", r#"{"n": 9007199254740993}"#).expect("writable"));
    assert_eq!(stored("s", "p", "a"), None, "the caller has sent another configuration");
    assert_eq!(stored("s", "p", "b").as_deref(), Some(r#"{"n": 9007199254740993}"#));
}

#[test]
fn save_config_returns_false_without_the_table() {
    let mut schema = Schema::new();
    let db = schema.ready();
    schema.sql("DROP TABLE source_config");
    assert!(db.stored_config("s", "p", "a").expect("readable").is_none());
    assert!(!db.save_config("s", "p", "a", "{}").expect("answered"));
}
