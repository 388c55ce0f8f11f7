//! `syncctl serve`.

use crate::config::{ServeSettings, ServeSettingsArgs, Settings, SettingsArgs};
use crate::failure::Failure;
use crate::{controller, logging, output, server};

/// Serve the same tasks over HTTP
///
/// GET /openapi.json describes the API. The first TERM shuts it down: running tasks continue, and another process takes
/// them over.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Log more; up to -vvv, which includes the logs of libraries
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(flatten)]
    serve: ServeSettingsArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn run(args: ServeArgs) -> u8 {
    let ServeArgs { verbose, serve, settings } = args;
    let result = resolve(serve, settings).and_then(|(settings, serve)| {
        logging::start_service(&settings.pod.log_level, verbose, serve.log_json);
        if serve.enabled {
            let (settings, _database) = controller::start_database(settings)?;
            return server::serve(settings, serve);
        }
        tracing::info!("disabled by SYNCCTL_SYNCS_ENABLED");
        Ok(())
    });
    result.map_or_else(|failure| output::explain(&failure), |()| 0)
}

/// Both kinds of settings, or the problems of both.
fn resolve(serve: ServeSettingsArgs, settings: SettingsArgs) -> Result<(Settings, ServeSettings), Failure> {
    match (settings.resolve(), serve.resolve()) {
        (Ok(settings), Ok(serve)) => Ok((settings, serve)),
        (Err(one), Err(other)) => Err(Failure::new(one.class, format!("{}\n{}", one.text, other.text))),
        (Err(failure), _) | (_, Err(failure)) => Err(failure),
    }
}
