//! The tasks that a token has at a time.

use std::sync::{Arc, Barrier};
use std::thread;

use super::support::{Schema, attempt, task};
use crate::db::{ConcurrencyPolicy, Db, Finding, Place, Writer};
use crate::task::{Image, Task, TaskKind, TaskStatus};

const FULL: Place = Place::Full(Vec::new());

fn of_sync(id: &str) -> Task {
    Task { sync_id: id.to_owned(), ..task(id) }
}

fn take(db: &Db, task: &Task) -> Place {
    db.take_place("team", task, 1, &[]).expect("writable")
}

fn start(db: &Db, task: &Task) {
    db.start_task(task, None, ConcurrencyPolicy::Forbid).expect("writable");
}

fn finish(db: &Db, task: &Task, status: TaskStatus) {
    db.finish_task(task, Writer::Controller, status, None, None).expect("writable");
}

#[test]
fn simultaneous_tasks_of_several_processes_stay_within_the_limit() {
    let schema = Schema::new();
    let dbs: Vec<Db> = (0..3).map(|_| schema.ready()).collect();
    let together = Arc::new(Barrier::new(9));
    let threads: Vec<_> = (0..9)
        .map(|number| {
            let (db, together) = (dbs[number % 3].clone(), Arc::clone(&together));
            thread::spawn(move || {
                together.wait();
                db.take_place("team", &of_sync(&number.to_string()), 2, &[]).expect("writable")
            })
        })
        .collect();
    let places: Vec<Place> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
    assert_eq!(places.iter().filter(|place| **place == Place::Taken).count(), 2, "{places:?}");
    assert_eq!(places.iter().filter(|place| **place == FULL).count(), 7, "{places:?}");
    assert_eq!(dbs[0].take_place("other", &of_sync("x"), 1, &[]), Ok(Place::Taken), "another token");
}

#[test]
fn a_read_has_its_place_until_it_has_ended() {
    let schema = Schema::new();
    let db = schema.ready();
    let (first, second) = (of_sync("first"), of_sync("second"));
    assert_eq!(take(&db, &first), Place::Taken);
    assert_eq!(take(&db, &second), FULL, "before its row exists");
    start(&db, &first);
    assert_eq!((take(&db, &first), take(&db, &second)), (Place::Known, FULL));
    finish(&db, &first, TaskStatus::Success);
    assert_eq!((take(&db, &second), take(&db, &first)), (Place::Taken, Place::Known), "a repeated request needs none");
    db.give_place_back("team", &second).expect("writable");
    assert_eq!(take(&db, &second), Place::Taken);
    start(&db, &second);
    // Cancelled: its Pod takes a while to end.
    finish(&db, &second, TaskStatus::Cancelled);
    let third = of_sync("third");
    assert_eq!(take(&db, &third), Place::Full(vec!["second".to_owned()]));
    assert_eq!(db.take_place("team", &third, 1, &["second".to_owned()]), Ok(Place::Taken));
}

#[test]
fn a_check_has_its_place_until_it_has_ended() {
    let mut schema = Schema::new();
    let db = schema.ready();
    let check = |id: &str| attempt(TaskKind::Check, id, "2026-01-01T00:00:00Z");
    let end = |id: &str, description: &str| {
        db.store_result(&check(id), Finding::Failure(description)).expect("writable");
    };
    assert_eq!(take(&db, &check("one")), Place::Taken);
    db.start_attempt(&check("one"), None).expect("writable");
    assert_eq!(take(&db, &check("two")), FULL);
    end("one", "CONNECTOR_FAILED: x");
    assert_eq!(take(&db, &check("two")), Place::Taken);
    db.start_attempt(&check("two"), None).expect("writable");
    end("two", "CANCELLED: x");
    assert_eq!(take(&db, &check("three")), Place::Full(vec!["two".to_owned()]));
    assert_eq!(db.take_place("team", &check("three"), 1, &["two".to_owned()]), Ok(Place::Taken));
    // The process ended before it recorded anything.
    let own = schema.own();
    schema
        .sql(&format!("UPDATE {own}.attempt SET started_at = started_at - interval '3 minutes' WHERE kind = 'token'"));
    assert_eq!(take(&db, &check("four")), Place::Taken);
}

#[test]
fn tasks_that_share_an_id_have_a_place_each() {
    let schema = Schema::new();
    let db = schema.ready();
    let discover = attempt(TaskKind::Discover, "id", "2026-01-01T00:00:00Z");
    assert_eq!(take(&db, &discover), Place::Taken);
    db.start_attempt(&discover, None).expect("writable");
    let image = Image { package: "airbyte/source-other".to_owned(), ..discover.image.clone() };
    for (label, other) in [
        ("of another sync", Task { sync_id: "s".to_owned(), ..discover.clone() }),
        ("of another connector", Task { image, ..discover.clone() }),
        ("of another kind", Task { kind: TaskKind::Read, ..discover.clone() }),
    ] {
        assert_eq!(take(&db, &other), FULL, "{label}");
    }
    assert_eq!(take(&db, &discover), Place::Known, "there is one Pod of its name");
}

#[test]
fn the_read_after_a_discover_has_its_place() {
    let schema = Schema::new();
    let db = schema.ready();
    let read = of_sync("both");
    let discover = Task { kind: TaskKind::Discover, then_run: Some("w".to_owned()), ..read.clone() };
    assert_eq!(take(&db, &discover), Place::Taken);
    start(&db, &discover);
    assert_eq!((take(&db, &read), take(&db, &of_sync("other"))), (Place::Known, FULL));
    finish(&db, &read, TaskStatus::Success);
    assert_eq!(take(&db, &of_sync("other")), Place::Taken);
}

#[test]
fn nothing_is_counted_without_the_own_schema() {
    assert_eq!(take(&Schema::new().ready_without_own(), &of_sync("s")), Place::Uncounted);
}
