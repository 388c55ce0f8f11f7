//! The destination against a scripted server.

mod failures;
mod modes;
mod support;
mod tls;
