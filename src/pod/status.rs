//! Pod status → [`Observation`], pure. Failures keep the cluster's own words.
//!
//! Our two containers decide, never the Pod's phase alone: an injected service mesh container keeps the phase at Running
//! for ever.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};

use super::image_errors::is_image_missing;
use crate::contract::{EXIT_OUTCOME_UNKNOWN, EXIT_TERMINATED};
use crate::failure::{Class, Failure};

/// The container that runs the connector.
pub const SOURCE: &str = "source";
/// The container that runs the sidecar.
pub const SIDECAR: &str = "sidecar";
/// The init container that unpacks the documents for a foreign sidecar.
pub const INIT: &str = "init";

/// The state of a Pod at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// When the API server accepted the Pod.
    pub created_at: Option<Timestamp>,
    /// When it was scheduled to a node.
    pub scheduled_at: Option<Timestamp>,
    /// When the later of our two containers started.
    pub started_at: Option<Timestamp>,
    /// The node that it was scheduled to; the name of this machine for a local task.
    pub node: Option<String>,
    /// The connector's image as the node resolved it, with its digest; `None` before it is pulled, and for a local task.
    pub image_id: Option<String>,
    /// A line for the user before the connector starts: how the connector was resolved.
    pub notice: Option<String>,
    /// The progress of the task.
    pub phase: Phase,
}

/// The progress of a task.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// Not started yet, without an error. The text is the progress for users: a gerund and its object.
    Waiting(String),
    /// Cannot start at the moment.
    Error {
        /// The failure to record if the error persists.
        failure: Failure,
        /// Retries cannot help.
        permanent: bool,
    },
    /// Both containers have started, and the sidecar has not ended.
    Running,
    /// Nothing runs any more that could produce a result.
    Ended(Ended),
}

/// How the containers ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ended {
    /// The exit of the connector; `None` while it still runs or if it never started.
    pub source: Option<Exit>,
    /// The exit of the sidecar.
    pub sidecar: Option<Exit>,
    /// What ended the Pod as a whole: deletion, eviction, deadline, a lost node.
    pub pod: Option<Failure>,
    /// When the last container ended.
    pub at: Option<Timestamp>,
    /// The memory limits (source, sidecar), for the text of an OOM kill.
    pub memory_limits: (Option<String>, Option<String>),
}

/// How one container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    /// The exit code.
    pub code: i32,
    /// The kubelet's reason: Completed, Error, OOMKilled, StartError, …
    pub reason: String,
    /// The termination message.
    pub message: String,
}

/// How much the end of a Pod explains that has no failure of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Explanation {
    /// [`Ended::failure`] is the cause.
    Cause,
    /// Only an exit code: the logs of the containers may hold the cause.
    ExitCode,
    /// Both containers have succeeded.
    Success,
}

/// Texts of a CreateContainerError or RunContainerError that the image itself causes. In lower case.
const BROKEN_IMAGE: [&str; 4] = ["no such file", "executable file not found", "permission denied", "exec format error"];

impl Observation {
    /// The state of a Pod.
    pub fn of(pod: &Pod) -> Self {
        Self {
            created_at: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
            scheduled_at: scheduled_at(pod),
            started_at: started_at(pod),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            image_id: image_id(pod),
            notice: None,
            phase: phase(pod),
        }
    }

    /// The phase as the label of a metric.
    pub fn phase_label(&self) -> &'static str {
        match self.phase {
            Phase::Waiting(_) => "waiting",
            Phase::Error { .. } => "error",
            Phase::Running => "running",
            Phase::Ended(_) => "ended",
        }
    }
}

fn scheduled_at(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "True");
    Some(scheduled?.last_transition_time.as_ref()?.0)
}

fn started_at(pod: &Pod) -> Option<Timestamp> {
    let containers = pod.status.as_ref()?.container_statuses.as_deref()?;
    let started = |name: &str| {
        let state = containers.iter().find(|container| container.name == name)?.state.as_ref()?;
        let running = state.running.as_ref().and_then(|running| running.started_at.as_ref());
        let ended = state.terminated.as_ref().and_then(|ended| ended.started_at.as_ref());
        // A container that never started may have 1970 here.
        running.or(ended).map(|time| time.0).filter(|time| *time > Timestamp::UNIX_EPOCH)
    };
    Some(started(SOURCE)?.max(started(SIDECAR)?))
}

fn image_id(pod: &Pod) -> Option<String> {
    let containers = pod.status.as_ref()?.container_statuses.as_deref()?;
    let id = &containers.iter().find(|container| container.name == SOURCE)?.image_id;
    Some(id.clone()).filter(|id| !id.is_empty())
}

fn phase(pod: &Pod) -> Phase {
    let Some(status) = &pod.status else { return Phase::Waiting("Scheduling pod".to_owned()) };
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let inits = status.init_container_statuses.as_deref().unwrap_or_default();
    let source = terminated(containers, SOURCE);
    let sidecar = terminated(containers, SIDECAR);
    let whole = deleted(pod).or_else(|| whole_pod(pod));
    let init_failed = terminated(inits, INIT).filter(|exit| exit.exit_code != 0);
    let never_started = source.filter(|exit| is_start_error(exit));
    // The exit of the source decides the outcome here, and its status may arrive later than that of the sidecar. A foreign
    // sidecar, for which an init container unpacks the documents, ends with 0 also where the connector failed.
    let has_foreign_sidecar = inits.iter().any(|container| container.name == INIT);
    let is_undecided = |exit: &ContainerStateTerminated| {
        exit.exit_code == i32::from(EXIT_OUTCOME_UNKNOWN) || exit.exit_code == 0 && has_foreign_sidecar
    };
    let waits_for_source = sidecar.is_some_and(is_undecided) && source.is_none();
    if waits_for_source && whole.is_none() {
        return Phase::Running;
    }
    if sidecar.is_some() || whole.is_some() || init_failed.is_some() || never_started.is_some() {
        let pod_failure = whole.or_else(|| {
            init_failed.map(|exit| {
                let exit = Exit::from(exit);
                Failure::new(
                    Class::StartError,
                    format!("the init container ended with code {}: {}", exit.code, exit.text()),
                )
            })
        });
        return Phase::Ended(Ended {
            source: source.map(Exit::from),
            sidecar: sidecar.map(Exit::from),
            pod: pod_failure,
            at: containers.iter().filter_map(finished_at).max(),
            memory_limits: (memory_limit(pod, SOURCE), memory_limit(pod, SIDECAR)),
        });
    }
    for container in inits.iter().chain(containers) {
        if let Some(error) = container_error(container) {
            return error;
        }
    }
    let started = |name: &str| {
        containers.iter().any(|container| {
            container.name == name
                && container.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
        })
    };
    if started(SOURCE) && started(SIDECAR) {
        return Phase::Running;
    }
    unscheduled(pod).unwrap_or_else(|| Phase::Waiting(waiting_for(containers)))
}

fn terminated<'a>(containers: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStateTerminated> {
    containers.iter().find(|container| container.name == name)?.state.as_ref()?.terminated.as_ref()
}

fn finished_at(container: &ContainerStatus) -> Option<Timestamp> {
    Some(container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0)
}

fn is_start_error(exit: &ContainerStateTerminated) -> bool {
    matches!(exit.reason.as_deref(), Some("StartError" | "ContainerCannotRun"))
}

/// We stop watching a Pod before we delete it: a deletion that is observed was requested by another client.
fn deleted(pod: &Pod) -> Option<Failure> {
    pod.metadata.deletion_timestamp.as_ref()?;
    Some(Failure::new(Class::PodDeleted, "another client deleted the task"))
}

/// Evictions and deadlines end the Pod as a whole.
fn whole_pod(pod: &Pod) -> Option<Failure> {
    let status = pod.status.as_ref()?;
    if status.phase.as_deref() != Some("Failed") {
        return None;
    }
    let message = status.message.clone().unwrap_or_default();
    match status.reason.as_deref()? {
        "DeadlineExceeded" => Some(Failure::new(Class::TimeExceeded, message)),
        "Evicted" => Some(Failure::new(Class::Evicted, message).with_hint(
            "raise the memory and storage that the node can give, or SYNCCTL_SOURCE_EPHEMERAL_STORAGE_LIMIT_MI if that is \
             exceeded, or lower what the connector uses",
        )),
        reason => Some(Failure::new(Class::Evicted, format!("the node ended the pod: {reason}: {message}"))),
    }
}

fn container_error(container: &ContainerStatus) -> Option<Phase> {
    let ContainerState { waiting: Some(waiting), .. } = container.state.as_ref()? else { return None };
    let reason = waiting.reason.as_deref().unwrap_or_default();
    let message = waiting.message.clone().unwrap_or_default();
    let cause = if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") };
    let lower = message.to_lowercase();
    let (class, permanent) = match reason {
        "InvalidImageName" | "ErrImageNeverPull" => (Class::ImageNotFound, true),
        "ErrImagePull" | "ImagePullBackOff" if is_image_missing(&message) => (Class::ImageNotFound, true),
        "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" | "ImageInspectError" => (Class::ImagePull, false),
        // A key or a Secret is missing, unless the kubelet has not synchronized a new Secret yet.
        "CreateContainerConfigError" => (Class::StartError, !lower.contains("failed to sync")),
        // A slow disk, or a name that is still in use after a restart of the kubelet, is temporary.
        "CreateContainerError" | "RunContainerError" => {
            (Class::StartError, BROKEN_IMAGE.iter().any(|text| lower.contains(text)))
        }
        _ => return None,
    };
    let image = if container.name == SIDECAR { "the sidecar image (SYNCCTL_SIDECAR_IMAGE)" } else { "image" };
    let text = match class {
        Class::StartError => format!("cannot start container {}: {cause}", container.name),
        _ => format!("cannot pull {image} {}: {cause}", container.image),
    };
    Some(Phase::Error { failure: Failure::new(class, text), permanent })
}

fn unscheduled(pod: &Pod) -> Option<Phase> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let condition = conditions
        .iter()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False" && c.reason.as_deref() == Some("Unschedulable"))?;
    let message = condition.message.clone().unwrap_or_default();
    // A cluster autoscaler may be adding a node: never permanent.
    let failure = Failure::new(Class::Unschedulable, format!("cannot schedule the pod: {message}"));
    Some(Phase::Error { failure, permanent: false })
}

/// The messages of waiting containers, which a local task uses for its progress, else their reasons.
fn waiting_for(containers: &[ContainerStatus]) -> String {
    let waiting = |container: &ContainerStatus| container.state.as_ref()?.waiting.clone();
    let messages: Vec<String> = containers.iter().filter_map(|container| waiting(container)?.message).collect();
    if !messages.is_empty() {
        return messages.join(", ");
    }
    let reason = |container: &ContainerStatus| Some(format!("{} is {}", container.name, waiting(container)?.reason?));
    let reasons: Vec<String> = containers.iter().filter_map(reason).collect();
    if reasons.is_empty() {
        "Scheduling pod".to_owned()
    } else {
        format!("Starting containers: {}", reasons.join(", "))
    }
}

fn memory_limit(pod: &Pod, name: &str) -> Option<String> {
    let containers = &pod.spec.as_ref()?.containers;
    let limits = containers.iter().find(|container| container.name == name)?.resources.as_ref()?.limits.as_ref()?;
    Some(limits.get("memory")?.0.clone())
}

impl From<&ContainerStateTerminated> for Exit {
    fn from(state: &ContainerStateTerminated) -> Self {
        Self {
            code: state.exit_code,
            reason: state.reason.clone().unwrap_or_default(),
            message: state.message.clone().unwrap_or_default().trim().to_owned(),
        }
    }
}

impl Exit {
    fn text(&self) -> &str {
        if self.message.is_empty() { &self.reason } else { &self.message }
    }

    /// The exit code, and what the kubelet adds to it. Its reason `Error` adds nothing.
    fn ended(&self) -> String {
        match self.text() {
            "" | "Error" => format!("ended with code {}", self.code),
            text => format!("ended with code {}: {text}", self.code),
        }
    }
}

impl Ended {
    /// The failure to record if the sidecar stored no result: the most specific cause.
    pub fn failure(&self) -> Failure {
        if let Some(failure) = &self.pod {
            return failure.clone();
        }
        let oom = |exit: &Option<Exit>| exit.as_ref().is_some_and(|exit| exit.reason == "OOMKilled");
        let limit = |limit: &Option<String>| limit.clone().unwrap_or_else(|| "not set".to_owned());
        if oom(&self.source) {
            let text = format!("the connector used more memory than its limit ({})", limit(&self.memory_limits.0));
            return Failure::new(Class::OomKilled, text);
        }
        if oom(&self.sidecar) {
            let text = format!("the sidecar used more memory than its limit ({})", limit(&self.memory_limits.1));
            return Failure::new(Class::OomKilled, text).with_hint("raise SYNCCTL_SIDECAR_MEMORY_LIMIT_MI");
        }
        self.sidecar_failure().or_else(|| self.source_failure()).unwrap_or_else(|| {
            Failure::new(Class::SidecarFailed, "the task ended without a result and without an error")
        })
    }

    /// How much the statuses of the containers explain.
    pub fn explanation(&self) -> Explanation {
        let Some(sidecar) = &self.sidecar else { return Explanation::Cause };
        let is_explained =
            |exit: &Exit| matches!(exit.reason.as_str(), "OOMKilled" | "StartError" | "ContainerCannotRun");
        if self.pod.is_some() || is_explained(sidecar) || self.source.as_ref().is_some_and(is_explained) {
            return Explanation::Cause;
        }
        match (self.source.as_ref().map(|exit| exit.code), sidecar.code) {
            (Some(0), 0) => Explanation::Success,
            // Ours has stored or reported the cause.
            (_, code) if [EXIT_OUTCOME_UNKNOWN, EXIT_TERMINATED].map(i32::from).contains(&code) => Explanation::Cause,
            _ if serde_json::from_str::<Failure>(&sidecar.message).is_ok() => Explanation::Cause,
            _ => Explanation::ExitCode,
        }
    }

    fn sidecar_failure(&self) -> Option<Failure> {
        let exit = self.sidecar.as_ref()?;
        if exit.code == 0 {
            return None;
        }
        if let Ok(failure) = serde_json::from_str(&exit.message) {
            return Some(failure);
        }
        // The connector was killed; the status of its container shows why.
        if exit.code == i32::from(EXIT_OUTCOME_UNKNOWN)
            && let Some(failure) = self.source_failure()
        {
            return Some(failure);
        }
        if exit.code == i32::from(EXIT_TERMINATED) {
            let text = "the sidecar was terminated, and the pod's status does not show why";
            return Some(Failure::new(Class::SidecarFailed, text));
        }
        Some(Failure::new(Class::SidecarFailed, format!("the sidecar {}", exit.ended())))
    }

    fn source_failure(&self) -> Option<Failure> {
        let exit = self.source.as_ref()?;
        if matches!(exit.reason.as_str(), "StartError" | "ContainerCannotRun") {
            let text = format!("cannot start the connector's container: {}", exit.text());
            return Some(Failure::new(Class::StartError, text));
        }
        match exit.code {
            0 => None,
            137 => Some(
                Failure::new(Class::ConnectorFailed, "the connector was killed (exit code 137)")
                    .with_hint("if it ran out of memory, raise SYNCCTL_SOURCE_MEMORY_LIMIT_MI"),
            ),
            _ => Some(Failure::new(Class::ConnectorFailed, format!("the connector {}", exit.ended()))),
        }
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
