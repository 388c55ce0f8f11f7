//! The progress of a running read in its row: per-stream counts and statuses, and the connector's resource usage.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::contract::METRICS_FILE;
use crate::db::Db;
use crate::shared_folder::SharedFolder;
use crate::task::{StreamReports, TaskMetrics};

/// How often an unchanged row is written, as a heartbeat: a row without one counts as stale after an hour.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The minimum time between two writes.
const MIN_INTERVAL: Duration = Duration::from_millis(500);
/// How long the database may be unavailable when only the resource usage would be lost.
const METRICS_TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum size of the metrics file: two numbers.
const MAX_METRICS: u64 = 64;

/// Updates `source_task` from its own thread, so that a slow database does not delay rows.
pub struct ProgressReporter {
    shared: Arc<(Mutex<Progress>, Condvar)>,
    thread: Option<JoinHandle<()>>,
    row: Row,
}

#[derive(Clone)]
struct Row {
    db: Db,
    task_id: String,
    /// Where the connector's wrapper writes its resource usage.
    connector_reports: Option<SharedFolder>,
}

struct Progress {
    reports: StreamReports,
    changed: bool,
    ended: bool,
}

impl ProgressReporter {
    /// Starts the thread, which writes at once.
    pub fn start(db: Db, task_id: String, connector_reports: Option<SharedFolder>, reports: StreamReports) -> Self {
        let row = Row { db, task_id, connector_reports };
        let shared = Arc::new((Mutex::new(Progress { reports, changed: true, ended: false }), Condvar::new()));
        let thread = std::thread::spawn({
            let (row, shared) = (row.clone(), Arc::clone(&shared));
            move || row.update(&shared)
        });
        Self { shared, thread: Some(thread), row }
    }

    /// Hands new reports to the thread.
    pub fn publish(&self, reports: StreamReports) {
        let (progress, wake) = &*self.shared;
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.reports = reports;
        progress.changed = true;
        wake.notify_one();
    }

    /// Ends the thread.
    pub fn finish(&mut self) {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.shared.1.notify_one();
        if let Some(thread) = self.thread.take() {
            // The outcome does not depend on it, and a panic has been printed.
            thread.join().ok();
        }
    }

    /// Writes a last time after [`finish`](Self::finish).
    pub fn write_last(&self, reports: &StreamReports) {
        self.row.write(reports);
    }

    /// Writes the resource usage of the connector, if it is known, without waiting for an unavailable database.
    pub fn write_metrics(&self, reports: &StreamReports) {
        if self.row.metrics().is_some() {
            let db = self.row.db.with_retry_timeout(METRICS_TIMEOUT);
            Row { db, ..self.row.clone() }.write(reports);
        }
    }
}

impl Drop for ProgressReporter {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Row {
    fn update(&self, shared: &(Mutex<Progress>, Condvar)) {
        let (progress, wake) = shared;
        loop {
            let reports = {
                let guard = progress.lock().unwrap_or_else(PoisonError::into_inner);
                let (mut guard, _) = wake
                    .wait_timeout_while(guard, HEARTBEAT, |progress| !progress.changed && !progress.ended)
                    .unwrap_or_else(PoisonError::into_inner);
                if guard.ended {
                    return;
                }
                guard.changed = false;
                guard.reports.clone()
            };
            self.write(&reports);
            let guard = progress.lock().unwrap_or_else(PoisonError::into_inner);
            drop(wake.wait_timeout_while(guard, MIN_INTERVAL, |progress| !progress.ended));
        }
    }

    fn write(&self, reports: &StreamReports) {
        let metrics = self.metrics();
        if let Err(error) = self.db.report_progress(&self.task_id, reports, metrics.as_ref()) {
            tracing::warn!(%error, "cannot write the progress of the task");
        }
    }

    fn metrics(&self) -> Option<TaskMetrics> {
        read_metrics(self.connector_reports.as_ref()?)
    }
}

/// The resource usage of the connector's container. `None` without a valid file: not every container can read its control
/// group.
fn read_metrics(reports: &SharedFolder) -> Option<TaskMetrics> {
    let line = reports.read(METRICS_FILE, MAX_METRICS).ok()??;
    parse_metrics(str::from_utf8(&line).ok()?)
}

/// Nanoseconds of CPU time and bytes of memory.
pub fn parse_metrics(line: &str) -> Option<TaskMetrics> {
    let (nanoseconds, bytes) = line.strip_suffix('\n')?.split_once(' ')?;
    Some(TaskMetrics {
        cpu_seconds: Duration::from_nanos(nanoseconds.parse().ok()?).as_secs_f64(),
        memory_bytes: bytes.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::{parse_metrics, read_metrics};
    use crate::shared_folder::SharedFolder;
    use crate::task::TaskMetrics;

    #[test]
    fn metrics_are_two_numbers() {
        let used = Some(TaskMetrics { cpu_seconds: 2.5, memory_bytes: 4096 });
        for (line, expected) in [
            ("2500000000 4096\n", used),
            ("2500000000 4096", None),
            ("2500000000\n", None),
            ("2500000000 4096 1\n", None),
            ("-1 4096\n", None),
            ("99999999999999999999 4096\n", None),
            ("a b\n", None),
            ("", None),
        ] {
            assert_eq!(parse_metrics(line), expected, "{line:?}");
        }
    }

    #[test]
    fn long_metrics_files_are_ignored() {
        let folder = tempfile::tempdir().expect("a folder");
        let reports = SharedFolder::open(folder.path()).expect("a folder");
        assert_eq!(read_metrics(&reports), None, "no file");
        std::fs::write(folder.path().join("metrics"), "1000000 1\n").expect("a file");
        assert_eq!(read_metrics(&reports), Some(TaskMetrics { cpu_seconds: 0.001, memory_bytes: 1 }));
        std::fs::write(folder.path().join("metrics"), "1".repeat(100_000)).expect("a file");
        assert_eq!(read_metrics(&reports), None, "a long file");
    }
}
