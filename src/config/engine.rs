//! Where tasks run: the choice, and what belongs to this machine alone.

use super::places::{Places, PlacesArgs};
use super::{Problems, present};
use crate::db::local_server::ServerDirectory;
use crate::failure::Failure;
use crate::pod::connector::Runtime;
use crate::pod::local::LocalSettings;

/// Where tasks run.
#[derive(Debug, Clone, clap::Args)]
pub struct EngineArgs {
    /// Run tasks on this machine, without a cluster: the same as SYNCCTL_ENGINE=local
    #[arg(long, help_heading = "Options")]
    local: bool,
    /// Where tasks run: kubernetes or local [default: kubernetes]
    #[arg(long, env = "SYNCCTL_ENGINE", value_name = "ENGINE")]
    engine: Option<String>,
    /// Where connectors come from with --local: auto, docker, podman or python (their packages) [default: auto]
    #[arg(long, env = "SYNCCTL_LOCAL_RUNTIME", value_name = "RUNTIME")]
    local_runtime: Option<String>,
    #[command(flatten)]
    places: PlacesArgs,
}

impl EngineArgs {
    /// How tasks run on this machine and where its database is, if they are to run there.
    pub(super) fn resolve(self, problems: &mut Problems) -> Result<Option<(LocalSettings, ServerDirectory)>, Failure> {
        let Self { local, engine, local_runtime, places } = self;
        let runtime = problems.runtime(local_runtime);
        if !problems.is_local(local, engine) {
            return Ok(None);
        }
        let places = places.resolve()?;
        let database = places.database();
        let Places { state, cache, postgres: _ } = places;
        Ok(Some((LocalSettings { state, cache, exec: None, runtime }, database)))
    }
}

impl Problems {
    fn is_local(&mut self, flag: bool, engine: Option<String>) -> bool {
        match present(engine).map(|engine| engine.to_ascii_lowercase()).as_deref() {
            Some("local") => true,
            // The flag wins over the variable.
            None | Some("kubernetes") => flag,
            Some(other) => {
                self.malformed.push(format!("  SYNCCTL_ENGINE is {other:?}: expected kubernetes or local"));
                flag
            }
        }
    }

    fn runtime(&mut self, value: Option<String>) -> Runtime {
        match present(value).map(|value| value.to_ascii_lowercase()).as_deref() {
            None | Some("auto") => Runtime::Auto,
            Some("docker") => Runtime::Docker,
            Some("podman") => Runtime::Podman,
            Some("python") => Runtime::Python,
            Some(other) => {
                let text = format!("  SYNCCTL_LOCAL_RUNTIME is {other:?}: expected auto, docker, podman or python");
                self.malformed.push(text);
                Runtime::Auto
            }
        }
    }
}
