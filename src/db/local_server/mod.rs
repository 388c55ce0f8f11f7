//! The embedded database: a private PostgreSQL server in the user's state directory, run from the programs that this
//! machine has. It is there while somebody uses it.
//!
//! [`LocalServer`] is one user of it; any number of processes may be. Owns everything below the folder of [`ServerDirectory`], the
//! server's process, and the keeper's beside it. Knows nothing of tasks, nor of tables other than the schema that they
//! land in.
//!
//! Who comes first starts a keeper, which starts the server; who comes later finds both. Nobody tells anybody that it
//! goes: each user holds a lock of the kernel's, shared, and the keeper wants it for itself alone. Whatever is killed at
//! whatever moment, the next start finds out from the locks who is still there, and puts the rest in order.

mod account;
mod binaries;
mod home;
mod keeper;
mod log;
mod processes;
mod server;
mod word;

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use account::{Account, Barred};
use binaries::Installed;
use home::{broken, open};
use word::Word;

use super::{DbError, Target};
use crate::failure::{Class, Failure};

pub use binaries::Search;
pub use home::ServerDirectory;
pub use keeper::hold;

/// The user, who owns everything in the server.
pub const USER: &str = "syncctl";
/// The database.
pub const DATABASE: &str = "syncctl";
/// The port: a part of the socket's name, as nothing listens on the network.
pub const PORT: u16 = 5432;
/// The first schema of the database's search path.
const SCHEMA: &str = "syncctl";

/// The words by which the command line knows that it is to [`hold`] a server; the state directory and the folder of the
/// programs follow.
pub const HOLD_COMMAND: [&str; 2] = ["db", "keep"];

/// Variables that programs of PostgreSQL may need to find their libraries. A keeper outlives who started it and has no
/// business with what else is in the environment, secrets among it.
const KEPT_VARIABLES: [&str; 4] = ["LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "TMPDIR"];

/// How often is looked whether something has changed. Nobody waits for long, and each look is a system call or two.
const LOOK: Duration = Duration::from_millis(5);
/// No wait is for ever: a server that recovers from a crash may take this long, and then stops in order.
const PATIENCE: Duration = Duration::from_mins(20);
/// A keeper may be killed before its server is ready.
const ATTEMPTS: u32 = 3;
/// So long the lock of the users is not free until a server that is to stop is said to be in use. Its keeper, too, holds
/// it, but for a look alone.
const LOCKED: Duration = Duration::from_millis(300);
/// So long nothing happens until it is said to be in use by clients without the lock. The keeper looks every second.
const CONNECTED: Duration = Duration::from_millis(2500);

/// What need not be encoded in the host of a URL.
const HOST: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A part in the use of the server: it runs as long as this is held.
#[derive(Debug)]
pub struct LocalServer {
    home: ServerDirectory,
    /// The folder of the server's programs.
    binaries: PathBuf,
    users: File,
}

/// What became of the wish to stop the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopOutcome {
    /// It has stopped.
    Stopped,
    /// It did not run.
    NotRunning,
    /// Somebody uses it.
    InUse,
}

impl LocalServer {
    /// Takes part in the use of the server, which is made and started if need be.
    pub fn start(home: &ServerDirectory) -> Result<Self, Failure> {
        home.check()?;
        if !home.folder().exists() {
            // What can be known to fail leaves nothing behind.
            survey(home)?;
        }
        home.create()?;
        let wait = Wait { home, deadline: Instant::now() + PATIENCE };
        // Held until there is a server, so that all who come at the same time wait for the same one.
        let _start = wait.take(&home.start_lock(), File::try_lock)?;
        // A keeper that is stopping its server holds it for itself until it is gone.
        let users = wait.take(&home.users_lock(), File::try_lock_shared)?;
        let binaries = wait.server()?;
        Ok(Self { home: home.clone(), binaries, users })
    }

    /// The URL of the database, for every client on this machine that may pass its folder.
    pub fn url(&self) -> String {
        url(&self.home.socket_folder(), DATABASE)
    }

    /// The folder of the socket: what clients take as the host.
    pub fn socket_folder(&self) -> PathBuf {
        self.home.socket_folder()
    }

    /// A client program of the server's own version, if it was installed with it.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        Some(self.binaries.join(name)).filter(|path| path.exists())
    }

    /// Lets the server stay for a minute after its last user, for somebody who was told the URL.
    pub fn linger(&self) -> Result<(), Failure> {
        self.home.start_lingering()
    }

    /// Becomes another program, which then takes part in its place. Returns only when that fails.
    pub fn become_program(self, command: &mut Command) -> io::Error {
        match rustix::io::fcntl_setfd(&self.users, rustix::io::FdFlags::empty()) {
            Ok(()) => command.exec(),
            Err(error) => error.into(),
        }
    }
}

impl Drop for LocalServer {
    /// The keeper notices by itself. One that was killed cannot, so that the last user sees to a new one.
    fn drop(&mut self) {
        let lock = |path: &Path| open(path).ok().filter(|file| file.try_lock().is_ok());
        // Who starts a server now looks after it, too.
        let Some(_start) = lock(&self.home.start_lock()) else { return };
        if let Some(own) = lock(&self.home.keeper_lock()) {
            let installed = Installed { folder: self.binaries.clone(), major: 0 };
            // There is nobody to tell.
            spawn(&self.home, own, &installed).ok();
        }
    }
}

/// Stops the server if nobody uses it.
pub fn stop(home: &ServerDirectory) -> Result<StopOutcome, Failure> {
    if !home.keeper_lock().exists() {
        return Ok(StopOutcome::NotRunning);
    }
    home.stop_lingering();
    let wait = Wait { home, deadline: Instant::now() + PATIENCE };
    let _start = wait.take(&home.start_lock(), File::try_lock)?;
    let keeper = open(&home.keeper_lock())?;
    let mut before = StopOutcome::Stopped;
    if keeper.try_lock().is_ok() {
        if !home.data().join("postmaster.pid").exists() {
            return Ok(StopOutcome::NotRunning);
        }
        // Its keeper was killed, and maybe it, too. A new keeper finds out, and stops it.
        if UnixStream::connect(home.socket()).is_err() {
            before = StopOutcome::NotRunning;
        }
        spawn(home, keeper, &survey(home)?)?;
    }
    let keeper = open(&home.keeper_lock())?;
    let users = open(&home.users_lock())?;
    let asked = Instant::now();
    let mut free = asked;
    loop {
        if keeper.try_lock().is_ok() {
            return Ok(before);
        }
        if users.try_lock().is_ok() {
            users.unlock().ok();
            free = Instant::now();
        }
        let is_used = free.elapsed() > LOCKED || asked.elapsed() > CONNECTED;
        if is_used && matches!(Word::read(&keeper), Some(Word::Ready { .. })) {
            return Ok(StopOutcome::InUse);
        }
        wait.a_moment()?;
    }
}

/// Waiting for others, within limits.
struct Wait<'a> {
    home: &'a ServerDirectory,
    deadline: Instant,
}

impl Wait<'_> {
    fn a_moment(&self) -> Result<(), Failure> {
        if Instant::now() > self.deadline {
            let folder = self.home.folder().display();
            let text =
                format!("the embedded database in {folder} did not come up within {} min", PATIENCE.as_secs() / 60);
            return Err(fault(text, &format!("see {}", self.home.log().display())));
        }
        std::thread::sleep(LOOK);
        Ok(())
    }

    fn take(&self, path: &Path, lock: impl Fn(&File) -> Result<(), TryLockError>) -> Result<File, Failure> {
        let file = open(path)?;
        loop {
            match lock(&file) {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => self.a_moment()?,
                Err(TryLockError::Error(error)) => return Err(broken("locking", path, &error)),
            }
        }
    }

    /// Waits for the server, and starts a keeper where there is none. Returns the folder of the server's programs.
    fn server(&self) -> Result<PathBuf, Failure> {
        let mut keeper = open(&self.home.keeper_lock())?;
        let mut started = 0;
        loop {
            match keeper.try_lock() {
                Ok(()) => {
                    // What the lock of one that has ended says is all there is to know of it.
                    if let Some(failure) = Word::read(&keeper).and_then(|word| word.failure()).filter(|_| started > 0) {
                        return Err(failure);
                    }
                    if started == ATTEMPTS {
                        let text = "the process that keeps the embedded database ended each time before it was ready";
                        return Err(fault(text.to_owned(), &format!("see {}", self.home.log().display())));
                    }
                    let installed = survey(self.home)?;
                    spawn(self.home, keeper, &installed)?;
                    keeper = open(&self.home.keeper_lock())?;
                    started += 1;
                }
                Err(TryLockError::WouldBlock) => {
                    if let Some(Word::Ready { binaries }) = Word::read(&keeper)
                        // It may have died a moment ago, and its keeper does not know yet.
                        && UnixStream::connect(self.home.socket()).is_ok()
                    {
                        return Ok(binaries);
                    }
                    self.a_moment()?;
                }
                Err(TryLockError::Error(error)) => {
                    return Err(broken("locking", &self.home.keeper_lock(), &error));
                }
            }
        }
    }
}

/// Finds the programs that fit what is there, and sees that they can be run. Makes nothing.
fn survey(home: &ServerDirectory) -> Result<Installed, Failure> {
    let data = home.data();
    let wanted = match std::fs::read_to_string(data.join("PG_VERSION")) {
        Ok(version) => version.trim().parse().ok(),
        Err(_) if data.exists() => {
            let text = format!("the folder {} is no data directory of PostgreSQL", data.display());
            return Err(fault(text, "move the folder away"));
        }
        Err(_) => None,
    };
    let installed = binaries::find(&home.search, wanted).map_err(|others| unfit(home, wanted, &others))?;
    if let Some(account) = Account::of(&data) {
        let program = installed.folder.join("postgres");
        account.try_in(home.nearest(), &program).map_err(|barred| {
            let (user, state) = (account.name(), home.state().display());
            match barred {
                Barred::Closed(folder) if home.state().starts_with(&folder) => fault(
                    format!(
                        "root's embedded database runs as the user {user:?}, to whom the folder {} on the way to {state} is \
                         closed",
                        folder.display()
                    ),
                    "choose a folder that every user can pass: SYNCCTL_STATE_DIR",
                ),
                Barred::Closed(folder) => fault(
                    format!(
                        "root's embedded database runs as the user {user:?}, to whom the folder {} on the way to {} is \
                         closed",
                        folder.display(),
                        program.display()
                    ),
                    "open it, or choose other programs: SYNCCTL_POSTGRES_BIN",
                ),
                Barred::Other(error) => fault(
                    format!("running {} as the user {user:?}: {}", program.display(), home::plain(&error)),
                    "see that this user can run it, or choose another program: SYNCCTL_POSTGRES_BIN",
                ),
            }
        })?;
    }
    Ok(installed)
}

/// Why no installation will do.
fn unfit(home: &ServerDirectory, wanted: Option<u32>, others: &[u32]) -> Failure {
    let list = others.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let install = binaries::install_command(wanted);
    let place = home.search.only.as_ref().map(|only| only.display().to_string());
    match (wanted, place) {
        (Some(wanted), place) if !others.is_empty() => fault(
            format!(
                "the data directory {} was made by PostgreSQL {wanted}, and only {list} is installed{}",
                home.data().display(),
                place.map(|place| format!(" in {place}")).unwrap_or_default()
            ),
            &format!("install that version ({install}), or move the folder away"),
        ),
        (_, Some(place)) => fault(
            format!(
                "SYNCCTL_POSTGRES_BIN is {place}, and there is no postgres of version 10 or later with its initdb there"
            ),
            &format!("name the folder that holds them, or leave it out; to install them: {install}"),
        ),
        (_, None) => fault(
            format!("there is no PostgreSQL server on this machine to run the embedded database: {install}"),
            "or name a database that runs elsewhere: SYNCCTL_DATABASE_URL",
        ),
    }
}

/// Starts a keeper, to which the lock goes over.
fn spawn(home: &ServerDirectory, own: File, installed: &Installed) -> Result<(), Failure> {
    // Takes the room for its later words, too.
    Word::Starting.write(&own).map_err(|error| broken("writing", &home.keeper_lock(), &error))?;
    // Where the program's file was replaced meanwhile, the kernel still has it.
    let program = std::env::current_exe().map(|path| if path.exists() { path } else { "/proc/self/exe".into() });
    let failed = |error: io::Error| {
        Failure::new(Class::Internal, format!("starting the keeper of the embedded database: {}", home::plain(&error)))
    };
    let mut command = Command::new(program.map_err(failed)?);
    command.arg0("syncctl").args(HOLD_COMMAND).arg(home.state()).arg(&installed.folder);
    command.current_dir("/").stdin(own).stdout(Stdio::null()).stderr(Stdio::null());
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
    command.envs(KEPT_VARIABLES.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    let mut child = command.spawn().map_err(failed)?;
    // So that it does not stay a zombie when it ends before us.
    std::thread::spawn(move || child.wait());
    Ok(())
}

fn url(socket_folder: &Path, database: &str) -> String {
    let host = socket_folder.display().to_string();
    format!("postgresql://{USER}@{}:{PORT}/{database}", utf8_percent_encode(&host, HOST))
}

fn target(socket_folder: &Path, database: &str) -> Result<Target, DbError> {
    let host = socket_folder.display().to_string();
    let port = PORT.to_string();
    Target::from_parameters([("host", host.as_str()), ("port", &port), ("dbname", database), ("user", USER)])
}

/// A failure of the embedded database.
fn fault(text: String, hint: &str) -> Failure {
    Failure::new(Class::DatabaseUnreachable, text).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::{DATABASE, Target, target, url};
    use std::path::Path;

    #[test]
    fn the_url_leads_where_the_parts_lead_whatever_the_path() {
        for folder in ["/var/lib/syncctl/postgres/socket", "/home/ä b/50%/it's \"x\":5/@socket"] {
            let url = url(Path::new(folder), DATABASE);
            let parsed =
                Target::parse(&url.as_str().into(), "the URL").unwrap_or_else(|error| panic!("{url}: {error}"));
            let parts = target(Path::new(folder), DATABASE).expect("parts");
            assert_eq!(parsed.address(), parts.address());
            assert_eq!(parsed.address(), format!("database \"syncctl\" at {folder}:5432"));
        }
    }
}
