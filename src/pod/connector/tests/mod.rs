//! Connectors that are really found: with this machine's Python and pip, from packages that the tests make.

mod finding;
mod killing;
mod podman;
mod support;
mod wheel;
