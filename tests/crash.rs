//! Round after round of a sync whose source, sidecar, database sessions, Pod or node's containerd is killed at a random
//! moment. In the end the tables are those of an undisturbed sync. `make soak` plays more rounds.

mod ledger;
mod victim;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ledger::{Lane, Onlooker, Source};
use victim::{Hunt, Victim};

use super::support::{Done, Program, Running, Warehouse, World, eventually, unique};

const LEDGER: &str = "syncctl-test/ledger:1";
/// From a kill to the end of the command.
const END: Duration = Duration::from_secs(45);
/// From the end of the command until nothing of the run is left anywhere.
const GONE: Duration = Duration::from_secs(20);
/// What the source has more in each round: rows of each stream.
const GROWTH: u32 = 1500;

/// A sequence of numbers that its seed decides.
pub struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn part_of(&mut self, whole: Duration) -> Duration {
        whole.mul_f64(f64::from(u32::try_from(self.next() >> 32).expect("32 bits")) / f64::from(u32::MAX))
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> Option<T> {
        let count = u64::try_from(list.len()).ok().filter(|count| *count > 0)?;
        list.get(usize::try_from(self.next() % count).ok()?).copied()
    }
}

/// A variable of this test.
fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}: expected a number")))
}

fn victims() -> Vec<Victim> {
    let Ok(list) = std::env::var("SYNCCTL_TEST_VICTIMS") else { return victim::ALL.to_vec() };
    let named = |name: &str| victim::ALL.into_iter().find(|victim| victim.name() == name);
    list.split(',').map(|name| named(name).unwrap_or_else(|| panic!("SYNCCTL_TEST_VICTIMS: no {name:?}"))).collect()
}

/// The turns of an endless test: twice each victim, those last that all other tests have to wait for.
fn turns(victims: &[Victim]) -> impl Iterator<Item = usize> + use<> {
    let count = 2 * victims.len();
    let (last, first): (Vec<usize>, Vec<usize>) =
        (0..count).partition(|turn| victims[turn % victims.len()].is_everybodys());
    (0..)
        .step_by(count)
        .flat_map(move |start| first.clone().into_iter().chain(last.clone()).map(move |turn| start + turn))
}

struct Scene {
    // Dropped in this order.
    warehouse: Warehouse,
    world: World,
    containerd: String,
    dice: Dice,
    /// Rounds in which something was killed.
    struck: u32,
}

impl Scene {
    /// A read of a lane's sync, or of its undisturbed twin, into this schema.
    fn read(&self, lane: Lane, schema: &str, source: Source, task: &str) -> Program {
        // Files of its own: another command may be reading what would be written anew.
        let config = self.world.json(&format!("{task}-config.json"), &source.config(lane));
        let catalog = self.world.json(&format!("{task}-catalog.json"), &ledger::catalog());
        let destination = self.world.json(&format!("{task}-destination.json"), &self.warehouse.destination(schema));
        let setup = self.world.setup;
        let arguments = [
            "read",
            LEDGER,
            "--config",
            &config,
            "--catalog",
            &catalog,
            "--destination-config",
            &destination,
            "--sync-id",
            &format!("{schema}-{}", lane.name()),
            "--task-id",
            task,
            "--table-name-prefix",
            &lane.prefix(),
            "--state",
            "db",
            "-o",
            "json",
        ];
        self.world
            .syncctl(&arguments)
            .env("SYNCCTL_DATABASE_URL", &self.warehouse.within(&setup.database_url, "results"))
            .env("SYNCCTL_SIDECAR_DATABASE_URL", &self.warehouse.within(&setup.sidecar_database_url, "results"))
    }

    fn round(&mut self, number: u32, victim: Victim, lane: Lane, source: Source, when: &str) {
        let task = unique(&format!("crash-{number}-"));
        let before = self.staging();
        let mut running = self.read(lane, "live", source, &task).start();
        let (world, warehouse, containerd) = (&self.world, &self.warehouse, self.containerd.as_str());
        let mut hunt = Hunt { world, warehouse, containerd, task: &task, dice: &mut self.dice, running: &mut running };
        let killed = victim.strike(&mut hunt);
        let done = end(running, END, when);
        self.struck += u32::from(killed.is_some());
        let status = self.assert_told(&task, &done, when);
        println!("{when}: {} took {:.1} s: {status}", killed.as_deref().unwrap_or("nothing"), done.took.as_secs_f64());
        if killed.is_none() || victim.is_survived() {
            assert_eq!(status, "SUCCESS", "{when}: {killed:?}\n{done}");
        }
        self.assert_nothing_left(when);
        let staging = self.staging();
        let new: Vec<&String> = staging.iter().filter(|table| !before.contains(table)).collect();
        assert!(new.is_empty() || victim.may_leave_staging() && killed.is_some(), "{when}: {new:?} is left");
        if status == "SUCCESS" {
            // A run that was whole has looked after all tables of its sync.
            let own: Vec<&String> = staging.iter().filter(|table| table.contains(&lane.prefix())).collect();
            assert!(own.is_empty(), "{when}: {own:?} is left of earlier runs");
        }
        ledger::assert_backed(&self.warehouse, "live", lane, &format!("live-{}", lane.name()), when);
    }

    /// The end is told the same way by the exit code, the document and the row.
    fn assert_told(&self, task: &str, done: &Done, when: &str) -> String {
        let document = done.json();
        let query = format!("SELECT status FROM results.source_task WHERE task_id = '{task}'");
        let row = eventually("the task's row", GONE, || {
            let rows = self.warehouse.query(&query, &[]).ok()?;
            Some(rows.first().map(|row| row.get::<_, String>(0)))
        });
        let status = row.unwrap_or_else(|| panic!("{when}: the task has no row\n{done}"));
        assert_eq!(document["status"], status.as_str(), "{when}\n{done}");
        let (code, class) = (done.code, document["class"].as_str().unwrap_or_default());
        match status.as_str() {
            "SUCCESS" => assert_eq!(code, Some(0), "{when}\n{done}"),
            "FAILED" | "PARTIAL" | "CANCELLED" => {
                assert!(code.is_some_and(|code| code != 0) && !class.is_empty(), "{when}\n{done}");
                assert_ne!(class, "INTERNAL", "{when}\n{done}");
            }
            _ => panic!("{when}: {status} is no end of this task\n{done}"),
        }
        assert!(!done.stderr.contains("panicked"), "{when}\n{done}");
        format!("{status} {class}").trim().to_owned()
    }

    fn assert_nothing_left(&self, when: &str) {
        eventually(&format!("{when}: an empty namespace"), GONE, || {
            self.world.place.leftovers().is_empty().then_some(())
        });
        let query = "SELECT (SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                             WHERE l.locktype = 'advisory' AND d.datname = current_database())
                          + (SELECT count(*) FROM pg_stat_activity
                             WHERE datname = current_database() AND application_name LIKE 'syncctl%')";
        eventually(&format!("{when}: no lock and no session"), GONE, || {
            let left: i64 = self.warehouse.query(query, &[]).ok()?.first()?.get(0);
            (left == 0).then_some(())
        });
    }

    fn staging(&self) -> Vec<String> {
        self.warehouse.texts(r"SELECT schemaname || '.' || tablename FROM pg_tables WHERE tablename LIKE '\_syncctl%'")
    }

    /// The last run of each sync, and one run of each undisturbed twin, all undisturbed.
    fn compare(&self, source: Source, when: &str) {
        let reads: Vec<Running> = Lane::ALL
            .into_iter()
            .flat_map(|lane| ["live", "calm"].map(|schema| (lane, schema)))
            .map(|(lane, schema)| self.read(lane, schema, source, &unique("last-")).start())
            .collect();
        for read in reads {
            let done = end(read, END + Duration::from_secs(u64::from(source.until / 1000)), when);
            assert_eq!(done.code(0).json()["status"], "SUCCESS", "{when}\n{done}");
        }
        for lane in Lane::ALL {
            ledger::assert_equal(&self.warehouse, lane, source.until, when);
            let states = |schema: &str| {
                self.warehouse.texts(&format!(
                    "SELECT stream || ' ' || state::text FROM results.source_state
                     WHERE sync_id = '{schema}-{}' ORDER BY stream",
                    lane.name()
                ))
            };
            assert_eq!(states("live"), states("calm"), "{when}");
            assert!(!states("calm").is_empty(), "{when}");
        }
        assert_eq!(self.staging(), Vec::<String>::new(), "{when}");
        self.assert_nothing_left(when);
    }
}

/// Waits for the end of a command.
fn end(mut running: Running, limit: Duration, when: &str) -> Done {
    let deadline = Instant::now() + limit;
    while !running.has_ended() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(running.has_ended(), "{when}: the command did not end within {} s", limit.as_secs());
    running.wait()
}

#[test]
fn whatever_is_killed_the_tables_end_as_if_nothing_had_been() {
    let Some(world) = World::in_cluster() else { return };
    // Only on the tests' own cluster the processes of Pods are processes of this machine.
    let (Some(containerd), Some(_)) = (world.setup.containerd.clone(), &world.setup.postgres) else { return };
    let seed = setting("SYNCCTL_TEST_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        u64::from(now.subsec_nanos()) ^ now.as_secs()
    });
    let (rounds, victims) = (setting("SYNCCTL_TEST_ROUNDS").unwrap_or(20), victims());
    println!("SYNCCTL_TEST_SEED={seed} SYNCCTL_TEST_ROUNDS={rounds} {victims:?}");
    let warehouse = Warehouse::create(world.setup);
    warehouse.execute("CREATE SCHEMA results; CREATE SCHEMA live; CREATE SCHEMA calm");
    let onlooker = Onlooker::start(&world, &warehouse);
    let mut scene = Scene { warehouse, world, containerd, dice: Dice(seed), struck: 0 };
    let mut source = Source { until: 0, edition: 0, batch: 100, pause: "0.1" };
    for (number, turn) in (0..rounds).zip(turns(&victims)) {
        let victim = victims[turn % victims.len()];
        // Each victim meets both syncs.
        let lane = Lane::ALL[(turn + turn / victims.len()) % 2];
        scene.world.without_others(victim.is_everybodys());
        source.edition += 1;
        source.until += GROWTH / 2;
        let when = format!("seed {seed}, round {number}, {victim:?} of {}", lane.name());
        scene.round(number, victim, lane, source, &when);
    }
    scene.world.without_others(false);
    let when = format!("seed {seed}, after {rounds} rounds");
    scene.compare(Source { edition: source.edition + 1, batch: 1000, pause: "0", ..source }, &when);
    onlooker.assert_content(&when);
    assert!(scene.struck * 2 > rounds, "{when}: only {} runs were there to be killed", scene.struck);
}
