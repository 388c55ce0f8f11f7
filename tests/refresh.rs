//! Truncate refreshes: the old generation stays until the new one is complete, even if reads are interrupted.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::support::{Program, World, eventually, unique};

const FAKER: &str = "airbyte/source-faker:7.2.1";

/// Reads the stream `users` in this generation.
fn users(world: &World, count: u32, generation: u32, minimum: u32, state: &[&str]) -> Program {
    let config =
        json!({"count": count, "seed": 7, "parallelism": 1, "records_per_slice": 1000, "always_updated": true});
    let discovered = world.syncctl(&["discover", FAKER, "--config", &world.json("config.json", &config), "-o", "json"]);
    let discovered: Value = discovered.run().code(0).json();
    let streams = discovered["streams"].as_array().expect("streams");
    let stream = streams.iter().find(|stream| stream["name"] == "users").expect("the stream of users");
    let catalog = json!({"streams": [{
        "stream": stream, "sync_mode": "incremental", "destination_sync_mode": "append_dedup",
        "primary_key": [["id"]], "cursor_field": ["updated_at"],
        "generation_id": generation, "minimum_generation_id": minimum, "sync_id": 1,
    }]});
    let (config, catalog) = (world.json("config.json", &config), world.json("catalog.json", &catalog));
    let destination = world.destination();
    let arguments = ["read", FAKER, "--config", &config, "--catalog", &catalog, "--destination-config", &destination];
    world.syncctl(&arguments).with(&["--sync-id", "sync", "--task-id", &unique("users-"), "-o", "json"]).with(state)
}

#[test]
fn cancelled_refresh_resumes_and_replaces_the_old_generation_at_the_end() {
    // The source ignores its state and starts over, with fewer rows: the others are from the first run.
    const COUNT: u32 = 30_000;
    const SECOND_COUNT: u32 = 500;
    let Some(world) = World::new() else { return };
    let table = "SELECT concat_ws('|', count(*), count(DISTINCT id), min(_airbyte_generation_id), \
                 max(_airbyte_generation_id)) FROM users";
    users(&world, 100, 1, 0, &[]).run().code(0);
    assert_eq!(world.schema.text(table), "100|100|1|1");
    // A refresh starts without a state.
    world.schema.execute("DELETE FROM source_state; CREATE VIEW user_ids AS SELECT id FROM users");

    let running = users(&world, COUNT, 2, 2, &[]).start();
    let stored = || world.schema.texts("SELECT stream FROM source_state").pop();
    assert_eq!(eventually("a state is saved", Duration::from_mins(1), stored), "users");
    running.signal(Signal::INT);
    running.wait().code(130);
    assert_eq!(world.schema.text(table), "100|100|1|1", "a partial generation is not visible");

    users(&world, SECOND_COUNT, 2, 2, &["--state", "db"]).run().code(0);
    let count = world.schema.count("user_ids");
    assert!(count >= 1000, "{count} rows, but there is a state after every 1,000");
    assert_eq!(world.schema.text(table), format!("{count}|{count}|2|2"));

    // A state of generation 2 is not valid for generation 3.
    let done = users(&world, SECOND_COUNT, 3, 3, &["--state", "db"]).run();
    assert!(done.code != Some(0) && done.to_string().contains("without its state"), "{done}");
    assert_eq!(world.schema.text(table), format!("{count}|{count}|2|2"));
}
