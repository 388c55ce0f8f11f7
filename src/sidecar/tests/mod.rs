//! The sidecar as a whole, beside a connector that is a thread: against the Postgres of `SYNCCTL_TEST_DATABASE_URL`.

mod enough;
mod support;
