//! `kill -9` of the service at named points of a task's life, and what the next process makes of it.
//!
//! Nothing in the program helps: a proxy holds its calls to the API server, locks of the test hold its statements, and
//! while it is held it is killed. All tasks of a test are at their points when it is: one kill hits all of them.

use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::Duration;

use postgres::Client;

use super::support::http::Answer;
use super::support::proxy::{Call, Moment, Proxy, wait_held};
use super::support::tasks::{Kind, Order};
use super::support::{Service, World, eventually, unique};

/// Until a task is at its point.
const REACH: Duration = Duration::from_secs(40);
/// From the next start to the truth: the dead process's Lease has to expire, and strays that are too young to be told
/// from launches of others are looked for a minute later again.
const TRUTH: Duration = Duration::from_secs(150);
/// A process that starts within this time takes what was about to be launched for what somebody else launches: then it
/// is found one round later, which only takes longer.
const LAUNCHING: Duration = Duration::from_secs(24);

const INSTANT: &str = "syncctl-test/instant:1";
const KILLED: &str = "syncctl-test/exit137:1";
const SLOW: &str = "syncctl-test/slow:1";
/// 4000 rows in eight seconds.
const ODD: &str = "syncctl-test/odd:1";

/// Where a task is when the service dies.
#[derive(Debug, Clone, Copy)]
enum Hold {
    /// The statement that inserts its row waits.
    Insert,
    /// The statement that stores its outcome waits.
    Outcome,
    /// A call waits: the API server has not heard of it, or nobody hears its answer.
    Call(Call),
    /// The same, of its cancellation.
    Cancel(Call),
    /// Its Pod is there and does not run yet.
    Starting,
    /// Its connector has begun to write.
    Running,
}

/// What there is of a task: the status in its row, its Pod, its Secret.
type There = (&'static str, bool, bool);

/// A named point of a task's life.
struct Point {
    label: &'static str,
    kind: Kind,
    image: &'static str,
    hold: Hold,
    /// Proof that the task was at the point, looked at when the service was dead.
    there: There,
    /// Whether the caller, who got no answer, sends the same request again.
    again: bool,
    /// The status at the end, and what the error begins with.
    truth: (&'static str, &'static [&'static str]),
    /// Rows in its table of the destination.
    rows: Option<i64>,
}

const fn before(method: &'static str, kind: &'static str) -> Call {
    Call { moment: Moment::Before, method, kind }
}

const fn after(method: &'static str, kind: &'static str) -> Call {
    Call { moment: Moment::After, method, kind }
}

/// A task that never had a Pod, or whose Pod nobody saw.
const NEVER_RAN: &[&str] = &["ABANDONED: ", "POD_DELETED: "];
/// No failure.
const NONE: &[&str] = &[""];

/// A task at its point.
struct Life<'a> {
    point: &'a Point,
    order: Order,
    /// The request that is not answered.
    asked: Option<JoinHandle<Result<Answer, String>>>,
    held: Option<Receiver<()>>,
    /// Holds a lock until it is dropped.
    lock: Option<Client>,
}

/// One world, its service, and the proxy between them and the API server.
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

    /// Brings tasks to their points, all at a time.
    fn bring<'a>(&self, points: &'a [Point]) -> Vec<Life<'a>> {
        let mut lives: Vec<Life<'a>> = points.iter().map(|point| self.begin(point)).collect();
        for life in &mut lives {
            self.reach(life);
        }
        lives
    }

    /// Brings tasks to their points one after the other: the last ones leave theirs soon.
    fn bring_in_turn<'a>(&self, points: &'a [Point]) -> Vec<Life<'a>> {
        points.iter().flat_map(|point| self.bring(std::slice::from_ref(point))).collect()
    }

    fn begin<'a>(&self, point: &'a Point) -> Life<'a> {
        let order = Order { kind: point.kind, image: point.image, id: unique("k") };
        let mut life = Life { point, order, asked: None, held: None, lock: None };
        match point.hold {
            Hold::Insert => {
                let mut client = self.world.schema.connect();
                let id = &life.order.id;
                let row = format!("'another', '{id}', 'p', 'v', 'RUNNING'");
                let insert = "INSERT INTO source_task (sync_id, task_id, package, version, status) VALUES";
                client.batch_execute(&format!("BEGIN; {insert} ({row})")).expect("a row of our own");
                life.lock = Some(client);
            }
            Hold::Call(call) | Hold::Cancel(call) => life.held = Some(self.proxy.hold(call, &life.order.id)),
            Hold::Outcome | Hold::Starting | Hold::Running => {}
        }
        let waits = matches!(point.hold, Hold::Insert | Hold::Call(Call { method: "POST", .. }));
        let asked = self.ask(&life);
        if waits {
            life.asked = Some(asked);
        } else {
            accepted(point, asked);
        }
        if let Hold::Outcome = point.hold {
            let mut client = self.world.schema.connect();
            // It conflicts with the outcome alone: reports and signs of life do not touch the key.
            let lock = format!("BEGIN; SELECT FROM source_task WHERE task_id = '{}' FOR KEY SHARE", life.order.id);
            client.batch_execute(&lock).expect("a lock");
            life.lock = Some(client);
        }
        life
    }

    fn reach(&self, life: &mut Life) {
        let label = life.point.label;
        if let Hold::Running | Hold::Cancel(_) = life.point.hold {
            eventually(label, REACH, || life.order.runs(&self.world).then_some(()));
        }
        match life.point.hold {
            Hold::Call(_) | Hold::Running => {}
            Hold::Cancel(_) => {
                let (http, target) = (self.service.http.clone(), life.order.cancellation());
                life.asked = Some(std::thread::spawn(move || http.try_send("GET", &target, &[], &[])));
            }
            Hold::Insert | Hold::Outcome => self.wait_locked(label, life.lock.as_mut().expect("it is locked")),
            Hold::Starting => eventually(label, REACH, || {
                let pods = self.world.place.pods();
                pods.iter().any(|pod| life.order.owns(pod) && pod["status"]["phase"] == "Pending").then_some(())
            }),
        }
        if let Some(held) = &life.held {
            wait_held(label, held, REACH);
        }
    }

    /// Waits until the service waits for our lock.
    fn wait_locked(&self, label: &str, lock: &mut Client) {
        let ours: i32 = lock.query_one("SELECT pg_backend_pid()", &[]).expect("an answer").get(0);
        let query = format!(
            "SELECT count(*) FROM pg_stat_activity
             WHERE application_name = 'syncctl serve' AND {ours} = ANY (pg_blocking_pids(pid))"
        );
        eventually(label, REACH, || (self.world.schema.number(&query) > 0).then_some(()));
    }

    /// Asks for the task.
    fn ask(&self, life: &Life) -> JoinHandle<Result<Answer, String>> {
        let (method, target, body) = life.order.request(&self.world);
        let http = self.service.http.clone();
        std::thread::spawn(move || http.try_send(method, &target, &[], body.as_bytes()))
    }

    /// kill -9. Whoever waited for an answer gets none.
    fn kill(&mut self, lives: &mut [Life]) {
        let done = self.service.kill();
        assert_eq!(done.code, None, "it did not end by itself\n{done}");
        for life in lives {
            if let Some(asked) = life.asked.take() {
                let answer = asked.join().expect("a request");
                assert!(answer.is_err(), "{}: {answer:?}", life.point.label);
            }
            let there = self.there(life);
            assert_eq!(there, life.point.there, "{}: status, pod, secret", life.point.label);
            life.lock = None;
        }
        self.proxy.release();
    }

    fn there(&self, life: &Life) -> There {
        let row = match life.order.row(&self.world) {
            None => "",
            Some((status, _)) => ["RUNNING", "SUCCESS", "FAILED", "CANCELLED"]
                .into_iter()
                .find(|known| *known == status)
                .unwrap_or_else(|| panic!("{}: {status}", life.point.label)),
        };
        let is_there = |kind: &str| self.world.namespace().list(kind, &[]).iter().any(|object| life.order.owns(object));
        (row, is_there("pods"), is_there("secrets"))
    }

    /// The callers who got no answer ask again.
    fn ask_again(&self, lives: &[Life]) {
        for life in lives.iter().filter(|life| life.point.again) {
            accepted(life.point, self.ask(life));
        }
    }

    /// Ends the service in order.
    fn end(&mut self) {
        self.service.stop().code(0);
        assert!(!self.service.stderr().contains("panicked"), "{}", self.service.stderr());
    }

    /// Every task reaches its true status, once, and nothing is left.
    fn wait_for_the_truth(&self, lives: &[Life]) {
        for life in lives {
            let (status, errors) = life.point.truth;
            let found = eventually(life.point.label, TRUTH, || {
                life.order.row(&self.world).filter(|(status, _)| status != "RUNNING")
            });
            assert_eq!(found.0, status, "{}: {}", life.point.label, found.1);
            let told = errors.iter().any(|error| found.1.starts_with(error)) && (errors != NONE || found.1.is_empty());
            assert!(told, "{}: {}", life.point.label, found.1);
        }
        eventually("an empty namespace", TRUTH, || self.world.place.leftovers().is_empty().then_some(()));
        for life in lives {
            let label = life.point.label;
            // What came last did not change what was true.
            assert_eq!(life.order.row(&self.world).expect("a row").0, life.point.truth.0, "{label}");
            if let Some(rows) = life.point.rows {
                life.order.assert_rows(&self.world, rows);
            }
        }
        let reads = lives.iter().filter(|life| life.point.kind == Kind::Read).count();
        assert_eq!(self.world.schema.count("source_task"), i64::try_from(reads).expect("a few"), "rows of tasks");
    }
}

/// Waits for the answer to a request that has to be accepted.
#[track_caller]
fn accepted(point: &Point, asked: JoinHandle<Result<Answer, String>>) {
    let answer = asked.join().expect("a request").unwrap_or_else(|error| panic!("{}: {error}", point.label));
    assert_eq!(answer.status, 200, "{}: {}", point.label, answer.text());
}

#[test]
fn killed_while_it_launches_or_cleans_up() {
    let Some(mut scene) = Scene::new() else { return };
    // What stays as it is until the kill comes first; then what goes on by itself.
    let staying = [
        Point {
            label: "pod deleted, secret not yet deleted",
            kind: Kind::Read,
            image: INSTANT,
            hold: Hold::Call(before("DELETE", "secrets")),
            there: ("SUCCESS", false, true),
            again: true,
            truth: ("SUCCESS", NONE),
            rows: Some(1000),
        },
        Point {
            label: "pod of a check deleted, answer not delivered",
            kind: Kind::Check,
            image: INSTANT,
            hold: Hold::Call(after("DELETE", "pods")),
            there: ("SUCCESS", false, true),
            again: false,
            truth: ("SUCCESS", NONE),
            rows: None,
        },
        Point {
            label: "row written, secret not yet created",
            kind: Kind::Read,
            image: INSTANT,
            hold: Hold::Call(before("POST", "secrets")),
            there: ("RUNNING", false, false),
            again: true,
            truth: ("FAILED", NEVER_RAN),
            rows: None,
        },
        Point {
            label: "secret created, answer not delivered",
            kind: Kind::Read,
            image: INSTANT,
            hold: Hold::Call(after("POST", "secrets")),
            there: ("RUNNING", false, true),
            again: false,
            truth: ("FAILED", NEVER_RAN),
            rows: None,
        },
        Point {
            label: "secret there, pod of a check not yet created",
            kind: Kind::Check,
            image: INSTANT,
            hold: Hold::Call(before("POST", "pods")),
            there: ("", false, true),
            again: false,
            truth: ("FAILED", NEVER_RAN),
            rows: None,
        },
        Point {
            label: "secret there, pod of a discover not yet created, sent again",
            kind: Kind::Discover,
            image: INSTANT,
            hold: Hold::Call(before("POST", "pods")),
            there: ("", false, true),
            again: true,
            truth: ("SUCCESS", NONE),
            rows: None,
        },
    ];
    let moving = [
        Point {
            label: "request accepted, row not yet written",
            kind: Kind::Read,
            image: INSTANT,
            hold: Hold::Insert,
            there: ("", false, false),
            again: true,
            truth: ("SUCCESS", NONE),
            rows: Some(1000),
        },
        Point {
            label: "pod created, answer not delivered",
            kind: Kind::Read,
            image: ODD,
            hold: Hold::Call(after("POST", "pods")),
            there: ("RUNNING", true, true),
            again: true,
            truth: ("SUCCESS", NONE),
            rows: Some(4000),
        },
    ];
    let lives = scene.bring(&staying).into_iter().chain(scene.bring_in_turn(&moving));
    let mut lives: Vec<Life> = lives.collect();
    scene.kill(&mut lives);
    std::thread::sleep(LAUNCHING);
    scene.service.start_again();
    scene.ask_again(&lives);
    scene.wait_for_the_truth(&lives);
    scene.end();
}

#[test]
fn killed_while_tasks_run_and_end() {
    let Some(mut scene) = Scene::new() else { return };
    let staying = [
        Point {
            label: "pod ended, outcome not yet recorded",
            kind: Kind::Read,
            image: KILLED,
            hold: Hold::Outcome,
            there: ("RUNNING", true, true),
            again: false,
            truth: ("FAILED", &["CONNECTOR_FAILED: the connector was killed"]),
            rows: None,
        },
        Point {
            label: "outcome recorded, pod not yet deleted",
            kind: Kind::Read,
            image: KILLED,
            hold: Hold::Call(before("DELETE", "pods")),
            there: ("FAILED", true, true),
            again: true,
            truth: ("FAILED", &["CONNECTOR_FAILED: the connector was killed"]),
            rows: None,
        },
        Point {
            label: "cancelled in its row, pod not yet deleted",
            kind: Kind::Read,
            image: SLOW,
            hold: Hold::Cancel(before("DELETE", "pods")),
            there: ("CANCELLED", true, true),
            again: false,
            truth: ("CANCELLED", &["CANCELLED: "]),
            rows: None,
        },
    ];
    let moving = [
        Point {
            label: "connector running",
            kind: Kind::Read,
            image: ODD,
            hold: Hold::Running,
            there: ("RUNNING", true, true),
            again: false,
            truth: ("SUCCESS", NONE),
            rows: Some(4000),
        },
        Point {
            label: "pod accepted and starting",
            kind: Kind::Read,
            image: ODD,
            hold: Hold::Starting,
            there: ("RUNNING", true, true),
            again: true,
            truth: ("SUCCESS", NONE),
            rows: Some(4000),
        },
    ];
    let lives = scene.bring(&staying).into_iter().chain(scene.bring_in_turn(&moving));
    let mut lives: Vec<Life> = lives.collect();
    scene.kill(&mut lives);
    scene.service.start_again();
    scene.ask_again(&lives);
    scene.wait_for_the_truth(&lives);
    scene.end();
}

#[test]
fn killed_once_more_while_the_next_process_takes_over() {
    let Some(mut scene) = Scene::new() else { return };
    let points = [
        Point {
            label: "running over two kills",
            kind: Kind::Read,
            image: ODD,
            hold: Hold::Running,
            there: ("RUNNING", true, true),
            again: true,
            truth: ("SUCCESS", NONE),
            rows: Some(4000),
        },
        Point {
            label: "ended while nobody looked",
            kind: Kind::Read,
            image: KILLED,
            hold: Hold::Starting,
            there: ("RUNNING", true, true),
            again: true,
            truth: ("FAILED", &["CONNECTOR_FAILED: the connector was killed"]),
            rows: None,
        },
    ];
    let mut lives = scene.bring_in_turn(&points);
    scene.kill(&mut lives);
    let taking = scene.proxy.hold(after("PUT", "leases"), "");
    scene.service.launch();
    wait_held("the takeover", &taking, REACH);
    scene.service.kill();
    scene.proxy.release();
    assert_eq!(lives[1].order.row(&scene.world).expect("a row").0, "RUNNING", "nobody led since the first kill");
    scene.service.start_again();
    scene.ask_again(&lives);
    scene.wait_for_the_truth(&lives);
    scene.end();
}
