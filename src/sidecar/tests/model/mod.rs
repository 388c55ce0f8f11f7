//! Random streams, records and interruptions over several runs, compared with a model of the protocol: no row is lost or
//! doubled, the right row wins, each stream keeps its table and each field its column, values are exact, and a state is
//! saved only for rows that are in the table.
//!
//! | file | |
//! |---|---|
//! | `scenario` | streams and runs as plain data |
//! | `generator` | scenarios from seeds |
//! | `source` | what the source writes in a run |
//! | `play` | runs a scenario |
//! | `tables` | the model |
//! | `comparison`, `values` | tables compared with the model |
//! | `reduce` | smaller scenarios that fail as well |
//!
//! `SYNCCTL_TEST_SEED` runs the scenario of one seed, `SYNCCTL_TEST_CASES` determines how many scenarios run.

mod comparison;
mod generator;
mod play;
mod reduce;
mod scenario;
mod source;
mod tables;
mod values;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use generator::scenario;
use play::Player;

/// Scenarios with the same seeds each time.
const FIXED_CASES: u64 = 24;
/// Scenarios with other seeds each time.
const RANDOM_CASES: u64 = 6;
/// No further scenarios after this number of failures.
const MAX_FAILURES: usize = 8;
/// Scenarios mostly wait.
const THREADS: usize = 4;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number")))
}

#[test]
fn tables_are_as_the_model_says() {
    let seeds: Vec<u64> = if let Some(seed) = number("SYNCCTL_TEST_SEED") {
        vec![seed]
    } else {
        let random = uuid::Uuid::new_v4().as_u64_pair().0 >> 16;
        let count = number("SYNCCTL_TEST_CASES").map_or(RANDOM_CASES, |count| count.saturating_sub(FIXED_CASES));
        (0..FIXED_CASES).chain((0..count).map(|at| random + at)).collect()
    };
    let next = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    let work = || {
        let mut player = Player::new();
        while failures.lock().expect("no panic").len() < MAX_FAILURES {
            let at = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).expect("a small number");
            let Some(seed) = seeds.get(at) else { return };
            if let Err(error) = player.play(&scenario(*seed)) {
                failures.lock().expect("no panic").push((*seed, error));
            }
        }
    };
    std::thread::scope(|scope| (0..THREADS.min(seeds.len())).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner().expect("no panic");
    let Some((seed, error)) = failures.first() else { return };
    let (reduced, reduced_error) = reduce::reduce(&mut Player::new(), scenario(*seed), error.clone());
    let list: Vec<String> = failures.iter().map(|(seed, error)| format!("SYNCCTL_TEST_SEED={seed}: {error}")).collect();
    panic!("{}\n\nthe first one reduced:\n{reduced}{reduced_error}", list.join("\n"));
}
