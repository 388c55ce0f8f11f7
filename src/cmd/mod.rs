//! The command line: one file per command, with its arguments and `run`.

mod check;
mod db;
mod discover;
mod generate;
mod image;
mod isolate;
mod read;
mod serve;
mod sidecar;
mod spec;
mod supervise;
mod token;

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde_json::json;

use crate::config::{Purpose, Settings, SettingsArgs};
use crate::controller::request::{Request, new_task};
use crate::controller::{self, one_shot};
use crate::failure::{Class, Failure};
use crate::logging;
use crate::output::{self, Format, Output};
use crate::process::{self, ProcessId};
use crate::task::{self, Image, Task, TaskKind};

/// Run Airbyte source connectors as tasks in Kubernetes Pods, or with --local on this machine
///
/// Results go to stdout, everything else to stderr. Results, states, statuses and logs are stored in Postgres.
///
/// Exit codes: 0 success; 1 the connector failed; 2 invalid usage or input; 3 cluster, image or database;
/// 4 timeout exceeded; 130 cancelled.
#[derive(Debug, Parser)]
#[command(name = "syncctl", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Spec(spec::SpecArgs),
    Check(check::CheckArgs),
    Discover(discover::DiscoverArgs),
    Read(Box<read::ReadArgs>),
    Serve(Box<serve::ServeArgs>),
    Image(image::ImageFileArgs),
    Token(token::TokenArgs),
    Db(db::DbArgs),
    Generate(generate::GenerateArgs),
    Sidecar(Box<sidecar::SidecarArgs>),
    #[command(hide = true)]
    Supervise(supervise::SuperviseArgs),
    #[command(hide = true)]
    Isolate(isolate::IsolateArgs),
}

/// The arguments of all commands that use the database of results.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Format of the result; json and yaml print failures, too [default: text on a terminal, else json]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Log more; up to -vvv, which includes the logs of libraries
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// The arguments of all commands that run a task.
#[derive(Debug, Args)]
pub struct TaskArgs {
    /// Timeout of the task, e.g. 90s, 10m, 2h [default: 10m; for read SYNCCTL_TASK_TIMEOUT_HOURS]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
    /// With --local: run this command instead of the image, e.g. 'python main.py', for a connector under development
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

/// The connector.
#[derive(Debug, Args)]
pub struct ConnectorArgs {
    /// Connector image with its version, e.g. airbyte/source-faker:7.2.1
    #[arg(required_unless_present_any = ["package", "exec"], conflicts_with = "package", value_name = "IMAGE")]
    image: Option<String>,
    /// Connector image without its version
    #[arg(long, requires = "version", value_name = "PACKAGE")]
    package: Option<String>,
    /// Version of --package
    #[arg(long, id = "version", requires = "package", value_name = "VERSION")]
    version: Option<String>,
}

/// The package and version of an unnamed connector under development, as they are stored.
const UNNAMED: (&str, &str) = ("local/connector", "dev");

impl ConnectorArgs {
    /// The task of a one-off command, which stores this process as its starter: if the process is killed before it starts
    /// the task, a later command closes the row.
    fn task(&self, kind: TaskKind, timeout: Option<Duration>) -> Result<Task, Failure> {
        let image = match (&self.image, &self.package, &self.version) {
            (Some(image), _, _) => image.parse(),
            (None, Some(package), Some(version)) => Image::new(package, version),
            // Only with --exec, which makes all of them optional.
            _ => Image::new(UNNAMED.0, UNNAMED.1),
        };
        let image = image.map_err(|error| Failure::new(Class::Usage, error))?;
        let mut started_by = json!({"type": "cli"});
        if let Some(process) = ProcessId::current() {
            started_by["process"] = json!(process.to_string());
        }
        Ok(new_task(kind, image, timeout, Some(started_by)))
    }
}

/// Parses `90s`, `10m`, `1h 30m`, or plain seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?} is not a duration: expected something like 90s, 10m or 2h");
    let seconds = if let Ok(seconds) = text.parse::<u64>() {
        Duration::from_secs(seconds)
    } else {
        let span: jiff::SignedDuration = text.parse().map_err(|_| expected())?;
        Duration::try_from(span).map_err(|_| expected())?
    };
    if seconds > task::LONGEST_TIMEOUT {
        return Err(format!("{text:?} is too long: expected at most {} days", task::LONGEST_TIMEOUT.as_secs() / 86400));
    }
    if seconds.is_zero() { Err("expected a timeout of at least 1s".to_owned()) } else { Ok(seconds) }
}

/// Runs the command of this process; returns the exit code.
pub fn run_process() -> u8 {
    Cli::from_process().map_or_else(|error| output::explain_usage(&error), Cli::run)
}

impl Cli {
    /// Parses the arguments of this process. Without arguments the environment decides, for containers that are started
    /// with variables alone: `sidecar` by another controller, `serve` by a chart of one.
    fn from_process() -> Result<Self, clap::Error> {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        match arguments.as_slice() {
            [program] if sidecar::is_configured_by_environment() => Self::try_parse_from([program, &"sidecar".into()]),
            [program] if serve::is_configured_by_environment() => Self::try_parse_from([program, &"serve".into()]),
            _ => Self::try_parse_from(arguments),
        }
    }

    /// Runs the command, which prints its result or failure; returns the exit code.
    fn run(self) -> u8 {
        // A launcher writes the map of its user namespace first, which only a dumpable process can.
        if !matches!(self.command, Command::Isolate(_)) {
            process::hide();
        }
        match self.command {
            Command::Spec(args) => spec::run(args),
            Command::Check(args) => check::run(args),
            Command::Discover(args) => discover::run(args),
            Command::Read(args) => read::run(*args),
            Command::Serve(args) => serve::run(*args),
            Command::Image(args) => image::run(&args),
            Command::Token(args) => token::run(args),
            Command::Db(args) => db::run(args),
            Command::Generate(args) => generate::run(&args),
            Command::Sidecar(args) => sidecar::run(*args),
            Command::Supervise(args) => supervise::run(&args),
            Command::Isolate(args) => isolate::run(args),
        }
    }
}

impl CommonArgs {
    /// Calls `run` with the settings and with a database that runs at least as long; whatever it returns is printed by the
    /// caller.
    fn with_settings<T>(
        self,
        purpose: Purpose,
        adapt: impl FnOnce(Settings) -> Result<Settings, Failure>,
        run: impl FnOnce(&Settings, &Output) -> Result<T, Failure>,
    ) -> (Output, Result<T, Failure>) {
        let Self { output: format, quiet, verbose, settings } = self;
        let output = Output::new(format, quiet);
        let result = settings.resolve_for(purpose).and_then(adapt).and_then(|settings| {
            logging::start_command(&settings.pod.log_level, quiet, verbose);
            settings.log_warnings();
            let (settings, _database) = controller::start_database(controller::use_own_image(settings)?)?;
            run(&settings, &output)
        });
        (output, result)
    }
}

/// Runs the task of a request and prints its outcome; returns the exit code.
fn run_task(args: TaskArgs, request: impl FnOnce(&Settings, Option<Duration>) -> Result<Request, Failure>) -> u8 {
    let TaskArgs { timeout, exec, common } = args;
    let (output, result) = common.with_settings(
        Purpose::RunTasks,
        |settings| settings.with_exec(exec),
        |settings, output| one_shot::run(settings, output, request(settings, timeout)?),
    );
    match result {
        Ok(outcome) => {
            output.notices(&outcome.notices());
            let code = outcome.failure().map_or(0, |failure| output::explain(&failure));
            output.result(&outcome.document(), code)
        }
        Err(failure) => output.failure(&failure),
    }
}
