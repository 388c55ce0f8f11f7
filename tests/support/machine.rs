//! The local tasks of one test: their directories, and the connectors that all tests share.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::processes;
use super::program::print_line;

/// The directories of one test.
pub struct Machine {
    state: PathBuf,
}

impl Machine {
    /// Below the directory of a test.
    pub fn new(directory: &Path) -> Self {
        Self { state: directory.join("state") }
    }

    /// The variables for the program. Connectors are installed once for all tests.
    pub fn settings(&self) -> impl Iterator<Item = (&'static str, String)> {
        let required =
            |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `make test`"));
        [
            ("SYNCCTL_ENGINE", "local".to_owned()),
            ("SYNCCTL_STATE_DIR", self.state.display().to_string()),
            ("SYNCCTL_CACHE_DIR", required("SYNCCTL_TEST_CONNECTORS")),
            ("SYNCCTL_LOCAL_RUNTIME", "python".to_owned()),
            ("PIP_FIND_LINKS", required("SYNCCTL_TEST_WHEELS")),
            ("UV_FIND_LINKS", required("SYNCCTL_TEST_WHEELS")),
        ]
        .into_iter()
    }

    /// The directory of the tasks.
    pub fn tasks(&self) -> PathBuf {
        self.state.join("tasks")
    }

    /// The Pods in the records of the tasks.
    pub fn pods(&self) -> Vec<Value> {
        let records =
            self.entries().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        records
            .filter_map(|path| {
                let record: Value = serde_json::from_slice(&std::fs::read(path).ok()?).expect("a record is JSON");
                Some(record["pod"].clone())
            })
            .collect()
    }

    /// Records, directories and processes of tasks.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = self
            .entries()
            .iter()
            .map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
            .filter(|name| name != ".making")
            .collect();
        let waiting = std::fs::read_dir(self.state.join("waiting")).into_iter().flatten().flatten();
        left.extend(waiting.map(|entry| format!("waiting {}", entry.file_name().to_string_lossy())));
        let mark = self.tasks().display().to_string();
        left.extend(processes::with(&mark).iter().map(|(pid, command)| format!("process {pid}: {command}")));
        left
    }

    fn entries(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.tasks()).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }

    /// Prints records and logs after a failed test.
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

    /// Kills the processes of a failed test; its directory is removed with the test's.
    pub fn remove(&self) {
        processes::kill_all(&self.tasks().display().to_string());
    }
}
