//! States: what `read` takes as input, and what `source_state` holds of them.
//!
//! States are opaque. A row holds the `stream_state` of a STREAM state under the stream's key, the `global` object of a
//! GLOBAL state under [`GLOBAL_KEY`], and the `data` of a legacy one under [`LEGACY_KEY`].

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::catalog::{ConfiguredCatalog, SyncMode};
use super::message::{StreamName, stream_name};

/// The row of a GLOBAL state.
pub const GLOBAL_KEY: &str = "_GLOBAL_STATE";
/// The row of a legacy state.
pub const LEGACY_KEY: &str = "_LEGACY_STATE";

/// A state message, taken apart.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// One stream's progress.
    Stream {
        /// Which.
        stream: StreamName,
        /// Its `stream_state` as text; `null` when there is none.
        state: String,
    },
    /// The progress of all streams together: the `global` object as text.
    Global(String),
    /// The progress of an old connector: the `data` as text.
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
    /// Takes the payload of a STATE message apart; `None` when nothing in it is a state.
    pub fn parse(payload: &str) -> Option<Self> {
        let raw: RawState<'_> = serde_json::from_str(payload).ok()?;
        // The type is told by what is there: some sources leave `type` out, or spell it LEGACY beside a stream.
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

/// What a state file has to look like, for messages.
pub const EXPECTED: &str = r#"expected a list of Airbyte state messages such as [{"type":"STREAM","stream":{…}}]"#;

/// Checks the state that a caller gives and drops what must not reach the connector. `None` means from scratch: absent,
/// `null`, `{}` and `[]` do.
///
/// The state of a stream that is read with `full_refresh` is left out, as Airbyte's platform does: a connector would
/// take "complete" from it, send nothing, and the table would be emptied.
pub fn for_connector(document: &str, catalog: &ConfiguredCatalog) -> Result<Option<String>, String> {
    let value: Value = serde_json::from_str(document).map_err(|error| error.to_string())?;
    match value {
        Value::Null => Ok(None),
        Value::Object(legacy) if legacy.is_empty() => Ok(None),
        // Only very old connectors take it, and only they can tell.
        Value::Object(_) => Ok(Some(document.to_owned())),
        Value::Array(_) => {
            let states: Vec<&RawValue> = serde_json::from_str(document).map_err(|error| error.to_string())?;
            let mut kept = Vec::new();
            for (index, state) in states.into_iter().enumerate() {
                let left = filter(state.get(), catalog)
                    .map_err(|NotAState| format!("entry {} is not a state message: {EXPECTED}", index + 1))?;
                kept.extend(left);
            }
            Ok(list(&kept))
        }
        _ => Err(EXPECTED.to_owned()),
    }
}

/// There is no state in what should be a state message.
struct NotAState;

/// One state message without what must not reach the connector; `None` when nothing is left of it. What is kept stays the text that it was: cursors may be numbers that no `f64` holds.
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

/// Which streams a state that is given to the connector lets go on, instead of beginning anew.
///
/// In doubt they go on: rows that come again do less harm than rows that are missing.
#[derive(Debug, Default)]
pub struct Progress {
    /// Names without namespaces, which some sources leave out.
    streams: HashSet<String>,
    /// Only the connector can tell what is in it.
    of_all: bool,
}

impl Progress {
    /// Of the document that [`for_connector`] let pass; `None` is from scratch.
    pub fn of(document: Option<&str>) -> Self {
        let value: Value = document.and_then(|document| serde_json::from_str(document).ok()).unwrap_or_default();
        let states = match value {
            Value::Array(states) => states,
            Value::Object(legacy) => return Self { streams: HashSet::new(), of_all: !legacy.is_empty() },
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
            // A state without streams in it says nothing of any of them.
            let whole = state.get("global").is_some() && parts.is_none_or(Vec::is_empty);
            progress.of_all |= whole || (stream.is_none() && state.get("data").is_some());
        }
        progress
    }

    /// Whether the source goes on with this stream.
    pub fn covers(&self, stream: &StreamName) -> bool {
        self.of_all || self.streams.contains(&stream.name)
    }
}

fn list(states: &[String]) -> Option<String> {
    if states.is_empty() { None } else { Some(format!("[{}]", states.join(","))) }
}

fn is_full_refresh(catalog: &ConfiguredCatalog, name: &StreamName) -> bool {
    catalog.streams.iter().any(|stream| stream.name() == *name && stream.sync_mode == SyncMode::FullRefresh)
}

/// Builds the state document from the rows of `source_state`. Rows of streams that the catalog does not select any
/// more are left out.
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
    fn the_row_of_a_state_is_told_by_what_is_in_it() {
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
    fn rows_become_states_of_the_selected_streams() {
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
    fn a_state_tells_which_streams_go_on() {
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
    fn what_a_caller_gives_is_checked() {
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
                "kept to the letter",
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
