//! `syncctl supervise`: looks after one task of this machine. Started by the commands themselves.

use std::path::PathBuf;

use crate::logging;

/// Look after a task that runs on this machine
#[derive(Debug, clap::Args)]
pub struct SuperviseArgs {
    /// The task's folder
    folder: PathBuf,
    /// What marks the processes of the task
    #[arg(long, hide = true)]
    mark: Option<String>,
}

pub(super) fn run(args: &SuperviseArgs) -> u8 {
    let SuperviseArgs { folder, mark: _ } = args;
    logging::start("warn", 0, false);
    match crate::pod::local::supervise(folder) {
        Ok(()) => 0,
        Err(failure) => {
            tracing::error!("{failure}");
            failure.class.exit_code()
        }
    }
}
