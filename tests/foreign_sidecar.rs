//! A foreign sidecar: with `SYNCCTL_INIT_IMAGE` the Pod gives it what the wire contract requires.

use super::support::{World, unique};

#[test]
fn foreign_sidecar_gets_pipes_documents_and_variables() {
    let Some(world) = World::in_cluster() else { return };
    let task = unique("foreign-");
    let done = world
        .read("syncctl-test/instant:1", "s", &task, &["items"])
        .env("SYNCCTL_INIT_IMAGE", "syncctl-test/instant:1")
        .env("SYNCCTL_SIDECAR_IMAGE", "syncctl-test/foreign-sidecar:1")
        .run();
    // It writes no row: the controller ends the task with an error that contains the sidecar's output.
    let output = [
        "command=read",
        "files=catalog.json destinationConfig.json",
        "destination=discard",
        "database=postgresql",
        &format!("task={task}"),
        r#"first={"type":"#,
    ];
    done.fails(3, "SIDECAR_FAILED", &output);
    assert_eq!(world.schema.text("SELECT status FROM source_task"), "FAILED");
}
