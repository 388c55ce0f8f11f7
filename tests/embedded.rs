//! The embedded database: started by whoever needs it, gone after the last one, and whole whatever is killed.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::support::{Done, Program, Running, eventually, program};

/// What was started has to be gone after this time.
const SOON: Duration = Duration::from_secs(20);

/// A state directory of one test's own, which is empty of processes when the test ends.
struct Place {
    folder: tempfile::TempDir,
    started: Instant,
}

impl Place {
    /// `None` on a machine without a server, where tests of it were switched off together with those of the cluster.
    fn new() -> Option<Self> {
        let skip = std::env::var("SYNCCTL_TEST_SKIP_CLUSTER").is_ok_and(|value| value == "1");
        let there = Path::new("/usr/lib/postgresql").exists()
            || std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .any(|folder| folder.join("postgres").exists());
        if skip && !there {
            program::tell("a test of the embedded database SKIPPED: there is no PostgreSQL server here");
            return None;
        }
        Some(Self::bare())
    }

    fn bare() -> Self {
        // Not where TMPDIR may be: the user of root's server has to get there, and a socket's path is short.
        let folder = tempfile::Builder::new().prefix("syncctl-pg-").tempdir_in("/tmp").expect("a temporary folder");
        open_up(folder.path());
        Self { folder, started: Instant::now() }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn postgres(&self) -> PathBuf {
        self.state().join("postgres")
    }

    fn syncctl(&self, arguments: &[&str]) -> Program {
        Program::new(arguments).env("SYNCCTL_STATE_DIR", &self.state().display().to_string())
    }

    /// What the database answers to a statement.
    #[track_caller]
    fn query(&self, sql: &str) -> String {
        let done = self.syncctl(&["db", "psql", "-XAtqc", sql]).run();
        done.code(0).stdout.trim().to_owned()
    }

    /// Somebody who uses the server until it is killed, also when the server is: it waits for a script that never comes.
    fn user(&self) -> Running {
        let script = self.folder.path().join("script");
        if !script.exists() {
            let made = Command::new("mkfifo").arg(&script).status().expect("mkfifo");
            assert!(made.success());
        }
        self.running(&["-Xqf", &script.display().to_string()])
    }

    /// Somebody for whom the server works until it is killed.
    fn busy_user(&self) -> Running {
        self.running(&["-Xqc", "SELECT pg_sleep(300)"])
    }

    fn running(&self, arguments: &[&str]) -> Running {
        let user = self.syncctl(&["db", "psql"]).with(arguments).start();
        let pid = user.pid();
        eventually("psql runs", SOON, || program_of(pid).filter(|name| name == "psql"));
        user
    }

    fn postmaster(&self) -> Option<u32> {
        fs::read_to_string(self.postgres().join("data/postmaster.pid")).ok()?.lines().next()?.parse().ok()
    }

    fn keeper(&self) -> Option<u32> {
        let text = format!("syncctl db keep {}", self.state().display());
        self.processes().into_iter().find(|(_, command)| command.starts_with(&text)).map(|(pid, _)| pid)
    }

    /// All processes that work for this place, or in it.
    fn processes(&self) -> Vec<(u32, String)> {
        let state = self.state();
        let entries = fs::read_dir("/proc").expect("a /proc file system").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter_map(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            let ours = command.contains(&state.display().to_string()) || cwd.starts_with(&state);
            ours.then_some((pid, command))
        })
        .collect()
    }

    /// Waits until nothing is left but files.
    #[track_caller]
    fn is_quiet(&self) {
        eventually("the server stops after its last user", SOON, || self.processes().is_empty().then_some(()));
        let socket = fs::read_dir(self.postgres().join("socket"));
        let left: Vec<_> = socket.into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(!self.postgres().join("data/postmaster.pid").exists());
        assert!(!self.postgres().join("data.new").exists());
    }

    /// Kills everything that works for this place, as the end of a container does.
    fn kill_all(&self) {
        eventually("all are killed", SOON, || {
            let processes = self.processes();
            for (pid, _) in &processes {
                kill(*pid);
            }
            processes.is_empty().then_some(())
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        println!("{test}: {:.1} s", self.started.elapsed().as_secs_f64());
        if std::thread::panicking() {
            let log = fs::read_to_string(self.postgres().join("log")).unwrap_or_default();
            println!("--- processes\n{:?}\n--- log\n{log}", self.processes());
        }
        self.kill_all();
    }
}

fn open_up(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("a folder of ours");
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).expect("a process id"), Signal::KILL).ok();
}

fn program_of(pid: u32) -> Option<String> {
    Some(fs::read_link(format!("/proc/{pid}/exe")).ok()?.file_name()?.to_str()?.to_owned())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Asserts one sentence on stderr and one hint, and exit code 3.
#[track_caller]
fn refuses(done: &Done, parts: &[&str]) {
    done.code(3);
    assert_eq!(done.stdout, "", "{done}");
    let lines: Vec<&str> = done.stderr.lines().collect();
    let told =
        lines.len() == 2 && lines[0].starts_with("error: DATABASE_UNREACHABLE: ") && lines[1].starts_with("hint: ");
    assert!(told, "not one sentence and a hint\n{done}");
    for part in parts {
        assert!(done.stderr.contains(part), "{part:?} is not named\n{done}");
    }
}

#[test]
fn all_who_use_it_at_the_same_time_share_one_server_that_ends_after_the_last() {
    let Some(place) = Place::new() else { return };
    let stop = |code: i32, text: &str| {
        let done = place.syncctl(&["db", "stop"]).run();
        done.code(code);
        assert!(done.stdout.contains(text) || done.stderr.contains(text), "{done}");
    };
    stop(0, "was not running");
    assert!(!place.state().exists(), "there is nothing yet, and stopping makes nothing");
    assert_eq!(place.query("CREATE TABLE kept AS SELECT 42 AS n; SELECT n FROM kept"), "42");
    assert_eq!(place.query("SELECT schemaname FROM pg_tables WHERE tablename = 'kept'"), "syncctl");
    let failed = place.syncctl(&["db", "psql", "--", "-v", "ON_ERROR_STOP=1", "-qc", "SELECT nothing"]).run();
    assert!(failed.code(1).stderr.contains("nothing"), "{failed}");
    place.is_quiet();

    for (name, of_server, mode) in [("data", true, 0o700), ("socket", true, 0o700), ("log", false, 0o600)] {
        let file = fs::metadata(place.postgres().join(name)).expect("it is there");
        assert_eq!(file.mode() & 0o777, mode, "{name}");
        assert_eq!(file.uid() == 0, is_root() && !of_server, "{name}: the server is not root");
    }

    let (mut one, other) = (place.user(), place.user());
    let server = place.postmaster();
    assert!(server.is_some());
    assert_eq!(place.query("SELECT n FROM kept"), "42");
    other.signal(Signal::KILL);
    other.wait();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((place.postmaster(), one.has_ended()), (server, false), "one is enough to keep it");
    stop(3, "in use");
    one.signal(Signal::TERM);
    one.wait();
    place.is_quiet();
    stop(0, "was not running");
}

#[test]
fn its_url_is_good_for_other_programs_while_they_are_connected() {
    let Some(place) = Place::new() else { return };
    let done = place.syncctl(&["db", "url"]).env("SYNCCTL_DATABASE_URL", "postgresql://a@elsewhere/b").run();
    let url = done.code(0).stdout.trim().to_owned();
    assert!(url.starts_with("postgresql://syncctl@%2Ftmp%2F"), "{url}");
    let psql = |sql: &str| {
        let mut psql = Command::new("psql");
        psql.args([url.as_str(), "-XAtqc", sql]);
        psql
    };
    // A while after the only user has gone.
    std::thread::sleep(Duration::from_millis(500));
    let output = psql("SHOW search_path").output().expect("psql");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "syncctl, public", "{output:?}");
    // What the other program connects to may be a database of results.
    let spec = Program::new(&["spec", "airbyte/source-faker:1", "-o", "json"])
        .env("SYNCCTL_DATABASE_URL", &url)
        .env("SYNCCTL_SIDECAR_IMAGE", "syncctl:1")
        .env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", "/nowhere")
        .run();
    assert_ne!(spec.json()["class"], "DATABASE_UNREACHABLE", "{spec}");

    // It stays for one who holds no lock, also when nobody waits for it any more.
    let mut connected = psql("SELECT pg_sleep(300)").spawn().expect("psql");
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'";
    eventually("psql is connected", SOON, || (place.query(sleeps) == "1").then_some(()));
    let server = place.postmaster();
    let done = place.syncctl(&["db", "stop", "-o", "json"]).run();
    done.fails(3, "DATABASE_ERROR", &["in use"]);
    assert_eq!(place.postmaster(), server);
    connected.kill().expect("psql");
    connected.wait().expect("psql");
    place.is_quiet();

    let again = place.syncctl(&["db", "url", "-o", "json"]).run();
    assert_eq!(again.code(0).json()["url"], url.as_str());
    assert_eq!(place.syncctl(&["db", "stop", "-o", "json"]).run().code(0).json()["stopped"], true);
    place.is_quiet();
}

#[test]
fn whoever_is_killed_the_next_start_finds_everything_and_leaves_nothing() {
    let Some(place) = Place::new() else { return };
    assert_eq!(place.query("CREATE TABLE kept (n int); INSERT INTO kept VALUES (0) RETURNING n"), "0");
    place.is_quiet();
    let mut rows = 1;
    let mut whole = |who: &str| {
        assert_eq!(
            place.query("INSERT INTO kept SELECT max(n) + 1 FROM kept; SELECT count(*) FROM kept"),
            {
                rows += 1;
                rows.to_string()
            },
            "after {who}"
        );
    };

    // The keeper, while somebody uses the server: it goes on for both, and still ends after the last.
    let user = place.user();
    let server = place.postmaster().expect("a server");
    kill(place.keeper().expect("a keeper"));
    // The server has something to say, and nobody to say it to.
    place.syncctl(&["db", "psql", "-Xqc", "SELECT nothing"]).run().code(1);
    whole("the keeper");
    assert_eq!(place.postmaster(), Some(server), "nobody was disturbed");
    user.signal(Signal::KILL);
    user.wait();
    place.is_quiet();

    // The keeper and the user, so that the server is left alone.
    let user = place.user();
    kill(place.keeper().expect("a keeper"));
    user.signal(Signal::KILL);
    user.wait();
    assert!(place.postmaster().is_some());
    whole("keeper and user");
    place.is_quiet();

    // The server, while somebody uses it: there is a new one for those who come.
    let user = place.user();
    let server = place.postmaster().expect("a server");
    kill(server);
    eventually("a new server", SOON, || place.postmaster().filter(|pid| *pid != server));
    whole("the server");
    user.signal(Signal::KILL);
    user.wait();
    place.is_quiet();

    // All but a child of the server's that is busy, and holds its memory.
    let user = place.busy_user();
    let is_busy = |(pid, command): (u32, String)| command.contains("[local] SELECT").then_some(pid);
    let busy = eventually("a busy child", SOON, || place.processes().into_iter().find_map(is_busy));
    kill_process(Pid::from_raw(busy.cast_signed()).expect("a process id"), Signal::STOP).expect("a process");
    for pid in [place.keeper(), place.postmaster()] {
        kill(pid.expect("a process"));
    }
    user.signal(Signal::KILL);
    user.wait();
    whole("all but a child");
    place.is_quiet();
    assert_eq!(program_of(busy), None, "the child is gone");

    // Everything.
    let user = place.user();
    user.signal(Signal::KILL);
    place.kill_all();
    user.wait();
    whole("all");
    place.is_quiet();

    // Another process has the number that the dead server had.
    let pid_file = place.postgres().join("data/postmaster.pid");
    fs::write(&pid_file, format!("{}\n", std::process::id())).expect("a file");
    whole("a reboot");
    place.is_quiet();
}

#[test]
fn a_first_start_that_is_killed_is_done_anew() {
    let Some(place) = Place::new() else { return };
    for (label, milliseconds, all) in [("starter", 60, false), ("starter, later", 400, false), ("all", 300, true)] {
        let starter = place.syncctl(&["db", "psql", "-XAtqc", "SELECT 1"]).start();
        std::thread::sleep(Duration::from_millis(milliseconds));
        if all {
            // initdb lives on for a moment.
            place.keeper().into_iter().for_each(kill);
        }
        starter.signal(Signal::KILL);
        starter.wait();
        assert!(!place.postgres().join("data").exists(), "{label}: too late to be of use");
    }
    assert_eq!(place.query("SELECT 1"), "1");
    place.is_quiet();
}

#[test]
fn sixteen_who_come_at_once_get_the_same_new_server() {
    let Some(place) = Place::new() else { return };
    let ask = place.syncctl(&["db", "psql", "-XAtqc", "SELECT pg_postmaster_start_time() FROM pg_sleep(0.5)"]);
    let all: Vec<Running> = (0..16).map(|_| ask.start()).collect();
    let answers: Vec<String> = all.into_iter().map(|one| one.wait().code(0).stdout.clone()).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0] && !answer.is_empty()), "{answers:?}");
    place.is_quiet();
    // Coming and going, which is when a server is stopped for one and started for the next.
    let come_and_go = |count: usize| (0..count).for_each(|_| assert_eq!(place.query("SELECT 1"), "1"));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| come_and_go(3));
        }
    });
    place.is_quiet();
}

#[test]
fn what_cannot_work_is_told_in_one_sentence_and_makes_nothing() {
    let place = Place::bare();
    let folder = place.folder.path();
    let empty = |folder: &Path| fs::read_dir(folder).expect("a folder").next().is_none();
    let url = || place.syncctl(&["db", "url"]);

    let long = folder.join("long".repeat(25)).display().to_string();
    let done = url().env("SYNCCTL_STATE_DIR", &long).run();
    refuses(&done, &["bytes, and 107 are possible", "/.s.PGSQL.5432", "SYNCCTL_STATE_DIR"]);
    refuses(&url().env("SYNCCTL_STATE_DIR", "/tmp/a,b").run(), &["comma", "SYNCCTL_STATE_DIR"]);
    let nothing = folder.join("nothing").display().to_string();
    let done = url().env("SYNCCTL_POSTGRES_BIN", &nothing).run();
    refuses(&done, &["SYNCCTL_POSTGRES_BIN is ", "there is no postgres", "install"]);
    assert!(empty(folder), "nothing was made");

    let data = place.postgres().join("data");
    fs::create_dir_all(&data).expect("a folder");
    refuses(&url().run(), &["is no data directory of PostgreSQL", "move the folder away"]);
    // A server of a version that nobody has.
    fs::write(data.join("PG_VERSION"), "99\n").expect("a file");
    let done = url().run();
    if done.stderr.contains("there is no PostgreSQL server") {
        refuses(&done, &["99"]);
    } else {
        refuses(&done, &["was made by PostgreSQL 99, and only ", "installed", "postgresql", "move the folder away"]);
    }
    assert!(place.processes().is_empty());

    let misused = place.syncctl(&["db", "keep", "/tmp", "/usr/bin"]).run();
    assert!(misused.code(2).stderr.contains("syncctl's own"), "{misused}");
    let mut homeless = Program::new(&["db", "url"]).env("HOME", "");
    if !is_root() {
        homeless = homeless.env("XDG_STATE_HOME", "");
        assert!(homeless.run().code(2).stderr.contains("SYNCCTL_STATE_DIR"));
    }
}

#[test]
fn a_folder_that_roots_server_cannot_reach_is_named() {
    let Some(place) = Place::new().filter(|_| is_root()) else { return };
    let closed = place.folder.path().join("closed");
    fs::create_dir(&closed).expect("a folder");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("a folder of ours");
    let state = closed.join("a/b").display().to_string();
    let done = place.syncctl(&["db", "url"]).env("SYNCCTL_STATE_DIR", &state).run();
    refuses(&done, &["runs as the user", &format!("the folder {} ", closed.display()), "SYNCCTL_STATE_DIR"]);
    assert!(fs::read_dir(&closed).expect("a folder").next().is_none(), "nothing was made");
}

#[test]
fn a_full_disk_is_told_and_once_there_is_space_it_works() {
    let Some(place) = Place::new().filter(|_| is_root()) else { return };
    let state = place.state();
    fs::create_dir(&state).expect("a folder");
    let Some(disk) = Disk::mount(&state, "24m") else {
        program::tell("the test of a full disk SKIPPED: nothing can be mounted here");
        return;
    };
    let url = || place.syncctl(&["db", "url"]).run();
    refuses(&url(), &["making the embedded database in ", "No space left on device", "SYNCCTL_STATE_DIR"]);
    eventually("nothing runs", SOON, || place.processes().is_empty().then_some(()));
    for name in ["data", "data.new"] {
        assert!(!place.postgres().join(name).exists(), "{name} was left behind");
    }
    disk.resize("120m");
    assert_eq!(place.query("CREATE TABLE kept AS SELECT 42 AS n; SELECT n FROM kept"), "42");
    place.is_quiet();
    let ballast = state.join("ballast");
    let mut file = fs::File::create(&ballast).expect("a file");
    std::io::copy(&mut std::io::repeat(7), &mut file).expect_err("the disk is full");
    drop(file);
    refuses(&url(), &["starting the embedded database in ", "No space left on device", "free space there"]);
    eventually("nothing runs", SOON, || place.processes().is_empty().then_some(()));
    fs::remove_file(&ballast).expect("a file of ours");
    assert_eq!(place.query("SELECT n FROM kept"), "42");
    place.is_quiet();
}

/// A file system of a limited size, in memory.
struct Disk {
    at: PathBuf,
}

impl Disk {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        let options = format!("mode=0755,size={size}");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(at).output().ok()?;
        output.status.success().then(|| Self { at: at.to_owned() })
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        let status = Command::new("mount").args(["-o", &options]).arg(&self.at).status().expect("mount");
        assert!(status.success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.at).status().ok();
    }
}

/// A connector that gives one row and then waits.
const ONE_ROW: &str = r#"
[ "$1" = read ] || { echo '{"type":"SPEC","spec":{"connectionSpecification":{}}}'; exit; }
echo '{"type":"RECORD","record":{"stream":"a","data":{"id":1},"emitted_at":1}}'
echo '{"type":"STATE","state":{"type":"STREAM","stream":{"stream_descriptor":{"name":"a"},"stream_state":{"id":1}}}}'
[ ! -e "$0.waits" ] || sleep 300
"#;

impl Place {
    /// A read on this machine of a connector with one row: results and rows go to the embedded database.
    fn read(&self, stream: &str, waits: bool) -> Program {
        let file = |name: &str, content: &str| {
            let path = self.folder.path().join(name);
            fs::write(&path, content).expect("a file");
            path.display().to_string()
        };
        let script = file("connector.sh", &ONE_ROW.replace(r#""a""#, &format!("{stream:?}")));
        if waits {
            file("connector.sh.waits", "");
        }
        let stream = format!(r#"{{"name": {stream:?}, "supported_sync_modes": ["full_refresh", "incremental"]}}"#);
        let how = r#""sync_mode": "incremental", "destination_sync_mode": "append""#;
        let catalog = format!(r#"{{"streams": [{{"stream": {stream}, {how}}}]}}"#);
        let (config, catalog) = (file("config.json", "{}"), file("catalog.json", &catalog));
        let exec = format!("sh {script}");
        let arguments = ["read", "--local", "--exec", &exec, "--config", &config, "--catalog", &catalog];
        self.syncctl(&arguments).with(&["--sync-id", "s", "-o", "json"])
    }
}

#[test]
fn a_read_that_names_no_database_loads_beside_its_results() {
    let Some(place) = Place::new() else { return };
    let done = place.read("a", false).run();
    assert_eq!(done.code(0).json()["status"], "SUCCESS", "{done}");
    place.is_quiet();
    let query = "SELECT (SELECT count(*) FROM syncctl.a), (SELECT status FROM syncctl.source_task), (SELECT id FROM a)";
    assert_eq!(place.query(query), "1|SUCCESS|1");
    let taken = place.read("source_state", false).run();
    assert!(taken.code(2).stderr.contains("--table-name-prefix"), "{taken}");
    place.read("source_state", false).with(&["--table-name-prefix", "my_"]).run().code(0);
    place.is_quiet();
}

#[test]
fn a_read_survives_the_end_of_the_keeper_and_of_the_server_and_stops_it_at_its_own() {
    let Some(place) = Place::new() else { return };
    let reads = || {
        let running = place.read("a", true).start();
        let query = "SELECT count(*) FROM source_task WHERE status = 'RUNNING' AND description::text LIKE '%RUNNING%'";
        eventually("a stream that runs", SOON, || {
            let asked = place.syncctl(&["db", "psql", "-XAtqc", query]).run();
            (asked.stdout.trim() == "1").then_some(())
        });
        running
    };
    for victim in ["keeper", "server"] {
        let running = reads();
        kill(if victim == "keeper" { place.keeper() } else { place.postmaster() }.expect(victim));
        std::thread::sleep(Duration::from_millis(500));
        running.signal(Signal::INT);
        running.wait().code(130);
        place.is_quiet();
        assert_eq!(
            place.query("SELECT status FROM source_task ORDER BY started_at DESC LIMIT 1"),
            "CANCELLED",
            "{victim}"
        );
    }
    // Whoever is killed with it: nobody is left but the server, which goes after the next start.
    let running = reads();
    running.signal(Signal::KILL);
    running.wait();
    let tasks = place.state().join("tasks");
    eventually("the end of the server", SOON, || place.processes().is_empty().then_some(()));
    place.syncctl(&["spec", "--local", "--exec", "true"]).run();
    let left = fs::read_dir(&tasks).expect("a folder").flatten().map(|entry| entry.file_name()).collect::<Vec<_>>();
    assert_eq!(left, [".making"]);
    place.is_quiet();
    assert_eq!(place.query("SELECT status FROM source_task ORDER BY started_at DESC LIMIT 1"), "FAILED");
}
