//! `syncctl db`: a shell in the embedded database, its URL and its end; and the hidden command of its holder.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::config::DirectoryArgs;
use crate::db::local_server::{self, DATABASE, LocalServer, PORT, StopOutcome, USER};
use crate::failure::{Class, Failure};
use crate::output::{self, Format, Output};

/// Use the embedded database: a private PostgreSQL server in the state directory
///
/// It runs while a command uses it. These commands use it even if SYNCCTL_DATABASE_URL names another database.
#[derive(Debug, clap::Args)]
pub struct DbArgs {
    #[command(subcommand)]
    command: DbCommand,
}

#[derive(Debug, clap::Subcommand)]
enum DbCommand {
    Psql(PsqlArgs),
    /// Print its URL, for other programs
    ///
    /// The server then runs for a minute, and after that as long as a client is connected.
    Url(ResultArgs),
    /// Stop it now, unless it is in use
    Stop(ResultArgs),
    #[command(hide = true)]
    Hold(HoldArgs),
}

/// Open a shell in it: psql with these arguments
///
/// The server runs as long as psql does.
#[derive(Debug, clap::Args)]
pub struct PsqlArgs {
    /// Arguments of psql
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
    #[command(flatten)]
    directories: DirectoryArgs,
}

#[derive(Debug, clap::Args)]
pub struct ResultArgs {
    /// Print the result (and a failure) in this form [default: text]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    #[command(flatten)]
    directories: DirectoryArgs,
}

/// Stop the server after its last user
#[derive(Debug, clap::Args)]
pub struct HoldArgs {
    /// The state directory
    state: PathBuf,
    /// The directory of the programs of PostgreSQL
    programs: PathBuf,
}

/// Variables of libpq that could contradict the connection to the embedded database.
const CONFLICTING_VARIABLES: [&str; 13] = [
    "PGHOSTADDR",
    "PGPASSWORD",
    "PGPASSFILE",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGOPTIONS",
    "PGSSLMODE",
    "PGGSSENCMODE",
    "PGREQUIREPEER",
    "PGREQUIREAUTH",
    "PGCHANNELBINDING",
    "PGTARGETSESSIONATTRS",
    "PGLOADBALANCEHOSTS",
];

pub(super) fn run(args: DbArgs) -> u8 {
    let DbArgs { command } = args;
    match command {
        DbCommand::Psql(PsqlArgs { arguments, directories }) => {
            let Err(failure) = psql(&arguments, directories);
            output::explain(&failure)
        }
        DbCommand::Url(args) => finish(args, url),
        DbCommand::Stop(args) => finish(args, stop),
        DbCommand::Hold(HoldArgs { state, programs }) => match local_server::hold(&state, &programs) {
            Ok(()) => 0,
            Err(failure) => output::explain(&failure),
        },
    }
}

fn finish(args: ResultArgs, run: fn(DirectoryArgs) -> Result<(String, Value), Failure>) -> u8 {
    let output = Output::new(Some(args.output.unwrap_or(Format::Text)), false);
    match run(args.directories) {
        Ok((text, document)) => output.result_with_text(&text, &document),
        Err(failure) => output.failure(&failure),
    }
}

/// Becomes psql, which then uses the server and the terminal, and sets the exit code.
fn psql(arguments: &[OsString], directories: DirectoryArgs) -> Result<std::convert::Infallible, Failure> {
    let database = LocalServer::start(&directories.resolve()?.database())?;
    let program = database.program("psql").unwrap_or_else(|| "psql".into());
    let mut command = Command::new(&program);
    command.args(arguments);
    for name in CONFLICTING_VARIABLES {
        command.env_remove(name);
    }
    command.env("PGHOST", database.socket_directory()).env("PGPORT", PORT.to_string());
    command.env("PGUSER", USER).env("PGDATABASE", DATABASE);
    let error = database.become_program(&mut command);
    let text = format!("cannot run {}: {error}", program.display());
    Err(Failure::new(Class::StartError, text).with_hint("install the client programs of PostgreSQL"))
}

fn url(directories: DirectoryArgs) -> Result<(String, Value), Failure> {
    let database = LocalServer::start(&directories.resolve()?.database())?;
    database.linger()?;
    let url = database.url();
    Ok((url.clone(), json!({"url": url})))
}

fn stop(directories: DirectoryArgs) -> Result<(String, Value), Failure> {
    let (text, stopped) = match local_server::stop(&directories.resolve()?.database())? {
        StopOutcome::Stopped => ("the embedded database has stopped", true),
        StopOutcome::NotRunning => ("the embedded database was not running", false),
        StopOutcome::InUse => {
            let text = "the embedded database is in use: it stops by itself after its last user";
            let hint = "end the commands and clients that use it: `syncctl db psql -c 'TABLE pg_stat_activity'`";
            return Err(Failure::new(Class::DatabaseError, text).with_hint(hint));
        }
    };
    Ok((text.to_owned(), json!({"stopped": stopped})))
}
