//! What is known of one task: its Pod with a status, as the API server would keep it, in a file.
//!
//! One writer at a time (who launches, then the supervisor), any number of readers: a file is replaced, never changed.

use std::io::{self, Write};
use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Pod,
    PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

use crate::failure::{Class, Failure};
use crate::pod::TaskPod;
use crate::pod::connector::ContainerEngine;
use crate::pod::status::{Ended, Exit, Observation, Phase, SIDECAR, SOURCE};

/// A task of this machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Record {
    /// The Pod: who it is for in its annotations, how far it is in its status.
    pub pod: Pod,
    /// Why it could not run, if that is so.
    pub failure: Option<Failure>,
    /// How its connector was found: one line.
    pub notice: Option<String>,
    /// The process that looks after it.
    pub supervisor: Option<u32>,
    /// What runs the connector if this machine does not do so itself; the container is called as the Pod is.
    pub container: Option<ContainerEngine>,
}

/// The failure of a task whose supervisor has gone without a word.
pub fn abandoned() -> Failure {
    Failure::new(Class::Abandoned, "the syncctl that ran this task was killed")
}

impl Record {
    /// The Pod's uid.
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Reads a file.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    /// Replaces the file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("json.new");
        let mut file = super::private_file(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        drop(file);
        std::fs::rename(&new, path)
    }

    /// How far the task is. `supervised`: the process that looks after it lives.
    pub fn observation(&self, supervised: bool) -> Observation {
        let mut seen = Observation::of(&self.pod);
        seen.notice.clone_from(&self.notice);
        let failure = match (&self.failure, &seen.phase) {
            (Some(failure), _) => failure.clone(),
            (None, Phase::Ended(_)) => return seen,
            (None, _) if !supervised => abandoned(),
            (None, _) => return seen,
        };
        // What the containers did before counts for who wants to know when it ended.
        let ended = match seen.phase {
            Phase::Ended(ended) => ended,
            _ => Ended::default(),
        };
        seen.phase = Phase::Ended(Ended { pod: Some(failure), ..ended });
        seen
    }

    /// A snapshot of the task. `supervised`: its supervisor lives.
    pub fn snapshot(&self, supervised: bool) -> TaskPod {
        TaskPod { observation: self.observation(supervised), ..TaskPod::of(&self.pod) }
    }

    /// What is being waited for before the containers start.
    pub fn waits(&mut self, for_what: &str) {
        let waiting =
            ContainerStateWaiting { reason: Some("Preparing".to_owned()), message: Some(for_what.to_owned()) };
        self.set(SOURCE, ContainerState { waiting: Some(waiting), ..ContainerState::default() });
    }

    /// A container has started.
    pub fn started(&mut self, name: &str) {
        let running = ContainerStateRunning { started_at: Some(now()) };
        self.set(name, ContainerState { running: Some(running), ..ContainerState::default() });
    }

    /// A container has ended.
    pub fn ended(&mut self, name: &str, exit: &Exit) {
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
    pub fn runs(&self, name: &str) -> bool {
        self.state(name).is_some_and(|state| state.running.is_some())
    }

    /// It is being ended.
    pub fn deleting(&mut self) {
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
        self.pod.status.get_or_insert_with(PodStatus::default).phase = Some(phase.to_owned());
        let containers =
            self.pod.status.get_or_insert_with(PodStatus::default).container_statuses.get_or_insert_default();
        if let Some(container) = containers.iter_mut().find(|container| container.name == name) {
            container.state = Some(state);
        } else {
            let container = ContainerStatus { name: name.to_owned(), state: Some(state), ..ContainerStatus::default() };
            containers.push(container);
        }
    }
}

fn now() -> Time {
    Time(Timestamp::now())
}
