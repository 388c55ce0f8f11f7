//! A table belongs to its stream, whatever else later runs select.

use std::collections::BTreeMap;

use super::support::{TestSchema, WRITE_WAYS, keyed, write, write_ways_of_case};
use crate::airbyte::message::StreamName;
use crate::sidecar::sink::postgres::PostgresSink;
use crate::sidecar::sink::{Sink, StreamSpec, WriteMode};

/// A stream with an optional namespace, as `namespace>name`, and its table as configured.
fn stream(name: &str, table: &str) -> StreamSpec {
    let (namespace, name) = name.split_once('>').map_or((None, name), |(namespace, name)| (Some(namespace), name));
    StreamSpec { name: StreamName::new(namespace, name), ..keyed(table, WriteMode::Append) }
}

/// Loads a row into each stream, with the stream and its table as configured.
fn load(sink: &mut PostgresSink, streams: &[StreamSpec], id: i64) {
    sink.assign_tables(streams).expect("tables");
    for spec in streams {
        let namespace = spec.name.namespace.as_ref().map_or_else(String::new, |namespace| format!("{namespace}>"));
        let owner = format!("{namespace}{} as {}", spec.name.name, spec.table);
        let row = format!(r#"{{"id":{id},"v":{owner:?}}}"#);
        let stream = sink.open(spec.clone()).expect("open");
        write(sink, stream, &[&row]);
        sink.finish(stream).expect("finish");
    }
}

/// The table of each stream. Fails if a table has rows of several streams, or a stream has several tables.
fn owners(db: &mut TestSchema, label: &str) -> BTreeMap<String, String> {
    let mut owners = BTreeMap::new();
    for table in db.tables() {
        let streams = db.rows(&format!("SELECT DISTINCT v FROM \"{table}\""));
        let [stream] = &streams[..] else { panic!("{label}: table {table} has rows of {streams:?}") };
        let other = owners.insert(stream.clone(), table.clone());
        assert_eq!(other, None, "{label}: stream {stream} has two tables, also {table}");
    }
    owners
}

#[test]
fn streams_keep_their_tables_whatever_later_runs_select() {
    let long = "warehouse_arrival_notification_pallet_items_of_the_northern_depot_";
    let wide = "é".repeat(40);
    let cases = [
        ("truncated", [format!("{long}a"), format!("{long}b"), format!("{long}c")], false),
        ("truncated within a character", [format!("{wide}a"), format!("{wide}b"), wide], false),
        ("cleaned", ["a.b".to_owned(), "a/b".to_owned(), "a_b".to_owned()], false),
        ("in lower case", ["USERS".to_owned(), "Users".to_owned(), "users".to_owned()], true),
    ];
    for (at, (label, names, to_same_case)) in cases.into_iter().enumerate() {
        for (way, write_way) in write_ways_of_case(at) {
            let label = format!("{label}, {way}");
            let mut db = TestSchema::new();
            let [one, two, three] = names.each_ref().map(|name| StreamSpec { to_same_case, ..stream(name, name) });
            let runs = [
                vec![&one, &two],
                vec![&two],
                vec![&three, &one],
                vec![&one],
                vec![&two, &three, &one],
                vec![&three, &two, &one],
            ];
            let mut expected = BTreeMap::new();
            for (run, streams) in (1..).zip(runs) {
                let streams: Vec<StreamSpec> = streams.into_iter().map(|spec| write_way(spec.clone(), run)).collect();
                load(&mut db.sink(), &streams, run);
                let found = owners(&mut db, &label);
                for (stream, table) in &expected {
                    assert_eq!(found.get(stream), Some(table), "{label}, run {run}");
                }
                expected = found;
            }
            assert_eq!(expected.len(), 3, "{label}");
        }
    }
}

#[test]
fn a_name_that_needs_no_cleaning_wins_in_a_first_run() {
    let wide = "é".repeat(31);
    let long = format!("{wide}{wide}");
    for (label, to_same_case, names) in [
        ("cleaned", false, ["a.b", "a_b"]),
        ("in lower case", true, ["Users", "users"]),
        ("truncated", false, [long.as_str(), wide.as_str()]),
    ] {
        for order in [[0, 1], [1, 0]] {
            let mut db = TestSchema::new();
            let streams = order.map(|at| StreamSpec { to_same_case, ..stream(names[at], names[at]) });
            load(&mut db.sink(), &streams, 1);
            let owners = owners(&mut db, label);
            assert_eq!(owners[&format!("{0} as {0}", names[1])], names[1], "{label}, {order:?}");
        }
    }
}

#[test]
fn streams_of_several_syncs_share_a_table_only_if_stream_and_table_are_the_same() {
    let mut db = TestSchema::new();
    for (sync, (name, table)) in (1..).zip([
        ("users", "shop_users"),
        ("crm>users", "shop_users"),
        ("shop_users", "shop_users"),
        ("users", "shop.users"),
        ("users", "shop users"),
        ("users", "shop/users"),
        ("a>b.c", "t"),
        ("a.b>c", "t"),
    ]) {
        for run in 0..2 {
            load(&mut db.sink(), &[stream(name, table)], sync * 2 + run);
        }
    }
    let owners = owners(&mut db, "several syncs");
    assert_eq!(owners["users as shop_users"], "shop_users");
    assert_eq!(owners["users as shop users"], "shop users");
    assert_eq!(owners.len(), 8, "{owners:?}");
}

#[test]
fn tables_without_marks_belong_to_the_stream_of_their_name_or_of_their_suffix() {
    // As an earlier version has created them for the streams `a.b` and `a/b`, and a user for `a_b`.
    let mut db = TestSchema::new();
    db.run("CREATE TABLE a_b_aa61ac33 (id bigint, v text); CREATE TABLE \"Other\" (id bigint, v text)");
    db.run("CREATE TABLE a_b (id bigint, v text)");
    let suffixed = super::super::names::suffixed("a_b", "a/b");
    db.run(&format!("ALTER TABLE a_b_aa61ac33 RENAME TO \"{suffixed}\""));
    load(&mut db.sink(), &["a.b", "a/b", "a_b", "Other"].map(|name| stream(name, name)), 1);
    let owners = owners(&mut db, "without marks");
    let expected = [("a/b", suffixed.as_str()), ("a_b", "a_b"), ("Other", "Other")];
    for (stream, table) in expected {
        assert_eq!(owners[&format!("{stream} as {stream}")], table);
    }
    // The table of the user has a mark now.
    load(&mut db.sink(), &[stream("A_B", "A_B")].map(|spec| StreamSpec { to_same_case: true, ..spec }), 2);
    assert_eq!(db.rows("SELECT v FROM a_b"), ["a_b as a_b"]);
}

#[test]
fn comments_of_the_user_stay_and_do_not_change_what_a_table_belongs_to() {
    for (way, write_way) in WRITE_WAYS {
        let mut db = TestSchema::new();
        let [one, two] = ["a.b", "a/b"].map(|name| stream(name, name));
        load(&mut db.sink(), &[write_way(one.clone(), 1), write_way(two.clone(), 1)], 1);
        let before = owners(&mut db, way);
        db.run("COMMENT ON TABLE a_b IS 'mine'; COMMENT ON COLUMN a_b.v IS 'also mine'");
        load(&mut db.sink(), &[write_way(two, 2), write_way(one, 2)], 2);
        assert_eq!(owners(&mut db, way), before, "{way}");
        let comments = "SELECT obj_description(attrelid), col_description(attrelid, attnum) FROM pg_attribute
             WHERE attrelid = 'a_b'::regclass AND attname = 'v'";
        assert_eq!(db.rows(comments), ["mine|also mine"], "{way}");
    }
}

#[test]
fn tables_of_another_role_belong_to_their_stream_too() {
    let mut db = TestSchema::new();
    let role = format!("{}_loader", db.schema);
    db.run(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'loader'; GRANT USAGE, CREATE ON SCHEMA $schema TO {role};
         CREATE TABLE a_b (id bigint, v text); GRANT ALL ON a_b TO {role}"
    ));
    let mut config = db.config();
    (config["username"], config["password"]) = (role.as_str().into(), "loader".into());
    for (run, names) in (1..).zip([vec!["a.b", "a/b"], vec!["a/b"], vec!["a b.", "a,b"], vec!["a,b", "a.b"]]) {
        let streams: Vec<StreamSpec> = names.into_iter().map(|name| stream(name, name)).collect();
        load(&mut TestSchema::sink_with(&config, std::time::Duration::from_secs(20)), &streams, run);
    }
    assert_eq!(db.rows("SELECT DISTINCT v FROM a_b"), ["a.b as a.b"]);
    db.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn of_two_streams_that_create_one_table_at_once_the_later_one_fails() {
    let mut db = TestSchema::new();
    let [mut one, mut two] = [db.sink(), db.sink()];
    let specs = [stream("a.b", "a.b"), stream("a/b", "a/b")];
    one.assign_tables(&specs[..1]).expect("a table");
    two.assign_tables(&specs[1..]).expect("the same table");
    load(&mut one, &specs[..1], 1);
    let opened = two.open(specs[1].clone()).expect("open");
    let failed = two.write(opened, &super::support::record("{}")).expect_err("a table of another stream");
    assert!(failed.text.contains("belongs to stream \"a.b\""), "{failed}");
    load(&mut db.sink(), &specs[1..], 2);
    assert_eq!(owners(&mut db, "afterwards").len(), 2);

    for (way, write_way) in WRITE_WAYS {
        let mut db = TestSchema::new();
        let mut runs = [(db.sink(), "a.b"), (db.sink(), "a/b")].map(|(mut sink, name)| {
            let opened = sink.open(write_way(stream(name, name), 1)).expect(way);
            let row = format!(r#"{{"id":1,"v":{name:?}}}"#);
            write(&mut sink, opened, &[&row]);
            (sink, opened)
        });
        let [first, second] = runs.each_mut().map(|(sink, opened)| sink.finish(*opened));
        first.expect(way);
        let failed = second.expect_err("a table of another stream");
        assert!(failed.text.contains("belongs to stream \"a.b\""), "{way}: {failed}");
        assert_eq!(db.rows("SELECT v FROM a_b"), ["a.b"], "{way}");
    }
}
