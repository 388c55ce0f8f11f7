//! Tasks on this machine: what they leave behind, whoever is killed; what they see; what goes wrong before they start.
//!
//! All that a task is beyond that is the business of the tests that run in both places.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::support::{Machine, Program, Service, World, catalog, eventually, processes, unique};

/// Until something that was started can be seen.
const START: Duration = Duration::from_secs(30);

/// A connector of one's own, and the world in which it runs. `None` where tasks run in a cluster.
struct Bench {
    world: World,
    command: String,
}

impl Bench {
    fn new(script: &str) -> Option<Self> {
        let world = World::on_this_machine()?;
        let path = world.file("connector.sh", script);
        Some(Self { world, command: format!("sh {path}") })
    }

    fn machine(&self) -> &Machine {
        self.world.place.machine()
    }

    /// A command without a database of results.
    fn syncctl(&self, arguments: &[&str]) -> Program {
        self.world.syncctl(arguments).with(&["--exec", &self.command, "-o", "json"])
    }

    fn check(&self, config: &Value) -> Program {
        let config = self.world.json("config.json", config);
        self.syncctl(&["check", "--config", &config, "--storage-key", "k"])
    }

    fn read(&self, task: &str) -> Program {
        let config = self.world.json("config.json", &json!({"password": "hunter2-hunter2"}));
        let catalog = self.world.json("catalog.json", &catalog(&["a"]));
        let destination = self.world.destination();
        let documents = ["--config", &config, "--catalog", &catalog, "--destination-config", &destination];
        self.syncctl(&["read", "--sync-id", "s", "--task-id", task]).with(&documents)
    }

    /// Files below the tasks' folder that hold this text.
    fn holding(&self, text: &str) -> Vec<String> {
        let found = Command::new("grep").args(["-rlF", text]).arg(self.machine().tasks()).output().expect("grep");
        String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
    }

    /// Nothing is left once the next command has run.
    fn assert_clean_after_next(&self) {
        self.syncctl(&["spec"]).run();
        self.world.place.assert_empty();
        assert_eq!(self.holding("hunter2-hunter2"), [""; 0]);
    }
}

/// Reads for ever, with children that have left the connector's session, group and environment.
const STUBBORN: &str = r#"
[ "$1" != spec ] || { echo '{"type":"SPEC","spec":{"connectionSpecification":{}}}'; exit; }
trap '' TERM HUP INT
setsid sh -c 'trap "" TERM; sleep 600; true' </dev/null >/dev/null 2>&1 &
(setsid sh -c 'trap "" TERM; sleep 601; true' </dev/null >/dev/null 2>&1 &)
echo '{"type":"RECORD","record":{"stream":"a","data":{"id":1},"emitted_at":1}}'
echo '{"type":"STATE","state":{"type":"STREAM","stream":{"stream_descriptor":{"name":"a"},"stream_state":{"id":1}}}}'
while :; do sleep 1; done
"#;

/// The processes of a task that runs `STUBBORN`, once all of them are there.
fn stubborn(bench: &Bench) -> Vec<(i32, String)> {
    eventually("all processes of the connector", START, || {
        let all = processes::with(&bench.machine().tasks().display().to_string());
        let sleepers = all.iter().filter(|(_, command)| command.starts_with("sleep 60")).count();
        (sleepers == 2 && !bench.world.schema.texts("SELECT state::text FROM source_state").is_empty()).then_some(all)
    })
}

#[test]
fn whoever_is_killed_nothing_is_left_after_the_next_start() {
    for victims in [&["syncctl read"][..], &["supervise"], &["sidecar"], &["syncctl read", "supervise", "sidecar"]] {
        let Some(bench) = Bench::new(STUBBORN) else { return };
        let task = unique("killed-");
        let running = bench.read(&task).start();
        let all = stubborn(&bench);
        for victim in victims {
            if *victim == "syncctl read" {
                running.signal(Signal::KILL);
                continue;
            }
            let (pid, _) = all.iter().find(|(_, command)| command.contains(victim)).expect(victim);
            assert!(processes::kill(*pid), "{victim}");
        }
        let done = running.wait();
        assert_ne!(done.code, Some(0), "{victims:?}: {done}");
        if victims == ["syncctl read"] {
            // What looks after the task hears of it at once, without another command.
            eventually("the end of all processes", Duration::from_secs(10), || {
                processes::with(&bench.machine().tasks().display().to_string()).is_empty().then_some(())
            });
            assert_eq!(bench.holding("hunter2-hunter2"), [""; 0]);
        }
        bench.assert_clean_after_next();
        let (status, error) = bench.world.schema.task(&task).expect("a row");
        assert_eq!(status, "FAILED", "{victims:?}: {error}");
    }
}

#[test]
fn a_command_that_is_killed_at_any_moment_leaves_nothing_after_the_next_start() {
    let Some(bench) = Bench::new(STUBBORN) else { return };
    for (round, millis) in [0, 3, 10, 20, 40, 60, 80, 110, 150, 200, 300, 500].into_iter().enumerate() {
        let task = unique("early-");
        let running = bench.read(&task).start();
        std::thread::sleep(Duration::from_millis(millis));
        running.signal(Signal::KILL);
        running.wait();
        if round % 3 == 0 {
            // Also when there is no time for anything else.
            processes::kill_all(&bench.machine().tasks().display().to_string());
        }
        bench.assert_clean_after_next();
        // Killed before it was there, or closed.
        assert_ne!(bench.world.schema.task(&task).map(|(status, _)| status), Some("RUNNING".to_owned()), "{millis} ms");
    }
}

#[test]
fn a_cancelled_task_ends_with_all_that_it_has_started() {
    let Some(bench) = Bench::new(STUBBORN) else { return };
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        bench.world.schema.execute("DROP TABLE IF EXISTS source_state");
        let task = unique("cancelled-");
        let running = bench.read(&task).env("SYNCCTL_CONTAINER_GRACE_SHUTDOWN_SECONDS", "1").start();
        stubborn(&bench);
        running.signal(signal);
        running.wait().code(130);
        bench.world.place.assert_empty();
        assert_eq!(bench.world.schema.task(&task).expect("a row").0, "CANCELLED");
    }
}

#[test]
fn a_connector_has_places_of_its_own_and_sees_no_secret_but_its_configuration() {
    let script = r#"
config=$3
[ -w "$HOME" ] && [ -w "$TMPDIR" ] || exit 9
echo "$0" >"$TMPDIR/mine"
all=$(env; find "$HOME/.." -type f -exec cat {} + 2>/dev/null | tr -d '\0')
case $all in *postgresql://*|*DATABASE_URL*|*destinationType*) seen=destination ;; *) seen=nothing ;; esac
case $(cat "$config") in *hunter2*) known=yes ;; *) known=no ;; esac
stat -c %a "$HOME/.." >"$TMPDIR/mode"
printf '{"type":"LOG","log":{"level":"INFO","message":"home %s mode %s known %s seen %s user %s"}}\n' \
    "$HOME" "$(cat "$TMPDIR/mode")" $known $seen "$USER_VARIABLE"
printf '{"type":"TRACE","trace":{"type":"STREAM_STATUS","emitted_at":1,"stream_status":{"stream_descriptor":{"name":"a"},"status":"COMPLETE"}}}\n'
"#;
    let Some(bench) = Bench::new(script) else { return };
    let task = unique("places-");
    bench.read(&task).env("USER_VARIABLE", "passed-on").run().code(0).hides("hunter2-hunter2");
    let said = bench.world.schema.text("SELECT message FROM task_log WHERE message LIKE 'home %'");
    let tasks = bench.machine().tasks().display().to_string();
    assert!(said.starts_with(&format!("home {tasks}/")), "{said}");
    assert!(said.ends_with("mode 700 known yes seen nothing user passed-on"), "{said}");
}

#[test]
fn how_the_connector_was_found_is_one_line_of_stderr() {
    let Some(bench) = Bench::new(STUBBORN) else { return };
    let done = bench.syncctl(&["spec"]).run();
    let lines = done.code(0).stderr.lines().filter(|line| line.starts_with("connector: ")).count();
    assert_eq!(lines, 1, "{done}");
    assert_eq!(bench.syncctl(&["spec", "-q"]).run().code(0).stderr, "");
    // The name in the tables is the user's, if there is one.
    bench.syncctl(&["spec", "acme/source-new:1"]).run().code(0);
    let names = bench.world.schema.texts("SELECT package || ':' || version FROM source_spec ORDER BY 1");
    assert_eq!(names, ["acme/source-new:1", "local/connector:dev"]);
}

#[test]
fn a_command_that_cannot_be_started_is_told_in_one_sentence() {
    let Some(world) = World::on_this_machine() else { return };
    let spec = |exec: &str| world.syncctl(&["spec", "--exec", exec, "-o", "json"]).run();
    for exec in ["no-such-command-anywhere --option", "/nonexistent/connector"] {
        let done = spec(exec);
        done.code(3);
        let program = exec.split(' ').next().expect("a word");
        assert!(done.json()["error"].as_str().is_some_and(|error| error.contains(program)), "{done}");
    }
    let nothing = spec(" ");
    nothing.code(2);
    let elsewhere = Program::new(&["spec", "--exec", "true", "-o", "json"])
        .env("SYNCCTL_DATABASE_URL", "postgresql://127.0.0.1:1/x")
        .env("SYNCCTL_SIDECAR_IMAGE", "x")
        .run();
    elsewhere.fails(2, "USAGE", &["--exec", "--local"]);
}

#[test]
fn a_folder_that_cannot_be_used_is_named_with_its_setting() {
    let Some(world) = World::on_this_machine() else { return };
    let file = world.file("file", "");
    let done = world
        .syncctl(&["spec", "--exec", "true", "-o", "json"])
        .env("SYNCCTL_STATE_DIR", &format!("{file}/state"))
        .run();
    done.fails(3, "LOCAL_ERROR", &[&file]);
}

#[test]
fn a_full_disk_ends_the_task_and_leaves_nothing() {
    let Some(bench) = Bench::new(STUBBORN) else { return };
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let disk = tempfile::tempdir().expect("a folder");
    let _small = Mounted::new(disk.path(), "size=64k");
    let noise: String =
        (0..400_000_u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 26)).collect();
    let done = bench
        .check(&json!({"password": "hunter2-hunter2", "noise": noise}))
        .env("SYNCCTL_STATE_DIR", &disk.path().join("state").display().to_string())
        .run();
    done.fails(3, "LOCAL_ERROR", &["No space left"]).hides("hunter2-hunter2");
    assert!(done.json()["hint"].as_str().is_some_and(|hint| hint.contains("SYNCCTL_STATE_DIR")), "{done}");
    let left =
        Command::new("find").arg(disk.path().join("state/tasks")).args(["-mindepth", "1"]).output().expect("find");
    assert!(String::from_utf8_lossy(&left.stdout).lines().all(|path| path.ends_with(".making")), "{left:?}");
}

/// A small disk.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(at: &'a Path, options: &str) -> Self {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).status();
        assert!(mounted.is_ok_and(|status| status.success()), "mounting a small disk");
        Self(at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(self.0).status().ok();
    }
}

/// Waits until the stream of the slow connector is seen to run.
fn wait_for_ticks(world: &World, task: &str) {
    eventually("a stream that runs", START, || {
        world.schema.task(task)?;
        (world.schema.streams(task)["ticks"]["status"] == "RUNNING").then_some(())
    });
}

/// A read that the service has accepted and that runs.
fn reading(world: &World, service: &Service) -> String {
    let task = unique("reading-");
    let nowhere = json!({"destinationType": "discard"});
    let body = json!({"config": {}, "catalog": catalog(&["ticks"]), "destinationConfig": nowhere});
    assert_eq!(service.read("syncctl-test/slow:1", "sync", &task, &body).0, 200);
    wait_for_ticks(world, &task);
    task
}

#[test]
fn a_service_that_ends_in_order_ends_its_tasks_and_says_so() {
    let Some(world) = World::on_this_machine() else { return };
    let mut service = Service::start(&world);
    let task = reading(&world, &service);
    service.stop().code(0);
    world.place.assert_empty();
    assert_eq!(world.schema.task(&task).expect("a row").0, "CANCELLED");
}

#[test]
fn a_service_that_is_killed_takes_its_tasks_with_it_and_the_next_one_tells() {
    let Some(world) = World::on_this_machine() else { return };
    let mut service = Service::start(&world);
    let task = reading(&world, &service);
    service.kill();
    let tasks = world.place.machine().tasks().display().to_string();
    eventually("the end of its tasks", Duration::from_secs(10), || processes::with(&tasks).is_empty().then_some(()));
    service.start_again();
    let row = eventually("an outcome", START, || world.schema.task(&task).filter(|(status, _)| status != "RUNNING"));
    assert_eq!(row.0, "FAILED");
    assert!(row.1.starts_with("ABANDONED: "), "{}", row.1);
    eventually("nothing left", START, || world.place.leftovers().is_empty().then_some(()));
    service.stop().code(0);
}

/// A read of an image in the tests' own Podman; `None` where there is none.
fn in_podman(world: &World, arguments: &[&str]) -> Option<Program> {
    let given = |name: &str| std::env::var(name).ok();
    let podman = given("SYNCCTL_TEST_PODMAN")?;
    let program =
        ["CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF"].into_iter().fold(world.syncctl(arguments), |program, name| {
            program.env(name, &given(name).expect("tests/podman/up sets it"))
        });
    assert!(Path::new(&podman).exists(), "{podman}");
    Some(program.env("SYNCCTL_LOCAL_RUNTIME", "podman"))
}

/// The containers of the program's.
fn containers() -> Vec<String> {
    let podman = std::env::var("SYNCCTL_TEST_PODMAN").expect("it was looked at");
    let filter = "label=jitsu.com/creator=bulker-sync-controller";
    let list = Command::new(podman).args(["ps", "--all", "--filter", filter, "--format", "{{.Names}}"]).output();
    String::from_utf8_lossy(&list.expect("podman").stdout).lines().map(str::to_owned).collect()
}

#[test]
fn an_image_in_podman_is_read_limited_cancelled_and_removed_whoever_is_killed() {
    let Some(world) = World::on_this_machine() else { return };
    let Some(spec) = in_podman(&world, &["spec", "syncctl-test/instant:1", "-o", "json"]) else { return };
    let done = spec.run();
    assert_eq!(done.code(0).json()["documentationUrl"], "https://example.com/instant", "{done}");
    assert!(done.stderr.contains("connector: the image syncctl-test/instant:1, from Podman"), "{done}");

    let config = world.json("config.json", &json!({"password": "hunter2-hunter2"}));
    let check = in_podman(&world, &["check", "syncctl-test/instant:1", "--config", &config, "-o", "json"]);
    assert_eq!(check.expect("podman").run().code(0).json()["status"], "SUCCEEDED");

    let files =
        [("items.json", "items"), ("ticks.json", "ticks")].map(|(file, stream)| world.json(file, &catalog(&[stream])));
    let destination = world.destination();
    let read = |image: &str, file: &str, task: &str| {
        let documents = ["--config", &config, "--catalog", file, "--destination-config", &destination];
        let arguments = ["read", image, "--sync-id", "s", "--task-id", task, "-o", "json"];
        in_podman(&world, &[&arguments[..], &documents].concat()).expect("podman")
    };
    let done = read("syncctl-test/instant:1", &files[0], &unique("podman-")).run();
    assert_eq!(done.code(0).json()["streams"]["items"]["events"], 1000, "{done}");
    assert_eq!(world.schema.count("items"), 1000);

    let limited = read("syncctl-test/oom:1", &files[0], &unique("podman-")).env("SYNCCTL_SOURCE_MEMORY_LIMIT_MI", "64");
    limited.run().fails(3, "OOM_KILLED", &["64Mi"]);

    let task = unique("podman-");
    let running = read("syncctl-test/slow:1", &files[1], &task).start();
    wait_for_ticks(&world, &task);
    running.signal(Signal::INT);
    running.wait().code(130);
    assert_eq!(containers(), [""; 0]);

    let task = unique("podman-");
    let running = read("syncctl-test/slow:1", &files[1], &task).start();
    wait_for_ticks(&world, &task);
    processes::kill_all(&world.place.machine().tasks().display().to_string());
    running.signal(Signal::KILL);
    running.wait();
    in_podman(&world, &["spec", "syncctl-test/instant:1", "-o", "json"]).expect("podman").run().code(0);
    assert_eq!(containers(), [""; 0]);
    assert_eq!(world.schema.task(&task).expect("a row").0, "FAILED");
}
