//! Tests against a real PostgreSQL server, each in its own schema.

mod attempts;
mod cleartext;
mod configs;
mod connections;
mod outages;
mod own_schema;
mod results;
mod retention;
mod running;
mod schemas;
mod stages;
mod support;
mod tasks;
mod timeouts;
mod token_tasks;
