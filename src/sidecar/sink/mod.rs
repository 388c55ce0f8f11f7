//! Where rows go: one trait, a file per destination.
//!
//! A sink knows streams, rows and checkpoints; it knows nothing of states, statuses or the connector. Adding a
//! destination is one file here and one line in [`KNOWN`].

mod backoff;
mod bulker;
mod discard;
mod fields;
mod postgres;

use std::fmt::Debug;

use serde_json::Value;

use crate::airbyte::message::{Record, StreamName};
use crate::failure::{Class, Failure};
use crate::task::Task;

/// The values of `destinationType`, each with what reads the rest of its configuration.
const KNOWN: &[(&str, Parse)] =
    &[("postgres", postgres::parse), ("bulker", bulker::parse), ("discard", discard::parse)];

/// Reads a `destinationConfig` without connecting. Errors name the field, never its value.
type Parse = fn(&Value) -> Result<Box<dyn Connect>, Failure>;

/// A destination whose configuration is known to be complete.
trait Connect: Debug {
    /// Connects, for one task.
    fn connect(&self, task: &Task) -> Result<Box<dyn Sink>, SinkError>;
}

/// A destination of any type. Nothing was connected to so far.
#[derive(Debug)]
pub struct Destination(Box<dyn Connect>);

impl Destination {
    /// Reads the `destinationConfig` of a read. Does not connect.
    pub fn parse(config: &Value) -> Result<Self, Failure> {
        let invalid = |why: &str| {
            let known: Vec<&str> = KNOWN.iter().map(|(kind, _)| *kind).collect();
            let text = format!("destinationConfig.destinationType: {why}: known types are {}", known.join(", "));
            Failure::new(Class::InvalidInput, text)
        };
        let kind = match config.get("destinationType") {
            Some(Value::String(kind)) => kind,
            None | Some(Value::Null) => return Err(invalid("is required")),
            Some(_) => return Err(invalid("expected a string")),
        };
        match KNOWN.iter().find(|(known, _)| known == kind) {
            Some((_, parse)) => parse(config).map(Self),
            None => Err(invalid(&format!("unknown type {kind:?}"))),
        }
    }

    /// Connects. Never on a thread of a tokio runtime, nor may the sink be dropped on one.
    pub fn connect(&self, task: &Task) -> Result<Box<dyn Sink>, SinkError> {
        self.0.connect(task)
    }
}

/// What a sink needs to know of one stream. Built from the configured catalog and the options of the read.
#[derive(Debug, Clone)]
pub struct StreamSpec {
    /// The stream's identity, for messages.
    pub name: StreamName,
    /// Destination schema; `None` is the destination's default.
    pub schema: Option<String>,
    /// Table name before the destination's own cleaning of names.
    pub table: String,
    /// JSON Schema of a row.
    pub json_schema: serde_json::Value,
    /// How rows meet those that are there.
    pub mode: WriteMode,
    /// Paths of the key's parts; empty when there is none.
    pub primary_key: Vec<Vec<String>>,
    /// Path of the cursor: of two rows with one key the one with the higher cursor wins, whichever came first.
    pub cursor: Vec<String>,
    /// Which rows of the table this read makes obsolete.
    pub generation: Generation,
    /// Lower-case names.
    pub to_same_case: bool,
    /// Add a column `_jitsu_timestamp`.
    pub add_meta: bool,
}

/// Airbyte's generations: rows carry the number of the refresh that brought them, and a refresh that is complete may
/// make those of earlier ones obsolete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Generation {
    /// What the rows carry; 0: nothing.
    pub id: i64,
    /// Rows of generations below it go, but only when the stream is finished. 0: none go.
    pub minimum: i64,
    /// A state after a part of the rows is of use to the next run: a stream that is always read as a whole has none.
    pub resumable: bool,
    /// The source goes on after such a state: what an earlier run brought of this generation counts.
    pub resumes: bool,
}

/// How rows meet those that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteMode {
    /// The rows of this run take the place of all others when the stream is finished.
    Replace,
    /// Rows are added.
    Append,
    /// Rows are merged by primary key; the last of a key wins.
    Merge,
}

/// What a commit achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// The rows so far are in the table, or kept for it by the destination: the state after them may be stored.
    Durable,
    /// They will be when the stream is finished: the state has to wait until then.
    Deferred,
}

/// Why rows did not get in.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct SinkError {
    /// One sentence that names the destination, never its credentials.
    pub text: String,
    /// Whether the same rows may get in at a later try (a lost connection), or never will.
    pub transient: bool,
}

/// Names one open stream within a sink.
pub type StreamIndex = usize;

/// A destination for rows. Used from one thread. Dropping a sink without [`finish`](Sink::finish) leaves the tables as
/// the last commit left them and removes what was staged; what a commit called [`Durable`](Committed::Durable) stays.
pub trait Sink: Send {
    /// Makes ready for a stream, in the catalog's order, so that names which collide are told apart the same way in each
    /// run; index `i` is the `i`-th call's. Creates or widens tables no later than the first commit.
    fn open(&mut self, stream: StreamSpec) -> Result<StreamIndex, SinkError>;

    /// Takes one row. May buffer; blocks while the destination is slow.
    fn write(&mut self, stream: StreamIndex, record: &Record<'_>) -> Result<(), SinkError>;

    /// Makes the stream's rows so far durable.
    fn commit(&mut self, stream: StreamIndex) -> Result<Committed, SinkError>;

    /// The source says that the stream is complete: commits, and replaces the table in [`WriteMode::Replace`], or the
    /// generations that are obsolete now.
    /// A full refresh with zero rows empties the table.
    fn finish(&mut self, stream: StreamIndex) -> Result<(), SinkError>;

    /// The stream ends here although the source has more of it: commits for the last time, and replaces nothing. Rows that
    /// were to take the place of others get in where the table has none. Says whether the rows are in the table; if not,
    /// they are dropped.
    fn cut(&mut self, stream: StreamIndex) -> Result<bool, SinkError>;

    /// Gives up the rows since the last commit and removes what was staged.
    fn abort(&mut self, stream: StreamIndex);

    /// Called several times a second, whether rows come or not, for what time asks for.
    fn tend(&mut self) {}

    /// What the user should know although nothing failed, each told once.
    fn warnings(&mut self) -> Vec<String> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::Destination;
    use serde_json::json;

    #[test]
    fn an_unknown_destination_lists_the_known_ones() {
        for config in [json!({}), json!(null), json!({"destinationType": "bigquery"}), json!({"destinationType": 1})] {
            let failure = Destination::parse(&config).expect_err("no such destination");
            assert!(failure.text.starts_with("destinationConfig.destinationType: "), "{failure}");
            assert!(failure.text.ends_with("known types are postgres, bulker, discard"), "{failure}");
        }
        assert!(Destination::parse(&json!({"destinationType": "discard"})).is_ok());
    }
}
