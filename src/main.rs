//! syncctl runs Airbyte source connectors as tasks in Kubernetes Pods, or in processes of this machine.

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
mod handover;
mod host_rules;
mod http_client;
mod logging;
mod output;
mod pattern;
mod pod;
mod printable;
mod process;
mod retry;
mod secret;
mod server;
mod shared_folder;
mod sidecar;
mod task;

use std::process::ExitCode;

/// Returns unused memory to the system: a service runs for months and has peaks.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // With several providers compiled in, rustls does not choose one by itself.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        unreachable!("no other provider is installed");
    }
    ExitCode::from(cmd::run_process())
}
