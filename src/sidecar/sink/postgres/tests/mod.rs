//! The sink against the server that `SYNCCTL_TEST_DATABASE_URL` names: a schema per test.

mod airbyte_columns;
mod columns;
mod concurrent_runs;
mod connection_loss;
mod copy_format;
mod counts;
mod crashes;
mod exact_keys;
mod existing_tables;
mod first_commit;
mod generations;
mod inference;
mod limits;
mod locks;
mod modes;
mod names;
mod own_tables;
mod owned_columns;
mod owned_tables;
mod readers;
mod reformatted;
mod replaced_types;
mod support;
mod tls;
mod types;
mod value_matrix;
