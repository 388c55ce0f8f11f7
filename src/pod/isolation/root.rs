//! The root file system of an isolated program: an empty one in memory, into which its files and directories are mounted.
//! The caller is in a new mount namespace.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::{Content, Mount, Sandbox};

/// An existing directory of every machine from which nothing is mounted.
const BASE: &str = "/sys";
/// Shared memory, as large as a container's.
const SHARED_MEMORY: &str = "/dev/shm";
/// The links of a container's `/dev`.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// The directories of a sandbox that the program may write to.
pub(super) fn writable(sandbox: &Sandbox) -> Vec<PathBuf> {
    let mounts = sandbox.mounts.iter().filter(|mount| matches!(mount.content, Content::Writable(_)));
    mounts.map(|mount| mount.target.clone()).collect()
}

/// Replaces the root file system of this process. An error says what failed and why.
pub(super) fn enter(sandbox: &Sandbox) -> Result<(), String> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    failing("cannot separate the mounts of this machine", rustix::mount::mount_change("/", private))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let mount_memory = |at: &Path, options: &std::ffi::CStr| {
        let mounted = rustix::mount::mount("tmpfs", at, "tmpfs", flags, options);
        mounted.map_err(|error| format!("cannot mount a tmpfs at {}: {error}", at.display()))
    };
    mount_memory(Path::new(BASE), c"mode=0755,size=16m")?;
    // Further directories and files must be readable for the program's user.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    for mount in &sandbox.mounts {
        let target = inside(&mount.target);
        match &mount.content {
            Content::ReadOnly(source) | Content::Writable(source) | Content::Device(source) => {
                failing(&format!("cannot create {}", mount.target.display()), create_like(source, &target))?;
                let bound = rustix::mount::mount_bind_recursive(source, &target);
                failing(&format!("cannot mount {}", source.display()), bound)?;
            }
            Content::Empty => {
                failing(&format!("cannot create {}", mount.target.display()), fs::create_dir_all(&target))?;
                mount_memory(&target, c"mode=0755,size=16m")?;
            }
        }
    }
    let shared = inside(Path::new(SHARED_MEMORY));
    failing("cannot create /dev/shm", fs::create_dir_all(&shared))?;
    mount_memory(&shared, c"mode=1777,size=64m")?;
    let links = DEVICE_LINKS.map(|(path, target)| (path.into(), target.into()));
    for (path, target) in links.iter().chain(&sandbox.links) {
        let link: &PathBuf = path;
        if inside(link).exists() {
            // A directory in which something is mounted.
            continue;
        }
        let made = create_parent(&inside(link)).and_then(|()| symlink(target, inside(link)));
        failing(&format!("cannot create the link {}", link.display()), made)?;
    }
    for (path, text) in &sandbox.files {
        let written = create_parent(&inside(path)).and_then(|()| fs::write(inside(path), text));
        failing(&format!("cannot write {}", path.display()), written)?;
    }
    let processes = inside(Path::new("/proc"));
    failing("cannot create /proc", fs::create_dir_all(&processes))?;
    // Of the PID namespace that this process is in.
    let mounted = rustix::mount::mount("proc", &processes, "proc", flags | MountFlags::NOEXEC, c"");
    failing(
        "cannot mount the file system of processes (in a container whose /proc is masked this is not allowed)",
        mounted,
    )?;
    restrict(&sandbox.mounts)?;
    change_root()
}

/// The path of a file of the new root before it is the root.
fn inside(path: &Path) -> PathBuf {
    Path::new(BASE).join(path.strip_prefix("/").unwrap_or(path))
}

fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Creates an empty file or directory to mount the source over.
fn create_like(source: &Path, target: &Path) -> io::Result<()> {
    let is_directory = source.metadata()?.is_dir();
    if target.exists() {
        return Ok(());
    }
    create_parent(target)?;
    if is_directory { fs::create_dir(target) } else { fs::write(target, "") }
}

/// Makes every mount of the new root safe, also those inside of a mounted directory: without devices and set-user-ID, and
/// read-only unless it is writable.
fn restrict(mounts: &[Mount]) -> Result<(), String> {
    let table =
        fs::read_to_string("/proc/self/mountinfo").map_err(|error| format!("cannot read the mounts: {error}"))?;
    let table: Vec<MountEntry> = table.lines().filter_map(MountEntry::parse).collect();
    // The last one at a path covers the others, with all that is mounted in them.
    let base = table.iter().rfind(|entry| entry.path == Path::new(BASE)).ok_or("the new root is not mounted")?;
    let mut below: Vec<&MountEntry> = vec![base];
    while let Some(new) = table.iter().find(|entry| is_child(entry, &below)) {
        below.push(new);
    }
    for MountEntry { path, flags: present, .. } in below {
        let in_new_root = Path::new("/").join(path.strip_prefix(BASE).unwrap_or(path));
        let owner =
            mounts.iter().rev().find(|mount| in_new_root.starts_with(&mount.target)).map(|mount| &mount.content);
        let added = match owner {
            _ if in_new_root == Path::new(SHARED_MEMORY) || in_new_root == Path::new("/proc") => continue,
            Some(Content::Device(_)) => MountFlags::NOSUID | MountFlags::NOEXEC,
            Some(Content::Writable(_)) => MountFlags::NOSUID | MountFlags::NODEV,
            Some(Content::ReadOnly(_) | Content::Empty) | None => {
                MountFlags::NOSUID | MountFlags::NODEV | MountFlags::RDONLY
            }
        };
        let flags = MountFlags::BIND | *present | added;
        let changed = rustix::mount::mount_remount(path, flags, c"");
        failing(&format!("cannot restrict the mount {}", in_new_root.display()), changed)?;
    }
    Ok(())
}

/// A line of `/proc/self/mountinfo`.
struct MountEntry {
    id: u32,
    parent: u32,
    path: PathBuf,
    flags: MountFlags,
}

impl MountEntry {
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(' ').take(6).collect();
        let [id, parent, _device, _root, path, options] = fields[..] else { return None };
        let flag = |option| match option {
            "ro" => MountFlags::RDONLY,
            "nosuid" => MountFlags::NOSUID,
            "nodev" => MountFlags::NODEV,
            "noexec" => MountFlags::NOEXEC,
            "noatime" => MountFlags::NOATIME,
            "nodiratime" => MountFlags::NODIRATIME,
            "relatime" => MountFlags::RELATIME,
            _ => MountFlags::empty(),
        };
        let flags = options.split(',').map(flag).collect();
        Some(Self { id: id.parse().ok()?, parent: parent.parse().ok()?, path: unescape(path), flags })
    }
}

/// Whether a mount is on one of others and not among them.
fn is_child(entry: &MountEntry, others: &[&MountEntry]) -> bool {
    others.iter().any(|other| other.id == entry.parent) && others.iter().all(|other| other.id != entry.id)
}

/// The kernel writes a blank as `\040`.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    std::ffi::OsString::from_vec(plain).into()
}

fn change_root() -> Result<(), String> {
    let change = || {
        rustix::process::chdir(BASE)?;
        // Both at one place: the old root is on top of the new one until it is unmounted.
        rustix::process::pivot_root(".", ".")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")
    };
    failing("cannot change the root file system", change())
}

fn failing<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}
