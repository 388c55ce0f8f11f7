//! Removes what a failure does not need.

use std::time::{Duration, Instant};

use super::play::Player;
use super::scenario::Scenario;

/// A reduction that takes longer is given up.
const TIMEOUT: Duration = Duration::from_mins(1);

/// The smallest scenario found that still fails, and its error.
pub fn reduce(player: &mut Player, mut scenario: Scenario, mut error: String) -> (Scenario, String) {
    let started = Instant::now();
    loop {
        let smaller = smaller(&scenario).into_iter().find_map(|smaller| {
            let fails = started.elapsed() < TIMEOUT;
            fails.then(|| player.play(&smaller).err()).flatten().map(|error| (smaller, error))
        });
        match smaller {
            Some(smaller) => (scenario, error) = smaller,
            None => return (scenario, error),
        }
    }
}

/// A change that makes a scenario simpler.
type Change = fn(&mut Scenario);

/// Scenarios without a part of this one, the largest parts first.
fn smaller(scenario: &Scenario) -> Vec<Scenario> {
    let mut all = Vec::new();
    let mut add = |change: &dyn Fn(&mut Scenario)| {
        let mut changed = scenario.clone();
        change(&mut changed);
        changed.runs.retain(|run| !run.streams.is_empty());
        if !changed.runs.is_empty() {
            all.push(changed);
        }
    };
    for run in (0..scenario.runs.len()).rev() {
        add(&|scenario| drop(scenario.runs.remove(run)));
    }
    for stream in 0..scenario.streams.len() {
        if scenario.runs.iter().any(|run| run.streams.iter().any(|other| other.stream == stream)) {
            add(&|scenario| {
                scenario.runs.iter_mut().for_each(|run| run.streams.retain(|other| other.stream != stream));
            });
        }
    }
    for (number, run) in scenario.runs.iter().enumerate() {
        for (place, stream) in run.streams.iter().enumerate() {
            add(&|scenario| drop(scenario.runs[number].streams.remove(place)));
            let count = stream.records.len();
            if count > 2 {
                add(&|scenario| scenario.runs[number].streams[place].records.truncate(count / 2));
                add(&|scenario| drop(scenario.runs[number].streams[place].records.drain(..count / 2)));
            }
        }
        if run.fails_after.is_some() {
            add(&|scenario| scenario.runs[number].fails_after = None);
        }
    }
    for stream in 0..scenario.streams.len() {
        for field in (0..scenario.streams[stream].fields.len()).rev() {
            add(&|scenario| remove_field(scenario, stream, field));
        }
    }
    for (number, run) in scenario.runs.iter().enumerate() {
        for (place, stream) in run.streams.iter().enumerate() {
            for record in (0..stream.records.len()).rev() {
                add(&|scenario| drop(scenario.runs[number].streams[place].records.remove(record)));
            }
            if stream.incomplete {
                add(&|scenario| scenario.runs[number].streams[place].incomplete = false);
            }
        }
    }
    if scenario.options.namespace.is_some() && scenario.streams.iter().all(|stream| stream.namespace.is_none()) {
        add(&|scenario| scenario.options.namespace = None);
    }
    let options = &scenario.options;
    let switches: [(bool, Change); 4] = [
        (options.to_same_case, |scenario| scenario.options.to_same_case = false),
        (options.add_meta, |scenario| scenario.options.add_meta = false),
        (options.global_state, |scenario| scenario.options.global_state = false),
        (!options.prefix.is_empty(), |scenario| scenario.options.prefix.clear()),
    ];
    switches.iter().filter(|(is_set, _)| *is_set).for_each(|(_, reset)| add(reset));
    all
}

/// Removes a field. Keys and cursors name fields by index.
fn remove_field(scenario: &mut Scenario, stream: usize, field: usize) {
    let removed = &mut scenario.streams[stream];
    removed.fields.remove(field);
    removed.key.retain(|index| *index != field);
    removed.cursor = removed.cursor.filter(|index| *index != field);
    removed.key.iter_mut().chain(removed.cursor.as_mut()).filter(|index| **index > field).for_each(|index| *index -= 1);
    for run in &mut scenario.runs {
        for run in run.streams.iter_mut().filter(|run| run.stream == stream) {
            run.declared.remove(field);
            run.records.iter_mut().for_each(|record| drop(record.values.remove(field)));
        }
    }
}
