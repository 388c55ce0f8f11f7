//! Docker and Podman: their command line, the containers that they run and the state of those.
//!
//! Both take the same arguments with few differences, which are here. Knows nothing of pipes and documents.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::subprocess::{self, Output, ProcessEnvironment};
use crate::pod::manifest::{CREATOR_LABEL, OWNER};

/// The time limit of a short command on a busy machine.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// The number of processes and threads of a container.
const MAX_PROCESSES: u32 = 4096;
/// Where a container with a read-only file system writes temporary files …
const TEMPORARY_DIRECTORIES: [&str; 3] = ["/tmp", "/var/tmp", "/run"];
/// … and what belongs into the home of its user, which only the image knows.
const HOME_DIRECTORIES: [&str; 2] = ["/root", "/home"];

/// The kind of a container engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineKind {
    /// Docker, or a program that replaces it under its name.
    Docker,
    /// Podman.
    Podman,
}

impl EngineKind {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "Docker",
            Self::Podman => "Podman",
        }
    }
}

/// An installed container engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerEngine {
    /// Its kind.
    pub kind: EngineKind,
    /// Its program.
    pub path: PathBuf,
    /// The environment variables that it is called with, e.g. `DOCKER_HOST`. Not stored: they are the user's whole
    /// environment.
    #[serde(skip)]
    pub environment: Vec<(String, String)>,
}

impl ContainerEngine {
    /// Runs a command of the engine to its end, a timeout or a cancellation.
    pub fn run(
        &self,
        arguments: &[&str],
        timeout: Duration,
        is_cancelled: &dyn Fn() -> bool,
        on_line: &mut dyn FnMut(&str),
    ) -> std::io::Result<Output> {
        let (variables, working_directory) = (self.environment.as_slice(), Path::new("/"));
        let process =
            ProcessEnvironment { variables, working_directory, lock: None, timeout, is_cancelled, sandbox: None };
        subprocess::run(&self.path, arguments, process, on_line)
    }

    /// Runs a short command; the error is the last line of its output.
    fn command(&self, arguments: &[&str]) -> Result<Output, String> {
        let output = self.run(arguments, COMMAND_TIMEOUT, &|| false, &mut |_| ()).map_err(|error| error.to_string())?;
        match output.exit_code {
            Some(0) => Ok(output),
            Some(_) => Err(output.last_line().to_owned()),
            None => Err(format!("{} does not answer", self.kind.name())),
        }
    }

    /// The state of a container; `None` if there is none of that name.
    pub fn state(&self, name: &str) -> Result<Option<State>, String> {
        let format = "{{.State.Running}} {{.State.OOMKilled}} {{.State.ExitCode}}";
        match self.command(&["container", "inspect", "--format", format, name]) {
            Ok(output) => State::parse(output.last_line()).map(Some),
            Err(text) if is_absent(&text) => Ok(None),
            Err(text) => Err(text),
        }
    }

    /// Whether a container that was started in the directory was killed for its memory. Podman 4 does not always report it,
    /// but its monitor process leaves an empty file `oom` in the directory where it was started.
    pub fn ran_out_of_memory(&self, state: State, directory: &Path) -> bool {
        state.is_oom_killed || (self.kind == EngineKind::Podman && directory.join("oom").exists())
    }

    /// Kills and removes a container; succeeds if there is none of that name.
    pub fn remove(&self, name: &str) -> Result<(), String> {
        // Podman's `rm` would wait ten seconds first. An error shows up in the next command, too.
        self.command(&["kill", "--signal", "KILL", name]).ok();
        match self.command(&["rm", "--force", "--volumes", name]) {
            Err(text) if !is_absent(&text) && !text.contains("already in progress") => Err(text),
            _ => Ok(()),
        }
    }
}

/// A directory of this machine that is mounted into a container.
#[derive(Debug, Clone, Copy)]
pub struct Mount<'a> {
    /// The path on this machine.
    pub host: &'a Path,
    /// The path in the container.
    pub inside: &'a str,
    /// Whether the container may only read it.
    pub read_only: bool,
}

impl Mount<'_> {
    /// The value of `--mount`: fields of a CSV line.
    fn argument(&self) -> String {
        let source = format!("source={}", self.host.display());
        let source = if source.contains([',', '"']) { format!("\"{}\"", source.replace('"', "\"\"")) } else { source };
        let option = if self.read_only { ",readonly" } else { "" };
        format!("type=bind,{source},target={}{option}", self.inside)
    }
}

/// The options of a container that runs in the foreground until its command ends.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions<'a> {
    /// The container's name.
    pub name: &'a str,
    /// The image's name in the engine.
    pub image: &'a str,
    /// The mounted directories.
    pub mounts: &'a [Mount<'a>],
    /// Variables besides those of the image. No secrets: all users of the machine can see them.
    pub environment: &'a [(&'a str, &'a str)],
    /// The value of the owner label.
    pub owner: Option<&'a str>,
    /// CPU limit in millicores; 0 is no limit.
    pub cpu_millicores: u32,
    /// Memory limit in MiB; 0 is no limit.
    pub memory_mi: u32,
    /// Seconds between TERM and KILL.
    pub grace_seconds: u32,
    /// Whether the container can write to its temporary directories and homes alone.
    pub is_read_only: bool,
    /// The program and its arguments, in place of the image's entrypoint and command.
    pub command: &'a [String],
}

impl RunOptions<'_> {
    /// The arguments of `docker` or `podman`. The container stays after its end, so that its state can be read.
    pub fn arguments(&self) -> Vec<String> {
        let Self {
            name,
            image,
            mounts,
            environment,
            owner,
            cpu_millicores,
            memory_mi,
            grace_seconds,
            is_read_only,
            command,
        } = *self;
        let mut arguments: Vec<String> = ["run", "--name", name, "--pull", "never"].map(str::to_owned).to_vec();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("--label", format!("{}={}", CREATOR_LABEL.0, CREATOR_LABEL.1));
        if let Some(owner) = owner {
            add("--label", format!("{OWNER}={owner}"));
        }
        // Everything that matters goes through the pipes; the rest appears on the engine's own output.
        add("--log-driver", "none".to_owned());
        // SELinux would deny access to the directories, which keep their labels.
        add("--security-opt", "label=disable".to_owned());
        // A connector needs no right of root, even where its image runs as root.
        add("--cap-drop", "ALL".to_owned());
        add("--security-opt", "no-new-privileges".to_owned());
        add("--pids-limit", MAX_PROCESSES.to_string());
        if is_read_only {
            for directory in TEMPORARY_DIRECTORIES {
                add("--tmpfs", format!("{directory}:rw,mode=1777"));
            }
            for directory in HOME_DIRECTORIES {
                // A volume without a name starts with what the image has there, and is removed with the container.
                add("--volume", directory.to_owned());
            }
        }
        add("--stop-timeout", grace_seconds.to_string());
        if cpu_millicores > 0 {
            add("--cpus", format!("{}.{:03}", cpu_millicores / 1000, cpu_millicores % 1000));
        }
        if memory_mi > 0 {
            add("--memory", format!("{memory_mi}m"));
            // More would only lead to swapping.
            add("--memory-swap", format!("{memory_mi}m"));
        }
        for (name, value) in environment {
            add("--env", format!("{name}={value}"));
        }
        for mount in mounts {
            add("--mount", mount.argument());
        }
        if is_read_only {
            arguments.push("--read-only".to_owned());
        }
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        if let Some(program) = command.first() {
            add("--entrypoint", program.clone());
        }
        arguments.push(image.to_owned());
        arguments.extend(command.iter().skip(1).cloned());
        arguments
    }
}

/// The state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Whether its command runs.
    pub is_running: bool,
    /// Whether it was killed for exceeding its memory limit.
    pub is_oom_killed: bool,
    /// The exit code of its command.
    pub exit_code: i32,
}

impl State {
    fn parse(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split(' ').collect();
        let parsed = match fields[..] {
            [running, oom, code] => running.parse().ok().zip(oom.parse().ok()).zip(code.parse().ok()),
            _ => None,
        };
        let ((is_running, is_oom_killed), exit_code) =
            parsed.ok_or_else(|| format!("unknown container state: {text:?}"))?;
        Ok(Self { is_running, is_oom_killed, exit_code })
    }
}

fn is_absent(text: &str) -> bool {
    ["no such container", "No such container", "no such object", "No such object", "no container with name"]
        .iter()
        .any(|phrase| text.contains(phrase))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Mount, RunOptions, State};

    #[test]
    fn run_arguments_list_all_that_the_container_may_access_and_no_network() {
        let command = ["sh", "-c", "echo \"$@\"", "sh", "/pipes", "read"].map(str::to_owned);
        let run = RunOptions {
            name: "source-x-read-1",
            image: "airbyte/source-x:1",
            mounts: &[
                Mount { host: Path::new("/run/me/pipes"), inside: "/pipes", read_only: false },
                Mount { host: Path::new("/odd, \"folder\":1"), inside: "/config", read_only: true },
            ],
            environment: &[("LOG_LEVEL", "debug")],
            owner: Some("boot pid:[1] 2 3"),
            cpu_millicores: 1050,
            memory_mi: 512,
            grace_seconds: 60,
            is_read_only: true,
            command: &command,
        };
        let expected = [
            "run --name source-x-read-1 --pull never",
            "--label jitsu.com/creator=bulker-sync-controller --label syncctl/owner=boot_pid:[1]_2_3",
            "--log-driver none --security-opt label=disable --cap-drop ALL --security-opt no-new-privileges --pids-limit 4096",
            "--tmpfs /tmp:rw,mode=1777 --tmpfs /var/tmp:rw,mode=1777 --tmpfs /run:rw,mode=1777 --volume /root --volume /home",
            "--stop-timeout 60 --cpus 1.050 --memory 512m --memory-swap 512m",
            "--env LOG_LEVEL=debug --mount type=bind,source=/run/me/pipes,target=/pipes",
            "--mount type=bind,\"source=/odd,_\"\"folder\"\":1\",target=/config,readonly",
            "--read-only --entrypoint sh airbyte/source-x:1 -c echo_\"$@\" sh /pipes read",
        ];
        let actual: Vec<String> = run.arguments().iter().map(|argument| argument.replace(' ', "_")).collect();
        assert_eq!(actual.join(" "), expected.join(" "));

        let free = RunOptions { owner: None, cpu_millicores: 0, memory_mi: 0, is_read_only: false, ..run }.arguments();
        for option in ["--read-only", "--tmpfs", "--volume", "--cpus", "--memory", "--memory-swap", "--network"] {
            assert!(!free.contains(&option.to_owned()), "{option}");
        }
    }

    #[test]
    fn an_incomplete_state_is_rejected() {
        let killed = State { is_running: false, is_oom_killed: true, exit_code: 137 };
        assert_eq!(State::parse("false true 137"), Ok(killed));
        for text in ["", "false true", "<no value> true 1", "false true x"] {
            assert!(State::parse(text).is_err(), "{text}");
        }
    }
}
