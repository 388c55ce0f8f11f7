use super::{Message, StreamName, TraceError};

#[test]
fn records_keep_the_text_of_their_data() {
    let line = r#"{"type":"RECORD","record":{"stream":"u","data":{"n": 9007199254740993, "b":1e400},"emitted_at":1.5e3,"x":[1]},"y":{}}"#;
    let Message::Record(record) = Message::parse(line.as_bytes()) else { panic!("not a record") };
    assert_eq!(record.data, r#"{"n": 9007199254740993, "b":1e400}"#);
    assert_eq!((record.stream.as_ref(), record.emitted_at), ("u", Some(1500)));
}

#[test]
fn malformed_lines_are_parsed_as_far_as_possible() {
    for (label, line, expected) in [
        ("not JSON", "hello", Message::Text),
        ("truncated JSON", r#"{"type":"RECORD","rec"#, Message::Text),
        ("a number", "12", Message::Text),
        ("no type", r#"{"a":1}"#, Message::Text),
        (
            "state",
            r#"{"type":"STATE","state":{"type": "X", "n":1.0}}"#,
            Message::State(r#"{"type": "X", "n":1.0}"#.to_owned()),
        ),
        (
            "duplicate keys",
            r#"{"type":"STATE","state":{"a":1},"state":{"a":2}}"#,
            Message::State(r#"{"a":2}"#.to_owned()),
        ),
        (
            "every digit of a state with duplicate keys",
            r#"{"type":"STATE","type":"STATE","state":{"n":99999999999999999999.10, "m":1E400, "n":2.50}}"#,
            Message::State(r#"{"n":99999999999999999999.10, "m":1E400, "n":2.50}"#.to_owned()),
        ),
        (
            "DEBUG of the Python CDK",
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
            Message::ControlConfig(r#"{"t":"x"}"#.to_owned()),
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
        assert_eq!(Message::parse(line.as_bytes()), expected, "{label}");
    }
}

#[test]
fn records_with_wrong_types_are_parsed() {
    let line = r#"{"type":"RECORD","record":{"stream":7,"namespace":null,"data":[1],"emitted_at":"x"}}"#;
    let Message::Record(record) = Message::parse(line.as_bytes()) else { panic!("not a record") };
    assert_eq!((record.stream.as_ref(), record.data.as_ref(), record.emitted_at), ("7", "[1]", None));
}

#[test]
fn non_finite_numbers_become_null() {
    let line =
        r#"{"type":"RECORD","record":{"stream":"s","data":{"a":NaN,"b":[-Infinity,Infinity],"c":"NaN \"Infinity"}}}"#;
    let Message::Record(record) = Message::parse(line.as_bytes()) else { panic!("not a record") };
    assert_eq!(record.data, r#"{"a":null,"b":[null,null],"c":"NaN \"Infinity"}"#);
    assert_eq!(Message::parse(br#"{"type":NaN"#), Message::Text);
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let line = format!(
        r#"{{"type":"RECORD","record":{{"stream":"s","data":{{"a":NaN,"n":12345678901234567890.10,"e":1e400,"e":2,"d":{deep}}}}}}}"#
    );
    let Message::Record(record) = Message::parse(line.as_bytes()) else { panic!("not a record") };
    let expected = format!(r#"{{"a":null,"n":12345678901234567890.10,"e":1e400,"e":2,"d":{deep}}}"#);
    assert_eq!(record.data, expected, "the rest of the row is unchanged");
}

#[test]
fn internal_messages_replace_generic_ones() {
    let line = r#"{"type":"TRACE","trace":{"type":"ERROR","error":{"message":"Something went wrong in the connector. See the logs for more details.","internal_message":"KeyError: 'x'"}}}"#;
    assert_eq!(
        Message::parse(line.as_bytes()),
        Message::TraceError(TraceError {
            text: "KeyError: 'x'".to_owned(),
            internal_message: Some("KeyError: 'x'".to_owned()),
            ..TraceError::default()
        })
    );
}

#[test]
fn messages_that_cannot_be_used_say_why() {
    for (line, expected, is_data) in [
        (r#"{"type":"NEW","new":{}}"#, "the protocol has no such type", false),
        (r#"{"type":"record","record":{"stream":"s","data":{}}}"#, "the protocol has no such type", true),
        (r#"{"type":"RECORD","record":{"stream":"s"}}"#, "its record has no \"data\"", true),
        (r#"{"type":"RECORD","record":{"stream":"s","data":null}}"#, "its record has no \"data\"", true),
        (r#"{"type":"RECORD","record":{"streamName":"s","data":{}}}"#, "its record names no \"stream\"", true),
        (r#"{"type":"RECORD","stream":"s","record":null}"#, "it has no object \"record\"", true),
        (r#"{"type":"STATE","state":3}"#, r#"it has no object "state", but "type", "state""#, false),
        (r#"{"type":"TRACE","trace":{"type":"ERROR"}}"#, r#"its "trace" lacks what its type must have"#, false),
    ] {
        let Message::Invalid { why, may_be_data, text, .. } = Message::parse(line.as_bytes()) else { panic!("{line}") };
        assert_eq!((why.as_str(), may_be_data, text.as_str()), (expected, is_data, line));
    }
}

#[test]
fn errors_keep_what_developers_need() {
    let line = r#"{"type":"TRACE","trace":{"type":"ERROR","error":{"message":"m","internal_message":"i","failure_type":"config_error","stack_trace":"at x","stream_descriptor":{"name":"s"}}}}"#;
    let Message::TraceError(error) = Message::parse(line.as_bytes()) else { panic!("no error") };
    assert_eq!(error.details(), "m\nfailure type: config_error\ninternal message: i\nat x");
    assert_eq!((error.text.as_str(), error.stream), ("m", Some(StreamName::new(None, "s"))));
    let repeated =
        TraceError { text: "m: i".to_owned(), internal_message: Some("i".to_owned()), ..TraceError::default() };
    assert_eq!(repeated.details(), "m: i");
}
