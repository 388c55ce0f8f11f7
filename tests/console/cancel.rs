//! `/cancel`, and runs that meet another one of their sync.

use super::{
    INSTANT, MANUAL, SCHEDULED, SLOW, Service, World, body, cancel_task, ended, eventually, json, post, read, running,
    set_status, unique, wait_empty, wait_running,
};

#[test]
fn cancel_ends_a_read_whatever_its_row_and_the_package_are() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    for (label, package, change, expected) in [
        (
            "the row was set to FAILED by the console",
            "syncctl-test/slow",
            "UPDATE source_task SET status = 'FAILED'",
            Some("FAILED"),
        ),
        ("the row is gone", "syncctl-test/slow", "DELETE FROM source_task", Some("CANCELLED")),
        ("another package", "jitsu", "UPDATE source_task SET description = NULL", Some("CANCELLED")),
        ("no package, and no row", "", "DELETE FROM source_task", Some("CANCELLED")),
    ] {
        let task = unique("cancelled-");
        read(&service, SLOW, "sync", &task, MANUAL, &["ticks"]);
        wait_running(&world, &task);
        world.schema.execute(&format!("{change} WHERE task_id = '{task}'"));
        cancel_task(&service, package, "sync", &task);
        wait_empty(&world);
        assert_eq!(world.schema.task(&task).map(|(status, _)| status).as_deref(), expected, "{label}");
        assert_eq!(cancel_task(&service, package, "sync", &task)["taskId"], json!(task), "{label}: again");
    }
}

#[test]
fn cancel_ends_tasks_of_every_kind_but_not_those_of_another_sync() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    let of_sync = unique("discover-");
    let query = [("storageKey", "k"), ("syncId", "sync"), ("taskId", of_sync.as_str())];
    assert_eq!(post(&service, "/discover", SLOW, &query, &json!({"config": {}})).0, 200);
    let (status, check) = post(&service, "/check", SLOW, &[("storageKey", "c")], &json!({"config": {}}));
    assert_eq!(status, 200, "{check}");
    let check = check["taskId"].as_str().expect("an id").to_owned();

    cancel_task(&service, "", "another", &of_sync);
    assert_eq!(running(&world).len(), 2, "a task of another sync is not cancelled");
    cancel_task(&service, "", "sync", &of_sync);
    eventually("the end of the discover", super::DEADLINE, || (running(&world) == [check.clone()]).then_some(()));
    assert!(world.schema.text("SELECT description FROM source_catalog").starts_with("CANCELLED"));
    cancel_task(&service, "", "sync", &check);
    wait_empty(&world);
    assert!(world.schema.text("SELECT description FROM source_check").starts_with("CANCELLED"));
}

#[test]
fn cancel_of_an_unknown_task_is_ok_and_leaves_nothing() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    for package in ["airbyte/source-faker", ""] {
        let answer = cancel_task(&service, package, "sync", "never-started");
        assert_eq!(answer, json!({"status": "ok", "ok": true, "taskId": "never-started"}));
    }
    assert_eq!(world.schema.count("source_task"), 0);
    let (status, answer) = service.call("/cancel", &[("package", "a"), ("syncId", "sync")], None);
    assert_eq!((status, &answer["problems"]), (400, &json!(["taskId is missing"])));
}

#[test]
fn a_scheduled_read_of_a_running_sync_is_passed_over_and_a_manual_one_is_a_conflict() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    let task = unique("running-");
    read(&service, SLOW, "sync", &task, MANUAL, &["ticks"]);
    wait_running(&world, &task);
    let passed_over = unique("scheduled-");
    let answer = read(&service, SLOW, "sync", &passed_over, SCHEDULED, &["ticks"]);
    let expected = json!({"status": "ok", "ok": true, "started": false, "taskId": passed_over, "runningTaskId": task});
    assert_eq!(answer, expected);
    assert_eq!(world.schema.task(&passed_over), None, "it leaves no row");
    let query = [("syncId", "sync"), ("taskId", "manual"), ("startedBy", MANUAL)];
    let (status, answer) = post(&service, "/read", SLOW, &query, &body(&["ticks"]));
    assert_eq!((status, &answer["ok"], &answer["taskId"]), (409, &json!(false), &json!(task)), "{answer}");
    assert_eq!(running(&world), std::slice::from_ref(&task));

    // The console starts a run beside one that it ignores.
    set_status(&world, &task, "FAILED");
    let beside = unique("beside-");
    read(&service, INSTANT, "sync", &beside, MANUAL, &["items"]);
    assert_eq!(ended(&world, &beside).0, "SUCCESS");
    cancel_task(&service, "syncctl-test/slow", "sync", &task);
    wait_empty(&world);
}
