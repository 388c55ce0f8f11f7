//! Named tokens of `syncctl serve`: two tenants against each other, limits, and the policy for images.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha512};

use super::support::http::target;
use super::support::{Http, Program, Service, World, catalog, eventually, unique};

const INSTANT: &str = "syncctl-test/instant:1";
const SLOW: &str = "syncctl-test/slow:1";
/// A test that waits longer hangs.
const DEADLINE: Duration = Duration::from_mins(3);
const SECRET: &str = "the-secret";

/// The entry of a token in the tokens file. The token is `token-NAME`.
fn entry(name: &str, fields: &str) -> String {
    let hash = hex::encode(Sha512::digest(format!("token-{name}salt{SECRET}")));
    let fields: String =
        fields.split("; ").filter(|field| !field.is_empty()).map(|field| ["  ", field, "\n"].concat()).collect();
    format!("- name: {name}\n  hash: salt.{hash}\n{fields}")
}

/// A tenant with its own syncs and storage keys.
fn tenant(name: &str, more: &str) -> String {
    let own = format!("syncIds: ['{name}-*']; storageKeys: ['{name}-*']; images: ['syncctl-test/*']; {more}");
    entry(name, &own)
}

fn start(world: &World, tokens: &str) -> Service {
    Service::start_with(world, |program| program.env("SYNCCTL_TOKENS_FILE", tokens).env("SYNCCTL_TOKEN_SECRET", SECRET))
}

fn of(service: &Http, name: &str) -> Http {
    service.token(Some(&format!("token-{name}")))
}

fn body() -> Value {
    json!({"config": {}, "catalog": catalog(&["ticks"]), "destinationConfig": {"destinationType": "discard"}})
}

fn wait_running(world: &World, task: &str) {
    eventually("a running stream", DEADLINE, || {
        world.schema.task(task)?;
        (world.schema.streams(task)["ticks"]["status"] == "RUNNING").then_some(())
    });
}

#[test]
fn a_tenant_sees_and_changes_nothing_of_another_one() {
    let Some(world) = World::new() else { return };
    let tokens = world.file("tokens.yaml", &(tenant("a", "") + &tenant("b", "") + &entry("auditor", "verbs: [tasks]")));
    let mut service = start(&world, &tokens);
    let (a, b) = (of(&service, "a"), of(&service, "b"));
    let task = unique("task-");
    let forged = r#"{"trigger":"manual","token":"b","syncctl":{"request":"x"}}"#;
    let query = [
        ("package", "syncctl-test/slow"),
        ("version", "1"),
        ("syncId", "a-1"),
        ("taskId", task.as_str()),
        ("startedBy", forged),
    ];
    assert_eq!(a.call("/read", &query, Some(&body())).0, 200);
    wait_running(&world, &task);
    let check = a.check(SLOW, "a-key", &json!({}));
    assert_eq!(check.0, 200, "{}", check.1);
    let check = check.1["taskId"].as_str().expect("an id").to_owned();
    let started_by = "SELECT started_by::text FROM source_task";
    let expected = json!({"trigger": "manual", "token": "a", "given": {"token": "b", "syncctl": {"request": "x"}}});
    let stored: Value = serde_json::from_str(&world.schema.text(started_by)).expect("JSON");
    assert_eq!(stored, expected);

    let get = |text: &str| ("GET", text.replace("TASK", &task).replace("CHECK", &check), None);
    let post = |text: &str| ("POST", text.replace("TASK", &task), Some(json!({"config": {}})));
    let read = |text: &str| ("POST", text.replace("TASK", &task), Some(body()));
    let image = "package=syncctl-test/instant&version=1";
    let not_a = "its syncIds are b-*";
    for (label, (method, text, body), status, part) in [
        ("an image", get("/spec?package=evil/x&version=1"), 403, "its images are syncctl-test/*"),
        ("a registry", get("/spec?package=evil.io/syncctl-test/x&version=1"), 403, "its images are syncctl-test/*"),
        (
            "a tag in the package",
            get(&format!("/spec?package=evil:x&version=sha256:{}", "a".repeat(64))),
            400,
            "package",
        ),
        ("a storage key", post(&format!("/check?{image}&storageKey=a-key")), 403, "its storageKeys are b-*"),
        ("an encoded storage key", post(&format!("/check?{image}&storageKey=%61-key")), 403, "its storageKeys are b-*"),
        ("another case", post(&format!("/check?{image}&storageKey=B-key")), 403, "its storageKeys are b-*"),
        ("two storage keys", post(&format!("/check?{image}&storageKey=b-k&storageKey=a-key")), 400, "more than once"),
        ("an encoded name", post(&format!("/check?{image}&storageKey=b-k&%73torageKey=a-key")), 400, "more than once"),
        ("a discover", post(&format!("/discover?{image}&storageKey=a-key")), 403, "its storageKeys are b-*"),
        ("its sync", post(&format!("/discover?{image}&storageKey=b-k&syncId=a-1&taskId=x")), 403, not_a),
        (
            "its read",
            post(&format!("/discover?{image}&storageKey=b-k&syncId=a-1&taskId=x&workspaceId=w&thenRun=true")),
            403,
            not_a,
        ),
        (
            "the id of a read",
            post(&format!("/discover?{image}&storageKey=b-k&syncId=b-1&taskId=TASK&workspaceId=w&thenRun=true")),
            400,
            "thenRun needs a console",
        ),
        ("a read", read(&format!("/read?{image}&syncId=a-1&taskId=x")), 403, not_a),
        ("a blank before", read(&format!("/read?{image}&syncId=+b-1&taskId=x")), 403, not_a),
        ("the id of a task", read(&format!("/read?{image}&syncId=b-1&taskId=TASK")), 409, "has used this taskId\""),
        ("a cancel", get("/cancel?syncId=a-1&taskId=TASK"), 403, not_a),
        ("a cancel by id", get("/cancel?syncId=b-1&taskId=TASK"), 200, "taskId"),
        ("a cancel of a check", get("/cancel?syncId=b-1&taskId=CHECK&package=syncctl-test/slow"), 200, "taskId"),
        ("the tasks", get("/tasks?syncId=a-1"), 403, not_a),
        ("metrics", get("/metrics"), 403, "its verbs are all but metrics"),
        ("no path", get("/nothing"), 404, "openapi"),
    ] {
        let response = match &body {
            Some(body) => b.post(&text, body),
            None => b.send(method, &text, &[], &[]),
        };
        let answer = response.text();
        assert_eq!(response.status, status, "{label}: {answer}");
        assert!(answer.contains(part), "{label}: {part:?} is not in {answer}");
        assert!(!answer.contains("RUNNING") && !answer.contains("taskStatus"), "{label}: {answer}");
    }
    assert_eq!(b.get("/openapi.json").status, 200);
    let (hidden, missing) = (b.get(&format!("/tasks/{task}")), b.get("/tasks/none"));
    assert_eq!((hidden.status, hidden.body), (404, missing.body), "the same answer whether the task exists");
    assert_eq!(world.schema.task(&task).expect("a row").0, "RUNNING");
    assert_eq!(world.place.pods().len(), 2, "nothing was started or ended");

    let auditor = of(&service, "auditor");
    let (status, document) = auditor.call(&format!("/tasks/{task}"), &[], None);
    assert_eq!((status, &document["task"]["logs"]), (200, &json!([])), "a token without the verb logs");
    assert_eq!(auditor.get(&format!("/tasks/{task}?logs=1")).status, 403);
    assert_eq!(auditor.get(&target("/cancel", &[("syncId", "a-1"), ("taskId", &task)])).status, 403);
    assert_eq!(a.call("/tasks", &[("syncId", "a-1")], None).1["tasks"][0]["taskId"], json!(task));
    assert_eq!(a.call(&format!("/tasks/{task}"), &[], None).1["task"]["startedBy"], expected);
    assert_eq!(a.cancel(SLOW, "a-1", &task).1["taskStatus"], "CANCELLED");
    assert_eq!(a.cancel(SLOW, "a-1", &check).0, 200);
    eventually("an empty namespace", DEADLINE, || world.place.leftovers().is_empty().then_some(()));
    let metrics = service.http.get("/metrics").text();
    for line in [r#"token="a",kind="read"} 1"#, r#"token="b",status="403"}"#, r#"token="auditor",status="200"} 1"#] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(!metrics.contains("token=\"\"") && !metrics.contains("a-1"), "{metrics}");
    let log = service.stop().stderr;
    assert!(log.lines().any(|line| line.contains("started a task") && line.contains("token=\"a\"")), "{log}");
    assert!(log.lines().any(|line| line.contains("refused a request") && line.contains("token=\"b\"")), "{log}");
    assert!(!log.contains("token-a") && !log.contains(SECRET), "{log}");
}

#[test]
fn limits_of_a_token_hold_across_replicas_and_change_with_the_file() {
    let Some(world) = World::new() else { return };
    let expired = entry("old", "expires: 2020-01-01T00:00:00Z");
    let content = entry("few", "maxTasks: 2") + &entry("slow", "requestsPerMinute: 3") + &expired;
    let tokens = world.file("tokens.yaml", &content);
    let (one, mut other) = (start(&world, &tokens), start(&world, &tokens));
    let callers = [of(&one, "few"), of(&other, "few")];
    let reads: Vec<(String, u16, Value)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let caller = &callers[number % 2];
                scope.spawn(move || {
                    let id = unique("few-");
                    let (status, document) = caller.read(SLOW, &id, &id, &body());
                    (id, status, document)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let started: Vec<&String> = reads.iter().filter(|(_, status, _)| *status == 200).map(|(id, ..)| id).collect();
    assert_eq!(started.len(), 2, "{reads:?}");
    for (_, _, document) in reads.iter().filter(|(_, status, _)| *status != 200) {
        assert!(document["error"].as_str().is_some_and(|text| text.contains("its maxTasks is 2")), "{document}");
    }
    assert_eq!(world.schema.count("source_task"), 2, "a refused task leaves no row");
    for caller in &callers {
        let target = target("/check", &[("package", "syncctl-test/instant"), ("version", "1"), ("storageKey", "k")]);
        let response = caller.post(&target, &json!({"config": {}}));
        assert_eq!((response.status, response.header("retry-after")), (429, Some("5")), "{}", response.text());
        assert_eq!(caller.read(SLOW, started[0], started[0], &body()).0, 200, "a repeated request");
    }
    for task in started {
        assert_eq!(callers[1].cancel(SLOW, task, task).0, 200);
    }
    let next = unique("next-");
    eventually("a free place", DEADLINE, || (callers[0].spec(INSTANT).0 == 200).then_some(()));
    eventually("another one", DEADLINE, || (callers[1].read(INSTANT, &next, &next, &body()).0 == 200).then_some(()));

    eventually("an empty namespace", DEADLINE, || world.place.leftovers().is_empty().then_some(()));

    let slow = of(&one, "slow");
    let statuses: Vec<u16> = (0..3).map(|_| slow.get("/tasks?syncId=s").status).collect();
    assert_eq!(statuses, [200; 3]);
    let rejected = slow.post("/check", &json!({}));
    let wait: u64 = rejected.header("retry-after").and_then(|wait| wait.parse().ok()).expect("Retry-After");
    assert!(rejected.status == 429 && (1..=60).contains(&wait), "{}", rejected.text());
    let expired = of(&one, "old").get("/tasks?syncId=s");
    assert_eq!((expired.status, expired.json()["error"].as_str()), (401, Some("the token has expired")));

    let replace = |content: &str| {
        let new = world.file("new.yaml", content);
        std::fs::rename(new, &tokens).expect("one file system");
    };
    replace("- name: few\n");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(callers[0].get("/tasks?syncId=s").status, 200, "a broken version changes nothing");
    replace(&tenant("few", ""));
    for caller in &callers {
        eventually("the new rules", DEADLINE, || (caller.get("/tasks?syncId=s").status == 403).then_some(()));
    }
    assert_eq!(slow.get("/tasks?syncId=s").status, 401, "its entry is gone");
    let log = other.stop().stderr;
    let complaints: Vec<&str> = log.lines().filter(|line| line.contains("cannot use the changed tokens")).collect();
    assert!(complaints.len() == 1 && complaints[0].contains("line 1: [0]: missing field"), "{complaints:?}");
}

#[test]
fn a_tokens_file_that_cannot_be_used_is_an_error_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokens.yaml");
    let serve = || {
        let arguments = ["serve", "--tokens-file", path.to_str().expect("UTF-8"), "--local", "--http-port", "0"];
        Program::new(&arguments).env("SYNCCTL_DATABASE_URL", "postgresql://user@127.0.0.1:1/none").run()
    };
    let fails = |part: &str| {
        let done = serve();
        assert!(done.code == Some(2) && done.stderr.contains(part), "{part}: {done}");
    };
    fails("No such file");
    std::fs::write(&path, entry("a", "syncs: [x]")).expect("a file");
    fails("tokens.yaml: line 3: [0]: unknown field `syncs`");
    std::fs::write(&path, entry("a", "maxTasks: many")).expect("a file");
    fails("tokens.yaml: line 3: [0].maxTasks");
}

#[test]
fn only_images_of_the_policy_run() {
    let Some(world) = World::new() else { return };
    let policy = |program: Program| program.env("SYNCCTL_IMAGE_POLICY", "syncctl-test/instant:*, *@sha256:*");
    let service = Service::start_with(&world, policy);
    let digest = "a".repeat(64);
    for (package, version, status) in [
        ("syncctl-test/slow", "1", 403),
        ("docker.io/syncctl-test/slow", "1", 403),
        ("evil.io/syncctl-test/instant", "1", 403),
        ("SYNCCTL-TEST/instant", "1", 403),
        ("syncctl-test/instant-evil", "1", 403),
        ("evil/x@sha256", &digest, 400),
        ("syncctl-test/instant:1@sha256", &digest, 400),
        ("syncctl-test/instant ", "1", 400),
    ] {
        let (found, document) = service.call("/spec", &[("package", package), ("version", version)], None);
        assert_eq!(found, status, "{package}: {document}");
        if status == 403 {
            let error = document["error"].as_str().expect("a text");
            assert!(error.contains("SYNCCTL_IMAGE_POLICY: it allows syncctl-test/instant:*, *@sha256:*"), "{error}");
        }
    }
    let read = service.read(SLOW, "s", "t", &body());
    assert_eq!(read.0, 403, "{}", read.1);
    assert_eq!(world.schema.count("source_task"), 0);
    world.place.assert_empty();
    assert_eq!(service.spec(INSTANT).0, 200);
    eventually("an empty namespace", DEADLINE, || world.place.leftovers().is_empty().then_some(()));
    policy(world.syncctl(&["spec", SLOW, "-o", "json"])).run().fails(2, "USAGE", &["SYNCCTL_IMAGE_POLICY"]);
    policy(world.syncctl(&["spec", INSTANT, "-o", "json"])).run().code(0);
    let malformed = world.syncctl(&["spec", INSTANT, "-o", "json"]).env("SYNCCTL_IMAGE_POLICY", "!evil/x").run();
    malformed.fails(2, "USAGE", &["SYNCCTL_IMAGE_POLICY", "is not a pattern"]);
}

#[test]
fn a_read_that_waits_is_checked_again_before_it_starts() {
    let Some(world) = World::new() else { return };
    let spread = |program: Program| program.env("SYNCCTL_START_SPREAD_SECONDS", "20");
    let mut service = Service::start_with(&world, spread);
    let body =
        json!({"config": {}, "catalog": catalog(&["items"]), "destinationConfig": {"destinationType": "discard"}});
    // Four start at once; the place of the last one is at 12 s.
    for sync in ["first", "second", "third", "fourth", "late-0"] {
        let query = [
            ("package", "syncctl-test/instant"),
            ("version", "1"),
            ("syncId", sync),
            ("taskId", sync),
            ("startedBy", r#"{"trigger":"scheduled"}"#),
        ];
        assert_eq!(service.call("/read", &query, Some(&body)).0, 200);
    }
    service.kill();
    let _service = Service::start_with(&world, |program| spread(program).env("SYNCCTL_IMAGE_POLICY", "other/*"));
    let error = eventually("the end of the read that waits", DEADLINE, || {
        world.schema.task("late-0").filter(|(status, _)| status == "FAILED").map(|(_, error)| error)
    });
    assert!(error.starts_with("USAGE: image syncctl-test/instant:1 is refused by SYNCCTL_IMAGE_POLICY"), "{error}");
    eventually("an empty namespace", DEADLINE, || world.place.leftovers().is_empty().then_some(()));
}

#[test]
fn created_tokens_are_in_the_file_and_can_be_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokens.yaml");
    std::fs::write(&path, "# ours\n[]\n").expect("a file");
    let create = |more: &[&str], path: Option<&Path>| {
        let program = Program::new(&["token", "create", "-o", "json"]).with(more).env("SYNCCTL_TOKEN_SECRET", SECRET);
        match path {
            Some(path) => program.env("SYNCCTL_TOKENS_FILE", path.to_str().expect("UTF-8")).run(),
            None => program.run(),
        }
    };
    let limits = [
        "--name=a",
        "--verb=read",
        "--verb=tasks",
        "--sync=a-*",
        "--storage-key=k",
        "--image=airbyte/*:7.*",
        "--max-tasks=3",
        "--requests-per-minute=60",
        "--expires=2999-01-01T00:00:00Z",
    ];
    let done = create(&limits, Some(&path));
    let document = done.code(0).json();
    let (token, hashed) = (document["token"].as_str().expect("a text"), document["hashed"].as_str().expect("a text"));
    let (salt, hash) = hashed.split_once('.').expect("a dot");
    assert_eq!(hash, hex::encode(Sha512::digest(format!("{token}{salt}{SECRET}"))));
    create(&["--name=b"], Some(&path)).code(0);
    let text = std::fs::read_to_string(&path).expect("a file");
    assert!(text.starts_with("# ours\n- name: \"a\"\n") && text.contains(hashed) && !text.contains(token), "{text}");
    let entries: Value = serde_yaml::from_str(&text).expect("YAML");
    assert_eq!(entries[0]["verbs"], json!(["read", "tasks"]));
    assert_eq!(entries[1]["name"], "b");
    assert!(create(&["--name=c"], None).code(0).json()["file"].is_null());
    create(&["--name=a"], Some(&path)).fails(2, "INVALID_INPUT", &["a token of the name \"a\" exists"]);
    for (option, part) in [
        ("--name=a b", "expected a name"),
        ("--image=a b", "is not a pattern for images"),
        ("--sync=", "blank"),
        ("--max-tasks=0", "from 1 to"),
    ] {
        let arguments = if option.starts_with("--name") { vec![option] } else { vec!["--name=d", option] };
        create(&arguments, Some(&path)).fails(2, "INVALID_INPUT", &[part]);
    }
    for option in ["--verb=write", "--expires=2020-01-01T00:00:00Z", "--expires=tomorrow"] {
        assert_eq!(create(&["--name=d", option], Some(&path)).code, Some(2), "{option}");
    }
    assert_eq!(std::fs::read_to_string(&path).expect("a file"), text, "a failure changes nothing");
}
