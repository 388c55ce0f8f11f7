//! This machine as the place for the tasks of one test: folders of its own, and the connectors of all tests.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::processes;
use super::program::print_line;

/// The folders of one test.
pub struct Machine {
    state: PathBuf,
}

impl Machine {
    /// In the folder of a test.
    pub fn new(folder: &Path) -> Self {
        Self { state: folder.join("state") }
    }

    /// What the program is told. The connectors are installed once for all tests.
    pub fn settings(&self) -> impl Iterator<Item = (&'static str, String)> {
        let given = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `make test`"));
        [
            ("SYNCCTL_ENGINE", "local".to_owned()),
            ("SYNCCTL_STATE_DIR", self.state.display().to_string()),
            ("SYNCCTL_CACHE_DIR", given("SYNCCTL_TEST_CONNECTORS")),
            ("SYNCCTL_LOCAL_RUNTIME", "python".to_owned()),
            ("PIP_FIND_LINKS", given("SYNCCTL_TEST_WHEELS")),
            ("UV_FIND_LINKS", given("SYNCCTL_TEST_WHEELS")),
        ]
        .into_iter()
    }

    /// Where the tasks are.
    pub fn tasks(&self) -> PathBuf {
        self.state.join("tasks")
    }

    /// The tasks, as Pods.
    pub fn pods(&self) -> Vec<Value> {
        let records = self.entries().into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "json"));
        records
            .filter_map(|path| {
                let record: Value = serde_json::from_slice(&std::fs::read(path).ok()?).expect("a record is JSON");
                Some(record["pod"].clone())
            })
            .collect()
    }

    /// Records, folders and processes of tasks.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = self
            .entries()
            .iter()
            .map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
            .filter(|name| name != ".making")
            .collect();
        let mark = self.tasks().display().to_string();
        left.extend(processes::with(&mark).iter().map(|(pid, command)| format!("process {pid}: {command}")));
        left
    }

    fn entries(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.tasks()).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }

    /// Tells what there is, for a look at a failed test.
    pub fn dump(&self) {
        print_line(&format!("--- left: {:#?}", self.leftovers()));
        for path in self.entries() {
            let logs = ["supervisor.log", "sidecar.log", "source.log"].map(|log| path.join(log));
            for file in std::iter::once(&path).chain(&logs) {
                if let Ok(text) = std::fs::read_to_string(file) {
                    print_line(&format!("--- {}\n{text}", file.display()));
                }
            }
        }
    }

    /// Ends what a failed test has left; its folder goes with the test's.
    pub fn remove(&self) {
        processes::kill_all(&self.tasks().display().to_string());
    }
}
