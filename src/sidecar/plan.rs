//! What each stream is to the sink: the configured catalog and the options of the read, put together. Pure.

use crate::airbyte::catalog::{ConfiguredStream, DestinationSyncMode, SyncMode};
use crate::airbyte::message::StreamName;
use crate::airbyte::state::Progress;
use crate::sidecar::sink::{Generation, StreamSpec, WriteMode};
use crate::task::ReadOptions;

/// The configured catalog and the options, put together.
pub fn spec(configured: &ConfiguredStream, options: &ReadOptions, progress: &Progress) -> StreamSpec {
    let stream = &configured.stream;
    let name = configured.name();
    // Rows of one key are one row only where somebody asks for it: elsewhere all of them stay.
    let is_unique = options.deduplicate && configured.destination_sync_mode != Some(DestinationSyncMode::Append);
    let primary_key = match (is_unique, configured.primary_key.is_empty()) {
        (false, _) => Vec::new(),
        (true, false) => configured.primary_key.clone(),
        (true, true) => stream.source_defined_primary_key.clone(),
    };
    let cursor = if configured.cursor_field.is_empty() {
        stream.default_cursor_field.clone()
    } else {
        configured.cursor_field.clone()
    };
    StreamSpec {
        schema: schema(options.namespace.as_deref(), name.namespace.as_deref()),
        table: table(stream.table_name.as_deref(), &name, options),
        json_schema: stream.json_schema.clone(),
        mode: write_mode(configured, options, !primary_key.is_empty()),
        primary_key,
        cursor,
        generation: generation(configured, options, progress),
        to_same_case: options.to_same_case,
        add_meta: options.add_meta,
        name,
    }
}

fn generation(configured: &ConfiguredStream, options: &ReadOptions, progress: &Progress) -> Generation {
    // Whoever takes the catalog in has checked them.
    let (id, minimum) = configured.generations().unwrap_or_default();
    let resumable = configured.sync_mode == SyncMode::Incremental && !options.full_sync;
    Generation { id, minimum, resumable, resumes: resumable && progress.covers(&configured.name()) }
}

/// Stands for the stream's own namespace.
const SOURCE_NAMESPACE: &str = "${SOURCE_NAMESPACE}";
/// As the option `namespace`: everything goes into the default schema, and the namespace into the table's name.
const LEGACY: &str = "${LEGACY}";

/// The schema of a stream; `None` is the destination's default.
fn schema(wanted: Option<&str>, own: Option<&str>) -> Option<String> {
    let wanted = wanted.filter(|wanted| !wanted.contains(LEGACY))?;
    let schema = wanted.replace(SOURCE_NAMESPACE, own.unwrap_or_default()).trim().to_owned();
    Some(schema).filter(|schema| !schema.is_empty())
}

/// The table of a stream. A name in the catalog is the caller's last word; else it is prefix and name, as the existing
/// implementation puts them together.
fn table(wanted: Option<&str>, stream: &StreamName, options: &ReadOptions) -> String {
    if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) {
        return wanted.to_owned();
    }
    let prefix = options.table_name_prefix.replace(SOURCE_NAMESPACE, stream.namespace.as_deref().unwrap_or_default());
    let legacy = options.namespace.as_deref().is_some_and(|namespace| namespace.contains(LEGACY));
    let name = if legacy { stream.key() } else { stream.name.clone() };
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
    // Overwriting with only what is new would lose what is not: then it is merged, if it can be.
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
    fn a_key_counts_only_where_rows_are_deduplicated() {
        let all = ReadOptions::default();
        let apart = ReadOptions { deduplicate: false, ..ReadOptions::default() };
        let anew = ReadOptions { full_sync: true, ..ReadOptions::default() };
        for (label, write, options, expected) in [
            ("overwrite", "overwrite", &all, Some(WriteMode::Replace)),
            ("overwrite, nothing deduplicated", "overwrite", &apart, None),
            ("append_dedup", "append_dedup", &all, Some(WriteMode::Merge)),
            ("append_dedup, nothing deduplicated", "append_dedup", &apart, None),
            ("append", "append", &all, None),
            ("append, full sync", "append", &anew, None),
            ("append_dedup, full sync", "append_dedup", &anew, Some(WriteMode::Replace)),
        ] {
            let configured = serde_json::from_value(serde_json::json!({
                "stream": {"name": "s", "source_defined_primary_key": [["id"]]}, "sync_mode": "full_refresh",
                "destination_sync_mode": write,
            }))
            .expect("a stream");
            let spec = super::spec(&configured, options, &Progress::default());
            assert_eq!(Some(spec.mode).filter(|_| !spec.primary_key.is_empty()), expected, "{label}");
        }
    }

    #[test]
    fn tables_are_placed_and_named_as_the_options_say() {
        let own = StreamName::new(Some("crm"), "users");
        let none = StreamName::new(None, "users");
        for (label, namespace, prefix, wanted, stream, expected) in [
            ("nothing asked for", None, "", None, &own, (None, "users")),
            ("a schema", Some("raw"), "", None, &own, (Some("raw"), "users")),
            ("the stream's own", Some("${SOURCE_NAMESPACE}"), "p_", None, &own, (Some("crm"), "p_users")),
            ("a part of it", Some("raw_${SOURCE_NAMESPACE}"), "", None, &own, (Some("raw_crm"), "users")),
            ("its own, and it has none", Some("${SOURCE_NAMESPACE}"), "", None, &none, (None, "users")),
            ("legacy", Some("${LEGACY}"), "p_", None, &own, (None, "p_crm.users")),
            ("legacy without a namespace", Some("${LEGACY}"), "", None, &none, (None, "users")),
            ("its own in the prefix", None, "${SOURCE_NAMESPACE}_", None, &own, (None, "crm_users")),
            ("a name in the catalog", Some("raw"), "p_", Some("people"), &own, (Some("raw"), "people")),
            ("an empty name in the catalog", None, "p_", Some(""), &own, (None, "p_users")),
        ] {
            let namespace = namespace.map(str::to_owned);
            let options = ReadOptions { namespace, table_name_prefix: prefix.to_owned(), ..ReadOptions::default() };
            let schema = schema(options.namespace.as_deref(), stream.namespace.as_deref());
            let (expected_schema, expected_table) = expected;
            assert_eq!(schema.as_deref(), expected_schema, "{label}");
            assert_eq!(table(wanted, stream, &options), expected_table, "{label}");
        }
    }
}
