//! The lines of `task_log` that the controller writes: how a task came to run.
//!
//! The id of a line depends on the Pod and the line alone. A process that observes a Pod of an earlier one, as after a
//! change of the leader, writes no line twice.

use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid};

use crate::db::{Db, LogRow, store_log_batches};
use crate::pod::{Backend, TaskPod};
use crate::task::Task;

/// Rows that wait for the database. Beyond it they are dropped: a log must not delay tasks.
const QUEUE: usize = 10_000;
/// How long an unavailable database may delay rows.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the last rows may take.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Where tasks run.
#[derive(Debug, Clone)]
pub enum Place {
    /// On this machine, as processes.
    Machine,
    /// In a cluster; the text is for people: "in namespace x".
    Cluster(String),
}

impl Place {
    /// Where the tasks of this backend run.
    pub fn of(backend: &Backend) -> Self {
        if backend.is_local() { Self::Machine } else { Self::Cluster(backend.launcher.location()) }
    }
}

/// Which of its lines a task has, one bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StartLog {
    logged: u8,
}

impl StartLog {
    /// The number of lines.
    const LINES: u8 = 4;

    /// Whether all lines were logged.
    pub fn is_complete(self) -> bool {
        self.logged == (1 << Self::LINES) - 1
    }

    /// The lines that this observation of the Pod adds: created, node, image, started.
    pub fn observe(&mut self, pod: &TaskPod, task: &Task, place: &Place) -> Vec<LogRow> {
        let observation = &pod.observation;
        let (name, image) = (&pod.id.name, &task.image);
        let created = match place {
            Place::Machine => "task created".to_owned(),
            Place::Cluster(location) => format!("pod {name} created {location}"),
        };
        let node = observation.node.as_ref().map(|node| match place {
            Place::Machine => format!("running on machine {node}"),
            Place::Cluster(_) => format!("pod scheduled to node {node}"),
        });
        let resolved = match place {
            Place::Machine => observation.notice.clone(),
            Place::Cluster(_) => observation.image_id.as_ref().map(|id| format!("image {image} is on the node: {id}")),
        };
        let started = observation.started_at.map(|_| "connector started".to_owned());
        let (created_at, started_at) = (pod.created_at, observation.started_at);
        let lines: [(Option<String>, Option<Timestamp>); Self::LINES as usize] = [
            (Some(created), created_at),
            (node, observation.scheduled_at.or(created_at)),
            (resolved, started_at),
            (started, started_at),
        ];
        let lines = (0_u8..).zip(lines).filter_map(|(step, (line, at))| Some((step, line?, at)));
        self.add(lines, pod, task)
    }

    /// The lines that are missing of a Pod whose sidecar has stored the connector's result before the kubelet has reported
    /// that the containers run.
    pub fn assume_started(&mut self, pod: &TaskPod, task: &Task, place: &Place) -> Vec<LogRow> {
        let Place::Cluster(_) = place else { return Vec::new() };
        let at = pod.observation.scheduled_at.or(pod.created_at);
        let image = format!("image {} is on the node", task.image);
        self.add([(2, image, at), (3, "connector started".to_owned(), at)], pod, task)
    }

    /// The rows of those steps that were not logged before.
    fn add(
        &mut self,
        lines: impl IntoIterator<Item = (u8, String, Option<Timestamp>)>,
        pod: &TaskPod,
        task: &Task,
    ) -> Vec<LogRow> {
        let mut rows = Vec::new();
        for (step, message, at) in lines {
            if self.logged & (1 << step) != 0 {
                continue;
            }
            self.logged |= 1 << step;
            // A cluster counts in whole seconds, and lines of one time have no order.
            let at = at.unwrap_or_else(Timestamp::now) + Duration::from_millis(u64::from(step));
            rows.push(LogRow::own(task, line_id(&pod.id.uid, step), "INFO", message, at));
        }
        rows
    }
}

/// The step of the line about the read that follows a discover.
pub const THEN_RUN_STEP: u8 = 100;

/// The id of a line of this Pod.
pub fn line_id(uid: &str, step: u8) -> Uuid {
    let hash = Sha256::new().chain_update("syncctl start ").chain_update(uid).chain_update([step]).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    Builder::from_custom_bytes(bytes).into_uuid()
}

/// Whether lines of the level INFO belong into `task_log`.
pub fn is_info_logged(min_level: &str) -> bool {
    ["TRACE", "DEBUG", "INFO"].iter().any(|level| level.eq_ignore_ascii_case(min_level))
}

/// Stores rows of `task_log` on its own thread. Dropping it waits for the last rows, up to [`FINISH_TIMEOUT`].
pub struct LogWriter {
    queue: Option<SyncSender<LogRow>>,
    thread: Option<JoinHandle<()>>,
}

impl LogWriter {
    /// Starts the thread. Stores nothing if `min_level`, the least level in `task_log`, is above INFO.
    pub fn start(db: &Db, min_level: &str) -> Self {
        if !is_info_logged(min_level) {
            return Self { queue: None, thread: None };
        }
        let (queue, rows) = mpsc::sync_channel(QUEUE);
        let db = db.with_retry_timeout(RETRY_TIMEOUT);
        let thread = std::thread::spawn(move || store_log_batches(&rows, |rows| db.insert_logs(rows)));
        Self { queue: Some(queue), thread: Some(thread) }
    }

    /// Queues rows. Never blocks.
    pub fn write(&self, rows: Vec<LogRow>) {
        let Some(queue) = &self.queue else { return };
        for row in rows {
            if queue.try_send(row).is_err() {
                tracing::debug!("a row of task_log is dropped: the database is slower than tasks start");
            }
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.queue = None;
        let deadline = Instant::now() + FINISH_TIMEOUT;
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Place, StartLog};
    use crate::pod::status::{Observation, Phase};
    use crate::pod::{PodRef, TaskPod};
    use crate::task::Task;
    use jiff::Timestamp;

    fn pod(uid: &str, node: Option<&str>, started_at: Option<Timestamp>) -> TaskPod {
        let created_at: Timestamp = "2026-01-02T03:04:05Z".parse().expect("a time");
        TaskPod {
            id: PodRef { name: "pod-1".to_owned(), uid: uid.to_owned(), attempt: None, secrets: 1 },
            owner: None,
            created_at: Some(created_at),
            task: Err(String::new()),
            observation: Observation {
                created_at: Some(created_at),
                scheduled_at: node.map(|_| created_at),
                started_at,
                node: node.map(str::to_owned),
                image_id: started_at.map(|_| "registry/a/b@sha256:1".to_owned()),
                notice: started_at.map(|_| "connector: the command run".to_owned()),
                phase: Phase::Running,
            },
            deleting: false,
        }
    }

    fn messages(rows: &[crate::db::LogRow]) -> Vec<&str> {
        rows.iter().map(|row| row.message.as_str()).collect()
    }

    #[test]
    fn each_observation_adds_the_lines_that_are_new() {
        let started: Timestamp = "2026-01-02T03:04:05Z".parse().expect("a time");
        let task = Task::of_read("a/b", "1", "s", "t", started);
        let place = Place::Cluster("in namespace x".to_owned());
        let mut log = StartLog::default();
        let created = log.observe(&pod("1", None, None), &task, &place);
        assert_eq!(messages(&created), ["pod pod-1 created in namespace x"]);
        assert!(log.observe(&pod("1", None, None), &task, &place).is_empty());
        let scheduled = log.observe(&pod("1", Some("n"), None), &task, &place);
        assert_eq!(messages(&scheduled), ["pod scheduled to node n"]);
        assert!(!log.is_complete());
        let rest = log.observe(&pod("1", Some("n"), Some(started)), &task, &place);
        assert_eq!(messages(&rest), ["image a/b:1 is on the node: registry/a/b@sha256:1", "connector started"]);
        assert!(log.is_complete());
        let times: Vec<_> = created.iter().chain(&scheduled).chain(&rest).map(|row| row.timestamp).collect();
        assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
        assert!(rest.iter().all(|row| (&*row.logger, &*row.task_id, &*row.sync_id) == ("syncctl", "t", "s")));
    }

    #[test]
    fn a_result_before_the_report_of_the_kubelet_completes_the_lines() {
        let started: Timestamp = "2026-01-02T03:04:05Z".parse().expect("a time");
        let task = Task::of_read("a/b", "1", "s", "t", started);
        let place = Place::Cluster("in namespace x".to_owned());
        let mut log = StartLog::default();
        let observed = log.observe(&pod("1", Some("n"), None), &task, &place);
        let assumed = log.assume_started(&pod("1", Some("n"), None), &task, &place);
        assert_eq!(messages(&assumed), ["image a/b:1 is on the node", "connector started"]);
        assert!(log.is_complete() && observed[1].timestamp < assumed[0].timestamp);
        assert!(log.assume_started(&pod("1", Some("n"), None), &task, &place).is_empty());
    }

    #[test]
    fn the_lines_of_one_pod_have_the_same_ids_in_each_process() {
        let started: Timestamp = "2026-01-02T03:04:05Z".parse().expect("a time");
        let task = Task::of_read("a/b", "1", "s", "t", started);
        let ids = |uid| -> Vec<_> {
            let pod = pod(uid, Some("n"), Some(started));
            StartLog::default().observe(&pod, &task, &Place::Machine).iter().map(|row| row.id).collect()
        };
        assert_eq!(ids("1"), ids("1"));
        assert!(ids("1").iter().all(|id| !ids("2").contains(id)));
    }

    #[test]
    fn a_local_task_is_no_pod() {
        let started: Timestamp = "2026-01-02T03:04:05Z".parse().expect("a time");
        let task = Task::of_read("a/b", "1", "s", "t", started);
        let rows = StartLog::default().observe(&pod("1", Some("host"), Some(started)), &task, &Place::Machine);
        let expected = ["task created", "running on machine host", "connector: the command run", "connector started"];
        assert_eq!(messages(&rows), expected);
    }
}
