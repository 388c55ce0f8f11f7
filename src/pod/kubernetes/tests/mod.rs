//! Against a real API server, each test in a namespace of its own, and against a scripted one.

mod lease;
mod objects;
mod scenarios;
mod support;
mod watch;
