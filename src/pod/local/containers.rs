//! The two containers of a Pod as processes of this machine: what the manifest says, with this machine's paths.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use rustix::process::{Pid, WaitId, WaitIdOptions};

use super::limits::Limits;
use super::processes::MARK;
use super::store::{Folder, trouble};
use super::supervisor::Plan;
use crate::contract::variable;
use crate::failure::{Class, Failure};
use crate::pod::connector::Connector;
use crate::pod::connector::container::{Mount, RunOptions};
use crate::pod::status::{Exit, SIDECAR, SOURCE};

/// A container that runs.
pub struct Container {
    /// Its first process, which leads a group.
    pub pid: u32,
}

/// Where the sidecar leaves what it could write nowhere else.
const LAST_WORDS: &str = "last-words";
/// What a process said before, or instead of, its pipes.
const LOGS: [(&str, &str); 2] = [(SOURCE, "source.log"), (SIDECAR, "sidecar.log")];
/// How much of that explains a failure.
const TAIL: usize = 2000;
/// What a connector sees of the user's environment, beside its own: as little as in a container, and what it needs to
/// reach the network from here.
const PASSED_ON: [&str; 22] = [
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

/// The environment of this process.
pub fn inherited() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Starts the sidecar.
pub fn sidecar(pod: &Pod, folder: &Folder) -> Result<Child, Failure> {
    let container = container(pod, SIDECAR)?;
    let mut environment: BTreeMap<String, String> = passed_on(false).collect();
    for (name, value) in variables(container, folder)? {
        environment.insert(name, value);
    }
    for (name, place) in
        [(variable::SECRETS_DIR, "secrets"), (variable::CONFIG_DIR, "config"), (variable::TERMINATION_LOG, LAST_WORDS)]
    {
        environment.insert(name.to_owned(), folder.join(place).display().to_string());
    }
    for pipe in [variable::STDOUT_PIPE_FILE, variable::STDERR_PIPE_FILE] {
        if let Some(path) = environment.get_mut(pipe) {
            *path = folder.on_host(path);
        }
    }
    let mut command = ourselves();
    command.arg("sidecar").arg("--mark").arg(mark(folder)).env_clear().envs(environment);
    start(command, SIDECAR, folder)
}

/// Starts the connector in its wrapper.
pub fn source(pod: &Pod, folder: &Folder, connector: &Connector, plan: &Plan) -> Result<Child, Failure> {
    let container = container(pod, SOURCE)?;
    let command = container.command.clone().unwrap_or_default();
    let own = variables(container, folder)?;
    match connector {
        Connector::Host { entrypoint, environment } => {
            let mut words = command.iter();
            let mut process = Command::new(words.next().map_or("sh", String::as_str));
            // The script, its name, and then places in the Pod's volumes and plain words.
            let is_place = |word: &str| ["/pipes", "/config/"].iter().any(|place| word.starts_with(place));
            process.args(words.map(|word| if is_place(word) { folder.on_host(word) } else { word.clone() }));
            process.env_clear().envs(passed_on(plan.exec.is_some()));
            // The supervisor does.
            process.env("SYNCCTL_USAGE", "external").env("AIRBYTE_ENTRYPOINT", entrypoint);
            process.envs(own).envs(environment.iter().map(|(name, value)| (name, value)));
            process.env("HOME", folder.join("home")).env("TMPDIR", folder.join("tmp"));
            process.current_dir(match &plan.exec {
                Some(_) => plan.working_directory.clone(),
                None => folder.join("home"),
            });
            start(process, SOURCE, folder)
        }
        Connector::Container { engine, image } => {
            let (pipes, config) = (folder.join("pipes"), folder.join("config"));
            let mounts = [
                Mount { host: &pipes, inside: "/pipes", read_only: false },
                Mount { host: &config, inside: "/config", read_only: true },
            ];
            let own: Vec<(&str, &str)> = own.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let limits = limits(pod, SOURCE);
            let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or_default();
            let run = RunOptions {
                name: folder.name(),
                image,
                mounts: &mounts,
                environment: &own,
                owner: None,
                cpu_millicores: u32::try_from(limits.cpu_millicores).unwrap_or(u32::MAX),
                memory_mi: u32::try_from(limits.memory_bytes >> 20).unwrap_or(u32::MAX),
                grace_seconds: u32::try_from(grace).unwrap_or_default(),
                command: &command,
            };
            let mut process = Command::new(&engine.path);
            process
                .args(run.arguments())
                .env_clear()
                .envs(engine.environment.iter().map(|(name, value)| (name, value)));
            // Podman leaves a word there.
            process.current_dir(folder.join("home"));
            start(process, SOURCE, folder)
        }
    }
}

/// What a container of the Pod may use.
pub fn limits(pod: &Pod, name: &str) -> Limits {
    let limits = container(pod, name).ok().and_then(|container| container.resources.as_ref()?.limits.as_ref());
    let limit = |resource: &str, unit: &str| {
        let text = &limits?.get(resource)?.0;
        text.strip_suffix(unit)?.parse::<u64>().ok()
    };
    Limits {
        cpu_millicores: limit("cpu", "m").unwrap_or_default(),
        memory_bytes: limit("memory", "Mi").unwrap_or_default() << 20,
    }
}

/// Waits until a child has ended, and leaves it there to be looked at.
pub fn wait_for_end(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    while let Err(rustix::io::Errno::INTR) =
        rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
    {}
}

/// How a container ended, in the words of a cluster.
pub fn exit(name: &str, status: &io::Result<ExitStatus>, used_too_much: bool, folder: &Folder) -> Exit {
    let code = match status {
        Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
        Err(_) => 137,
    };
    let reason = match code {
        0 => "Completed",
        _ if used_too_much => "OOMKilled",
        _ => "Error",
    };
    let said = std::fs::read_to_string(folder.join(LAST_WORDS)).ok().filter(|_| name == SIDECAR);
    let message = said.unwrap_or_else(|| if code == 0 { String::new() } else { tail(name, folder) });
    Exit { code, reason: reason.to_owned(), message }
}

/// The last lines of a container's log.
fn tail(name: &str, folder: &Folder) -> String {
    let bytes = std::fs::read(log(name, folder)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let start = text.ceil_char_boundary(text.len().saturating_sub(TAIL));
    text[start..].trim().to_owned()
}

fn log(name: &str, folder: &Folder) -> std::path::PathBuf {
    let file = LOGS.iter().find(|(container, _)| *container == name).map_or("log", |(_, file)| file);
    folder.join(file)
}

fn start(mut command: Command, name: &str, folder: &Folder) -> Result<Child, Failure> {
    let path = log(name, folder);
    let open = || -> io::Result<(File, File)> {
        let log = super::store::private_file(&path)?;
        Ok((log.try_clone()?, log))
    };
    let (stdout, stderr) = open().map_err(|error| trouble("writing", &path, &error))?;
    // A group of its own: signals to one container do not reach the other.
    command.process_group(0).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    let program = command.get_program().to_owned();
    command.spawn().map_err(|error| trouble(&format!("starting the {name} with"), Path::new(&program), &error))
}

/// This program, also after its file was replaced by a newer one.
pub fn ourselves() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("syncctl");
    command
}

/// What tells a process of ours that does not show its environment.
pub fn mark(folder: &Folder) -> String {
    format!("{MARK}={}", folder.path().display())
}

fn passed_on(everything: bool) -> impl Iterator<Item = (String, String)> {
    inherited().into_iter().filter(move |(name, _)| everything || PASSED_ON.contains(&name.as_str()))
}

fn container<'a>(pod: &'a Pod, name: &str) -> Result<&'a Spec, Failure> {
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    containers
        .iter()
        .find(|container| container.name == name)
        .ok_or_else(|| Failure::new(Class::Internal, format!("the pod has no container {name}")))
}

/// The variables of a container, with those that are in a Secret.
fn variables(container: &Spec, folder: &Folder) -> Result<Vec<(String, String)>, Failure> {
    let mut variables = Vec::new();
    for variable in container.env.iter().flatten() {
        let secret = variable.value_from.as_ref().and_then(|from| from.secret_key_ref.as_ref());
        let value = match (&variable.value, secret) {
            (_, Some(secret)) => {
                let file = folder.join("secrets").join(&secret.key);
                std::fs::read_to_string(&file).map_err(|error| trouble("reading", &file, &error))?
            }
            // What the kubelet would make of it.
            (Some(value), None) => value.replace("$$", "$"),
            (None, None) => String::new(),
        };
        variables.push((variable.name.clone(), value));
    }
    Ok(variables)
}
