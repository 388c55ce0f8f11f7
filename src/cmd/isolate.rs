//! `syncctl isolate`: runs a connector, or its installation, isolated from this machine. Started by other commands, not by
//! users.

use std::ffi::OsString;

use crate::pod::isolation::{self, EXIT_NOT_ISOLATED};

/// Run a program isolated from this machine
#[derive(Debug, clap::Args)]
pub struct IsolateArgs {
    /// What the program can access (JSON)
    #[arg(long, default_value = "")]
    sandbox: String,
    /// Runs as the first process of the PID namespace
    #[arg(long)]
    init: bool,
    /// Marks the process as one of the task
    #[arg(long)]
    mark: Option<String>,
    /// The program and its arguments
    #[arg(last = true)]
    program: Vec<OsString>,
}

pub(super) fn run(args: IsolateArgs) -> u8 {
    let IsolateArgs { sandbox, init, mark: _, program } = args;
    if init {
        return isolation::run_init();
    }
    match serde_json::from_str(&sandbox) {
        Ok(sandbox) => isolation::launch(&sandbox, program),
        Err(error) => {
            eprintln!("the description of the sandbox cannot be read: {error}");
            EXIT_NOT_ISOLATED
        }
    }
}
