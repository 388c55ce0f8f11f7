//! One line of a connector's stdout.
//!
//! RECORD is the hot path: one pass over the line, no copies. All other messages are rare and parsed through a `Value`,
//! which tolerates wrong types and duplicate keys.

use std::borrow::Cow;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// A line, parsed as far as the program needs it. JSON payloads keep their text byte for byte.
#[derive(Debug, Clone, PartialEq)]
pub enum Message<'a> {
    /// A row of a stream.
    Record(Record<'a>),
    /// The payload of a STATE message, to be stored once the rows before it are committed.
    State(String),
    /// A log message, or the Python CDK's `DEBUG`.
    Log {
        /// FATAL, ERROR, WARN, INFO, DEBUG or TRACE, as received.
        level: String,
        /// May contain newlines.
        text: String,
    },
    /// The ConnectorSpecification.
    Spec(String),
    /// The result of a check.
    ConnectionStatus {
        /// Whether the status is SUCCEEDED.
        succeeded: bool,
        /// The connector's explanation.
        message: Option<String>,
    },
    /// The AirbyteCatalog.
    Catalog(String),
    /// An error that the connector reports.
    TraceError(TraceError),
    /// A change in the status of a stream.
    StreamStatus {
        /// The stream.
        stream: StreamName,
        /// STARTED, RUNNING, COMPLETE or INCOMPLETE, as received.
        status: String,
    },
    /// How many rows the source expects to send.
    Estimate {
        /// The stream; `None` for the whole sync.
        stream: Option<StreamName>,
        /// Number of rows.
        rows: Option<u64>,
        /// Size in bytes.
        bytes: Option<u64>,
    },
    /// A new configuration that the connector asks to persist.
    ControlConfig(String),
    /// A message of a type that is not used.
    Other(String),
    /// A message of an unknown type, or without what its type must have.
    Invalid {
        /// Its type, as received.
        kind: String,
        /// What is wrong with it.
        why: String,
        /// It may hold a row.
        may_be_data: bool,
        /// Its text, as it names its stream.
        text: String,
    },
    /// Not one JSON object with a `type`: a log line, or a line in which messages share.
    Text,
}

/// An error that a connector reports.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TraceError {
    /// The more specific one of the connector's two texts.
    pub text: String,
    /// The stream that failed, if the error concerns one.
    pub stream: Option<StreamName>,
    /// The text for developers.
    pub internal_message: Option<String>,
    /// `system_error`, `config_error` or `transient_error`.
    pub failure_type: Option<String>,
    /// Where it occurred.
    pub stack_trace: Option<String>,
}

impl TraceError {
    /// All that the connector reports about it, in lines.
    pub fn details(&self) -> String {
        let mut details = self.text.clone();
        let mut add = |label: &str, text: &Option<String>| {
            if let Some(text) = text.as_deref().filter(|text| !text.trim().is_empty() && !self.text.contains(*text)) {
                details.push_str(label);
                details.push_str(text);
            }
        };
        add("\nfailure type: ", &self.failure_type);
        add("\ninternal message: ", &self.internal_message);
        add("\n", &self.stack_trace);
        details
    }
}

/// A stream's identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StreamName {
    /// Never empty: empty and absent mean the same.
    pub namespace: Option<String>,
    /// As the source spells it.
    pub name: String,
}

impl StreamName {
    /// An empty namespace is treated as absent.
    pub fn new(namespace: Option<&str>, name: &str) -> Self {
        Self { namespace: namespace.filter(|n| !n.is_empty()).map(str::to_owned), name: name.to_owned() }
    }

    /// `namespace.name` or `name`: the key in `source_state` and in the per-stream map.
    pub fn key(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}.{}", self.name),
            None => self.name.clone(),
        }
    }
}

/// A row as the source sent it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record<'a> {
    /// The stream's name.
    pub stream: Cow<'a, str>,
    /// The stream's namespace, if the record names one.
    pub namespace: Option<Cow<'a, str>>,
    /// The row: the text of a JSON value, usually an object.
    pub data: Cow<'a, str>,
    /// When the source emitted it, in milliseconds since 1970.
    pub emitted_at: Option<i64>,
    /// What the source reports about the row: the text of a JSON value.
    pub meta: Option<Cow<'a, str>>,
    /// The length of its line, without the newline.
    pub line_bytes: u64,
}

impl Record<'_> {
    /// The record with texts of its own.
    pub fn into_owned(self) -> Record<'static> {
        Record {
            stream: Cow::Owned(self.stream.into_owned()),
            namespace: self.namespace.map(|namespace| Cow::Owned(namespace.into_owned())),
            data: Cow::Owned(self.data.into_owned()),
            emitted_at: self.emitted_at,
            meta: self.meta.map(|meta| Cow::Owned(meta.into_owned())),
            line_bytes: self.line_bytes,
        }
    }
}

#[derive(Deserialize)]
struct RawRecordLine<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    record: Option<RawRecord<'a>>,
}

#[derive(Deserialize)]
struct RawRecord<'a> {
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow, default)]
    emitted_at: Option<&'a RawValue>,
    #[serde(borrow, default)]
    meta: Option<&'a RawValue>,
}

/// The payloads of which the text is kept, for a second pass over a line that is not a record.
#[derive(Default, Deserialize)]
struct RawPayloads<'a> {
    #[serde(borrow, default)]
    spec: Option<&'a RawValue>,
    #[serde(borrow, default)]
    catalog: Option<&'a RawValue>,
    #[serde(borrow, default)]
    control: Option<RawControl<'a>>,
}

#[derive(Deserialize)]
struct RawControl<'a> {
    #[serde(rename = "connectorConfig", borrow, default)]
    connector_config: Option<RawConnectorConfig<'a>>,
}

#[derive(Deserialize)]
struct RawConnectorConfig<'a> {
    #[serde(borrow, default)]
    config: Option<&'a RawValue>,
}

impl<'a> Message<'a> {
    /// Whether it is of a type of the protocol, other than an unused one, and has what its type must have; or would hold a
    /// row if it had.
    pub fn is_known(&self) -> bool {
        !matches!(self, Self::Other(_) | Self::Text | Self::Invalid { may_be_data: false, .. })
    }

    /// The message, independent of its line.
    pub fn into_owned(self) -> Message<'static> {
        match self {
            Self::Record(record) => Message::Record(record.into_owned()),
            Self::State(state) => Message::State(state),
            Self::Log { level, text } => Message::Log { level, text },
            Self::Spec(spec) => Message::Spec(spec),
            Self::ConnectionStatus { succeeded, message } => Message::ConnectionStatus { succeeded, message },
            Self::Catalog(catalog) => Message::Catalog(catalog),
            Self::TraceError(error) => Message::TraceError(error),
            Self::StreamStatus { stream, status } => Message::StreamStatus { stream, status },
            Self::Estimate { stream, rows, bytes } => Message::Estimate { stream, rows, bytes },
            Self::ControlConfig(config) => Message::ControlConfig(config),
            Self::Other(kind) => Message::Other(kind),
            Self::Invalid { kind, why, may_be_data, text } => Message::Invalid { kind, why, may_be_data, text },
            Self::Text => Message::Text,
        }
    }

    /// Parses one line without its newline. Never fails: a line that is not a message is [`Message::Text`].
    pub fn parse(line: &'a [u8]) -> Self {
        // Sources may write millions of lines of text: skip the parsing attempts.
        if !line.trim_ascii_start().starts_with(b"{") {
            return Self::Text;
        }
        let length = line.len() as u64;
        let mut message = if let Ok(line) = str::from_utf8(line) {
            parse_record(line).map_or_else(|| parse_other(line), Self::Record)
        } else {
            let line = String::from_utf8_lossy(line);
            parse_owned(&line).unwrap_or_else(|| parse_other(&line))
        };
        if let Self::Record(record) = &mut message {
            record.line_bytes = length;
        }
        message
    }
}

/// How many fields to name in a message.
const MAX_KEYS: usize = 5;
/// Maximum length of the beginning of an unusable message that is retained, in bytes: its beginning names its stream.
const MAX_INVALID: usize = 16 * 1024;

/// Parses a line that is not a well-formed RECORD.
fn parse_other(line: &str) -> Message<'static> {
    // Python writes NaN and Infinity, which are not JSON: replacing them saves the row.
    parse_state(line)
        .or_else(|| parse_value(line))
        .or_else(|| parse_owned(&null_non_finite(line)?))
        .unwrap_or(Message::Text)
}

/// Parses a STATE without its values: it may repeat keys, and have numbers that no `Value` holds.
fn parse_state(line: &str) -> Option<Message<'static>> {
    if !line.contains("\"STATE\"") {
        return None;
    }
    let fields: IndexMap<String, &RawValue> = serde_json::from_str(line).ok()?;
    let is_state = fields.get("type").is_some_and(|kind| kind.get() == r#""STATE""#);
    let state = fields.get("state").filter(|state| is_state && state.get().starts_with('{'))?;
    Some(Message::State(state.get().to_owned()))
}

/// Parses a line that does not outlive the message; `None` when it is not JSON.
pub(super) fn parse_owned(line: &str) -> Option<Message<'static>> {
    let message = parse_record(line).map(|record| Message::Record(record.into_owned()));
    let mut message = message.or_else(|| parse_state(line)).or_else(|| parse_value(line))?;
    if let Message::Record(record) = &mut message {
        record.line_bytes = line.len() as u64;
    }
    Some(message)
}

/// Parses a well-formed RECORD.
fn parse_record(line: &str) -> Option<Record<'_>> {
    let RawRecordLine { kind, record } = serde_json::from_str(line).ok()?;
    let record = record.filter(|record| kind == "RECORD" && record.data.get() != "null")?;
    Some(Record {
        stream: record.stream,
        namespace: record.namespace.filter(|namespace| !namespace.is_empty()),
        data: Cow::Borrowed(record.data.get()),
        emitted_at: record.emitted_at.and_then(|at| milliseconds(at.get())),
        meta: record.meta.map(|meta| Cow::Borrowed(meta.get())),
        line_bytes: 0,
    })
}

/// Parses any message, tolerating wrong types; `None` when the line is not JSON.
fn parse_value(line: &str) -> Option<Message<'static>> {
    let value: Value = serde_json::from_str(line).ok()?;
    let Some(kind) = value.get("type").and_then(Value::as_str) else { return Some(Message::Text) };
    // Fails on duplicate keys: then the last value is printed instead.
    let raw: RawPayloads<'_> = serde_json::from_str(line).unwrap_or_default();
    let payload = |key: &str| value.get(key).filter(|payload| payload.is_object());
    let text_of =
        |payload: &Value, raw: Option<&RawValue>| raw.map_or_else(|| payload.to_string(), |raw| raw.get().to_owned());
    let raw_text = |key: &str, raw: Option<&RawValue>| payload(key).map(|payload| text_of(payload, raw));
    let message = match kind {
        "RECORD" => Some(
            payload("record")
                .ok_or("it has no object \"record\"")
                .and_then(lenient_record)
                .map_or_else(|why| invalid(kind, why, true, line), Message::Record),
        ),
        "STATE" => None,
        "SPEC" => raw_text("spec", raw.spec).map(Message::Spec),
        "CATALOG" => raw_text("catalog", raw.catalog).map(Message::Catalog),
        "LOG" => payload("log").map(|log| Message::Log {
            level: string(log, "level").unwrap_or_else(|| "INFO".to_owned()),
            text: match (string(log, "message").unwrap_or_default(), string(log, "stack_trace")) {
                (message, Some(trace)) if !trace.is_empty() => format!("{message}\n{trace}"),
                (message, _) => message,
            },
        }),
        "DEBUG" => {
            Some(Message::Log { level: "DEBUG".to_owned(), text: string(&value, "message").unwrap_or_default() })
        }
        "CONNECTION_STATUS" => payload("connectionStatus").map(|status| Message::ConnectionStatus {
            succeeded: string(status, "status").as_deref() == Some("SUCCEEDED"),
            message: string(status, "message"),
        }),
        "TRACE" => payload("trace").and_then(trace),
        "CONTROL" => payload("control").and_then(|control| {
            let config = control.get("connectorConfig")?.get("config")?;
            let raw = raw.control.and_then(|control| control.connector_config?.config);
            Some(Message::ControlConfig(text_of(config, raw)))
        }),
        "DESTINATION_CATALOG" => Some(Message::Other(kind.to_owned())),
        _ => Some(invalid(kind, "the protocol has no such type", payload("record").is_some(), line)),
    };
    Some(message.unwrap_or_else(|| {
        let key = payload_key(kind);
        let why = match payload(key) {
            Some(_) => format!("its {key:?} lacks what its type must have"),
            None => format!("it has no object {key:?}, but {}", keys(&value)),
        };
        invalid(kind, &why, false, line)
    }))
}

/// The field with the content of a message of this type.
fn payload_key(kind: &str) -> &'static str {
    match kind {
        "STATE" => "state",
        "LOG" => "log",
        "SPEC" => "spec",
        "CATALOG" => "catalog",
        "CONNECTION_STATUS" => "connectionStatus",
        "TRACE" => "trace",
        _ => "control",
    }
}

/// The names of the first fields of an object, for messages.
pub(super) fn keys(value: &Value) -> String {
    let keys = value.as_object().into_iter().flat_map(|object| object.keys()).take(MAX_KEYS);
    let keys: Vec<String> = keys.map(|key| format!("{key:?}")).collect();
    if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") }
}

/// A message that cannot be used.
fn invalid(kind: &str, why: &str, may_be_data: bool, text: &str) -> Message<'static> {
    let text = text[..text.floor_char_boundary(MAX_INVALID)].to_owned();
    Message::Invalid { kind: kind.to_owned(), why: why.to_owned(), may_be_data, text }
}

/// The line with `null` in place of each `NaN`, `Infinity` and `-Infinity` outside of strings; `None` if there is none.
fn null_non_finite(line: &str) -> Option<String> {
    const NON_FINITE: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    if !line.starts_with('{') || !NON_FINITE.iter().any(|number| line.contains(number)) {
        return None;
    }
    let (mut repaired, mut rest) = (String::with_capacity(line.len()), line);
    let mut in_string = false;
    while let Some(next) = rest.chars().next() {
        let number = NON_FINITE.iter().find(|number| !in_string && rest.starts_with(**number));
        let length = match (number, next) {
            (Some(number), _) => {
                repaired.push_str("null");
                rest = &rest[number.len()..];
                continue;
            }
            // An escaped character never ends a string.
            (None, '\\') if in_string => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            (None, '"') => {
                in_string = !in_string;
                1
            }
            (None, next) => next.len_utf8(),
        };
        repaired.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    Some(repaired)
}

/// A record in which some field has a wrong type.
fn lenient_record(record: &Value) -> Result<Record<'static>, &'static str> {
    let data = record.get("data").filter(|data| !data.is_null()).ok_or("its record has no \"data\"")?;
    Ok(Record {
        stream: Cow::Owned(string(record, "stream").ok_or("its record names no \"stream\"")?),
        namespace: string(record, "namespace").filter(|namespace| !namespace.is_empty()).map(Cow::Owned),
        data: Cow::Owned(data.to_string()),
        emitted_at: record.get("emitted_at").and_then(|at| milliseconds(&at.to_string())),
        meta: record.get("meta").map(|meta| Cow::Owned(meta.to_string())),
        line_bytes: 0,
    })
}

fn trace(trace: &Value) -> Option<Message<'static>> {
    let payload = |key: &str| trace.get(key).filter(|payload| payload.is_object());
    match string(trace, "type")?.as_str() {
        "ERROR" => payload("error").map(|error| {
            Message::TraceError(TraceError {
                text: error_text(error),
                stream: error.get("stream_descriptor").and_then(stream_name),
                internal_message: string(error, "internal_message"),
                failure_type: string(error, "failure_type"),
                stack_trace: string(error, "stack_trace"),
            })
        }),
        "STREAM_STATUS" => payload("stream_status").and_then(|status| {
            Some(Message::StreamStatus {
                stream: stream_name(status.get("stream_descriptor")?)?,
                status: string(status, "status")?,
            })
        }),
        "ESTIMATE" => payload("estimate").map(|estimate| Message::Estimate {
            stream: stream_name(estimate).filter(|_| string(estimate, "type").as_deref() != Some("SYNC")),
            rows: estimate.get("row_estimate").and_then(count),
            bytes: estimate.get("byte_estimate").and_then(count),
        }),
        other => Some(Message::Other(format!("TRACE {other}"))),
    }
}

/// The `message` for users, or the `internal_message` for developers where the former is missing or the Python CDK's
/// generic one.
fn error_text(error: &Value) -> String {
    const GENERIC: &str = "Something went wrong in the connector";
    let message = string(error, "message").unwrap_or_default();
    let internal = string(error, "internal_message").filter(|text| !text.is_empty());
    internal.filter(|_| message.is_empty() || message.starts_with(GENERIC)).unwrap_or(message)
}

/// The name in a `stream_descriptor`, or in any object with `name` and `namespace`.
pub fn stream_name(descriptor: &Value) -> Option<StreamName> {
    let namespace = string(descriptor, "namespace");
    Some(StreamName::new(namespace.as_deref(), &string(descriptor, "name")?))
}

/// A field that should be a string; other types are printed.
fn string(value: &Value, key: &str) -> Option<String> {
    match value.get(key)? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// Some sources write counts as floats.
pub(super) fn count(value: &Value) -> Option<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, and this is a count")]
    value.as_u64().or_else(|| value.as_f64().map(|count| count as u64))
}

/// Some sources write `emitted_at` as a float.
fn milliseconds(text: &str) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "`as` saturates, and fractions of a millisecond are noise")]
    text.parse::<i64>().ok().or_else(|| text.parse::<f64>().ok().map(|at| at as i64))
}

#[cfg(test)]
mod tests;
