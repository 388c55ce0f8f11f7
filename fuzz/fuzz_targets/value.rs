//! A value of a row: any JSON, for any type of column, and for a line of a Bulker.

#![no_main]

use indexmap::IndexMap;
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;
use syncctl::sidecar::sink::bulker::fields::Names;
use syncctl::sidecar::sink::bulker::row::Encoder;
use syncctl::sidecar::sink::postgres::json;
use syncctl::sidecar::sink::postgres::number::Fit;
use syncctl::sidecar::sink::postgres::object_fields::ObjectFields;
use syncctl::sidecar::sink::postgres::types::ColumnType;
use syncctl::sidecar::sink::postgres::value::encode;

const NULL: [u8; 4] = [0xff; 4];

fuzz_target!(|text: &str| {
    let raw = text.trim_matches([' ', '\n', '\r', '\t']);
    if serde_json::from_str::<IgnoredAny>(raw).is_err() {
        return;
    }
    for kind in [
        ColumnType::TEXT,
        ColumnType::Text { max_chars: Some(3), padded: true, reformatted: true },
        ColumnType::Integer { bytes: 2 },
        ColumnType::Integer { bytes: 4 },
        ColumnType::BIGINT,
        ColumnType::Double,
        ColumnType::Real,
        ColumnType::NUMERIC,
        ColumnType::Numeric { limits: Some((4, 2)) },
        ColumnType::TIMESTAMPTZ,
        ColumnType::Timestamp { digits: 3 },
        ColumnType::Date,
        ColumnType::Time { digits: 6 },
        ColumnType::TimeTz { digits: 0 },
        ColumnType::Boolean,
        ColumnType::JSONB,
        ColumnType::Json { binary: false },
        ColumnType::Uuid,
    ] {
        field(kind, raw);
    }
    if raw.starts_with(['{', '[']) {
        let mut compact = Vec::new();
        json::push_compact(raw.as_bytes(), &mut compact);
        assert_same(raw, str::from_utf8(&compact).expect("UTF-8"));
    }
    if let Ok(fields) = serde_json::from_str::<IndexMap<String, &RawValue>>(raw) {
        let mut found: IndexMap<String, &str> = IndexMap::new();
        for (key, range) in ObjectFields::new(raw, 0) {
            found.insert(String::from_utf8(key.into_owned()).expect("UTF-8"), &raw[range]);
        }
        let fields: IndexMap<String, &str> = fields.into_iter().map(|(key, value)| (key, value.get())).collect();
        assert_eq!(found, fields);
    }
    if let Some(document) = json::embedded_document(raw) {
        assert!(serde_json::from_str::<IgnoredAny>(&document).is_ok());
    }
    for to_same_case in [false, true] {
        let mut line = Vec::new();
        if Encoder::new(Names::default(), to_same_case, true).push(raw, &mut line).is_ok() {
            let line = str::from_utf8(&line).expect("UTF-8").strip_suffix('\n').expect("a line");
            assert!(!line.contains('\n') && serde_json::from_str::<IgnoredAny>(line).is_ok(), "{line}");
        }
    }
});

fn field(kind: ColumnType, raw: &str) {
    let mut out = vec![7];
    let fit = encode(kind, raw, &mut out);
    let (length, content) = out[1..].split_at(4);
    if fit == Fit::Misfit || length == NULL {
        assert!(content.is_empty() && length == NULL, "{kind:?}");
        return;
    }
    assert_eq!(usize::try_from(i32::from_be_bytes(length.try_into().expect("four bytes"))), Ok(content.len()));
    match kind {
        ColumnType::Text { .. } => {
            let text = str::from_utf8(content).expect("UTF-8");
            assert!(!text.contains('\0'));
            if fit == Fit::Exact && kind == ColumnType::TEXT && raw.starts_with('"') {
                assert_eq!(serde_json::from_str::<String>(raw).ok().as_deref(), Some(text));
            }
        }
        ColumnType::Json { binary } => {
            let text = str::from_utf8(&content[usize::from(binary)..]).expect("UTF-8");
            assert!(serde_json::from_str::<IgnoredAny>(text).is_ok(), "{text}");
            if fit == Fit::Exact {
                assert_same(raw, text);
            }
        }
        _ => {}
    }
}

/// Two texts of one document. Not every document has a value: numbers may be too large.
fn assert_same(one: &str, other: &str) {
    let value = |text: &str| serde_json::from_str::<Value>(text).ok();
    assert_eq!(value(one), value(other), "{other}");
}
