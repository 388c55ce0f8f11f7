//! How much of a page a row takes: it has to fit into one, however long the values are that are stored elsewhere.
//!
//! Pure. Counts upwards where the order of a table's columns decides.

use super::types::ColumnType;

/// What values may take of a page of 8 KiB beside the headers of page and row, for a table of 1600 columns.
const MOST: usize = 7900;
/// A longer value is stored elsewhere if need be; what then stands for it takes less.
const LONGEST: usize = 24;
/// What is counted in machine words.
const WORD: usize = 8;
/// Any values of so many columns fit.
pub const ALWAYS_FIT: usize = 320;

/// The values of one row so far.
#[derive(Debug)]
pub struct Room {
    /// Values that begin where a word begins.
    words: usize,
    /// Values that begin anywhere.
    others: usize,
    /// Their bytes.
    bytes: usize,
}

impl Room {
    /// A row with so many values that stay in it whatever comes.
    pub fn with_fixed(count: usize) -> Self {
        Self { words: 0, others: count, bytes: count * LONGEST }
    }

    /// Takes one more value of so many bytes, if it fits.
    pub fn take(&mut self, kind: ColumnType, length: usize) -> bool {
        let (words, others, bytes) = match kind {
            ColumnType::Integer { .. }
            | ColumnType::Double
            | ColumnType::Real
            | ColumnType::TimestampTz
            | ColumnType::Timestamp
            | ColumnType::Date => (1, 0, WORD),
            ColumnType::Boolean => (0, 1, 1),
            ColumnType::Text { .. } => (0, 1, LONGEST.min(length + 1)),
            ColumnType::Numeric { .. } | ColumnType::Json { .. } | ColumnType::Uuid => (0, 1, LONGEST),
        };
        let with = Self { words: self.words + words, others: self.others + others, bytes: self.bytes + bytes };
        let fits = with.total() <= MOST;
        if fits {
            *self = with;
        }
        fits
    }

    /// A word after anything else may begin seven bytes late.
    fn total(&self) -> usize {
        self.bytes + (WORD - 1) * self.words.min(self.others + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::{ALWAYS_FIT, Room};
    use crate::sidecar::sink::postgres::types::ColumnType;

    #[test]
    fn rows_are_counted_in_the_worst_order() {
        let fitting = |kinds: &[(ColumnType, usize)]| {
            let mut room = Room::with_fixed(0);
            kinds.iter().cycle().take(3000).take_while(|(kind, length)| room.take(*kind, *length)).count()
        };
        for (label, kinds, expected) in [
            ("words need no filling between them", &[(ColumnType::BIGINT, 8)][..], 986),
            ("short text", &[(ColumnType::TEXT, 3)], 1975),
            ("long text", &[(ColumnType::TEXT, 10_000)], 329),
            ("text and words in turn", &[(ColumnType::TEXT, 1), (ColumnType::BIGINT, 8)], 929),
            ("documents", &[(ColumnType::JSONB, 2)], 329),
        ] {
            let count = fitting(kinds);
            assert_eq!(count, expected, "{label}");
            assert!(count >= ALWAYS_FIT, "{label}");
        }
    }
}
