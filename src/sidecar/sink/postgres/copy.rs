//! COPY in binary format: chunks of encoded rows, and the statement that loads them.
//!
//! A row is its number of fields (two bytes) and the fields; a field is its length (four bytes) and the value as the
//! type's `recv` function reads it. The server needs about half the time that it needs for the text format.

use std::io::Write as _;

use postgres::Client;

/// A field that is null: the length -1.
pub const NULL: [u8; 4] = [0xff; 4];
/// Precedes the first row: signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Follows the last row.
const TRAILER: &[u8] = &[0xff; 2];
/// Bytes of the number of fields.
const COUNT: usize = 2;
/// Bytes per write to the connection: enough to fill a socket, and small compared with a chunk.
const WRITE_SIZE: usize = 64 * 1024;

/// Encoded rows.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Rows in COPY's binary format.
    pub bytes: Vec<u8>,
    /// The number of rows.
    pub rows: u64,
    /// The number of columns of each row, not counting the sequence column.
    pub columns: usize,
}

impl Chunk {
    /// Appends null fields to all rows, up to this number of columns.
    pub fn widen(&mut self, columns: usize) {
        let added = columns - self.columns;
        self.columns = columns;
        if added > 0 && self.rows > 0 {
            self.bytes = widen(&self.bytes, self.rows, added);
        }
    }
}

/// Appends the start of a row.
pub fn begin_row(fields: usize, out: &mut Vec<u8>) {
    // Tables have at most 1600 columns.
    out.extend_from_slice(&u16::try_from(fields).unwrap_or(u16::MAX).to_be_bytes());
}

/// Appends a `bigint` field.
pub fn push_bigint(number: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0, 0, 8]);
    out.extend_from_slice(&number.to_be_bytes());
}

/// Returns the rows with `added` null fields appended to each.
pub fn widen(rows: &[u8], count: u64, added: usize) -> Vec<u8> {
    let count = usize::try_from(count).unwrap_or(0);
    let mut widened = Vec::with_capacity(rows.len() + count * added * NULL.len());
    let mut rest = rows;
    while let Some((fields, length)) = measure(rest) {
        let (row, after) = rest.split_at(length);
        begin_row(fields + added, &mut widened);
        widened.extend_from_slice(&row[COUNT..]);
        widened.resize(widened.len() + added * NULL.len(), NULL[0]);
        rest = after;
    }
    widened
}

/// Returns the rows with this field of each converted, unless it is null.
pub fn convert_field(rows: &[u8], index: usize, convert: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut converted = Vec::with_capacity(rows.len());
    let mut rest = rows;
    while let Some((fields, length)) = measure(rest) {
        let (row, after) = rest.split_at(length);
        let mut at = COUNT;
        converted.extend_from_slice(&row[..COUNT]);
        for field in 0..fields {
            let size = row.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or(NULL);
            let end = at + NULL.len() + usize::try_from(i32::from_be_bytes(size)).unwrap_or(0);
            if field == index && size != NULL {
                let value = convert(&row[at + NULL.len()..end]);
                // Converted values are short.
                converted.extend_from_slice(&i32::try_from(value.len()).unwrap_or(0).to_be_bytes());
                converted.extend_from_slice(&value);
            } else {
                converted.extend_from_slice(&row[at..end]);
            }
            at = end;
        }
        rest = after;
    }
    converted
}

/// The number of fields and the length in bytes of the first row.
fn measure(rows: &[u8]) -> Option<(usize, usize)> {
    let fields = usize::from(u16::from_be_bytes(*rows.first_chunk()?));
    let mut at = COUNT;
    for _ in 0..fields {
        let length = i32::from_be_bytes(*rows.get(at..)?.first_chunk()?);
        at += NULL.len() + usize::try_from(length).unwrap_or(0);
    }
    (at <= rows.len()).then_some((fields, at))
}

/// Loads rows with a `COPY … FROM STDIN (FORMAT binary)` statement.
pub fn copy_in(client: &mut Client, statement: &str, rows: &[u8]) -> Result<(), postgres::Error> {
    let mut writer = client.copy_in(statement)?;
    for piece in [HEADER].into_iter().chain(rows.chunks(WRITE_SIZE)).chain([TRAILER]) {
        if writer.write_all(piece).is_err() {
            // `finish` returns the cause.
            break;
        }
    }
    writer.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{NULL, begin_row, widen};

    #[test]
    fn widen_appends_nulls_to_each_row() {
        let field = |text: &[u8]| [&[0, 0, 0, u8::try_from(text.len()).expect("short")], text].concat();
        let mut rows = Vec::new();
        begin_row(2, &mut rows);
        rows.extend([field(b"\xff\xff"), NULL.to_vec()].concat());
        begin_row(0, &mut rows);
        begin_row(1, &mut rows);
        rows.extend(field(b""));
        let mut expected = vec![0, 4];
        expected.extend([field(b"\xff\xff"), NULL.repeat(3)].concat());
        expected.extend([&[0, 2][..], &NULL.repeat(2), &[0, 3], &field(b""), &NULL.repeat(2)].concat());
        assert_eq!(widen(&rows, 3, 2), expected);
    }
}
