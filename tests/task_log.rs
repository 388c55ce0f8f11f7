//! `task_log` shows how a task came to run and what it loaded, although its connector logs nothing.

use serde_json::json;
use std::time::Duration;

use super::support::{Place, Service, World, catalog, eventually, unique};

/// Only ends a wait that hangs.
const DEADLINE: Duration = Duration::from_mins(3);

/// The lines of our own about a task, in their order.
fn own_lines(world: &World, task: &str) -> Vec<String> {
    world.schema.texts(&format!(
        "SELECT message FROM task_log WHERE task_id = '{task}' AND logger = 'syncctl' ORDER BY timestamp, id"
    ))
}

/// Asserts that there is exactly one line with each of these texts, in this order.
fn assert_story(world: &World, lines: &[String]) {
    let created = match &world.place {
        Place::Cluster(namespace) => format!("created in namespace {}", namespace.name),
        Place::Machine(_) => "task created".to_owned(),
    };
    let (node, image) = match &world.place {
        Place::Cluster(_) => ("pod scheduled to node ", "is on the node"),
        Place::Machine(_) => ("running on machine ", "connector: "),
    };
    let texts =
        [created.as_str(), node, image, "connector started", "stream a: started, ", "stream a: 2 rows committed"];
    let positions = texts.iter().chain(&["read ended as SUCCESS: 2 rows"]).map(|text| {
        let found: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].contains(text)).collect();
        assert_eq!(found.len(), 1, "{text}: {lines:?}");
        found[0]
    });
    // The clocks of the cluster and of the sidecar may differ: only the order within each of them is certain.
    let positions: Vec<usize> = positions.collect();
    assert!(positions[..4].is_sorted() && positions[4..].is_sorted(), "{lines:?}");
}

#[test]
fn the_log_of_a_command_tells_its_task() {
    let Some(world) = World::new() else { return };
    let task = unique("log-");
    world.script("rows a 1 2", &catalog(&["a"]), &task).run().code(0);
    let lines = own_lines(&world, &task);
    assert_story(&world, &lines);
    if let Place::Machine(_) = world.place {
        assert!(!lines.iter().any(|line| line.to_lowercase().contains("pod ")), "{lines:?}");
    }
}

#[test]
fn the_log_of_a_service_tells_its_task_once_also_after_a_restart() {
    let Some(world) = World::new() else { return };
    let mut service = Service::start(&world);
    let task = unique("log-");
    let discard = json!({"destinationType": "discard"});
    let body = json!({"config": {}, "catalog": catalog(&["ticks"]), "destinationConfig": discard});
    assert_eq!(service.read("syncctl-test/slow:1", "sync", &task, &body).0, 200);
    let started = || own_lines(&world, &task).iter().filter(|line| *line == "connector started").count();
    eventually("the line of the start", DEADLINE, || (started() == 1).then_some(()));
    if let Place::Cluster(_) = world.place {
        // Local tasks end with the service.
        service.stop().code(0);
        service.start_again();
        eventually("a look at the task", DEADLINE, || {
            let metrics = service.get("/metrics").text();
            let is_tracked = |line: &str| line.contains("phase=\"running\"") && line.ends_with(" 1");
            metrics.lines().any(is_tracked).then_some(())
        });
        assert_eq!(started(), 1, "{:?}", own_lines(&world, &task));
    }
    assert_eq!(service.cancel("syncctl-test/slow:1", "sync", &task).0, 200);
    eventually("no Pod is left", DEADLINE, || world.place.leftovers().is_empty().then_some(()));
    service.stop().code(0);
}
