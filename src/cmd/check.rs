//! `syncctl check`.

use super::{ConnectorArgs, TaskArgs, run_task};
use crate::controller::document::{self, Document};
use crate::controller::request::{Request, new_task};
use crate::failure::Failure;
use crate::pod::payload::Payload;
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
    /// The connector's configuration: a JSON or YAML file, or - for stdin
    #[arg(long, value_name = "FILE")]
    config: String,
    /// Key under which the result is stored [default: a key made of the connector and the configuration]
    #[arg(long, value_name = "KEY")]
    storage_key: Option<String>,
}

impl ConfigArgs {
    /// Reads the configuration and completes the task.
    pub fn apply(self, task: &mut Task) -> Result<Payload, Failure> {
        let Self { config, storage_key } = self;
        let config = Document::read(&config, "the configuration")?.object("the connector's configuration")?;
        task.storage_key = storage_key.unwrap_or_else(|| document::storage_key(&task.image, &config));
        Ok(Payload { config: Some(config), ..Payload::default() })
    }
}

pub(super) fn run(args: CheckArgs) -> u8 {
    let CheckArgs { connector, config, task } = args;
    run_task(task, |_, timeout| {
        let mut task = new_task(TaskKind::Check, connector.image()?, timeout);
        let payload = config.apply(&mut task)?;
        Ok(Request { task, payload })
    })
}
