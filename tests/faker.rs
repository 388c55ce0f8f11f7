//! A real connector with any number of records: cancelled and killed within a stream, resumed, read again, replaced.
//! `make soak` runs it with a million.
//!
//! The seed of `source-faker` determines its rows, except for times. Once a stream has a state, whatever the row,
//! `source-faker` considers it complete: the state of an interrupted stream is deleted before the next run, as users do.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use postgres::Client;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::support::{Done, Program, Running, World, eventually, processes, unique};

const FAKER: &str = "airbyte/source-faker:7.2.1";
/// Assumed minimum of `users` per second, for deadlines.
const SLOWEST: u64 = 1000;
/// How long a Pod and the connector may take to start: only reached when a test hangs.
const START: Duration = Duration::from_mins(3);
/// Number of `products`.
const PRODUCTS: i64 = 100;

/// Number of `users`.
fn records() -> u64 {
    let records = std::env::var("SYNCCTL_TEST_FAKER_RECORDS").ok();
    records.map_or(2000, |text| text.parse().expect("SYNCCTL_TEST_FAKER_RECORDS is a number"))
}

struct Scene {
    world: World,
    records: u64,
    discovered: Value,
}

/// Number of records between states.
fn slice(records: u64) -> u64 {
    (records / 20).clamp(1, 10_000)
}

/// How to run a read.
#[derive(Clone, Copy)]
struct Mode {
    sync: &'static str,
    prefix: &'static str,
    /// Sync mode and destination sync mode.
    modes: [&'static str; 2],
    /// Whether all rows have changed since the last run.
    updated: bool,
}

/// Several interrupted runs fill these tables.
const INTERRUPTED: Mode =
    Mode { sync: "interrupted", prefix: "interrupted_", modes: ["incremental", "append_dedup"], updated: false };
/// One run fills these tables.
const UNINTERRUPTED: Mode =
    Mode { sync: "uninterrupted", prefix: "uninterrupted_", modes: ["full_refresh", "overwrite"], updated: false };

/// The content of tables except for times: number of rows, number of distinct keys, and a checksum.
type Content = BTreeMap<&'static str, (i64, i64, String)>;

impl Scene {
    fn new() -> Option<Self> {
        let world = World::in_cluster()?;
        let records = records();
        let mut scene = Self { world, records, discovered: Value::Null };
        let config = scene.world.json("discover.json", &scene.config(false));
        let discovered = scene.world.syncctl(&["discover", FAKER, "--config", &config, "-o", "json"]).run();
        scene.discovered = discovered.code(0).json();
        Some(scene)
    }

    fn config(&self, updated: bool) -> Value {
        json!({
            "count": self.records, "seed": 1, "parallelism": 1, "always_updated": updated,
            "records_per_slice": slice(self.records),
        })
    }

    fn read(&self, mode: Mode, task: &str) -> Program {
        let streams = self.discovered["streams"].as_array().expect("streams").iter().map(|stream| {
            json!({
                "stream": stream, "sync_mode": mode.modes[0], "destination_sync_mode": mode.modes[1],
                "primary_key": stream["source_defined_primary_key"], "cursor_field": stream["default_cursor_field"],
            })
        });
        let catalog = self.world.json("catalog.json", &json!({"streams": streams.collect::<Vec<_>>()}));
        let config = self.world.json("config.json", &self.config(mode.updated));
        let destination = self.world.destination();
        let arguments = ["read", FAKER, "--config", &config, "--catalog", &catalog];
        let ids = ["--sync-id", mode.sync, "--task-id", task, "--table-name-prefix", mode.prefix];
        self.world.syncctl(&arguments).with(&ids).with(&["--destination-config", &destination, "-o", "json"])
    }

    /// Runs a read that must succeed.
    fn succeed(&self, label: &str, mode: Mode, extra: &[&str]) -> Value {
        let task = unique("faker-");
        let done = self.end(label, &task, self.read(mode, &task).with(extra).start());
        let document = done.code(0).json();
        assert_eq!(document["status"], "SUCCESS", "{label}\n{done}");
        document["streams"].clone()
    }

    /// Waits for the end of a command, and prints a summary.
    fn end(&self, label: &str, task: &str, mut running: Running) -> Done {
        let deadline = Instant::now() + self.timeout();
        let mut peak = 0;
        while !running.has_ended() {
            assert!(Instant::now() < deadline, "{label}: the command did not end in time");
            peak = peak.max(processes::sidecar_of(task).map_or(0, processes::memory_of));
            std::thread::sleep(Duration::from_millis(50));
        }
        let done = running.wait();
        let streams = done.json()["streams"].clone();
        let events: u64 = events(&streams).values().sum();
        let seconds = done.took.as_secs_f64();
        println!("{label}: {events} records in {seconds:.1} s, {:.1} MB in the sidecar: {streams}", megabytes(peak));
        done
    }

    fn timeout(&self) -> Duration {
        START + Duration::from_secs(3 * self.records / SLOWEST)
    }

    fn content(&self, mode: Mode) -> Content {
        // The other columns of purchases depend on the time.
        let rows = [
            ("products", "to_jsonb(t) - 'updated_at'"),
            ("users", "to_jsonb(t) - 'updated_at'"),
            ("purchases", "jsonb_build_array(t.id, t.user_id, t.product_id IS NULL)"),
        ];
        let content = rows.map(|(stream, row)| {
            let query = format!(
                "SELECT count(*), count(DISTINCT id), coalesce(sum(hashtextextended(({row})::text, 0)::numeric), 0)::text
                 FROM {}{stream} t",
                mode.prefix
            );
            let rows = self.world.schema.rows(&query);
            (stream, (rows[0].get(0), rows[0].get(1), rows[0].get(2)))
        });
        content.into()
    }

    /// The position of a stream in its stored state.
    fn position(&self, stream: &str) -> i64 {
        self.world.schema.number(&format!(
            "SELECT coalesce(max((state->>'loop_offset')::bigint), 0) FROM source_state
             WHERE sync_id = '{}' AND stream = '{stream}'",
            INTERRUPTED.sync
        ))
    }

    fn delete_state(&self, stream: &str) {
        let statement =
            format!("DELETE FROM source_state WHERE sync_id = '{}' AND stream = '{stream}'", INTERRUPTED.sync);
        self.world.schema.execute(&statement);
    }

    /// Asserts that the table of an interrupted stream has all rows up to its state, without duplicates.
    fn assert_interrupted(&self, stream: &str, barrier: i64) {
        let table = format!("{}{stream}", INTERRUPTED.prefix);
        let (rows, distinct) = (
            self.world.schema.count(&table),
            self.world.schema.number(&format!("SELECT count(DISTINCT id) FROM {table}")),
        );
        let position = self.position(stream);
        assert_eq!(rows, distinct, "{stream}");
        assert!(position >= barrier && rows >= position, "{stream}: {rows} rows, state {position}, barrier {barrier}");
        assert!(rows < i64::try_from(self.records).expect("a count"), "{stream} was interrupted: {rows} rows");
    }
}

/// Blocks the statement that stores a state before the end of a stream, so that a test can interrupt the read there.
struct Barrier {
    client: Client,
    key: u32,
}

impl Barrier {
    fn new(scene: &Scene, stream: &str, at: i64) -> Self {
        let mut client = scene.world.schema.connect();
        let key = uuid::Uuid::new_v4().as_fields().0 >> 1;
        let sync = INTERRUPTED.sync;
        client
            .batch_execute(&format!(
                "SELECT pg_advisory_lock({key});
                 CREATE OR REPLACE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN
                     IF NEW.sync_id = '{sync}' AND NEW.stream = '{stream}'
                        AND (NEW.state->>'loop_offset')::bigint >= {at} THEN
                         PERFORM pg_advisory_xact_lock({key});
                     END IF;
                     RETURN NEW;
                 END $$;
                 DROP TRIGGER IF EXISTS hold ON source_state;
                 CREATE TRIGGER hold BEFORE INSERT OR UPDATE ON source_state FOR EACH ROW EXECUTE FUNCTION hold()"
            ))
            .expect("a trigger on the table of states");
        Self { client, key }
    }

    /// Waits until a statement is blocked.
    fn wait_reached(&mut self, limit: Duration) {
        let query = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid::bigint = $1";
        let key = i64::from(self.key);
        eventually("a state of a stream", limit, || self.client.query_opt(query, &[&key]).expect("an answer"));
    }

    fn release(mut self) {
        self.client.batch_execute("DROP TRIGGER hold ON source_state").ok();
    }
}

/// Number of records of each stream, from its report.
fn events(streams: &Value) -> BTreeMap<String, u64> {
    let streams = streams.as_object().into_iter().flatten();
    streams.map(|(name, report)| (name.clone(), report["events"].as_u64().unwrap_or_default())).collect()
}

fn megabytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}

#[test]
fn interrupted_reads_resume_without_loss_or_duplicates() {
    let Some(scene) = Scene::new() else { return };
    let schema = &scene.world.schema;
    let all = i64::try_from(scene.records).expect("a count");
    // The first state, which commits at once; later ones may be joined until the stream is complete.
    let first_state = i64::try_from(slice(scene.records)).expect("a count");

    // A full refresh replaces existing rows.
    schema.execute("CREATE TABLE uninterrupted_users (id bigint); INSERT INTO uninterrupted_users VALUES (-1)");
    let uninterrupted = events(&scene.succeed("uninterrupted", UNINTERRUPTED, &[]));
    let expected = scene.content(UNINTERRUPTED);
    for (stream, events) in &uninterrupted {
        let (rows, distinct, _) = &expected[stream.as_str()];
        assert_eq!((*rows, *distinct), (events.cast_signed(), events.cast_signed()), "{stream}");
    }
    assert_eq!((expected["users"].0, expected["products"].0), (all, PRODUCTS));

    // Cancelled within `users`.
    let task = unique("faker-");
    let mut barrier = Barrier::new(&scene, "users", first_state);
    let running = scene.read(INTERRUPTED, &task).with(&["--state", "db"]).start();
    barrier.wait_reached(scene.timeout());
    running.signal(Signal::INT);
    eventually("the row of the cancelled task", START, || {
        schema.task(&task).filter(|(status, _)| status == "CANCELLED")
    });
    barrier.release();
    let done = scene.end("cancelled", &task, running);
    let first = done.code(130).json();
    assert_eq!(first["status"], "CANCELLED", "{done}");
    assert_eq!(first["streams"]["products"]["status"], "SUCCESS", "{done}");
    scene.assert_interrupted("users", first_state);

    // Complete streams are not read again, incomplete ones are. The Pod is deleted within `purchases`.
    scene.delete_state("users");
    let task = unique("faker-");
    let mut barrier = Barrier::new(&scene, "purchases", first_state);
    let running = scene.read(INTERRUPTED, &task).with(&["--state", "db"]).start();
    barrier.wait_reached(scene.timeout());
    let namespace = scene.world.namespace();
    namespace.kubectl(&["delete", "pods", "--all", "-n", &namespace.name, "--wait=false"]);
    barrier.release();
    let done = scene.end("killed", &task, running);
    let second = done.json();
    assert_eq!(second["class"], "POD_DELETED", "{done}");
    let read = events(&second["streams"]);
    assert_eq!((read["products"], read["users"]), (0, scene.records), "{done}");
    assert_eq!(scene.content(INTERRUPTED)["users"], expected["users"]);
    scene.assert_interrupted("purchases", first_state);

    // The remaining stream.
    scene.delete_state("purchases");
    let read = events(&scene.succeed("resumed", INTERRUPTED, &["--state", "db"]));
    assert_eq!((read["products"], read["users"], read["purchases"]), (0, 0, uninterrupted["purchases"]));
    assert_eq!(scene.content(INTERRUPTED), expected);

    // All rows again, merged by key.
    let read = events(&scene.succeed("again", Mode { updated: true, ..INTERRUPTED }, &["--state", "db"]));
    assert_eq!(read, uninterrupted);
    assert_eq!(scene.content(INTERRUPTED), expected);

    // All rows again, replacing the tables.
    schema.execute("INSERT INTO interrupted_users (id) VALUES (-1)");
    let read = events(&scene.succeed("full sync", INTERRUPTED, &["--state", "db", "--full-sync"]));
    assert_eq!(read, uninterrupted);
    assert_eq!(scene.content(INTERRUPTED), expected);
    let states = format!("SELECT stream FROM source_state WHERE sync_id = '{}' ORDER BY stream", INTERRUPTED.sync);
    assert_eq!(schema.texts(&states), ["products", "purchases", "users"]);
    let staging = r"SELECT tablename::text FROM pg_tables WHERE tablename LIKE '\_syncctl%' AND schemaname = ";
    assert_eq!(schema.texts(&format!("{staging}'{}'", schema.name)), Vec::<String>::new());
}
