//! The Airbyte protocol as connectors actually speak it: lenient types, documents kept as raw text.
//!
//! Malformed and unknown messages are values here, never errors. Numbers do not pass through `f64` and keys keep their
//! order: a document that is only passed on is not parsed further than needed.

pub mod catalog;
pub mod message;
pub mod mixed_line;
pub mod state;
