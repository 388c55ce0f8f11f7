//! `syncctl discover`.

use super::check::ConfigArgs;
use super::{ConnectorArgs, TaskArgs, run_task};
use crate::task::TaskKind;

/// List the streams that a configuration gives access to
#[derive(Debug, clap::Args)]
pub struct DiscoverArgs {
    #[command(flatten)]
    connector: ConnectorArgs,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    task: TaskArgs,
}

pub(super) fn run(args: DiscoverArgs) -> u8 {
    let DiscoverArgs { connector, config, task } = args;
    run_task(task, |_, timeout| config.request(connector.task(TaskKind::Discover, timeout)?))
}
