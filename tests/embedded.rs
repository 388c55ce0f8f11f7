//! The embedded database: the first user starts it, it stops after the last one, and the next start recovers it from
//! whatever was killed.

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::support::{Done, Program, Running, eventually, program, unique};

/// After this time an event counts as missing.
const DEADLINE: Duration = Duration::from_mins(3);

/// A state directory, without processes when the test ends.
struct Database {
    directory: tempfile::TempDir,
    started: Instant,
}

/// A psql that is connected and waits for its script.
struct IdleUser {
    psql: Running,
    /// The end of the pipe into which nothing is written.
    _script: fs::File,
}

impl IdleUser {
    fn kill(self) {
        self.psql.signal(Signal::KILL);
        self.psql.wait();
    }
}

impl Database {
    /// `None` on a machine without a server, if tests that need a cluster are skipped.
    fn new() -> Option<Self> {
        let skip = std::env::var("SYNCCTL_TEST_SKIP_CLUSTER").is_ok_and(|value| value == "1");
        let is_installed = Path::new("/usr/lib/postgresql").exists()
            || std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .any(|directory| directory.join("postgres").exists());
        if skip && !is_installed {
            program::print_line("a test of the embedded database SKIPPED: there is no PostgreSQL server here");
            return None;
        }
        Some(Self::without_server())
    }

    fn without_server() -> Self {
        // Not in TMPDIR: the user of root's server must be able to enter it, and a socket's path is short.
        let directory =
            tempfile::Builder::new().prefix("syncctl-pg-").tempdir_in("/tmp").expect("a temporary directory");
        set_mode(directory.path(), 0o755);
        Self { directory, started: Instant::now() }
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn postgres(&self) -> PathBuf {
        self.state().join("postgres")
    }

    fn syncctl(&self, arguments: &[&str]) -> Program {
        Program::new(arguments).env("SYNCCTL_STATE_DIR", &self.state().display().to_string())
    }

    /// The result of a statement.
    #[track_caller]
    fn query(&self, sql: &str) -> String {
        let done = self.syncctl(&["db", "psql", "-XAtqc", sql]).run();
        done.code(0).stdout.trim().to_owned()
    }

    /// A user that runs until it is killed, also if the server ends.
    fn idle_user(&self) -> IdleUser {
        let script = self.directory.path().join(unique("script-"));
        let made = Command::new("mkfifo").arg(&script).status().expect("mkfifo");
        assert!(made.success());
        let psql = self.syncctl(&["db", "psql", "-Xqf", &script.display().to_string()]).start();
        // psql connects before it opens its script, and the pipe opens for writing once it is open for reading.
        let mut writing = fs::OpenOptions::new();
        writing.write(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
        let script = eventually("psql is connected", DEADLINE, || writing.open(&script).ok());
        IdleUser { psql, _script: script }
    }

    fn postmaster(&self) -> Option<u32> {
        fs::read_to_string(self.postgres().join("data/postmaster.pid")).ok()?.lines().next()?.parse().ok()
    }

    fn holder(&self) -> Option<u32> {
        let command = format!("syncctl db hold {}", self.state().display());
        self.processes().into_iter().find(|(_, other)| other.starts_with(&command)).map(|(pid, _)| pid)
    }

    fn kill_holder(&self) {
        let holder = self.holder().expect("a holder");
        kill(holder);
        eventually("the holder has ended", DEADLINE, || (self.holder() != Some(holder)).then_some(()));
    }

    /// All processes that name this directory or work in it, with their command lines.
    fn processes(&self) -> Vec<(u32, String)> {
        let state = self.state();
        let entries = fs::read_dir("/proc").expect("a /proc file system").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter_map(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            let is_ours = command.contains(&state.display().to_string()) || cwd.starts_with(&state);
            is_ours.then_some((pid, command))
        })
        .collect()
    }

    #[track_caller]
    fn wait_until_no_process_runs(&self) {
        eventually("all processes have ended", DEADLINE, || self.processes().is_empty().then_some(()));
    }

    /// Waits until the server has stopped in order.
    #[track_caller]
    fn wait_until_stopped(&self) {
        self.wait_until_no_process_runs();
        let socket = fs::read_dir(self.postgres().join("socket"));
        let left: Vec<_> = socket.into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(!self.postgres().join("data/postmaster.pid").exists());
        assert!(!self.postgres().join("data.new").exists());
    }

    /// Kills all processes, as the end of a container does.
    fn kill_all(&self) {
        eventually("all processes are killed", DEADLINE, || {
            let processes = self.processes();
            for (pid, _) in &processes {
                kill(*pid);
            }
            processes.is_empty().then_some(())
        });
    }
}

impl Drop for Database {
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

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a path of this test");
}

fn kill(pid: u32) {
    send(pid, Signal::KILL);
}

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).expect("a process id"), signal).ok();
}

fn program_of(pid: u32) -> Option<String> {
    Some(fs::read_link(format!("/proc/{pid}/exe")).ok()?.file_name()?.to_str()?.to_owned())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).expect("a directory").next().is_none()
}

/// Asserts exit code 3, and one error with one hint on stderr.
#[track_caller]
fn assert_refused(done: &Done, parts: &[&str]) {
    done.code(3);
    assert_eq!(done.stdout, "", "{done}");
    let lines: Vec<&str> = done.stderr.lines().collect();
    let is_one_error =
        lines.len() == 2 && lines[0].starts_with("error: DATABASE_UNREACHABLE: ") && lines[1].starts_with("hint: ");
    assert!(is_one_error, "not one error and one hint\n{done}");
    for part in parts {
        assert!(done.stderr.contains(part), "{part:?} is missing\n{done}");
    }
}

#[test]
fn concurrent_users_share_one_server_that_stops_after_the_last() {
    let Some(database) = Database::new() else { return };
    let stop = |code: i32, text: &str| {
        let done = database.syncctl(&["db", "stop"]).run();
        done.code(code);
        assert!(done.stdout.contains(text) || done.stderr.contains(text), "{done}");
    };
    stop(0, "was not running");
    assert!(!database.state().exists(), "a stop creates nothing");
    assert_eq!(database.query("CREATE TABLE rows AS SELECT 42 AS n; SELECT n FROM rows"), "42");
    assert_eq!(database.query("SELECT schemaname FROM pg_tables WHERE tablename = 'rows'"), "syncctl");
    let failed = database.syncctl(&["db", "psql", "--", "-v", "ON_ERROR_STOP=1", "-qc", "SELECT missing"]).run();
    assert!(failed.code(1).stderr.contains("missing"), "{failed}");
    database.wait_until_stopped();

    for (name, of_server, mode) in [("data", true, 0o700), ("socket", true, 0o700), ("log", false, 0o600)] {
        let file = fs::metadata(database.postgres().join(name)).expect("the file exists");
        assert_eq!(file.mode() & 0o777, mode, "{name}");
        assert_eq!(file.uid() == 0, is_root() && !of_server, "{name}: the server is not root");
    }

    let (mut one, other) = (database.idle_user(), database.idle_user());
    let server = database.postmaster();
    assert!(server.is_some());
    assert_eq!(database.query("SELECT n FROM rows"), "42");
    other.kill();
    // Longer than the interval of the holder's checks.
    std::thread::sleep(Duration::from_millis(600));
    stop(3, "in use");
    assert_eq!((database.postmaster(), one.psql.has_ended()), (server, false), "one user is enough");
    one.psql.signal(Signal::TERM);
    one.psql.wait();
    database.wait_until_stopped();
    stop(0, "was not running");
}

#[test]
fn url_serves_other_programs_while_they_are_connected() {
    let Some(database) = Database::new() else { return };
    let done = database.syncctl(&["db", "url"]).env("SYNCCTL_DATABASE_URL", "postgresql://a@elsewhere/b").run();
    let url = done.code(0).stdout.trim().to_owned();
    assert!(url.starts_with("postgresql://syncctl@%2Ftmp%2F"), "{url}");
    let psql = |sql: &str| {
        let mut psql = Command::new("psql");
        psql.args([url.as_str(), "-XAtqc", sql]);
        psql
    };
    // Longer than the interval of the holder's checks: no command uses it now.
    std::thread::sleep(Duration::from_millis(600));
    let output = psql("SHOW search_path").output().expect("psql");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "syncctl, data, public", "{output:?}");
    // A client may be another syncctl that uses it as its database of results.
    let spec = Program::new(&["spec", "airbyte/source-faker:1", "-o", "json"])
        .env("SYNCCTL_DATABASE_URL", &url)
        .env("SYNCCTL_SIDECAR_IMAGE", "syncctl:1")
        .env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", "/nowhere")
        .run();
    assert_ne!(spec.json()["class"], "DATABASE_UNREACHABLE", "{spec}");

    // A client without a lock keeps it running, also after the minute of `db url`, which a stop ends.
    let mut connected = psql("SELECT pg_sleep(300)").spawn().expect("psql");
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'";
    eventually("psql is connected", DEADLINE, || (database.query(sleeps) == "1").then_some(()));
    let server = database.postmaster();
    let done = database.syncctl(&["db", "stop", "-o", "json"]).run();
    done.fails(3, "DATABASE_ERROR", &["in use"]);
    assert_eq!(database.postmaster(), server);
    connected.kill().expect("psql");
    connected.wait().expect("psql");
    database.wait_until_stopped();

    let again = database.syncctl(&["db", "url", "-o", "json"]).run();
    assert_eq!(again.code(0).json()["url"], url.as_str());
    assert_eq!(database.syncctl(&["db", "stop", "-o", "json"]).run().code(0).json()["stopped"], true);
    database.wait_until_stopped();
}

#[test]
fn next_start_recovers_whichever_process_was_killed() {
    let Some(database) = Database::new() else { return };
    assert_eq!(database.query("CREATE TABLE rows (n int); INSERT INTO rows VALUES (0) RETURNING n"), "0");
    database.wait_until_stopped();
    let mut rows = 1;
    let mut assert_complete = |killed: &str| {
        rows += 1;
        let count = database.query("INSERT INTO rows SELECT max(n) + 1 FROM rows; SELECT count(*) FROM rows");
        assert_eq!(count, rows.to_string(), "after the end of {killed}");
    };

    // The holder, while the server is in use: another one stops the server after the last user.
    let user = database.idle_user();
    let server = database.postmaster().expect("a server");
    database.kill_holder();
    // The server can still write to its log.
    database.syncctl(&["db", "psql", "-Xqc", "SELECT missing"]).run().code(1);
    assert_complete("the holder");
    assert_eq!(database.postmaster(), Some(server), "the server was not restarted");
    user.kill();
    database.wait_until_stopped();

    // The holder and the user, so that the server is alone.
    let user = database.idle_user();
    database.kill_holder();
    user.kill();
    assert!(database.postmaster().is_some());
    assert_complete("holder and user");
    database.wait_until_stopped();

    // The server, while it is in use: the holder starts another one.
    let user = database.idle_user();
    let server = database.postmaster().expect("a server");
    kill(server);
    eventually("another server", DEADLINE, || database.postmaster().filter(|pid| *pid != server));
    assert_complete("the server");
    user.kill();
    database.wait_until_stopped();

    // All but a child of the server that is stopped in a statement and keeps the shared memory.
    let user = database.syncctl(&["db", "psql", "-Xqc", "SELECT pg_sleep(300)"]).start();
    let is_busy = |(pid, command): (u32, String)| command.contains("[local] SELECT").then_some(pid);
    let busy = eventually("a busy child", DEADLINE, || database.processes().into_iter().find_map(is_busy));
    send(busy, Signal::STOP);
    database.kill_holder();
    kill(database.postmaster().expect("a server"));
    user.signal(Signal::KILL);
    user.wait();
    assert_complete("all but a child");
    database.wait_until_stopped();
    assert_eq!(program_of(busy), None, "the child has ended");

    // All processes.
    let user = database.idle_user();
    user.psql.signal(Signal::KILL);
    database.kill_all();
    user.psql.wait();
    assert_complete("all processes");
    database.wait_until_stopped();

    // Another process has the id of the killed server.
    let pid_file = database.postgres().join("data/postmaster.pid");
    fs::write(&pid_file, format!("{}\n", std::process::id())).expect("a file");
    assert_complete("the machine");
    database.wait_until_stopped();
}

#[test]
fn first_start_recovers_after_it_was_killed() {
    let Some(database) = Database::new() else { return };
    let postgres = database.postgres();
    for (created, with_holder) in
        [("start.lock", false), ("data.new/PG_VERSION", false), ("data.new/global/pg_control", true)]
    {
        let starter = database.syncctl(&["db", "psql", "-XAtqc", "SELECT 1"]).start();
        eventually(created, DEADLINE, || postgres.join(created).exists().then_some(()));
        if with_holder {
            // initdb runs on for a moment.
            database.holder().into_iter().for_each(kill);
        }
        starter.signal(Signal::KILL);
        starter.wait();
        assert!(!postgres.join("data").exists(), "{created}: the start was over before the kill");
        if !with_holder {
            database.wait_until_no_process_runs();
        }
    }
    assert_eq!(database.query("SELECT 1"), "1");
    database.wait_until_stopped();
}

#[test]
fn sixteen_concurrent_starts_share_one_new_server() {
    let Some(database) = Database::new() else { return };
    let ask = database.syncctl(&["db", "psql", "-XAtqc", "SELECT pg_postmaster_start_time() FROM pg_sleep(0.5)"]);
    let all: Vec<Running> = (0..16).map(|_| ask.start()).collect();
    let answers: Vec<String> = all.into_iter().map(|one| one.wait().code(0).stdout.clone()).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0] && !answer.is_empty()), "{answers:?}");
    database.wait_until_stopped();
    // Users start and end while the server may be stopping for one and starting for the next.
    let use_it = |times: usize| (0..times).for_each(|_| assert_eq!(database.query("SELECT 1"), "1"));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| use_it(3));
        }
    });
    database.wait_until_stopped();
}

#[test]
fn impossible_settings_are_refused_and_create_nothing() {
    let database = Database::without_server();
    let directory = database.directory.path();
    let url = || database.syncctl(&["db", "url"]);

    let long = directory.join("long".repeat(25)).display().to_string();
    let done = url().env("SYNCCTL_STATE_DIR", &long).run();
    assert_refused(&done, &["bytes of 107 possible", &long, "SYNCCTL_STATE_DIR"]);
    assert_refused(&url().env("SYNCCTL_STATE_DIR", "/tmp/a,b").run(), &["comma", "SYNCCTL_STATE_DIR"]);
    let missing = directory.join("missing").display().to_string();
    let done = url().env("SYNCCTL_POSTGRES_BIN", &missing).run();
    assert_refused(&done, &["needs postgres", "not installed", &format!("SYNCCTL_POSTGRES_BIN={missing}"), "install"]);
    assert!(is_empty(directory), "something was created");

    let data = database.postgres().join("data");
    fs::create_dir_all(&data).expect("a directory");
    assert_refused(&url().run(), &["is not a data directory of PostgreSQL", "move the directory away"]);
    // A version that is installed nowhere.
    fs::write(data.join("PG_VERSION"), "99\n").expect("a file");
    let done = url().run();
    if done.stderr.contains("not installed") {
        assert_refused(&done, &["99"]);
    } else {
        let parts = ["needs PostgreSQL 99, only ", "installed", "postgresql", "move the directory away"];
        assert_refused(&done, &parts);
    }
    assert!(database.processes().is_empty());

    let internal = database.syncctl(&["db", "hold", "/tmp", "/usr/bin"]).run();
    assert!(internal.code(2).stderr.contains("this command is internal"), "{internal}");
    let mut without_home = Program::new(&["db", "url"]).env("HOME", "");
    if !is_root() {
        without_home = without_home.env("XDG_STATE_HOME", "");
        assert!(without_home.run().code(2).stderr.contains("SYNCCTL_STATE_DIR"));
    }
}

#[test]
fn failed_start_names_the_reason_in_the_log() {
    let Some(database) = Database::new() else { return };
    assert_eq!(database.query("SELECT 1"), "1");
    database.wait_until_stopped();
    let file = database.postgres().join("data/postgresql.conf");
    let settings = fs::read_to_string(&file).expect("the settings of the server");
    fs::write(&file, format!("{settings}\nno_such_setting = 1\n")).expect("a writable file");
    let log = database.postgres().join("log").display().to_string();
    let done = database.syncctl(&["db", "url"]).run();
    assert_refused(&done, &["cannot start the embedded database in ", "postgresql.conf\" contains errors", &log]);
    fs::write(&file, settings).expect("a writable file");
    assert_eq!(database.query("SELECT 1"), "1");
    database.wait_until_stopped();
}

#[test]
fn directory_closed_to_the_server_of_root_is_named() {
    let Some(database) = Database::new().filter(|_| is_root()) else { return };
    let closed = database.directory.path().join("closed");
    fs::create_dir(&closed).expect("a directory");
    set_mode(&closed, 0o700);
    let state = closed.join("a/b").display().to_string();
    let done = database.syncctl(&["db", "url"]).env("SYNCCTL_STATE_DIR", &state).run();
    assert_refused(&done, &["runs as the user", &format!("cannot enter {}\n", closed.display()), "SYNCCTL_STATE_DIR"]);
    assert!(is_empty(&closed), "something was created");
}

#[test]
fn full_disk_is_reported_until_there_is_space() {
    let Some(database) = Database::new().filter(|_| is_root()) else { return };
    let state = database.state();
    fs::create_dir(&state).expect("a directory");
    let Some(disk) = Disk::mount(&state, "24m") else {
        program::print_line("the test of a full disk SKIPPED: nothing can be mounted here");
        return;
    };
    let url = || database.syncctl(&["db", "url"]).run();
    assert_refused(
        &url(),
        &["cannot create the embedded database in ", "No space left on device", "SYNCCTL_STATE_DIR"],
    );
    database.wait_until_no_process_runs();
    for name in ["data", "data.new"] {
        assert!(!database.postgres().join(name).exists(), "{name} was left behind");
    }
    disk.resize("120m");
    assert_eq!(database.query("CREATE TABLE rows AS SELECT 42 AS n; SELECT n FROM rows"), "42");
    database.wait_until_stopped();
    let ballast = state.join("ballast");
    let mut file = fs::File::create(&ballast).expect("a file");
    std::io::copy(&mut std::io::repeat(7), &mut file).expect_err("the disk is full");
    drop(file);
    assert_refused(&url(), &["cannot start the embedded database in ", "No space left on device", "free space there"]);
    database.wait_until_no_process_runs();
    fs::remove_file(&ballast).expect("a file of this test");
    assert_eq!(database.query("SELECT n FROM rows"), "42");
    database.wait_until_stopped();
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

/// A connector that sends one row, and then waits if the test wants it.
const ONE_ROW: &str = r#"
[ "$1" = read ] || { echo '{"type":"SPEC","spec":{"connectionSpecification":{}}}'; exit; }
echo '{"type":"RECORD","record":{"stream":"a","data":{"id":1},"emitted_at":1}}'
echo '{"type":"STATE","state":{"type":"STREAM","stream":{"stream_descriptor":{"name":"a"},"stream_state":{"id":1}}}}'
[ ! -e "$0.waits" ] || sleep 300
"#;

impl Database {
    /// A local read of a connector with one row: results and rows go to the embedded database.
    fn read(&self, stream: &str, waits: bool) -> Program {
        let file = |name: &str, content: &str| {
            let path = self.directory.path().join(name);
            fs::write(&path, content).expect("a file");
            path.display().to_string()
        };
        let script = file("connector.sh", &ONE_ROW.replace(r#""a""#, &format!("{stream:?}")));
        if waits {
            file("connector.sh.waits", "");
        }
        let stream = format!(r#"{{"name": {stream:?}, "supported_sync_modes": ["full_refresh", "incremental"]}}"#);
        let modes = r#""sync_mode": "incremental", "destination_sync_mode": "append""#;
        let catalog = format!(r#"{{"streams": [{{"stream": {stream}, {modes}}}]}}"#);
        let (config, catalog) = (file("config.json", "{}"), file("catalog.json", &catalog));
        let exec = format!("sh {script}");
        let arguments = ["read", "--local", "--exec", &exec, "--config", &config, "--catalog", &catalog];
        self.syncctl(&arguments).with(&["--sync-id", "s", "-o", "json"])
    }

    /// A local read whose stream runs.
    fn running_read(&self) -> Running {
        let running = self.read("a", true).start();
        let query = "SELECT count(*) FROM source_task WHERE status = 'RUNNING' AND description::text LIKE '%RUNNING%'";
        eventually("a stream that runs", DEADLINE, || {
            let asked = self.syncctl(&["db", "psql", "-XAtqc", query]).run();
            (asked.stdout.trim() == "1").then_some(())
        });
        running
    }

    fn last_status(&self) -> String {
        self.query("SELECT status FROM source_task ORDER BY started_at DESC LIMIT 1")
    }
}

#[test]
fn read_without_a_database_loads_next_to_its_results() {
    let Some(database) = Database::new() else { return };
    let done = database.read("a", false).run();
    assert_eq!(done.code(0).json()["status"], "SUCCESS", "{done}");
    database.wait_until_stopped();
    let query = "SELECT (SELECT count(*) FROM data.a), (SELECT status FROM syncctl.source_task), (SELECT id FROM a)";
    assert_eq!(database.query(query), "1|SUCCESS|1");
    for own in ["source_state", "source.state"] {
        let taken = database.read(own, false).run();
        assert!(taken.code(2).stderr.contains("set a prefix for table names"), "{taken}");
    }
    database.read("source_state", false).with(&["--table-name-prefix", "my_"]).run().code(0);
    database.wait_until_stopped();
}

#[test]
fn rows_have_a_schema_and_a_role_of_their_own() {
    let Some(database) = Database::new() else { return };
    // As earlier versions have left them, and as a user creates them.
    database.query(
        "CREATE TABLE syncctl.a (id bigint); INSERT INTO syncctl.a VALUES (7); CREATE VIEW seen AS SELECT * FROM a;
         CREATE TABLE syncctl.taken AS SELECT 1 AS n; CREATE TABLE data.taken AS SELECT 2 AS n;
         CREATE SCHEMA mine; CREATE TABLE mine.a (id bigint, note text)",
    );
    let moved = "tables of rows have been moved from schema syncctl to data: a";
    let done = database.read("a", false).run();
    assert!(done.code(0).stderr.contains(moved), "{done}");
    assert!(done.stderr.contains("table taken stays in schema syncctl"), "{done}");
    let done = database.read("a", false).run();
    assert!(!done.code(0).stderr.contains(moved), "{done}");
    database.read("a", false).with(&["--target-namespace", "mine"]).run().code(0);
    database.read("a", false).with(&["--target-namespace", "new"]).run().code(0);
    // Unqualified names, as before.
    let counts = "SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM seen), (SELECT n FROM taken),
                         (SELECT count(*) FROM mine.a), (SELECT count(*) FROM new.a), (SELECT count(*) FROM source_task)";
    assert_eq!(database.query(counts), "3|3|1|1|1|4");
    for schema in ["syncctl", "syncctl_internal"] {
        let refused = database.read("a", false).with(&["--target-namespace", schema]).run();
        assert!(refused.code(2).stderr.contains("another schema"), "{refused}");
    }
    let running = database.running_read();
    let users = "SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name = 'syncctl-sidecar'";
    assert_eq!(database.query(users), "loader");
    running.signal(Signal::INT);
    running.wait().code(130);
    for attack in [
        "SELECT * FROM syncctl.source_state",
        "INSERT INTO syncctl.task_log SELECT",
        "DROP TABLE syncctl.source_task",
        "CREATE TABLE syncctl.x ()",
        "SELECT * FROM syncctl_internal.task",
        "SET ROLE syncctl",
        "ALTER ROLE loader SUPERUSER",
        "CREATE ROLE other SUPERUSER",
        "CREATE DATABASE other",
        "COPY (SELECT 1) TO PROGRAM 'cat'",
        "SELECT pg_read_file('/etc/hostname')",
        "SELECT lo_import('/etc/hostname')",
    ] {
        let done = database.syncctl(&["db", "psql", "-U", "loader", "-XAtqc", attack]).run();
        assert!(
            done.code(1).stderr.contains("permission denied") || done.stderr.contains("must be"),
            "{attack}: {done}"
        );
    }
}

#[test]
fn read_survives_the_end_of_holder_and_server_and_stops_the_server_when_it_ends() {
    let Some(database) = Database::new() else { return };
    for killed in ["holder", "server"] {
        let running = database.running_read();
        if killed == "holder" {
            database.kill_holder();
        } else {
            let server = database.postmaster().expect("a server");
            kill(server);
            eventually("another server", DEADLINE, || database.postmaster().filter(|pid| *pid != server));
        }
        running.signal(Signal::INT);
        running.wait().code(130);
        database.wait_until_stopped();
        assert_eq!(database.last_status(), "CANCELLED", "{killed}");
    }
    // If the read is killed, its task and the server end without another command, and the next one closes the row.
    let running = database.running_read();
    running.signal(Signal::KILL);
    running.wait();
    database.wait_until_no_process_runs();
    database.syncctl(&["spec", "--local", "--exec", "true"]).run();
    let tasks = fs::read_dir(database.state().join("tasks")).expect("a directory").flatten();
    assert_eq!(tasks.map(|entry| entry.file_name()).collect::<Vec<_>>(), [".making"]);
    database.wait_until_stopped();
    let status = database.last_status();
    assert!(["FAILED", "PARTIAL"].contains(&&*status), "{status}");
}
