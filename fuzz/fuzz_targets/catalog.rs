//! A catalog: what a caller configures, and what a source discovers.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::Value;
use syncctl::airbyte::catalog::{ConfiguredCatalog, for_connector, from_discovered};
use syncctl::airbyte::state::Progress;
use syncctl::sidecar::sink::bulker::fields::Fields;
use syncctl::sidecar::stream_specs;
use syncctl::task::ReadOptions;

fuzz_target!(|text: &str| {
    if serde_json::from_str::<IgnoredAny>(text).is_ok() {
        let passed_on = for_connector(text);
        assert!(serde_json::from_str::<IgnoredAny>(&passed_on).is_ok(), "{passed_on}");
        assert_eq!(for_connector(&passed_on), passed_on);
    }
    if let Ok(discovered) = serde_json::from_str::<Value>(text)
        && let Some(configured) = from_discovered(&discovered)
    {
        assert_eq!(discovered["streams"].as_array().map(Vec::len), configured["streams"].as_array().map(Vec::len));
    }
    let Ok(catalog) = serde_json::from_str::<ConfiguredCatalog>(text) else { return };
    let is_valid = catalog.validate().is_ok();
    for stream in &catalog.streams {
        stream.key_problem(&stream.primary_key);
        // A catalog with generations that contradict each other is refused.
        assert!(stream.generations().is_ok() || !is_valid);
    }
    for to_same_case in [false, true] {
        let options = ReadOptions { to_same_case, ..ReadOptions::default() };
        for spec in stream_specs(&catalog, &options, &Progress::default()) {
            let _ = Fields::new(&spec, "table");
        }
    }
});
