//! Configurations that connectors renew.

use serde_json::{Value, json};

use super::support::{Connector, World};
use crate::task::{ReadOptions, TaskKind};

/// A CONTROL message with a configuration.
fn renewed(token: &str) -> String {
    let config = json!({"token": token, "n": 1});
    let control = json!({"type": "CONNECTOR_CONFIG", "emitted_at": 1, "connectorConfig": {"config": config}});
    json!({"type": "CONTROL", "control": control}).to_string() + "\n"
}

fn line(message: &Value) -> String {
    message.to_string() + "\n"
}

#[test]
fn every_task_with_a_configuration_uses_and_renews_the_same_one() {
    let mut world = World::new();
    world.config = json!({"n": 1, "token": "given"});
    let status = |status: &str| line(&json!({"type": "CONNECTION_STATUS", "connectionStatus": {"status": status}}));
    let catalog = line(&json!({"type": "CATALOG", "catalog": {"streams": []}}));
    let find = |world: &World, kind: TaskKind, expected: &str, lines: &str| {
        world.find(kind, |connector: &mut Connector| {
            assert_eq!(connector.config()["token"], expected);
            connector.write(lines)?;
            connector.end(0)
        });
    };
    find(&world, TaskKind::Check, "given", &(renewed("one") + &renewed("two") + &status("SUCCEEDED")));
    find(&world, TaskKind::Check, "two", &(renewed("three") + &status("FAILED")));
    find(&world, TaskKind::Discover, "three", &(renewed("four") + &catalog));
    find(&world, TaskKind::Check, "four", &(status("SUCCEEDED") + &renewed("five")));
    let streams = json!({"streams": [{"stream": {"name": "s"}}]});
    world.read(ReadOptions::default(), &json!({"destinationType": "discard"}), &streams, |connector| {
        assert_eq!(connector.config()["token"], "five");
        connector.write(&renewed("six"))?;
        connector.end(1)
    });
    find(&world, TaskKind::Discover, "six", &catalog);
    world.config["n"] = json!(2);
    find(&world, TaskKind::Check, "given", &status("SUCCEEDED"));
    let shown = "SELECT message FROM task_log WHERE message ~ '\"(one|two|three|four|five|six)\"'";
    assert_eq!(world.texts(shown), [""; 0], "no log has a token");
}
