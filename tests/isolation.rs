//! Connectors that attack this machine, as Python packages of tasks on it: as root, and as an ordinary user.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::support::{Program, Service, World, eventually, processes, unique};

/// Only ends a wait that hangs.
const DEADLINE: Duration = Duration::from_mins(3);

/// An ordinary user with this id and without a name.
const ORDINARY_USER: u32 = 54_321;

/// Packs the hostile connector as version 1 of `syncctl-hostile`.
const PACK: &str = r#"
import sys, zipfile
source, into, values = sys.argv[1:]
module, info = "syncctl_hostile", "syncctl_hostile-1.dist-info"
files = {
    module + ".py": values + open(source).read(),
    module + ".pth": "import syncctl_hostile\n",
    info + "/METADATA": "Metadata-Version: 2.1\nName: syncctl-hostile\nVersion: 1\n",
    info + "/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    info + "/entry_points.txt": "[console_scripts]\nhostile = syncctl_hostile:run\n",
    info + "/RECORD": "",
}
with zipfile.ZipFile(into + "/syncctl_hostile-1-py3-none-any.whl", "w") as archive:
    for path, content in files.items():
        archive.writestr(path, content)
"#;

/// A machine with the hostile connector on its package index.
struct Fixture {
    world: World,
    folder: tempfile::TempDir,
    user: Option<u32>,
    daemon: String,
    port: TcpListener,
}

impl Fixture {
    fn new(user: Option<u32>) -> Option<Self> {
        let world = World::on_this_machine()?;
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        // Not below the home directory of root: another user cannot enter that.
        let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let port = TcpListener::bind("127.0.0.1:0").expect("a port");
        let fixture = Self { world, folder, user, daemon: unique("daemon-"), port };
        std::fs::set_permissions(fixture.folder.path(), PermissionsExt::from_mode(0o755)).expect("a folder");
        for name in ["state", "cache", "cache/connectors", "cache/connectors/neighbour", "home", "wheels"] {
            std::fs::create_dir(fixture.path(name)).expect("a folder");
            chown(fixture.path(name), user, user).expect("root");
        }
        std::fs::write(fixture.path("cache/connectors/neighbour/syncctl.json"), "{}").expect("a file");
        let targets =
            ["cache/connectors", "cache/connectors/neighbour", "home", "state"].map(|name| fixture.path(name));
        let marker = fixture.path("cache/marker").display().to_string();
        let values = format!("TARGETS = {targets:?}\nMARKER = {marker:?}\n");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/isolation/hostile.py");
        let mut pack = Command::new("python3");
        pack.args(["-I", "-c", PACK]).arg(source).arg(fixture.path("wheels")).arg(values);
        assert!(pack.status().expect("python3").success());
        Some(fixture)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.path(name).display().to_string();
        vec![
            ("SYNCCTL_STATE_DIR", path("state")),
            ("SYNCCTL_CACHE_DIR", path("cache")),
            ("PIP_FIND_LINKS", path("wheels")),
            ("UV_FIND_LINKS", path("wheels")),
            ("PIP_NO_INDEX", "1".to_owned()),
            ("HOME", path("home")),
        ]
    }

    fn config(&self, service: u32, seconds: u32) -> Value {
        let path = |name: &str| self.path(name).display().to_string();
        json!({
            "state": path("state"), "cache": path("cache"), "home": path("home"), "service": service,
            "neighbour": path("cache/connectors/neighbour/syncctl.json"),
            "socket": path("state/postgres/socket/.s.PGSQL.5432"),
            "port": self.port.local_addr().expect("a port").port(),
            "daemon": self.daemon, "seconds": seconds, "root": self.user.is_none(),
        })
    }

    fn check(&self, config: &Value) -> Program {
        let file = self.path(&unique("config-"));
        std::fs::write(&file, config.to_string()).expect("a file");
        let file = file.display().to_string();
        let arguments =
            ["check", "syncctl-test/hostile:1", "--config", &file, "--storage-key", &unique("k"), "-o", "json"];
        let arguments = arguments.map(|argument| argument.replace("syncctl-test/hostile", "syncctl/hostile"));
        let program = self.world.syncctl(&arguments);
        let program = self.settings().into_iter().fold(program, |program, (name, value)| program.env(name, &value));
        match self.user {
            Some(user) => program.user(user, &self.path("syncctl")),
            None => program,
        }
    }

    /// What the connector reports.
    fn report(&self, config: &Value) -> Value {
        let done = self.check(config).run();
        let message = done.code(0).json()["message"].as_str().expect("a message").to_owned();
        serde_json::from_str(&message).expect("a report")
    }

    fn assert_harmless(&self, report: &Value) {
        assert_eq!((&report["successes"], &report["problems"]), (&json!([]), &json!([])), "{report}");
        assert_eq!(processes::with(&self.daemon), [], "its daemon has ended with it");
        let find = |folder: &Path, expression: &[&str]| {
            let found = Command::new("find").arg(folder).args(expression).output().expect("find").stdout;
            String::from_utf8_lossy(&found).into_owned()
        };
        let planted = find(self.folder.path(), &["-name", "planted*", "-o", "-name", "marker"]);
        assert_eq!(planted, "", "nothing outside of the environment was written");
        let open = find(&self.path("cache/connectors"), &["-perm", "/6022", "!", "-type", "l"]);
        assert_eq!(open, "", "no file of an environment is writable for others");
    }
}

#[test]
fn a_hostile_package_reaches_nothing_of_the_machine_neither_for_root_nor_for_an_ordinary_user() {
    for user in [None, Some(ORDINARY_USER)] {
        let Some(fixture) = Fixture::new(user) else { return };
        if user.is_some() {
            std::fs::copy(env!("CARGO_BIN_EXE_syncctl"), fixture.path("syncctl")).expect("a copy");
        }
        let config = fixture.config(std::process::id(), 0);
        // Installed by the first, found in the cache by the second.
        for _ in 0..2 {
            let report = fixture.report(&config);
            fixture.assert_harmless(&report);
            let own = report["user"].as_u64().expect("a user");
            match user {
                Some(user) => assert_eq!(own, u64::from(user)),
                None => assert!((1_900_000_000..1_900_065_536).contains(&own), "{own}"),
            }
        }
    }
}

/// Runs a program as a root that may neither mount nor create namespaces.
const WITHOUT_NAMESPACES: [&str; 6] = [
    "unshare",
    "--user",
    "--map-root-user",
    "sh",
    "-c",
    r#"echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-sys_admin -- "$0" "$@""#,
];

#[test]
fn without_isolation_a_service_does_not_start_unless_it_may_and_a_command_warns() {
    let Some(fixture) = Fixture::new(None) else { return };
    let settings = |program: Program| {
        let program = fixture.settings().into_iter().fold(program, |program, (name, value)| program.env(name, &value));
        program.through(&WITHOUT_NAMESPACES)
    };
    let refused = settings(fixture.world.syncctl(&["serve"])).run();
    assert!(refused.code(2).stderr.contains("cannot be isolated"), "{refused}");
    assert!(refused.stderr.contains("--allow-unisolated"), "{refused}");
    let mut service =
        Service::start_with(&fixture.world, |program| settings(program.env("SYNCCTL_ALLOW_UNISOLATED", "true")));
    let done = service.stop();
    assert!(done.code(0).stderr.contains("are not isolated"), "{done}");
    let done = fixture.world.syncctl(&["spec", "syncctl-test/instant:1"]).through(&WITHOUT_NAMESPACES).run();
    done.code(0);
    assert!(done.stderr.contains("not isolated"), "{done}");
}

#[test]
fn no_process_of_ours_can_be_read_by_others_of_its_user() {
    let Some(fixture) = Fixture::new(Some(ORDINARY_USER)) else { return };
    std::fs::copy(env!("CARGO_BIN_EXE_syncctl"), fixture.path("syncctl")).expect("a copy");
    let config = fixture.path("config.json");
    std::fs::write(&config, "{}").expect("a file");
    // A connector of this user that does not end.
    let check = ["check", "--exec", "sleep 600", "--config", &config.display().to_string(), "--storage-key", "k"]
        .map(str::to_owned);
    let program = fixture
        .settings()
        .into_iter()
        .fold(fixture.world.syncctl(&check), |program, (name, value)| program.env(name, &value));
    let running = program.user(ORDINARY_USER, &fixture.path("syncctl")).start();
    let folder = fixture.folder.path().display().to_string();
    let ours = eventually("a supervisor and a sidecar", DEADLINE, || {
        let ours = processes::with(&folder).into_iter().filter(|(_, command)| !command.starts_with("sleep"));
        let ours: Vec<(i32, String)> = ours.filter(|(_, command)| command.contains("syncctl")).collect();
        ["supervise", "sidecar"]
            .iter()
            .all(|role| ours.iter().any(|(_, command)| command.contains(role)))
            .then_some(ours)
    });
    for (pid, command) in [ours, vec![(running.pid().cast_signed(), "the command".to_owned())]].concat() {
        for file in ["environ", "mem", "maps"] {
            let mut read = Command::new("head");
            read.args(["-c", "1", &format!("/proc/{pid}/{file}")]).uid(ORDINARY_USER).gid(ORDINARY_USER);
            let read = read.output().expect("head");
            assert!(!read.status.success() && read.stdout.is_empty(), "{command}: {file}: {read:?}");
        }
    }
    running.signal(Signal::INT);
    running.wait();
}
