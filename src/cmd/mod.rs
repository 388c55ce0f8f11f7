//! The command line: one file a command, each with its arguments and `run`; nothing else knows clap's commands.

mod check;
mod db;
mod discover;
mod generate;
mod image;
mod read;
mod serve;
mod sidecar;
mod spec;
mod supervise;
mod token;

use std::time::Duration;

use crate::config::SettingsArgs;
use crate::controller::one_shot;
use crate::controller::outcome::Outcome;
use crate::controller::request::Request;
use crate::failure::{Class, Failure};
use crate::output::{Format, Output};
use crate::task::{self, Image};
use clap::{Args, Parser, Subcommand};

/// Run Airbyte source connectors as tasks in Kubernetes Pods
///
/// Results go to stdout, everything else to stderr. Results, states, statuses and logs are kept in Postgres.
///
/// Exit codes: 0 done; 1 the connector said no; 2 bad usage or input; 3 cluster, image or database;
/// 4 time exceeded; 130 cancelled.
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
}

/// What all commands that run a task take.
#[derive(Debug, Args)]
pub struct TaskArgs {
    /// Print the result (and a failure) in this form [default: text on a terminal, else json]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    /// How long the task may take, e.g. 90s, 10m, 2h [default: 10m; for read SYNCCTL_TASK_TIMEOUT_HOURS]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
    /// With --local: run this command and not the image, e.g. 'python main.py': a connector under development
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,
    /// No progress on stderr
    #[arg(short, long)]
    quiet: bool,
    /// More on stderr; up to -vvv for what the libraries say, too
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Which connector.
#[derive(Debug, Args)]
pub struct ConnectorArgs {
    /// Connector image with its version, e.g. airbyte/source-faker:7.2.1
    #[arg(required_unless_present_any = ["package", "exec"], conflicts_with = "package", value_name = "IMAGE")]
    image: Option<String>,
    /// Connector image without its version
    #[arg(long, requires = "version", value_name = "PACKAGE")]
    package: Option<String>,
    /// The version of --package
    #[arg(long, id = "version", requires = "package", value_name = "VERSION")]
    version: Option<String>,
}

impl ConnectorArgs {
    fn image(&self) -> Result<Image, Failure> {
        let image = match (&self.image, &self.package, &self.version) {
            (Some(image), _, _) => image.parse(),
            (None, Some(package), Some(version)) => Image::new(package, version),
            // Only with --exec: else one of them is required.
            _ => Image::new(UNNAMED.0, UNNAMED.1),
        };
        image.map_err(|error| Failure::new(Class::Usage, error))
    }
}

/// The name in the tables of a connector under development that was given none.
const UNNAMED: (&str, &str) = ("local/connector", "dev");

/// A duration such as `90s`, `10m`, `1h 30m`, or plain seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?} is not a duration: expected something like 90s, 10m or 2h");
    let seconds = if let Ok(seconds) = text.parse::<u64>() {
        Duration::from_secs(seconds)
    } else {
        let span: jiff::SignedDuration = text.parse().map_err(|_| expected())?;
        Duration::try_from(span).map_err(|_| expected())?
    };
    if seconds > task::LONGEST_TIMEOUT {
        return Err(format!(
            "{text:?} is longer than a Pod may take: expected at most {} days",
            task::LONGEST_TIMEOUT.as_secs() / 86400
        ));
    }
    if seconds.is_zero() {
        Err("a timeout of nothing would end every task: expected at least 1s".to_owned())
    } else {
        Ok(seconds)
    }
}

impl Cli {
    /// Runs the command and returns the exit code. Everything that can be said has been said then.
    pub fn run(self) -> u8 {
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
        }
    }
}

/// Sets up the log, runs the task, prints what came of it.
fn run_task(
    args: TaskArgs,
    request: impl FnOnce(&crate::config::Settings, Option<Duration>) -> Result<Request, Failure>,
) -> u8 {
    let TaskArgs { output: format, timeout, exec, quiet, verbose, settings } = args;
    let output = Output::new(format, quiet);
    let result = settings.resolve().and_then(|settings| settings.with_exec(exec)).and_then(|settings| {
        start_log(&settings.pod.log_level, quiet, verbose);
        let (settings, _database) = crate::controller::engine::database(settings)?;
        let request = request(&settings, timeout)?;
        one_shot::run(&settings, &output, &request)
    });
    finish(&output, result)
}

/// Prints the outcome and turns it into the exit code.
fn finish(output: &Output, result: Result<Outcome, Failure>) -> u8 {
    let (printed, code) = match result {
        Ok(outcome) => {
            let code = outcome.failure().map_or(0, |failure| {
                output.explain(&failure);
                failure.class.exit_code()
            });
            (output.result(&outcome.document()), code)
        }
        Err(failure) => (output.failure(&failure), failure.class.exit_code()),
    };
    match printed {
        Ok(()) => code,
        Err(error) => {
            output.explain(&Failure::new(Class::Internal, format!("writing the result to stdout: {error}")));
            3
        }
    }
}

/// The program's own log goes to stderr; one-off commands only tell what went wrong unless asked for more.
fn start_log(level: &str, quiet: bool, verbose: u8) {
    let ours = match (quiet, verbose) {
        (true, _) => "error".to_owned(),
        (false, 0) if level == "INFO" => "warn".to_owned(),
        (false, 0) => level.to_ascii_lowercase(),
        (false, 1) => "info".to_owned(),
        (false, _) => "debug".to_owned(),
    };
    init_log(&ours, verbose, false);
}

/// A service tells what it does without being asked.
fn start_service_log(level: &str, verbose: u8, json: bool) {
    let level = if verbose > 0 { "debug".to_owned() } else { level.to_ascii_lowercase() };
    init_log(&level, verbose, json);
}

/// Other crates only speak when asked: what matters of their errors is in ours.
fn init_log(ours: &str, verbose: u8, json: bool) {
    let others = match verbose {
        0 => "off",
        1 => "warn",
        2 => "info",
        _ => "debug",
    };
    let ours = if ours == "fatal" { "error" } else { ours };
    let filter = tracing_subscriber::EnvFilter::new(format!("{others},syncctl={ours}"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        log.json().init();
    } else {
        log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
}
