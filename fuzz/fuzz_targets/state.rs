//! States: what a source sends, and what a caller gives. The first line is the state, the others are the catalog.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::Value;
use syncctl::airbyte::catalog::ConfiguredCatalog;
use syncctl::airbyte::message::StreamName;
use syncctl::airbyte::state::{self, Progress, State};
use syncctl::db::text::clean_json;

/// One stream of each mode.
const CATALOG: &str = r#"{"streams":[{"stream":{"name":"full"},"sync_mode":"full_refresh"},{"stream":{"name":"new","namespace":"n"},"sync_mode":"incremental"}]}"#;

fuzz_target!(|text: &str| {
    let (document, catalog) = text.split_once('\n').unwrap_or((text, CATALOG));
    let Ok(catalog) = serde_json::from_str::<ConfiguredCatalog>(catalog) else { return };
    let mut rows = Vec::new();
    match State::parse(document) {
        Some(state) => {
            let (key, row) = state.row();
            assert_json(&row);
            restore(&row, &catalog);
            rows.push((key, row));
        }
        None => _ = State::why_none(document),
    }
    State::claimed_records(document);
    state::has_global(document);
    state::global_streams(document);
    if is_json(document) {
        let clean = clean_json(document);
        assert_json(&clean);
        if let Ok(value) = serde_json::from_str::<Value>(&clean) {
            assert!(!has_nul(&value), "{clean}");
        }
    }
    given(document, &catalog);
    state::with_stored_global(document, &rows);
    if let Ok(Some(stored)) = state::from_rows(&rows, &catalog) {
        given(&stored, &catalog);
    }
});

/// What reaches the connector is JSON, has nothing for streams in full refresh mode, and is not changed further.
fn given(document: &str, catalog: &ConfiguredCatalog) {
    let Ok(Some(given)) = state::for_connector(document, catalog) else { return };
    assert_json(&given);
    // A text within a text is restored in the next pass.
    if !given.contains("_syncctl_text") {
        assert_eq!(state::for_connector(&given, catalog), Ok(Some(given.clone())), "{document}");
    }
    Progress::of(Some(&given)).covers(&StreamName::new(Some("n"), "new"));
}

/// A document that `jsonb` cannot hold comes back as it was.
fn restore(row: &str, catalog: &ConfiguredCatalog) {
    let stored = [("any".to_owned(), state::as_text(row))];
    let mut any = catalog.clone();
    any.streams.truncate(1);
    let Some(stream) = any.streams.first_mut() else { return };
    stream.stream.name = "any".to_owned();
    stream.stream.namespace = None;
    stream.sync_mode = syncctl::airbyte::catalog::SyncMode::Incremental;
    let restored = state::from_rows(&stored, &any).expect("a state").expect("a stream");
    assert!(restored.contains(row), "{row}: {restored}");
}

/// Whether a string has the character that no text of Postgres holds.
fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

#[track_caller]
fn assert_json(text: &str) {
    assert!(is_json(text), "{text}");
}
