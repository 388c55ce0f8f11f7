//! How clients reach the server, and the statements that this layer itself sends.

use std::fmt::Display;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use postgres::Client;

use super::directory::{PORT, ServerDirectory};
use super::names::{DATABASE, SCHEMA, USER};
use super::rows;
use crate::db::{DbError, Target};
use crate::failure::Failure;

/// What needs no encoding in the host of a URL.
const HOST: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(super) fn url(directory: &ServerDirectory, database: &str) -> String {
    let host = directory.socket_directory().display().to_string();
    format!("postgresql://{USER}@{}:{PORT}/{database}", utf8_percent_encode(&host, HOST))
}

fn connect(directory: &ServerDirectory, database: &str) -> Result<Client, DbError> {
    Target::parse(&url(directory, database).into(), "the URL of the embedded database")?.connect("syncctl db")
}

/// Creates the database, its schemas and the role for rows where they are missing.
pub(super) fn prepare(directory: &ServerDirectory) -> Result<(), Failure> {
    let failure = |error: &dyn Display| directory.failure(format!("cannot prepare the embedded database: {error}"));
    let database = connect(directory, DATABASE).or_else(|_| {
        // If this fails, the next connection fails, too.
        connect(directory, "postgres")?.batch_execute(&format!("CREATE DATABASE {DATABASE}")).ok();
        connect(directory, DATABASE)
    });
    let statements = format!("CREATE SCHEMA IF NOT EXISTS {SCHEMA}; {}", rows::setup());
    database.map_err(|error| failure(&error))?.batch_execute(&statements).map_err(|error| failure(&error))
}

/// See [`rows::hand_over`].
pub(super) fn hand_over_rows(directory: &ServerDirectory) -> Result<Vec<String>, Failure> {
    let failure = |error: &dyn Display| {
        directory.failure(format!("cannot prepare the schema of rows in the embedded database: {error}"))
    };
    let mut client = connect(directory, DATABASE).map_err(|error| failure(&error))?;
    rows::hand_over(&mut client).map_err(|error| failure(&error))
}

/// Whether clients are connected, which may be other programs that hold no lock: psql with the URL. False if the server
/// does not answer.
pub(super) fn has_clients(directory: &ServerDirectory) -> bool {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let count = || connect(directory, DATABASE).ok()?.query_one(sql, &[]).ok()?.try_get::<_, i64>(0).ok();
    count().is_some_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::{DATABASE, ServerDirectory, Target, url};
    use crate::db::local_server::ProgramSearch;
    use std::path::Path;

    #[test]
    fn url_names_the_socket_whatever_its_path() {
        for state in ["/var/lib/syncctl", "/home/ä b/50%/it's \"x\":5/@"] {
            let directory = ServerDirectory::new(Path::new(state), ProgramSearch::default());
            let url = url(&directory, DATABASE);
            let target =
                Target::parse(&url.as_str().into(), "the URL").unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(target.address(), format!("database \"syncctl\" at {state}/postgres/socket:5432"));
        }
    }
}
