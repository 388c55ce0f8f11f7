//! Runs that are killed at any point: the last one's table is an undisturbed run's.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::support::{World, record, spec};
use crate::sidecar::sink::postgres::session::{Session, SessionConfig};
use crate::sidecar::sink::postgres::{PostgresSink, Settings};
use crate::sidecar::sink::{Generation, Sink, StreamIndex, StreamSpec, WriteMode};

const ROWS: usize = 6000;
/// Rows between two states.
const PER_STATE: usize = 700;
const KILLS: usize = 4;

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % limit
    }
}

/// Keys come again and again, with cursors that go back now and then.
fn rows() -> Vec<String> {
    let mut dice = Dice(7);
    let row = |n: usize| {
        let (id, at, filling) = (dice.below(900), n / 3 + dice.below(40), "x".repeat(dice.below(1500)));
        let extra = if n > ROWS / 2 { r#","late":1"# } else { "" };
        format!(r#"{{"id":{id},"at":{at},"n":{n},"v":"{filling}"{extra}}}"#)
    };
    (0..ROWS).map(row).collect()
}

fn stream(mode: WriteMode, cursor: bool, generation: Generation) -> StreamSpec {
    let fields = [("id", json!({"type": "integer"})), ("at", json!({"type": "integer"}))];
    StreamSpec {
        primary_key: vec![vec!["id".to_owned()]],
        cursor: if cursor { vec!["at".to_owned()] } else { Vec::new() },
        generation,
        ..spec("t", mode, &fields)
    }
}

/// Where a run is killed: before this row, and so near to the state before it.
struct Kill {
    row: usize,
    /// The rows of the last state are committed, and the state was not saved.
    unsaved: bool,
}

/// Sends rows from a state on; returns the state that was saved last.
fn send(sink: &mut PostgresSink, stream: StreamIndex, from: usize, dice: &mut Dice, kill: Option<&Kill>) -> usize {
    let mut saved = from;
    for (n, row) in rows().iter().enumerate().skip(from) {
        if kill.is_some_and(|kill| kill.row == n) {
            return saved;
        }
        sink.write(stream, &record(row)).expect("a row");
        if (n + 1) % PER_STATE == 0 {
            sink.commit(stream).expect("commit");
            let last = kill.is_some_and(|kill| kill.unsaved && kill.row < n + 1 + PER_STATE);
            if last {
                return saved;
            }
            saved = n + 1;
        } else if dice.below(900) == 0 {
            // What no state asks for.
            sink.commit(stream).expect("commit");
        }
    }
    saved
}

/// The table after a read that is killed some times.
fn read(mode: WriteMode, cursor: bool, refresh: bool, kills: usize, dice: &mut Dice) -> (Vec<String>, Vec<String>) {
    let mut world = World::new();
    if refresh {
        world.run("CREATE TABLE t (id bigint); INSERT INTO t VALUES (-1)");
    }
    let spec = |resumes| {
        let (id, minimum) = if refresh { (2, 2) } else { (0, 0) };
        stream(mode, cursor, Generation { id, minimum, resumable: true, resumes })
    };
    let mut saved = 0;
    for kill in 0..kills {
        let row = saved + 1 + dice.below((ROWS - saved) / (kills - kill) + 500).min(ROWS - saved - 1);
        let mut sink = world.sink();
        let index = sink.open(spec(saved > 0)).expect("open");
        saved = send(&mut sink, index, saved, dice, Some(&Kill { row, unsaved: kill % 2 == 1 }));
        world.kill(sink);
        if refresh {
            assert_eq!(world.rows("SELECT id FROM t"), ["-1"], "readers see the old rows");
        }
    }
    let mut sink = world.sink();
    let index = sink.open(spec(saved > 0)).expect("open");
    send(&mut sink, index, saved, dice, None);
    sink.finish(index).expect("finish");
    drop(sink);
    assert_eq!(world.tables(), ["t"]);
    let distinct = world.rows("SELECT DISTINCT id, at, n, late, md5(v) FROM t ORDER BY n");
    (distinct, world.rows("SELECT id, at, n, late, md5(v) FROM t ORDER BY n"))
}

#[test]
fn with_a_key_the_table_is_that_of_an_undisturbed_run() {
    for (label, cursor, refresh) in
        [("merge", false, false), ("merge by cursor", true, false), ("refresh", false, true), ("by cursor", true, true)]
    {
        let (_, undisturbed) = read(WriteMode::Merge, cursor, refresh, 0, &mut Dice(1));
        let mut dice = Dice(20 + label.len() as u64);
        let (_, disturbed) = read(WriteMode::Merge, cursor, refresh, KILLS, &mut dice);
        assert!(disturbed == undisturbed, "{label}: {} rows and {}", disturbed.len(), undisturbed.len());
    }
}

#[test]
fn without_a_key_each_row_is_there_at_least_once() {
    for (label, refresh) in [("append", false), ("refresh", true)] {
        let (_, undisturbed) = read(WriteMode::Append, false, refresh, 0, &mut Dice(1));
        assert_eq!(undisturbed.len(), ROWS, "{label}");
        let mut dice = Dice(40 + label.len() as u64);
        let (distinct, all) = read(WriteMode::Append, false, refresh, KILLS, &mut dice);
        assert!(distinct == undisturbed, "{label}: {} rows and {}", distinct.len(), undisturbed.len());
        // What was committed without a saved state comes twice, once for each kill at most.
        assert!(all.len() <= ROWS + KILLS * 2 * PER_STATE, "{label}: {} rows", all.len());
    }
}

#[test]
fn commits_outlive_the_server_unless_the_destination_asks_otherwise() {
    let mut world = World::new();
    let role = format!("{}_hasty", world.schema);
    world.run(&format!("CREATE ROLE {role} LOGIN PASSWORD 'hunter2'; ALTER ROLE {role} SET synchronous_commit TO off"));
    let mut config = world.config();
    (config["username"], config["password"]) = (json!(role), json!("hunter2"));
    for (parameters, expected) in [
        (json!({}), "on"),
        (json!({"options": "-c synchronous_commit=off"}), "off"),
        (json!({"options": "-c synchronous_commit=local"}), "local"),
    ] {
        config["parameters"] = parameters.clone();
        let target = Settings::parse(&config).expect("settings").target;
        let mut session =
            Session::new(Arc::new(SessionConfig { target, run_id: 1, retry_timeout: Duration::from_secs(20) }));
        let row = session.client().expect("a connection").query_one("SHOW synchronous_commit", &[]);
        assert_eq!(row.expect("a setting").get::<_, &str>(0), expected, "{parameters}");
    }
    world.run(&format!("DROP ROLE {role}"));
}
