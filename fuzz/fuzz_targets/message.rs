//! A line of a connector's stdout: a message, or messages among other text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use syncctl::airbyte::message::Message;
use syncctl::airbyte::mixed_line::{Part, split};

fuzz_target!(|line: &[u8]| {
    let message = Message::parse(line);
    if let Message::Record(record) = &message {
        for json in [Some(&record.data), record.meta.as_ref()].into_iter().flatten() {
            assert!(serde_json::from_str::<IgnoredAny>(json).is_ok(), "{json}");
        }
        assert_eq!(record.line_bytes, line.len() as u64);
    }
    assert_eq!(message.clone().into_owned(), message);

    let Ok(line) = str::from_utf8(line) else { return };
    let mut rest = line;
    for part in split(line) {
        // The parts are in the order of the text.
        if let Part::CutOff(text) | Part::Quoted(text) | Part::Text(text) = part {
            let at = rest.find(text).expect("a part of the line");
            rest = &rest[at + text.len()..];
        }
    }
    // Text before a message that is JSON does not hide it.
    if message.is_known() && serde_json::from_str::<IgnoredAny>(line).is_ok() {
        let mixed = format!("1% {line}");
        let found = split(&mixed).into_iter().filter(|part| matches!(part, Part::Message(_)));
        assert_eq!(found.count(), 1, "{mixed}");
    }
});
