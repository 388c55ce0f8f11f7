//! One running server: made, started, prepared, stopped; or found running, where the keeper before us was killed.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use postgres::Client;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::account::Account;
use super::binaries::Installed;
use super::home::{ServerDirectory, broken, plain};
use super::keeper::Event;
use super::log::Heard;
use super::{DATABASE, PORT, SCHEMA, USER, fault, processes, target};
use crate::db::DbError;
use crate::failure::Failure;

/// Settings that are the same for every server of ours, and win over its files.
///
/// Lines of the log are to be neither many nor to hold what statements and rows hold. A private server needs no replicas,
/// so it needs less of a write-ahead log.
const SETTINGS: [(&str, &str); 15] = [
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    ("max_connections", "200"),
    ("shared_buffers", "64MB"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("max_logical_replication_workers", "0"),
    ("fsync", "on"),
    ("jit", "off"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("logging_collector", "off"),
    ("log_min_error_statement", "panic"),
    ("log_error_verbosity", "terse"),
    ("log_checkpoints", "off"),
];

/// A server that works for a client which was killed notices within this time, and stops; since this major version, and
/// not everywhere.
const CLIENT_CHECK: (u32, &str) = (14, "client_connection_check_interval=1s");

/// How long making a new database may take.
const MAKE: Duration = Duration::from_mins(5);
/// How long the server may take until it says that it starts …
const START: Duration = Duration::from_mins(1);
/// … and how long it may go on saying so: after a crash it has work to do.
const RECOVERY: Duration = Duration::from_mins(15);
/// How long what a killed server left may take to end.
const ORPHANS: Duration = Duration::from_secs(10);
/// How long a server may take to stop in order, at once, and when killed.
const STOP: [(Signal, Duration); 3] = [
    (Signal::INT, Duration::from_mins(1)),
    (Signal::QUIT, Duration::from_secs(10)),
    (Signal::KILL, Duration::from_secs(10)),
];
/// How often a state that nobody tells is looked at: the server is there after some dozen milliseconds.
const LOOK: Duration = Duration::from_millis(5);
/// How often it is looked whether a server lives that is no child of ours.
const LOOK_AT_STRANGER: Duration = Duration::from_millis(200);
/// How long the last words of a process that has ended may be on their way.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// A server may be killed while it starts, or be in the way of another one that a killed keeper had begun.
const ATTEMPTS: u32 = 3;

/// What every start of a server needs to know.
pub(super) struct Recipe {
    pub(super) home: ServerDirectory,
    pub(super) installed: Installed,
    pub(super) account: Option<Account>,
}

/// A server that takes connections.
pub(super) struct Server {
    pid: Pid,
    /// None for one that was found.
    child: Option<Child>,
    data: PathBuf,
    socket: PathBuf,
}

/// What the server writes into its own file about itself.
struct PidFile {
    pid: Pid,
    status: String,
}

impl PidFile {
    /// The process id is in the first line, the state in the eighth.
    fn read(data: &Path) -> Option<Self> {
        let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let mut lines = text.lines();
        let pid = Pid::from_raw(lines.next()?.trim().parse().ok()?)?;
        Some(Self { pid, status: lines.nth(6).unwrap_or_default().trim().to_owned() })
    }
}

/// Why there is no server.
struct Trouble {
    failure: Failure,
    /// Whether it may be gone at the next attempt.
    passes: bool,
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self { failure, passes: false }
    }
}

impl Recipe {
    /// The server that runs already, or a new one; its database is made if need be.
    pub(super) fn serve(&self) -> Result<Server, Failure> {
        let mut attempts = 1;
        loop {
            match self.attempt() {
                Ok(server) => return Ok(server),
                Err(trouble) if trouble.passes && attempts < ATTEMPTS => attempts += 1,
                Err(trouble) => return Err(trouble.failure),
            }
        }
    }

    fn attempt(&self) -> Result<Server, Trouble> {
        let mut server = match self.running() {
            Some(pid) => self.wait_for(self.server(pid, None), None)?,
            None => self.start()?,
        };
        if let Err(error) = prepare(&self.home) {
            let passes = server.has_ended();
            server.stop();
            let text = format!("preparing the embedded database: {error}");
            return Err(Trouble { failure: fault(text, &self.see_log()), passes });
        }
        Ok(server)
    }

    fn start(&self) -> Result<Server, Trouble> {
        let data = self.home.data();
        self.remove_leftovers()?;
        if !data.exists() {
            self.make(&data)?;
        }
        self.home.clear_socket_folder(self.account.as_ref())?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(&data).args(["-p", &PORT.to_string()]);
        for (name, value) in SETTINGS {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // The setting is a list.
        let folder = self.home.socket_folder().display().to_string().replace('"', "\"\"");
        command.arg("-c").arg(format!("unix_socket_directories=\"{folder}\""));
        if cfg!(target_os = "linux") && self.installed.major >= CLIENT_CHECK.0 {
            command.args(["-c", CLIENT_CHECK.1]);
        }
        let (child, heard) = self.spawn(command)?;
        let pid = Pid::from_child(&child);
        self.wait_for(self.server(pid, Some(child)), Some(&heard))
    }

    fn server(&self, pid: Pid, child: Option<Child>) -> Server {
        Server { pid, child, data: self.home.data(), socket: self.home.socket() }
    }

    /// A server of this data that a killed keeper has left.
    fn running(&self) -> Option<Pid> {
        let data = self.home.data();
        let found = PidFile::read(&data)?;
        processes::is_server(found.pid, &data, &self.home.socket()).then_some(found.pid)
    }

    /// Nothing runs any more. What says otherwise, or was never completed, is in the way.
    fn remove_leftovers(&self) -> Result<(), Failure> {
        let (data, new_data) = (self.home.data(), self.home.new_data());
        let pid_file = data.join("postmaster.pid");
        if new_data.exists() || pid_file.exists() {
            processes::end_orphans(&[&data, &new_data, self.home.folder()], ORPHANS);
        }
        if PidFile::read(&data).is_some_and(|file| processes::is_somebody_else(file.pid, &data)) {
            // The server would take any process of this number for itself, and such numbers are used again. Without one it
            // is left to the server: what else it finds out from the file keeps the data safe.
            fs::remove_file(&pid_file).map_err(|error| broken("removing", &pid_file, &error))?;
        }
        if new_data.exists() {
            fs::remove_dir_all(&new_data).map_err(|error| broken("removing", &new_data, &error))?;
        }
        Ok(())
    }

    /// Makes the data directory beside its place: one that is at its place is whole.
    fn make(&self, data: &Path) -> Result<(), Failure> {
        let new_data = self.home.new_data();
        let made = self.make_in(&new_data).and_then(|()| {
            fs::rename(&new_data, data)
                .and_then(|()| File::open(self.home.folder())?.sync_all())
                .map_err(|error| broken("making", data, &error))
        });
        if made.is_err() {
            fs::remove_dir_all(&new_data).ok();
        }
        made
    }

    fn make_in(&self, folder: &Path) -> Result<(), Failure> {
        let made = DirBuilder::new().mode(0o700).create(folder);
        made.and_then(|()| self.account.as_ref().map_or(Ok(()), |account| account.own(folder)))
            .map_err(|error| broken("making the folder", folder, &error))?;
        let mut command = self.command("initdb");
        command.arg("-D").arg(folder).args(["-U", USER, "-E", "UTF8", "--locale=C", "--auth=trust"]);
        let (mut child, heard) = self.spawn(command)?;
        match wait(&mut child, MAKE) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.failed("making", &heard, status)),
            None => {
                child.kill().ok();
                child.wait().ok();
                processes::end_orphans(&[folder], ORPHANS);
                let text = format!("making the embedded database took longer than {} min", MAKE.as_secs() / 60);
                Err(fault(text, &self.see_log()))
            }
        }
    }

    /// A program of the server's, as its user.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.installed.folder.join(program));
        // The current folder of whoever called may be closed to that user.
        command.current_dir(self.home.folder()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        if let Some(account) = &self.account {
            account.wear(&mut command);
        }
        command
    }

    fn spawn(&self, mut command: Command) -> Result<(Child, Heard), Failure> {
        let mut child = command.spawn().map_err(|error| {
            let text = format!("starting {}: {}", command.get_program().display(), plain(&error));
            fault(text, "see that the programs of PostgreSQL can be run: SYNCCTL_POSTGRES_BIN")
        })?;
        let heard = Heard::listen(child.stderr.take().expect("it is piped"), self.home.log());
        Ok((child, heard))
    }

    /// Waits until it takes connections; one that does not is stopped.
    fn wait_for(&self, mut server: Server, heard: Option<&Heard>) -> Result<Server, Trouble> {
        let started = Instant::now();
        loop {
            let told = PidFile::read(&server.data).filter(|file| file.pid == server.pid);
            if told.as_ref().is_some_and(|file| file.status == "ready") {
                return Ok(server);
            }
            if server.has_ended() {
                let Some((heard, status)) = heard.zip(server.status()) else {
                    let text = "the server of the embedded database has ended".to_owned();
                    return Err(Trouble { failure: fault(text, &self.see_log()), passes: true });
                };
                // One that a killed keeper had begun, and which has told of itself only now, is in the way of ours.
                let passes = status.signal().is_some() || self.running().is_some();
                return Err(Trouble { failure: self.failed("starting", heard, status), passes });
            }
            let limit = if told.is_some() { RECOVERY } else { START };
            if started.elapsed() > limit {
                server.stop();
                let limit = limit.as_secs() / 60;
                let text = format!("the server of the embedded database was not ready within {limit} min");
                return Err(fault(text, &self.see_log()).into());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn failed(&self, doing: &str, heard: &Heard, status: ExitStatus) -> Failure {
        // Who is killed has no time to say why.
        let reason = heard.reason(LAST_WORDS).filter(|_| status.signal().is_none());
        let reason = reason.unwrap_or_else(|| status.to_string());
        let folder = self.home.folder().display();
        let hint = if reason.contains("No space left on device") || reason.contains("Disk quota exceeded") {
            "free space there, or choose another folder: SYNCCTL_STATE_DIR".to_owned()
        } else {
            self.see_log()
        };
        fault(format!("{doing} the embedded database in {folder}: {reason}"), &hint)
    }

    fn see_log(&self) -> String {
        format!("see {}", self.home.log().display())
    }
}

impl Server {
    fn has_ended(&mut self) -> bool {
        match &mut self.child {
            Some(_) => self.status().is_some(),
            None => !processes::is_server(self.pid, &self.data, &self.socket),
        }
    }

    /// How it has ended, if that can be known.
    fn status(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    /// Tells when it ends.
    pub(super) fn watch(&self, events: Sender<Event>) {
        let (pid, is_child, data, socket) = (self.pid, self.child.is_some(), self.data.clone(), self.socket.clone());
        std::thread::spawn(move || {
            if is_child {
                // Without taking its status: its number must not be used again before we know.
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                while matches!(waitid(WaitId::Pid(pid), options), Err(rustix::io::Errno::INTR)) {}
            } else {
                while processes::is_server(pid, &data, &socket) {
                    std::thread::sleep(LOOK_AT_STRANGER);
                }
            }
            // The keeper may have ended.
            events.send(Event::Ended(pid)).ok();
        });
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Stops it, in order if that is possible in time.
    pub(super) fn stop(mut self) {
        for (signal, patience) in STOP {
            if self.has_ended() {
                break;
            }
            kill_process(self.pid, signal).ok();
            let deadline = Instant::now() + patience;
            while !self.has_ended() && Instant::now() < deadline {
                std::thread::sleep(LOOK);
            }
        }
        // It is not there after a stop in order.
        if self.data.join("postmaster.pid").exists() {
            processes::end_orphans(&[&self.data], ORPHANS);
        }
    }
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            _ if Instant::now() > deadline => return None,
            _ => std::thread::sleep(LOOK),
        }
    }
}

fn connect(home: &ServerDirectory, database: &str) -> Result<Client, DbError> {
    target(&home.socket_folder(), database)?.connect("syncctl db keep")
}

/// Makes the database and its schema where they are missing. Each step is whole or not there.
fn prepare(home: &ServerDirectory) -> Result<(), DbError> {
    let refused = |action| {
        move |error: postgres::Error| DbError::ServerError {
            action,
            address: "the embedded database".to_owned(),
            reason: error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned()),
            code: error.code().map(|code| code.code().to_owned()),
        }
    };
    let mut client = connect(home, DATABASE).or_else(|_| {
        let mut client = connect(home, "postgres")?;
        let there = client.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&DATABASE]);
        if there.map_err(refused("looking for the database"))?.is_none() {
            client.batch_execute(&format!("CREATE DATABASE {DATABASE}")).map_err(refused("making the database"))?;
        }
        connect(home, DATABASE)
    })?;
    let schema = client.query_opt("SELECT 1 FROM pg_namespace WHERE nspname = $1", &[&SCHEMA]);
    if schema.map_err(refused("looking for the schema"))?.is_some() {
        return Ok(());
    }
    let sql = format!(
        "BEGIN; ALTER DATABASE {DATABASE} SET search_path = {SCHEMA}, public; \
         CREATE SCHEMA {SCHEMA} AUTHORIZATION {USER}; COMMIT"
    );
    client.batch_execute(&sql).map_err(refused("making the schema"))
}

/// Whether somebody is connected who does not take part in the keeping: psql with the URL, a program of the user's.
pub(super) fn has_other_clients(home: &ServerDirectory) -> bool {
    let count = connect(home, DATABASE).ok().and_then(|mut client| {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        client.query_one(sql, &[]).ok()?.try_get::<_, i64>(0).ok()
    });
    // Who cannot ask any more has nobody to keep it for.
    count.is_some_and(|count| count > 0)
}
