//! The same task as processes of this machine.

// Nothing runs a task here yet: what finds its connector comes first.
#![allow(dead_code, reason = "used by the tests alone until tasks run on this machine")]

pub mod connector;
