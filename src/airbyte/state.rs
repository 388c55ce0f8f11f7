//! States: the input of `read`, and their form in `source_state`.
//!
//! States are opaque. A row holds the `stream_state` of a STREAM state under the stream's key, the `global` object of a
//! GLOBAL state under [`GLOBAL_KEY`], or the `data` of a legacy state under [`LEGACY_KEY`].

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::catalog::{ConfiguredCatalog, SyncMode};
use super::message::{StreamName, stream_name};

/// Key of the row of a GLOBAL state.
pub const GLOBAL_KEY: &str = "_GLOBAL_STATE";
/// Key of the row of a legacy state.
pub const LEGACY_KEY: &str = "_LEGACY_STATE";

/// The payload of a STATE message.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// The state of one stream.
    Stream {
        /// The stream.
        stream: StreamName,
        /// The text of its `stream_state`; `null` if absent.
        state: String,
    },
    /// The state of all streams: the text of the `global` object.
    Global(String),
    /// The state of an old connector: the text of its `data`.
    Legacy(String),
}

#[derive(Deserialize)]
struct RawState<'a> {
    #[serde(default)]
    stream: Option<RawStream<'a>>,
    #[serde(borrow, default)]
    global: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawStream<'a> {
    #[serde(default)]
    stream_descriptor: Value,
    #[serde(borrow, default)]
    stream_state: Option<&'a RawValue>,
}

impl State {
    /// Parses the payload of a STATE message; `None` if it holds no state.
    pub fn parse(payload: &str) -> Option<Self> {
        let raw: RawState<'_> = serde_json::from_str(payload).ok()?;
        // Decided by the fields: some sources omit `type`, or write LEGACY together with a stream.
        if let Some(stream) = raw.stream {
            let name = stream_name(&stream.stream_descriptor)?;
            let state = stream.stream_state.map_or("null", RawValue::get).to_owned();
            return Some(Self::Stream { stream: name, state });
        }
        if let Some(global) = raw.global.filter(|global| global.get() != "null") {
            return Some(Self::Global(global.get().to_owned()));
        }
        raw.data.map(|data| Self::Legacy(data.get().to_owned()))
    }

    /// The row in `source_state`: key and document.
    pub fn row(self) -> (String, String) {
        match self {
            Self::Stream { stream, state } => (stream.key(), state),
            Self::Global(state) => (GLOBAL_KEY.to_owned(), state),
            Self::Legacy(state) => (LEGACY_KEY.to_owned(), state),
        }
    }
}

/// The expected form of a state file, for error messages.
pub const EXPECTED: &str = r#"expected a list of Airbyte state messages such as [{"type":"STREAM","stream":{…}}]"#;

/// Validates the state that a caller provides and removes what must not reach the connector. `None` means from scratch,
/// as do `null`, `{}` and `[]`.
///
/// Like Airbyte's platform, this removes the states of streams in `full_refresh` mode: a connector could conclude from
/// one that the stream is complete and send no rows, which would empty the table.
pub fn for_connector(document: &str, catalog: &ConfiguredCatalog) -> Result<Option<String>, String> {
    let value: Value = serde_json::from_str(document).map_err(|error| error.to_string())?;
    match value {
        Value::Null => Ok(None),
        Value::Object(legacy) if legacy.is_empty() => Ok(None),
        // Only very old connectors use this form, and only they can validate it.
        Value::Object(_) => Ok(Some(document.to_owned())),
        Value::Array(_) => {
            let states: Vec<&RawValue> = serde_json::from_str(document).map_err(|error| error.to_string())?;
            let mut remaining = Vec::new();
            for (index, state) in states.into_iter().enumerate() {
                let state = filter(state.get(), catalog)
                    .map_err(|NotAState| format!("entry {} is not a state message: {EXPECTED}", index + 1))?;
                remaining.extend(state);
            }
            Ok(list(&remaining))
        }
        _ => Err(EXPECTED.to_owned()),
    }
}

/// A document that should be a state message holds no state.
struct NotAState;

/// One state message without the states of streams in `full_refresh` mode; `None` if none remain. The text of an unchanged
/// message is preserved: cursors may be numbers that no `f64` holds.
fn filter(state: &str, catalog: &ConfiguredCatalog) -> Result<Option<String>, NotAState> {
    let mut value: Value = serde_json::from_str(state).map_err(|_| NotAState)?;
    if !["stream", "global", "data"].iter().any(|key| value.get(key).is_some()) {
        return Err(NotAState);
    }
    let is_full_refresh = |descriptor: Option<&Value>| {
        let name = descriptor.and_then(stream_name);
        name.is_some_and(|name| is_full_refresh(catalog, &name))
    };
    if is_full_refresh(value.get("stream").and_then(|stream| stream.get("stream_descriptor"))) {
        return Ok(None);
    }
    if let Some(streams) = value.pointer_mut("/global/stream_states").and_then(Value::as_array_mut) {
        let before = streams.len();
        streams.retain(|stream| !is_full_refresh(stream.get("stream_descriptor")));
        if streams.len() < before {
            return Ok(Some(value.to_string()));
        }
    }
    Ok(Some(state.to_owned()))
}

/// Which streams the connector resumes, given its input state, instead of reading them from scratch.
///
/// When in doubt a stream counts as resumed: rows that are sent twice do less harm than missing rows.
#[derive(Debug, Default)]
pub struct Progress {
    /// Names without namespaces, which some sources omit.
    streams: HashSet<String>,
    /// The state is opaque and may cover any stream.
    any_stream: bool,
}

impl Progress {
    /// From a document returned by [`for_connector`]; `None` means from scratch.
    pub fn of(document: Option<&str>) -> Self {
        let value: Value = document.and_then(|document| serde_json::from_str(document).ok()).unwrap_or_default();
        let states = match value {
            Value::Array(states) => states,
            Value::Object(legacy) => return Self { streams: HashSet::new(), any_stream: !legacy.is_empty() },
            _ => Vec::new(),
        };
        let mut progress = Self::default();
        for state in &states {
            let stream = state.get("stream");
            let with_state = stream.filter(|stream| stream.get("stream_state").is_some_and(|state| !state.is_null()));
            let parts = state.pointer("/global/stream_states").and_then(Value::as_array);
            let streams = with_state.into_iter().chain(parts.into_iter().flatten());
            let names = streams.filter_map(|stream| stream_name(stream.get("stream_descriptor")?));
            progress.streams.extend(names.map(|name| name.name));
            // A state that lists no streams may cover any of them.
            let opaque = state.get("global").is_some() && parts.is_none_or(Vec::is_empty);
            progress.any_stream |= opaque || (stream.is_none() && state.get("data").is_some());
        }
        progress
    }

    /// Whether the source resumes this stream.
    pub fn covers(&self, stream: &StreamName) -> bool {
        self.any_stream || self.streams.contains(&stream.name)
    }
}

fn list(states: &[String]) -> Option<String> {
    if states.is_empty() { None } else { Some(format!("[{}]", states.join(","))) }
}

fn is_full_refresh(catalog: &ConfiguredCatalog, name: &StreamName) -> bool {
    catalog.streams.iter().any(|stream| stream.name() == *name && stream.sync_mode == SyncMode::FullRefresh)
}

/// Builds the state document from the rows of `source_state`, without those of streams that the catalog no longer
/// selects.
pub fn from_rows(rows: &[(String, String)], catalog: &ConfiguredCatalog) -> Result<Option<String>, String> {
    let row = |key: &str| rows.iter().find(|(stored, _)| stored == key);
    if let Some((_, global)) = row(GLOBAL_KEY) {
        return for_connector(&format!(r#"[{{"type":"GLOBAL","global":{global}}}]"#), catalog);
    }
    let mut states = Vec::new();
    for stream in &catalog.streams {
        let name = stream.name();
        if let Some((_, state)) = row(&name.key()) {
            let mut descriptor = json!({"name": name.name});
            if let Some(namespace) = &name.namespace {
                descriptor["namespace"] = json!(namespace);
            }
            let stream = format!(r#"{{"stream_descriptor":{descriptor},"stream_state":{state}}}"#);
            states.push(format!(r#"{{"type":"STREAM","stream":{stream}}}"#));
        }
    }
    if states.is_empty()
        && let Some((_, legacy)) = row(LEGACY_KEY)
    {
        return Ok(Some(legacy.clone()));
    }
    for_connector(&format!("[{}]", states.join(",")), catalog)
}

#[cfg(test)]
mod tests {
    use super::{Progress, State, for_connector, from_rows};
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
            ("no stream_state", r#"{"stream":{"stream_descriptor":{"name":"s"}}}"#, Some(("s", "null"))),
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
        let expected = r#"[{"type":"STREAM","stream":{"stream_descriptor":{"name":"a.b","namespace":"n"},"stream_state":{"c":1}}}]"#;
        assert_eq!(from_rows(&rows, &catalog()), Ok(Some(expected.to_owned())));
        assert_eq!(from_rows(&[], &catalog()), Ok(None));
    }

    #[test]
    fn progress_covers_the_streams_of_a_state() {
        let global =
            |streams: &str| format!(r#"[{{"global":{{"shared_state":{{"lsn":1}},"stream_states":{streams}}}}}]"#);
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
            (
                "only a full refresh",
                r#"[{"stream":{"stream_descriptor":{"name":"full"},"stream_state":{}}}]"#,
                Ok(None),
            ),
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
}
