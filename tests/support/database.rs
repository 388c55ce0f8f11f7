//! One schema per test, and queries on it.

use postgres::{Client, NoTls, Row};

use super::{Setup, unique};

/// The schema of one test, with both the tables of results and those of the destination.
pub struct Schema {
    pub name: String,
    url: String,
}

impl Schema {
    pub fn create(setup: &Setup) -> Self {
        let schema = Self { name: unique("it_"), url: setup.database_url.clone() };
        let name = &schema.name;
        schema.connect().batch_execute(&format!("CREATE SCHEMA {name}")).expect("the schema can be created");
        schema
    }

    /// The schema for tables that other programs do not know.
    pub fn own(&self) -> String {
        format!("{}_own", self.name)
    }

    /// A connection with this schema as search path and the time zone UTC.
    pub fn connect(&self) -> Client {
        let mut client = Client::connect(&self.url, NoTls).expect("the tests' Postgres answers");
        client
            .batch_execute(&format!("SET search_path = {}; SET TimeZone = 'UTC'", self.name))
            .expect("the settings are valid");
        client
    }

    /// The rows of a query.
    pub fn rows(&self, query: &str) -> Vec<Row> {
        self.connect().query(query, &[]).unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    /// The first column of each row, which must be text.
    pub fn texts(&self, query: &str) -> Vec<String> {
        let text = |row: &Row| row.get::<_, Option<String>>(0).unwrap_or_else(|| "NULL".to_owned());
        self.rows(query).iter().map(text).collect()
    }

    /// The only value of a query, which must be text.
    pub fn text(&self, query: &str) -> String {
        let mut texts = self.texts(query);
        assert_eq!(texts.len(), 1, "{query} returns {texts:?} instead of one row");
        texts.remove(0)
    }

    /// The number of rows of a table.
    pub fn count(&self, table: &str) -> i64 {
        self.rows(&format!(r#"SELECT count(*) FROM "{table}""#))[0].get(0)
    }

    /// The only value of a query, which must be a number.
    pub fn number(&self, query: &str) -> i64 {
        self.rows(query)[0].get(0)
    }

    /// Runs statements.
    pub fn execute(&self, statements: &str) {
        self.connect().batch_execute(statements).unwrap_or_else(|error| panic!("{statements}: {error}"));
    }

    /// `status` and `error` of a read's row; `None` without a row or table.
    pub fn task(&self, task_id: &str) -> Option<(String, String)> {
        let query = "SELECT status, coalesce(error, '') FROM source_task WHERE task_id = $1";
        let row = self.connect().query_opt(query, &[&task_id]).ok()??;
        Some((row.get(0), row.get(1)))
    }

    /// The stream reports of a read's row.
    pub fn streams(&self, task_id: &str) -> serde_json::Value {
        let query = "SELECT description FROM source_task WHERE task_id = $1";
        let row = self.connect().query_one(query, &[&task_id]).expect("the task has a row");
        let text: Option<String> = row.get(0);
        serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default()
    }

    /// Names and types of a table's columns, in their order.
    pub fn columns(&self, table: &str) -> Vec<(String, String)> {
        let query = "SELECT column_name::text, data_type::text FROM information_schema.columns \
                     WHERE table_schema = $1 AND table_name = $2 ORDER BY ordinal_position";
        let rows = self.connect().query(query, &[&self.name, &table]).expect("the catalog answers");
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// Drops the schema. If a killed process still holds a lock, the next `tests/cluster/up` drops it.
    pub fn remove(&self) {
        let sql = format!("SET lock_timeout = '5s'; DROP SCHEMA IF EXISTS {}, {} CASCADE", self.name, self.own());
        self.connect().batch_execute(&sql).ok();
    }
}

/// The URL with the schema as search path.
pub fn in_schema(url: &str, schema: &str) -> String {
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}search_path={schema}")
}
