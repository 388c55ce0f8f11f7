//! Rounds of a sync in which the connector, the sidecar, a database session, the Pod or the node's containerd is killed at a
//! random moment. At the end the tables equal those of an undisturbed sync. `make soak` runs more rounds.

mod ledger;
mod victim;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ledger::{Source, SyncKind, TableReader};
use victim::{Attack, Victim};

use super::support::{Done, Program, Running, Warehouse, World, eventually, unique};

const LEDGER: &str = "syncctl-test/ledger:1";
/// A deadline that only means "hangs".
const DEADLINE: Duration = Duration::from_mins(5);
/// Rows of each stream that the source gains in each round.
const GROWTH: u32 = 1500;

/// A pseudo-random sequence.
pub struct Random(u64);

impl Random {
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

/// An environment variable of this test.
fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}: expected a number")))
}

fn victims() -> Vec<Victim> {
    let Ok(list) = std::env::var("SYNCCTL_TEST_VICTIMS") else { return victim::ALL.to_vec() };
    let named = |name: &str| victim::ALL.into_iter().find(|victim| victim.name() == name);
    list.split(',').map(|name| named(name).unwrap_or_else(|| panic!("SYNCCTL_TEST_VICTIMS: no {name:?}"))).collect()
}

/// An endless sequence of turns: each victim twice, and last those that disturb other tests.
fn turns(victims: &[Victim]) -> impl Iterator<Item = usize> + use<> {
    let count = 2 * victims.len();
    let (last, first): (Vec<usize>, Vec<usize>) =
        (0..count).partition(|turn| victims[turn % victims.len()].disturbs_other_tests());
    (0..)
        .step_by(count)
        .flat_map(move |start| first.clone().into_iter().chain(last.clone()).map(move |turn| start + turn))
}

struct Scene {
    // Dropped in this order.
    warehouse: Warehouse,
    world: World,
    containerd: String,
    random: Random,
    /// Rounds in which something was killed.
    kills: u32,
}

impl Scene {
    /// A read of the sync into the schema `live`, or of its undisturbed counterpart into `calm`.
    fn read(&self, kind: SyncKind, schema: &str, source: Source, task: &str) -> Program {
        // Files for each task: another command may be reading those of another one.
        let config = self.world.json(&format!("{task}-config.json"), &source.config(kind));
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
            &format!("{schema}-{}", kind.name()),
            "--task-id",
            task,
            "--table-name-prefix",
            &kind.prefix(),
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

    fn round(&mut self, number: u32, victim: Victim, kind: SyncKind, source: Source, when: &str) {
        let task = unique(&format!("crash-{number}-"));
        let before = self.staging();
        let mut running = self.read(kind, "live", source, &task).start();
        let (world, warehouse, containerd) = (&self.world, &self.warehouse, self.containerd.as_str());
        let random = &mut self.random;
        let mut attack = Attack { world, warehouse, containerd, task: &task, random, running: &mut running };
        let killed = victim.kill(&mut attack);
        let done = running.wait();
        self.kills += u32::from(killed.is_some());
        let status = self.assert_consistent(&task, &done, when);
        println!("{when}: {} took {:.1} s: {status}", killed.as_deref().unwrap_or("nothing"), done.took.as_secs_f64());
        if killed.is_none() || victim.is_survived() {
            assert_eq!(status, "SUCCESS", "{when}: {killed:?}\n{done}");
        }
        self.assert_nothing_left(when);
        let staging = self.staging();
        let new: Vec<&String> = staging.iter().filter(|table| !before.contains(table)).collect();
        assert!(new.is_empty() || victim.may_leave_staging() && killed.is_some(), "{when}: {new:?} are left");
        if status == "SUCCESS" {
            // A successful run removes the staging tables of all earlier runs of its sync.
            let own: Vec<&String> = staging.iter().filter(|table| table.contains(&kind.prefix())).collect();
            assert!(own.is_empty(), "{when}: {own:?} are left from earlier runs");
        }
        ledger::assert_backed(&self.warehouse, "live", kind, &format!("live-{}", kind.name()), when);
    }

    /// Exit code, document and row agree. Returns status and class.
    fn assert_consistent(&self, task: &str, done: &Done, when: &str) -> String {
        let document = done.json();
        let query = format!("SELECT status FROM results.source_task WHERE task_id = '{task}'");
        let row = eventually("the task's row", DEADLINE, || {
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
            _ => panic!("{when}: unexpected status {status}\n{done}"),
        }
        assert!(!done.stderr.contains("panicked"), "{when}\n{done}");
        format!("{status} {class}").trim().to_owned()
    }

    fn assert_nothing_left(&self, when: &str) {
        eventually(&format!("{when}: an empty namespace"), DEADLINE, || {
            self.world.place.leftovers().is_empty().then_some(())
        });
        let query = "SELECT (SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                             WHERE l.locktype = 'advisory' AND d.datname = current_database())
                          + (SELECT count(*) FROM pg_stat_activity
                             WHERE datname = current_database() AND application_name LIKE 'syncctl%')";
        eventually(&format!("{when}: no lock and no session"), DEADLINE, || {
            let left: i64 = self.warehouse.query(query, &[]).ok()?.first()?.get(0);
            (left == 0).then_some(())
        });
    }

    fn staging(&self) -> Vec<String> {
        self.warehouse.texts(r"SELECT schemaname || '.' || tablename FROM pg_tables WHERE tablename LIKE '\_syncctl%'")
    }

    /// Runs each sync and its counterpart once more, undisturbed, and compares them.
    fn compare(&self, source: Source, when: &str) {
        let reads: Vec<Running> = SyncKind::ALL
            .into_iter()
            .flat_map(|kind| ["live", "calm"].map(|schema| (kind, schema)))
            .map(|(kind, schema)| self.read(kind, schema, source, &unique("last-")).start())
            .collect();
        for read in reads {
            let done = read.wait();
            assert_eq!(done.code(0).json()["status"], "SUCCESS", "{when}\n{done}");
        }
        for kind in SyncKind::ALL {
            ledger::assert_equal(&self.warehouse, kind, source.until, when);
            let states = |schema: &str| {
                self.warehouse.texts(&format!(
                    "SELECT stream || ' ' || state::text FROM results.source_state
                     WHERE sync_id = '{schema}-{}' ORDER BY stream",
                    kind.name()
                ))
            };
            assert_eq!(states("live"), states("calm"), "{when}");
            assert!(!states("calm").is_empty(), "{when}");
        }
        assert_eq!(self.staging(), Vec::<String>::new(), "{when}");
        self.assert_nothing_left(when);
    }
}

#[test]
fn tables_are_complete_whatever_is_killed() {
    let Some(world) = World::in_cluster() else { return };
    // Only in the cluster of the tests the processes of Pods are visible on this machine.
    let (Some(containerd), Some(_)) = (world.setup.containerd.clone(), &world.setup.postgres) else { return };
    let seed = setting("SYNCCTL_TEST_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        u64::from(now.subsec_nanos()) ^ now.as_secs()
    });
    let (rounds, victims) = (setting("SYNCCTL_TEST_ROUNDS").unwrap_or(20), victims());
    println!("SYNCCTL_TEST_SEED={seed} SYNCCTL_TEST_ROUNDS={rounds} {victims:?}");
    let warehouse = Warehouse::create(world.setup);
    warehouse.execute("CREATE SCHEMA results; CREATE SCHEMA live; CREATE SCHEMA calm");
    let reader = TableReader::start(&world, &warehouse);
    let mut scene = Scene { warehouse, world, containerd, random: Random(seed), kills: 0 };
    let mut source = Source { until: 0, edition: 0, batch: 100, pause: "0.1" };
    for (number, turn) in (0..rounds).zip(turns(&victims)) {
        let victim = victims[turn % victims.len()];
        // Each victim is killed in both syncs.
        let kind = SyncKind::ALL[(turn + turn / victims.len()) % 2];
        scene.world.without_others(victim.disturbs_other_tests());
        source.edition += 1;
        source.until += GROWTH / 2;
        let when = format!("seed {seed}, round {number}, {victim:?} of {}", kind.name());
        scene.round(number, victim, kind, source, &when);
    }
    scene.world.without_others(false);
    let when = format!("seed {seed}, after {rounds} rounds");
    scene.compare(Source { edition: source.edition + 1, batch: 1000, pause: "0", ..source }, &when);
    reader.assert_only_complete(&when);
    assert!(scene.kills * 2 > rounds, "{when}: only {} runs lasted until the kill", scene.kills);
}
