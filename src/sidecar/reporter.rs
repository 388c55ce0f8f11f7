//! How far a read is, told to whoever looks at its row while it runs.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::metrics::Metrics;
use crate::db::Db;
use crate::task::StreamReports;

/// How often a task that changes nothing says that it lives; the stale sweep begins after an hour.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The least time between two reports.
const REPORT_PAUSE: Duration = Duration::from_millis(500);

/// Keeps `source_task` current from a thread of its own, so that a slow database does not slow the rows.
pub struct Reporter {
    shared: Arc<(Mutex<Report>, Condvar)>,
    thread: Option<JoinHandle<()>>,
    row: Row,
}

/// The row of the task, and where to look for what it holds besides the reports.
#[derive(Clone)]
struct Row {
    db: Db,
    task_id: String,
    metrics: Metrics,
}

struct Report {
    reports: StreamReports,
    changed: bool,
    ended: bool,
}

impl Reporter {
    pub fn start(db: Db, task_id: String, metrics: Metrics, reports: StreamReports) -> Self {
        let row = Row { db, task_id, metrics };
        let shared = Arc::new((Mutex::new(Report { reports, changed: true, ended: false }), Condvar::new()));
        let thread = std::thread::spawn({
            let (row, shared) = (row.clone(), Arc::clone(&shared));
            move || row.report_on(&shared)
        });
        Self { shared, thread: Some(thread), row }
    }

    /// Shows the reports.
    pub fn publish(&self, reports: StreamReports) {
        let (report, wake) = &*self.shared;
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        report.reports = reports;
        report.changed = true;
        wake.notify_one();
    }

    /// Ends the thread.
    pub fn finish(&mut self) {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.shared.1.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and the outcome does not depend on it.
            thread.join().ok();
        }
    }

    /// Reports once more, after the end.
    pub fn report(&self, reports: &StreamReports, patience: Duration) {
        let db = self.row.db.with_retry_timeout(patience);
        Row { db, ..self.row.clone() }.report(reports);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Row {
    fn report_on(&self, shared: &(Mutex<Report>, Condvar)) {
        let (report, wake) = shared;
        loop {
            let reports = {
                let guard = report.lock().unwrap_or_else(PoisonError::into_inner);
                let (mut guard, _) = wake
                    .wait_timeout_while(guard, HEARTBEAT, |report| !report.changed && !report.ended)
                    .unwrap_or_else(PoisonError::into_inner);
                if guard.ended {
                    return;
                }
                guard.changed = false;
                guard.reports.clone()
            };
            self.report(&reports);
            let guard = report.lock().unwrap_or_else(PoisonError::into_inner);
            drop(wake.wait_timeout_while(guard, REPORT_PAUSE, |report| !report.ended));
        }
    }

    fn report(&self, reports: &StreamReports) {
        if let Err(error) = self.db.report_progress(&self.task_id, reports, self.metrics.latest().as_ref()) {
            tracing::warn!(%error, "a report is lost");
        }
    }
}
