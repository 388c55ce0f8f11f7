//! The Airbyte protocol as connectors really speak it: lenient types, documents kept as raw text.
//!
//! Odd, unknown or broken messages are values here, never errors. Numbers do not pass through `f64` and keys keep
//! their order, because nothing that is only passed on is parsed further than needed.

pub mod catalog;
pub mod message;
pub mod state;
