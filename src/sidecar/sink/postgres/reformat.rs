//! The form in which the existing implementation stored values in text columns: timestamps in UTC without trailing zeros,
//! and numbers without them.
//!
//! A table that it made goes on to get this form, because values of keys are compared as texts (see `text_habits`). Other
//! tables get the texts as the source sent them.

use super::number::{self, Fit};
use super::time;

/// Replaces the text from `start` on by the form of a timestamp, if it is one.
pub fn timestamp(start: usize, out: &mut Vec<u8>) {
    if let Some(reformatted) = str::from_utf8(&out[start..]).ok().and_then(time::reformatted) {
        out.truncate(start);
        out.extend_from_slice(reformatted.as_bytes());
    }
}

/// Appends a number without trailing zeros; as it is if a double cannot hold it.
pub fn push_number(raw: &str, out: &mut Vec<u8>) {
    match number::double(raw) {
        Some((double, Fit::Exact)) if raw.contains(['.', 'e', 'E']) => {
            out.extend_from_slice(double.to_string().as_bytes());
        }
        _ => out.extend_from_slice(raw.as_bytes()),
    }
}
