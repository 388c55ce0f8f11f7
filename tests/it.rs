//! The integration tests: the program itself, against a real cluster and a real Postgres. A module per feature.
//!
//! `make test` brings up what they need and runs them; `tests/cluster/README.md` tells how to use one's own cluster.

mod bad_input;
mod cli;
mod commands;
mod foreign;
mod lifecycle;
mod read;
mod support;
