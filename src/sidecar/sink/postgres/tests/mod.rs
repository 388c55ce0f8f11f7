//! The sink against a real server, named by `SYNCCTL_TEST_DATABASE_URL`: a schema per test.

mod binary;
mod columns;
mod crashes;
mod extremes;
mod foreign;
mod generations;
mod locks;
mod modes;
mod naming;
mod refusals;
mod restarts;
mod support;
mod tls;
mod typing;
