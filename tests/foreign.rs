//! A sidecar of another make: with SYNCCTL_INIT_IMAGE the Pod gives it what the wire contract promises.

use super::support::{World, unique};

#[test]
fn a_sidecar_of_another_make_finds_its_pipes_documents_and_variables() {
    let Some(world) = World::in_cluster() else { return };
    let task = unique("foreign-");
    let done = world
        .read("syncctl-test/instant:1", "s", &task, &["items"])
        .env("SYNCCTL_INIT_IMAGE", "syncctl-test/instant:1")
        .env("SYNCCTL_SIDECAR_IMAGE", "syncctl-test/foreign-sidecar:1")
        .run();
    // It writes no row: what it saw is in the text with which the controller closes the task.
    let saw = [
        "command=read",
        "files=catalog.json destinationConfig.json",
        "destination=discard",
        "database=postgresql",
        &format!("task={task}"),
        r#"first={"type":"#,
    ];
    done.fails(3, "SIDECAR_FAILED", &saw);
    assert_eq!(world.schema.text("SELECT status FROM source_task"), "FAILED");
}
