//! The API server, and then Postgres, stop in the middle of twenty tasks and come back. `make soak` lets it take longer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::tasks::{Kind, Order};
use super::support::{Away, Http, Service, World, eventually, unique};

/// Until tasks run, also on a machine where everything starts at once.
const START: Duration = Duration::from_mins(1);
/// From the return of a server until the service is ready.
const RECOVERY: Duration = Duration::from_secs(45);
/// From there to the last outcome.
const TRUTH: Duration = Duration::from_secs(90);
/// A caller is told of an outage before it gives up itself.
const REFUSAL: Duration = Duration::from_secs(15);
/// The kubelet asks each ten seconds and waits for one.
const HEALTH: Duration = Duration::from_secs(1);

const INSTANT: &str = "syncctl-test/instant:1";
const KILLED: &str = "syncctl-test/exit137:1";
const STILLBORN: &str = "syncctl-test/stillborn:1";
const SLOW: &str = "syncctl-test/slow:1";
/// 4000 rows in eight seconds.
const ODD: &str = "syncctl-test/odd:1";

/// How long each server is away.
fn outage() -> Duration {
    let seconds = std::env::var("SYNCCTL_TEST_OUTAGE_SECONDS").ok();
    Duration::from_secs(seconds.map_or(12, |text| text.parse().expect("SYNCCTL_TEST_OUTAGE_SECONDS is a number")))
}

/// Asks `/health` all the time, as the kubelet does.
struct Nurse {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u32, Vec<String>)>,
}

impl Nurse {
    fn start(http: &Http) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (http, stopped) = (http.token(None).limit(HEALTH), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let (mut asked, mut bad) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                asked += 1;
                match http.try_send("GET", "/health", &[], &[]) {
                    Ok(answer) if answer.status == 200 => {}
                    other => bad.push(format!("{other:?}")),
                }
                std::thread::sleep(Duration::from_millis(250));
            }
            (asked, bad)
        });
        Self { stop, thread }
    }

    /// It was well all the time.
    fn assert_well(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (asked, bad) = self.thread.join().expect("the thread that asks for the health");
        assert!(asked > 40, "asked {asked} times");
        assert!(bad.is_empty(), "{} of {asked} bad answers: {}", bad.len(), bad[0]);
    }
}

/// A task and its true end.
struct Task {
    order: Order,
    /// What its status may be.
    status: &'static [&'static str],
    /// What its error may begin with; none: it has none.
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

    /// One that runs until it is cancelled.
    fn slow() -> Self {
        Self { status: &["CANCELLED"], errors: &["CANCELLED: "], ..Self::new(Kind::Read, SLOW) }
    }
}

struct Scene {
    // Dropped in this order.
    service: Service,
    world: World,
    tasks: Vec<Task>,
}

impl Scene {
    /// Starts a task and returns its place in the list.
    fn start(&mut self, task: Task) -> usize {
        let (status, text) = self.ask(&task.order);
        assert_eq!(status, 200, "{:?}: {text}", task.order);
        self.tasks.push(task);
        self.tasks.len() - 1
    }

    fn ask(&self, order: &Order) -> (u16, String) {
        let (method, target, body) = order.request(&self.world);
        let answer = self.service.http.send(method, &target, &[], body.as_bytes());
        (answer.status, answer.text())
    }

    /// Ten tasks of all kinds. Returns when the long ones are in their middle: two slow ones, and one that has just been
    /// accepted.
    fn start_ten(&mut self) -> [usize; 3] {
        let slow = [self.start(Task::slow()), self.start(Task::slow())];
        self.start(Task::failing(STILLBORN, &["CONNECTOR_FAILED: "]));
        self.start(Task::rows(Kind::Read, INSTANT, 1000));
        self.start(Task::new(Kind::Check, INSTANT));
        self.start(Task::new(Kind::Discover, INSTANT));
        self.start(Task::new(Kind::Spec, INSTANT));
        self.wait_running(&slow);
        // These end, or begin to, while nobody can be asked.
        let steady = [self.start(Task::rows(Kind::Read, ODD, 4000)), self.start(Task::rows(Kind::Read, ODD, 4000))];
        self.wait_running(&steady);
        let young = self.start(Task::failing(KILLED, &["CONNECTOR_FAILED: the connector was killed"]));
        [slow[0], slow[1], young]
    }

    fn wait_running(&self, tasks: &[usize]) {
        for task in tasks {
            let order = &self.tasks[*task].order;
            eventually("a task in its middle", START, || order.runs(&self.world).then_some(()));
        }
    }

    /// What `/ready` says of a part; it is asked until it says so.
    fn wait_part(&self, part: &str, expected: bool, limit: Duration) {
        eventually(&format!("{part} is {expected}"), limit, || {
            let answer = self.service.http.token(None).get("/ready");
            let document = answer.json();
            let ready = document["parts"].as_object().expect("parts").values().all(|part| *part == true);
            assert_eq!(answer.status == 200, ready, "{document}");
            (document["parts"][part] == expected).then_some(())
        });
    }

    fn wait_ready(&self) {
        eventually("the service is ready again", RECOVERY, || {
            (self.service.http.token(None).get("/ready").status == 200).then_some(())
        });
    }

    /// A request that cannot be served now is told so, soon and in words.
    fn assert_refused(&self, order: &Order, class: &str, word: &str) {
        let asked = Instant::now();
        let (status, text) = self.ask(order);
        assert!(asked.elapsed() < REFUSAL, "{:?} until {text}", asked.elapsed());
        assert_eq!(status, 503, "{text}");
        let document: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(document["class"], class, "{text}");
        assert!(document["error"].as_str().is_some_and(|error| error.contains(word)), "{text}");
    }

    fn wait_for_the_truth(&self) {
        for Task { order, status, errors, .. } in &self.tasks {
            let found = eventually(&format!("the end of {order:?}"), TRUTH, || {
                order.row(&self.world).filter(|(status, _)| status != "RUNNING")
            });
            assert!(status.contains(&found.0.as_str()), "{order:?}: {found:?}");
            let told = errors.iter().any(|error| found.1.starts_with(error)) || errors.is_empty() && found.1.is_empty();
            assert!(told, "{order:?}: {found:?}");
        }
        eventually("an empty namespace", TRUTH, || self.world.place.leftovers().is_empty().then_some(()));
        for Task { order, rows, .. } in &self.tasks {
            if let Some(rows) = rows {
                order.assert_rows(&self.world, *rows);
            }
        }
        let reads = self.tasks.iter().filter(|task| task.order.kind == Kind::Read).count();
        assert_eq!(self.world.schema.count("source_task"), i64::try_from(reads).expect("a few"), "rows of tasks");
    }

    /// Removes the Pod of a task as a node does that is drained.
    fn evict(&self, order: &Order) {
        let pods = self.world.place.pods();
        let pod = pods.iter().find(|pod| order.owns(pod)).expect("its pod");
        let name = pod["metadata"]["name"].as_str().expect("a name");
        self.world.namespace().kubectl(&["delete", "pod", name, "-n", &self.world.namespace().name, "--wait=false"]);
    }
}

#[test]
fn twenty_tasks_survive_an_outage_of_the_api_server_and_one_of_postgres() {
    let Some(world) = World::alone() else { return };
    let (Some(apiserver), Some(postgres)) = (&world.setup.apiserver, &world.setup.postgres) else { return };
    let outage = outage();
    let service = Service::start(&world);
    let pid = service.pid();
    let nurse = Nurse::start(&service.http);
    let mut scene = Scene { service, world, tasks: Vec::new() };

    let [first, second, _] = scene.start_ten();
    let since = Instant::now();
    let away = Away::stop(apiserver);
    scene.wait_part("cluster", false, Duration::from_secs(10));
    let refused = Order { kind: Kind::Check, image: INSTANT, id: unique("o") };
    scene.assert_refused(&refused, "CLUSTER_UNREACHABLE", "API server");
    std::thread::sleep(outage.saturating_sub(since.elapsed()));
    drop(away);
    scene.wait_ready();
    let told = refused.row(&scene.world).expect("the refused check has a row");
    assert!(told.0 == "FAILED" && told.1.starts_with("CLUSTER_UNREACHABLE: "), "{told:?}");

    let [third, fourth, young] = scene.start_ten();
    let since = Instant::now();
    let away = Away::stop(postgres);
    scene.wait_part("database", false, Duration::from_secs(30));
    let refused = Order { kind: Kind::Read, image: INSTANT, id: unique("o") };
    scene.assert_refused(&refused, "DATABASE_UNREACHABLE", "database");
    // A sidecar that has not begun waits for 20 s, and then says why it does not begin.
    scene.tasks[young].errors = &["CONNECTOR_FAILED: the connector was killed", "DATABASE_UNREACHABLE: "];
    // Its end can be told to nobody: not by its sidecar, which has seconds, and not by the service for now.
    scene.tasks[third].status = &["FAILED", "CANCELLED", "PARTIAL"];
    scene.tasks[third].errors = &["POD_DELETED: ", "CANCELLED: "];
    scene.evict(&scene.tasks[third].order);
    std::thread::sleep(outage.saturating_sub(since.elapsed()));
    drop(away);
    scene.wait_ready();
    assert_eq!(refused.row(&scene.world), None, "what was refused was not begun");

    for task in [first, second, fourth] {
        let answer = scene.service.http.get(&scene.tasks[task].order.cancellation());
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    scene.wait_for_the_truth();
    nurse.assert_well();
    assert_eq!(scene.service.pid(), pid);
    scene.service.stop().code(0);
    assert!(!scene.service.stderr().contains("panicked"), "{}", scene.service.stderr());
}
