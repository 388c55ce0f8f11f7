//! Which states a read saves, and which rows of earlier runs they replace.
//!
//! A source may send states of single streams and of all streams in one run: both are saved. If it has changed from one
//! kind to the other, the rows of the other kind are outdated.

use std::collections::HashSet;

use super::streams::Storable;
use crate::airbyte::catalog::{ConfiguredCatalog, SyncMode};
use crate::airbyte::state::{GLOBAL_KEY, global_streams, has_global};

/// The states that a read has saved.
pub struct SavedStates {
    /// Their keys.
    keys: HashSet<String>,
    /// The last ones.
    last: Storable,
    /// Keys of the streams that a connector can resume.
    incremental: HashSet<String>,
    /// Keys of the other streams. Their states never reach a connector.
    full_refresh: Vec<String>,
    /// The sync has a state of all streams.
    has_global: bool,
}

impl SavedStates {
    /// Before the first state, with the input state of the read.
    pub fn new(catalog: &ConfiguredCatalog, input: Option<&str>) -> Self {
        let (incremental, full_refresh): (Vec<_>, Vec<_>) =
            catalog.streams.iter().partition(|stream| stream.sync_mode == SyncMode::Incremental);
        Self {
            keys: HashSet::new(),
            last: Vec::new(),
            incremental: incremental.into_iter().map(|stream| stream.name().key()).collect(),
            full_refresh: full_refresh.into_iter().map(|stream| stream.name().key()).collect(),
            has_global: input.is_some_and(has_global),
        }
    }

    /// Adds states that are about to be saved. Returns those that have changed, and the keys of the rows that they replace.
    pub fn add(&mut self, mut storable: Storable) -> (Storable, Vec<String>) {
        let global = storable.iter().rfind(|(key, _)| key == GLOBAL_KEY).map(|(_, global)| global_streams(global));
        self.has_global |= global.is_some();
        if self.has_global {
            // They are of no use, and Jitsu's console passes on a state of all streams only if it is the only row.
            storable.retain(|(key, _)| !self.full_refresh.contains(key));
        }
        if storable.is_empty() || storable == self.last {
            return (Vec::new(), Vec::new());
        }
        self.keys.extend(storable.iter().map(|(key, _)| key.clone()));
        let mut superseded = Vec::new();
        if let Some(streams) = global {
            superseded.extend(streams.into_iter().filter(|stream| !self.keys.contains(stream)));
            superseded.extend_from_slice(&self.full_refresh);
        }
        self.last.clone_from(&storable);
        (storable, superseded)
    }

    /// Their keys.
    pub fn keys(&self) -> Vec<&str> {
        self.keys.iter().map(String::as_str).collect()
    }

    /// Whether this state of all streams is outdated, after a read in which all streams have succeeded: the source has sent
    /// states of single streams in its place.
    pub fn supersede(&self, global: &str) -> bool {
        if self.keys.contains(GLOBAL_KEY) || self.keys.is_empty() {
            return false;
        }
        match global_streams(global) {
            // It may cover any stream.
            streams if streams.is_empty() => self.incremental.is_subset(&self.keys),
            streams => streams.iter().any(|stream| self.keys.contains(stream)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::SavedStates;
    use crate::airbyte::catalog::ConfiguredCatalog;
    use crate::sidecar::streams::Storable;
    use serde_json::json;

    const GLOBAL: &str = r#"{"shared_state":{"lsn":1},"stream_states":[{"stream_descriptor":{"name":"orders"}}]}"#;
    const OPAQUE: &str = r#"{"shared_state":{"lsn":1},"stream_states":[]}"#;

    /// Two incremental streams, `orders` and `codes`, and a full refresh, `full`.
    fn saved(input: Option<&str>) -> SavedStates {
        let stream = |name: &str, mode: &str| json!({"stream": {"name": name}, "sync_mode": mode});
        let streams = [stream("orders", "incremental"), stream("codes", "incremental"), stream("full", "full_refresh")];
        let catalog: ConfiguredCatalog = serde_json::from_value(json!({"streams": streams})).expect("a catalog");
        SavedStates::new(&catalog, input)
    }

    fn states(states: &[(&str, &str)]) -> Storable {
        states.iter().map(|(key, state)| ((*key).to_owned(), (*state).to_owned())).collect()
    }

    #[test]
    fn a_global_state_replaces_the_rows_of_the_streams_that_it_lists() {
        let global = states(&[("_GLOBAL_STATE", GLOBAL)]);
        let mut saved = saved(None);
        assert_eq!(
            saved.add(states(&[("codes", "1"), ("full", "1")])),
            (states(&[("codes", "1"), ("full", "1")]), vec![])
        );
        assert_eq!(saved.add(global.clone()), (global.clone(), vec!["orders".to_owned(), "full".to_owned()]));
        assert_eq!(saved.add(global), (vec![], vec![]), "a repeated state is saved once");
        assert_eq!(saved.add(states(&[("orders", "2"), ("full", "2")])).0, states(&[("orders", "2")]));
        let again = states(&[("_GLOBAL_STATE", GLOBAL)]);
        assert_eq!(saved.add(again).1, ["full"], "this run has sent both states of the stream");
    }

    #[test]
    fn states_of_full_refreshes_are_not_saved_beside_a_global_state_of_an_earlier_run() {
        let mut saved = saved(Some(&format!(r#"[{{"type":"GLOBAL","global":{GLOBAL}}}]"#)));
        assert_eq!(saved.add(states(&[("full", "1")])), (vec![], vec![]));
    }

    #[test]
    fn states_of_single_streams_replace_an_outdated_global_state() {
        for (label, keys, global, expected) in [
            ("of a listed stream", &["orders"][..], GLOBAL, true),
            ("of another stream", &["codes"], GLOBAL, false),
            ("of some streams, where it may cover any", &["orders"], OPAQUE, false),
            ("of all incremental streams, where it may cover any", &["orders", "codes"], OPAQUE, true),
            ("with a global state of the same run", &["orders", "_GLOBAL_STATE"], GLOBAL, false),
            ("none", &[], OPAQUE, false),
        ] {
            let mut saved = saved(None);
            saved.add(keys.iter().map(|key| ((*key).to_owned(), "{}".to_owned())).collect());
            assert_eq!(saved.supersede(global), expected, "{label}");
        }
    }
}
