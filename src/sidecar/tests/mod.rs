//! The whole sidecar with a connector in a thread, against the Postgres of `SYNCCTL_TEST_DATABASE_URL`.

mod activity;
mod losses;
mod masking;
mod model;
mod outcomes;
mod record_limit;
mod renewed_configs;
mod role;
mod states;
pub(super) mod support;
