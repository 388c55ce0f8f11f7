//! Several runs that create and load one table at the same time.

use std::sync::Barrier;

use super::support::{TestSchema, keyed, write};
use crate::sidecar::sink::{Generation, Sink, StreamSpec, WriteMode};

const RUNS: usize = 4;
const ROWS: usize = 20;

#[test]
fn runs_that_create_one_schema_and_table_at_once_all_succeed() {
    let generation = Generation { id: 2, minimum: 2, resumable: true, resumes: false };
    for (label, mode, uses_key, generation, expected) in [
        ("append", WriteMode::Append, false, Generation::default(), RUNS * ROWS),
        ("append_dedup", WriteMode::Merge, true, Generation::default(), ROWS),
        ("overwrite", WriteMode::Replace, false, Generation::default(), ROWS),
        ("overwrite_dedup", WriteMode::Replace, true, Generation::default(), ROWS),
        ("append, generations", WriteMode::Append, false, generation, RUNS * ROWS),
        ("append_dedup, generations", WriteMode::Merge, true, generation, ROWS),
    ] {
        let mut db = TestSchema::new();
        for attempt in 0..3 {
            let schema = format!("{}_{attempt}", db.schema);
            let start = Barrier::new(RUNS);
            std::thread::scope(|scope| {
                for run in 0..RUNS {
                    let (start, schema, mut sink) = (&start, &schema, db.sink());
                    scope.spawn(move || {
                        let mut stream = StreamSpec { generation, schema: Some(schema.clone()), ..keyed("t", mode) };
                        if !uses_key {
                            stream.primary_key.clear();
                        }
                        let index = sink.open(stream).expect("open");
                        start.wait();
                        for id in 0..ROWS {
                            write(&mut sink, index, &[&format!(r#"{{"id":{id},"v":"a","late":"{run}"}}"#)]);
                        }
                        sink.commit(index).unwrap_or_else(|error| panic!("{label}, run {run}: {}", error.text));
                        sink.finish(index).unwrap_or_else(|error| panic!("{label}, run {run}: {}", error.text));
                    });
                }
            });
            let found = db.rows(&format!("SELECT count(*), count(DISTINCT id), count(late) FROM {schema}.t"));
            assert_eq!(found, [format!("{expected}|{ROWS}|{expected}")], "{label}");
            let tables = db.rows(&format!("SELECT tablename FROM pg_tables WHERE schemaname = '{schema}'"));
            assert_eq!(tables, ["t"], "{label}");
            db.run(&format!("DROP SCHEMA {schema} CASCADE"));
        }
    }
}
