//! `syncctl supervise`: runs one task on this machine. Started by other commands, not by users.

use std::path::PathBuf;

use crate::logging;

/// Supervise a task that runs on this machine
#[derive(Debug, clap::Args)]
pub struct SuperviseArgs {
    /// The directory of the task
    directory: PathBuf,
    /// Marks the process as one of the task
    #[arg(long, hide = true)]
    mark: Option<String>,
}

pub(super) fn run(args: &SuperviseArgs) -> u8 {
    let SuperviseArgs { directory, mark: _ } = args;
    logging::start("warn", 0, false);
    match crate::pod::local::supervise(directory) {
        Ok(()) => 0,
        Err(failure) => {
            tracing::error!("{failure}");
            failure.class.exit_code()
        }
    }
}
