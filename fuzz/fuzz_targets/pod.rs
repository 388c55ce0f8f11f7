//! A Pod as the API server describes it: its status, the termination messages of its containers, its annotations.

#![no_main]

use k8s_openapi::api::core::v1::Pod;
use libfuzzer_sys::fuzz_target;
use syncctl::pod::kubernetes::partial::PartialPod;
use syncctl::pod::status::{Observation, Phase};
use syncctl::task::Task;

fuzz_target!(|document: &[u8]| {
    let Ok(mut whole) = serde_json::from_slice::<Pod>(document) else { return };
    // Not read by the part.
    if let Some(spec) = &mut whole.spec {
        spec.node_name = None;
    }
    let observation = Observation::of(&whole);
    if let Ok(PartialPod(partial)) = serde_json::from_slice(document) {
        assert_eq!(Observation::of(&partial), observation);
    }
    observation.phase_label();
    if let Phase::Ended(ended) = &observation.phase {
        ended.explanation();
        ended.failure().to_string();
    }
    let annotations = whole.metadata.annotations.unwrap_or_default();
    if let Ok(task) = Task::from_annotations(&annotations) {
        let name = task.pod_name();
        assert!(name.len() <= 63 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
        assert_eq!(Task::from_annotations(&task.to_annotations()), Ok(task));
    }
});
