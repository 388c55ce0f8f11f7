//! The ConfiguredAirbyteCatalog: the input of `read`.

use serde::Deserialize;
use serde_json::Value;

use super::message::StreamName;

/// The configured catalog, as far as the program looks into it.
#[derive(Debug, Clone, Deserialize)]
pub struct ConfiguredCatalog {
    /// In the caller's order, which is the order of the per-stream map.
    pub streams: Vec<ConfiguredStream>,
}

/// One selected stream.
#[derive(Debug, Clone, Deserialize)]
pub struct ConfiguredStream {
    /// The stream as `discover` printed it.
    pub stream: Stream,
    /// How the source reads it.
    #[serde(default)]
    pub sync_mode: SyncMode,
    /// How the destination keeps it; absent in hand-made catalogs.
    #[serde(default)]
    pub destination_sync_mode: Option<DestinationSyncMode>,
    /// Path of the cursor, for incremental reads.
    #[serde(default, deserialize_with = "or_default")]
    pub cursor_field: Vec<String>,
    /// Paths of the key's parts, for merging.
    #[serde(default, deserialize_with = "or_default")]
    pub primary_key: Vec<Vec<String>>,
}

/// A stream as `discover` printed it.
#[derive(Debug, Clone, Deserialize)]
pub struct Stream {
    /// As the source spells it.
    pub name: String,
    /// The source's schema or database, if it has such.
    #[serde(default)]
    pub namespace: Option<String>,
    /// JSON Schema of a row.
    #[serde(default)]
    pub json_schema: Value,
    /// The key that the source knows.
    #[serde(default, deserialize_with = "or_default")]
    pub source_defined_primary_key: Vec<Vec<String>>,
    /// The cursor that the source proposes.
    #[serde(default, deserialize_with = "or_default")]
    pub default_cursor_field: Vec<String>,
    /// The table's name, where the caller wants another one than the stream's (an addition of Jitsu's).
    #[serde(default)]
    pub table_name: Option<String>,
}

/// How the source reads a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncMode {
    /// Everything, each time.
    #[default]
    FullRefresh,
    /// What is new since the state.
    Incremental,
}

/// How the destination keeps a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationSyncMode {
    /// Add rows.
    Append,
    /// Replace the table.
    Overwrite,
    /// Merge by primary key.
    AppendDedup,
    /// Merge by primary key.
    Update,
    /// Merge by primary key; deleted rows are marked by the source.
    SoftDelete,
    /// Replace the table, then merge by primary key.
    OverwriteDedup,
}

/// `null` is what some platforms write for an empty list.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl ConfiguredStream {
    /// The stream's identity.
    pub fn name(&self) -> StreamName {
        StreamName::new(self.stream.namespace.as_deref(), &self.stream.name)
    }
}

impl ConfiguredCatalog {
    /// Checks what the types cannot: at least one stream, none twice.
    pub fn validate(&self) -> Result<(), String> {
        if self.streams.is_empty() {
            return Err("the catalog selects no streams: expected at least one entry in \"streams\"".to_owned());
        }
        let mut seen = std::collections::HashSet::new();
        for stream in &self.streams {
            // States and reports are kept by this key.
            if !seen.insert(stream.name().key()) {
                return Err(format!("the catalog selects stream {:?} twice", stream.name().key()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{ConfiguredCatalog, DestinationSyncMode, SyncMode};

    #[test]
    fn nulls_and_unknown_fields_are_accepted() {
        let catalog: ConfiguredCatalog = serde_json::from_str(
            r#"{"streams":[{"stream":{"name":"s","namespace":null,"json_schema":{},"source_defined_primary_key":null,"new":1},
                "sync_mode":"incremental","destination_sync_mode":"append_dedup","cursor_field":null,"primary_key":[["id"]]}]}"#,
        )
        .expect("a catalog");
        let stream = &catalog.streams[0];
        assert_eq!(
            (stream.sync_mode, stream.destination_sync_mode),
            (SyncMode::Incremental, Some(DestinationSyncMode::AppendDedup))
        );
        assert_eq!(catalog.validate(), Ok(()));
    }

    #[test]
    fn a_stream_that_is_there_twice_is_named() {
        let twice = r#"{"streams":[{"stream":{"name":"s","namespace":""}},{"stream":{"name":"s"}}]}"#;
        let catalog: ConfiguredCatalog = serde_json::from_str(twice).expect("a catalog");
        assert!(catalog.validate().is_err_and(|error| error.contains("\"s\" twice")));
    }
}
