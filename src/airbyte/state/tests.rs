//! States of all kinds, and what of them reaches a connector.

use super::{Progress, State, as_text, for_connector, from_rows, global_streams, is_as_text, with_stored_global};
use crate::airbyte::catalog::ConfiguredCatalog;
use crate::airbyte::message::StreamName;

fn catalog() -> ConfiguredCatalog {
    serde_json::from_str(
        r#"{"streams":[{"stream":{"name":"a.b","namespace":"n"},"sync_mode":"incremental"},{"stream":{"name":"full"}}]}"#,
    )
    .expect("a catalog")
}

#[test]
fn state_types_follow_from_their_fields() {
    for (label, payload, expected) in [
        (
            "stream",
            r#"{"type":"STREAM","stream":{"stream_descriptor":{"name":"s","namespace":"n"},"stream_state":{"z": 1.0,"a":2}},"sourceStats":{"recordCount":1.0}}"#,
            Some(("n.s", r#"{"z": 1.0,"a":2}"#)),
        ),
        ("no stream_state", r#"{"stream":{"stream_descriptor":{"name":"s"}}}"#, None),
        ("null", r#"{"stream":{"stream_descriptor":{"name":"s"},"stream_state": null }}"#, None),
        ("a global null", r#"{"type":"GLOBAL","global":null}"#, None),
        ("a legacy null", r#"{"data":null}"#, None),
        (
            "global",
            r#"{"type":"GLOBAL","global":{"stream_states":[]}}"#,
            Some(("_GLOBAL_STATE", r#"{"stream_states":[]}"#)),
        ),
        ("legacy without a type", r#"{"data":{"c":1}}"#, Some(("_LEGACY_STATE", r#"{"c":1}"#))),
        ("nothing", r#"{"type":"STREAM"}"#, None),
    ] {
        let row = State::parse(payload).map(State::row);
        let row = row.as_ref().map(|(key, state)| (key.as_str(), state.as_str()));
        assert_eq!(row, expected, "{label}");
    }
}

#[test]
fn state_document_holds_the_selected_streams() {
    let rows = [
        ("n.a.b".to_owned(), r#"{"c":1}"#.to_owned()),
        ("full".to_owned(), "{}".to_owned()),
        ("gone".to_owned(), "{}".to_owned()),
    ];
    let expected =
        r#"[{"type":"STREAM","stream":{"stream_descriptor":{"name":"a.b","namespace":"n"},"stream_state":{"c":1}}}]"#;
    assert_eq!(from_rows(&rows, &catalog()), Ok(Some(expected.to_owned())));
    assert_eq!(from_rows(&[], &catalog()), Ok(None));
}

#[test]
fn states_of_both_kinds_are_one_document_with_the_global_one_first() {
    let pair = |key: &str, state: &str| (key.to_owned(), state.to_owned());
    let global = r#"{"shared_state":{"lsn":99999999999999999999},"stream_states":[]}"#;
    let rows = [pair("n.a.b", "1.50"), pair("_GLOBAL_STATE", global), pair("full", "{}"), pair("_LEGACY_STATE", "{}")];
    let expected = format!(
        r#"[{{"type":"GLOBAL","global":{global}}},{{"type":"STREAM","stream":{{"stream_descriptor":{{"name":"a.b","namespace":"n"}},"stream_state":1.50}}}}]"#
    );
    assert_eq!(from_rows(&rows, &catalog()), Ok(Some(expected)));
    for rows in [vec![pair("n.a.b", "null")], vec![pair("_LEGACY_STATE", "null")], vec![pair("_GLOBAL_STATE", "null")]]
    {
        assert_eq!(from_rows(&rows, &catalog()), Ok(None), "null is no state");
    }
}

#[test]
fn documents_that_jsonb_cannot_hold_are_restored() {
    let state = r#"{"b": "x\u0000y\ud800", "a": 1e5}"#;
    let rows = |key: &str, document: &str| [(key.to_owned(), as_text(document))];
    let stream = format!(
        r#"[{{"type":"STREAM","stream":{{"stream_descriptor":{{"name":"a.b","namespace":"n"}},"stream_state":{state}}}}}]"#
    );
    assert_eq!(from_rows(&rows("n.a.b", state), &catalog()), Ok(Some(stream)));
    let global = format!(r#"{{"shared_state":{state},"stream_states":[{{"stream_descriptor":{{"name":"a"}}}}]}}"#);
    let expected = format!(r#"[{{"type":"GLOBAL","global":{global}}}]"#);
    assert_eq!(from_rows(&rows("_GLOBAL_STATE", &global), &catalog()), Ok(Some(expected)));
    assert_eq!(global_streams(&as_text(&global)), ["a"]);
    assert_eq!(from_rows(&rows("_LEGACY_STATE", state), &catalog()), Ok(Some(state.to_owned())));
    // What a source or a caller sends may have that field: only a document as its text is one.
    for other in [r#"{"_syncctl_text": "{}", "of": "a source"}"#, r#"{"_syncctl_text": "}]"}"#] {
        let document = format!(r#"[{{"type":"LEGACY","data":{other}}}]"#);
        assert_eq!(for_connector(&document, &catalog()), Ok(Some(document)));
        assert!(!is_as_text(other), "{other}");
    }
    let of_source = as_text("{}");
    assert!(is_as_text(&of_source));
    assert_eq!(from_rows(&rows("_LEGACY_STATE", &of_source), &catalog()), Ok(Some(of_source)));
}

#[test]
fn a_stored_global_state_is_added_to_stored_states_of_streams_only() {
    let rows = [("_GLOBAL_STATE", r#"{"lsn":1}"#), ("s", r#"{"a":1,"b":2}"#), ("n.t", "1")];
    let rows = rows.map(|(key, state)| (key.to_owned(), state.to_owned()));
    let entry = |name: &str, state: &str| {
        format!(r#"{{"type":"STREAM","stream":{{"stream_descriptor":{name},"stream_state":{state}}}}}"#)
    };
    let (s, t) = (entry(r#"{"name":"s"}"#, r#"{"b":2, "a":1}"#), entry(r#"{"name":"t","namespace":"n"}"#, "1"));
    let global = r#"{"type":"GLOBAL","global":{"lsn":1}}"#;
    for (label, document, expected) in [
        ("all", format!("[{s},{t}]"), Some(format!("[{global},{s},{t}]"))),
        ("some", format!("[{t}]"), Some(format!("[{global},{t}]"))),
        ("none", "[]".to_owned(), None),
        ("another state", format!("[{}]", entry(r#"{"name":"s"}"#, "2")), None),
        ("a global one", format!("[{global}]"), None),
        ("legacy", r#"{"a":1}"#.to_owned(), None),
    ] {
        assert_eq!(with_stored_global(&document, &rows), expected, "{label}");
        assert_eq!(with_stored_global(&document, &rows[1..]), None, "{label}, nothing to add");
    }
}

#[test]
fn progress_covers_the_streams_of_a_state() {
    let global = |streams: &str| format!(r#"[{{"global":{{"shared_state":{{"lsn":1}},"stream_states":{streams}}}}}]"#);
    for (label, state, expected) in [
        ("none", None, [false, false]),
        ("an empty list", Some("[]".to_owned()), [false, false]),
        ("a legacy object", Some(r#"{"c":1}"#.to_owned()), [true, true]),
        ("a legacy message", Some(r#"[{"data":{"c":1}}]"#.to_owned()), [true, true]),
        (
            "one stream, without its namespace",
            Some(r#"[{"stream":{"stream_descriptor":{"name":"a"},"stream_state":{}}}]"#.to_owned()),
            [true, false],
        ),
        (
            "no state of a stream",
            Some(r#"[{"stream":{"stream_descriptor":{"name":"a"},"stream_state":null}}]"#.to_owned()),
            [false, false],
        ),
        ("global, with one", Some(global(r#"[{"stream_descriptor":{"name":"b"}}]"#)), [false, true]),
        ("global, with none", Some(global("[]")), [true, true]),
    ] {
        let progress = Progress::of(state.as_deref());
        let covers = |name| progress.covers(&StreamName::new(Some("n"), name));
        assert_eq!([covers("a"), covers("b")], expected, "{label}");
    }
}

#[test]
fn caller_states_are_validated_and_filtered() {
    for (label, text, expected) in [
        ("null", "null", Ok(None)),
        ("empty object", "{}", Ok(None)),
        ("empty list", "[]", Ok(None)),
        ("legacy", r#"{"c":1}"#, Ok(Some(r#"{"c":1}"#))),
        ("only a full refresh", r#"[{"stream":{"stream_descriptor":{"name":"full"},"stream_state":{}}}]"#, Ok(None)),
        (
            "unchanged text",
            r#"[{"data": {"n": 99999999999999999999.10}}]"#,
            Ok(Some(r#"[{"data": {"n": 99999999999999999999.10}}]"#)),
        ),
        (
            "a full refresh in a global state",
            r#"[{"global":{"stream_states":[{"stream_descriptor":{"name":"full"}},{"stream_descriptor":{"name":"x"}}]}}]"#,
            Ok(Some(r#"[{"global":{"stream_states":[{"stream_descriptor":{"name":"x"}}]}}]"#)),
        ),
        (
            "digits and keys in a filtered global state",
            r#"[{"type": "GLOBAL", "global": {"z\u0041": 1E400, "shared_state": {"n": 99999999999999999999.10}, "stream_states": [{"stream_descriptor": {"name": "x"}, "stream_state": {"é": 12345678901234567.25}}, {"stream_descriptor": {"name": "full"}}]}, "id": 0.1e1}]"#,
            Ok(Some(
                r#"[{"type":"GLOBAL","global":{"zA":1E400,"shared_state":{"n": 99999999999999999999.10},"stream_states":[{"stream_descriptor": {"name": "x"}, "stream_state": {"é": 12345678901234567.25}}]},"id":0.1e1}]"#,
            )),
        ),
        ("no state of a stream", r#"[{"stream":{"stream_descriptor":{"name":"x"},"stream_state":null}}]"#, Ok(None)),
        ("a number", "12", Err("expected a list")),
        ("not a state", r#"[{"foo":1}]"#, Err("entry 1 is not a state message")),
    ] {
        let got = for_connector(text, &catalog());
        match (got, expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got.as_deref(), expected, "{label}"),
            (Err(got), Err(expected)) => assert!(got.contains(expected), "{label}: {got}"),
            (got, expected) => panic!("{label}: {got:?} instead of {expected:?}"),
        }
    }
}
