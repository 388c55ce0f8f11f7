//! Streams whose first commit replaces the rows of earlier runs.

use super::support::{TestSchema, keyed, write, write_many};
use crate::sidecar::sink::{Committed, Sink, StreamSpec, WriteMode};

const OLD: &str = "CREATE TABLE t (id bigint CONSTRAINT jitsu_pk_t PRIMARY KEY, v text);
    INSERT INTO t VALUES (1, 'old'), (7, 'old'); CREATE VIEW seen AS SELECT id FROM t";

fn replacing(mode: WriteMode) -> StreamSpec {
    StreamSpec { replaces_at_first_commit: true, ..keyed("t", mode) }
}

#[test]
fn the_first_commit_replaces_and_later_ones_add() {
    for (mode, expected) in [
        (WriteMode::Merge, ["1|b", "2|c", "3|d"].as_slice()),
        (WriteMode::Append, &["1|a", "1|b", "2|b", "2|c", "3|d"]),
    ] {
        let mut db = TestSchema::new();
        db.run(OLD);
        let mut sink = db.sink();
        let stream = sink.open(replacing(mode)).expect("open");
        assert_eq!(sink.commit(stream).expect("commit"), Committed::Durable);
        assert_eq!(db.count("t"), 2, "{mode:?}: a commit without rows replaces nothing");
        write(&mut sink, stream, &[r#"{"id":1,"v":"a"}"#, r#"{"id":1,"v":"b"}"#, r#"{"id":2,"v":"b"}"#]);
        assert_eq!(db.count("t"), 2, "{mode:?}: before the commit");
        assert_eq!(sink.commit(stream).expect("commit"), Committed::Durable);
        assert_eq!(db.rows("SELECT count(*) FROM t WHERE v = 'old'"), ["0"], "{mode:?}");
        write(&mut sink, stream, &[r#"{"id":2,"v":"c"}"#]);
        sink.commit(stream).expect("commit");
        write(&mut sink, stream, &[r#"{"id":3,"v":"d"}"#]);
        sink.finish(stream).expect("finish");
        assert_eq!(db.rows("SELECT * FROM t ORDER BY id, v"), expected, "{mode:?}");
        assert_eq!(db.tables(), ["t"], "{mode:?}");
        assert_eq!(db.rows("SELECT count(*) > 2 FROM seen"), ["t"], "{mode:?}: the view shows the new rows");
    }
}

#[test]
fn the_old_rows_stay_until_the_first_commit() {
    for mode in [WriteMode::Merge, WriteMode::Append] {
        let mut db = TestSchema::new();
        db.run(OLD);
        let mut sink = db.sink();
        let stream = sink.open(replacing(mode)).expect("open");
        write_many(&mut sink, stream, 0..3000, 1000);
        sink.abort(stream);
        assert_eq!(db.count("t"), 2, "{mode:?}: aborted");
        let mut sink = db.sink();
        let stream = sink.open(replacing(mode)).expect("open");
        write_many(&mut sink, stream, 0..5, 10);
        assert!(!sink.finish_early(stream).expect("finish"), "{mode:?}: the table has rows");
        assert_eq!(db.count("t"), 2, "{mode:?}: cut off");
        let mut sink = db.sink();
        let stream = sink.open(replacing(mode)).expect("open");
        sink.finish(stream).expect("finish");
        assert_eq!(db.count("t"), 2, "{mode:?}: without rows");
    }
}

#[test]
fn chunks_of_the_first_commit_are_all_there() {
    let mut db = TestSchema::new();
    db.run(OLD);
    let mut sink = db.sink();
    let stream = sink.open(replacing(WriteMode::Append)).expect("open");
    for _ in 0..2 {
        write_many(&mut sink, stream, 0..3000, 1000);
        sink.commit(stream).expect("commit");
    }
    sink.finish(stream).expect("finish");
    assert_eq!(db.rows("SELECT count(*), count(DISTINCT id) FROM t"), ["6000|3000"]);
}
