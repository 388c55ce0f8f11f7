//! The Pythons of this machine.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::super::child::{self, Surroundings};

/// The minor versions of Python 3 to try, best first: connector images are built on the first, most packages take the
/// next ones, too.
const PREFERRED: [u8; 3] = [11, 10, 12];
/// Older ones cannot tell what a package holds.
const OLDEST: u8 = 8;

/// A Python that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreter {
    /// The program itself, behind links and shims.
    pub path: PathBuf,
    /// `3.11.7`.
    pub version: String,
}

/// The version and the program; no site packages, nothing of the user's.
const WHO: [&str; 4] =
    ["-I", "-S", "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3]); print(sys.executable)"];

impl Interpreter {
    /// Asks a program what it is. A name in `PATH` may be a version manager's that leads nowhere.
    pub fn ask(path: &Path, surroundings: Surroundings<'_>) -> Option<Self> {
        let done = child::ask(path, &WHO, surroundings)?;
        let [.., version, executable] = done.lines.as_slice() else { return None };
        let python = Self { path: PathBuf::from(executable), version: version.clone() };
        (python.minor() >= OLDEST && version.starts_with("3.")).then_some(python)
    }

    /// `11` of `3.11.7`.
    fn minor(&self) -> u8 {
        self.version.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or_default()
    }

    /// `3.11`.
    pub fn short(&self) -> String {
        format!("3.{}", self.minor())
    }

    /// What folders made with it are called, e.g. `cp311`.
    pub fn tag(&self) -> String {
        format!("cp3{}", self.minor())
    }
}

/// The Pythons in `PATH`, best first, each asked only when it is its turn: a shim takes a tenth of a second to answer.
pub struct Interpreters<'a> {
    names: std::vec::IntoIter<PathBuf>,
    surroundings: Surroundings<'a>,
    seen: HashSet<String>,
}

impl<'a> Interpreters<'a> {
    /// Looks through `PATH`.
    pub fn of_path(surroundings: Surroundings<'a>) -> Self {
        let mut names: Vec<(usize, PathBuf)> = Vec::new();
        for folder in child::path_folders(surroundings.environment, surroundings.folder) {
            let Ok(entries) = folder.read_dir() else { continue };
            for entry in entries.flatten() {
                if let Some(rank) = entry.file_name().to_str().and_then(rank) {
                    names.push((rank, entry.path()));
                }
            }
        }
        // Stable: of one name the first in `PATH` stays the first.
        names.sort_by_key(|(rank, _)| *rank);
        let names: Vec<PathBuf> = names.into_iter().map(|(_, path)| path).collect();
        Self { names: names.into_iter(), surroundings, seen: HashSet::new() }
    }
}

impl Iterator for Interpreters<'_> {
    type Item = Interpreter;

    /// The next one with a version that was not there before.
    fn next(&mut self) -> Option<Interpreter> {
        loop {
            let path = self.names.next()?;
            if !child::is_executable(&path) {
                continue;
            }
            let Some(python) = Interpreter::ask(&path, self.surroundings) else { continue };
            if self.seen.insert(python.short()) {
                return Some(python);
            }
        }
    }
}

/// How good a name is; `None` for what is no Python 3. The user's own choice comes right after the images' one, then
/// what most packages take, then the newest.
fn rank(name: &str) -> Option<usize> {
    if name == "python3" {
        return Some(1);
    }
    let minor: u8 = name.strip_prefix("python3.")?.parse().ok()?;
    Some(match PREFERRED.iter().position(|preferred| *preferred == minor) {
        Some(0) => 0,
        Some(position) => position + 1,
        None => 2 + PREFERRED.len() + usize::from(u8::MAX - minor),
    })
}

#[cfg(test)]
mod tests {
    use super::rank;

    #[test]
    fn the_python_of_the_images_is_tried_first_and_then_the_users_own() {
        let mut names = [
            "python3.9",
            "python3.14",
            "python3",
            "python3.10",
            "python3.11",
            "python3.12",
            "python",
            "python3-config",
        ]
        .to_vec();
        names.retain(|name| rank(name).is_some());
        names.sort_by_key(|name| rank(name));
        assert_eq!(names, ["python3.11", "python3", "python3.10", "python3.12", "python3.14", "python3.9"]);
    }
}
