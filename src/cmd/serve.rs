//! `syncctl serve`: the documented HTTP service.

use super::start_service_log;
use crate::config::{ServeSettings, ServeSettingsArgs, Settings, SettingsArgs};
use crate::controller::engine;
use crate::failure::Failure;
use crate::output::Output;
use crate::server;

/// Serve HTTP: the same tasks, for other programs
///
/// GET /openapi.json tells all that it takes and answers. The first TERM ends it in order: running tasks go on and are
/// taken over by the next process.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// More on stderr; up to -vvv for what the libraries say, too
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(flatten)]
    serve: ServeSettingsArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn run(args: ServeArgs) -> u8 {
    let ServeArgs { verbose, serve, settings } = args;
    let output = Output::new(None, false);
    let result = resolve(serve, settings).and_then(|(settings, serve)| {
        start_service_log(&settings.pod.log_level, verbose, serve.log_json);
        if serve.enabled {
            let (settings, _database) = engine::database(settings)?;
            return server::serve(settings, serve);
        }
        tracing::info!("SYNCCTL_SYNCS_ENABLED says that there is nothing to do");
        Ok(())
    });
    match result {
        Ok(()) => 0,
        Err(failure) => {
            output.explain(&failure);
            failure.class.exit_code()
        }
    }
}

/// Both kinds of settings, or all that is wrong with either.
fn resolve(serve: ServeSettingsArgs, settings: SettingsArgs) -> Result<(Settings, ServeSettings), Failure> {
    match (settings.resolve(), serve.resolve()) {
        (Ok(settings), Ok(serve)) => Ok((settings, serve)),
        (Err(one), Err(other)) => Err(Failure::new(one.class, format!("{}\n{}", one.text, other.text))),
        (Err(failure), _) | (_, Err(failure)) => Err(failure),
    }
}
