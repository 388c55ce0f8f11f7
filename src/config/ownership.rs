//! Who can change a directory of ours, as ssh asks before it reads a key: whoever can replace the folder or one above it
//! decides what runs as this user.

use std::fs::{Metadata, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use crate::env::Variable;
use crate::failure::{Class, Failure};

/// More links than this are a circle.
const MAX_LINKS: usize = 40;
const STICKY: u32 = 0o1000;

/// The user of this process.
#[derive(Debug, Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

/// Refuses a directory that another user owns or can change, as far as it exists, and the same of each directory and link
/// on its path.
pub(super) fn check(directory: &Path, variable: &Variable) -> Result<(), Failure> {
    let user = User { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    check_for(user, directory).map_err(|problem| {
        let text = format!("cannot use {}: {problem}", directory.display());
        let hint = format!("correct its owner or mode, or set {} to a directory of this user alone", variable.name);
        Failure::new(Class::LocalError, text).with_hint(hint)
    })
}

fn check_for(user: User, directory: &Path) -> Result<(), String> {
    let mut rest: Vec<PathBuf> = components(directory);
    let (mut path, mut links) = (PathBuf::from("/"), 0);
    while let Some(next) = rest.pop() {
        let candidate = path.join(&next);
        let metadata = match candidate.symlink_metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // Whatever needs it reports why it cannot be used.
            Err(_) => return Ok(()),
        };
        if !metadata.is_symlink() {
            path = candidate;
            check_directory(user, &path, &metadata, rest.is_empty())?;
            continue;
        }
        links += 1;
        if metadata.uid() != 0 && metadata.uid() != user.uid {
            return Err(format!("{} is a link of another user (uid {})", candidate.display(), metadata.uid()));
        }
        let target = candidate.read_link().map_err(|error| format!("{}: {error}", candidate.display()))?;
        if links > MAX_LINKS {
            return Err(format!("{} leads to too many links", candidate.display()));
        }
        if target.is_absolute() {
            path = PathBuf::from("/");
        }
        rest.extend(components(&target));
    }
    Ok(())
}

/// The parts of a path, the last one first.
fn components(path: &Path) -> Vec<PathBuf> {
    let is_part = |part: &Component| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().rev().filter(is_part).map(|part| part.as_os_str().into()).collect()
}

fn check_directory(user: User, path: &Path, metadata: &Metadata, is_own: bool) -> Result<(), String> {
    let (owner, mode) = (metadata.uid(), metadata.mode());
    if owner != user.uid && owner != 0 {
        return Err(format!("{} belongs to another user (uid {owner})", path.display()));
    }
    // In a folder like /tmp others can create files, but not replace this one.
    if mode & STICKY != 0 && !is_own {
        return Ok(());
    }
    if mode & 0o002 != 0 {
        return Err(format!("every user can write to {} (mode {:o})", path.display(), mode & 0o7777));
    }
    if mode & 0o020 == 0 || metadata.gid() == 0 {
        return Ok(());
    }
    if metadata.gid() != user.gid {
        return Err(format!("the group {} can write to {} (mode {:o})", metadata.gid(), path.display(), mode & 0o7777));
    }
    if is_own {
        // Made under a umask of 002, which trusts the user's own group.
        std::fs::set_permissions(path, Permissions::from_mode(mode & 0o7755)).ok();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{User, check_for};
    use std::fs::{Permissions, create_dir, set_permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
    use std::path::Path;

    const ORDINARY: u32 = 54_321;

    #[test]
    fn a_directory_that_another_user_can_change_is_refused_with_what_is_wrong() {
        let root = tempfile::tempdir().expect("a directory");
        if rustix::process::geteuid().is_root() {
            // Root is trusted, and its group.
            chown(root.path(), Some(ORDINARY), Some(ORDINARY)).expect("root");
        }
        let metadata = root.path().metadata().expect("a directory");
        let me = User { uid: metadata.uid(), gid: metadata.gid() };
        let another = User { uid: me.uid + 1, gid: me.gid + 1 };
        let other_group = User { gid: me.gid + 1, ..me };
        let own = |path: &Path| lchown(path, Some(me.uid), Some(me.gid)).expect("the owner");
        let make = |name: &str, mode: u32| {
            let path = root.path().join(name);
            create_dir(&path).expect("a directory");
            own(&path);
            set_permissions(&path, Permissions::from_mode(mode)).expect("ours");
            path
        };
        let (good, open, shared) = (make("good", 0o755), make("open", 0o777), make("shared", 0o775));
        let sticky = make("sticky", 0o1777);
        make("sticky/in", 0o700);
        let link = |name: &str| root.path().join(name);
        for (name, target) in [("link", &good), ("link-to-open", &open)] {
            symlink(target, link(name)).expect("a link");
            own(&link(name));
        }
        for (label, user, path, expected) in [
            ("good", me, good.join("state"), None),
            ("through a link of ours", me, link("link").join("x"), None),
            ("below a sticky one", me, sticky.join("in"), None),
            ("sticky itself", me, sticky.clone(), Some("every user can write to")),
            ("open", me, open.join("state"), Some("every user can write to")),
            ("through a link to it", me, link("link-to-open").join("x"), Some("every user can write to")),
            ("of another group", other_group, shared.join("x"), Some("can write to")),
            ("of our own group", me, shared.clone(), None),
            ("of another user", another, good.join("state"), Some("another user")),
            ("through a link of another user", another, link("link").join("x"), Some("another user")),
        ] {
            let problem = check_for(user, &path).err();
            assert_eq!(problem.is_some(), expected.is_some(), "{label}: {problem:?}");
            assert!(problem.unwrap_or_default().contains(expected.unwrap_or_default()), "{label}");
        }
        assert_eq!(shared.metadata().expect("a directory").mode() & 0o777, 0o755);
        assert_eq!(check_for(me, Path::new("/nonexistent/state")), Ok(()));
    }
}
