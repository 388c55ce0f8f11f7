//! Local tasks: cleanup after any process is killed, isolation of the connector, failures before the start.
//!
//! What is the same in a cluster is tested by the modules that run in both places.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::support::{Machine, Program, Service, World, catalog, eventually, processes, unique};

/// Only ends a wait that hangs.
const DEADLINE: Duration = Duration::from_mins(3);

/// A connector under development. There is none where tasks run in a cluster.
struct Fixture {
    world: World,
    command: String,
}

impl Fixture {
    fn new(script: &str) -> Option<Self> {
        let world = World::on_this_machine()?;
        let path = world.file("connector.sh", script);
        Some(Self { world, command: format!("sh {path}") })
    }

    fn machine(&self) -> &Machine {
        self.world.place.machine()
    }

    /// A command that runs the connector.
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

    /// The files of all tasks that contain a text.
    fn files_with(&self, text: &str) -> Vec<String> {
        let found = Command::new("grep").args(["-rlF", text]).arg(self.machine().tasks()).output().expect("grep");
        String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
    }

    /// Asserts that the next command leaves nothing of earlier ones.
    fn assert_next_command_cleans_up(&self) {
        self.syncctl(&["spec"]).run();
        self.world.place.assert_empty();
        assert_eq!(self.files_with("hunter2-hunter2"), [""; 0]);
    }
}

/// Never ends, ignores TERM, and has children outside its session, process group and environment.
const STUBBORN: &str = r#"
[ "$1" != spec ] || { echo '{"type":"SPEC","spec":{"connectionSpecification":{}}}'; exit; }
trap '' TERM HUP INT
setsid sh -c 'trap "" TERM; sleep 600; true' </dev/null >/dev/null 2>&1 &
(setsid sh -c 'trap "" TERM; sleep 601; true' </dev/null >/dev/null 2>&1 &)
echo '{"type":"RECORD","record":{"stream":"a","data":{"id":1},"emitted_at":1}}'
echo '{"type":"STATE","state":{"type":"STREAM","stream":{"stream_descriptor":{"name":"a"},"stream_state":{"id":1}}}}'
while :; do sleep 1; done
"#;

/// The processes of a task that runs `STUBBORN`, once all of them have started.
fn wait_for_processes(fixture: &Fixture) -> Vec<(i32, String)> {
    eventually("all processes of the connector", DEADLINE, || {
        let all = processes::with(&fixture.machine().tasks().display().to_string());
        let sleepers = all.iter().filter(|(_, command)| command.starts_with("sleep 60")).count();
        (sleepers == 2 && !fixture.world.schema.texts("SELECT state::text FROM source_state").is_empty()).then_some(all)
    })
}

#[test]
fn the_next_command_cleans_up_after_any_killed_process() {
    for victims in [&["syncctl read"][..], &["supervise"], &["sidecar"], &["syncctl read", "supervise", "sidecar"]] {
        let Some(fixture) = Fixture::new(STUBBORN) else { return };
        let task = unique("killed-");
        let running = fixture.read(&task).start();
        let all = wait_for_processes(&fixture);
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
            // The supervisor ends the task without another command.
            eventually("the end of all processes", DEADLINE, || {
                processes::with(&fixture.machine().tasks().display().to_string()).is_empty().then_some(())
            });
            assert_eq!(fixture.files_with("hunter2-hunter2"), [""; 0]);
        }
        fixture.assert_next_command_cleans_up();
        let (status, error) = fixture.world.schema.task(&task).expect("a row");
        // Rows are loaded. Whether the sidecar has reported them depends on the machine.
        let is_reported = fixture.world.schema.streams(&task)["a"]["events"] == 1;
        assert_eq!(status, if is_reported { "PARTIAL" } else { "FAILED" }, "{victims:?}: {error}");
    }
}

#[test]
fn the_next_command_cleans_up_after_one_killed_at_any_moment() {
    let Some(fixture) = Fixture::new(STUBBORN) else { return };
    for (round, millis) in [0, 3, 10, 20, 40, 60, 80, 110, 150, 200, 300, 500].into_iter().enumerate() {
        let task = unique("early-");
        let running = fixture.read(&task).start();
        std::thread::sleep(Duration::from_millis(millis));
        running.signal(Signal::KILL);
        running.wait();
        if round % 3 == 0 {
            // The supervisor is killed, too.
            processes::kill_all(&fixture.machine().tasks().display().to_string());
        }
        fixture.assert_next_command_cleans_up();
        // It was killed before it wrote a row, or the row was closed.
        assert_ne!(
            fixture.world.schema.task(&task).map(|(status, _)| status),
            Some("RUNNING".to_owned()),
            "{millis} ms"
        );
    }
}

#[test]
fn a_cancelled_task_ends_with_all_its_processes() {
    let Some(fixture) = Fixture::new(STUBBORN) else { return };
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        fixture.world.schema.execute("DROP TABLE IF EXISTS source_state");
        let task = unique("cancelled-");
        let running = fixture.read(&task).env("SYNCCTL_CONTAINER_GRACE_SHUTDOWN_SECONDS", "1").start();
        wait_for_processes(&fixture);
        running.signal(signal);
        running.wait().code(130);
        fixture.world.place.assert_empty();
        assert_eq!(fixture.world.schema.task(&task).expect("a row").0, "CANCELLED");
    }
}

#[test]
fn a_connector_has_private_directories_and_sees_no_secret_but_its_configuration() {
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
    let Some(fixture) = Fixture::new(script) else { return };
    let task = unique("places-");
    fixture.read(&task).env("USER_VARIABLE", "passed-on").run().code(0).hides("hunter2-hunter2");
    let message = fixture.world.schema.text("SELECT message FROM task_log WHERE message LIKE 'home %'");
    let tasks = fixture.machine().tasks().display().to_string();
    assert!(message.starts_with(&format!("home {tasks}/")), "{message}");
    assert!(message.ends_with("mode 700 known yes seen nothing user passed-on"), "{message}");
}

#[test]
fn the_resolved_connector_is_one_line_of_stderr() {
    let Some(fixture) = Fixture::new(STUBBORN) else { return };
    let done = fixture.syncctl(&["spec"]).run();
    let lines = done.code(0).stderr.lines().filter(|line| line.starts_with("connector: ")).count();
    assert_eq!(lines, 1, "{done}");
    assert_eq!(fixture.syncctl(&["spec", "-q"]).run().code(0).stderr, "");
    // The tables have the user's name of the connector, if given.
    fixture.syncctl(&["spec", "acme/source-new:1"]).run().code(0);
    let names = fixture.world.schema.texts("SELECT package || ':' || version FROM source_spec ORDER BY 1");
    assert_eq!(names, ["acme/source-new:1", "local/connector:dev"]);
}

#[test]
fn a_missing_command_is_named() {
    let Some(world) = World::on_this_machine() else { return };
    let spec = |exec: &str| world.syncctl(&["spec", "--exec", exec, "-o", "json"]).run();
    for exec in ["no-such-command-anywhere --option", "/nonexistent/connector"] {
        let done = spec(exec);
        done.code(3);
        let program = exec.split(' ').next().expect("a word");
        assert!(done.json()["error"].as_str().is_some_and(|error| error.contains(program)), "{done}");
    }
    spec(" ").code(2);
    let in_cluster = Program::new(&["spec", "--exec", "true", "-o", "json"])
        .env("SYNCCTL_DATABASE_URL", "postgresql://127.0.0.1:1/x")
        .env("SYNCCTL_SIDECAR_IMAGE", "x")
        .run();
    in_cluster.fails(2, "USAGE", &["--exec", "--local"]);
}

#[test]
fn an_unusable_state_directory_is_named() {
    let Some(world) = World::on_this_machine() else { return };
    let file = world.file("file", "");
    let done = world
        .syncctl(&["spec", "--exec", "true", "-o", "json"])
        .env("SYNCCTL_STATE_DIR", &format!("{file}/state"))
        .run();
    done.fails(3, "LOCAL_ERROR", &[&file]);
}

#[test]
fn a_full_disk_fails_the_task_and_leaves_nothing() {
    let Some(fixture) = Fixture::new(STUBBORN) else { return };
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let disk = tempfile::tempdir().expect("a directory");
    let _small = Mounted::new(disk.path(), "size=64k");
    let noise: String =
        (0..400_000_u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 26)).collect();
    let done = fixture
        .check(&json!({"password": "hunter2-hunter2", "noise": noise}))
        .env("SYNCCTL_STATE_DIR", &disk.path().join("state").display().to_string())
        .run();
    done.fails(3, "LOCAL_ERROR", &["No space left"]).hides("hunter2-hunter2");
    assert!(done.json()["hint"].as_str().is_some_and(|hint| hint.contains("SYNCCTL_STATE_DIR")), "{done}");
    let left =
        Command::new("find").arg(disk.path().join("state/tasks")).args(["-mindepth", "1"]).output().expect("find");
    assert!(String::from_utf8_lossy(&left.stdout).lines().all(|path| path.ends_with(".making")), "{left:?}");
}

/// A tmpfs, unmounted when it is dropped.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(at: &'a Path, options: &str) -> Self {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).status();
        assert!(mounted.is_ok_and(|status| status.success()), "mounting a tmpfs");
        Self(at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(self.0).status().ok();
    }
}

/// Waits until the stream of the slow connector runs.
fn wait_for_ticks(world: &World, task: &str) {
    eventually("a running stream", DEADLINE, || {
        world.schema.task(task)?;
        (world.schema.streams(task)["ticks"]["status"] == "RUNNING").then_some(())
    });
}

/// Starts a read in the service and waits until it runs.
fn start_read(world: &World, service: &Service) -> String {
    let task = unique("reading-");
    let discard = json!({"destinationType": "discard"});
    let body = json!({"config": {}, "catalog": catalog(&["ticks"]), "destinationConfig": discard});
    assert_eq!(service.read("syncctl-test/slow:1", "sync", &task, &body).0, 200);
    wait_for_ticks(world, &task);
    task
}

#[test]
fn a_service_that_shuts_down_cancels_its_tasks() {
    let Some(world) = World::on_this_machine() else { return };
    let mut service = Service::start(&world);
    let task = start_read(&world, &service);
    service.stop().code(0);
    world.place.assert_empty();
    assert_eq!(world.schema.task(&task).expect("a row").0, "CANCELLED");
}

#[test]
fn the_tasks_of_a_killed_service_end_and_the_next_service_records_it() {
    let Some(world) = World::on_this_machine() else { return };
    let mut service = Service::start(&world);
    let task = start_read(&world, &service);
    service.kill();
    let tasks = world.place.machine().tasks().display().to_string();
    eventually("the end of its tasks", DEADLINE, || processes::with(&tasks).is_empty().then_some(()));
    service.start_again();
    let row = eventually("an outcome", DEADLINE, || world.schema.task(&task).filter(|(status, _)| status != "RUNNING"));
    assert_eq!(row.0, "FAILED");
    assert!(row.1.starts_with("ABANDONED: "), "{}", row.1);
    eventually("nothing left", DEADLINE, || world.place.leftovers().is_empty().then_some(()));
    service.stop().code(0);
}

/// A command that uses the tests' Podman; `None` if there is none.
pub fn in_podman(world: &World, arguments: &[&str]) -> Option<Program> {
    let variable = |name: &str| std::env::var(name).ok();
    let podman = variable("SYNCCTL_TEST_PODMAN")?;
    let program =
        ["CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF"].into_iter().fold(world.syncctl(arguments), |program, name| {
            program.env(name, &variable(name).expect("tests/podman/up sets it"))
        });
    assert!(Path::new(&podman).exists(), "{podman}");
    Some(program.env("SYNCCTL_LOCAL_RUNTIME", "podman"))
}

/// The names of syncctl's containers.
fn containers() -> Vec<String> {
    let podman = std::env::var("SYNCCTL_TEST_PODMAN").expect("in_podman requires it");
    let filter = "label=jitsu.com/creator=bulker-sync-controller";
    let list = Command::new(podman).args(["ps", "--all", "--filter", filter, "--format", "{{.Names}}"]).output();
    String::from_utf8_lossy(&list.expect("podman").stdout).lines().map(str::to_owned).collect()
}

#[test]
fn an_image_in_podman_is_read_limited_cancelled_and_removed() {
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
