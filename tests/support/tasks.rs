//! Tasks as clients of the service request them, and their outcomes as they are stored.

use serde_json::{Value, json};

use super::http::target;
use super::{World, catalog};

/// The command of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Spec,
    Check,
    Discover,
    Read,
}

/// One task of a fake connector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub kind: Kind,
    /// `syncctl-test/NAME:1`.
    pub image: &'static str,
    /// The task id, sync id and storage key, and the prefix of its tables.
    pub id: String,
}

impl Order {
    /// The only stream of the connector.
    pub fn stream(&self) -> &'static str {
        match self.image {
            "syncctl-test/instant:1" => "items",
            "syncctl-test/slow:1" => "ticks",
            _ => "one",
        }
    }

    /// The destination table.
    pub fn table(&self) -> String {
        format!("{}{}", self.id, self.stream())
    }

    /// Method, target and body of the request. Rows are loaded into the schema of `world`.
    pub fn request(&self, world: &World) -> (&'static str, String, String) {
        let (package, version) = self.image.rsplit_once(':').expect("an image with a version");
        let id = self.id.as_str();
        let with = |path: &str, more: &[(&str, &str)]| {
            target(path, &[&[("package", package), ("version", version)], more].concat())
        };
        let config = json!({"mode": "steady"});
        let plain = json!({"config": config}).to_string();
        match self.kind {
            Kind::Spec => ("GET", with("/spec", &[]), String::new()),
            Kind::Check => ("POST", with("/check", &[("storageKey", id)]), plain),
            Kind::Discover => ("POST", with("/discover", &[("storageKey", id)]), plain),
            Kind::Read => {
                let body = json!({
                    "config": config,
                    "catalog": catalog(&[self.stream()]),
                    "destinationConfig": world.destination_config(),
                });
                let query = [("syncId", id), ("taskId", id), ("tableNamePrefix", id)];
                ("POST", with("/read", &query), body.to_string())
            }
        }
    }

    /// The target of the request that cancels it.
    pub fn cancellation(&self) -> String {
        let (package, _) = self.image.rsplit_once(':').expect("an image with a version");
        target("/cancel", &[("package", package), ("syncId", &self.id), ("taskId", &self.id)])
    }

    /// Status and error of its row, if it exists.
    pub fn row(&self, world: &World) -> Option<(String, String)> {
        let id = &self.id;
        let (package, version) = self.image.rsplit_once(':').expect("an image with a version");
        let query = match self.kind {
            Kind::Read => return world.schema.task(id),
            Kind::Spec => format!(
                "SELECT CASE WHEN error IS NULL THEN 'SUCCESS' ELSE 'FAILED' END, coalesce(error, '')
                 FROM source_spec WHERE package = '{package}' AND version = '{version}'"
            ),
            Kind::Check => format!("SELECT status, coalesce(description, '') FROM source_check WHERE key = '{id}'"),
            Kind::Discover => {
                format!("SELECT status, coalesce(description, '') FROM source_catalog WHERE key = '{id}'")
            }
        };
        let rows = world.schema.rows(&query);
        assert!(rows.len() < 2, "{self:?} has several results");
        rows.first().map(|row| (row.get(0), row.get(1)))
    }

    /// Whether its stream runs.
    pub fn runs(&self, world: &World) -> bool {
        // The request may not have been answered yet.
        world.schema.task(&self.id).is_some() && world.schema.streams(&self.id)[self.stream()]["status"] == "RUNNING"
    }

    /// Whether a Pod or a Secret belongs to the task.
    pub fn owns(&self, object: &Value) -> bool {
        let annotations = &object["metadata"]["annotations"];
        [&annotations["TaskID"], &annotations["StorageKey"]].iter().any(|value| **value == *self.id)
    }

    /// Asserts that its table and its report hold each row once.
    #[track_caller]
    pub fn assert_rows(&self, world: &World, rows: i64) {
        let table = self.table();
        assert_eq!(world.schema.count(&table), rows, "{self:?}");
        let distinct = format!(r#"SELECT count(DISTINCT id) FROM "{table}""#);
        assert_eq!(world.schema.number(&distinct), rows, "{self:?}");
        assert_eq!(world.schema.streams(&self.id)[self.stream()]["events"], json!(rows), "{self:?}");
    }
}
