//! The `description` of a read's row: a JSON object of stream reports, which other programs may have written.

use serde_json::Value;

use crate::db::text::clean;
use crate::task::{StreamReport, StreamReports, StreamStatus, TaskStatus};

/// The description for reports of streams.
pub(super) fn write(reports: &StreamReports) -> String {
    // Names, numbers and statuses always serialize.
    clean(&serde_json::to_string(reports).unwrap_or_default()).into_owned()
}

/// The description for the reports of a sidecar that was terminated after the row got a final status: the sidecar
/// reports its open streams as cancelled, because it knows only of the signal.
pub(super) fn write_late(reports: &StreamReports, stored_status: &str) -> String {
    let mut reports = reports.clone();
    if let Some(status) = controller_failure(stored_status) {
        for report in reports.values_mut().filter(|report| report.status == StreamStatus::Cancelled) {
            report.status = status;
        }
    }
    write(&reports)
}

/// The status of interrupted streams when the controller has closed their task with a failure.
pub(super) fn controller_failure(stored_status: &str) -> Option<StreamStatus> {
    match stored_status.parse().ok()? {
        TaskStatus::TimeExceeded => Some(StreamStatus::TimeExceeded),
        TaskStatus::Failed | TaskStatus::Partial => Some(StreamStatus::Failed),
        TaskStatus::Running | TaskStatus::Success | TaskStatus::Cancelled | TaskStatus::Skipped => None,
    }
}

/// Reads a description leniently: skips what is no report of a stream.
pub(super) fn parse(description: &str) -> StreamReports {
    let Ok(Value::Object(streams)) = serde_json::from_str(description) else { return StreamReports::new() };
    let number = |report: &Value, key: &str| report.get(key).and_then(Value::as_u64).unwrap_or(0);
    streams
        .into_iter()
        .filter_map(|(name, report)| {
            let status = report.get("status")?.clone();
            let report = StreamReport {
                events: number(&report, "events"),
                bytes: number(&report, "bytes"),
                status: serde_json::from_value(status).unwrap_or(StreamStatus::Pending),
                error: report.get("error").and_then(Value::as_str).map(str::to_owned),
                estimate: report.get("estimate").and_then(|estimate| serde_json::from_value(estimate.clone()).ok()),
            };
            Some((name, report))
        })
        .collect()
}

/// Gives streams without a final status the outcome of the task. Everything else in the description stays.
pub(super) fn close(description: &str, outcome: TaskStatus) -> String {
    let Ok(Value::Object(mut streams)) = serde_json::from_str(description) else { return description.to_owned() };
    let outcome = match outcome {
        TaskStatus::Running => return description.to_owned(),
        TaskStatus::Success => StreamStatus::Success,
        TaskStatus::Partial => StreamStatus::Partial,
        TaskStatus::Failed => StreamStatus::Failed,
        TaskStatus::Cancelled | TaskStatus::Skipped => StreamStatus::Cancelled,
        TaskStatus::TimeExceeded => StreamStatus::TimeExceeded,
    };
    let outcome = serde_json::to_value(outcome).unwrap_or_default();
    let statuses = streams.values_mut().filter_map(|report| report.get_mut("status"));
    for status in statuses.filter(|status| ["PENDING", "RUNNING"].contains(&status.as_str().unwrap_or_default())) {
        *status = outcome.clone();
    }
    Value::Object(streams).to_string()
}

#[cfg(test)]
mod tests {
    use super::{close, parse};
    use crate::task::{StreamStatus, TaskStatus};

    #[test]
    fn close_gives_open_streams_the_outcome_of_the_task() {
        let description = r#"{"b":{"status":"RUNNING","events":1,"extra":true},"a":{"status":"SUCCESS"},"c":{"status":"PENDING"},"d":3}"#;
        assert_eq!(
            close(description, TaskStatus::Cancelled),
            r#"{"b":{"status":"CANCELLED","events":1,"extra":true},"a":{"status":"SUCCESS"},"c":{"status":"CANCELLED"},"d":3}"#
        );
        assert_eq!(close("a text", TaskStatus::Failed), "a text");
    }

    #[test]
    fn parse_skips_unknown_parts_of_a_description() {
        let description = r#"{"b":{"status":"PARTIAL","events":3,"bytes":-1,"error":"e"},"a":{"status":"NEW"},"x":1}"#;
        let streams = parse(description);
        let names: Vec<&str> = streams.keys().map(String::as_str).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!((streams["b"].events, streams["b"].bytes, streams["b"].status), (3, 0, StreamStatus::Partial));
        assert_eq!(streams["a"].status, StreamStatus::Pending);
        assert!(parse("not JSON").is_empty());
    }
}
