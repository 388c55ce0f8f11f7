//! `kill -9` of the service at named points of a task's lifecycle, and how the next process continues.
//!
//! The program has no hooks for this: a proxy holds its calls to the API server, and locks of the test hold its SQL
//! statements. All tasks of a test are at their points when the service is killed.

use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::Duration;

use postgres::Client;

use super::support::http::Response;
use super::support::proxy::{Call, Moment, Proxy, wait_held};
use super::support::tasks::{Kind, Order};
use super::support::{Service, World, eventually, unique};

/// A deadline that only means "hangs".
const DEADLINE: Duration = Duration::from_mins(5);
/// A service that starts sooner takes the interrupted launches for those of another process and finds them a minute later,
/// which only makes the test slower.
const LAUNCHING: Duration = Duration::from_secs(24);

const INSTANT: &str = "syncctl-test/instant:1";
const KILLED: &str = "syncctl-test/exit137:1";
const SLOW: &str = "syncctl-test/slow:1";
/// 4000 rows in eight seconds.
const ODD: &str = "syncctl-test/odd:1";

/// The point of a task at which the service is killed.
#[derive(Debug, Clone, Copy)]
enum Hold {
    /// The statement that inserts its row waits.
    Insert,
    /// The statement that stores its outcome waits.
    Outcome,
    /// A call waits: before it reaches the API server, or before its answer reaches the service.
    Call(Call),
    /// The same for a call of its cancellation.
    Cancel(Call),
    /// Its Pod exists and does not run yet.
    Starting,
    /// Its connector writes.
    Running,
}

/// The status in the row of a task, and whether its Pod and its Secret exist.
type State = (&'static str, bool, bool);

/// A test case.
struct Point {
    label: &'static str,
    kind: Kind,
    image: &'static str,
    hold: Hold,
    /// The state after the kill, which proves that the task was at the point.
    state: State,
    /// Whether the client, which got no answer, repeats its request.
    repeats: bool,
    /// The final status, and the possible prefixes of the error.
    outcome: (&'static str, &'static [&'static str]),
    /// Rows in its table of the destination.
    rows: Option<i64>,
}

const fn before(method: &'static str, kind: &'static str) -> Call {
    Call { moment: Moment::Before, method, kind }
}

const fn after(method: &'static str, kind: &'static str) -> Call {
    Call { moment: Moment::After, method, kind }
}

/// The errors of a task whose Pod never existed or was never observed.
const NEVER_RAN: &[&str] = &["ABANDONED: ", "POD_DELETED: "];
/// No failure.
const NONE: &[&str] = &[""];

/// A task of a test case.
struct Case<'a> {
    point: &'a Point,
    order: Order,
    /// The request without an answer.
    request: Option<JoinHandle<Result<Response, String>>>,
    held: Option<Receiver<()>>,
    /// Holds a lock until it is dropped.
    lock: Option<Client>,
}

/// A service and the proxy between it and the API server.
struct Scene {
    // Dropped in this order.
    service: Service,
    proxy: Proxy,
    world: World,
}

impl Scene {
    fn new() -> Option<Self> {
        let world = World::in_cluster()?;
        let proxy = Proxy::start(&world);
        let kubeconfig = proxy.kubeconfig.clone();
        let service =
            Service::start_with(&world, |program| program.env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", &kubeconfig));
        Some(Self { service, proxy, world })
    }

    /// Starts tasks concurrently and waits until each is at its point.
    fn bring<'a>(&self, points: &'a [Point]) -> Vec<Case<'a>> {
        let mut cases: Vec<Case<'a>> = points.iter().map(|point| self.start(point)).collect();
        for case in &mut cases {
            self.wait_at_point(case);
        }
        cases
    }

    /// The same one after the other, for points that a task soon leaves.
    fn bring_in_turn<'a>(&self, points: &'a [Point]) -> Vec<Case<'a>> {
        points.iter().flat_map(|point| self.bring(std::slice::from_ref(point))).collect()
    }

    fn start<'a>(&self, point: &'a Point) -> Case<'a> {
        let order = Order { kind: point.kind, image: point.image, id: unique("k") };
        let mut case = Case { point, order, request: None, held: None, lock: None };
        match point.hold {
            Hold::Insert => {
                let mut client = self.world.schema.connect();
                let id = &case.order.id;
                let row = format!("'another', '{id}', 'p', 'v', 'RUNNING'");
                let insert = "INSERT INTO source_task (sync_id, task_id, package, version, status) VALUES";
                client.batch_execute(&format!("BEGIN; {insert} ({row})")).expect("a row of our own");
                case.lock = Some(client);
            }
            Hold::Call(call) | Hold::Cancel(call) => case.held = Some(self.proxy.hold(call, &case.order.id)),
            Hold::Outcome | Hold::Starting | Hold::Running => {}
        }
        let waits = matches!(point.hold, Hold::Insert | Hold::Call(Call { method: "POST", .. }));
        let request = self.send(&case);
        if waits {
            case.request = Some(request);
        } else {
            assert_accepted(point, request);
        }
        if let Hold::Outcome = point.hold {
            let mut client = self.world.schema.connect();
            // It conflicts with the outcome alone: reports and heartbeats do not update the key.
            let lock = format!("BEGIN; SELECT FROM source_task WHERE task_id = '{}' FOR KEY SHARE", case.order.id);
            client.batch_execute(&lock).expect("a lock");
            case.lock = Some(client);
        }
        case
    }

    fn wait_at_point(&self, case: &mut Case) {
        let label = case.point.label;
        if let Hold::Running | Hold::Cancel(_) = case.point.hold {
            eventually(label, DEADLINE, || case.order.runs(&self.world).then_some(()));
        }
        match case.point.hold {
            Hold::Call(_) | Hold::Running => {}
            Hold::Cancel(_) => {
                let (http, target) = (self.service.http.clone(), case.order.cancellation());
                case.request = Some(std::thread::spawn(move || http.try_send("GET", &target, &[], &[])));
            }
            Hold::Insert | Hold::Outcome => self.wait_locked(label, case.lock.as_mut().expect("a lock")),
            Hold::Starting => eventually(label, DEADLINE, || {
                let pods = self.world.place.pods();
                pods.iter().any(|pod| case.order.owns(pod) && pod["status"]["phase"] == "Pending").then_some(())
            }),
        }
        if let Some(held) = &case.held {
            wait_held(label, held, DEADLINE);
        }
    }

    /// Waits until a statement of the service waits for the lock.
    fn wait_locked(&self, label: &str, lock: &mut Client) {
        let pid: i32 = lock.query_one("SELECT pg_backend_pid()", &[]).expect("an answer").get(0);
        let query = format!(
            "SELECT count(*) FROM pg_stat_activity
             WHERE application_name = 'syncctl serve' AND {pid} = ANY (pg_blocking_pids(pid))"
        );
        eventually(label, DEADLINE, || (self.world.schema.number(&query) > 0).then_some(()));
    }

    /// Sends the request for the task.
    fn send(&self, case: &Case) -> JoinHandle<Result<Response, String>> {
        let (method, target, body) = case.order.request(&self.world);
        let http = self.service.http.clone();
        std::thread::spawn(move || http.try_send(method, &target, &[], body.as_bytes()))
    }

    /// kill -9. Waiting clients get no answer.
    fn kill(&mut self, cases: &mut [Case]) {
        let done = self.service.kill();
        assert_eq!(done.code, None, "the service ended before the kill\n{done}");
        for case in cases {
            if let Some(request) = case.request.take() {
                let answer = request.join().expect("a request");
                assert!(answer.is_err(), "{}: {answer:?}", case.point.label);
            }
            let what = format!("{}: status, pod, secret: {:?}", case.point.label, case.point.state);
            eventually(&what, DEADLINE, || (self.state(case) == case.point.state).then_some(()));
            case.lock = None;
        }
        self.proxy.release();
    }

    fn state(&self, case: &Case) -> State {
        let row = match case.order.row(&self.world) {
            None => "",
            Some((status, _)) => ["RUNNING", "SUCCESS", "FAILED", "CANCELLED"]
                .into_iter()
                .find(|known| *known == status)
                .unwrap_or_else(|| panic!("{}: {status}", case.point.label)),
        };
        let exists = |kind: &str| self.world.namespace().list(kind, &[]).iter().any(|object| case.order.owns(object));
        (row, exists("pods"), exists("secrets"))
    }

    /// Clients without an answer repeat their requests.
    fn repeat_requests(&self, cases: &[Case]) {
        for case in cases.iter().filter(|case| case.point.repeats) {
            assert_accepted(case.point, self.send(case));
        }
    }

    /// Ends the service in order.
    fn stop(&mut self) {
        self.service.stop().code(0);
        assert!(!self.service.stderr().contains("panicked"), "{}", self.service.stderr());
    }

    /// Waits until every task has its final outcome, once, and nothing is left behind.
    fn wait_for_outcomes(&self, cases: &[Case]) {
        for case in cases {
            let (status, errors) = case.point.outcome;
            let found = eventually(case.point.label, DEADLINE, || {
                case.order.row(&self.world).filter(|(status, _)| status != "RUNNING")
            });
            assert_eq!(found.0, status, "{}: {}", case.point.label, found.1);
            let is_expected =
                errors.iter().any(|error| found.1.starts_with(error)) && (errors != NONE || found.1.is_empty());
            assert!(is_expected, "{}: {}", case.point.label, found.1);
        }
        eventually("an empty namespace", DEADLINE, || self.world.place.leftovers().is_empty().then_some(()));
        for case in cases {
            let label = case.point.label;
            // The cleanup did not change the outcome.
            assert_eq!(case.order.row(&self.world).expect("a row").0, case.point.outcome.0, "{label}");
            if let Some(rows) = case.point.rows {
                case.order.assert_rows(&self.world, rows);
            }
        }
        let reads = cases.iter().filter(|case| case.point.kind == Kind::Read).count();
        assert_eq!(self.world.schema.count("source_task"), i64::try_from(reads).expect("a few"), "rows of tasks");
    }
}

/// Waits for the answer 200.
#[track_caller]
fn assert_accepted(point: &Point, request: JoinHandle<Result<Response, String>>) {
    let answer = request.join().expect("a request").unwrap_or_else(|error| panic!("{}: {error}", point.label));
    assert_eq!(answer.status, 200, "{}: {}", point.label, answer.text());
}

#[test]
fn killed_during_launches_and_cleanups() {
    let Some(mut scene) = Scene::new() else { return };
    // First the tasks that are held until the kill, then those that continue by themselves.
    let held = [
        Point {
            label: "outcome stored by the sidecar, secret without an owner",
            kind: Kind::Read,
            image: INSTANT,
            hold: Hold::Call(before("PATCH", "secrets")),
            state: ("SUCCESS", true, true),
            repeats: true,
            outcome: ("SUCCESS", NONE),
            rows: Some(1000),
        },
        Point {
            label: "pod of a check deleted, answer not delivered",
            kind: Kind::Check,
            image: INSTANT,
            hold: Hold::Call(after("DELETE", "pods")),
            // The cluster deletes the Secret with its owner.
            state: ("SUCCESS", false, false),
            repeats: false,
            outcome: ("SUCCESS", NONE),
            rows: None,
        },
        Point {
            label: "row written, secret not yet created",
            kind: Kind::Read,
            image: INSTANT,
            hold: Hold::Call(before("POST", "secrets")),
            state: ("RUNNING", false, false),
            repeats: true,
            outcome: ("FAILED", NEVER_RAN),
            rows: None,
        },
        Point {
            label: "secret created, answer not delivered",
            kind: Kind::Read,
            image: INSTANT,
            hold: Hold::Call(after("POST", "secrets")),
            state: ("RUNNING", false, true),
            repeats: false,
            outcome: ("FAILED", NEVER_RAN),
            rows: None,
        },
        Point {
            label: "secret created, pod of a check not yet created",
            kind: Kind::Check,
            image: INSTANT,
            hold: Hold::Call(before("POST", "pods")),
            state: ("", false, true),
            repeats: false,
            outcome: ("FAILED", NEVER_RAN),
            rows: None,
        },
        Point {
            label: "secret created, pod of a discover not yet created, request repeated",
            kind: Kind::Discover,
            image: INSTANT,
            hold: Hold::Call(before("POST", "pods")),
            state: ("", false, true),
            repeats: true,
            outcome: ("SUCCESS", NONE),
            rows: None,
        },
    ];
    let passing = [
        Point {
            label: "request accepted, row not yet written",
            kind: Kind::Read,
            image: INSTANT,
            hold: Hold::Insert,
            state: ("", false, false),
            repeats: true,
            outcome: ("SUCCESS", NONE),
            rows: Some(1000),
        },
        Point {
            label: "pod created, answer not delivered",
            kind: Kind::Read,
            image: ODD,
            hold: Hold::Call(after("POST", "pods")),
            state: ("RUNNING", true, true),
            repeats: true,
            outcome: ("SUCCESS", NONE),
            rows: Some(4000),
        },
    ];
    let cases = scene.bring(&held).into_iter().chain(scene.bring_in_turn(&passing));
    let mut cases: Vec<Case> = cases.collect();
    scene.kill(&mut cases);
    std::thread::sleep(LAUNCHING);
    scene.service.start_again();
    scene.repeat_requests(&cases);
    scene.wait_for_outcomes(&cases);
    scene.stop();
}

#[test]
fn killed_while_tasks_run_and_end() {
    let Some(mut scene) = Scene::new() else { return };
    let held = [
        Point {
            label: "pod ended, outcome not yet recorded",
            kind: Kind::Read,
            image: KILLED,
            hold: Hold::Outcome,
            state: ("RUNNING", true, true),
            repeats: false,
            outcome: ("FAILED", &["CONNECTOR_FAILED: the connector was killed"]),
            rows: None,
        },
        Point {
            label: "outcome recorded, pod not yet deleted",
            kind: Kind::Read,
            image: KILLED,
            hold: Hold::Call(before("DELETE", "pods")),
            state: ("FAILED", true, true),
            repeats: true,
            outcome: ("FAILED", &["CONNECTOR_FAILED: the connector was killed"]),
            rows: None,
        },
        Point {
            label: "cancelled in its row, pod not yet deleted",
            kind: Kind::Read,
            image: SLOW,
            hold: Hold::Cancel(before("DELETE", "pods")),
            state: ("CANCELLED", true, true),
            repeats: false,
            outcome: ("CANCELLED", &["CANCELLED: "]),
            rows: None,
        },
    ];
    let passing = [
        Point {
            label: "connector running",
            kind: Kind::Read,
            image: ODD,
            hold: Hold::Running,
            state: ("RUNNING", true, true),
            repeats: false,
            outcome: ("SUCCESS", NONE),
            rows: Some(4000),
        },
        Point {
            label: "pod accepted and starting",
            kind: Kind::Read,
            image: ODD,
            hold: Hold::Starting,
            state: ("RUNNING", true, true),
            repeats: true,
            outcome: ("SUCCESS", NONE),
            rows: Some(4000),
        },
    ];
    let cases = scene.bring(&held).into_iter().chain(scene.bring_in_turn(&passing));
    let mut cases: Vec<Case> = cases.collect();
    scene.kill(&mut cases);
    scene.service.start_again();
    scene.repeat_requests(&cases);
    scene.wait_for_outcomes(&cases);
    scene.stop();
}

#[test]
fn killed_again_during_the_takeover() {
    let Some(mut scene) = Scene::new() else { return };
    let points = [
        Point {
            label: "running over two kills",
            kind: Kind::Read,
            image: ODD,
            hold: Hold::Running,
            state: ("RUNNING", true, true),
            repeats: true,
            outcome: ("SUCCESS", NONE),
            rows: Some(4000),
        },
        Point {
            label: "ended between two leaders",
            kind: Kind::Read,
            image: KILLED,
            hold: Hold::Starting,
            state: ("RUNNING", true, true),
            repeats: true,
            outcome: ("FAILED", &["CONNECTOR_FAILED: the connector was killed"]),
            rows: None,
        },
    ];
    let mut cases = scene.bring_in_turn(&points);
    scene.kill(&mut cases);
    let takeover = scene.proxy.hold(after("PUT", "leases"), "");
    scene.service.launch();
    wait_held("the takeover", &takeover, DEADLINE);
    scene.service.kill();
    scene.proxy.release();
    assert_eq!(
        cases[1].order.row(&scene.world).expect("a row").0,
        "RUNNING",
        "no process has led since the first kill"
    );
    scene.service.start_again();
    scene.repeat_requests(&cases);
    scene.wait_for_outcomes(&cases);
    scene.stop();
}
