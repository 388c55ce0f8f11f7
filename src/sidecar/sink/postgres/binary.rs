//! COPY's binary format: what stands around rows and around their fields.
//!
//! A row is the number of its fields, in two bytes, and the fields; a field is its length, in four bytes, and the
//! value as the type's `recv` function reads it. The server takes about half the time over it that it needs for text.

/// What goes before the first row: the signature, no flags, no extension.
pub const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What goes after the last row.
pub const TRAILER: &[u8] = &[0xff; 2];
/// The field of a null: the length -1.
pub const NULL: [u8; 4] = [0xff; 4];
/// The bytes of a row's number of fields.
const COUNT: usize = 2;

/// Writes what a row of so many fields begins with.
pub fn begin_row(fields: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&count(fields));
}

/// Writes the field of a number in a `bigint`.
pub fn push_bigint(number: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0, 0, 8]);
    out.extend_from_slice(&number.to_be_bytes());
}

/// The rows, so many of them, with more fields at their ends, all of which are null.
pub fn widen(rows: &[u8], number: u64, added: usize) -> Vec<u8> {
    let number = usize::try_from(number).unwrap_or(0);
    let mut widened = Vec::with_capacity(rows.len() + number * added * NULL.len());
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

/// A table has 1600 columns at most, and a row no more fields than the table has columns.
fn count(fields: usize) -> [u8; COUNT] {
    u16::try_from(fields).unwrap_or(u16::MAX).to_be_bytes()
}

/// How many fields the first row has, and how many bytes it takes.
fn measure(rows: &[u8]) -> Option<(usize, usize)> {
    let fields = usize::from(u16::from_be_bytes(*rows.first_chunk()?));
    let mut at = COUNT;
    for _ in 0..fields {
        let length = i32::from_be_bytes(*rows.get(at..)?.first_chunk()?);
        at += NULL.len() + usize::try_from(length).unwrap_or(0);
    }
    (at <= rows.len()).then_some((fields, at))
}

#[cfg(test)]
mod tests {
    use super::{NULL, begin_row, widen};

    #[test]
    fn rows_get_more_fields() {
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
