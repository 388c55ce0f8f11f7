//! A task that is ready to run, and its documents.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::owner;
use crate::pod::payload::Payload;
use crate::task::{self, Image, ReadOptions, Task, TaskKind};

/// A validated task and its documents.
pub struct Request {
    /// What to do.
    pub task: Task,
    /// With what.
    pub payload: Payload,
}

/// How long spec, check and discover may take: connectors answer within seconds, large databases are discovered in
/// minutes, and an image has to be pulled.
pub const SHORT_TASK: Duration = Duration::from_mins(10);

/// A task of a one-off command; for spec, check and discover the id only has to be new.
pub fn new_task(kind: TaskKind, image: Image, timeout: Option<Duration>) -> Task {
    Task {
        kind,
        image,
        connector_type: task::CONNECTOR_TYPE_AIRBYTE.to_owned(),
        task_id: Uuid::new_v4().to_string(),
        sync_id: String::new(),
        storage_key: String::new(),
        started_at: task::to_millis(Timestamp::now()),
        started_by: Some(owner::started_by()),
        options: ReadOptions::default(),
        timeout: timeout.unwrap_or(SHORT_TASK),
    }
}
