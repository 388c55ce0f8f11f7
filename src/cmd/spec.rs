//! `syncctl spec`.

use super::{ConnectorArgs, TaskArgs, run_task};
use crate::controller::request::Request;
use crate::task::TaskKind;

/// Print a connector's specification
#[derive(Debug, clap::Args)]
pub struct SpecArgs {
    #[command(flatten)]
    connector: ConnectorArgs,
    #[command(flatten)]
    task: TaskArgs,
}

pub(super) fn run(args: SpecArgs) -> u8 {
    let SpecArgs { connector, task } = args;
    run_task(task, |_, timeout| Ok(Request::spec(connector.task(TaskKind::Spec, timeout)?)))
}
