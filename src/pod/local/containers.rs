//! The two containers of a task as processes of this machine: what the manifest describes, with this machine's paths.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use k8s_openapi::api::core::v1::{Container, Pod};

use super::cgroup::Limits;
use super::process::{self, MARK};
use super::record::ConnectorSettings;
use super::store::{CONFIG, HOME, PIPES, REPORTS, TMP, TaskDirectory, io_failure, private_file};
use crate::contract::{CONFIG_DIR, MAX_REPORTS_MI, PIPES_DIR, REPORTS_DIR, variable};
use crate::failure::{Class, Failure};
use crate::handover::{self, Secrets};
use crate::pod::connector::container::{Mount, RunOptions};
use crate::pod::connector::{Connector, FILE_VARIABLES, InstalledPackage};
use crate::pod::isolation::Isolator;
use crate::pod::status::{Exit, SIDECAR, SOURCE};
use crate::process::this_program;

/// The sidecar's termination message.
const TERMINATION_LOG: &str = "termination-log";
/// Bytes at the end of a container's log that explain its failure.
const LOG_TAIL: u64 = 2000;
/// How much the connector's container may write before, or instead of, using the pipes.
const MAX_LOG_MI: u64 = 16;
/// The home directory that an isolated connector sees, and its directory of temporary files.
const ISOLATED_HOME: &str = "/home/connector";
const ISOLATED_TMP: &str = "/tmp";
/// The user's variables that a connector gets: as few as in a container, and those that it needs for the network.
const INHERITED: [&str; 22] = [
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TERM",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "JAVA_HOME",
    "LD_LIBRARY_PATH",
    "NIX_LD",
    MARK,
];

/// Starts the sidecar.
pub fn start_sidecar(pod: &Pod, directory: &TaskDirectory, secrets: &Secrets) -> Result<Child, Failure> {
    let mut environment: BTreeMap<String, String> = inherited().collect();
    environment.extend(variables(container(pod, SIDECAR)?));
    for (name, path) in
        [(variable::CONFIG_DIR, CONFIG), (variable::REPORTS_DIR, REPORTS), (variable::TERMINATION_LOG, TERMINATION_LOG)]
    {
        environment.insert(name.to_owned(), directory.join(path).display().to_string());
    }
    for pipe in [variable::STDOUT_PIPE_FILE, variable::STDERR_PIPE_FILE] {
        if let Some(path) = environment.get_mut(pipe) {
            *path = directory.on_host(path);
        }
    }
    let mut command = this_program();
    command.arg("sidecar").arg("--secrets-from-stdin").arg("--mark").arg(process::mark(directory.path()));
    command.env_clear().envs(environment);
    let mut child = start(command, Stdio::piped(), SIDECAR, directory)?;
    if let Some(stdin) = child.stdin.take()
        && let Err(error) = handover::write(stdin, secrets)
    {
        // Its exit says why it has ended.
        tracing::warn!(%error, "the sidecar does not take the secrets of the task");
    }
    Ok(child)
}

/// Starts the script that runs the connector.
pub fn start_source(
    pod: &Pod,
    directory: &TaskDirectory,
    connector: &Connector,
    settings: &ConnectorSettings,
    isolator: Option<&Isolator>,
) -> Result<Child, Failure> {
    let container = container(pod, SOURCE)?;
    let arguments = container.command.clone().unwrap_or_default();
    let own_variables: Vec<(String, String)> = variables(container).collect();
    let home = directory.join(HOME);
    let command = match connector {
        Connector::Host { entrypoint, environment, package } => {
            let own = own_variables.into_iter().chain(environment.iter().cloned());
            // The supervisor samples the usage.
            let fixed = [("SYNCCTL_USAGE", "external"), ("AIRBYTE_ENTRYPOINT", entrypoint)];
            let fixed = fixed.map(|(name, value)| (name.to_owned(), value.to_owned()));
            if let (Some(isolator), Some(package)) = (isolator, package) {
                let variables = inherited().filter(|(name, _)| name != MARK).chain(fixed).chain(own);
                let command = isolated(directory, &arguments, package, isolator, variables.collect());
                let command = command.map_err(|error| io_failure("prepare", directory.path(), &error))?;
                return start(command, Stdio::piped(), SOURCE, directory);
            }
            let mut arguments = arguments.iter();
            let mut command = Command::new(arguments.next().map_or("sh", String::as_str));
            // Some arguments are paths in the Pod's volumes.
            let is_path = |argument: &str| {
                [PIPES_DIR, REPORTS_DIR].contains(&argument) || argument.starts_with(&format!("{CONFIG_DIR}/"))
            };
            command.args(arguments.map(|text| if is_path(text) { directory.on_host(text) } else { text.clone() }));
            command.env_clear();
            match &settings.exec {
                Some(_) => command.envs(process::environment()).current_dir(&settings.working_directory),
                None => command.envs(inherited()).current_dir(&home),
            };
            command.envs(fixed).envs(own);
            command.env("HOME", &home).env("TMPDIR", directory.join(TMP));
            command
        }
        Connector::Container { engine, image } => {
            let [pipes, reports, config] = [PIPES, REPORTS, CONFIG].map(|name| directory.join(name));
            let mounts = [
                Mount { host: &pipes, inside: PIPES_DIR, read_only: true },
                Mount { host: &reports, inside: REPORTS_DIR, read_only: false },
                Mount { host: &config, inside: CONFIG_DIR, read_only: true },
            ];
            let own_variables: Vec<(&str, &str)> =
                own_variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let limits = limits(pod, SOURCE);
            let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or_default();
            let options = RunOptions {
                name: directory.name(),
                image,
                mounts: &mounts,
                environment: &own_variables,
                owner: None,
                cpu_millicores: u32::try_from(limits.cpu_millicores).unwrap_or(u32::MAX),
                memory_mi: u32::try_from(limits.memory_bytes >> 20).unwrap_or(u32::MAX),
                grace_seconds: u32::try_from(grace).unwrap_or_default(),
                is_read_only: settings.are_images_read_only,
                command: &arguments,
            };
            let mut command = Command::new(&engine.path);
            command.args(options.arguments());
            command.env_clear().envs(engine.environment.iter().map(|(name, value)| (name, value)));
            // Podman's monitor reports an OOM kill by a file in its working directory.
            command.current_dir(home);
            command
        }
    };
    start(command, Stdio::null(), SOURCE, directory)
}

/// A command that runs the connector with the paths of a Pod's volumes, and sees nothing else of this machine than programs,
/// libraries and its package.
fn isolated(
    directory: &TaskDirectory,
    arguments: &[String],
    package: &InstalledPackage,
    isolator: &Isolator,
    mut variables: BTreeMap<String, String>,
) -> io::Result<Command> {
    let mut view = isolator.view(Path::new(ISOLATED_HOME));
    package.show(&mut view);
    let files = variables.iter().filter(|(name, _)| FILE_VARIABLES.contains(&name.as_str()));
    view.named_files(files.map(|(_, value)| value.as_str()));
    for (name, target, is_writable) in [
        (PIPES, PIPES_DIR, false),
        (CONFIG, CONFIG_DIR, false),
        (REPORTS, REPORTS_DIR, true),
        (HOME, ISOLATED_HOME, true),
        (TMP, ISOLATED_TMP, true),
    ] {
        view.mount(&directory.join(name), target, is_writable);
    }
    for own in [HOME, TMP] {
        isolator.give(&directory.join(own))?;
    }
    for (name, path) in [("HOME", ISOLATED_HOME), ("TMPDIR", ISOLATED_TMP)] {
        variables.insert(name.to_owned(), path.to_owned());
    }
    let (program, arguments) = arguments.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let sandbox = view.into_sandbox_that_follows_stdin();
    Ok(sandbox.command(Some(&process::mark(directory.path())), Some(Path::new(program)), arguments, variables))
}

/// The resource limits of a container.
pub fn limits(pod: &Pod, name: &str) -> Limits {
    let limits = container(pod, name).ok().and_then(|container| container.resources.as_ref()?.limits.as_ref());
    let limit = |resource: &str, unit: &str| limits?.get(resource)?.0.strip_suffix(unit)?.parse::<u64>().ok();
    Limits {
        cpu_millicores: limit("cpu", "m").unwrap_or_default(),
        memory_bytes: limit("memory", "Mi").unwrap_or_default() << 20,
    }
}

/// How a container ended, as the kubelet would report it.
pub fn exit(name: &str, status: &io::Result<ExitStatus>, is_oom_killed: bool, directory: &TaskDirectory) -> Exit {
    let code = match status {
        Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
        Err(_) => 137,
    };
    let reason = match code {
        0 => "Completed",
        _ if is_oom_killed => "OOMKilled",
        _ => "Error",
    };
    let termination_message = std::fs::read_to_string(directory.join(TERMINATION_LOG)).ok();
    let message = termination_message.filter(|_| name == SIDECAR).unwrap_or_else(|| {
        let log = if code == 0 { Vec::new() } else { tail(&log_path(name, directory)).unwrap_or_default() };
        String::from_utf8_lossy(&log).trim_start_matches('\u{fffd}').trim().to_owned()
    });
    Exit { code, reason: reason.to_owned(), message }
}

/// Why the connector's container must end: it stores more than the cluster would allow. The `sh` of an image is as foreign
/// as the rest of it, so this includes what it writes before it uses the pipes.
pub fn exceeded_storage(directory: &TaskDirectory) -> Option<Failure> {
    let log = std::fs::symlink_metadata(log_path(SOURCE, directory)).map_or(0, |metadata| metadata.len());
    let exceeded = |what: &str, limit: u64| {
        let text = format!("the connector's container wrote more than {limit} MiB to {what}");
        Some(Failure::new(Class::Evicted, text).with_hint("run only connectors that you trust"))
    };
    if log > MAX_LOG_MI << 20 {
        exceeded("its own output instead of the pipes", MAX_LOG_MI)
    } else if exceeds(&directory.join(REPORTS), &mut (MAX_REPORTS_MI << 20)) {
        exceeded(REPORTS_DIR, MAX_REPORTS_MI)
    } else {
        None
    }
}

/// Whether the files in a folder take more than the remaining bytes. An entry counts as a block at least, so that many small
/// ones end the search, too.
fn exceeds(folder: &Path, remaining: &mut u64) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let Ok(metadata) = entry.metadata() else { continue };
        let size = (metadata.blocks() * 512).max(4096);
        if size > *remaining {
            return true;
        }
        *remaining -= size;
        if metadata.is_dir() && exceeds(&entry.path(), remaining) {
            return true;
        }
    }
    false
}

/// The last bytes of a log.
fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What a container writes before, or instead of, using the pipes.
fn log_path(name: &str, directory: &TaskDirectory) -> PathBuf {
    directory.join(&format!("{name}.log"))
}

fn start(mut command: Command, stdin: Stdio, name: &str, directory: &TaskDirectory) -> Result<Child, Failure> {
    let path = log_path(name, directory);
    let logs = private_file(&path).and_then(|log| Ok((log.try_clone()?, log)));
    let (stdout, stderr) = logs.map_err(|error| io_failure("write", &path, &error))?;
    // A process group for each container: signals to one do not reach the other.
    command.process_group(0).stdin(stdin).stdout(stdout).stderr(stderr);
    let program = command.get_program().to_owned();
    command.spawn().map_err(|error| io_failure(&format!("start the {name} with"), Path::new(&program), &error))
}

fn inherited() -> impl Iterator<Item = (String, String)> {
    process::environment().into_iter().filter(|(name, _)| INHERITED.contains(&name.as_str()))
}

fn container<'a>(pod: &'a Pod, name: &str) -> Result<&'a Container, Failure> {
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    containers
        .iter()
        .find(|container| container.name == name)
        .ok_or_else(|| Failure::new(Class::Internal, format!("the task has no container {name}")))
}

/// The variables of a container except those from a Secret, which the sidecar gets with its documents.
fn variables(container: &Container) -> impl Iterator<Item = (String, String)> {
    let plain = container.env.iter().flatten().filter(|variable| variable.value_from.is_none());
    // As the kubelet expands it.
    plain.map(|variable| (variable.name.clone(), variable.value.as_deref().unwrap_or_default().replace("$$", "$")))
}

#[cfg(test)]
mod tests {
    use super::{LOG_TAIL, exceeded_storage, tail};
    use crate::pod::local::store::{REPORTS, TaskDirectory};

    #[test]
    fn reports_and_output_of_a_container_are_bounded() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = TaskDirectory::at(folder.path());
        let exceeded = || exceeded_storage(&directory).map(|failure| failure.text);
        assert_eq!(exceeded(), None, "nothing yet");
        let reports = folder.path().join(REPORTS);
        std::fs::create_dir(&reports).expect("a folder");
        std::os::unix::fs::symlink("/proc/self/root", reports.join("link")).expect("a link");
        std::fs::write(reports.join("exit_code"), vec![0; 900 << 10]).expect("a file");
        assert_eq!(exceeded(), None, "links are not followed");
        let deep = (0..40).fold(reports.join("a"), |path, _| path.join("a"));
        std::fs::create_dir_all(&deep).expect("folders");
        assert!(exceeded().expect("many folders").ends_with("1 MiB to /reports"));
        std::fs::remove_dir_all(reports.join("a")).expect("folders");
        std::fs::File::create(folder.path().join("source.log")).and_then(|log| log.set_len(17 << 20)).expect("a file");
        assert!(exceeded().expect("a long log").contains("16 MiB"));
        assert_eq!(tail(&folder.path().join("source.log")).expect("a file").len() as u64, LOG_TAIL);
    }
}
