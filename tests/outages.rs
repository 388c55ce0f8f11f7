//! The API server, and then Postgres, stop while tasks run, and start again. `make soak` makes the outages longer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::tasks::{Kind, Order};
use super::support::{Http, Service, StoppedServer, World, eventually, unique};

/// Beyond this limit something hangs.
const DEADLINE: Duration = Duration::from_mins(5);

const INSTANT: &str = "syncctl-test/instant:1";
const KILLED: &str = "syncctl-test/exit137:1";
const STILLBORN: &str = "syncctl-test/stillborn:1";
const SLOW: &str = "syncctl-test/slow:1";
/// 4000 rows in eight seconds.
const ODD: &str = "syncctl-test/odd:1";

/// How long each server is stopped, at least.
fn outage_length() -> Duration {
    let seconds = std::env::var("SYNCCTL_TEST_OUTAGE_SECONDS").ok();
    Duration::from_secs(seconds.map_or(12, |text| text.parse().expect("SYNCCTL_TEST_OUTAGE_SECONDS is a number")))
}

/// Requests `/health` all the time, as the kubelet does.
struct HealthProbe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u32, Vec<String>)>,
}

impl HealthProbe {
    fn start(http: &Http) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (http, stopped) = (http.token(None), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let (mut count, mut failures) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                count += 1;
                match http.try_send("GET", "/health", &[], &[]) {
                    Ok(answer) if answer.status == 200 => {}
                    other => failures.push(format!("{other:?}")),
                }
                std::thread::sleep(Duration::from_millis(250));
            }
            (count, failures)
        });
        Self { stop, thread }
    }

    fn assert_healthy(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (count, failures) = self.thread.join().expect("no panic");
        assert!(count > 10, "{count} requests");
        assert!(failures.is_empty(), "{} of {count} requests failed: {}", failures.len(), failures[0]);
    }
}

/// A task and its expected outcome.
struct Task {
    order: Order,
    /// The possible statuses.
    status: &'static [&'static str],
    /// The possible prefixes of the error; empty if there must be none.
    errors: &'static [&'static str],
    rows: Option<i64>,
}

impl Task {
    fn new(kind: Kind, image: &'static str) -> Self {
        let order = Order { kind, image, id: unique("o") };
        Self { order, status: &["SUCCESS"], errors: &[], rows: None }
    }

    fn rows(kind: Kind, image: &'static str, rows: i64) -> Self {
        Self { rows: Some(rows), ..Self::new(kind, image) }
    }

    fn failing(image: &'static str, errors: &'static [&'static str]) -> Self {
        Self { status: &["FAILED"], errors, ..Self::new(Kind::Read, image) }
    }

    /// A task that runs until it is cancelled.
    fn slow() -> Self {
        Self { status: &["CANCELLED"], errors: &["CANCELLED: "], ..Self::new(Kind::Read, SLOW) }
    }
}

struct Scenario {
    // Dropped in this order.
    service: Service,
    world: World,
    tasks: Vec<Task>,
}

impl Scenario {
    /// Starts a task and returns its index.
    fn start(&mut self, task: Task) -> usize {
        let (status, text) = self.request(&task.order);
        assert_eq!(status, 200, "{:?}: {text}", task.order);
        self.tasks.push(task);
        self.tasks.len() - 1
    }

    fn request(&self, order: &Order) -> (u16, String) {
        let (method, target, body) = order.request(&self.world);
        let answer = self.service.http.send(method, &target, &[], body.as_bytes());
        (answer.status, answer.text())
    }

    /// Starts ten tasks of all kinds. Returns two slow ones that run, and one that has just been accepted.
    fn start_ten(&mut self) -> [usize; 3] {
        let slow = [self.start(Task::slow()), self.start(Task::slow())];
        self.start(Task::failing(STILLBORN, &["CONNECTOR_FAILED: "]));
        self.start(Task::rows(Kind::Read, INSTANT, 1000));
        self.start(Task::new(Kind::Check, INSTANT));
        self.start(Task::new(Kind::Discover, INSTANT));
        self.start(Task::new(Kind::Spec, INSTANT));
        self.wait_running(&slow);
        // These end, or start to, during the outage.
        let steady = [self.start(Task::rows(Kind::Read, ODD, 4000)), self.start(Task::rows(Kind::Read, ODD, 4000))];
        self.wait_running(&steady);
        let accepted = self.start(Task::failing(KILLED, &["CONNECTOR_FAILED: the connector was killed"]));
        [slow[0], slow[1], accepted]
    }

    fn wait_running(&self, tasks: &[usize]) {
        for task in tasks {
            let order = &self.tasks[*task].order;
            eventually("a running task", DEADLINE, || order.runs(&self.world).then_some(()));
        }
    }

    /// Waits until `/ready` reports a part as ready or not.
    fn wait_part(&self, part: &str, expected: bool) {
        eventually(&format!("{part} is {expected}"), DEADLINE, || {
            let answer = self.service.http.token(None).get("/ready");
            let document = answer.json();
            let ready = document["parts"].as_object().expect("parts").values().all(|part| *part == true);
            assert_eq!(answer.status == 200, ready, "{document}");
            (document["parts"][part] == expected).then_some(())
        });
    }

    fn wait_ready(&self) {
        eventually("the service is ready again", DEADLINE, || {
            (self.service.http.token(None).get("/ready").status == 200).then_some(())
        });
    }

    /// Asserts that a request fails with a class and a text.
    fn assert_rejected(&self, order: &Order, class: &str, text_part: &str) {
        let (status, text) = self.request(order);
        assert_eq!(status, 503, "{text}");
        let document: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(document["class"], class, "{text}");
        assert!(document["error"].as_str().is_some_and(|error| error.contains(text_part)), "{text}");
    }

    fn assert_outcomes(&self) {
        for Task { order, status, errors, .. } in &self.tasks {
            // A sidecar that gets TERM stores its failure first, and the service the cause.
            let found = eventually(&format!("the outcome of {order:?}"), DEADLINE, || {
                order
                    .row(&self.world)
                    .filter(|(status, error)| status != "RUNNING" && !error.starts_with("TERMINATED: "))
            });
            assert!(status.contains(&found.0.as_str()), "{order:?}: {found:?}");
            let expected =
                errors.iter().any(|error| found.1.starts_with(error)) || errors.is_empty() && found.1.is_empty();
            assert!(expected, "{order:?}: {found:?}");
        }
        eventually("an empty namespace", DEADLINE, || self.world.place.leftovers().is_empty().then_some(()));
        for Task { order, rows, .. } in &self.tasks {
            if let Some(rows) = rows {
                order.assert_rows(&self.world, *rows);
            }
        }
        let reads = self.tasks.iter().filter(|task| task.order.kind == Kind::Read).count();
        assert_eq!(self.world.schema.count("source_task"), i64::try_from(reads).expect("a few"), "one row per read");
    }

    /// Deletes the Pod of a task, as the drain of its node does.
    fn evict(&self, order: &Order) {
        let pods = self.world.place.pods();
        let pod = pods.iter().find(|pod| order.owns(pod)).expect("the Pod");
        let name = pod["metadata"]["name"].as_str().expect("a name");
        self.world.namespace().kubectl(&["delete", "pod", name, "-n", &self.world.namespace().name, "--wait=false"]);
    }
}

#[test]
fn tasks_survive_outages_of_the_api_server_and_of_postgres() {
    let Some(world) = World::alone() else { return };
    let (Some(apiserver), Some(postgres)) = (&world.setup.apiserver, &world.setup.postgres) else { return };
    let outage = outage_length();
    let service = Service::start(&world);
    let pid = service.pid();
    let probe = HealthProbe::start(&service.http);
    let mut scenario = Scenario { service, world, tasks: Vec::new() };

    let [first, second, _] = scenario.start_ten();
    let since = Instant::now();
    let stopped = StoppedServer::stop(apiserver);
    scenario.wait_part("cluster", false);
    let rejected = Order { kind: Kind::Check, image: INSTANT, id: unique("o") };
    scenario.assert_rejected(&rejected, "CLUSTER_UNREACHABLE", "API server");
    std::thread::sleep(outage.saturating_sub(since.elapsed()));
    drop(stopped);
    scenario.wait_ready();
    let row = rejected.row(&scenario.world).expect("the rejected check has a row");
    assert!(row.0 == "FAILED" && row.1.starts_with("CLUSTER_UNREACHABLE: "), "{row:?}");

    let [third, fourth, accepted] = scenario.start_ten();
    let since = Instant::now();
    let stopped = StoppedServer::stop(postgres);
    scenario.wait_part("database", false);
    let rejected = Order { kind: Kind::Read, image: INSTANT, id: unique("o") };
    scenario.assert_rejected(&rejected, "DATABASE_UNREACHABLE", "database");
    // A sidecar that has just started waits for the database for 20 s, and then fails with that reason.
    scenario.tasks[accepted].errors = &["CONNECTOR_FAILED: the connector was killed", "DATABASE_UNREACHABLE: "];
    // Neither its sidecar, which is killed after seconds, nor the service can store its outcome during the outage.
    scenario.tasks[third].status = &["FAILED", "PARTIAL"];
    scenario.tasks[third].errors = &["POD_DELETED: "];
    scenario.evict(&scenario.tasks[third].order);
    std::thread::sleep(outage.saturating_sub(since.elapsed()));
    drop(stopped);
    scenario.wait_ready();
    assert_eq!(rejected.row(&scenario.world), None, "a rejected read has no row");

    for task in [first, second, fourth] {
        let answer = scenario.service.http.get(&scenario.tasks[task].order.cancellation());
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    scenario.assert_outcomes();
    probe.assert_healthy();
    assert_eq!(scenario.service.pid(), pid);
    scenario.service.stop().code(0);
    assert!(!scenario.service.stderr().contains("panicked"), "{}", scenario.service.stderr());
}
