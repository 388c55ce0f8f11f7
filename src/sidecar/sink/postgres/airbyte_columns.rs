//! The columns of Airbyte's destination: which of them a row has, and their values.
//!
//! Tables that Airbyte has made have them, some without nulls; `airbyteColumns` of the configuration adds them to new
//! tables. The column of the generation is in `generation`.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::changes::Change;
use super::column::Column;
use super::types::ColumnType;
use super::value;

/// The column of an id of the row.
pub const RAW_ID: &str = "_airbyte_raw_id";
/// The column of the time when the source emitted the record.
pub const EXTRACTED_AT: &str = "_airbyte_extracted_at";
/// The column of the id of the sync, and of the changes of values.
pub const META: &str = "_airbyte_meta";

/// The columns of a layout.
#[derive(Debug, Clone, Copy, Default)]
pub struct AirbyteColumns {
    /// That of [`RAW_ID`].
    pub raw_id: Option<usize>,
    /// That of [`EXTRACTED_AT`].
    pub extracted_at: Option<usize>,
    /// That of [`META`].
    pub meta: Option<usize>,
}

impl AirbyteColumns {
    /// Whether there is one.
    pub fn any(self) -> bool {
        self.raw_id.is_some() || self.extracted_at.is_some() || self.meta.is_some()
    }
}

/// The type of a column in a new table.
pub fn new_type(name: &str) -> ColumnType {
    match name {
        EXTRACTED_AT => ColumnType::TIMESTAMPTZ,
        META => ColumnType::JSONB,
        _ => ColumnType::TEXT,
    }
}

/// Whether the values of a column fit this type of an existing one.
pub fn fits(name: &str, kind: ColumnType) -> bool {
    match name {
        EXTRACTED_AT => matches!(kind, ColumnType::TimestampTz { .. } | ColumnType::Timestamp { .. }),
        META => matches!(kind, ColumnType::Json { .. } | ColumnType::Text { max_chars: None, .. }),
        _ => match kind {
            ColumnType::Text { max_chars, .. } => max_chars.is_none_or(|max| max >= 36),
            kind => kind == ColumnType::Uuid,
        },
    }
}

/// Appends an id of the row.
pub fn push_raw_id(kind: ColumnType, out: &mut Vec<u8>) {
    value::encode(kind, &format!("\"{}\"", Uuid::new_v4()), out);
}

/// The time at which the source emitted a record; now if it did not say.
pub fn extracted_at(emitted_at: Option<i64>) -> Timestamp {
    emitted_at.and_then(|at| Timestamp::from_millisecond(at).ok()).unwrap_or_else(Timestamp::now)
}

/// The document of [`META`] for a record with this `meta`, whose values were changed like this.
pub fn meta(sync_id: i64, source: Option<&str>, changes: &[Change], columns: &[Column]) -> String {
    #[derive(Deserialize)]
    struct SourceMeta<'m> {
        #[serde(borrow, default)]
        changes: Option<Vec<&'m RawValue>>,
    }
    let of_source = source.and_then(|meta| serde_json::from_str::<SourceMeta<'_>>(meta).ok()?.changes);
    let of_source = of_source.unwrap_or_default().into_iter().map(|change| change.get().to_owned());
    let own = changes.iter().map(|change| {
        let field = serde_json::Value::from(columns[change.column].name.as_str());
        format!(r#"{{"field":{field},"change":"{}","reason":"{}"}}"#, change.kind, change.reason)
    });
    let changes: Vec<String> = of_source.chain(own).collect();
    format!(r#"{{"sync_id":{sync_id},"changes":[{}]}}"#, changes.join(","))
}
