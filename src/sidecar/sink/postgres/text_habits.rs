//! Which text columns of a table hold values in the form of the existing implementation.

use postgres::Client;

use super::column::ExistingColumn;
use super::names::quote;
use super::session::SessionError;
use super::table::Table;
use super::types::ColumnType;

/// How many rows show the form of a column.
const SAMPLE: usize = 1000;
/// A text that looks like a timestamp, and one in the form of the existing implementation.
const TIMESTAMP: &str = "^[12]\\d{3}-\\d\\d-\\d\\d[T ]\\d\\d:\\d\\d:\\d\\d";
const REFORMATTED: &str = "^[12]\\d{3}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d(\\.\\d*[1-9])?Z$";

/// Marks the columns whose values have the form of the existing implementation, as far as a sample of rows shows: there
/// are timestamps, and all of them have it. In a table that this program has created, none has.
pub fn mark_columns(client: &mut Client, table: &Table, columns: &mut [ExistingColumn]) -> Result<(), SessionError> {
    let mut texts: Vec<(&str, &mut bool)> = columns
        .iter_mut()
        .filter_map(|column| match &mut column.kind {
            Some(ColumnType::Text { reformatted, .. }) => Some((column.name.as_str(), reformatted)),
            _ => None,
        })
        .collect();
    if texts.is_empty() || table.is_own() {
        return Ok(());
    }
    let (names, conditions): (Vec<String>, Vec<String>) = texts
        .iter()
        .map(|(name, _)| {
            let name = quote(name);
            let condition = format!("coalesce(bool_or({name} ~ $1) AND bool_and({name} !~ $2 OR {name} ~ $1), false)");
            (format!("{name}::text"), condition)
        })
        .unzip();
    let query = format!(
        "SELECT ARRAY[{}] FROM (SELECT {} FROM {} LIMIT {SAMPLE}) sample",
        conditions.join(", "),
        names.join(", "),
        table.qualified_name()
    );
    let found: Vec<bool> = client.query_one(&query, &[&REFORMATTED, &TIMESTAMP])?.get(0);
    for ((_, reformatted), found) in texts.iter_mut().zip(found) {
        **reformatted = found;
    }
    Ok(())
}
