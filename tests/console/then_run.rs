//! A discover with `thenRun`: the console is asked to start the read, which runs under the same task id.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use super::{
    DEADLINE, INSTANT, MANUAL, SCHEDULED, SLOW, Service, Value, World, body, cancel_task, ended, eventually, json,
    post, read, running, unique, wait_empty, wait_running,
};

const TOKEN: &str = "console-token-1";

/// What a console received: the first line and the `Authorization` of each request.
#[derive(Clone, Default)]
struct Requests(Arc<Mutex<Vec<(String, String)>>>);

impl Requests {
    fn all(&self) -> Vec<(String, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A console that sends these responses in turn, and the last one for ever.
fn console(listener: TcpListener, responses: &[&str]) -> Requests {
    let requests = Requests::default();
    let (received, responses): (_, Vec<String>) =
        (requests.clone(), responses.iter().map(|text| (*text).to_owned()).collect());
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let mut client = client.expect("a connection");
            let mut lines = BufReader::new(client.try_clone().expect("a socket")).lines().map_while(Result::ok);
            let first = lines.next().unwrap_or_default();
            let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let token = headers.iter().find_map(|line| line.strip_prefix("Authorization: ")).unwrap_or_default();
            received.0.lock().unwrap_or_else(PoisonError::into_inner).push((first, token.to_owned()));
            let response = &responses[number.min(responses.len() - 1)];
            let length = response.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len());
            let framed = response.replacen("\r\n", &format!("\r\nContent-Length: {length}\r\n"), 1);
            client.write_all(framed.as_bytes()).ok();
        }
    });
    requests
}

const OK: &str = "HTTP/1.1 200 OK\r\n\r\n{\"ok\":true}";

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

fn service(world: &World, console: SocketAddr) -> Service {
    Service::start_with(world, |program| {
        let url = format!("http://{console}/jitsu");
        program.env("SYNCCTL_CONSOLE_URL", &url).env("SYNCCTL_CONSOLE_TOKEN", TOKEN)
    })
}

/// `POST /discover` with `thenRun`: status and answer.
fn discover(service: &Service, image: &str, sync: &str, task: &str, started_by: &str) -> (u16, Value) {
    let query = [
        ("storageKey", sync),
        ("syncId", sync),
        ("taskId", task),
        ("workspaceId", "work space"),
        ("thenRun", "true"),
        ("startedBy", started_by),
    ];
    post(service, "/discover", image, &query, &json!({"config": {}}))
}

/// The console writes its own row once it was answered.
fn write_row(world: &World, sync: &str, task: &str) {
    world.schema.execute(&format!(
        "INSERT INTO source_task (sync_id, task_id, package, version, started_at, started_by, status, description)
         VALUES ('{sync}', '{task}', 'p', 'v', now() + interval '5 minutes', '{MANUAL}', 'RUNNING', 'Started')
         ON CONFLICT (task_id) DO UPDATE SET package = excluded.package, version = excluded.version,
           started_at = excluded.started_at, started_by = excluded.started_by, status = excluded.status,
           description = excluded.description"
    ));
}

fn wait_for_request(requests: &Requests) {
    eventually("a request to the console", DEADLINE, || (!requests.all().is_empty()).then_some(()));
}

#[test]
fn the_console_is_asked_once_and_the_read_under_the_same_id_is_the_second_stage() {
    let Some(world) = World::new() else { return };
    let (listener, address) = listener();
    let requests = console(listener, &["HTTP/1.1 503 Busy\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"]);
    let service = service(&world, address);
    for (round, (image, started_by)) in [
        (INSTANT, MANUAL),
        (INSTANT, SCHEDULED),
        // A discover that fails is followed by a read, too.
        ("syncctl-test/odd:1", MANUAL),
    ]
    .into_iter()
    .enumerate()
    {
        let (sync, task) = (unique("sync-"), unique("task&1 "));
        let (status, answer) = discover(&service, image, &sync, &task, started_by);
        assert_eq!((status, &answer["ok"], &answer["taskId"]), (200, &json!(true), &json!(task)), "{answer}");
        if started_by == MANUAL {
            write_row(&world, &sync, &task);
        } else {
            assert_eq!(world.schema.task(&task).expect("a row").0, "RUNNING");
        }
        // The Pod of the discover is deleted once the console was asked.
        eventually("the end of the discover", DEADLINE, || running(&world).is_empty().then_some(()));
        let asked = requests.all();
        assert_eq!(asked.len(), round + 2, "one temporary failure, then once per discover: {asked:?}");
        let encoded = task.replace('&', "%26").replace(' ', "%20");
        let line = format!(
            "GET /jitsu/api/work%20space/sources/run?syncId={sync}&taskId={encoded}&skipRefresh=true&nodelay=true HTTP/1.1"
        );
        assert_eq!(asked.last(), Some(&(line, format!("Bearer {TOKEN}"))));
        assert_eq!(world.schema.task(&task).expect("a row").0, "RUNNING");

        let answer = read(&service, INSTANT, &sync, &task, SCHEDULED, &["items"]);
        assert_eq!(answer["taskStatus"], "RUNNING", "{answer}");
        assert_eq!(ended(&world, &task), ("SUCCESS".to_owned(), String::new()));
        let started_by_of = |field: &str| {
            world.schema.text(&format!("SELECT started_by ->> '{field}' FROM source_task WHERE task_id = '{task}'"))
        };
        let trigger = if started_by == MANUAL { "manual" } else { "scheduled" };
        assert_eq!(started_by_of("trigger"), trigger, "who started the discover has started the read");
        let again = read(&service, INSTANT, &sync, &task, SCHEDULED, &["items"]);
        assert_eq!(again["taskStatus"], "SUCCESS", "a repeated request starts nothing");
        let logged = format!(
            "SELECT message FROM task_log WHERE task_id = '{task}' AND logger = 'syncctl' AND message LIKE '%console%'"
        );
        assert_eq!(world.schema.texts(&logged), ["the discover has ended, and the console starts the read"]);
    }
    wait_empty(&world);
}

#[test]
fn a_console_that_refuses_ends_the_task_and_learns_nothing_more() {
    let Some(world) = World::new() else { return };
    let (elsewhere, other) = listener();
    let stolen = console(elsewhere, &[OK]);
    for (label, response, expected) in [
        (
            "a redirect",
            format!("HTTP/1.1 307 Elsewhere\r\nLocation: http://{other}/\r\n\r\n"),
            "it redirects (307): set SYNCCTL_CONSOLE_URL to the new address",
        ),
        (
            "a wrong token",
            format!("HTTP/1.1 401 X\r\n\r\n{{\"error\":\"{TOKEN}\"}}"),
            "it refused SYNCCTL_CONSOLE_TOKEN (401)",
        ),
        (
            "a refusal",
            format!("HTTP/1.1 200 OK\r\n\r\n{{\"ok\":false,\"error\":\"{TOKEN} {}\"}}", "x".repeat(9000)),
            "it refused: *** xxx",
        ),
    ] {
        let (listener, address) = listener();
        let requests = console(listener, &[&response]);
        let mut service = service(&world, address);
        let task = unique("refused-");
        assert_eq!(discover(&service, INSTANT, "sync", &task, MANUAL).0, 200, "{label}");
        wait_for_request(&requests);
        let (status, error) = ended(&world, &task);
        assert!(error.starts_with("CONSOLE_FAILED: ") && error.contains(expected), "{label}: {error}");
        assert_eq!(status, "FAILED", "{label}");
        wait_empty(&world);
        let logged =
            world.schema.text(&format!("SELECT message FROM task_log WHERE task_id = '{task}' AND level = 'ERROR'"));
        assert_eq!(logged, error, "{label}");
        assert!(error.len() < 600 && !error.contains(TOKEN), "{label}: {error}");
        assert_eq!(requests.all().len(), 1, "{label}");
        service.stop().code(0).hides(TOKEN);
    }
    assert_eq!(stolen.all(), []);
}

#[test]
fn the_console_is_asked_by_the_next_process_where_the_first_one_was_killed() {
    let Some(world) = World::new() else { return };
    let address = listener().1;
    let mut service = service(&world, address);
    let task = unique("task-");
    assert_eq!(discover(&service, INSTANT, "sync", &task, MANUAL).0, 200);
    eventually("the result of the discover", DEADLINE, || {
        world.schema.texts("SELECT status FROM source_catalog WHERE status = 'SUCCESS'").first().map(drop)
    });
    service.kill();
    assert_eq!(world.schema.task(&task).expect("a row").0, "RUNNING");
    let requests = console(TcpListener::bind(address).expect("the port is free"), &[OK]);
    service.start_again();
    wait_for_request(&requests);
    wait_empty(&world);
    assert_eq!(requests.all().len(), 1);
    read(&service, INSTANT, "sync", &task, SCHEDULED, &["items"]);
    assert_eq!(ended(&world, &task).0, "SUCCESS");
    wait_empty(&world);
}

#[test]
fn no_read_follows_a_discover_that_was_cancelled() {
    let Some(world) = World::new() else { return };
    let (listener, address) = listener();
    let requests = console(listener, &[OK]);
    let service = service(&world, address);
    let task = unique("task-");
    assert_eq!(discover(&service, SLOW, "sync", &task, MANUAL).0, 200);
    write_row(&world, "sync", &task);
    assert_eq!(cancel_task(&service, "jitsu", "sync", &task)["taskStatus"], "CANCELLED");
    wait_empty(&world);
    assert_eq!(requests.all(), []);
    let query = [("syncId", "sync"), ("taskId", task.as_str()), ("startedBy", SCHEDULED)];
    let (status, answer) = post(&service, "/read", INSTANT, &query, &body(&["items"]));
    assert_eq!((status, &answer["taskId"]), (409, &json!(task)), "a read that comes all the same: {answer}");
}

#[test]
fn a_discover_that_a_read_follows_counts_as_a_run_of_its_sync() {
    let Some(world) = World::new() else { return };
    let (listener, address) = listener();
    let requests = console(listener, &[OK]);
    let service = service(&world, address);
    let reading = unique("reading-");
    read(&service, SLOW, "sync", &reading, MANUAL, &["ticks"]);
    wait_running(&world, &reading);
    let (status, answer) = discover(&service, INSTANT, "sync", "scheduled", SCHEDULED);
    assert_eq!(
        (status, &answer["started"], &answer["runningTaskId"]),
        (200, &json!(false), &json!(reading)),
        "{answer}"
    );
    let (status, answer) = discover(&service, INSTANT, "sync", "manual", MANUAL);
    assert_eq!((status, &answer["taskId"]), (409, &json!(reading)), "{answer}");
    cancel_task(&service, "", "sync", &reading);
    wait_empty(&world);
    assert_eq!(requests.all(), []);
}

#[test]
fn without_a_console_then_run_is_refused_and_the_row_shows_why() {
    let Some(world) = World::new() else { return };
    let service = Service::start(&world);
    let (status, answer) = discover(&service, INSTANT, "sync", "task", SCHEDULED);
    assert_eq!((status, &answer["ok"]), (400, &json!(false)), "{answer}");
    assert!(answer["error"].as_str().is_some_and(|error| error.contains("set SYNCCTL_CONSOLE_URL")), "{answer}");
    let (status, error) = world.schema.task("task").expect("a row");
    assert_eq!((status.as_str(), error.contains("set SYNCCTL_CONSOLE_URL")), ("FAILED", true), "{error}");
    world.place.assert_empty();
}
