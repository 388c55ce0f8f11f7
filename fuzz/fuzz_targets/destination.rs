//! The configuration of a destination. Neither errors nor messages show its credentials.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use syncctl::sidecar::sink::Destination;

const SECRET: &str = "hunter2-Q7x";
/// What may hold a secret.
const FIELDS: [&str; 4] = ["password", "authToken", "sslClientKey", "sslClientCert"];

fuzz_target!(|text: &str| {
    Destination::deletes_rows(text);
    let Ok(mut config) = serde_json::from_str::<Value>(text) else { return };
    parse(&config);
    if text.contains("hunter") || !config.is_object() {
        return;
    }
    for field in FIELDS {
        if config.get(field).is_some() || field == "password" {
            config[field] = json!(SECRET);
        }
    }
    let printed = parse(&config);
    assert!(!printed.contains(SECRET), "{config}: {printed}");
});

fn parse(config: &Value) -> String {
    match Destination::parse(config) {
        Ok(destination) => format!("{destination:?} {}", destination.address()),
        Err(failure) => format!("{failure:?} {failure}"),
    }
}
