//! What the sink reports of the rows besides their number, and its warnings.

use super::support::{TestSchema, keyed, spec, write};
use crate::sidecar::sink::{Sink, StreamSpec, WriteMode};

/// Counts by name, as text.
fn misfits(sink: &impl Sink, stream: usize) -> String {
    sink.counts(stream).misfits.to_string()
}

#[test]
fn values_that_do_not_fit_are_counted_by_column_at_each_commit() {
    for mode in [WriteMode::Append, WriteMode::Merge, WriteMode::Replace] {
        let mut db = TestSchema::new();
        db.run("CREATE TABLE t (id bigint, v text, n smallint CHECK (n < 40000))");
        let mut sink = db.sink();
        let fields = [("id", serde_json::json!({"type": "integer"})), ("n", serde_json::json!({"type": "integer"}))];
        let stream = StreamSpec { primary_key: vec![vec!["id".to_owned()]], ..spec("t", mode, &fields) };
        let index = sink.open(stream).expect("open");
        write(&mut sink, index, &[r#"{"id":1,"n":40000}"#, r#"{"id":2,"n":"x"}"#, r#"{"id":3,"n":3}"#]);
        assert_eq!(misfits(&sink, index), "", "{mode:?}: not committed");
        sink.commit(index).expect("commit");
        let expected = if mode == WriteMode::Replace { "" } else { "n: 2" };
        assert_eq!(misfits(&sink, index), expected, "{mode:?}");
        write(&mut sink, index, &[r#"{"id":4,"n":{}}"#]);
        sink.finish(index).expect("finish");
        assert_eq!(misfits(&sink, index), "n: 3", "{mode:?}");
    }
}

#[test]
fn values_of_dropped_rows_are_not_counted() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id bigint, v bigint)");
    let mut sink = db.sink();
    let index = sink.open(keyed("t", WriteMode::Append)).expect("open");
    write(&mut sink, index, &[r#"{"id":1,"v":"x"}"#, "[1]"]);
    sink.commit(index).expect("commit");
    write(&mut sink, index, &[r#"{"id":2,"v":"x"}"#]);
    sink.abort(index);
    assert_eq!(misfits(&sink, index), "v: 1, a row that is not an object: 1");
}

#[test]
fn warnings_name_their_stream() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE other (id bigint, v text); INSERT INTO other VALUES (1, 'a'), (1, 'b')");
    let mut sink = db.sink();
    let no_key = StreamSpec { primary_key: Vec::new(), ..keyed("t", WriteMode::Merge) };
    let streams = [no_key, keyed("other", WriteMode::Merge)].map(|stream| sink.open(stream).expect("open"));
    for stream in streams {
        write(&mut sink, stream, &[r#"{"id":1,"v":"x"}"#]);
        sink.commit(stream).expect("commit");
    }
    let warnings = sink.warnings();
    for (stream, expected) in [(0, "no usable primary key"), (1, "the table has no key")] {
        let of_stream: Vec<_> = warnings.iter().filter(|warning| warning.stream == Some(stream)).collect();
        assert!(of_stream.len() == 1 && of_stream[0].text.contains(expected), "{expected}: {warnings:?}");
    }
    assert_eq!(sink.warnings(), [], "reported once");
}
