//! Folders that a connector may write to as well, and what is read, written and created in them.
//!
//! A name in such a folder may be anything at any time: a link to a file of the host, a FIFO without a writer, an endless
//! file. So every name is opened relative to the folder, without following links and without waiting, and is used only after
//! the open file has the expected type. The folder itself is opened once, before the connector starts.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Any user: recent connectors run as uid 1000, older ones as root.
const FIFO_MODE: Mode = Mode::from_raw_mode(0o666);

/// An open folder. Clones refer to the same one, whatever its path becomes.
#[derive(Debug, Clone)]
pub struct SharedFolder {
    folder: Arc<OwnedFd>,
}

impl SharedFolder {
    /// Opens a folder, which must not be a link.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { folder: Arc::new(rustix::fs::openat(CWD, path, flags, Mode::empty())?) })
    }

    /// The content of a regular file; `None` if there is no file. An error: it is no regular file, or longer than `limit`
    /// bytes.
    pub fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match self.open_as(name, FileType::RegularFile, OFlags::RDONLY) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(io::Error::new(ErrorKind::FileTooLarge, format!("{name} is longer than {limit} bytes")));
        }
        Ok(Some(content))
    }

    /// Replaces a file atomically, whatever has its name now except a folder.
    pub fn replace(&self, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
        let new = format!("{name}.new");
        match rustix::fs::unlinkat(&self.folder, &new, AtFlags::empty()) {
            Err(error) if error != Errno::NOENT => return Err(error.into()),
            _ => {}
        }
        // The file is a new one.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.folder, &new, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(content)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(rustix::fs::renameat(&self.folder, &new, &self.folder, name)?)
    }

    /// Writes a file in place, with the owner and the mode that it has, or creates it.
    pub fn overwrite(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut file = match self.open_as(name, FileType::RegularFile, OFlags::WRONLY) {
            Err(error) if error.kind() == ErrorKind::NotFound => return self.replace(name, content, 0o644),
            file => file?,
        };
        file.set_len(0)?;
        file.write_all(content)
    }

    /// Creates a FIFO that any user may write to. One that exists stays as it is: another user may own it.
    pub fn create_fifo(&self, name: &str) -> io::Result<()> {
        match rustix::fs::mknodat(&self.folder, name, FileType::Fifo, FIFO_MODE, 0) {
            // The umask may have removed bits.
            Ok(()) => Ok(rustix::fs::fchmod(self.open_fifo(name)?, FIFO_MODE)?),
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a FIFO for reading without waiting for a writer.
    pub fn open_fifo(&self, name: &str) -> io::Result<File> {
        self.open_as(name, FileType::Fifo, OFlags::RDONLY)
    }

    /// Opens what has the expected type. A file with a second name is refused: the other one may be outside of the folder.
    fn open_as(&self, name: &str, expected: FileType, access: OFlags) -> io::Result<File> {
        let verify = |stat: Stat| match FileType::from_raw_mode(stat.st_mode) {
            found if found != expected => {
                let text = format!("{name} is {}, not {}", type_name(found), type_name(expected));
                Err(io::Error::new(ErrorKind::InvalidInput, text))
            }
            _ if stat.st_nlink > 1 => {
                Err(io::Error::new(ErrorKind::InvalidInput, format!("{name} is a file with several names")))
            }
            _ => Ok(()),
        };
        // Opening a device may have effects.
        verify(rustix::fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW)?)?;
        let flags = access | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.folder, name, flags, Mode::empty())?;
        // It may have changed meanwhile.
        verify(rustix::fs::fstat(&file)?)?;
        Ok(file.into())
    }
}

fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a folder",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        _ => "a device",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::SharedFolder;

    const SECRET: &str = "host\n";

    /// What a connector may put in place of a file or FIFO, each with a part of the error.
    type Attack = (&'static str, fn(&Path, &Path));
    const ATTACKS: [Attack; 6] = [
        ("a symbolic link", |path, host| std::os::unix::fs::symlink(host, path).expect("a link")),
        ("a symbolic link", |path, host| {
            std::os::unix::fs::symlink(host.with_extension("none"), path).expect("a link");
        }),
        ("a file with several names", |path, host| std::fs::hard_link(host, path).expect("a link")),
        ("a folder", |path, _| std::fs::create_dir(path).expect("a folder")),
        ("a socket", |path, _| drop(std::os::unix::net::UnixListener::bind(path).expect("a socket"))),
        ("a FIFO", |path, _| {
            let mode = rustix::fs::Mode::from_raw_mode(0o666);
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
        }),
    ];

    /// A folder with the attack `name`, and a file of the host.
    fn attacked(attack: Option<&Attack>) -> (tempfile::TempDir, SharedFolder, std::path::PathBuf) {
        let root = tempfile::tempdir().expect("a folder");
        let (host, path) = (root.path().join("host"), root.path().join("shared"));
        std::fs::write(&host, SECRET).expect("a file");
        std::fs::set_permissions(&host, PermissionsExt::from_mode(0o600)).expect("a file");
        std::fs::create_dir(&path).expect("a folder");
        if let Some((_, attack)) = attack {
            attack(&path.join("name"), &host);
        }
        let shared = SharedFolder::open(&path).expect("a folder");
        (root, shared, host)
    }

    /// The file of the host is as it was.
    #[track_caller]
    fn assert_untouched(label: &str, host: &Path) {
        assert_eq!(std::fs::read_to_string(host).expect("a file"), SECRET, "{label}");
        assert_eq!(std::fs::metadata(host).expect("a file").permissions().mode() & 0o777, 0o600, "{label}");
        assert!(!host.with_extension("none").exists(), "{label}");
    }

    #[test]
    fn nothing_but_a_regular_file_is_read_or_overwritten() {
        for attack in &ATTACKS {
            let (_root, shared, host) = attacked(Some(attack));
            for error in
                [shared.read("name", 100).expect_err("read"), shared.overwrite("name", b"x").expect_err("write")]
            {
                assert!(error.to_string().contains(attack.0), "{}: {error}", attack.0);
            }
            assert_untouched(attack.0, &host);
        }
        let (_root, shared, _) = attacked(None);
        assert_eq!(shared.read("name", 3).expect("no file"), None);
        shared.overwrite("name", b"abc").expect("a new file");
        assert_eq!(shared.read("name", 3).expect("a file"), Some(b"abc".to_vec()));
        assert!(shared.read("name", 2).expect_err("too long").to_string().contains("longer than 2 bytes"));
        shared.overwrite("name", b"d").expect("the same file");
        assert_eq!(shared.read("name", 3).expect("a file"), Some(b"d".to_vec()));
    }

    #[test]
    fn nothing_but_a_fifo_is_opened_as_one() {
        for attack in ATTACKS.iter().filter(|(label, _)| *label != "a FIFO") {
            let (_root, shared, host) = attacked(Some(attack));
            shared.create_fifo("name").expect("something has the name");
            shared.open_fifo("name").expect_err(attack.0);
            assert_untouched(attack.0, &host);
        }
        let (root, shared, _) = attacked(None);
        std::fs::write(root.path().join("shared/name"), "").expect("a file");
        let error = shared.open_fifo("name").expect_err("a file").to_string();
        assert_eq!(error, "name is a regular file, not a FIFO");
        shared.create_fifo("new").expect("a FIFO");
        shared.open_fifo("new").expect("without a writer");
        let mode = std::fs::metadata(root.path().join("shared/new")).expect("a FIFO").permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
    }

    #[test]
    fn a_file_is_replaced_whatever_has_its_names() {
        for name in ["name", "name.new"] {
            for attack in ATTACKS.iter().filter(|(label, _)| *label != "a folder") {
                let (root, shared, host) = attacked(None);
                (attack.1)(&root.path().join("shared").join(name), &host);
                shared.replace("name", b"x", 0o644).expect(attack.0);
                assert_eq!(shared.read("name", 1).expect("a file"), Some(b"x".to_vec()), "{}", attack.0);
                assert_untouched(attack.0, &host);
            }
        }
    }

    #[test]
    fn the_folder_itself_is_no_link() {
        let root = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink("/etc", root.path().join("link")).expect("a link");
        SharedFolder::open(&root.path().join("link")).expect_err("a link");
    }
}
