//! The Python interpreters of this machine.

use std::path::{Path, PathBuf};

use super::super::subprocess::{self, ProcessEnvironment};

/// The preferred minor versions of Python 3, best first: connector images are built with the first, most packages support
/// the others, too.
const PREFERRED: [u8; 3] = [11, 10, 12];
/// `importlib.metadata` exists from here on.
const OLDEST: u8 = 8;
/// Prints version, directory and path, without site packages and user settings.
const DESCRIBE: [&str; 4] =
    ["-I", "-S", "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3], sys.base_prefix); print(sys.executable)"];

/// An interpreter that works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreter {
    /// The program itself, behind links and shims.
    pub path: PathBuf,
    /// `3.11.7`
    pub version: String,
    /// The directory of its installation, e.g. `/usr`.
    pub prefix: PathBuf,
}

impl Interpreter {
    /// Runs a program to learn its version; a name in `PATH` may be a version manager's shim without an interpreter.
    pub fn detect(path: &Path, process: ProcessEnvironment<'_>) -> Option<Self> {
        let output = subprocess::query(path, &DESCRIBE, process)?;
        let [.., description, executable] = output.lines.as_slice() else { return None };
        let (version, prefix) = description.split_once(' ')?;
        let python = Self { path: executable.into(), version: version.to_owned(), prefix: prefix.into() };
        (version.starts_with("3.") && python.minor() >= OLDEST).then_some(python)
    }

    /// The interpreters in `PATH`, best first, then those that uv installed. Each is run only when its turn comes: a shim
    /// takes a tenth of a second.
    pub fn all<'a>(uv: Option<&'a Path>, process: ProcessEnvironment<'a>) -> impl Iterator<Item = Self> + 'a {
        let of_uv = move || uv.map(|uv| paths_of_uv(uv, process)).unwrap_or_default();
        let paths = paths_in_path(process).into_iter().chain(std::iter::once_with(of_uv).flatten());
        paths.filter(|path| subprocess::is_executable(path)).filter_map(move |path| Self::detect(&path, process))
    }

    /// The directories of its installation, by both of its names: uv links the one of a minor version to that of a patch.
    pub fn directories(&self) -> Vec<PathBuf> {
        let of_path = self.path.parent().and_then(Path::parent).map(Path::to_owned);
        [Some(self.prefix.clone()), of_path.filter(|path| *path != self.prefix)].into_iter().flatten().collect()
    }

    /// `11` of `3.11.7`
    pub fn minor(&self) -> u8 {
        self.version.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or_default()
    }

    /// Whether it can make virtual environments: Debian packages the modules separately.
    pub fn has_venv(&self, process: ProcessEnvironment<'_>) -> bool {
        subprocess::query(&self.path, &["-I", "-c", "import venv, ensurepip"], process).is_some()
    }
}

fn paths_in_path(process: ProcessEnvironment<'_>) -> Vec<PathBuf> {
    let entries = subprocess::path_directories(process).into_iter().filter_map(|path| path.read_dir().ok()).flatten();
    let mut ranked: Vec<(usize, PathBuf)> =
        entries.flatten().filter_map(|entry| Some((rank(entry.file_name().to_str()?)?, entry.path()))).collect();
    // Stable: of equal names the first in `PATH` stays the first.
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, path)| path).collect()
}

fn paths_of_uv(uv: &Path, process: ProcessEnvironment<'_>) -> Vec<PathBuf> {
    let arguments = ["python", "list", "--only-installed", "--no-python-downloads"];
    let Some(output) = subprocess::query(uv, &arguments, process) else { return Vec::new() };
    // `cpython-3.12.1-linux-x86_64-gnu    /path/to/python3.12 -> …`
    let paths = output.lines.iter().filter_map(|line| line.split_whitespace().nth(1)).map(PathBuf::from);
    paths.filter(|path| path.is_absolute()).collect()
}

/// The order of program names, `None` for any other program: the version of the images, the user's default, the other
/// preferred versions, the rest from the newest on.
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
    fn the_version_of_the_images_comes_first_and_then_the_users_default() {
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
