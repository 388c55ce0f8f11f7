//! Combines the configured catalog with the options of the read into what the sink needs to know of a stream. Pure.

use crate::airbyte::catalog::{ConfiguredCatalog, ConfiguredStream, DestinationSyncMode, SyncMode};
use crate::airbyte::message::StreamName;
use crate::airbyte::state::Progress;
use crate::sidecar::sink::{AirbyteSpec, Generation, StreamSpec, WriteMode};
use crate::task::ReadOptions;

/// The streams of a catalog as the sink sees them.
pub fn stream_specs(
    catalog: &ConfiguredCatalog,
    options: &ReadOptions,
    progress: &Progress,
) -> impl Iterator<Item = StreamSpec> {
    catalog.streams.iter().map(|stream| stream_spec(stream, options, progress))
}

/// The stream as the sink sees it.
pub fn stream_spec(configured: &ConfiguredStream, options: &ReadOptions, progress: &Progress) -> StreamSpec {
    let stream = &configured.stream;
    let name = configured.name();
    let primary_key = merge_key(configured, options).to_vec();
    let cursor = if configured.cursor_field.is_empty() {
        stream.default_cursor_field.clone()
    } else {
        configured.cursor_field.clone()
    };
    let generation = generation(configured, options, progress);
    let mode = write_mode(configured, options, !primary_key.is_empty());
    StreamSpec {
        schema: schema(options.namespace.as_deref(), name.namespace.as_deref()),
        table: table(stream.table_name.as_deref(), &name, options),
        json_schema: stream.json_schema.clone(),
        replaces_at_first_commit: mode != WriteMode::Replace
            && generation.minimum == 0
            && replaces_without_state(configured, options, progress),
        mode,
        primary_key,
        cursor,
        generation,
        cdc_deletion: options.cdc_deletion,
        to_same_case: options.to_same_case,
        add_meta: options.add_meta,
        airbyte: AirbyteSpec { in_new_tables: false, sync_id: configured.sync_id.as_i64().unwrap_or_default() },
        name,
    }
}

/// The paths of the key by which the rows of a stream are merged; empty if the table may have several rows with the same key.
pub fn merge_key<'c>(configured: &'c ConfiguredStream, options: &ReadOptions) -> &'c [Vec<String>] {
    use DestinationSyncMode as Mode;
    let merges = match configured.destination_sync_mode {
        Some(Mode::Append) => false,
        Some(Mode::AppendDedup | Mode::OverwriteDedup | Mode::Update | Mode::SoftDelete) => true,
        // A full refresh is a copy of what the source has. An incremental read sends new versions of rows.
        Some(Mode::Overwrite) | None => options.console_overwrite || configured.sync_mode == SyncMode::Incremental,
    };
    match (merges && options.deduplicate, configured.primary_key.is_empty()) {
        (false, _) => &[],
        (true, false) => &configured.primary_key,
        (true, true) => &configured.stream.source_defined_primary_key,
    }
}

fn generation(configured: &ConfiguredStream, options: &ReadOptions, progress: &Progress) -> Generation {
    // Validated with the catalog.
    let (id, minimum) = configured.generations().unwrap_or_default();
    let resumable = configured.sync_mode == SyncMode::Incremental && !options.full_sync;
    Generation { id, minimum, resumable, resumes: resumable && progress.covers(&configured.name()) }
}

/// Whether the rows of an incremental stream replace those of earlier runs, because no state covers these.
fn replaces_without_state(configured: &ConfiguredStream, options: &ReadOptions, progress: &Progress) -> bool {
    use DestinationSyncMode as Mode;
    let is_overwrite = matches!(configured.destination_sync_mode, Some(Mode::Overwrite | Mode::OverwriteDedup) | None);
    options.console_overwrite && is_overwrite && !progress.covers(&configured.name())
}

/// Placeholder for the stream's namespace.
const SOURCE_NAMESPACE: &str = "${SOURCE_NAMESPACE}";
/// Placeholder in the option `namespace`: uses the default schema, and adds the namespace to the table's name.
const LEGACY: &str = "${LEGACY}";

/// The schema of a stream; `None` is the destination's default.
fn schema(option: Option<&str>, namespace: Option<&str>) -> Option<String> {
    let option = option.filter(|option| !option.contains(LEGACY))?;
    let schema = option.replace(SOURCE_NAMESPACE, namespace.unwrap_or_default()).trim().to_owned();
    Some(schema).filter(|schema| !schema.is_empty())
}

/// The table of a stream: the name in the catalog if there is one, else prefix and name like the existing implementation.
fn table(table_name: Option<&str>, stream: &StreamName, options: &ReadOptions) -> String {
    if let Some(name) = table_name.filter(|name| !name.is_empty()) {
        return name.to_owned();
    }
    let prefix = options.table_name_prefix.replace(SOURCE_NAMESPACE, stream.namespace.as_deref().unwrap_or_default());
    let is_legacy = options.namespace.as_deref().is_some_and(|namespace| namespace.contains(LEGACY));
    let name = if is_legacy { stream.key() } else { stream.name.clone() };
    format!("{prefix}{name}")
}

fn write_mode(configured: &ConfiguredStream, options: &ReadOptions, has_key: bool) -> WriteMode {
    use DestinationSyncMode as Mode;
    if options.full_sync {
        return WriteMode::Replace;
    }
    let replace = match configured.destination_sync_mode {
        Some(Mode::Overwrite | Mode::OverwriteDedup) | None => configured.sync_mode == SyncMode::FullRefresh,
        Some(_) => false,
    };
    // An incremental read cannot replace the table, because it sends new rows only: merge them if there is a key.
    match (replace, has_key) {
        (true, _) => WriteMode::Replace,
        (false, true) => WriteMode::Merge,
        (false, false) => WriteMode::Append,
    }
}

#[cfg(test)]
mod tests {
    use super::{schema, table};
    use crate::airbyte::message::StreamName;
    use crate::airbyte::state::Progress;
    use crate::sidecar::sink::WriteMode;
    use crate::task::ReadOptions;

    #[test]
    fn mode_and_caller_decide_whether_rows_are_merged() {
        let command = ReadOptions::default();
        let http = ReadOptions { console_overwrite: true, ..ReadOptions::default() };
        let (merge, replace) = (Some(WriteMode::Merge), Some(WriteMode::Replace));
        // The mode that a key is used in; `None` if it is ignored. Each of a full refresh and an incremental stream.
        for (write, by_command, by_http, by_full_sync) in [
            ("null", [None, merge], [replace, merge], [None, replace]),
            ("\"overwrite\"", [None, merge], [replace, merge], [None, replace]),
            ("\"overwrite_dedup\"", [replace, merge], [replace, merge], [replace; 2]),
            ("\"append\"", [None; 2], [None; 2], [None; 2]),
            ("\"append_dedup\"", [merge; 2], [merge; 2], [replace; 2]),
            ("\"update\"", [merge; 2], [merge; 2], [replace; 2]),
        ] {
            let full_sync = ReadOptions { full_sync: true, ..command.clone() };
            for (options, expected) in [(&command, by_command), (&http, by_http), (&full_sync, by_full_sync)] {
                for (sync, expected) in ["full_refresh", "incremental"].into_iter().zip(expected) {
                    for (deduplicate, expected) in [(true, expected), (false, None)] {
                        let configured = serde_json::from_str(&format!(
                            r#"{{"stream": {{"name": "s", "source_defined_primary_key": [["id"]]}}, "sync_mode": "{sync}",
                                 "destination_sync_mode": {write}}}"#
                        ));
                        let options = ReadOptions { deduplicate, ..options.clone() };
                        let progress = Progress::default();
                        let spec = super::stream_spec(&configured.expect("a stream"), &options, &progress);
                        let found = Some(spec.mode).filter(|_| !spec.primary_key.is_empty());
                        assert_eq!(found, expected, "{sync}, {write}, {options:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn incremental_overwrites_without_a_state_replace_at_their_first_commit() {
        let http = ReadOptions { console_overwrite: true, ..ReadOptions::default() };
        let full_sync = ReadOptions { full_sync: true, ..http.clone() };
        let state = r#"[{"type":"STREAM","stream":{"stream_descriptor":{"name":"s"},"stream_state":{"c":1}}}]"#;
        let other = state.replace("\"s\"", "\"other\"");
        let global = r#"[{"type":"GLOBAL","global":{"shared_state":{"lsn":5},"stream_states":[]}}]"#;
        for (label, options, sync, write, generation, state, expected) in [
            ("without a state", &http, "incremental", "overwrite", 0, None, true),
            ("with the state of another stream", &http, "incremental", "overwrite", 0, Some(&*other), true),
            ("with a state", &http, "incremental", "overwrite", 0, Some(state), false),
            ("with a global state", &http, "incremental", "overwrite", 0, Some(global), false),
            ("with a legacy state", &http, "incremental", "overwrite", 0, Some(r#"{"c":1}"#), false),
            ("of a command", &ReadOptions::default(), "incremental", "overwrite", 0, None, false),
            ("append", &http, "incremental", "append", 0, None, false),
            ("append_dedup", &http, "incremental", "append_dedup", 0, None, false),
            ("a full refresh replaces at its end", &http, "full_refresh", "overwrite", 0, None, false),
            ("as does a full sync", &full_sync, "incremental", "overwrite", 0, None, false),
            ("generations have rules of their own", &http, "incremental", "overwrite", 3, None, false),
        ] {
            let configured = serde_json::from_value(serde_json::json!({
                "stream": {"name": "s", "source_defined_primary_key": [["id"]]}, "sync_mode": sync,
                "destination_sync_mode": write, "generation_id": generation, "minimum_generation_id": generation,
            }))
            .expect("a stream");
            let spec = super::stream_spec(&configured, options, &Progress::of(state));
            assert_eq!(spec.replaces_at_first_commit, expected, "{label}");
        }
    }

    #[test]
    fn schema_and_table_follow_the_options() {
        let crm = StreamName::new(Some("crm"), "users");
        let none = StreamName::new(None, "users");
        for (label, namespace, prefix, table_name, stream, expected) in [
            ("no options", None, "", None, &crm, (None, "users")),
            ("a schema", Some("raw"), "", None, &crm, (Some("raw"), "users")),
            ("the namespace", Some("${SOURCE_NAMESPACE}"), "p_", None, &crm, (Some("crm"), "p_users")),
            ("the namespace as a part", Some("raw_${SOURCE_NAMESPACE}"), "", None, &crm, (Some("raw_crm"), "users")),
            ("no namespace", Some("${SOURCE_NAMESPACE}"), "", None, &none, (None, "users")),
            ("legacy", Some("${LEGACY}"), "p_", None, &crm, (None, "p_crm.users")),
            ("legacy without a namespace", Some("${LEGACY}"), "", None, &none, (None, "users")),
            ("the namespace in the prefix", None, "${SOURCE_NAMESPACE}_", None, &crm, (None, "crm_users")),
            ("a name in the catalog", Some("raw"), "p_", Some("people"), &crm, (Some("raw"), "people")),
            ("an empty name in the catalog", None, "p_", Some(""), &crm, (None, "p_users")),
        ] {
            let namespace = namespace.map(str::to_owned);
            let options = ReadOptions { namespace, table_name_prefix: prefix.to_owned(), ..ReadOptions::default() };
            let schema = schema(options.namespace.as_deref(), stream.namespace.as_deref());
            let (expected_schema, expected_table) = expected;
            assert_eq!(schema.as_deref(), expected_schema, "{label}");
            assert_eq!(table(table_name, stream, &options), expected_table, "{label}");
        }
    }
}
