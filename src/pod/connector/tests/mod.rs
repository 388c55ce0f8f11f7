//! Connectors that are really resolved: with this machine's Python and pip, from packages that the tests make.

mod crash;
mod podman;
mod resolve;
mod support;
mod wheel;
