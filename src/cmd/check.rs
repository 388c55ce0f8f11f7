//! `syncctl check`.

use super::{ConnectorArgs, TaskArgs, run_task};
use crate::controller::document::Document;
use crate::controller::request::Request;
use crate::failure::Failure;
use crate::task::{Task, TaskKind};

/// Test a connector's configuration
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    #[command(flatten)]
    connector: ConnectorArgs,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    task: TaskArgs,
}

/// A configuration and the key of its result.
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// Configuration of the connector: a JSON or YAML file, or - for stdin
    #[arg(long, value_name = "FILE")]
    config: String,
    /// Key under which the result is stored [default: a hash of the image and the configuration]
    #[arg(long, value_name = "KEY")]
    storage_key: Option<String>,
}

impl ConfigArgs {
    pub(super) fn request(self, task: Task) -> Result<Request, Failure> {
        let Self { config, storage_key } = self;
        Request::configured(task, storage_key, &Document::read_file(&config, "the configuration")?)
    }
}

pub(super) fn run(args: CheckArgs) -> u8 {
    let CheckArgs { connector, config, task } = args;
    run_task(task, |_, timeout| config.request(connector.task(TaskKind::Check, timeout)?))
}
