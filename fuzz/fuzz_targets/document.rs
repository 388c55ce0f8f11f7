//! A file of a caller, in JSON or YAML. Errors do not show what it holds.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use syncctl::airbyte::catalog::ConfiguredCatalog;
use syncctl::controller::document::Document;

fuzz_target!(|text: &str| {
    for path in ["config.json", "config.yaml"] {
        let document = Document::of_file(path, text.to_owned());
        if let Ok(json) = document.object("fields") {
            assert!(serde_json::from_str::<IgnoredAny>(&json).is_ok(), "{json}");
        }
        let _ = document.typed::<ConfiguredCatalog>("a catalog").is_ok();
    }
});
