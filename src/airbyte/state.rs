//! States: the input of `read`, and their form in `source_state`.
//!
//! States are opaque, and their numbers may be larger than any `f64`: they are passed on as text. A row holds the
//! `stream_state` of a STREAM state under the stream's key, the `global` object of a GLOBAL state under [`GLOBAL_KEY`], or
//! the `data` of a legacy state under [`LEGACY_KEY`].

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashSet;

use indexmap::IndexMap;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::catalog::{ConfiguredCatalog, SyncMode};
use super::message::{StreamName, count, keys, stream_name};

/// Key of the row of a GLOBAL state.
pub const GLOBAL_KEY: &str = "_GLOBAL_STATE";
/// Key of the row of a legacy state.
pub const LEGACY_KEY: &str = "_LEGACY_STATE";

/// The only field of a row whose document `jsonb` cannot hold: the text of the document.
const TEXT: &str = "_syncctl_text";

/// The payload of a STATE message.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// The state of one stream.
    Stream {
        /// The stream.
        stream: StreamName,
        /// The text of its `stream_state`.
        state: String,
    },
    /// The state of all streams: the text of the `global` object.
    Global(String),
    /// The state of an old connector: the text of its `data`.
    Legacy(String),
}

impl State {
    /// Parses the payload of a STATE message; `None` if it holds no state, or `null` in its place.
    pub fn parse(payload: &str) -> Option<Self> {
        let fields: Fields<'_> = serde_json::from_str(payload).ok()?;
        // Decided by the fields: some sources omit `type`, or write LEGACY together with a stream.
        if let Some(stream) = value(&fields, "stream") {
            let stream: Fields<'_> = serde_json::from_str(stream.get()).ok()?;
            let name = descriptor(&stream)?;
            let state = value(&stream, "stream_state")?.get().to_owned();
            return Some(Self::Stream { stream: name, state });
        }
        if let Some(global) = value(&fields, "global") {
            return Some(Self::Global(global.get().to_owned()));
        }
        value(&fields, "data").map(|data| Self::Legacy(data.get().to_owned()))
    }

    /// The number of records since the last state, as the payload of a STATE message claims it in `sourceStats`.
    pub fn claimed_records(payload: &str) -> Option<u64> {
        let fields: Fields<'_> = serde_json::from_str(payload).ok()?;
        let stats: Value = serde_json::from_str(value(&fields, "sourceStats")?.get()).ok()?;
        stats.get("recordCount").and_then(count)
    }

    /// Why [`parse`](Self::parse) finds no state in a payload; `None` where `null` is in its place, which some sources send.
    pub fn why_none(payload: &str) -> Option<String> {
        let value: Value = serde_json::from_str(payload).unwrap_or_default();
        let is_null = |value: &Value, key: &str| value.get(key).is_some_and(Value::is_null);
        Some(match value.get("stream").filter(|stream| !stream.is_null()) {
            Some(stream) if is_null(stream, "stream_state") => return None,
            Some(stream) if stream.get("stream_descriptor").and_then(stream_name).is_some() => {
                format!("the \"stream\" has no \"stream_state\", but {}", keys(stream))
            }
            Some(stream) => {
                format!("the \"stream\" has no \"stream_descriptor\" with a \"name\", but {}", keys(stream))
            }
            None if ["stream", "global", "data"].iter().any(|key| is_null(&value, key)) => return None,
            None => format!("they have neither \"stream\" nor \"global\" nor \"data\", but {}", keys(&value)),
        })
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
    let value: &RawValue = serde_json::from_str(document).map_err(|error| error.to_string())?;
    match value.get().as_bytes() {
        b"null" => Ok(None),
        // Only very old connectors use this form, and only they can validate it.
        [b'{', fields @ .., b'}'] => Ok((!fields.trim_ascii().is_empty()).then(|| original(document).into_owned())),
        [b'[', ..] => {
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

/// The fields of an object, with the texts of their values. Of two with one name the last counts.
type Fields<'t> = IndexMap<String, &'t RawValue>;

/// The value of a field, unless it is `null`.
fn value<'t>(fields: &Fields<'t>, name: &str) -> Option<&'t RawValue> {
    fields.get(name).copied().filter(|value| value.get() != "null")
}

/// The name in the descriptor of an object with the state of a stream.
fn descriptor(stream: &Fields<'_>) -> Option<StreamName> {
    stream_name(&serde_json::from_str(stream.get("stream_descriptor")?.get()).ok()?)
}

/// The states of streams in a `global` object.
fn parts<'t>(global: &Fields<'t>) -> Vec<&'t RawValue> {
    value(global, "stream_states").and_then(|parts| serde_json::from_str(parts.get()).ok()).unwrap_or_default()
}

/// The name of a stream in a `global` object.
fn name_of_part(part: &RawValue) -> Option<StreamName> {
    descriptor(&serde_json::from_str(part.get()).ok()?)
}

/// One state message without the states of streams in `full_refresh` mode; `None` if none remain. An unchanged message keeps
/// its text.
fn filter(message: &str, catalog: &ConfiguredCatalog) -> Result<Option<String>, NotAState> {
    let fields: Fields<'_> = serde_json::from_str(message).map_err(|_| NotAState)?;
    if !["stream", "global", "data"].iter().any(|field| fields.contains_key(*field)) {
        return Err(NotAState);
    }
    let mut changed = None;
    if let Some(stream) = value(&fields, "stream") {
        let stream: Fields<'_> = serde_json::from_str(stream.get()).map_err(|_| NotAState)?;
        let is_full_refresh = descriptor(&stream).is_some_and(|name| is_full_refresh(catalog, &name));
        let Some(state) = value(&stream, "stream_state").filter(|_| !is_full_refresh) else { return Ok(None) };
        if let Cow::Owned(state) = original(state.get()) {
            changed = Some(("stream", with_field(&stream, "stream_state", &state)));
        }
    } else if let Some(global) = value(&fields, "global") {
        let global = original(global.get());
        let filtered = filter_global(&global, catalog)?;
        if matches!((&global, &filtered), (Cow::Owned(_), _) | (_, Cow::Owned(_))) {
            changed = Some(("global", filtered.into_owned()));
        }
    } else if let Some(Cow::Owned(data)) = value(&fields, "data").map(|data| original(data.get())) {
        changed = Some(("data", data));
    }
    Ok(Some(changed.map_or_else(|| message.to_owned(), |(field, text)| with_field(&fields, field, &text))))
}

/// The `global` object without the states of streams in `full_refresh` mode.
fn filter_global<'t>(global: &'t str, catalog: &ConfiguredCatalog) -> Result<Cow<'t, str>, NotAState> {
    let fields: Fields<'_> = serde_json::from_str(global).map_err(|_| NotAState)?;
    let parts = parts(&fields);
    let is_passed_on = |part: &&&RawValue| name_of_part(part).is_none_or(|name| !is_full_refresh(catalog, &name));
    let remaining: Vec<&str> = parts.iter().filter(is_passed_on).map(|part| part.get()).collect();
    if remaining.len() == parts.len() {
        return Ok(Cow::Borrowed(global));
    }
    Ok(Cow::Owned(with_field(&fields, "stream_states", &format!("[{}]", remaining.join(",")))))
}

/// The object with another value of one of its fields.
fn with_field(fields: &Fields<'_>, changed: &str, text: &str) -> String {
    let field = |(name, value): (&String, &&RawValue)| {
        let value = if name == changed { text } else { value.get() };
        format!("{}:{value}", Value::from(name.as_str()))
    };
    let fields: Vec<String> = fields.iter().map(field).collect();
    format!("{{{}}}", fields.join(","))
}

/// The form in a row of a document that `jsonb` cannot hold. [`for_connector`] restores the document.
pub fn as_text(document: &str) -> String {
    json!({ TEXT: document }).to_string()
}

/// Whether a document has the form of [`as_text`] already. If a source sent it, it must be stored in that form to be restored.
pub fn is_as_text(document: &str) -> bool {
    matches!(original(document), Cow::Owned(_))
}

/// The document that [`as_text`] has changed; other documents stay as they are, also those of a source with such a field.
fn original(document: &str) -> Cow<'_, str> {
    if document.contains(TEXT)
        && let Ok(fields) = serde_json::from_str::<IndexMap<&str, Cow<'_, str>>>(document)
        && let [(&TEXT, text)] = fields.iter().collect::<Vec<_>>()[..]
        && serde_json::from_str::<IgnoredAny>(text).is_ok()
    {
        return Cow::Owned(text.clone().into_owned());
    }
    Cow::Borrowed(document)
}

/// Whether a state document has a GLOBAL state.
pub fn has_global(document: &str) -> bool {
    let entries: Vec<Fields<'_>> = serde_json::from_str(document).unwrap_or_default();
    entries.iter().any(|entry| value(entry, "global").is_some())
}

/// The keys of the streams that a GLOBAL state lists.
pub fn global_streams(global: &str) -> Vec<String> {
    let global = original(global);
    let fields: Fields<'_> = serde_json::from_str(&global).unwrap_or_default();
    parts(&fields).into_iter().filter_map(name_of_part).map(|name| name.key()).collect()
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
        let document = document.unwrap_or("[]");
        let Ok(entries) = serde_json::from_str::<Vec<Fields<'_>>>(document) else {
            let legacy = serde_json::from_str::<Fields<'_>>(document).unwrap_or_default();
            return Self { streams: HashSet::new(), any_stream: !legacy.is_empty() };
        };
        let mut progress = Self::default();
        for entry in &entries {
            if let Some(stream) = value(entry, "stream") {
                let stream: Fields<'_> = serde_json::from_str(stream.get()).unwrap_or_default();
                let name = value(&stream, "stream_state").and_then(|_| descriptor(&stream));
                progress.streams.extend(name.map(|name| name.name));
            } else if let Some(global) = value(entry, "global") {
                let parts = parts(&serde_json::from_str(global.get()).unwrap_or_default());
                progress.streams.extend(parts.iter().filter_map(|part| Some(name_of_part(part)?.name)));
                // A state that lists no streams may cover any of them.
                progress.any_stream |= parts.is_empty();
            } else {
                progress.any_stream |= value(entry, "data").is_some();
            }
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

/// Adds the stored GLOBAL state to a state document whose entries are exactly the stored states of single streams. `None` for
/// any other document.
///
/// Jitsu's console sends a GLOBAL state only if no other state is stored.
pub fn with_stored_global(document: &str, rows: &[(String, String)]) -> Option<String> {
    let (_, global) = rows.iter().find(|(key, _)| key == GLOBAL_KEY)?;
    let entries: Vec<&RawValue> = serde_json::from_str(document).ok()?;
    let parsed = |json: &str| serde_json::from_str::<Value>(json).ok();
    let is_stored = |entry: &&RawValue| {
        let Some(State::Stream { stream, state }) = State::parse(entry.get()) else { return false };
        rows.iter().any(|(key, stored)| *key == stream.key() && parsed(stored) == parsed(&state))
    };
    if entries.is_empty() || !entries.iter().all(is_stored) {
        return None;
    }
    let entries: Vec<&str> = entries.iter().map(|entry| entry.get()).collect();
    Some(format!(r#"[{{"type":"GLOBAL","global":{global}}},{}]"#, entries.join(",")))
}

/// Builds the state document from the rows of `source_state`, without those of streams that the catalog no longer selects.
///
/// Where the source has sent states of both kinds the GLOBAL one comes first: connectors that know only one kind take the
/// first entry.
pub fn from_rows(rows: &[(String, String)], catalog: &ConfiguredCatalog) -> Result<Option<String>, String> {
    let row = |key: &str| rows.iter().find(|(stored, state)| stored == key && state != "null");
    let mut states = Vec::new();
    if let Some((_, global)) = row(GLOBAL_KEY) {
        states.push(format!(r#"{{"type":"GLOBAL","global":{global}}}"#));
    }
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
        return for_connector(legacy, catalog);
    }
    for_connector(&format!("[{}]", states.join(",")), catalog)
}
