//! The environment cache: installed connectors, shared by all commands of this machine.
//!
//! `connectors/NAME@VERSION-cp311` is a virtual environment; it counts as installed once it contains the manifest.
//! `connectors/NAME@VERSION.lock` is locked by the process that installs it. An environment contains its own path, so it
//! is made in place; one without a manifest is incomplete, and removed once its lock is free. Knows nothing of pip.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::super::subprocess::ProcessEnvironment;
use super::interpreter::Interpreter;
use super::package::{EntryPoint, Package};

/// The manifest's file. It is written last and removed first.
const MANIFEST: &str = "syncctl.json";
/// The interval between attempts to take a lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(50);
/// Less free space than a new environment takes counts as a full disk.
const MIN_FREE_BYTES: u64 = 48 * 1024 * 1024;

/// Describes a complete environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `airbyte-source-faker==7.2.1`
    pub requirement: String,
    /// The Python version, e.g. `3.11.7`.
    pub python: String,
    /// What starts the connector.
    pub start: EntryPoint,
    /// The interpreter that it was installed with. Older environments lack it.
    #[serde(default)]
    pub interpreter: Option<PathBuf>,
    /// Whether nothing of the installation can change the environment now. Older ones may have files that other users
    /// cannot read.
    #[serde(default)]
    pub is_sealed: bool,
}

/// All installed connectors.
pub struct EnvironmentCache {
    /// Its directory.
    pub directory: PathBuf,
}

impl EnvironmentCache {
    /// The environments in syncctl's cache directory.
    pub fn new(cache: &Path) -> Self {
        Self { directory: cache.join("connectors") }
    }

    /// Creates the directory and locks a package until the lock is dropped; `None` if cancelled first. Calls `on_wait` with
    /// the process id of the lock's holder, if known, at each attempt.
    pub fn lock(
        &self,
        package: &Package,
        is_cancelled: &dyn Fn() -> bool,
        on_wait: &mut dyn FnMut(Option<u32>),
    ) -> std::io::Result<Option<Lock>> {
        DirBuilder::new().recursive(true).mode(0o755).create(&self.directory)?;
        let path = self.directory.join(format!("{}.lock", key(package)));
        loop {
            if let Some(lock) = Lock::try_acquire(&path)? {
                return Ok(Some(lock));
            }
            on_wait(Lock::holder(&path));
            if is_cancelled() {
                return Ok(None);
            }
            std::thread::sleep(LOCK_INTERVAL);
        }
    }

    /// The environment of a package for an interpreter, which may not exist yet.
    pub fn environment(&self, package: &Package, python: &Interpreter) -> Environment {
        Environment { directory: self.directory.join(format!("{}-cp3{}", key(package), python.minor())) }
    }

    /// A complete environment of a package, with its interpreter, which still works.
    pub fn find(
        &self,
        package: &Package,
        process: ProcessEnvironment<'_>,
    ) -> Option<(Environment, Manifest, Interpreter)> {
        let prefix = format!("{}-", key(package));
        let mut names = self.names();
        names.retain(|name| name.starts_with(&prefix));
        names.sort_by(|one, other| other.cmp(one));
        names.into_iter().find_map(|name| {
            let environment = Environment { directory: self.directory.join(name) };
            let manifest = environment.manifest().filter(|manifest| manifest.requirement == package.requirement())?;
            let interpreter = self.interpreter(&environment, &manifest, process)?;
            Some((environment, manifest, interpreter))
        })
    }

    /// Removes what killed processes left behind: incomplete environments, and lock files without a holder.
    pub fn remove_incomplete(&self) {
        for name in self.names() {
            let environment = Environment { directory: self.directory.join(&name) };
            let (key, is_lock) = match name.strip_suffix(".lock") {
                Some(key) => (key, true),
                None if environment.manifest().is_some() => continue,
                None => (name.rsplit_once('-').map_or(name.as_str(), |(key, _)| key), false),
            };
            // If it is locked, its holder is still installing. Dropping the lock removes its file.
            let Ok(Some(_lock)) = Lock::try_acquire(&self.directory.join(format!("{key}.lock"))) else { continue };
            if !is_lock && environment.manifest().is_none() {
                environment.remove().ok();
            }
        }
    }

    /// The interpreter of an environment if it runs and has the version of the installation: an upgrade of the system may
    /// have removed or replaced it. The environment's own program is not run: it is a file of the package's.
    fn interpreter(
        &self,
        environment: &Environment,
        manifest: &Manifest,
        process: ProcessEnvironment<'_>,
    ) -> Option<Interpreter> {
        let script_exists = match &manifest.start {
            EntryPoint::Script(name) => environment.script(name).is_file(),
            EntryPoint::Run(_) | EntryPoint::Module(_) => true,
        };
        let of_link = || environment.python().canonicalize().ok();
        let path = manifest.interpreter.clone().or_else(of_link)?;
        let cache = self.directory.canonicalize().ok()?;
        let is_outside = path.canonicalize().is_ok_and(|path| !path.starts_with(&cache));
        let minor = |version: &str| version.rsplit_once('.').map(|(minor, _)| minor.to_owned());
        if !script_exists || !is_outside || !environment.python().exists() {
            return None;
        }
        Interpreter::detect(&path, process).filter(|python| minor(&python.version) == minor(&manifest.python))
    }

    fn names(&self) -> Vec<String> {
        let entries = self.directory.read_dir().into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

/// `NAME@VERSION`: neither can contain an at sign.
fn key(package: &Package) -> String {
    format!("{}@{}", package.name, package.version)
}

/// A virtual environment with one connector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// Its directory.
    pub directory: PathBuf,
}

impl Environment {
    /// Its interpreter.
    pub fn python(&self) -> PathBuf {
        self.directory.join("bin/python")
    }

    /// A script of an installed package.
    pub fn script(&self, name: &str) -> PathBuf {
        self.directory.join("bin").join(name)
    }

    /// What starts the connector, after its interpreter.
    pub fn arguments(&self, start: &EntryPoint) -> Vec<String> {
        // `-I` ignores the Python settings of the user's shell; `-u`, as in the images, flushes each message.
        let options = ["-I", "-u", "-X", "utf8"].map(str::to_owned);
        let start = match start {
            EntryPoint::Script(name) => vec![self.script(name).to_string_lossy().into_owned()],
            EntryPoint::Run(module) => vec!["-c".to_owned(), format!("from {module} import run; run()")],
            EntryPoint::Module(module) => vec!["-m".to_owned(), module.clone()],
        };
        options.into_iter().chain(start).collect()
    }

    /// The directory for temporary files of the installation, which is removed with the environment.
    pub fn scratch(&self) -> PathBuf {
        self.directory.join("scratch")
    }

    fn manifest(&self) -> Option<Manifest> {
        serde_json::from_slice(&std::fs::read(self.directory.join(MANIFEST)).ok()?).ok()
    }

    /// Declares the environment complete.
    pub fn write_manifest(&self, manifest: &Manifest) -> std::io::Result<()> {
        let temporary = self.directory.join(format!("{MANIFEST}.new"));
        // The package's code was able to put a link there.
        std::fs::remove_file(&temporary).or_else(ignore_absent)?;
        let mut file = File::create_new(&temporary)?;
        file.write_all(&serde_json::to_vec(manifest)?)?;
        file.sync_all()?;
        std::fs::rename(temporary, self.directory.join(MANIFEST))
    }

    /// Removes the directory, if there is one.
    pub fn remove(&self) -> std::io::Result<()> {
        std::fs::remove_file(self.directory.join(MANIFEST)).or_else(ignore_absent)?;
        std::fs::remove_dir_all(&self.directory).or_else(ignore_absent)
    }

    /// Whether the disk has no space for the smallest connector.
    pub fn is_disk_full(&self) -> bool {
        let disk = self.directory.parent().and_then(|directory| rustix::fs::statvfs(directory).ok());
        disk.is_some_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < MIN_FREE_BYTES)
    }
}

fn ignore_absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// A lock between processes, which the kernel releases when all holders have ended. The file exists while it is held, and
/// contains the holder's process id.
pub struct Lock {
    path: PathBuf,
    /// The open file: a child process that inherits it holds the lock, too.
    pub file: File,
}

impl Lock {
    fn try_acquire(path: &Path) -> std::io::Result<Option<Self>> {
        loop {
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            // The previous holder may have removed the file between the two calls: then the lock is a new file by now.
            if path.metadata().is_ok_and(|current| file.metadata().is_ok_and(|ours| ours.ino() == current.ino())) {
                // Only informs others. A full disk shows up where it matters.
                file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).ok();
                return Ok(Some(Self { path: path.to_owned(), file }));
            }
        }
    }

    fn holder(path: &Path) -> Option<u32> {
        let mut text = String::new();
        File::open(path).ok()?.take(20).read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before the release, so that the removed file is never that of a later holder.
        std::fs::remove_file(&self.path).ok();
    }
}
