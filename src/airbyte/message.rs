//! One line of a connector's stdout.
//!
//! A RECORD is the hot path: one pass over the line, nothing copied. Everything else is rare and goes through a
//! `Value`, which forgives wrong types and duplicate keys.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// A line, understood as far as the program needs it.
#[derive(Debug, Clone, PartialEq)]
pub enum Message<'a> {
    /// A row of a stream.
    Record(Record<'a>),
    /// Progress to be stored once the rows before it are committed. The whole payload, as it came.
    State(Box<RawText>),
    /// A log message, also the Python CDK's `DEBUG`.
    Log {
        /// FATAL, ERROR, WARN, INFO, DEBUG or TRACE; as it came.
        level: String,
        /// May contain newlines.
        text: String,
    },
    /// The ConnectorSpecification, as it came.
    Spec(Box<RawText>),
    /// The result of a check.
    ConnectionStatus {
        /// Whether the status was SUCCEEDED.
        succeeded: bool,
        /// The connector's explanation.
        message: Option<String>,
    },
    /// The AirbyteCatalog, as it came.
    Catalog(Box<RawText>),
    /// An error that the connector reports.
    TraceError(TraceError),
    /// A stream has started, goes on, is complete or was given up.
    StreamStatus {
        /// Which stream.
        stream: StreamName,
        /// STARTED, RUNNING, COMPLETE or INCOMPLETE; as it came.
        status: String,
    },
    /// How many rows the source expects.
    Estimate {
        /// Which stream; `None` for the whole sync.
        stream: Option<StreamName>,
        /// Rows, if told.
        rows: Option<u64>,
        /// Bytes, if told.
        bytes: Option<u64>,
    },
    /// The connector asks to persist this new configuration.
    ControlConfig(Box<RawText>),
    /// A message of a known shape but an unknown or unused type.
    Other(String),
    /// Not a JSON object with a `type`: a log line.
    Text,
}

/// JSON text, kept byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawText(pub String);

/// A stream's identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StreamName {
    /// Empty and absent mean the same.
    pub namespace: Option<String>,
    /// As the source spells it.
    pub name: String,
}

impl StreamName {
    /// A name; an empty namespace is none.
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
    /// Milliseconds since 1970, when the source sent it.
    pub emitted_at: Option<i64>,
}

/// What a connector says of its own failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceError {
    /// For users; some connectors put only a commonplace here.
    pub message: String,
    /// For developers.
    pub internal_message: Option<String>,
    /// `config_error`, `system_error`, `transient_error`.
    pub failure_type: Option<String>,
    /// The stream that failed, if it is only one.
    pub stream: Option<StreamName>,
}

/// What Python CDKs say when they have nothing to say.
const COMMONPLACE: &str = "Something went wrong in the connector";

impl TraceError {
    /// The sentence worth showing.
    pub fn text(&self) -> &str {
        match &self.internal_message {
            Some(internal) if self.message.is_empty() || self.message.starts_with(COMMONPLACE) => internal,
            _ => &self.message,
        }
    }
}

#[derive(Deserialize)]
struct FastLine<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    record: Option<FastRecord<'a>>,
}

#[derive(Deserialize)]
struct FastRecord<'a> {
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow, default)]
    emitted_at: Option<&'a RawValue>,
}

/// The payloads whose text is kept, for the second pass over a rare line.
#[derive(Deserialize)]
struct RawLine<'a> {
    #[serde(borrow, default)]
    state: Option<&'a RawValue>,
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
    /// Understands one line (without its newline). Never fails: what is not a message is [`Message::Text`].
    pub fn parse(line: &'a str) -> Self {
        // Sources may write text by the million lines: not each is worth three attempts.
        if !line.trim_start().starts_with('{') {
            return Self::Text;
        }
        // Python writes NaN and Infinity, which no JSON knows: the row is worth more than the rule.
        let repaired = || Some(Message::parse_json(&without_non_numbers(line)?)?.into_owned());
        Self::parse_json(line).or_else(repaired).unwrap_or(Self::Text)
    }

    /// `None` when the line is not JSON.
    fn parse_json(line: &'a str) -> Option<Self> {
        if let Ok(FastLine { kind, record: Some(record) }) = serde_json::from_str::<FastLine<'a>>(line)
            && kind == "RECORD"
        {
            return Some(Self::Record(Record {
                stream: record.stream,
                namespace: record.namespace.filter(|namespace| !namespace.is_empty()),
                data: Cow::Borrowed(record.data.get()),
                emitted_at: record.emitted_at.and_then(|at| milliseconds(at.get())),
            }));
        }
        serde_json::from_str::<Value>(line).ok().map(|value| Self::parse_rare(line, &value))
    }

    fn into_owned(self) -> Message<'static> {
        match self {
            Self::Record(Record { stream, namespace, data, emitted_at }) => Message::Record(Record {
                stream: Cow::Owned(stream.into_owned()),
                namespace: namespace.map(|namespace| Cow::Owned(namespace.into_owned())),
                data: Cow::Owned(data.into_owned()),
                emitted_at,
            }),
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
            Self::Text => Message::Text,
        }
    }

    fn parse_rare(line: &'a str, value: &Value) -> Self {
        let Some(kind) = value.get("type").and_then(Value::as_str) else { return Self::Text };
        let raw = serde_json::from_str::<RawLine<'_>>(line).ok();
        // Duplicate keys defeat the raw pass: then the last one, re-printed, is the next best.
        let text_of = |payload: &Value, raw: Option<&RawValue>| match raw {
            Some(raw) => Box::new(RawText(raw.get().to_owned())),
            None => Box::new(RawText(payload.to_string())),
        };
        let payload = |key: &str| value.get(key).filter(|payload| payload.is_object());
        let other = || Self::Other(kind.to_owned());
        match kind {
            "RECORD" => payload("record").and_then(odd_record).map_or_else(other, Self::Record),
            "STATE" => payload("state")
                .map_or_else(other, |state| Self::State(text_of(state, raw.as_ref().and_then(|raw| raw.state)))),
            "SPEC" => payload("spec")
                .map_or_else(other, |spec| Self::Spec(text_of(spec, raw.as_ref().and_then(|raw| raw.spec)))),
            "CATALOG" => payload("catalog").map_or_else(other, |catalog| {
                Self::Catalog(text_of(catalog, raw.as_ref().and_then(|raw| raw.catalog)))
            }),
            "LOG" => payload("log").map_or_else(other, |log| Self::Log {
                level: text(log, "level").unwrap_or_else(|| "INFO".to_owned()),
                text: match (text(log, "message").unwrap_or_default(), text(log, "stack_trace")) {
                    (message, Some(trace)) if !trace.is_empty() => format!("{message}\n{trace}"),
                    (message, _) => message,
                },
            }),
            "DEBUG" => Self::Log { level: "DEBUG".to_owned(), text: text(value, "message").unwrap_or_default() },
            "CONNECTION_STATUS" => payload("connectionStatus").map_or_else(other, |status| Self::ConnectionStatus {
                succeeded: text(status, "status").as_deref() == Some("SUCCEEDED"),
                message: text(status, "message"),
            }),
            "TRACE" => payload("trace").and_then(trace).unwrap_or_else(other),
            "CONTROL" => {
                let config = payload("control").and_then(|control| control.get("connectorConfig")?.get("config"));
                let raw = raw.and_then(|raw| raw.control?.connector_config?.config);
                config.map_or_else(other, |config| Self::ControlConfig(text_of(config, raw)))
            }
            _ => other(),
        }
    }
}

/// The line with `null` for each `NaN`, `Infinity` and `-Infinity` outside of strings; `None` when there is none.
fn without_non_numbers(line: &str) -> Option<String> {
    const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    if !line.starts_with('{') || !WORDS.iter().any(|word| line.contains(word)) {
        return None;
    }
    let (mut repaired, mut rest) = (String::with_capacity(line.len()), line);
    let mut in_string = false;
    while let Some(next) = rest.chars().next() {
        let word = WORDS.iter().find(|word| !in_string && rest.starts_with(**word));
        let taken = match (word, next) {
            (Some(word), _) => {
                repaired.push_str("null");
                rest = &rest[word.len()..];
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
        repaired.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    Some(repaired)
}

/// A record with a wrong type somewhere: what can be used is used.
fn odd_record(record: &Value) -> Option<Record<'static>> {
    Some(Record {
        stream: Cow::Owned(text(record, "stream")?),
        namespace: text(record, "namespace").filter(|namespace| !namespace.is_empty()).map(Cow::Owned),
        data: Cow::Owned(record.get("data")?.to_string()),
        emitted_at: record.get("emitted_at").and_then(|at| milliseconds(&at.to_string())),
    })
}

fn trace(trace: &Value) -> Option<Message<'static>> {
    let inner = |key: &str| trace.get(key).filter(|payload| payload.is_object());
    match text(trace, "type")?.as_str() {
        "ERROR" => inner("error").map(|error| {
            Message::TraceError(TraceError {
                message: text(error, "message").unwrap_or_default(),
                internal_message: text(error, "internal_message").filter(|text| !text.is_empty()),
                failure_type: text(error, "failure_type"),
                stream: error.get("stream_descriptor").and_then(stream_name),
            })
        }),
        "STREAM_STATUS" => inner("stream_status").and_then(|status| {
            Some(Message::StreamStatus {
                stream: stream_name(status.get("stream_descriptor")?)?,
                status: text(status, "status")?,
            })
        }),
        "ESTIMATE" => inner("estimate").map(|estimate| Message::Estimate {
            stream: stream_name(estimate).filter(|_| text(estimate, "type").as_deref() != Some("SYNC")),
            rows: estimate.get("row_estimate").and_then(whole),
            bytes: estimate.get("byte_estimate").and_then(whole),
        }),
        other => Some(Message::Other(format!("TRACE {other}"))),
    }
}

/// A `stream_descriptor`, or anything else with `name` and `namespace`.
pub fn stream_name(descriptor: &Value) -> Option<StreamName> {
    let namespace = text(descriptor, "namespace");
    Some(StreamName::new(namespace.as_deref(), &text(descriptor, "name")?))
}

/// A field that should be a string; other scalars are printed.
fn text(value: &Value, key: &str) -> Option<String> {
    match value.get(key)? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// A count; some sources write it as a float.
fn whole(value: &Value) -> Option<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, and this is a count")]
    value.as_u64().or_else(|| value.as_f64().map(|count| count as u64))
}

/// `emitted_at` is a number that may be a float.
fn milliseconds(text: &str) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "`as` saturates, and fractions of a millisecond are noise")]
    text.parse::<i64>().ok().or_else(|| text.parse::<f64>().ok().map(|at| at as i64))
}

#[cfg(test)]
mod tests {
    use super::{Message, RawText, StreamName};

    #[test]
    fn a_record_keeps_the_text_of_its_data() {
        let line = r#"{"type":"RECORD","record":{"stream":"u","data":{"n": 9007199254740993, "b":1e400},"emitted_at":1.5e3,"x":[1]},"y":{}}"#;
        let Message::Record(record) = Message::parse(line) else { panic!("not a record") };
        assert_eq!(record.data, r#"{"n": 9007199254740993, "b":1e400}"#);
        assert_eq!((record.stream.as_ref(), record.emitted_at), ("u", Some(1500)));
    }

    #[test]
    fn odd_lines_are_understood_as_far_as_they_go() {
        let raw = |text: &str| Box::new(RawText(text.to_owned()));
        for (label, line, expected) in [
            ("no json", "hello", Message::Text),
            ("half json", r#"{"type":"RECORD","rec"#, Message::Text),
            ("a number", "12", Message::Text),
            ("no type", r#"{"a":1}"#, Message::Text),
            ("unknown type", r#"{"type":"NEW","new":{}}"#, Message::Other("NEW".to_owned())),
            (
                "record without data",
                r#"{"type":"RECORD","record":{"stream":"s"}}"#,
                Message::Other("RECORD".to_owned()),
            ),
            ("record null", r#"{"type":"RECORD","record":null}"#, Message::Other("RECORD".to_owned())),
            (
                "state",
                r#"{"type":"STATE","state":{"type": "X", "n":1.0}}"#,
                Message::State(raw(r#"{"type": "X", "n":1.0}"#)),
            ),
            (
                "duplicate keys",
                r#"{"type":"STATE","state":{"a":1},"state":{"a":2}}"#,
                Message::State(raw(r#"{"a":2}"#)),
            ),
            (
                "debug of the Python CDK",
                r#"{"type":"DEBUG","message":"m","data":{}}"#,
                Message::Log { level: "DEBUG".to_owned(), text: "m".to_owned() },
            ),
            (
                "check",
                r#"{"type":"CONNECTION_STATUS","connectionStatus":{"status":"SUCCEEDED"}}"#,
                Message::ConnectionStatus { succeeded: true, message: None },
            ),
            (
                "control",
                r#"{"type":"CONTROL","control":{"type":"CONNECTOR_CONFIG","emitted_at":1,"connectorConfig":{"config":{"t":"x"}}}}"#,
                Message::ControlConfig(raw(r#"{"t":"x"}"#)),
            ),
            (
                "stream status",
                r#"{"type":"TRACE","trace":{"type":"STREAM_STATUS","emitted_at":1.5,"stream_status":{"stream_descriptor":{"name":"s","namespace":""},"status":"COMPLETE"}}}"#,
                Message::StreamStatus { stream: StreamName::new(None, "s"), status: "COMPLETE".to_owned() },
            ),
            (
                "analytics",
                r#"{"type":"TRACE","trace":{"type":"ANALYTICS","emitted_at":1,"analytics":{}}}"#,
                Message::Other("TRACE ANALYTICS".to_owned()),
            ),
        ] {
            assert_eq!(Message::parse(line), expected, "{label}");
        }
    }

    #[test]
    fn a_record_with_wrong_types_still_arrives() {
        let line = r#"{"type":"RECORD","record":{"stream":7,"namespace":null,"data":[1],"emitted_at":"x"}}"#;
        let Message::Record(record) = Message::parse(line) else { panic!("not a record") };
        assert_eq!((record.stream.as_ref(), record.data.as_ref(), record.emitted_at), ("7", "[1]", None));
    }

    #[test]
    fn what_python_writes_for_no_number_is_null() {
        let line = r#"{"type":"RECORD","record":{"stream":"s","data":{"a":NaN,"b":[-Infinity,Infinity],"c":"NaN \"Infinity"}}}"#;
        let Message::Record(record) = Message::parse(line) else { panic!("not a record") };
        assert_eq!(record.data, r#"{"a":null,"b":[null,null],"c":"NaN \"Infinity"}"#);
        assert_eq!(Message::parse(r#"{"type":NaN"#), Message::Text);
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        let line = format!(
            r#"{{"type":"RECORD","record":{{"stream":"s","data":{{"a":NaN,"n":12345678901234567890.10,"e":1e400,"e":2,"d":{deep}}}}}}}"#
        );
        let Message::Record(record) = Message::parse(&line) else { panic!("not a record") };
        let expected = format!(r#"{{"a":null,"n":12345678901234567890.10,"e":1e400,"e":2,"d":{deep}}}"#);
        assert_eq!(record.data, expected, "the rest of the row stays as it came");
    }

    #[test]
    fn a_commonplace_gives_way_to_the_internal_message() {
        let line = r#"{"type":"TRACE","trace":{"type":"ERROR","error":{"message":"Something went wrong in the connector. See the logs for more details.","internal_message":"KeyError: 'x'"}}}"#;
        let Message::TraceError(error) = Message::parse(line) else { panic!("not an error") };
        assert_eq!(error.text(), "KeyError: 'x'");
    }
}
