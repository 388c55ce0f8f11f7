//! A database of one test, on the tests' server: whose sessions and locks there are is clear without asking.

use std::sync::{Mutex, PoisonError};

use postgres::types::ToSql;
use postgres::{Client, NoTls, Row};
use serde_json::{Value, json};

use super::{Setup, keep, unique};

/// The database, empty when made.
pub struct Warehouse {
    pub name: String,
    setup: &'static Setup,
    /// A connection for questions; made again when the server has ended it.
    client: Mutex<Option<Client>>,
}

impl Warehouse {
    /// Creates it.
    pub fn create(setup: &'static Setup) -> Self {
        let warehouse = Self { name: unique("it_"), setup, client: Mutex::default() };
        warehouse.of_server(&format!("CREATE DATABASE {}", warehouse.name));
        warehouse
    }

    /// Runs a statement in the server's own database.
    fn of_server(&self, statement: &str) {
        let mut client = Client::connect(&self.setup.database_url, NoTls).expect("the tests' Postgres answers");
        client.batch_execute(statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    /// A URL of the server, with this database and a schema in it.
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

    /// Rows of a query, or why there is no answer: the server may just be recovering.
    pub fn query(&self, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, postgres::Error> {
        self.with(|client| client.query(query, parameters))
    }

    fn with<T>(&self, ask: impl FnOnce(&mut Client) -> Result<T, postgres::Error>) -> Result<T, postgres::Error> {
        let mut kept = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let mut client = match kept.take() {
            Some(client) if !client.is_closed() => client,
            _ => {
                let mut url = url::Url::parse(&self.setup.database_url).expect("a URL");
                url.set_path(&self.name);
                Client::connect(url.as_str(), NoTls)?
            }
        };
        let answer = ask(&mut client);
        *kept = Some(client).filter(|_| answer.is_ok());
        answer
    }

    /// The first column of each row, which has to be text.
    #[track_caller]
    pub fn texts(&self, query: &str) -> Vec<String> {
        let rows = self.query(query, &[]).unwrap_or_else(|error| panic!("{query}: {error}"));
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// The one number of a query.
    #[track_caller]
    pub fn number(&self, query: &str) -> i64 {
        let rows = self.query(query, &[]).unwrap_or_else(|error| panic!("{query}: {error}"));
        assert_eq!(rows.len(), 1, "{query}");
        rows[0].get(0)
    }

    /// A `destinationConfig` that loads into a schema of it, as Pods reach it.
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

    /// Process ids of the program's sessions of this kind: `syncctl-sidecar` loads rows, `syncctl read` stores results.
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
            // A panic here, while one is on its way, would hide it.
            assert!(dropped.is_ok() || std::thread::panicking(), "dropping {}: {dropped:?}", self.name);
        }
    }
}
