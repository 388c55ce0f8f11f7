//! The sink against a real server, named by `SYNCCTL_TEST_DATABASE_URL`: a schema per test.

mod columns;
mod crashes;
mod generations;
mod locks;
mod modes;
mod restarts;
mod support;
mod tls;
