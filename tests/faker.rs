//! A real connector with as many records as one likes: cancelled and killed in the middle, resumed, read again, replaced.
//! `make soak` lets it have a million.
//!
//! What `source-faker` makes is decided by its seed, but for times near now; and once a stream has a state, of whatever
//! row, it takes the stream for complete. So the state of a stream that was cut off is forgotten before the next run, as
//! its users do it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use postgres::Client;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::support::{Done, Program, Running, World, eventually, processes, unique};

const FAKER: &str = "airbyte/source-faker:7.2.1";
/// Beyond what it takes to start: no read is slower than this many records of `users` a second.
const SLOWEST: u64 = 1000;
/// Until a Pod runs and Python has loaded the connector.
const START: Duration = Duration::from_mins(1);
/// Rows of `products`.
const PRODUCTS: i64 = 100;

/// Records of `users`.
fn records() -> u64 {
    let records = std::env::var("SYNCCTL_TEST_FAKER_RECORDS").ok();
    records.map_or(2000, |text| text.parse().expect("SYNCCTL_TEST_FAKER_RECORDS is a number"))
}

struct Scene {
    world: World,
    records: u64,
    discovered: Value,
}

/// How often a state comes.
fn slice(records: u64) -> u64 {
    (records / 20).clamp(1, 10_000)
}

/// How a read writes.
#[derive(Clone, Copy)]
struct Mode {
    sync: &'static str,
    prefix: &'static str,
    /// Sync mode and destination sync mode.
    modes: [&'static str; 2],
    /// Whether the source has something new of each row.
    updated: bool,
}

/// One run after the other fills these tables.
const TORN: Mode = Mode { sync: "torn", prefix: "torn_", modes: ["incremental", "append_dedup"], updated: false };
/// One run alone fills these.
const STRAIGHT: Mode =
    Mode { sync: "straight", prefix: "straight_", modes: ["full_refresh", "overwrite"], updated: false };

/// What a table holds, whatever the time: number of rows and distinct keys, and a sum over the content.
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

    /// Runs a read to its good end.
    fn whole(&self, label: &str, mode: Mode, extra: &[&str]) -> Value {
        let task = unique("faker-");
        let done = self.end(label, &task, self.read(mode, &task).with(extra).start());
        let document = done.code(0).json();
        assert_eq!(document["status"], "SUCCESS", "{label}\n{done}");
        document["streams"].clone()
    }

    /// Waits for the end of a command, and tells how it went.
    fn end(&self, label: &str, task: &str, mut running: Running) -> Done {
        let deadline = Instant::now() + self.patience();
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

    fn patience(&self) -> Duration {
        START + Duration::from_secs(3 * self.records / SLOWEST)
    }

    fn content(&self, mode: Mode) -> Content {
        // Of a purchase nothing else is free of the time.
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

    /// Where the stored state says that a stream is.
    fn position(&self, stream: &str) -> i64 {
        self.world.schema.number(&format!(
            "SELECT coalesce(max((state->>'loop_offset')::bigint), 0) FROM source_state
             WHERE sync_id = '{}' AND stream = '{stream}'",
            TORN.sync
        ))
    }

    fn forget(&self, stream: &str) {
        let statement = format!("DELETE FROM source_state WHERE sync_id = '{}' AND stream = '{stream}'", TORN.sync);
        self.world.schema.execute(&statement);
    }

    /// Of a stream that was cut off at its barrier everything up to its state is in the table, once.
    fn assert_half(&self, stream: &str, barrier: i64) {
        let table = format!("{}{stream}", TORN.prefix);
        let (rows, distinct) = (
            self.world.schema.count(&table),
            self.world.schema.number(&format!("SELECT count(DISTINCT id) FROM {table}")),
        );
        let position = self.position(stream);
        assert_eq!(rows, distinct, "{stream}");
        assert!(position >= barrier && rows >= position, "{stream}: {rows} rows, state {position}, barrier {barrier}");
        assert!(rows < i64::try_from(self.records).expect("a count"), "{stream} was cut off: {rows} rows");
    }
}

/// Holds the statement that stores the state of a stream's middle, so that whatever happens then happens in the middle.
struct Barrier {
    client: Client,
    key: u32,
}

impl Barrier {
    fn new(scene: &Scene, stream: &str, at: i64) -> Self {
        let mut client = scene.world.schema.connect();
        let key = uuid::Uuid::new_v4().as_fields().0 >> 1;
        let sync = TORN.sync;
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

    /// Waits until somebody waits.
    fn wait_reached(&mut self, limit: Duration) {
        let query = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid::bigint = $1";
        let key = i64::from(self.key);
        eventually("the middle of a stream", limit, || self.client.query_opt(query, &[&key]).expect("an answer"));
    }

    fn release(mut self) {
        self.client.batch_execute("DROP TRIGGER hold ON source_state").ok();
    }
}

/// Records of each stream, by its report.
fn events(streams: &Value) -> BTreeMap<String, u64> {
    let streams = streams.as_object().into_iter().flatten();
    streams.map(|(name, report)| (name.clone(), report["events"].as_u64().unwrap_or_default())).collect()
}

fn megabytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}

#[test]
fn a_large_sync_is_cancelled_and_killed_in_the_middle_resumed_read_again_and_replaced() {
    let Some(scene) = Scene::new() else { return };
    let schema = &scene.world.schema;
    let all = i64::try_from(scene.records).expect("a count");
    let middle = all / 2;

    // A full refresh gives exactly the rows, whatever was there.
    schema.execute("CREATE TABLE straight_users (id bigint); INSERT INTO straight_users VALUES (-1)");
    let straight = events(&scene.whole("straight", STRAIGHT, &[]));
    let expected = scene.content(STRAIGHT);
    for (stream, events) in &straight {
        let (rows, distinct, _) = &expected[stream.as_str()];
        assert_eq!((*rows, *distinct), (events.cast_signed(), events.cast_signed()), "{stream}");
    }
    assert_eq!((expected["users"].0, expected["products"].0), (all, PRODUCTS));

    // Cancelled in the middle of the users.
    let task = unique("faker-");
    let mut barrier = Barrier::new(&scene, "users", middle);
    let running = scene.read(TORN, &task).with(&["--state", "db"]).start();
    barrier.wait_reached(scene.patience());
    running.signal(Signal::INT);
    eventually("the row of the cancelled task", START, || {
        schema.task(&task).filter(|(status, _)| status == "CANCELLED")
    });
    barrier.release();
    let done = scene.end("cancelled", &task, running);
    let first = done.code(130).json();
    assert_eq!(first["status"], "CANCELLED", "{done}");
    assert_eq!(first["streams"]["products"]["status"], "SUCCESS", "{done}");
    scene.assert_half("users", middle);

    // What is complete is not read again, what is not is; and the Pod is killed in the middle of the purchases.
    scene.forget("users");
    let task = unique("faker-");
    let mut barrier = Barrier::new(&scene, "purchases", middle);
    let running = scene.read(TORN, &task).with(&["--state", "db"]).start();
    barrier.wait_reached(scene.patience());
    let namespace = scene.world.namespace();
    namespace.kubectl(&["delete", "pods", "--all", "-n", &namespace.name, "--wait=false"]);
    barrier.release();
    let done = scene.end("killed", &task, running);
    let second = done.json();
    assert_eq!(second["class"], "POD_DELETED", "{done}");
    let read = events(&second["streams"]);
    assert_eq!((read["products"], read["users"]), (0, scene.records), "{done}");
    assert_eq!(scene.content(TORN)["users"], expected["users"]);
    scene.assert_half("purchases", middle);

    // The last part.
    scene.forget("purchases");
    let read = events(&scene.whole("resumed", TORN, &["--state", "db"]));
    assert_eq!((read["products"], read["users"], read["purchases"]), (0, 0, straight["purchases"]));
    assert_eq!(scene.content(TORN), expected);

    // Everything again, merged by its key.
    let read = events(&scene.whole("again", Mode { updated: true, ..TORN }, &["--state", "db"]));
    assert_eq!(read, straight);
    assert_eq!(scene.content(TORN), expected);

    // Everything anew, in place of what was there.
    schema.execute("INSERT INTO torn_users (id) VALUES (-1)");
    let read = events(&scene.whole("full sync", TORN, &["--state", "db", "--full-sync"]));
    assert_eq!(read, straight);
    assert_eq!(scene.content(TORN), expected);
    let states = format!("SELECT stream FROM source_state WHERE sync_id = '{}' ORDER BY stream", TORN.sync);
    assert_eq!(schema.texts(&states), ["products", "purchases", "users"]);
    let staging = r"SELECT tablename::text FROM pg_tables WHERE tablename LIKE '\_syncctl%' AND schemaname = ";
    assert_eq!(schema.texts(&format!("{staging}'{}'", schema.name)), Vec::<String>::new());
}
