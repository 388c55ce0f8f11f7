//! How many values fit into a row.

use super::types::ColumnType;

/// How much of a page the values of one row take: a row must fit into a page, however long its TOASTed values are.
///
/// Assumes the order of columns that wastes the most space for alignment.
#[derive(Debug)]
pub struct RowBudget {
    /// Values that are aligned to a word.
    aligned: usize,
    /// Values without alignment.
    unaligned: usize,
    /// Bytes of all values.
    bytes: usize,
}

impl RowBudget {
    /// Any values of this many columns fit.
    pub const ALWAYS_FITS: usize = 320;
    /// Bytes for values on a page of 8 KiB, without the headers of the page and of a row with 1600 columns.
    const MAX_BYTES: usize = 7900;
    /// Longer values can be TOASTed; the pointer that replaces them is not longer.
    const MAX_INLINE: usize = 24;
    /// Alignment of fixed-size types, in bytes.
    const WORD: usize = 8;

    /// The budget of a row with this many required values.
    pub fn new(required: usize) -> Self {
        Self { aligned: 0, unaligned: required, bytes: required * Self::MAX_INLINE }
    }

    /// Adds a value of `length` bytes, if it fits.
    pub fn take(&mut self, kind: ColumnType, length: usize) -> bool {
        let (aligned, bytes) = match kind {
            ColumnType::Integer { .. }
            | ColumnType::Double
            | ColumnType::Real
            | ColumnType::TimestampTz { .. }
            | ColumnType::Timestamp { .. }
            | ColumnType::Time { .. }
            | ColumnType::Date => (1, Self::WORD),
            ColumnType::TimeTz { .. } => (1, 2 * Self::WORD),
            ColumnType::Boolean => (0, 1),
            ColumnType::Text { padded: false, .. } => (0, Self::MAX_INLINE.min(length + 1)),
            ColumnType::Text { .. } | ColumnType::Numeric { .. } | ColumnType::Json { .. } | ColumnType::Uuid => {
                (0, Self::MAX_INLINE)
            }
        };
        let with_value = Self {
            aligned: self.aligned + aligned,
            unaligned: self.unaligned + 1 - aligned,
            bytes: self.bytes + bytes,
        };
        let fits = with_value.total() <= Self::MAX_BYTES;
        if fits {
            *self = with_value;
        }
        fits
    }

    /// An aligned value after an unaligned one may need seven bytes of padding.
    fn total(&self) -> usize {
        self.bytes + (Self::WORD - 1) * self.aligned.min(self.unaligned + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::{ColumnType, RowBudget};

    #[test]
    fn row_budget_assumes_the_worst_alignment() {
        let fitting = |kinds: &[(ColumnType, usize)]| {
            let mut budget = RowBudget::new(0);
            kinds.iter().cycle().take(3000).take_while(|(kind, length)| budget.take(*kind, *length)).count()
        };
        for (label, kinds, expected) in [
            ("words need no padding between them", &[(ColumnType::BIGINT, 8)][..], 986),
            ("short text", &[(ColumnType::TEXT, 3)], 1975),
            ("long text", &[(ColumnType::TEXT, 10_000)], 329),
            ("alternating text and words", &[(ColumnType::TEXT, 1), (ColumnType::BIGINT, 8)], 929),
            ("documents", &[(ColumnType::JSONB, 2)], 329),
        ] {
            let count = fitting(kinds);
            assert_eq!(count, expected, "{label}");
            assert!(count >= RowBudget::ALWAYS_FITS, "{label}");
        }
    }
}
