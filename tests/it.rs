//! The integration tests: the program itself, against a real cluster and a real Postgres. A module per feature.
//!
//! `make test` brings up what they need and runs them; `tests/cluster/README.md` tells how to use one's own cluster.
//!
//! | variable | what it does |
//! |---|---|
//! | `SYNCCTL_TEST_SKIP_CLUSTER=1` | skips what needs a cluster, and says so |
//! | `SYNCCTL_TEST_ENGINE=local` | runs tasks on this machine; what only a cluster has is passed over |
//! | `SYNCCTL_TEST_KEEP=1` | keeps the namespace and the schema of each test |
//! | `SYNCCTL_TEST_OUTAGE_SECONDS=60` | how long servers are away in the test of outages (12) |
//! | `SYNCCTL_TEST_ROUNDS=200` | rounds of the crash test (20) |
//! | `SYNCCTL_TEST_SEED=1` | the numbers that decide when the crash test kills (others each time; they are told) |
//! | `SYNCCTL_TEST_VICTIMS=sidecar,pod` | what it kills (all that `crash/victim.rs` knows, in turn) |
//! | `SYNCCTL_TEST_FAKER_RECORDS=1000000` | how many users source-faker has (2000) |
//! | `SYNCCTL_TEST_UPDATE=1` | writes the golden files anew |

mod bad_input;
mod bulker;
mod cli;
mod commands;
mod crash;
mod deploy;
mod embedded;
mod faker;
mod foreign;
mod hostile;
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
mod serve;
mod support;
mod token;
mod types;
