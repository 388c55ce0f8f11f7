//! Against a real `PostgreSQL`, each test in a schema of its own.

mod configs;
mod connections;
mod outages;
mod patience;
mod results;
mod retention;
mod running;
mod schemas;
mod support;
mod tasks;
