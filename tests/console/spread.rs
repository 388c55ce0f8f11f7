//! Scheduled reads that are due at the same time: a few start at once, the others wait.

use super::{
    DEADLINE, INSTANT, SCHEDULED, Service, World, body, cancel_task, ended, eventually, json, post, running,
    set_status, unique, wait_empty,
};

/// Reads that need no delay.
const IMMEDIATE: usize = 4;

/// A scheduled read that may be delayed.
#[track_caller]
fn schedule(service: &Service, sync: &str, task: &str, nodelay: &str) {
    let query = [("syncId", sync), ("taskId", task), ("startedBy", SCHEDULED), ("nodelay", nodelay)];
    let (status, answer) = post(service, "/read", INSTANT, &query, &body(&["items"]));
    assert_eq!((status, &answer["ok"], &answer["taskStatus"]), (200, &json!(true), &json!("RUNNING")), "{answer}");
}

/// A service whose further scheduled reads wait for up to this time.
fn busy_service(world: &World, spread_seconds: &str) -> Service {
    let service = Service::start_with(world, |program| program.env("SYNCCTL_START_SPREAD_SECONDS", spread_seconds));
    for number in 0..IMMEDIATE {
        schedule(&service, &format!("first-{number}"), &unique("first-"), "false");
    }
    service
}

/// The last heartbeat of a task that waits.
fn heartbeat(world: &World, task: &str) -> String {
    world
        .schema
        .text(&format!("SELECT updated_at::text FROM source_task WHERE task_id = '{task}' AND status = 'RUNNING'"))
}

#[test]
fn a_waiting_read_is_running_survives_a_restart_and_can_be_cancelled() {
    let Some(world) = World::new() else { return };
    let mut service = busy_service(&world, "3600");
    wait_empty(&world);
    // Its place is in the second half of the hour.
    let (sync, task) = ("late-0", unique("waits-"));
    schedule(&service, sync, &task, "false");
    let now = unique("nodelay-");
    schedule(&service, "late-1", &now, "true");
    assert_eq!(ended(&world, &now).0, "SUCCESS", "nodelay starts at once");
    eventually("the end of the other", DEADLINE, || running(&world).is_empty().then_some(()));
    let (status, busy) = post(&service, "/read", INSTANT, &[("syncId", sync), ("taskId", "other")], &body(&["items"]));
    assert_eq!((status, &busy["taskId"]), (409, &json!(task)), "{busy}");
    service.kill();
    let before = heartbeat(&world, &task);
    service.start_again();
    eventually("a heartbeat", DEADLINE, || (heartbeat(&world, &task) != before).then_some(()));
    assert!(running(&world).is_empty() && !world.place.leftovers().is_empty(), "it still waits");
    let logged = format!("SELECT message FROM task_log WHERE task_id = '{task}'");
    assert!(world.schema.text(&logged).contains("because several scheduled runs are due"));
    assert_eq!(cancel_task(&service, "", sync, &task)["taskStatus"], "CANCELLED");
    wait_empty(&world);
}

#[test]
fn waiting_reads_start_also_after_a_restart_but_not_where_the_console_has_closed_their_rows() {
    let Some(world) = World::new() else { return };
    let mut service = busy_service(&world, "8");
    // Their places are at 4 s and at 8 s.
    let (task, closed) = (unique("waits-"), unique("closed-"));
    schedule(&service, "late-4", &task, "false");
    schedule(&service, "late-10", &closed, "false");
    set_status(&world, &closed, "FAILED");
    service.kill();
    service.start_again();
    assert_eq!(ended(&world, &task), ("SUCCESS".to_owned(), String::new()));
    wait_empty(&world);
    assert_eq!(world.schema.task(&closed).expect("a row").0, "FAILED");
}
