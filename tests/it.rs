//! The integration tests: the program itself, against a real cluster and a real Postgres. A module per feature.
//!
//! `make test` brings up what they need and runs them; `tests/cluster/README.md` describes how to use a cluster of your own.
//!
//! | variable | what it does |
//! |---|---|
//! | `SYNCCTL_TEST_SKIP_CLUSTER=1` | skips the tests that need a cluster, and prints their names |
//! | `SYNCCTL_TEST_ENGINE=local` | runs tasks on this machine; tests of cluster features are skipped |
//! | `SYNCCTL_TEST_KEEP=1` | keeps the namespace and the schema of each test |
//! | `SYNCCTL_TEST_OUTAGE_SECONDS=60` | how long servers are stopped in the test of outages (12) |
//! | `SYNCCTL_TEST_ROUNDS=200` | rounds of the crash test (20) |
//! | `SYNCCTL_TEST_SEED=1` | seed of the times at which the crash test kills (random by default; printed) |
//! | `SYNCCTL_TEST_VICTIMS=sidecar,pod` | what it kills (everything in `crash/victim.rs`, in turn) |
//! | `SYNCCTL_TEST_FAKER_RECORDS=1000000` | how many users source-faker has (2000) |
//! | `SYNCCTL_TEST_UPDATE=1` | rewrites the golden files |

mod bad_input;
mod bulker;
mod causes;
mod chart;
mod cli;
mod commands;
mod console;
mod crash;
mod deploy;
mod embedded;
mod faker;
mod foreign_controller;
mod foreign_sidecar;
mod hostile;
mod hostile_connector;
mod isolation;
mod kill;
mod layers;
mod lifecycle;
mod local;
mod messages;
mod modes;
mod outages;
mod read;
mod readme;
mod refresh;
mod security;
mod serve;
mod support;
mod task_log;
mod tenants;
mod tls;
mod token;
mod types;
