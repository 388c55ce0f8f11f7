//! States that arrive soon after a commit wait for the next one.

use std::time::{Duration, Instant};

use super::{row, row_of, streams, take};
use crate::airbyte::message::StreamName;
use crate::sidecar::streams::commits::JOIN_INTERVAL;
use crate::sidecar::streams::{Storable, Streams};
use crate::task::StreamStatus;

fn state(streams: &mut Streams, stream: &str, state: &str) -> Storable {
    streams.state(&StreamName::new(None, stream), state.to_owned())
}

fn global(streams: &mut Streams, state: &str) -> Storable {
    streams.global_state("_GLOBAL_STATE".to_owned(), state.to_owned())
}

fn stored(states: &[(&str, &str)]) -> Storable {
    states.iter().map(|(key, state)| ((*key).to_owned(), (*state).to_owned())).collect()
}

/// Ticks as if the last commits were a while ago.
fn tick_later(streams: &mut Streams) -> Storable {
    let earlier =
        |last: Option<Instant>| last.and_then(|last| last.checked_sub(JOIN_INTERVAL + Duration::from_secs(1)));
    for stream in &mut streams.all {
        stream.last_commit = earlier(stream.last_commit);
    }
    streams.last_global_commit = earlier(streams.last_global_commit);
    streams.tick()
}

#[test]
fn the_last_of_many_states_is_stored_with_exactly_its_rows() {
    let (mut streams, calls) = streams(&["a"], 1 << 20);
    row(&mut streams, "a");
    assert_eq!(state(&mut streams, "a", "1"), stored(&[("a", "1")]), "the first state commits at once");
    for text in ["2", "3"] {
        row(&mut streams, "a");
        assert_eq!(state(&mut streams, "a", text), []);
    }
    row(&mut streams, "a");
    assert_eq!(streams.tick(), [], "too early");
    assert_eq!(tick_later(&mut streams), stored(&[("a", "3")]));
    assert_eq!(take(&calls), ["commit a", "commit a"]);
    assert_eq!(streams.reports()["a"].events, 3, "the row after the state is not committed with it");
    assert_eq!(tick_later(&mut streams), [], "no state waits");
    streams.status(&StreamName::new(None, "a"), "COMPLETE");
    assert_eq!((take(&calls), streams.reports()["a"].events), (vec!["finish a".to_owned()], 4));
}

#[test]
fn states_without_new_rows_are_joined_without_commits() {
    let (mut streams, calls) = streams(&["a"], 1 << 20);
    row(&mut streams, "a");
    assert_eq!(state(&mut streams, "a", "1"), stored(&[("a", "1")]));
    assert_eq!([state(&mut streams, "a", "2"), state(&mut streams, "a", "3")], [vec![], vec![]]);
    assert_eq!(tick_later(&mut streams), stored(&[("a", "3")]));
    assert_eq!(take(&calls), ["commit a"]);
}

#[test]
fn a_waiting_state_is_stored_however_its_stream_ends() {
    type End = fn(&mut Streams) -> Storable;
    let ends: [(&str, End, StreamStatus, u64, &[&str]); 8] = [
        (
            "complete",
            |streams| streams.status(&StreamName::new(None, "a"), "COMPLETE"),
            StreamStatus::Success,
            3,
            &["finish a"],
        ),
        (
            "incomplete",
            |streams| streams.status(&StreamName::new(None, "a"), "INCOMPLETE"),
            StreamStatus::Partial,
            2,
            &["commit a", "abort a"],
        ),
        ("exit code 0", |streams| streams.source_ended(true, ""), StreamStatus::Success, 3, &["finish a"]),
        (
            "exit code 1",
            |streams| streams.source_ended(false, "it broke"),
            StreamStatus::Partial,
            2,
            &["commit a", "abort a"],
        ),
        (
            "cancelled",
            |streams| streams.stop(StreamStatus::Cancelled),
            StreamStatus::Cancelled,
            2,
            &["commit a", "abort a"],
        ),
        (
            "record limit",
            |streams| streams.finish_early("limit").0,
            StreamStatus::Partial,
            3,
            &["commit a", "finish_early a", "abort a"],
        ),
        (
            "a dropped line",
            |streams| {
                streams.data_dropped("", "a line was dropped");
                streams.take_storable()
            },
            StreamStatus::Partial,
            2,
            &["commit a", "abort a"],
        ),
        (
            "an error, then the record limit",
            |streams| {
                streams.error(&StreamName::new(None, "a"), "the API returned 500");
                streams.finish_early("limit").0
            },
            StreamStatus::Partial,
            2,
            &["commit a", "abort a"],
        ),
    ];
    for (label, end, status, events, expected) in ends {
        for is_global in [false, true] {
            let (mut streams, calls) = streams(&["a"], 1 << 20);
            let send = |streams: &mut Streams, text: &str| {
                if is_global { global(streams, text) } else { state(streams, "a", text) }
            };
            row(&mut streams, "a");
            assert_eq!(send(&mut streams, "1").len(), 1, "{label}");
            row(&mut streams, "a");
            assert_eq!(send(&mut streams, "2"), [], "{label}");
            row(&mut streams, "a");
            take(&calls);
            let key = if is_global { "_GLOBAL_STATE" } else { "a" };
            assert_eq!(end(&mut streams), stored(&[(key, "2")]), "{label}, global: {is_global}");
            let report = &streams.reports()["a"];
            assert_eq!((report.status, report.events), (status, events), "{label}, global: {is_global}");
            // A state of all streams is committed before the first of them ends.
            let calls: Vec<String> = take(&calls).into_iter().filter(|call| !is_global || call != "commit a").collect();
            let expected: Vec<&str> =
                expected.iter().copied().filter(|call| !is_global || *call != "commit a").collect();
            assert_eq!(calls, expected, "{label}, global: {is_global}");
        }
    }
}

#[test]
fn a_waiting_state_whose_commit_fails_is_not_stored() {
    let (mut streams, calls) = streams(&["bad", "gone", "a"], 1 << 20);
    let now = Some(Instant::now());
    for stream in &mut streams.all {
        stream.last_commit = now;
    }
    for name in ["bad", "gone", "a"] {
        row(&mut streams, name);
        assert_eq!(state(&mut streams, name, "1"), []);
    }
    assert_eq!(tick_later(&mut streams), [], "the destination is unavailable: nothing more is tried");
    assert_eq!(take(&calls), ["commit bad", "abort bad", "commit gone", "abort gone", "abort a"]);
    assert!(streams.is_refused());
}

#[test]
fn a_commit_is_not_delayed_if_its_held_rows_need_too_much_memory() {
    for is_global in [false, true] {
        let (mut streams, calls) = streams(&["a", "b"], 1 << 30);
        let send = |streams: &mut Streams, text: &str| {
            if is_global { global(streams, text) } else { state(streams, "a", text) }
        };
        row(&mut streams, "a");
        row(&mut streams, "b");
        assert_eq!(send(&mut streams, "1").len(), 1);
        row(&mut streams, "a");
        assert_eq!(send(&mut streams, "2"), []);
        take(&calls);
        let large = "x".repeat(1 << 20);
        for _ in 0..3 {
            row_of(&mut streams, "a", &large);
        }
        assert_eq!((take(&calls), streams.take_storable()), (vec![], vec![]), "the rows are held");
        row_of(&mut streams, "a", &large);
        assert_eq!((take(&calls), streams.held_bytes), (vec!["commit a".to_owned()], 0));
        assert_eq!(streams.take_storable().len(), 1);
        assert_eq!(streams.reports()["a"].events, 2, "the held rows are not committed with it");
    }
}

#[test]
fn states_of_both_kinds_wait_side_by_side() {
    let (mut streams, calls) = streams(&["full", "a", "b"], 1 << 20);
    for name in ["full", "a", "b"] {
        row(&mut streams, name);
    }
    assert_eq!(state(&mut streams, "a", "1"), stored(&[("a", "1")]));
    assert_eq!(global(&mut streams, "1"), [], "a stream replaces its table at its end");
    row(&mut streams, "a");
    row(&mut streams, "b");
    assert_eq!(state(&mut streams, "a", "2"), []);
    assert_eq!(global(&mut streams, "2"), []);
    row(&mut streams, "a");
    row(&mut streams, "b");
    take(&calls);
    assert_eq!(tick_later(&mut streams), stored(&[("a", "2")]));
    assert_eq!(take(&calls), ["commit a", "commit b"]);
    assert_eq!(["a", "b"].map(|name| streams.reports()[name].events), [2, 2]);
    row(&mut streams, "b");
    assert_eq!(streams.held_bytes, 0, "no commit is waited for");
    assert_eq!(streams.status(&StreamName::new(None, "full"), "COMPLETE"), stored(&[("_GLOBAL_STATE", "2")]));
}

#[test]
fn rows_are_released_when_a_failed_stream_drops_the_state_of_all_streams() {
    let (mut streams, calls) = streams(&["a", "b"], 1 << 20);
    row(&mut streams, "a");
    row(&mut streams, "b");
    assert_eq!(global(&mut streams, "1").len(), 1);
    row(&mut streams, "b");
    assert_eq!(global(&mut streams, "2"), []);
    row(&mut streams, "b");
    assert!(streams.held_bytes > 0);
    assert_eq!(
        streams.status(&StreamName::new(None, "a"), "INCOMPLETE"),
        stored(&[("_GLOBAL_STATE", "2")]),
        "it precedes the failure"
    );
    assert_eq!(global(&mut streams, "3"), [], "it follows the failure");
    row(&mut streams, "b");
    assert_eq!(tick_later(&mut streams), []);
    assert_eq!(streams.held_bytes, 0);
    take(&calls);
    streams.status(&StreamName::new(None, "b"), "COMPLETE");
    assert_eq!((take(&calls), streams.reports()["b"].events), (vec!["finish b".to_owned()], 4));
}
