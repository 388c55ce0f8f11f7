//! What rows and files hold that other programs write: failures, reports of streams, the usage of a connector.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use syncctl::db::task::description;
use syncctl::failure::{Failure, StoredError};
use syncctl::printable;
use syncctl::sidecar::{crash, progress};
use syncctl::task::TaskStatus;

fuzz_target!(|text: &str| {
    // The words of a connector stay its words.
    assert_eq!(StoredError::parse(&StoredError::escape(text)), StoredError::Connector(text.to_owned()));
    let failure = Failure::from_stored(text);
    assert_eq!(Failure::from_stored(&failure.to_string()), failure);
    StoredError::is_provisional(text);
    if let Ok(failure) = serde_json::from_str::<Failure>(text) {
        let document = serde_json::to_string(&failure).expect("JSON");
        assert_eq!(serde_json::from_str::<Failure>(&document).expect("a failure"), failure);
    }
    let reports = description::parse(text);
    for report in reports.values() {
        report.details();
    }
    let document = serde_json::to_string(&reports).expect("JSON");
    assert_eq!(description::parse(&document), reports);
    description::close(text, TaskStatus::Failed, Some("the reason"));
    assert!(printable::line(text).chars().all(|c| c == '\t' || !c.is_control()));
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        assert_eq!(serde_json::from_str::<Value>(&printable::json(text)).ok(), Some(value));
    }
    progress::parse_metrics(text);
    crash::is_report(text);
});
