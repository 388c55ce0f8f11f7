//! The names of what the embedded database has.

/// The user, who owns everything but the rows.
pub const USER: &str = "syncctl";
/// The database.
pub const DATABASE: &str = "syncctl";
/// The schema of results.
pub const SCHEMA: &str = "syncctl";
/// The schema for tables that are neither results nor rows of reads.
pub const OWN_SCHEMA: &str = "syncctl_internal";
/// The schema of rows of reads that name no other one.
pub const DATA_SCHEMA: &str = "data";
/// The role that loads rows.
pub const LOADER: &str = "loader";
