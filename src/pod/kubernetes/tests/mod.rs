//! Against a real API server, each test in a namespace of its own; and against one that only speaks a scenario.

mod lease;
mod objects;
mod scenarios;
mod status;
mod support;
mod watch;
