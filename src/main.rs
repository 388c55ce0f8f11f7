//! syncctl runs Airbyte source connectors as tasks in Kubernetes Pods.

mod airbyte;
mod db;
mod failure;
mod secret;
mod task;

fn main() {}
