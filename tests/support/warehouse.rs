//! A database for one test on the tests' server, so that all of its sessions and locks belong to the test.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use postgres::types::ToSql;
use postgres::{Client, NoTls, Row};
use serde_json::{Value, json};

use super::{Setup, keep, unique};

/// The limit of a round trip to the server.
const VALIDATION_TIMEOUT: Duration = Duration::from_mins(1);

/// The database, which is empty at first.
pub struct Warehouse {
    pub name: String,
    setup: &'static Setup,
    /// A connection for queries, replaced after an error.
    client: Mutex<Option<Client>>,
}

impl Warehouse {
    /// Creates the database.
    pub fn create(setup: &'static Setup) -> Self {
        let warehouse = Self { name: unique("it_"), setup, client: Mutex::default() };
        warehouse.execute_on_server(&format!("CREATE DATABASE {}", warehouse.name));
        warehouse
    }

    /// Runs a statement in the server's default database.
    fn execute_on_server(&self, statement: &str) {
        let mut client = Client::connect(&self.setup.database_url, NoTls).expect("a connection to the tests' Postgres");
        client.batch_execute(statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    /// The URL of the server changed to this database and a schema in it.
    pub fn within(&self, url: &str, schema: &str) -> String {
        let mut url = url::Url::parse(url).expect("a URL");
        url.set_path(&self.name);
        url.query_pairs_mut().append_pair("search_path", schema);
        url.into()
    }

    /// Runs statements.
    pub fn execute(&self, statements: &str) {
        self.with(|client| client.batch_execute(statements)).unwrap_or_else(|error| panic!("{statements}: {error}"));
    }

    /// Rows of a query. Fails while the server is recovering.
    pub fn query(&self, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, postgres::Error> {
        self.with(|client| client.query(query, parameters))
    }

    fn with<T>(&self, run: impl FnOnce(&mut Client) -> Result<T, postgres::Error>) -> Result<T, postgres::Error> {
        let mut slot = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        // A server that was killed leaves a connection that only a round trip recognizes as closed.
        let usable = slot.take().and_then(|mut client| client.is_valid(VALIDATION_TIMEOUT).is_ok().then_some(client));
        let mut client = if let Some(client) = usable {
            client
        } else {
            let mut url = url::Url::parse(&self.setup.database_url).expect("a URL");
            url.set_path(&self.name);
            Client::connect(url.as_str(), NoTls)?
        };
        let result = run(&mut client);
        *slot = Some(client).filter(|_| result.is_ok());
        result
    }

    /// The first column of each row, which must be text.
    #[track_caller]
    pub fn texts(&self, query: &str) -> Vec<String> {
        let rows = self.query(query, &[]).unwrap_or_else(|error| panic!("{query}: {error}"));
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// The only value of a query, which must be a bigint.
    #[track_caller]
    pub fn number(&self, query: &str) -> i64 {
        let rows = self.query(query, &[]).unwrap_or_else(|error| panic!("{query}: {error}"));
        assert_eq!(rows.len(), 1, "{query}");
        rows[0].get(0)
    }

    /// A `destinationConfig` for a schema of the database, with the address that Pods use.
    pub fn destination(&self, schema: &str) -> Value {
        let url = url::Url::parse(&self.setup.sidecar_database_url).expect("a URL");
        json!({
            "destinationType": "postgres",
            "host": url.host_str().expect("a host"),
            "port": url.port().unwrap_or(5432),
            "database": self.name,
            "username": url.username(),
            "password": url.password().unwrap_or_default(),
            "defaultSchema": schema,
            "sslMode": "disable",
        })
    }

    /// Process ids of the sessions with this `application_name`: `syncctl-sidecar` loads rows, `syncctl read` stores results.
    pub fn sessions(&self, application: &str) -> Vec<i32> {
        let query = "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND application_name = $2 ORDER BY pid";
        let found = self.query(query, &[&self.name, &application]).unwrap_or_default();
        found.iter().map(|row| row.get(0)).collect()
    }
}

impl Drop for Warehouse {
    fn drop(&mut self) {
        if !keep() {
            let dropped = Client::connect(&self.setup.database_url, NoTls)
                .and_then(|mut client| client.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name)));
            // A second panic would hide the first one.
            assert!(dropped.is_ok() || std::thread::panicking(), "dropping {}: {dropped:?}", self.name);
        }
    }
}
