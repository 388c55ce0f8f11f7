//! Running initdb and postgres: their settings, their environment, their log, and why they have failed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::account::Account;
use super::directory::{PORT, ServerDirectory};
use super::errors::{reason, storage_failure, unavailable};
use super::installation;
use super::names::{DATA_SCHEMA, SCHEMA, USER};
use crate::failure::Failure;

/// Settings that are the same for every server, and win over its files.
///
/// The log has few lines, without the values in statements and rows. A private server has no replicas and needs less of a
/// write-ahead log.
const SETTINGS: &str = "
    --listen_addresses= --unix_socket_permissions=0700 --max_connections=200 --shared_buffers=64MB
    --wal_level=minimal --max_wal_senders=0 --max_logical_replication_workers=0 --fsync=on --jit=off
    --timezone=UTC --log_timezone=UTC --logging_collector=off --log_min_error_statement=panic
    --log_error_verbosity=terse --log_checkpoints=off
";

/// Ends the statements of killed clients within this time; since this major version, and on Linux.
const CLIENT_CHECK: (u32, &str) = (14, "--client_connection_check_interval=1s");

/// Variables with which programs find their libraries and temporary files.
const PASSED_VARIABLES: [&str; 4] = ["LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "TMPDIR"];

/// With less space than this the server may be unable to write why it has failed.
const MIN_FREE_BYTES: u64 = 1024 * 1024;
const NO_SPACE: &str = "No space left on device";

/// A log with more bytes is moved to `log.old`, of which there is one.
const MAX_LOG_BYTES: u64 = 4 * 1024 * 1024;

/// What precedes the reason in a line of the server's and of initdb's.
const ERROR_MARKS: [&str; 4] = ["FATAL:  ", "PANIC:  ", "initdb: error: ", "initdb: fatal: "];

/// How messages to clients begin that connect too early or too late; they have the same level.
const CLIENT_MESSAGES: [&str; 2] = ["the database system is ", "terminating "];

/// A server that was started and may not take connections yet.
pub(super) struct Launched {
    pub(super) child: Child,
    /// Positioned where its lines begin.
    log: File,
}

impl Launched {
    /// Fails if it has ended.
    pub(super) fn check(&mut self, directory: &ServerDirectory) -> Result<(), Failure> {
        let Ok(Some(status)) = self.child.try_wait() else { return Ok(()) };
        let mut output = Vec::new();
        self.log.read_to_end(&mut output).ok();
        Err(failure(directory, "start", &output, status))
    }
}

/// Starts the server without waiting for it; creates the data directory first if it is missing. All processes inherit
/// the lock of the server.
pub(super) fn launch(directory: &ServerDirectory, programs: &Path, lock: &File) -> Result<Launched, Failure> {
    let log_failure = |error: io::Error| storage_failure("open", &directory.log(), &error);
    rustix::io::fcntl_setfd(lock, rustix::io::FdFlags::empty()).map_err(|error| log_failure(error.into()))?;
    let launcher = Launcher { directory, programs, account: Account::of(&directory.data()) };
    if !directory.data().exists() {
        launcher.create_data()?;
    }
    launcher.create_empty(&directory.socket_directory())?;
    let mut log = open_log(&directory.log()).map_err(log_failure)?;
    log.seek(SeekFrom::End(0)).map_err(log_failure)?;
    let child = launcher.server()?.stderr(open_log(&directory.log()).map_err(log_failure)?).spawn();
    Ok(Launched { child: child.map_err(|error| launcher.cannot_run(&error))?, log })
}

/// What all programs of PostgreSQL need.
struct Launcher<'a> {
    directory: &'a ServerDirectory,
    programs: &'a Path,
    account: Option<Account>,
}

impl Launcher<'_> {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        // The current directory of this process may be closed to the user of the server.
        command.current_dir(&self.directory.path).stdin(Stdio::null()).stdout(Stdio::null());
        detach(&mut command);
        if let Some(account) = &self.account {
            account.run_as(&mut command);
        }
        command
    }

    fn server(&self) -> Result<Command, Failure> {
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.directory.data()).args(["-p", &PORT.to_string()]);
        command.args(SETTINGS.split_whitespace());
        // The results first: no row of a source hides them.
        command.arg(format!("--search_path={SCHEMA}, {DATA_SCHEMA}, public"));
        // The setting is a list of quoted names.
        let socket_directory = self.directory.socket_directory().display().to_string().replace('"', "\"\"");
        command.arg(format!("--unix_socket_directories=\"{socket_directory}\""));
        if cfg!(target_os = "linux") && installation::data_version(self.directory)? >= Some(CLIENT_CHECK.0) {
            command.arg(CLIENT_CHECK.1);
        }
        Ok(command)
    }

    /// Creates the data directory under another name first: one that exists is complete.
    fn create_data(&self) -> Result<(), Failure> {
        let (data, new_data) = (&self.directory.data(), &self.directory.path.join("data.new"));
        self.create_empty(new_data)?;
        let mut initdb = self.command("initdb");
        initdb.arg("-D").arg(new_data).args(["-U", USER, "-E", "UTF8", "--locale=C", "--auth=trust"]);
        // Its messages do not go to the log at once: on a full disk they would be lost.
        let output = initdb.output().map_err(|error| self.cannot_run(&error))?;
        open_log(&self.directory.log()).and_then(|mut log| log.write_all(&output.stderr)).ok();
        let created = if output.status.success() {
            let renamed = fs::rename(new_data, data).and_then(|()| File::open(&self.directory.path)?.sync_all());
            renamed.map_err(|error| storage_failure("create", data, &error))
        } else {
            Err(failure(self.directory, "create", &output.stderr, output.status))
        };
        created.inspect_err(|_| _ = fs::remove_dir_all(new_data))
    }

    /// Creates an empty directory of the server's user, in place of what a killed process has left.
    fn create_empty(&self, path: &Path) -> Result<(), Failure> {
        let removed = match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        removed
            .and_then(|()| DirBuilder::new().mode(0o700).create(path))
            .and_then(|()| self.account.as_ref().map_or(Ok(()), |account| account.take_ownership(path)))
            .map_err(|error| storage_failure("create", path, &error))
    }

    fn cannot_run(&self, error: &io::Error) -> Failure {
        let text = format!("cannot run the programs of PostgreSQL in {}: {}", self.programs.display(), reason(error));
        unavailable(text, "check that this user can run them, or choose others: SYNCCTL_POSTGRES_BIN")
    }
}

/// Why a program has ended; `action` is a verb.
fn failure(directory: &ServerDirectory, action: &str, output: &[u8], status: ExitStatus) -> Failure {
    let path = &directory.path;
    let is_full = rustix::fs::statvfs(path)
        .is_ok_and(|disk| disk.f_blocks > 0 && disk.f_bavail.saturating_mul(disk.f_frsize) < MIN_FREE_BYTES);
    let output = String::from_utf8_lossy(output);
    let reason = match reason_in(&output).filter(|_| status.signal().is_none()) {
        _ if is_full => NO_SPACE.to_owned(),
        Some(reason) => reason.to_owned(),
        None => status.to_string(),
    };
    let text = format!("cannot {action} the embedded database in {}: {reason}", path.display());
    if reason.contains(NO_SPACE) || reason.contains("Disk quota exceeded") {
        return unavailable(text, "free space there, or choose another directory: SYNCCTL_STATE_DIR");
    }
    directory.failure(text)
}

/// Makes a command independent of this process: of the Ctrl-C of its terminal, and of its environment, which may hold
/// secrets.
pub(super) fn detach(command: &mut Command) {
    command.process_group(0).env_clear();
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
    command.envs(PASSED_VARIABLES.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
}

/// Opens the log to append to it, and to read what a process appends.
fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

/// Moves the lines of a large log away, also while the server writes to it: lines written meanwhile may be lost.
pub(super) fn rotate_log(path: &Path) {
    if fs::metadata(path).is_ok_and(|log| log.len() > MAX_LOG_BYTES) {
        // Also if there is no space for the copy.
        fs::copy(path, path.with_extension("old")).ok();
        OpenOptions::new().write(true).truncate(true).open(path).ok();
    }
}

/// The last line that explains a failure, without the time and the level before it; else the last line that may.
fn reason_in(output: &str) -> Option<&str> {
    let marked = output.lines().rev().find_map(|line| {
        let (_, reason) = ERROR_MARKS.into_iter().find_map(|mark| line.split_once(mark))?;
        (!CLIENT_MESSAGES.iter().any(|message| reason.starts_with(message))).then_some(reason)
    });
    let unmarked = || output.lines().rev().find(|line| !line.trim().is_empty() && !line.contains(" LOG:  "));
    marked.or_else(unmarked).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::{MAX_LOG_BYTES, open_log, reason_in, rotate_log};
    use std::io::Write;

    #[test]
    fn reason_in_finds_the_line_that_explains_the_failure() {
        for (label, output, expected) in [
            (
                "the server's last error",
                "2026-11-25 18:16:20.597 UTC [1] PANIC:  could not write to file \"pg_wal/x\": No space left on device\n\
                 2026-11-25 18:16:20.666 UTC [1] FATAL:  the database system is starting up\n\
                 2026-11-25 18:16:20.680 UTC [1] LOG:  aborting startup due to startup process failure\n",
                Some("could not write to file \"pg_wal/x\": No space left on device"),
            ),
            (
                "initdb",
                "initdb: error: could not create directory\ninitdb: removing contents of data directory\n",
                Some("could not create directory"),
            ),
            (
                "another program",
                "error while loading shared libraries: libpq.so.5\n\n",
                Some("error while loading shared libraries: libpq.so.5"),
            ),
            ("nothing", "", None),
            ("no error", "2026-11-25 18:16:20.597 UTC [1] LOG:  database system is shut down\n", None),
        ] {
            assert_eq!(reason_in(output), expected, "{label}");
        }
    }

    #[test]
    fn rotate_log_moves_a_large_log_that_is_being_written() {
        let folder = tempfile::tempdir().expect("a directory");
        let (path, old) = (folder.path().join("log"), folder.path().join("log.old"));
        let mut log = open_log(&path).expect("a log");
        let mut write = |text: &[u8]| log.write_all(text).expect("the log is writable");
        write(&vec![b'x'; usize::try_from(MAX_LOG_BYTES).expect("a small constant")]);
        rotate_log(&path);
        assert!(!old.exists(), "the log is not too large yet");
        write(b"y");
        rotate_log(&path);
        write(b"z\n");
        assert_eq!(std::fs::read_to_string(&path).expect("the log"), "z\n");
        assert_eq!(std::fs::metadata(&old).expect("the old log").len(), MAX_LOG_BYTES + 1);
    }
}
