//! syncctl runs Airbyte source connectors as tasks in Kubernetes Pods.

mod airbyte;
mod db;
mod failure;
mod secret;
mod sidecar;
mod task;

fn main() {}
