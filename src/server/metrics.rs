//! The metrics of `/metrics`: names, labels and units.
//!
//! Labels are bounded: kinds, classes of failure, phases, routes, names of configured tokens. Packages, syncs and tasks are
//! not labels.

use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::controller::reconciler::{Durations, PHASES};
use crate::task::TaskKind;

/// Seconds of the phases of a task: a spec takes one, a read may take days.
const TASK_BUCKETS: [f64; 12] = [0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 28_800.0, 172_800.0];
/// Seconds of the service itself.
const DELAY_BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabel {
    method: &'static str,
    route: &'static str,
    status: u16,
}

/// Names of tokens are those of the tokens file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenRequestLabel {
    token: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenTaskLabel {
    token: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: &'static str,
}

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    started: Family<KindLabel, Counter>,
    finished: Family<OutcomeLabel, Counter>,
    queue: Family<KindLabel, Histogram>,
    pull: Family<KindLabel, Histogram>,
    run: Family<KindLabel, Histogram>,
    pods: Family<PhaseLabel, Gauge>,
    outcome_delay: Histogram,
    requests: Family<RequestLabel, Counter>,
    request_duration: Family<RouteLabel, Histogram>,
    token_requests: Family<TokenRequestLabel, Counter>,
    token_tasks: Family<TokenTaskLabel, Counter>,
    leader: Gauge,
}

fn task_histogram() -> Histogram {
    Histogram::new(TASK_BUCKETS)
}

fn delay_histogram() -> Histogram {
    Histogram::new(DELAY_BUCKETS)
}

impl Metrics {
    /// `instance_id` becomes a label of every metric. `error_counts` returns the errors of (the Kubernetes API, the
    /// database).
    pub fn new(instance_id: &str, error_counts: impl Fn() -> (u64, u64) + Send + Sync + 'static) -> Self {
        // Not `instance`: Prometheus uses that label for the address that it scrapes.
        let labels = [("instance_id".into(), instance_id.to_owned().into())];
        let mut registry = Registry::with_prefix_and_labels("syncctl", labels.into_iter());
        let started = Family::default();
        let finished = Family::default();
        let queue = Family::new_with_constructor(task_histogram as fn() -> Histogram);
        let pull = Family::new_with_constructor(task_histogram as fn() -> Histogram);
        let run = Family::new_with_constructor(task_histogram as fn() -> Histogram);
        let pods = Family::default();
        let outcome_delay = delay_histogram();
        let requests = Family::default();
        let request_duration = Family::new_with_constructor(delay_histogram as fn() -> Histogram);
        let (token_requests, token_tasks) = (Family::default(), Family::default());
        let leader = Gauge::default();
        registry.register("tasks_started", "Tasks whose Pod this process created", started.clone());
        registry.register(
            "tasks_finished",
            "Tasks whose outcome this process recorded or found, by outcome",
            finished.clone(),
        );
        for (name, help, family) in [
            ("task_queue", "From the creation of a Pod until it is scheduled", &queue),
            ("task_pull", "From scheduling a Pod until both containers run", &pull),
            ("task_run", "From the start of both containers until the end of the last one", &run),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
        }
        registry.register("pods", "Pods of tasks in the namespace, counted by the leader", pods.clone());
        registry.register_with_unit(
            "outcome_delay",
            "From the end of a Pod until its outcome is in the database, where the service recorded it",
            Unit::Seconds,
            outcome_delay.clone(),
        );
        registry.register("http_requests", "HTTP responses", requests.clone());
        registry.register_with_unit(
            "http_request_duration",
            "From the first byte of a request to its response",
            Unit::Seconds,
            request_duration.clone(),
        );
        registry.register("token_requests", "HTTP responses to callers with a named token", token_requests.clone());
        registry.register("token_tasks_started", "Tasks that callers with a named token started", token_tasks.clone());
        registry.register("leader", "1 if this process is the leader", leader.clone());
        registry.register_collector(Box::new(ErrorCounts(Box::new(error_counts))));
        let metrics = Self {
            registry,
            started,
            finished,
            queue,
            pull,
            run,
            pods,
            outcome_delay,
            requests,
            request_duration,
            token_requests,
            token_tasks,
            leader,
        };
        // Series that exist from the start can be used in rates and alerts.
        for kind in [TaskKind::Spec, TaskKind::Check, TaskKind::Discover, TaskKind::Read] {
            drop(metrics.started.get_or_create(&KindLabel { kind: kind.as_str() }));
        }
        metrics.pods([0; PHASES.len()]);
        metrics
    }

    /// Counts a task whose Pod was accepted, also for the token of its caller.
    pub fn task_started(&self, kind: TaskKind, token: Option<&str>) {
        self.started.get_or_create(&KindLabel { kind: kind.as_str() }).inc();
        if let Some(token) = token {
            self.token_tasks.get_or_create(&TokenTaskLabel { token: token.to_owned(), kind: kind.as_str() }).inc();
        }
    }

    /// Counts a task with its outcome: `SUCCESS` or the code of a failure class.
    pub fn task_finished(&self, kind: TaskKind, outcome: &'static str, durations: Durations) {
        let kind = kind.as_str();
        self.finished.get_or_create(&OutcomeLabel { kind, outcome }).inc();
        for (family, part) in [(&self.queue, durations.queue), (&self.pull, durations.pull), (&self.run, durations.run)]
        {
            if let Some(part) = part {
                family.get_or_create(&KindLabel { kind }).observe(part.as_secs_f64());
            }
        }
    }

    /// How long after the end of a Pod its outcome was recorded.
    pub fn outcome_recorded(&self, delay: Duration) {
        self.outcome_delay.observe(delay.as_secs_f64());
    }

    /// Sets the number of Pods in each of [`PHASES`].
    pub fn pods(&self, counts: [usize; PHASES.len()]) {
        for (phase, count) in PHASES.into_iter().zip(counts) {
            self.pods.get_or_create(&PhaseLabel { phase }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Counts a response.
    pub fn request(&self, method: &'static str, route: &'static str, status: u16, duration: Duration) {
        self.requests.get_or_create(&RequestLabel { method, route, status }).inc();
        self.request_duration.get_or_create(&RouteLabel { route }).observe(duration.as_secs_f64());
    }

    /// Counts a response to a caller with a named token.
    pub fn token_request(&self, token: &str, status: u16) {
        self.token_requests.get_or_create(&TokenRequestLabel { token: token.to_owned(), status }).inc();
    }

    /// Sets whether this process is the leader.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// The exposition format (OpenMetrics text).
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        encode(&mut text, &self.registry).unwrap_or_default();
        text
    }
}

/// Counters of the layers below.
struct ErrorCounts(Box<dyn Fn() -> (u64, u64) + Send + Sync>);

impl std::fmt::Debug for ErrorCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ErrorCounts")
    }
}

impl Collector for ErrorCounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (api, database) = (self.0)();
        for (name, help, count) in [
            ("kubernetes_api_errors", "Calls to the Kubernetes API without a response", api),
            ("database_errors", "Database operations that failed or were retried", database),
        ] {
            let counter = ConstCounter::new(count);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Durations, Metrics};
    use crate::task::TaskKind;
    use std::time::Duration;

    #[test]
    fn every_metric_has_the_instance_id_and_its_count() {
        let metrics = Metrics::new("a \"b\"", || (3, 4));
        metrics.task_started(TaskKind::Check, Some("team-a"));
        metrics.token_request("team-a", 403);
        let durations = Durations { run: Some(Duration::from_secs(3)), ..Durations::default() };
        metrics.task_finished(TaskKind::Check, "OOM_KILLED", durations);
        metrics.request("POST", "/check", 200, Duration::from_millis(3));
        metrics.pods([1, 0, 2, 0, 0]);
        metrics.outcome_recorded(Duration::from_millis(20));
        let text = metrics.text();
        for line in [
            r#"syncctl_tasks_started_total{instance_id="a \"b\"",kind="check"} 1"#,
            r#"syncctl_token_tasks_started_total{instance_id="a \"b\"",token="team-a",kind="check"} 1"#,
            r#"syncctl_token_requests_total{instance_id="a \"b\"",token="team-a",status="403"} 1"#,
            r#"syncctl_tasks_finished_total{instance_id="a \"b\"",kind="check",outcome="OOM_KILLED"} 1"#,
            r#"syncctl_task_run_seconds_count{instance_id="a \"b\"",kind="check"} 1"#,
            r#"syncctl_pods{instance_id="a \"b\"",phase="running"} 2"#,
            r#"syncctl_http_requests_total{instance_id="a \"b\"",method="POST",route="/check",status="200"} 1"#,
            r#"syncctl_kubernetes_api_errors_total{instance_id="a \"b\""} 3"#,
            r#"syncctl_database_errors_total{instance_id="a \"b\""} 4"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        let series = text.lines().filter(|line| line.starts_with("syncctl_"));
        assert!(series.clone().all(|line| line.contains("instance_id=")), "{text}");
    }
}
