//! The connector's image in Docker or Podman: whether there is one, how it is run, and what became of it.
//!
//! Both take the same commands but for a few words, which are here. Knows nothing of pipes and documents.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::child::{self, Done, End, Surroundings};
use super::python::cancelled;
use super::{Connector, ConnectorRequest, ResolvedConnector};
use crate::failure::{Class, Failure};
use crate::pod::image_errors::is_image_missing;
use crate::pod::manifest::{CREATOR_LABEL, OWNER};
use crate::task::Image;

/// A daemon that does not answer within this is none.
const ANSWER: Duration = Duration::from_secs(3);
/// How long a small command may take on a busy machine.
const COMMAND: Duration = Duration::from_secs(30);
/// No pull takes that long; the user ends one that is too long for them.
const FOR_EVER: Duration = Duration::from_hours(24);
/// Not more often than this is anything told.
const PAUSE: Duration = Duration::from_millis(200);

/// What runs containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineKind {
    /// Docker, or what calls itself so.
    Docker,
    /// Podman.
    Podman,
}

impl EngineKind {
    /// The program.
    fn program(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "Docker",
            Self::Podman => "Podman",
        }
    }

    /// A question that only what can run containers answers, with its version.
    fn question(self) -> [&'static str; 3] {
        match self {
            Self::Docker => ["version", "--format", "{{.Server.Version}}"],
            Self::Podman => ["info", "--format", "{{.Version.Version}}"],
        }
    }
}

/// Docker or Podman on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerEngine {
    /// Which of them.
    pub kind: EngineKind,
    /// The program.
    pub path: PathBuf,
    /// What it is called with: `DOCKER_HOST` and the like. Not written down with it: it is the user's whole environment.
    #[serde(skip)]
    pub environment: Vec<(String, String)>,
}

/// Why a tool does not have an image.
pub struct Miss {
    /// The reason.
    pub failure: Failure,
    /// There is no such tool on this machine.
    pub is_absent: bool,
}

/// Finds the image: among those that the tool has, else in its registry.
pub fn find(
    kind: EngineKind,
    wanted: &ConnectorRequest<'_>,
    tell: &mut dyn FnMut(&str),
    stop: &dyn Fn() -> bool,
) -> Result<ResolvedConnector, Miss> {
    let (tool, version) = ContainerEngine::here(kind, wanted.environment, wanted.working_directory, stop)?;
    let name = kind.name();
    let found = |image: String, how: &str| ResolvedConnector {
        summary: format!("connector: the image {image}, {how} {name} {version}"),
        connector: Connector::Container { tool: tool.clone(), image },
    };
    let references = references(kind, wanted.image);
    if let Some(image) = references.iter().find(|image| tool.has(image, stop)) {
        return Ok(found(image.clone(), "from"));
    }
    // The last one names its registry, where that is needed.
    let image = references.last().expect("there is one").clone();
    let mut progress = Pull::new(&image, kind, tell);
    let done = tool.run(&["pull", &image], FOR_EVER, stop, &mut |line| progress.heard(line));
    match done {
        Ok(done) if done.is_ok() => Ok(found(image, "pulled with")),
        Ok(Done { end: End::Stopped, .. }) => Err(cancelled().into()),
        Ok(done) => Err(why_not_pulled(kind, &image, &done.lines).into()),
        Err(error) => {
            let text = format!("{name} cannot pull {image}: {error}");
            Err(Failure::new(Class::ImagePull, text).with_hint("check that it works").into())
        }
    }
}

impl From<Failure> for Miss {
    fn from(failure: Failure) -> Self {
        Self { failure, is_absent: false }
    }
}

/// What a tool calls an image, by itself and in full.
fn references(kind: EngineKind, image: &Image) -> Vec<String> {
    let short = image.reference();
    let first = short.split('/').next().unwrap_or_default();
    let has_registry = short.contains('/') && (first == "localhost" || first.contains(['.', ':']));
    match kind {
        // Podman asks no registry that is not named.
        EngineKind::Podman if !has_registry && short.contains('/') => vec![short.clone(), format!("docker.io/{short}")],
        EngineKind::Podman if !has_registry => vec![short.clone(), format!("docker.io/library/{short}")],
        _ => vec![short],
    }
}

impl ContainerEngine {
    /// The tool and its version, if it is installed and answers.
    fn here(
        kind: EngineKind,
        environment: &[(String, String)],
        folder: &Path,
        stop: &dyn Fn() -> bool,
    ) -> Result<(Self, String), Miss> {
        let name = kind.name();
        let absent = |text: String, hint: String| Miss {
            failure: Failure::new(Class::StartError, text).with_hint(hint),
            is_absent: true,
        };
        let another = "or choose another SYNCCTL_LOCAL_RUNTIME";
        let path = child::program(kind.program(), environment, folder)
            .ok_or_else(|| absent(format!("{name} is not installed"), format!("install {name}, {another}")))?;
        let tool = Self { kind, path, environment: environment.to_vec() };
        match tool.run(&kind.question(), ANSWER, stop, &mut |_| ()) {
            Ok(done) if done.end == End::Stopped => Err(cancelled().into()),
            Ok(done) if done.is_ok() && done.last_line().starts_with(|c: char| c.is_ascii_digit()) => {
                let version = done.last_line().to_owned();
                Ok((tool, version))
            }
            Ok(done) if done.lines.iter().any(|line| line.contains("permission denied")) => Err(absent(
                format!("{name} may not be used by this user"),
                format!("let this user use {name}, {another}"),
            )),
            _ => Err(absent(format!("{name} does not answer"), format!("start {name}, {another}"))),
        }
    }

    fn has(&self, image: &str, stop: &dyn Fn() -> bool) -> bool {
        let arguments = ["image", "inspect", "--format", "{{.Id}}", image];
        self.run(&arguments, COMMAND, stop, &mut |_| ()).is_ok_and(|done| done.is_ok())
    }

    fn run(
        &self,
        arguments: &[&str],
        limit: Duration,
        stop: &dyn Fn() -> bool,
        heard: &mut dyn FnMut(Option<&str>),
    ) -> std::io::Result<Done> {
        let surroundings = Surroundings { environment: &self.environment, folder: Path::new("/"), holds: None, limit };
        child::run(&self.path, arguments, surroundings, stop, heard)
    }

    /// Runs a small command; the error is what the tool said.
    fn command(&self, arguments: &[&str]) -> Result<Done, String> {
        let done = self.run(arguments, COMMAND, &|| false, &mut |_| ()).map_err(|error| error.to_string())?;
        match done.end {
            End::Exited(Some(0)) => Ok(done),
            End::Exited(_) => Err(done.last_line().to_owned()),
            End::Stopped | End::TookTooLong => Err(format!("{} does not answer", self.kind.name())),
        }
    }
}

/// How far a pull is. Layers are all that both tools tell without a terminal.
struct Pull<'a> {
    title: String,
    tell: &'a mut dyn FnMut(&str),
    layers: HashSet<String>,
    complete: HashSet<String>,
    told: Option<(Instant, String)>,
}

impl<'a> Pull<'a> {
    fn new(image: &str, kind: EngineKind, tell: &'a mut dyn FnMut(&str)) -> Self {
        let title = format!("pulling {image} with {}", kind.name());
        Self { title, tell, layers: HashSet::new(), complete: HashSet::new(), told: None }
    }

    fn heard(&mut self, line: Option<&str>) {
        if let Some(line) = line {
            self.note(line.trim());
        }
        if self.told.as_ref().is_some_and(|(when, _)| when.elapsed() < PAUSE) {
            return;
        }
        let Self { title, layers, complete, .. } = &*self;
        let text = match (layers.len(), complete.len()) {
            (0, _) => title.clone(),
            (layers, 0) => format!("{title}: {layers} layers"),
            (layers, complete) => format!("{title}: {complete} of {layers} layers"),
        };
        if self.told.as_ref().is_none_or(|(_, told)| *told != text) {
            (self.tell)(&text);
            self.told = Some((Instant::now(), text));
        }
    }

    fn note(&mut self, line: &str) {
        // Podman: `Copying blob sha256:d903…`
        if let Some(blob) = line.strip_prefix("Copying blob ") {
            self.layers.insert(blob.split(' ').next().unwrap_or_default().to_owned());
        } else if let Some((layer, what)) = line.split_once(": ") {
            // Docker: `d9038459594d: Pull complete`
            let is_done = matches!(what, "Pull complete" | "Already exists");
            if is_done || what == "Pulling fs layer" {
                self.layers.insert(layer.to_owned());
            }
            if is_done {
                self.complete.insert(layer.to_owned());
            }
        }
    }
}

fn why_not_pulled(kind: EngineKind, image: &str, lines: &[String]) -> Failure {
    let name = kind.name();
    let last =
        lines.iter().rev().map(|line| line.trim()).find(|line| !line.is_empty()).unwrap_or("it does not say why");
    if is_image_missing(&lines.join("\n")) {
        return Failure::new(Class::ImageNotFound, format!("{name} has no image {image}, and its registry gives none"))
            .with_hint("check the name and the version, and log in if the registry asks for it");
    }
    let reason = last.trim_start_matches("Error response from daemon: ").trim_start_matches("Error: ");
    // What went before the cause is the way to it.
    let reason = reason.rsplit("dial tcp: ").next().unwrap_or(reason);
    Failure::new(Class::ImagePull, format!("{name} cannot pull {image}: {reason}"))
        .with_hint("check the network of this machine, and that its registry is reached")
}

/// A folder of this machine inside a container.
#[derive(Debug, Clone, Copy)]
pub struct Mount<'a> {
    /// Here.
    pub host: &'a Path,
    /// There.
    pub inside: &'a str,
    /// Not to be written by the container.
    pub read_only: bool,
}

/// A container that is to run in the foreground until its command ends.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions<'a> {
    /// Its name, by which it is ended and removed.
    pub name: &'a str,
    /// The image, as it was found.
    pub image: &'a str,
    /// Its folders.
    pub mounts: &'a [Mount<'a>],
    /// What is added to the image's environment. Everybody on the machine can see it: no secrets.
    pub environment: &'a [(&'a str, &'a str)],
    /// The process that looks after it.
    pub owner: Option<&'a str>,
    /// Thousandths of a processor; 0 is no limit.
    pub cpu_millicores: u32,
    /// MiB of memory; 0 is no limit.
    pub memory_mi: u32,
    /// How long it may take to end after TERM.
    pub grace_seconds: u32,
    /// The program and its arguments, in place of the image's own.
    pub command: &'a [String],
}

impl RunOptions<'_> {
    /// The arguments of `docker` or `podman`. The container stays when it has ended, so that it can be asked how.
    pub fn arguments(&self) -> Vec<String> {
        let Self { name, image, mounts, environment, owner, cpu_millicores, memory_mi, grace_seconds, command } = *self;
        let mut arguments: Vec<String> = ["run", "--name", name, "--pull", "never"].map(str::to_owned).to_vec();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("--label", format!("{}={}", CREATOR_LABEL.0, CREATOR_LABEL.1));
        if let Some(owner) = owner {
            add("--label", format!("{OWNER}={owner}"));
        }
        // All that matters goes through the pipes; the rest comes out here and need not be kept.
        add("--log-driver", "none".to_owned());
        // SELinux would hide the folders, which keep the labels that they have.
        add("--security-opt", "label=disable".to_owned());
        add("--stop-timeout", grace_seconds.to_string());
        if cpu_millicores > 0 {
            add("--cpus", format!("{}.{:03}", cpu_millicores / 1000, cpu_millicores % 1000));
        }
        if memory_mi > 0 {
            add("--memory", format!("{memory_mi}m"));
            // With more of it the limit would only lead to swapping.
            add("--memory-swap", format!("{memory_mi}m"));
        }
        for (name, value) in environment {
            add("--env", format!("{name}={value}"));
        }
        for mount in mounts {
            add("--mount", mount.argument());
        }
        if let Some(program) = command.first() {
            add("--entrypoint", program.clone());
        }
        arguments.push(image.to_owned());
        arguments.extend(command.iter().skip(1).cloned());
        arguments
    }
}

impl Mount<'_> {
    /// Fields of a line of CSV.
    fn argument(&self) -> String {
        let host = format!("source={}", self.host.display());
        let host = if host.contains([',', '"']) { format!("\"{}\"", host.replace('"', "\"\"")) } else { host };
        let end = if self.read_only { ",readonly" } else { "" };
        format!("type=bind,{host},target={}{end}", self.inside)
    }
}

/// What became of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// It runs.
    pub is_running: bool,
    /// It has used more memory than it may.
    pub is_oom_killed: bool,
    /// The code of its command.
    pub exit_code: i32,
}

impl ContainerEngine {
    /// What a container is like now; `None` when there is none of that name.
    pub fn state(&self, name: &str) -> Result<Option<State>, String> {
        let format = "{{.State.Running}} {{.State.OOMKilled}} {{.State.ExitCode}}";
        match self.command(&["container", "inspect", "--format", format, name]) {
            Ok(done) => State::parse(done.last_line()).map(Some),
            Err(text) if is_absent(&text) => Ok(None),
            Err(text) => Err(text),
        }
    }

    /// Whether a container that ran in the foreground, started in `folder`, was killed for its memory. Podman 4 does not
    /// always know it, but what watches its containers leaves an empty file where it was started.
    pub fn ran_out_of_memory(&self, state: State, folder: &Path) -> bool {
        state.is_oom_killed || (self.kind == EngineKind::Podman && folder.join("oom").exists())
    }

    /// Ends and removes a container; it is no error that it is gone.
    pub fn remove(&self, name: &str) -> Result<(), String> {
        // Podman would give it ten seconds first. What is wrong, the next command says, too.
        self.command(&["kill", "--signal", "KILL", name]).ok();
        match self.command(&["rm", "--force", "--volumes", name]) {
            Err(text) if !is_absent(&text) && !text.contains("already in progress") => Err(text),
            _ => Ok(()),
        }
    }
}

impl State {
    fn parse(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split(' ').collect();
        let parsed = match fields[..] {
            [running, oom, code] => running.parse().ok().zip(oom.parse().ok()).zip(code.parse().ok()),
            _ => None,
        };
        let ((is_running, is_oom_killed), exit_code) =
            parsed.ok_or_else(|| format!("a state that is none: {text:?}"))?;
        Ok(Self { is_running, is_oom_killed, exit_code })
    }
}

fn is_absent(text: &str) -> bool {
    ["no such container", "No such container", "no such object", "No such object", "no container with name"]
        .iter()
        .any(|words| text.contains(words))
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod container_tests;
