//! Runs what the documentation shows: the commands of the CI examples, and the quickstart.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use super::support::{World, eventually, processes, root};

/// An empty folder with this program in the PATH.
struct Workspace {
    world: World,
    folder: tempfile::TempDir,
}

impl Workspace {
    fn new() -> Option<Self> {
        let world = World::on_this_machine()?;
        let folder = tempfile::tempdir().expect("a folder");
        // The server of the embedded database is another user's process when root starts it.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("it is ours");
        Some(Self { world, folder })
    }

    fn run(&self, program: &str, arguments: &[&str], environment: &BTreeMap<String, String>) -> Output {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.folder.path()).env_clear();
        for (name, value) in self.world.place.machine().settings() {
            command.env(name, value);
        }
        let ours = Path::new(env!("CARGO_BIN_EXE_syncctl")).parent().expect("a folder");
        let path = std::env::var("PATH").expect("a PATH");
        command.env("PATH", format!("{}:{path}", ours.display())).env("SYNCCTL_STATE_DIR", self.state());
        for name in ["HOME", "CARGO_HOME", "RUSTUP_HOME"] {
            command.envs(std::env::var(name).map(|value| (name, value)));
        }
        command.envs(environment);
        command.output().expect("a program")
    }

    fn state(&self) -> String {
        self.folder.path().join("state").display().to_string()
    }
}

impl Workspace {
    /// Waits until no process of the folder runs; the server takes a moment to stop.
    #[track_caller]
    fn wait_until_idle(&self) {
        eventually("the end of all processes", Duration::from_mins(2), || {
            processes::with(&self.state()).is_empty().then_some(())
        });
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        processes::kill_all(&self.state());
    }
}

/// The standard output of a command that must succeed.
#[track_caller]
fn succeeded(what: &str, output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{what}: {stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    stdout
}

/// The YAML documents of docs/ci.md.
fn examples() -> Vec<Value> {
    let page = std::fs::read_to_string(root().join("docs/ci.md")).expect("docs/ci.md");
    let blocks = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().expect("an end"));
    blocks.map(|block| serde_yaml::from_str(block).expect("YAML")).collect()
}

/// The variables and the commands of one job.
fn job(example: &Value) -> (BTreeMap<String, String>, Vec<String>) {
    let job = example["jobs"].get("connector").unwrap_or(&example["connector"]);
    let variables = job.get("env").or(job.get("variables")).and_then(Value::as_object).expect("variables");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let variables = variables.iter().filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect();
    let steps = job["steps"].as_array().into_iter().flatten().filter_map(|step| text(&step["run"]));
    let script = job["script"].as_array().into_iter().flatten().filter_map(text);
    (variables, steps.chain(script).collect())
}

#[test]
fn every_command_of_the_ci_examples_runs() {
    let Some(workspace) = Workspace::new() else { return };
    let config = r#"{"count": 200, "seed": 1, "parallelism": 1}"#;
    std::fs::write(workspace.folder.path().join("config.json"), config).expect("a file");
    let examples = examples();
    assert_eq!(examples.len(), 2, "GitHub and GitLab");
    for example in &examples {
        let (variables, commands) = job(example);
        let own: Vec<&String> = commands.iter().filter(|command| command.starts_with("syncctl ")).collect();
        for word in ["spec", "check", "discover", "read"] {
            assert!(own.iter().any(|command| command.starts_with(&format!("syncctl {word} "))), "{word}: {own:?}");
        }
        for command in own {
            let stdout = succeeded(command, &workspace.run("bash", &["-ec", command], &variables));
            if command.contains("--max-records") {
                let read: Value = serde_json::from_str(&stdout).expect("JSON");
                let events = |stream: &Value| stream["events"].as_u64().expect("a count");
                let total: u64 = read["streams"].as_object().expect("streams").values().map(events).sum();
                assert_eq!((&read["status"], total), (&Value::from("SUCCESS"), 100), "{read}");
            }
        }
    }
    workspace.wait_until_idle();
}

/// A connector that accepts every configuration.
const CONNECTOR: &str = r#"print('{"type":"CONNECTION_STATUS","connectionStatus":{"status":"SUCCEEDED"}}')"#;

#[test]
fn the_commands_of_the_readme_for_one_machine_run() {
    let Some(workspace) = Workspace::new() else { return };
    let config = r#"{"count": 20, "seed": 1, "parallelism": 1}"#;
    std::fs::write(workspace.folder.path().join("config.json"), config).expect("a file");
    std::fs::write(workspace.folder.path().join("main.py"), CONNECTOR).expect("a file");
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let section = readme.split("\n## On one machine\n").nth(1).expect("the section");
    let block = section.split("```").nth(1).expect("a block of commands");
    let commands: Vec<&str> = block.lines().filter(|line| line.starts_with("syncctl ")).collect();
    assert_eq!(commands.len(), 6, "{commands:?}");
    for command in commands {
        succeeded(command, &workspace.run("bash", &["-ec", command], &BTreeMap::new()));
    }
    workspace.wait_until_idle();
}

#[test]
fn the_quickstart_ends_with_rows_twice() {
    let Some(workspace) = Workspace::new() else { return };
    let script = root().join("tests/quickstart").display().to_string();
    let ours = BTreeMap::from([("SYNCCTL".to_owned(), env!("CARGO_BIN_EXE_syncctl").to_owned())]);
    for round in 1..=2 {
        let stdout = succeeded("quickstart", &workspace.run(&script, &[], &ours));
        for (table, rows) in [("users", "1000"), ("products", "100")] {
            let line = stdout.lines().find(|line| line.trim_start().starts_with(&format!("{table} ")));
            assert!(line.is_some_and(|line| line.ends_with(rows)), "round {round}: {table} in\n{stdout}");
        }
        assert!(stdout.contains("Three commands to try next"), "{stdout}");
        workspace.wait_until_idle();
    }
}
