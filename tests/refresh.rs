//! Truncate refreshes: the old generation is there until the new one is complete, whatever happens in between.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::support::{Program, World, eventually, unique};

const FAKER: &str = "airbyte/source-faker:7.2.1";

/// Reads the users of a generation.
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
fn a_refresh_that_is_cancelled_in_the_middle_goes_on_where_it_stopped() {
    // The source begins anew in spite of its state: what it sent before, and does not send again, shows what was kept.
    const COUNT: u32 = 30_000;
    const AGAIN: u32 = 500;
    let Some(world) = World::new() else { return };
    let table = "SELECT concat_ws('|', count(*), count(DISTINCT id), min(_airbyte_generation_id), \
                 max(_airbyte_generation_id)) FROM users";
    users(&world, 100, 1, 0, &[]).run().code(0);
    assert_eq!(world.schema.text(table), "100|100|1|1");
    // Whoever asks for a refresh lets the source begin anew.
    world.schema.execute("DELETE FROM source_state; CREATE VIEW seen AS SELECT id FROM users");

    let running = users(&world, COUNT, 2, 2, &[]).start();
    let stored = || world.schema.texts("SELECT stream FROM source_state").pop();
    assert_eq!(eventually("a state in the middle", Duration::from_mins(1), stored), "users");
    running.signal(Signal::INT);
    running.wait().code(130);
    assert_eq!(world.schema.text(table), "100|100|1|1", "half a generation shows nothing");

    users(&world, AGAIN, 2, 2, &["--state", "db"]).run().code(0);
    let kept = world.schema.count("seen");
    assert!(kept >= 1000, "{kept} rows, though each state stands for a thousand");
    assert_eq!(world.schema.text(table), format!("{kept}|{kept}|2|2"));

    // A state of generation 2 is of no use to generation 3.
    let done = users(&world, AGAIN, 3, 3, &["--state", "db"]).run();
    assert!(done.code != Some(0) && done.to_string().contains("without its state"), "{done}");
    assert_eq!(world.schema.text(table), format!("{kept}|{kept}|2|2"));
}
