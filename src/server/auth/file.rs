//! The tokens file: read at the start, and again whenever its content changes.
//!
//! The content is compared, so that it does not matter how a new version gets there: by a rename, by another target of a
//! symbolic link as in a Secret of Kubernetes, or written in place. A version counts once it has been read twice, so that
//! one that is still being written does not.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};

use super::entries;
use super::named::NamedToken;

/// A larger file is refused.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// How often the file is read.
const INTERVAL: Duration = Duration::from_millis(500);

/// The tokens of the last valid version.
pub struct TokensFile {
    path: PathBuf,
    tokens: RwLock<Arc<[Arc<NamedToken>]>>,
}

/// The content, or why there is none.
type Version = Result<String, String>;

/// Reads a tokens file, also through symbolic links. The error names the file.
pub fn read(path: &Path) -> Result<String, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", path.display());
    // Opening a FIFO would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(&error))?;
    let stat = rustix::fs::fstat(&file).map_err(|error| failed(&error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(failed(&"it is not a regular file"));
    }
    if Mode::from_raw_mode(stat.st_mode).contains(Mode::WOTH) {
        return Err(failed(&"every user may write to it: chmod o-w"));
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::from(file).take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| failed(&error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(failed(&format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| failed(&"it is not UTF-8"))
}

/// What is known of the versions of the file.
struct Versions {
    /// The last one that was tried, valid or not.
    last: Version,
    /// The one that was read last.
    seen: Version,
}

impl Versions {
    /// Whether a version that was just read is to be tried.
    fn is_new(&mut self, read: Version) -> bool {
        let is_stable = self.seen == read;
        self.seen = read;
        let is_new = is_stable && self.seen != self.last;
        if is_new {
            self.last = self.seen.clone();
        }
        is_new
    }
}

impl TokensFile {
    /// Reads the file, and again on a thread of its own until the tokens are dropped.
    pub fn open(path: &Path) -> Result<Arc<Self>, String> {
        let text = read(path)?;
        let tokens = parse(path, &text)?.into_iter().map(Arc::new).collect();
        let file = Arc::new(Self { path: path.to_owned(), tokens: RwLock::new(tokens) });
        let versions = Versions { last: Ok(text.clone()), seen: Ok(text) };
        let watched = Arc::downgrade(&file);
        let thread = std::thread::Builder::new().name("tokens".to_owned());
        thread.spawn(move || watch(&watched, versions)).map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(file)
    }

    /// The current tokens.
    pub fn tokens(&self) -> Arc<[Arc<NamedToken>]> {
        Arc::clone(&self.tokens.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the tokens of a new version; the error is why they stay as they are.
    fn reload(&self, version: &Version) -> Result<usize, String> {
        let new = parse(&self.path, version.as_deref().map_err(Clone::clone)?)?;
        let old = self.tokens();
        let with_requests = |token: NamedToken| match old.iter().find(|old| old.name == token.name) {
            Some(old) => Arc::new(NamedToken { recent: Arc::clone(&old.recent), ..token }),
            None => Arc::new(token),
        };
        let tokens: Arc<[_]> = new.into_iter().map(with_requests).collect();
        let count = tokens.len();
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = tokens;
        Ok(count)
    }
}

fn parse(path: &Path, text: &str) -> Result<Vec<NamedToken>, String> {
    entries::parse(text).map_err(|error| format!("{}: {error}", path.display()))
}

fn watch(file: &Weak<TokensFile>, mut versions: Versions) {
    loop {
        std::thread::sleep(INTERVAL);
        let Some(file) = file.upgrade() else { return };
        if !versions.is_new(read(&file.path)) {
            continue;
        }
        match file.reload(&versions.last) {
            Ok(tokens) => tracing::info!(file = %file.path.display(), tokens, "read the changed tokens"),
            Err(error) => tracing::warn!(error, "cannot use the changed tokens: the ones from before stay in use"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{INTERVAL, MAX_FILE_BYTES, TokensFile, read};
    use crate::server::auth::{Tokens, Unidentified, hashed};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;
    use std::time::{Duration, Instant};

    fn entry(name: &str, more: &str) -> String {
        format!("- name: {name}\n  hash: {}\n{more}", hashed(&format!("token-{name}"), "salt", &"secret".into()))
    }

    fn write(path: &Path, text: &str) {
        fs::write(path, text).expect("a file");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("our file");
    }

    fn names(file: &TokensFile) -> Vec<String> {
        file.tokens().iter().map(|token| token.name.clone()).collect()
    }

    #[track_caller]
    fn wait_for(file: &TokensFile, expected: &str) {
        let deadline = Instant::now() + Duration::from_mins(2);
        while names(file) != [expected] {
            assert!(Instant::now() < deadline, "{expected}: {:?}", names(file));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_new_version_counts_however_it_gets_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens.yaml");
        write(&path, &entry("first", ""));
        let file = TokensFile::open(&path).expect("a valid file");
        write(&path, &entry("in-place", ""));
        wait_for(&file, "in-place");
        write(&folder.path().join("new"), &entry("renamed", ""));
        fs::rename(folder.path().join("new"), &path).expect("one file system");
        wait_for(&file, "renamed");
        // As the kubelet writes a Secret.
        for version in ["1", "2"] {
            fs::create_dir(folder.path().join(version)).expect("a folder");
            write(&folder.path().join(version).join("tokens.yaml"), &entry(&format!("secret-{version}"), ""));
        }
        symlink("1", folder.path().join("..data")).expect("a link");
        symlink("..data/tokens.yaml", folder.path().join("link")).expect("a link");
        fs::rename(folder.path().join("link"), &path).expect("one file system");
        wait_for(&file, "secret-1");
        symlink("2", folder.path().join("..new")).expect("a link");
        fs::rename(folder.path().join("..new"), folder.path().join("..data")).expect("one file system");
        wait_for(&file, "secret-2");
        // A version that cannot be used changes nothing, and the next one counts.
        for broken in ["", "- name: x\n", "no list"] {
            write(&folder.path().join("2/tokens.yaml"), broken);
            std::thread::sleep(INTERVAL * 4);
            assert_eq!(names(&file), ["secret-2"], "{broken}");
        }
        fs::remove_file(&path).expect("it exists");
        std::thread::sleep(INTERVAL * 4);
        assert_eq!(names(&file), ["secret-2"]);
        write(&path, &entry("last", ""));
        wait_for(&file, "last");
    }

    #[test]
    fn a_version_counts_once_it_was_read_twice_and_a_broken_one_is_tried_once() {
        let (old, new, broken) = (Ok("old".to_owned()), Ok("new".to_owned()), Err("gone".to_owned()));
        let mut versions = super::Versions { last: old.clone(), seen: old.clone() };
        let reads = [&old, &new, &broken, &new, &new, &new, &broken, &broken, &broken, &new, &new];
        let tried: Vec<bool> = reads.map(|read| versions.is_new(read.clone())).to_vec();
        assert_eq!(tried, [false, false, false, false, true, false, false, true, false, false, true]);
    }

    #[test]
    fn only_a_regular_file_of_bounded_size_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        write(&at("large"), &"#".repeat(usize::try_from(MAX_FILE_BYTES).expect("a small number") + 1));
        write(&at("open"), "[]");
        fs::set_permissions(at("open"), fs::Permissions::from_mode(0o666)).expect("our file");
        fs::write(at("binary"), [0xff]).expect("a file");
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), 0o600.into()).expect("a FIFO");
        symlink(at("loop"), at("loop")).expect("a link");
        for (name, expected) in [
            ("large", "larger than"),
            ("open", "every user may write"),
            ("binary", "not UTF-8"),
            ("fifo", "not a regular file"),
            ("", "not a regular file"),
            ("missing", "No such file"),
            ("loop", "cannot read"),
        ] {
            let error = read(&at(name)).expect_err(name);
            assert!(error.contains(expected), "{name}: {error}");
        }
        assert!(read(Path::new("/dev/zero")).expect_err("endless").contains("not a regular file"));
    }

    #[test]
    fn a_named_token_counts_until_it_expires_and_an_unnamed_one_has_no_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens.yaml");
        write(&path, &(entry("a", "  expires: 2030-01-01T00:00:00+02:00\n") + &entry("b", "")));
        let parse = |auth: Option<&str>| {
            let auth = auth.map(Into::into);
            Tokens::parse(auth.as_ref(), None, Some(&"other, secret".into())).expect("tokens")
        };
        let tokens = parse(Some("plain")).with_file(&path).expect("a valid file");
        let identify = |token: &str, now: &str| {
            let caller = tokens.identify_at(Some(&format!("Bearer {token}")), now.parse().expect("a time"))?;
            Ok(caller.name().map(str::to_owned))
        };
        let (before, after) = ("2029-12-31T21:59:59Z", "2029-12-31T22:00:00Z");
        assert_eq!(identify("token-a", before), Ok(Some("a".to_owned())));
        assert_eq!(identify("token-a", after), Err(Unidentified::Expired("a".to_owned())));
        assert_eq!(identify("token-b", after), Ok(Some("b".to_owned())));
        assert_eq!(identify("plain", after), Ok(None));
        for unknown in ["token-c", "a", "salt", &hashed("token-a", "salt", &"secret".into())] {
            assert_eq!(identify(unknown, before), Err(Unidentified::Unknown), "{unknown}");
        }
        let alone = parse(None).with_file(&path).expect("a valid file");
        assert!(!alone.is_open() && alone.identify(None).is_err());
        write(&path, "[]");
        assert!(!parse(None).with_file(&path).expect("no token at all").is_open());
    }
}
