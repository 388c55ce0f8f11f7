//! syncctl runs Airbyte source connectors as tasks in Kubernetes Pods.

mod airbyte;
mod cmd;
mod config;
mod contract;
mod db;
mod failure;
mod output;
mod pod;
mod secret;
mod sidecar;
mod task;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Before anything speaks TLS: more than one provider may be compiled in, and then rustls does not choose.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        unreachable!("nothing else installs a provider");
    }
    ExitCode::from(cmd::Cli::parse().run())
}
