//! Runs a scenario through the sidecar, into Postgres.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::{Value, json};

use super::comparison::{Known, compare};
use super::scenario::{Record, Run, Scenario};
use super::source::{Sent, TOKEN, script};
use super::tables::{Load, Table};
use crate::airbyte::catalog::ConfiguredCatalog;
use crate::airbyte::state::{Progress, from_rows};
use crate::db::StoredTask;
use crate::sidecar::tests::support::{SYNC_ID, World};
use crate::task::{ReadOptions, StreamStatus, TaskStatus};

/// A database for scenarios, one after the other.
pub struct Player {
    world: World,
}

/// What is known of a stream between runs.
#[derive(Debug, Clone, Default)]
struct Stream {
    /// All records that the source had so far.
    log: Vec<Record>,
    /// The possible contents of its table.
    table: Table,
}

impl Player {
    pub fn new() -> Self {
        Self { world: World::new() }
    }

    /// Runs a scenario. Returns what differs from the model.
    pub fn play(&mut self, scenario: &Scenario) -> Result<(), String> {
        let result = catch_unwind(AssertUnwindSafe(|| self.play_runs(scenario)));
        let cleaned =
            "SELECT format('DROP SCHEMA %I CASCADE', nspname) FROM pg_namespace WHERE starts_with(nspname::text, $1)";
        let schemas = self.world.admin.query(cleaned, &[&format!("{}_", self.world.schema)]).expect("schemas");
        let schemas: String = schemas.iter().map(|row| row.get::<_, String>(0) + ";").collect();
        self.world.admin.batch_execute(&(schemas + "DELETE FROM source_state")).expect("an empty database");
        result.unwrap_or_else(|_| Err("a panic".to_owned()))
    }

    fn play_runs(&mut self, scenario: &Scenario) -> Result<(), String> {
        let mut streams = vec![Stream::default(); scenario.streams.len()];
        let mut known = Known::default();
        for (number, run) in scenario.runs.iter().enumerate() {
            self.play_run(scenario, run, &mut streams, &mut known)
                .map_err(|why| format!("run {}: {why}", number + 1))?;
        }
        Ok(())
    }

    fn play_run(
        &mut self,
        scenario: &Scenario,
        run: &Run,
        streams: &mut [Stream],
        known: &mut Known,
    ) -> Result<(), String> {
        let catalog = scenario.catalog(run);
        let parsed: ConfiguredCatalog = serde_json::from_value(catalog.clone()).map_err(|error| error.to_string())?;
        self.clear_states(scenario, run);
        let before = self.states();
        let saved_states = Some(global_or_stream_states(&before));
        self.world.state = from_rows(&before, &parsed)?.filter(|_| !run.full_sync);
        let progress = Progress::of(self.world.state.as_deref());
        let mut starts = Vec::new();
        let mut records = Vec::new();
        for stream_run in &run.streams {
            let stream = &mut streams[stream_run.stream];
            let name = scenario.streams[stream_run.stream].stream_name();
            let saved = position(saved_states.as_deref(), &json!(name.name), &json!(name.namespace));
            let covered = position(self.world.state.as_deref(), &json!(name.name), &json!(name.namespace));
            let start = if stream_run.incremental { covered } else { stream.log.len() };
            stream.log.extend(stream_run.records.iter().cloned());
            records.push(stream.log[start..].to_vec());
            starts.push((start, saved));
        }
        let state = |sent: &[usize]| {
            sent.iter()
                .zip(&starts)
                .map(|(sent, (start, _))| json!({"position": start + sent, "token": TOKEN}))
                .collect()
        };
        let (lines, sent, exit_code) = script(scenario, run, records, state);
        let options = ReadOptions {
            namespace: scenario.options.namespace.as_ref().map(|text| text.replace("$schema", &self.world.schema)),
            table_name_prefix: scenario.options.prefix.clone(),
            to_same_case: scenario.options.to_same_case,
            add_meta: scenario.options.add_meta,
            console_overwrite: scenario.options.console_overwrite,
            deduplicate: scenario.options.deduplicate,
            full_sync: run.full_sync,
            ..ReadOptions::default()
        };
        let mut destination = self.world.postgres();
        destination["defaultSchema"] = json!(format!("{}_rows", self.world.schema));
        let task = self.world.read(options, &destination, &catalog, |source| {
            source.write(&lines)?;
            source.end(exit_code)
        });
        check_outcome(scenario, run, &task, &sent, exit_code)?;
        let mut models: Vec<Vec<Table>> = streams.iter().map(|stream| vec![stream.table.clone()]).collect();
        for (at, stream_run) in run.streams.iter().enumerate() {
            let stream = &scenario.streams[stream_run.stream];
            let name = stream.stream_name();
            let committed = usize::try_from(task.streams[&name.key()].events).expect("a small number");
            let resumes = progress.covers(&name);
            let load = Load {
                stream,
                run: stream_run,
                options: &scenario.options,
                full_sync: run.full_sync,
                sent: &sent[at],
                committed,
                resumes,
            };
            models[stream_run.stream] = streams[stream_run.stream].table.after(&load);
        }
        let uids = sent.iter().flat_map(|sent| &sent.records).map(|record| record.uid.clone()).collect();
        let tables = compare(&mut self.world.admin, &self.world.schema.clone(), scenario, models, &uids, known)?;
        streams.iter_mut().zip(tables).for_each(|(stream, table)| stream.table = table);
        self.check_states(scenario, run, &task, &sent, &starts)
    }

    fn states(&self) -> Vec<(String, String)> {
        self.world.db().states(SYNC_ID).expect("states")
    }

    /// Deletes the states of streams that are refreshed.
    fn clear_states(&mut self, scenario: &Scenario, run: &Run) {
        for stream_run in run.streams.iter().filter(|stream_run| stream_run.clears_state) {
            let key = scenario.streams[stream_run.stream].stream_name().key();
            let delete = if scenario.options.global_state { "true OR" } else { "" };
            let statement = format!("DELETE FROM source_state WHERE {delete} stream = $1");
            self.world.admin.execute(&statement, &[&key]).expect("no state");
        }
    }

    /// States are saved only for rows that are in, and once a run has succeeded, for all of them.
    fn check_states(
        &self,
        scenario: &Scenario,
        run: &Run,
        task: &StoredTask,
        sent: &[Sent],
        starts: &[(usize, usize)],
    ) -> Result<(), String> {
        let states = self.states();
        if let Some((key, _)) = states.iter().find(|(_, state)| !state.contains(TOKEN)) {
            return Err(format!("the state of {key:?} has lost digits: {states:?}"));
        }
        let document = global_or_stream_states(&states);
        for (at, stream_run) in run.streams.iter().enumerate() {
            let name = scenario.streams[stream_run.stream].stream_name();
            let report = &task.streams[&name.key()];
            let loaded = starts[at].0 + usize::try_from(report.events).expect("a small number");
            let saved = position(Some(&document), &json!(name.name), &json!(name.namespace));
            let (start, before) = starts[at];
            if saved == before && report.status != StreamStatus::Success {
                continue;
            }
            let is_final = task.status == Some(TaskStatus::Success)
                || (report.status == StreamStatus::Success && !scenario.options.global_state);
            if saved > loaded || (is_final && saved != start + sent[at].records.len()) {
                return Err(format!(
                    "stream {:?}: the saved state covers {saved} records, {loaded} are loaded, status {:?}: {states:?}",
                    name.key(),
                    report.status
                ));
            }
        }
        Ok(())
    }
}

/// Compares the status of the task and of its streams.
fn check_outcome(
    scenario: &Scenario,
    run: &Run,
    task: &StoredTask,
    sent: &[Sent],
    exit_code: u8,
) -> Result<(), String> {
    let mut statuses = Vec::new();
    for (at, stream_run) in run.streams.iter().enumerate() {
        let key = scenario.streams[stream_run.stream].stream_name().key();
        let (report, sent) = (&task.streams[&key], &sent[at]);
        let written = sent.written as u64;
        let expected = match report.events {
            _ if sent.complete => StreamStatus::Success,
            0 => StreamStatus::Failed,
            _ => StreamStatus::Partial,
        };
        let is_counted = if sent.complete { report.events == written } else { report.events <= written };
        if report.status != expected || !is_counted {
            return Err(format!("stream {key:?} sent {written} records and should be {expected:?}: {report:?}"));
        }
        statuses.push(report.status);
    }
    let any_loaded = statuses.iter().any(|status| *status != StreamStatus::Failed);
    let expected = match statuses.iter().all(|status| *status == StreamStatus::Success) {
        true if exit_code == 0 => TaskStatus::Success,
        _ if any_loaded => TaskStatus::Partial,
        _ => TaskStatus::Failed,
    };
    if task.status == Some(expected) {
        Ok(())
    } else {
        Err(format!("the task should be {expected:?}: {:?} {:?}", task.status, task.error))
    }
}

/// The states as one document for a connector, also of streams that are not selected.
fn global_or_stream_states(rows: &[(String, String)]) -> String {
    let state = |(key, state): &(String, String)| match key.as_str() {
        crate::airbyte::state::GLOBAL_KEY => format!(r#"{{"global":{state}}}"#),
        _ => format!(r#"{{"stream":{{"key":{},"stream_state":{state}}}}}"#, json!(key)),
    };
    format!("[{}]", rows.iter().map(state).collect::<Vec<_>>().join(","))
}

/// How many records the state of a stream covers.
fn position(document: Option<&str>, name: &Value, namespace: &Value) -> usize {
    let document: Value = document.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let key = namespace
        .as_str()
        .map_or(name.clone(), |namespace| json!(format!("{namespace}.{}", name.as_str().unwrap_or_default())));
    let is_of_stream = |state: &&Value| {
        let descriptor = &state["stream_descriptor"];
        state["key"] == key || (descriptor["name"] == *name && descriptor["namespace"] == *namespace)
    };
    let states = document.as_array().into_iter().flatten();
    let parts = states.flat_map(|state| {
        let global = state["global"]["stream_states"].as_array();
        state.get("stream").into_iter().chain(global.into_iter().flatten())
    });
    let position = parts.filter(is_of_stream).find_map(|state| state["stream_state"]["position"].as_u64());
    usize::try_from(position.unwrap_or_default()).expect("a small number")
}
