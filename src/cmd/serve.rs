//! `syncctl serve`.

use crate::config::{ServeSettings, ServeSettingsArgs, Settings, SettingsArgs};
use crate::env;
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

/// Whether the environment is that of a service's container: this program is its first process, and the database is set.
pub(super) fn is_configured_by_environment() -> bool {
    std::process::id() == 1 && std::env::var(env::DATABASE_URL.name).is_ok_and(|url| !url.trim().is_empty())
}

pub(super) fn run(args: ServeArgs) -> u8 {
    let ServeArgs { verbose, serve, settings } = args;
    if serve.is_disabled() {
        logging::start_service("INFO", verbose, false);
        tracing::info!("disabled by SYNCCTL_SYNCS_ENABLED");
        return 0;
    }
    let result = resolve(serve, settings).and_then(|(settings, serve)| {
        logging::start_service(&settings.pod.log_level, verbose, serve.log_json);
        settings.log_warnings();
        let settings = controller::examine_isolation(settings, serve.allow_unisolated)?;
        let (settings, _database) = controller::start_database(controller::use_own_image(settings)?)?;
        server::serve(settings, serve)
    });
    result.map_or_else(|failure| output::explain(&failure), |()| 0)
}

/// Both kinds of settings, or the problems of both.
fn resolve(serve: ServeSettingsArgs, settings: SettingsArgs) -> Result<(Settings, ServeSettings), Failure> {
    match (settings.resolve(), serve.resolve()) {
        (Ok(settings), Ok(serve)) => Ok((settings.for_service(), serve)),
        (Err(one), Err(other)) => Err(Failure::new(one.class, format!("{}\n{}", one.text, other.text))),
        (Err(failure), _) | (_, Err(failure)) => Err(failure),
    }
}
