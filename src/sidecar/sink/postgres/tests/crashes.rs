//! Runs that are killed at random points and resumed: the table is the same as after an uninterrupted run.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::support::{TestSchema, record, spec};
use crate::sidecar::sink::postgres::session::{Session, SessionConfig};
use crate::sidecar::sink::postgres::{PostgresSink, Settings};
use crate::sidecar::sink::{Generation, Sink, StreamIndex, StreamSpec, WriteMode};

const ROWS: usize = 6000;
/// Rows between two states.
const PER_STATE: usize = 700;
const KILLS: usize = 4;

/// Deterministic pseudo-random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % limit
    }
}

/// Rows with recurring keys, and cursors that sometimes decrease.
fn rows() -> Vec<String> {
    let mut random = Random(7);
    let row = |n: usize| {
        let (id, at, padding) = (random.below(900), n / 3 + random.below(40), "x".repeat(random.below(1500)));
        let extra = if n > ROWS / 2 { r#","late":1"# } else { "" };
        format!(r#"{{"id":{id},"at":{at},"n":{n},"v":"{padding}"{extra}}}"#)
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

/// Where a run is killed.
struct Kill {
    /// Before this row.
    row: usize,
    /// Right after the last commit before that row, so that the state of that commit is not saved.
    before_saving: bool,
}

/// Writes rows, starting after the state `from`. Returns the last saved state.
fn send(sink: &mut PostgresSink, stream: StreamIndex, from: usize, random: &mut Random, kill: Option<&Kill>) -> usize {
    let mut saved = from;
    for (n, row) in rows().iter().enumerate().skip(from) {
        if kill.is_some_and(|kill| kill.row == n) {
            return saved;
        }
        sink.write(stream, &record(row)).expect("a row");
        if (n + 1) % PER_STATE == 0 {
            sink.commit(stream).expect("commit");
            let killed = kill.is_some_and(|kill| kill.before_saving && kill.row < n + 1 + PER_STATE);
            if killed {
                return saved;
            }
            saved = n + 1;
        } else if random.below(900) == 0 {
            // A commit without a state.
            sink.commit(stream).expect("commit");
        }
    }
    saved
}

/// Reads the stream with this number of kills. Returns the distinct rows of the table, and all rows.
fn read(mode: WriteMode, cursor: bool, refresh: bool, kills: usize, random: &mut Random) -> (Vec<String>, Vec<String>) {
    let mut db = TestSchema::new();
    if refresh {
        db.run("CREATE TABLE t (id bigint); INSERT INTO t VALUES (-1)");
    }
    let spec = |resumes| {
        let (id, minimum) = if refresh { (2, 2) } else { (0, 0) };
        stream(mode, cursor, Generation { id, minimum, resumable: true, resumes })
    };
    let mut saved = 0;
    for kill in 0..kills {
        let row = saved + 1 + random.below((ROWS - saved) / (kills - kill) + 500).min(ROWS - saved - 1);
        let mut sink = db.sink();
        let index = sink.open(spec(saved > 0)).expect("open");
        saved = send(&mut sink, index, saved, random, Some(&Kill { row, before_saving: kill % 2 == 1 }));
        db.kill(sink);
        if refresh {
            assert_eq!(db.rows("SELECT id FROM t"), ["-1"], "readers see the old rows until the end");
        }
    }
    let mut sink = db.sink();
    let index = sink.open(spec(saved > 0)).expect("open");
    send(&mut sink, index, saved, random, None);
    sink.finish(index).expect("finish");
    drop(sink);
    assert_eq!(db.tables(), ["t"]);
    let distinct = db.rows("SELECT DISTINCT id, at, n, late, md5(v) FROM t ORDER BY n");
    (distinct, db.rows("SELECT id, at, n, late, md5(v) FROM t ORDER BY n"))
}

#[test]
fn killed_runs_with_a_key_leave_the_rows_of_an_uninterrupted_run() {
    for (label, cursor, refresh) in
        [("merge", false, false), ("merge by cursor", true, false), ("refresh", false, true), ("by cursor", true, true)]
    {
        let (_, uninterrupted) = read(WriteMode::Merge, cursor, refresh, 0, &mut Random(1));
        let mut random = Random(20 + label.len() as u64);
        let (_, interrupted) = read(WriteMode::Merge, cursor, refresh, KILLS, &mut random);
        assert!(interrupted == uninterrupted, "{label}: {} rows and {}", interrupted.len(), uninterrupted.len());
    }
}

#[test]
fn killed_runs_without_a_key_leave_each_row_at_least_once() {
    for (label, refresh) in [("append", false), ("refresh", true)] {
        let (_, uninterrupted) = read(WriteMode::Append, false, refresh, 0, &mut Random(1));
        assert_eq!(uninterrupted.len(), ROWS, "{label}");
        let mut random = Random(40 + label.len() as u64);
        let (distinct, all) = read(WriteMode::Append, false, refresh, KILLS, &mut random);
        assert!(distinct == uninterrupted, "{label}: {} rows and {}", distinct.len(), uninterrupted.len());
        // Rows that were committed without a saved state come again after each kill.
        assert!(all.len() <= ROWS + KILLS * 2 * PER_STATE, "{label}: {} rows", all.len());
    }
}

#[test]
fn synchronous_commit_is_enabled_unless_the_destination_sets_it() {
    let mut db = TestSchema::new();
    let role = format!("{}_async", db.schema);
    db.run(&format!("CREATE ROLE {role} LOGIN PASSWORD 'hunter2'; ALTER ROLE {role} SET synchronous_commit TO off"));
    let mut config = db.config();
    (config["username"], config["password"]) = (json!(role), json!("hunter2"));
    for (parameters, expected) in [
        (json!({}), "on"),
        (json!({"options": "-c synchronous_commit=off"}), "off"),
        (json!({"options": "-c synchronous_commit=local"}), "local"),
    ] {
        config["parameters"] = parameters.clone();
        let target = Settings::parse(&config).expect("settings").target;
        let mut session = Session::new(Arc::new(SessionConfig::new(target, 1, Duration::from_secs(20))));
        let row = session.client().expect("a connection").query_one("SHOW synchronous_commit", &[]);
        assert_eq!(row.expect("a setting").get::<_, &str>(0), expected, "{parameters}");
    }
    db.run(&format!("DROP ROLE {role}"));
}
