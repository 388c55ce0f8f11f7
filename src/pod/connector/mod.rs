//! How a connector is found on this machine: a command that is given, else its image in Docker or Podman, else the Python
//! package of the same name and version.
//!
//! Reads nothing of this process's own environment, and leaves nothing behind when it is stopped or killed but what is
//! complete. Knows nothing of tasks and pipes.

mod child;
pub mod container;
mod exec;
mod lock;
mod python;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use container::{ContainerEngine, EngineKind};

use crate::failure::{Class, Failure};
use crate::task::Image;

/// Where a connector may come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Runtime {
    /// From the first place that has it.
    #[default]
    Auto,
    /// From Docker alone.
    Docker,
    /// From Podman alone.
    Podman,
    /// From the Python package index alone.
    Python,
}

/// What is looked for.
pub struct ConnectorRequest<'a> {
    /// The connector.
    pub image: &'a Image,
    /// A command that is the connector.
    pub exec: Option<&'a str>,
    /// Where to look; an explicit choice never falls back.
    pub runtime: Runtime,
    /// The cache of this program; its folder `connectors` is used.
    pub cache: &'a Path,
    /// The environment of the caller: all that children get.
    pub environment: &'a [(String, String)],
    /// The folder that the caller works in: an absolute path. Children run there.
    pub working_directory: &'a Path,
}

/// A connector as it can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connector {
    /// A command on this machine.
    Host {
        /// Shell text in the place of the images' `AIRBYTE_ENTRYPOINT`.
        entrypoint: String,
        /// What it needs besides the caller's environment.
        environment: Vec<(String, String)>,
    },
    /// An image that a tool has.
    Container {
        /// What runs it.
        tool: ContainerEngine,
        /// What the tool calls it.
        image: String,
    },
}

/// A connector that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedConnector {
    /// The connector.
    pub connector: Connector,
    /// One line for people.
    pub summary: String,
}

/// Finds the connector, which may take minutes. `tell` is called with what is going on, not more than five times a second.
/// When `stop` says true, all that was started is ended and removed.
pub fn resolve(
    wanted: &ConnectorRequest<'_>,
    tell: &mut dyn FnMut(&str),
    stop: &dyn Fn() -> bool,
) -> Result<ResolvedConnector, Failure> {
    sweep(wanted.cache);
    if let Some(command) = wanted.exec {
        return exec::find(command, wanted);
    }
    match wanted.runtime {
        Runtime::Docker => container::find(EngineKind::Docker, wanted, tell, stop).map_err(|miss| miss.failure),
        Runtime::Podman => container::find(EngineKind::Podman, wanted, tell, stop).map_err(|miss| miss.failure),
        Runtime::Python => {
            python::find(wanted, tell, stop).map_err(|failure| sum_up(wanted.image, Vec::new(), failure))
        }
        Runtime::Auto => find_anywhere(wanted, tell, stop),
    }
}

/// Removes what killed searches left behind in the cache. [`find`] does it, too.
pub fn sweep(cache: &Path) {
    python::sweep(cache);
}

fn find_anywhere(
    wanted: &ConnectorRequest<'_>,
    tell: &mut dyn FnMut(&str),
    stop: &dyn Fn() -> bool,
) -> Result<ResolvedConnector, Failure> {
    let mut misses = Vec::new();
    for kind in [EngineKind::Docker, EngineKind::Podman] {
        match container::find(kind, wanted, tell, stop) {
            Ok(found) => return Ok(found),
            Err(miss) if miss.failure.class == Class::Cancelled => return Err(miss.failure),
            Err(miss) => misses.push(miss),
        }
    }
    python::find(wanted, tell, stop).map_err(|failure| sum_up(wanted.image, misses, failure))
}

/// One failure of all that was tried. What is not there at all says less than what did not work.
fn sum_up(image: &Image, misses: Vec<container::Miss>, last: Failure) -> Failure {
    if last.class == Class::Cancelled {
        return last;
    }
    if last.class != Class::ImageNotFound {
        let troubles = misses.into_iter().filter(|miss| !miss.is_absent && miss.failure.class != Class::ImageNotFound);
        let hint = last.hint().unwrap_or_default().to_owned();
        let texts: Vec<String> = std::iter::once(last.text).chain(troubles.map(|miss| miss.failure.text)).collect();
        return Failure::new(last.class, texts.join("; ")).with_hint(hint);
    }
    // A registry that was not reached may have it.
    let unreached = misses.iter().any(|miss| !miss.is_absent && miss.failure.class == Class::ImagePull);
    let class = if unreached { Class::ImagePull } else { Class::ImageNotFound };
    let texts: Vec<String> = misses.into_iter().map(|miss| miss.failure.text).chain([last.text]).collect();
    Failure::new(class, format!("the connector {image} was not found: {}", texts.join("; ")))
        .with_hint("check its name and version, start Docker or Podman, or give its command with --exec")
}
