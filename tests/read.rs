//! read: rows in Postgres, states, statuses, logs.
