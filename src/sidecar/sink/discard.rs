//! The `discard` destination: counts rows and drops them.
//!
//! For benchmarks of sources and for dry runs. Rows are not parsed, and each commit is durable.

use serde_json::Value;

use super::{Committed, Connect, Sink, SinkError, StreamIndex, StreamSpec};
use crate::airbyte::message::Record;
use crate::failure::Failure;
use crate::task::Task;

/// The configuration, which has no fields.
#[derive(Debug)]
struct Settings;

/// Accepts any configuration.
#[expect(clippy::unnecessary_wraps, reason = "all destinations have a parser of this type")]
pub(super) fn parse(_config: &Value) -> Result<Box<dyn Connect>, Failure> {
    Ok(Box::new(Settings))
}

impl Connect for Settings {
    fn address(&self) -> String {
        "nowhere: the destination discards rows".to_owned()
    }

    fn connect(&self, _task: &Task) -> Result<Box<dyn Sink>, SinkError> {
        Ok(Box::new(DiscardSink::default()))
    }
}

#[derive(Debug, Default)]
struct DiscardSink {
    streams: Vec<StreamTotals>,
}

#[derive(Debug)]
struct StreamTotals {
    stream: String,
    rows: u64,
    bytes: u64,
}

impl Sink for DiscardSink {
    fn open(&mut self, stream: StreamSpec) -> Result<StreamIndex, SinkError> {
        self.streams.push(StreamTotals { stream: stream.name.key(), rows: 0, bytes: 0 });
        Ok(self.streams.len() - 1)
    }

    fn write(&mut self, stream: StreamIndex, record: &Record<'_>) -> Result<(), SinkError> {
        if let Some(totals) = self.streams.get_mut(stream) {
            totals.rows += 1;
            totals.bytes += record.data.len() as u64;
        }
        Ok(())
    }

    fn commit(&mut self, _stream: StreamIndex) -> Result<Committed, SinkError> {
        Ok(Committed::Durable)
    }

    fn finish(&mut self, stream: StreamIndex) -> Result<(), SinkError> {
        if let Some(StreamTotals { stream, rows, bytes }) = self.streams.get(stream) {
            tracing::info!(%stream, rows, bytes, "discarded");
        }
        Ok(())
    }

    fn finish_early(&mut self, stream: StreamIndex) -> Result<bool, SinkError> {
        self.finish(stream).map(|()| true)
    }

    fn abort(&mut self, _stream: StreamIndex) {}
}
