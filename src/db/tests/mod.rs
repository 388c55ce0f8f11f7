//! Against a real `PostgreSQL`, each test in a schema of its own.

mod connections;
mod outages;
mod results;
mod schemas;
mod support;
mod tasks;
