//! Resolves the connector's image: present in Docker or Podman, or pulled from its registry.

use std::collections::HashSet;
use std::time::Duration;

use super::container::{COMMAND_TIMEOUT, ContainerEngine, EngineKind};
use super::subprocess::{self, Output, ProcessEnvironment};
use super::{Connector, ResolvedConnector};
use crate::failure::{Class, Failure};
use crate::pod::image_errors::is_image_missing;
use crate::task::Image;

/// Only the user decides that a pull takes too long.
const PULL_TIMEOUT: Duration = Duration::from_hours(24);

/// Why an engine does not have an image.
pub struct ImageError {
    /// The reason.
    pub failure: Failure,
    /// Whether the engine itself is not usable on this machine.
    pub is_engine_missing: bool,
}

impl From<Failure> for ImageError {
    fn from(failure: Failure) -> Self {
        Self { failure, is_engine_missing: false }
    }
}

/// Finds the image in the engine, or pulls it.
pub fn resolve(
    kind: EngineKind,
    image: &Image,
    process: ProcessEnvironment<'_>,
    on_progress: &mut dyn FnMut(&str),
) -> Result<ResolvedConnector, ImageError> {
    let (engine, version) = detect(kind, process).map_err(|failure| ImageError { failure, is_engine_missing: true })?;
    let resolved = |image: &str, origin: &str| ResolvedConnector {
        summary: format!("connector: the image {image}, {origin} {} {version}", kind.name()),
        connector: Connector::Container { engine: engine.clone(), image: image.to_owned() },
    };
    let references = references(kind, image);
    for image in &references {
        let arguments = ["image", "inspect", "--format", "{{.Id}}", image];
        if engine
            .run(&arguments, COMMAND_TIMEOUT, process.is_cancelled, &mut |_| ())
            .is_ok_and(|output| output.is_success())
        {
            return Ok(resolved(image, "from"));
        }
    }
    // The last one names the registry, if the engine requires it.
    let image = references.last().expect("there is at least one reference");
    let mut progress = PullProgress::new(image);
    on_progress(&progress.text());
    let output = engine.run(&["pull", image], PULL_TIMEOUT, process.is_cancelled, &mut |line| {
        if progress.update(line.trim()) {
            on_progress(&progress.text());
        }
    });
    match output {
        Ok(output) if output.is_success() => Ok(resolved(image, "pulled with")),
        Ok(output) => Err(pull_failure(kind, image, &output).into()),
        Err(error) => {
            let text = format!("cannot run {}: {error}", engine.path.display());
            Err(Failure::new(Class::StartError, text).with_hint("check that the program works").into())
        }
    }
}

/// The engine and its version if it is installed and usable.
fn detect(kind: EngineKind, process: ProcessEnvironment<'_>) -> Result<(ContainerEngine, String), Failure> {
    let name = kind.name();
    // Questions that only a working engine answers.
    let (program, arguments) = match kind {
        EngineKind::Docker => ("docker", ["version", "--format", "{{.Server.Version}}"]),
        EngineKind::Podman => ("podman", ["info", "--format", "{{.Version.Version}}"]),
    };
    let failure = |text: String, remedy: &str| {
        let hint = format!("{remedy} {name}, or choose another SYNCCTL_LOCAL_RUNTIME");
        Failure::new(Class::StartError, text).with_hint(hint)
    };
    let path = subprocess::find_program(program, process)
        .ok_or_else(|| failure(format!("{name} is not installed"), "install"))?;
    let engine = ContainerEngine { kind, path, environment: process.variables.to_vec() };
    match engine.run(&arguments, process.timeout, process.is_cancelled, &mut |_| ()) {
        Ok(output) if output.is_success() && output.last_line().starts_with(|c: char| c.is_ascii_digit()) => {
            Ok((engine, output.last_line().to_owned()))
        }
        Ok(output) if output.lines.iter().any(|line| line.contains("permission denied")) => {
            Err(failure(format!("this user has no permission to use {name}"), "let this user use"))
        }
        _ => Err(failure(format!("{name} does not answer"), "start")),
    }
}

/// The names of an image in an engine: the short one, and the full one if the engine pulls only by full names.
fn references(kind: EngineKind, image: &Image) -> Vec<String> {
    let short = image.reference();
    let first = short.split('/').next().unwrap_or_default();
    let has_registry = short.contains('/') && (first == "localhost" || first.contains(['.', ':']));
    match kind {
        EngineKind::Podman if !has_registry && short.contains('/') => {
            vec![short.clone(), format!("docker.io/{short}")]
        }
        EngineKind::Podman if !has_registry => vec![short.clone(), format!("docker.io/library/{short}")],
        _ => vec![short],
    }
}

/// The progress of a pull in layers: without a terminal, the engines print nothing finer.
struct PullProgress {
    title: String,
    layers: HashSet<String>,
    complete: HashSet<String>,
}

impl PullProgress {
    fn new(image: &str) -> Self {
        Self { title: format!("Pulling image {image}"), layers: HashSet::new(), complete: HashSet::new() }
    }

    fn text(&self) -> String {
        let Self { title, layers, complete } = self;
        match (layers.len(), complete.len()) {
            (0, _) => title.clone(),
            (layers, 0) => format!("{title}: {layers} layers"),
            (layers, complete) => format!("{title}: {complete} of {layers} layers"),
        }
    }

    /// Reads a line of `docker pull` or `podman pull`; returns whether it changed the progress.
    fn update(&mut self, line: &str) -> bool {
        // Podman: `Copying blob sha256:d903…`
        if let Some(blob) = line.strip_prefix("Copying blob ") {
            return self.layers.insert(blob.split(' ').next().unwrap_or_default().to_owned());
        }
        // Docker: `d9038459594d: Pull complete`
        match line.split_once(": ") {
            Some((layer, "Pulling fs layer")) => self.layers.insert(layer.to_owned()),
            Some((layer, "Pull complete" | "Already exists")) => {
                self.layers.insert(layer.to_owned());
                self.complete.insert(layer.to_owned())
            }
            _ => false,
        }
    }
}

fn pull_failure(kind: EngineKind, image: &str, output: &Output) -> Failure {
    let name = kind.name();
    if is_image_missing(&output.lines.join("\n")) {
        return Failure::new(
            Class::ImageNotFound,
            format!("{name} cannot pull {image}: its registry has no such image, or denies access"),
        )
        .with_hint("check the name and the version, and log in if the registry requires it");
    }
    let text = output.excerpt(1);
    let reason = text.trim_start_matches("Error response from daemon: ").trim_start_matches("Error: ");
    // The text before is the chain of callers.
    let reason = reason.rsplit("dial tcp: ").next().unwrap_or(reason);
    Failure::new(Class::ImagePull, format!("{name} cannot pull {image}: {reason}"))
        .with_hint("check that this machine reaches the registry")
}

#[cfg(test)]
mod tests {
    use super::{EngineKind, Output, PullProgress, pull_failure, references};
    use crate::failure::Class;

    #[test]
    fn only_podman_needs_the_registry_in_the_name() {
        for (kind, image, expected) in [
            (EngineKind::Docker, "airbyte/source-x:1", &["airbyte/source-x:1"][..]),
            (EngineKind::Podman, "airbyte/source-x:1", &["airbyte/source-x:1", "docker.io/airbyte/source-x:1"]),
            (EngineKind::Podman, "source-x:1", &["source-x:1", "docker.io/library/source-x:1"]),
            (EngineKind::Podman, "ghcr.io/a/source-x:1", &["ghcr.io/a/source-x:1"]),
            (EngineKind::Podman, "localhost:5000/source-x:1", &["localhost:5000/source-x:1"]),
        ] {
            assert_eq!(references(kind, &image.parse().expect("an image")), expected, "{image}");
        }
    }

    #[test]
    fn a_missing_image_differs_from_an_unreachable_registry() {
        use Class::{ImageNotFound, ImagePull};
        for (line, class, part) in [
            (
                "Error response from daemon: manifest for x/y:1 not found: manifest unknown: manifest unknown",
                ImageNotFound,
                "no such image",
            ),
            (
                "Error response from daemon: pull access denied for x/y, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
                ImageNotFound,
                "no such image",
            ),
            (
                "Error: initializing source docker://x/y:1: reading manifest 1 in docker.io/x/y: requested access to the resource is denied",
                ImageNotFound,
                "no such image",
            ),
            (
                "Error response from daemon: Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io on 10.0.0.1:53: no such host",
                ImagePull,
                "x/y:1: lookup registry-1.docker.io on 10.0.0.1:53: no such host",
            ),
            (
                "Error: initializing source docker://x/y:1: pinging container registry localhost:1: Get \"https://localhost:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
                ImagePull,
                "connection refused",
            ),
            ("toomanyrequests: You have reached your pull rate limit.", ImagePull, "rate limit"),
            ("an unknown error", ImagePull, "an unknown error"),
            ("", ImagePull, "no output"),
        ] {
            let output = Output { exit_code: Some(1), lines: vec![line.to_owned(), String::new()] };
            let failure = pull_failure(EngineKind::Docker, "x/y:1", &output);
            assert_eq!(failure.class, class, "{line}");
            assert!(failure.text.contains(part), "{}", failure.text);
        }
    }

    #[test]
    fn pull_progress_counts_layers() {
        let text = |lines: &[&str]| {
            let mut progress = PullProgress::new("x:1");
            for line in lines {
                progress.update(line);
            }
            progress.text()
        };
        assert_eq!(text(&["1: Pulling from x"]), "Pulling image x:1");
        let docker = ["a1: Pulling fs layer", "b2: Pulling fs layer", "c3: Already exists", "a1: Download complete"];
        assert_eq!(text(&docker), "Pulling image x:1: 1 of 3 layers");
        assert_eq!(text(&["Copying blob sha256:a1", "Copying blob sha256:b2 done"]), "Pulling image x:1: 2 layers");
    }
}
