//! syncctl runs Airbyte source connectors as tasks in Kubernetes Pods.

mod airbyte;
#[cfg(test)]
mod captured_logs;
mod cmd;
mod config;
mod contract;
mod controller;
mod db;
mod env;
mod failure;
mod output;
mod pod;
mod process;
mod retry;
mod secret;
mod server;
mod sidecar;
mod task;

use std::process::ExitCode;

use clap::Parser;

/// Gives memory back that is not used any more: a service that runs for months has its peaks.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Before anything speaks TLS: more than one provider may be compiled in, and then rustls does not choose.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        unreachable!("nothing else installs a provider");
    }
    ExitCode::from(cmd::Cli::parse().run())
}
