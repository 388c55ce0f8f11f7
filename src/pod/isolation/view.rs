//! What an isolated program sees of this machine: the operating system's programs and libraries, the few files of `/etc` that
//! programs need, devices without state, and what the caller adds. Nothing of other users, tasks and services.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Content, Mount, Sandbox, TaskUser};

/// Directories of programs and libraries. Where one is a link, as on most distributions, it stays one.
const SYSTEM: [&str; 9] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store"];
/// Files and directories of `/etc`: names and addresses, certificates, time, the dynamic linker, and what programs that
/// start others need. No secrets, except that `ssl/private` keeps its own mode.
const ETC: [&str; 30] = [
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "fonts",
    "gai.conf",
    "host.conf",
    "hosts",
    "java",
    "java-11-openjdk",
    "java-17-openjdk",
    "java-21-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "mime.types",
    "networks",
    "nsswitch.conf",
    "openssl",
    "os-release",
    "pki/ca-trust",
    "pki/tls/certs",
    "pki/tls/cert.pem",
    "pki/tls/openssl.cnf",
    "protocols",
    "resolv.conf",
    "services",
    "timezone",
];
/// The parts of `/etc/ssl` without private keys.
const SSL: [&str; 3] = ["certs", "cert.pem", "openssl.cnf"];
/// No terminal: a program could type into it.
const DEVICES: [&str; 5] = ["full", "null", "random", "urandom", "zero"];
/// The parts of an interpreter's directory that are mounted where the whole would show private files.
const INTERPRETER_PARTS: [&str; 6] = ["bin", "lib", "lib64", "libexec", "share", "ssl"];

/// Collects what a program sees.
#[derive(Debug, Clone, Default)]
pub struct View {
    sandbox: Sandbox,
    /// Directories that must not be seen, whatever else is.
    private: Vec<PathBuf>,
}

impl View {
    /// Only what belongs to the operating system.
    pub fn of_system() -> Self {
        let mut view = Self::default();
        for path in SYSTEM.map(Path::new) {
            match fs::read_link(path) {
                Ok(target) => view.sandbox.links.push((path.to_owned(), target)),
                Err(_) => view.read_only(path),
            }
        }
        for path in ETC.iter().map(|name| Path::new("/etc").join(name)) {
            view.read_only(&path);
        }
        for path in SSL.iter().map(|name| Path::new("/etc/ssl").join(name)) {
            view.read_only(&path);
        }
        for path in DEVICES.iter().map(|name| Path::new("/dev").join(name)).filter(|path| path.exists()) {
            view.add(&path, Content::Device(path.clone()));
        }
        view.sandbox.links.push(("/var/tmp".into(), "/tmp".into()));
        view
    }

    /// Hides directories inside of others that are seen. To be called before anything in them is added.
    pub fn hide(&mut self, directories: &[PathBuf]) {
        for directory in directories {
            let Ok(directory) = directory.canonicalize() else { continue };
            if self.is_seen(&directory) {
                self.add(&directory, Content::Empty);
            }
            self.private.push(directory);
        }
    }

    /// Shows a file or directory at its own path, unless it does not exist or contains what is hidden.
    pub fn read_only(&mut self, path: &Path) {
        let Ok(source) = path.canonicalize() else { return };
        let is_private = self.private.iter().any(|private| private.starts_with(&source));
        if !is_private && source.parent().is_some() {
            self.add(path, Content::ReadOnly(source));
        }
    }

    /// Shows the installation of an interpreter, e.g. of `~/.pyenv/versions/3.11.7`.
    pub fn interpreter(&mut self, prefix: &Path) {
        if self.is_seen(prefix) {
            return;
        }
        let contains_private = self.private.iter().any(|private| private.starts_with(prefix));
        if !contains_private {
            return self.read_only(prefix);
        }
        for part in INTERPRETER_PARTS {
            self.read_only(&prefix.join(part));
        }
    }

    /// Shows a directory of the caller's at another path.
    pub fn mount(&mut self, source: &Path, target: &str, is_writable: bool) {
        let source = source.to_owned();
        let content = if is_writable { Content::Writable(source) } else { Content::ReadOnly(source) };
        self.add(Path::new(target), content);
    }

    /// Shows a directory at its own path, writable.
    pub fn writable(&mut self, path: &Path) {
        self.add(path, Content::Writable(path.to_owned()));
    }

    /// Shows the files that variables of the environment name by absolute paths: certificates, settings, libraries.
    pub fn named_files<'a>(&mut self, values: impl Iterator<Item = &'a str>) {
        for value in values {
            // Lists are separated by colons, blanks or commas; some are URLs.
            for word in value.split([':', ' ', ',']) {
                let path = Path::new(word.strip_prefix("//").map_or(word, |path| path));
                if path.is_absolute() && !self.is_seen(path) {
                    self.read_only(path);
                }
            }
        }
    }

    /// Sets the user and what `/etc/passwd` shows of it.
    pub fn run_as(&mut self, user: Option<&TaskUser>, home: &Path) {
        let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let (uid, gid) = user.map_or(own, |user| (user.id(), user.id()));
        let root = if uid == 0 { "" } else { "root:x:0:0:root:/:/bin/sh\n" };
        let passwd = format!("{root}connector:x:{uid}:{gid}:connector:{}:/bin/sh\n", home.display());
        let group = format!("{}connector:x:{gid}:\n", if gid == 0 { "" } else { "root:x:0:\n" });
        self.sandbox.user = user.map(TaskUser::id);
        self.sandbox.files.extend([("/etc/passwd".into(), passwd), ("/etc/group".into(), group)]);
        home.clone_into(&mut self.sandbox.working_directory);
    }

    /// The sandbox with all that was added.
    pub fn into_sandbox(self) -> Sandbox {
        self.sandbox
    }

    /// The same for a program that starts with a line on stdin and ends with the end of stdin.
    pub fn into_sandbox_that_follows_stdin(self) -> Sandbox {
        Sandbox { follows_stdin: true, ..self.sandbox }
    }

    fn add(&mut self, path: &Path, content: Content) {
        // The launcher gets paths as text. Nothing of the system has another one.
        if path.to_str().is_some() {
            self.sandbox.mounts.push(Mount { target: path.to_owned(), content });
        }
    }

    /// Whether the program sees a path of this machine.
    fn is_seen(&self, path: &Path) -> bool {
        let mount = self.sandbox.mounts.iter().rev().find(|mount| path.starts_with(&mount.target));
        mount.is_some_and(|mount| matches!(&mount.content, Content::ReadOnly(source) if *source == mount.target))
    }
}
