//! The `description` of a read's row: a JSON object of stream reports, which other programs may have written.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::db::text::shown_json;
use crate::failure::Failure;
use crate::task::{StreamReport, StreamReports, StreamStatus, TaskStatus};

/// The description for reports of streams.
pub(super) fn write(reports: &StreamReports) -> String {
    // Names, numbers and statuses always serialize.
    shown_json(&serde_json::to_string(reports).unwrap_or_default()).into_owned()
}

/// Gives the streams that a terminated sidecar has interrupted the outcome of their task: it reports them with the text of
/// [`Failure::terminated`], because it does not know the cause.
pub(super) fn explain(description: &str, outcome: TaskStatus, error: Option<&str>) -> String {
    let Ok(Value::Object(mut streams)) = serde_json::from_str(description) else { return description.to_owned() };
    let provisional = Failure::terminated().text;
    let interrupted = streams.values_mut().filter_map(Value::as_object_mut).filter(|report| {
        let error = report.get("error").and_then(Value::as_str);
        error == Some(provisional.as_str())
    });
    for report in interrupted {
        match (outcome, error) {
            (TaskStatus::Cancelled | TaskStatus::TimeExceeded, _) => {
                report.remove("error");
                report.insert("status".to_owned(), outcome.as_str().into());
            }
            (_, Some(error)) => _ = report.insert("error".to_owned(), Failure::from_stored(error).text.into()),
            (_, None) => {}
        }
    }
    Value::Object(streams).to_string()
}

/// Gives streams that have ended without success and without an error this one.
pub(super) fn with_error(description: &str, error: &str) -> String {
    let Ok(Value::Object(mut streams)) = serde_json::from_str(description) else { return description.to_owned() };
    for report in streams.values_mut().filter_map(Value::as_object_mut) {
        let is_open = |status: &Value| ["SUCCESS", "PENDING", "RUNNING"].iter().any(|open| status == open);
        if !report.contains_key("error") && report.get("status").is_some_and(|status| !is_open(status)) {
            report.insert("error".to_owned(), error.into());
        }
    }
    Value::Object(streams).to_string()
}

/// The error of a task whose row has no column for it: that of its first stream with one.
pub(super) fn error(reports: &StreamReports) -> Option<String> {
    let error = reports.values().find_map(|report| report.error.clone())?;
    let provisional = Failure::terminated();
    // A controller replaces this one, which it recognizes by its class.
    Some(if error == provisional.text { provisional.to_string() } else { error })
}

/// Reads a description leniently: skips what is no report of a stream.
pub fn parse(description: &str) -> StreamReports {
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
                received: member(&report, "received"),
                estimate: member(&report, "estimate"),
                load: serde_json::from_value(report.clone()).unwrap_or_default(),
                dropped: member(&report, "dropped").unwrap_or_default(),
                warnings: member(&report, "warnings").unwrap_or_default(),
            };
            Some((name, report))
        })
        .collect()
}

/// A member of a report; `None` where it is missing or has another form.
fn member<T: DeserializeOwned>(report: &Value, key: &str) -> Option<T> {
    serde_json::from_value(report.get(key)?.clone()).ok()
}

/// Gives streams without a final status the outcome of the task, and the reason to those that fail. Everything else in the
/// description stays.
///
/// After a failure a stream is PARTIAL if some of its records are committed, and else FAILED.
pub fn close(description: &str, outcome: TaskStatus, reason: Option<&str>) -> String {
    let Ok(Value::Object(mut streams)) = serde_json::from_str(description) else { return description.to_owned() };
    let outcome = match outcome {
        TaskStatus::Running => return description.to_owned(),
        TaskStatus::Success => StreamStatus::Success,
        TaskStatus::Partial | TaskStatus::Failed => StreamStatus::Failed,
        TaskStatus::Cancelled | TaskStatus::Skipped => StreamStatus::Cancelled,
        TaskStatus::TimeExceeded => StreamStatus::TimeExceeded,
    };
    let reason = reason.map(|reason| Failure::from_stored(reason).text);
    for report in streams.values_mut().filter_map(Value::as_object_mut) {
        let status = report.get("status").and_then(Value::as_str).unwrap_or_default();
        if !["PENDING", "RUNNING"].contains(&status) {
            continue;
        }
        let is_loaded = report.get("events").and_then(Value::as_u64).is_some_and(|events| events > 0);
        let has_failed = outcome == StreamStatus::Failed;
        let status = if has_failed && is_loaded { StreamStatus::Partial } else { outcome };
        report.insert("status".to_owned(), status.to_string().into());
        report.remove("received");
        if let Some(reason) = reason.as_deref().filter(|_| has_failed && !report.contains_key("error")) {
            report.insert("error".to_owned(), reason.into());
        }
    }
    Value::Object(streams).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{close, explain, parse, write};
    use crate::failure::Failure;
    use crate::task::{StreamStatus, TaskStatus};

    #[test]
    fn close_gives_open_streams_the_outcome_of_the_task() {
        let description = r#"{"b":{"status":"RUNNING","events":1,"extra":true},"a":{"status":"SUCCESS"},"c":{"status":"PENDING"},"d":3}"#;
        assert_eq!(
            close(description, TaskStatus::Cancelled, Some("the task was cancelled")),
            r#"{"b":{"status":"CANCELLED","events":1,"extra":true},"a":{"status":"SUCCESS"},"c":{"status":"CANCELLED"},"d":3}"#
        );
        assert_eq!(close("a text", TaskStatus::Failed, None), "a text");
    }

    #[test]
    fn after_a_failure_only_streams_with_committed_records_are_partial() {
        let description = concat!(
            r#"{"loaded":{"events":5,"status":"RUNNING","received":{"events":7,"bytes":9}},"#,
            r#""sent":{"events":0,"status":"RUNNING","received":{"events":7,"bytes":9}},"#,
            r#""waiting":{"events":0,"status":"PENDING"},"#,
            r#""failed":{"events":0,"status":"RUNNING","error":"its own"},"done":{"events":9,"status":"SUCCESS"}}"#
        );
        for outcome in [TaskStatus::Partial, TaskStatus::Failed] {
            assert_eq!(
                close(description, outcome, Some("SIDECAR_FAILED: killed")),
                concat!(
                    r#"{"loaded":{"events":5,"status":"PARTIAL","error":"killed"},"#,
                    r#""sent":{"events":0,"status":"FAILED","error":"killed"},"#,
                    r#""waiting":{"events":0,"status":"FAILED","error":"killed"},"#,
                    r#""failed":{"events":0,"status":"FAILED","error":"its own"},"done":{"events":9,"status":"SUCCESS"}}"#
                ),
                "{outcome:?}"
            );
        }
    }

    #[test]
    fn interrupted_streams_get_the_cause_that_the_controller_knows() {
        let interrupted = Failure::terminated().text;
        let report = |status: &str, error: &str| json!({"events": 2, "status": status, "error": error});
        let description = json!({
            "b": report("PARTIAL", &interrupted), "a": report("FAILED", "denied"), "c": {"status": "SUCCESS"},
        });
        for (outcome, expected) in [
            (TaskStatus::Failed, report("PARTIAL", "another client deleted the task")),
            (TaskStatus::Partial, report("PARTIAL", "another client deleted the task")),
            (TaskStatus::Cancelled, json!({"events": 2, "status": "CANCELLED"})),
            (TaskStatus::TimeExceeded, json!({"events": 2, "status": "TIME_EXCEEDED"})),
        ] {
            let error = "POD_DELETED: another client deleted the task";
            let explained = explain(&description.to_string(), outcome, Some(error));
            let explained: Value = serde_json::from_str(&explained).expect("JSON");
            assert_eq!((&explained["a"], &explained["c"]), (&description["a"], &description["c"]));
            assert_eq!(explained["b"], expected, "{outcome}");
        }
        assert_eq!(explain("a text", TaskStatus::Failed, None), "a text");
        assert_eq!(explain(&write(&parse("{}")), TaskStatus::Failed, None), "{}");
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
        let counted =
            r#"{"a":{"events":3,"bytes":0,"status":"SUCCESS","merged":1,"misfits":{"c":2},"warnings":{"w":1}}}"#;
        assert_eq!(write(&parse(counted)), counted);
        let foreign = r#"{"a":{"events":3,"bytes":0,"status":"SUCCESS","merged":"many","dropped":7}}"#;
        assert_eq!(write(&parse(foreign)), r#"{"a":{"events":3,"bytes":0,"status":"SUCCESS"}}"#);
    }
}
