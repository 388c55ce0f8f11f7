//! Readers of a table go on while its rows are replaced, and everything that depends on the table stays.

use std::time::Duration;

use serde_json::json;

use super::support::{TestSchema, keyed, spec, wait_until, write};
use crate::sidecar::sink::postgres::PostgresSink;
use crate::sidecar::sink::{Generation, Sink, StreamSpec, WriteMode};

/// A sink that fails soon where a lock is not released.
fn sink(db: &TestSchema) -> PostgresSink {
    let mut config = db.config();
    config["parameters"]["lock_timeout"] = json!("100ms");
    TestSchema::sink_with(&config, Duration::from_millis(100))
}

/// Streams that replace rows of the table `t`, in each mode.
fn replacing_streams() -> Vec<(&'static str, StreamSpec)> {
    let generation = Generation { id: 2, minimum: 2, resumable: true, resumes: false };
    let at_first_commit = |mode| StreamSpec { replaces_at_first_commit: true, ..keyed("t", mode) };
    let without_key = |stream| StreamSpec { primary_key: Vec::new(), ..stream };
    vec![
        ("overwrite", without_key(keyed("t", WriteMode::Replace))),
        ("overwrite_dedup", keyed("t", WriteMode::Replace)),
        ("append, first commit", without_key(at_first_commit(WriteMode::Append))),
        ("append_dedup, first commit", at_first_commit(WriteMode::Merge)),
        ("append, generations", StreamSpec { generation, ..without_key(keyed("t", WriteMode::Append)) }),
        ("append_dedup, generations", StreamSpec { generation, ..keyed("t", WriteMode::Merge) }),
    ]
}

const TABLE: &str = "
    CREATE TABLE t (id bigint, v text, _airbyte_generation_id bigint);
    INSERT INTO t VALUES (1, 'old', 1), (2, 'old', 1), (7, 'old', 1)";

fn replace(sink: &mut PostgresSink, stream: StreamSpec, rows: &[&str]) -> Result<(), crate::sidecar::sink::SinkError> {
    let index = sink.open(stream).expect("open");
    write(sink, index, rows);
    sink.commit(index)?;
    sink.finish(index)
}

const NEW: [&str; 2] = [r#"{"id":1,"v":"new"}"#, r#"{"id":3,"v":"new"}"#];

#[test]
fn an_open_reader_does_not_wait_and_sees_the_old_rows() {
    for (label, stream) in replacing_streams() {
        for has_newer_row in [false, true] {
            let mut db = TestSchema::new();
            db.run(TABLE);
            if has_newer_row && stream.generation.id > 0 {
                db.run("INSERT INTO t VALUES (9, 'newer', 2)");
            }
            let mut reader = db.connect();
            reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM t").expect("a snapshot");
            replace(&mut sink(&db), stream.clone(), &NEW).expect(label);
            let seen = reader.query_one("SELECT count(*) FROM t WHERE v IN ('old')", &[]).expect("rows");
            assert_eq!(seen.get::<_, i64>(0), 3, "{label}");
            let mut expected = vec!["1|new", "3|new"];
            expected.extend((has_newer_row && stream.generation.id > 0).then_some("9|newer"));
            assert_eq!(db.rows("SELECT id, v FROM t ORDER BY id"), expected, "{label}");
        }
    }
}

#[test]
fn a_reader_does_not_queue_behind_a_lock_that_is_waited_for() {
    for (label, stream) in replacing_streams() {
        let mut db = TestSchema::new();
        db.run("CREATE TABLE t (id bigint); INSERT INTO t VALUES (7)");
        let (mut holder, mut reader) = (db.connect(), db.connect());
        holder.batch_execute("BEGIN; SELECT FROM t").expect("a lock");
        let mut sink = db.sink();
        let replacing = std::thread::spawn(move || replace(&mut sink, stream, &NEW));
        // A new column needs the lock.
        wait_until("the sink waits for its lock", || {
            !db.rows("SELECT FROM pg_locks WHERE NOT granted AND relation = 't'::regclass").is_empty()
        });
        reader.batch_execute("SET lock_timeout TO '5s'; SELECT FROM t").expect("the lock of a reader");
        holder.batch_execute("COMMIT").expect("release of the lock");
        replacing.join().expect("no panic").expect(label);
        assert_eq!(db.rows("SELECT id, v FROM t ORDER BY id"), ["1|new", "3|new"], "{label}");
    }
}

#[test]
fn what_depends_on_the_table_stays() {
    let described = "
        SELECT obj_description('t'::regclass), col_description('t'::regclass, 1);
        SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema() AND tablename = 't' AND indexname LIKE 'by_%' ORDER BY 1;
        SELECT relacl FROM pg_class WHERE oid = 't'::regclass;
        SELECT tgname FROM pg_trigger WHERE tgrelid = 't'::regclass AND NOT tgisinternal;
        SELECT pubname FROM pg_publication_tables WHERE schemaname = current_schema();
        SELECT conname FROM pg_constraint WHERE 't'::regclass IN (conrelid, confrelid) AND contype IN ('c', 'f') ORDER BY 1";
    for (label, stream) in replacing_streams() {
        let mut db = TestSchema::new();
        db.run(TABLE);
        db.run(
            "CREATE VIEW seen AS SELECT id, v FROM t; CREATE INDEX by_v ON t (v); CREATE UNIQUE INDEX by_id ON t (id);
             COMMENT ON TABLE t IS 'mine'; COMMENT ON COLUMN t.id IS 'my key'; GRANT SELECT ON t TO PUBLIC;
             CREATE TABLE inserted (id bigint);
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN INSERT INTO $schema.inserted VALUES (NEW.id); RETURN NULL; END';
             CREATE TRIGGER noted AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION note();
             ALTER TABLE t ADD CONSTRAINT positive CHECK (id > 0);
             CREATE PUBLICATION $schema FOR TABLE t",
        );
        let before = db.rows(described);
        replace(&mut sink(&db), stream, &NEW).expect(label);
        assert_eq!(db.rows(described), before, "{label}");
        assert_eq!(db.rows("SELECT * FROM seen ORDER BY id"), ["1|new", "3|new"], "{label}");
        assert_eq!(db.rows("SELECT * FROM inserted ORDER BY id"), ["1", "3"], "{label}");
        db.run("DROP PUBLICATION $schema");
    }
}

#[test]
fn rows_that_others_refer_to_are_updated_in_place() {
    for (action, refers, after) in [
        ("NO ACTION", 1, Some("1|1")),
        ("RESTRICT", 1, Some("1|1")),
        ("CASCADE", 1, Some("1|1")),
        ("SET NULL", 1, Some("1|1")),
        ("CASCADE", 7, None),
        ("SET NULL", 7, Some("1|∅")),
        ("SET DEFAULT DEFERRABLE INITIALLY DEFERRED", 1, Some("1|1")),
    ] {
        for key in [vec![vec!["id".to_owned()]], Vec::new()] {
            let mut db = TestSchema::new();
            db.run("CREATE TABLE t (id bigint UNIQUE, v text, note text DEFAULT 'none')");
            db.run("INSERT INTO t VALUES (1, 'old', 'x'), (2, 'old', 'x'), (7, 'old', 'x'), (NULL, 'old', 'x')");
            db.run(&format!(
                "CREATE TABLE other (n int, t_id bigint REFERENCES t (id) ON DELETE {action}); INSERT INTO other VALUES (1, {refers})"
            ));
            let stream = StreamSpec { primary_key: key, ..keyed("t", WriteMode::Replace) };
            replace(&mut sink(&db), stream, &NEW).expect(action);
            assert_eq!(db.rows("SELECT * FROM t ORDER BY id"), ["1|new|none", "3|new|none"], "{action}");
            let after: Vec<&str> = after.into_iter().collect();
            assert_eq!(db.rows("SELECT * FROM other"), after, "{action}, {refers}");
        }
    }
}

#[test]
fn a_row_that_may_not_go_fails_the_stream_and_all_old_rows_stay() {
    let mut db = TestSchema::new();
    db.run(TABLE);
    db.run(
        "CREATE UNIQUE INDEX ON t (id); CREATE TABLE other (id bigint REFERENCES t (id)); INSERT INTO other VALUES (7)",
    );
    let error = replace(&mut sink(&db), keyed("t", WriteMode::Replace), &NEW).expect_err("7 is referred to");
    assert!(error.text.contains("foreign key"), "{}", error.text);
    assert_eq!(db.rows("SELECT id, v FROM t ORDER BY id"), ["1|old", "2|old", "7|old"]);
}

#[test]
fn rows_that_delete_would_leave_are_truncated_with_a_warning() {
    for (label, obstacle, reason) in [
        ("rule", "CREATE RULE keep AS ON DELETE TO t DO INSTEAD NOTHING", "the table has rules"),
        (
            "trigger",
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER keep BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION keep()",
            "a trigger may prevent",
        ),
    ] {
        let mut db = TestSchema::new();
        db.run(TABLE);
        db.run(obstacle);
        let mut sink = sink(&db);
        replace(&mut sink, keyed("t", WriteMode::Replace), &NEW).expect(label);
        assert_eq!(db.rows("SELECT id, v FROM t ORDER BY id"), ["1|new", "3|new"], "{label}");
        let warnings = sink.warnings();
        assert!(warnings.len() == 1 && warnings[0].text.contains(reason), "{label}: {warnings:?}");
    }
}

#[test]
fn a_type_changes_only_while_nobody_reads() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id bigint, v bigint); INSERT INTO t VALUES (7, 7)");
    let mut reader = db.connect();
    reader.batch_execute("BEGIN; SELECT FROM t").expect("a lock");
    let mut sink = db.sink();
    let replacing = std::thread::spawn(move || replace(&mut sink, keyed("t", WriteMode::Replace), &NEW));
    wait_until("the sink waits for its lock", || {
        !db.rows("SELECT FROM pg_locks WHERE NOT granted AND relation = 't'::regclass").is_empty()
    });
    assert_eq!(db.rows("SELECT * FROM t"), ["7|7"]);
    reader.batch_execute("COMMIT").expect("release of the lock");
    replacing.join().expect("no panic").expect("finish");
    assert_eq!((db.columns("t"), db.count("t")), (vec!["id|bigint".to_owned(), "v|text".to_owned()], 2));
}

#[test]
fn repeated_replacements_reuse_the_space_of_old_rows() {
    let mut db = TestSchema::new();
    let fields = [("id", json!({"type": "integer"})), ("v", json!({"type": "string"}))];
    let rows: Vec<String> = (0..20_000).map(|id| format!(r#"{{"id":{id},"v":"value {id}"}}"#)).collect();
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    // Transactions of other tests in the same database would keep the old rows.
    let database = format!("{}_only", db.schema);
    db.run(&format!("CREATE DATABASE {database}"));
    let mut config = db.config();
    (config["database"], config["defaultSchema"]) = (json!(database), json!("public"));
    let mut alone = db.connect_to(&database);
    let mut sizes = Vec::new();
    for _ in 0..5 {
        let mut sink = TestSchema::sink_with(&config, Duration::from_secs(20));
        replace(&mut sink, spec("t", WriteMode::Replace, &fields), &rows).expect("finish");
        // The server's own VACUUM would be in the way of the sink's.
        alone.batch_execute("ALTER TABLE t SET (autovacuum_enabled = false)").expect("a setting");
        let size: i64 = alone.query_one("SELECT pg_table_size('t')", &[]).expect("a size").get(0);
        sizes.push(size);
    }
    drop(alone);
    db.run(&format!("DROP DATABASE {database}"));
    // Without reuse the fifth size is five times the first. Statistics that the server collects in this database may keep
    // the old rows of a replacement or two.
    assert!(sizes[4] < sizes[0] * 9 / 2, "{sizes:?}");
}
