//! The stored state of a task, pure: its Pod with a status, as an API server would keep it.

use std::path::PathBuf;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Pod,
    PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

use crate::failure::{Class, Failure};
use crate::pod::TaskPod;
use crate::pod::connector::{ContainerEngine, Runtime};
use crate::pod::isolation::Isolation;
use crate::pod::status::{Ended, Exit, Observation, Phase, SIDECAR, SOURCE};

/// The state of a task. One process writes it at a time: the one that launches the task, then the supervisor.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The task in its annotations, its state in its status.
    pub pod: Pod,
    /// Why the task could not run.
    pub failure: Option<Failure>,
    /// How the connector was resolved, in one line.
    pub notice: Option<String>,
    /// The supervisor's process id.
    pub supervisor: Option<u32>,
    /// The engine that runs the connector, if it runs in a container. The container has the name of the Pod.
    pub container: Option<ContainerEngine>,
}

/// What the supervisor needs to resolve the connector.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConnectorSettings {
    /// The command of `--exec`.
    pub exec: Option<String>,
    /// Where to look for the connector.
    pub runtime: Runtime,
    /// The cache directory.
    pub cache: PathBuf,
    /// The working directory of the command.
    pub working_directory: PathBuf,
    /// Whether images run with a read-only file system.
    pub are_images_read_only: bool,
    /// Whether a connector that is a Python package can be isolated.
    pub isolation: Isolation,
}

impl ConnectorSettings {
    /// The file in the directory of the task.
    pub const FILE: &str = "connector.json";
}

/// The failure of a task whose supervisor was killed.
pub fn abandoned() -> Failure {
    Failure::new(Class::Abandoned, "the process that ran this task was killed")
}

impl TaskRecord {
    /// The Pod's uid.
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// A snapshot of the task. `is_supervised`: its supervisor is alive.
    pub fn snapshot(&self, is_supervised: bool) -> TaskPod {
        TaskPod { observation: self.observation(is_supervised), ..TaskPod::of(&self.pod) }
    }

    fn observation(&self, is_supervised: bool) -> Observation {
        let mut observation = Observation::of(&self.pod);
        observation.notice.clone_from(&self.notice);
        observation.node = machine_name();
        let failure = match (&self.failure, &observation.phase) {
            (Some(failure), _) => failure.clone(),
            (None, Phase::Ended(_)) => return observation,
            (None, _) if !is_supervised => abandoned(),
            (None, _) => return observation,
        };
        // The exits of containers stay visible.
        let ended = match observation.phase {
            Phase::Ended(ended) => ended,
            _ => Ended::default(),
        };
        observation.phase = Phase::Ended(Ended { pod: Some(failure), ..ended });
        observation
    }

    /// Sets the progress before the containers start: a gerund and its object.
    pub fn set_progress(&mut self, text: &str) {
        let waiting = ContainerStateWaiting { reason: Some("Preparing".to_owned()), message: Some(text.to_owned()) };
        self.set(SOURCE, ContainerState { waiting: Some(waiting), ..ContainerState::default() });
    }

    /// A container has started.
    pub fn set_started(&mut self, name: &str) {
        let running = ContainerStateRunning { started_at: Some(now()) };
        self.set(name, ContainerState { running: Some(running), ..ContainerState::default() });
    }

    /// A container has ended.
    pub fn set_ended(&mut self, name: &str, exit: &Exit) {
        let started_at = self.state(name).and_then(|state| state.running.as_ref()?.started_at.clone());
        let terminated = ContainerStateTerminated {
            exit_code: exit.code,
            reason: Some(exit.reason.clone()),
            message: Some(exit.message.clone()),
            started_at,
            finished_at: Some(now()),
            ..ContainerStateTerminated::default()
        };
        self.set(name, ContainerState { terminated: Some(terminated), ..ContainerState::default() });
    }

    /// Whether the container has started and not ended.
    pub fn is_running(&self, name: &str) -> bool {
        self.state(name).is_some_and(|state| state.running.is_some())
    }

    /// The deletion of the task was requested.
    pub fn set_deleting(&mut self) {
        self.pod.metadata.deletion_timestamp = Some(now());
    }

    fn state(&self, name: &str) -> Option<&ContainerState> {
        let containers = self.pod.status.as_ref()?.container_statuses.as_deref()?;
        containers.iter().find(|container| container.name == name)?.state.as_ref()
    }

    fn set(&mut self, name: &str, state: ContainerState) {
        debug_assert!([SOURCE, SIDECAR].contains(&name));
        let phase = match (&state.running, &state.terminated) {
            (None, Some(end)) if name == SIDECAR && end.exit_code == 0 => "Succeeded",
            (None, Some(_)) if name == SIDECAR => "Failed",
            (None, None) => "Pending",
            _ => "Running",
        };
        let status = self.pod.status.get_or_insert_with(PodStatus::default);
        status.phase = Some(phase.to_owned());
        let containers = status.container_statuses.get_or_insert_default();
        if let Some(container) = containers.iter_mut().find(|container| container.name == name) {
            container.state = Some(state);
        } else {
            let container = ContainerStatus { name: name.to_owned(), state: Some(state), ..ContainerStatus::default() };
            containers.push(container);
        }
    }
}

/// The host name of this machine.
fn machine_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

fn now() -> Time {
    Time(Timestamp::now())
}
