//! Configurations that connectors have renewed.

use super::support::Schema;

#[test]
fn a_kept_configuration_belongs_to_one_sync_one_connector_and_what_the_caller_sent() {
    let schema = Schema::new();
    let db = schema.ready();
    let kept = |sync: &str, package: &str, given: &str| {
        db.stored_config(sync, package, given).expect("readable").map(|kept| kept.config)
    };
    assert_eq!(kept("s", "p", "a"), None);
    assert!(db.save_config("s", "p", "a", r#"{"token": "one\u0000"}"#).expect("writable"));
    assert!(db.save_config("other", "p", "a", r#"{"token": "theirs"}"#).expect("writable"));
    assert_eq!(kept("s", "p", "a").as_deref(), Some(r#"{"token": "one"}"#));
    assert_eq!((kept("s", "p", "b"), kept("s", "q", "a")), (None, None));
    assert!(db.save_config("s", "p", "b", r#"{"n": 9007199254740993}"#).expect("writable"));
    assert_eq!(kept("s", "p", "a"), None, "the caller has sent another one since");
    assert_eq!(kept("s", "p", "b").as_deref(), Some(r#"{"n": 9007199254740993}"#));
}

#[test]
fn a_database_without_the_table_keeps_nothing_and_says_so() {
    let mut schema = Schema::new();
    let db = schema.ready();
    schema.sql("DROP TABLE source_config");
    assert!(db.stored_config("s", "p", "a").expect("readable").is_none());
    assert!(!db.save_config("s", "p", "a", "{}").expect("answered"));
}
