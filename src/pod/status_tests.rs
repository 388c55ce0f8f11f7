//! Pod status → observation.

use serde_json::{Value, json};

use super::{Explanation, INIT, Observation, Phase};
use crate::failure::Class;

fn observe(status: &Value) -> Phase {
    observation(status).phase
}

fn observation(status: &Value) -> Observation {
    let pod = json!({
        "metadata": {"name": "p", "deletionTimestamp": status.get("deletion")},
        "spec": {"containers": [
            {"name": "sidecar"},
            {"name": "source", "resources": {"limits": {"memory": "64Mi"}}},
        ]},
        "status": status,
    });
    Observation::of(&serde_json::from_value(pod).expect("a pod"))
}

fn container(name: &str, state: &Value) -> Value {
    json!({"name": name, "image": "img:1", "imageID": "", "ready": false, "restartCount": 0, "state": state})
}

fn both(sidecar: &Value, source: &Value) -> Value {
    json!({"phase": "Pending", "containerStatuses": [container("sidecar", sidecar), container("source", source)]})
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({"waiting": {"reason": reason, "message": message}})
}

fn ended(code: i32, reason: &str, message: &str) -> Value {
    json!({"terminated": {"exitCode": code, "reason": reason, "message": message}})
}

#[test]
fn a_pod_that_does_not_start_waits_or_has_an_error() {
    let running = json!({"running": {}});
    for (label, status, expected) in [
        ("no status", json!({}), None),
        ("creating", both(&waiting("ContainerCreating", ""), &waiting("ContainerCreating", "")), None),
        ("pulling while the sidecar runs", both(&running, &waiting("PodInitializing", "")), None),
        ("not found", both(&running, &waiting("ErrImagePull", "manifest unknown")), Some((Class::ImageNotFound, true))),
        (
            "back-off without a cause",
            both(&running, &waiting("ImagePullBackOff", "Back-off")),
            Some((Class::ImagePull, false)),
        ),
        (
            "throttled",
            both(&running, &waiting("ErrImagePull", "429 Too Many: denied")),
            Some((Class::ImagePull, false)),
        ),
        (
            "no DNS",
            both(&running, &waiting("ErrImagePull", "dial tcp: lookup r.example: no such host: not found")),
            Some((Class::ImagePull, false)),
        ),
        ("bad name", both(&running, &waiting("InvalidImageName", "x")), Some((Class::ImageNotFound, true))),
        (
            "a digest that contains 429",
            both(&running, &waiting("ErrImagePull", "sha256:1429: not found")),
            Some((Class::ImageNotFound, true)),
        ),
        ("no key", both(&running, &waiting("CreateContainerConfigError", "x")), Some((Class::StartError, true))),
        (
            "a secret that the node has not synchronized yet",
            both(&running, &waiting("CreateContainerConfigError", "failed to sync secret cache: timed out")),
            Some((Class::StartError, false)),
        ),
        (
            "a slow disk",
            both(&running, &waiting("CreateContainerError", "context deadline exceeded")),
            Some((Class::StartError, false)),
        ),
        (
            "a name in use",
            both(&running, &waiting("CreateContainerError", "name \"x\" is reserved for \"y\"")),
            Some((Class::StartError, false)),
        ),
        (
            "no shell",
            both(&running, &waiting("RunContainerError", "exec: \"sh\": executable file not found in $PATH")),
            Some((Class::StartError, true)),
        ),
        (
            "no node",
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}]}),
            Some((Class::Unschedulable, false)),
        ),
    ] {
        let got = match observe(&status) {
            Phase::Error { failure, permanent } => Some((failure.class, permanent)),
            Phase::Waiting(_) => None,
            other => panic!("{label}: {other:?}"),
        };
        assert_eq!(got, expected, "{label}");
    }
}

#[test]
fn a_pod_has_ended_when_its_sidecar_has_ended_or_cannot_continue() {
    let running = json!({"running": {}});
    let termination_message = r#"{"class":"DATABASE_UNREACHABLE","error":"no x"}"#;
    for (label, status, expected) in [
        ("both run", both(&running, &running), None),
        ("the sidecar finishes", both(&running, &ended(0, "Completed", "")), None),
        ("oom", both(&ended(75, "Error", ""), &ended(137, "OOMKilled", "")), Some((Class::OomKilled, "64Mi"))),
        ("killed", both(&ended(75, "Error", ""), &ended(137, "Error", "")), Some((Class::ConnectorFailed, "137"))),
        (
            "a termination message",
            both(&ended(3, "Error", termination_message), &running),
            Some((Class::DatabaseUnreachable, "no x")),
        ),
        ("a crash", both(&ended(101, "Error", "panicked"), &running), Some((Class::SidecarFailed, "panicked"))),
        ("no shell", both(&running, &ended(128, "StartError", "no sh")), Some((Class::StartError, "no sh"))),
        ("no error", both(&ended(0, "", ""), &ended(0, "", "")), Some((Class::SidecarFailed, "without a result"))),
        (
            "evicted",
            json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}),
            Some((Class::Evicted, "low on memory")),
        ),
        (
            "deadline",
            json!({"phase": "Failed", "reason": "DeadlineExceeded", "message": "active"}),
            Some((Class::TimeExceeded, "active")),
        ),
        ("deleted", json!({"deletion": "2026-01-01T00:00:00Z"}), Some((Class::PodDeleted, "another client"))),
    ] {
        match (observe(&status), expected) {
            (Phase::Running, None) => {}
            (Phase::Ended(ended), Some((class, part))) => {
                let failure = ended.failure();
                assert_eq!(failure.class, class, "{label}");
                assert!(failure.text.contains(part), "{label}: {failure}");
            }
            (got, expected) => panic!("{label}: {got:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn the_logs_may_explain_what_the_statuses_do_not() {
    let running = json!({"running": {}});
    let message = r#"{"class":"DATABASE_UNREACHABLE","error":"no x"}"#;
    for (label, status, expected) in [
        ("success", both(&ended(0, "Completed", ""), &ended(0, "Completed", "")), Explanation::Success),
        ("a connector that failed", both(&ended(0, "Completed", ""), &ended(4, "Error", "")), Explanation::ExitCode),
        ("a sidecar that failed", both(&ended(1, "Error", ""), &ended(0, "Completed", "")), Explanation::ExitCode),
        ("a reported cause", both(&ended(3, "Error", message), &running), Explanation::Cause),
        ("a killed connector", both(&ended(75, "Error", ""), &ended(137, "Error", "")), Explanation::Cause),
        ("too much memory", both(&ended(1, "Error", ""), &ended(137, "OOMKilled", "")), Explanation::Cause),
        ("no shell", both(&running, &ended(128, "StartError", "no sh")), Explanation::Cause),
        ("deleted", json!({"deletion": "2026-01-01T00:00:00Z"}), Explanation::Cause),
    ] {
        let Phase::Ended(ended) = observe(&status) else { panic!("{label}: not ended") };
        assert_eq!(ended.explanation(), expected, "{label}");
    }
}

#[test]
fn a_foreign_sidecar_that_has_succeeded_decides_nothing_alone() {
    let mut status = both(&ended(0, "Completed", ""), &json!({"running": {}}));
    assert!(matches!(observation(&status).phase, Phase::Ended(_)));
    status["initContainerStatuses"] = json!([container(INIT, &ended(0, "Completed", ""))]);
    assert_eq!(observation(&status).phase, Phase::Running);
}

#[test]
fn a_pod_has_started_when_both_containers_have_started() {
    let running = |at: &str| json!({"running": {"startedAt": at}});
    let ended =
        |at: &str| json!({"terminated": {"exitCode": 0, "startedAt": at, "finishedAt": "2026-01-01T00:01:00Z"}});
    let (first, second) = ("2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z");
    for (label, status, phase, expected) in [
        ("no status", json!({}), "waiting", None),
        ("one", both(&running(first), &waiting("ErrImagePull", "")), "error", None),
        ("both", both(&running(second), &running(first)), "running", Some(second)),
        ("one has ended", both(&running(first), &ended(second)), "running", Some(second)),
        ("both have ended", both(&ended(first), &ended(second)), "ended", Some(second)),
        ("one never started", both(&ended(first), &ended("1970-01-01T00:00:00Z")), "ended", None),
    ] {
        let seen = observation(&status);
        let expected = expected.map(|time| time.parse().expect("a time"));
        assert_eq!((seen.phase_label(), seen.started_at), (phase, expected), "{label}");
    }
    let condition =
        |status: &str| json!({"conditions": [{"type": "PodScheduled", "status": status, "lastTransitionTime": first}]});
    assert_eq!(observation(&condition("True")).scheduled_at, Some(first.parse().expect("a time")));
    assert_eq!(observation(&condition("False")).scheduled_at, None);
}

#[test]
fn a_service_mesh_container_does_not_keep_a_task_running() {
    let mut status = both(&ended(0, "Completed", ""), &ended(0, "Completed", ""));
    status["phase"] = json!("Running");
    status["containerStatuses"].as_array_mut().expect("a list").push(container("istio-proxy", &json!({"running": {}})));
    assert!(matches!(observe(&status), Phase::Ended(_)));
}
