//! The programs of PostgreSQL on this machine: where they are, which major version they have, how to install them.
//!
//! Debian and others install them outside of PATH, several versions next to each other. A data directory works with one
//! major version alone, which is then looked for in all places.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::account::Account;
use super::directory::{ProgramSearch, ServerDirectory};
use super::errors::unavailable;
use crate::failure::Failure;

/// Servers before it write no status to their pid file.
const MIN_VERSION: u32 = 10;

/// Where packages install them: the parent, the prefix of a name with a version in it, and the directory below that.
const PLACES: [(&str, &str, &str); 9] = [
    // Debian, Ubuntu
    ("/usr/lib/postgresql", "", "bin"),
    // Fedora and others with the packages of the PostgreSQL project
    ("/usr", "pgsql-", "bin"),
    // openSUSE
    ("/usr/lib", "postgresql", "bin"),
    // Alpine
    ("/usr/libexec", "postgresql", ""),
    // Homebrew on its three kinds of machines
    ("/opt/homebrew/opt", "postgresql@", "bin"),
    ("/usr/local/opt", "postgresql@", "bin"),
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql@", "bin"),
    // Postgres.app
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
    // FreeBSD, and built from source
    ("/usr/local", "pgsql", "bin"),
];

/// How package managers install the server; some name the package after the version.
const INSTALL_COMMANDS: [(&str, &str); 6] = [
    ("apt-get", "sudo apt-get install postgresql-VERSION"),
    ("dnf", "sudo dnf install postgresqlVERSION-server"),
    ("apk", "sudo apk add postgresqlVERSION"),
    ("pacman", "sudo pacman -S postgresql"),
    ("zypper", "sudo zypper install postgresqlVERSION-server"),
    // Refuses to run as root.
    ("brew", "brew install postgresql@VERSION"),
];

/// The directory of the programs that fit the data directory, or of the preferred ones if there is no data directory.
/// Checks that the user of the server can run them. Creates nothing.
pub(super) fn programs(directory: &ServerDirectory) -> Result<PathBuf, Failure> {
    let wanted = data_version(directory)?;
    let versions = candidates(&directory.search).filter_map(|path| Some((version(&path)?, path)));
    let programs = choose(versions, wanted).map_err(|others| missing(directory, wanted, &others))?;
    if let Some(account) = Account::of(&directory.data()) {
        let parent = directory.path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        account.check_access(parent, &programs.join("postgres"))?;
    }
    Ok(programs)
}

/// The major version of the data directory; `None` if there is none.
pub(super) fn data_version(directory: &ServerDirectory) -> Result<Option<u32>, Failure> {
    let data = directory.data();
    match fs::read_to_string(data.join("PG_VERSION")) {
        Ok(version) => Ok(version.trim().parse().ok()),
        Err(_) if data.exists() => {
            let text = format!("{} is not a data directory of PostgreSQL", data.display());
            Err(unavailable(text, "move the directory away"))
        }
        Err(_) => Ok(None),
    }
}

/// The first program of the wanted version; without one, of any supported version. The error lists the other versions.
/// Lazy, because finding out a version starts a process.
fn choose(versions: impl Iterator<Item = (u32, PathBuf)>, wanted: Option<u32>) -> Result<PathBuf, BTreeSet<u32>> {
    let mut others = BTreeSet::new();
    for (version, path) in versions {
        if version >= MIN_VERSION && wanted.is_none_or(|wanted| wanted == version) {
            return Ok(path);
        }
        others.insert(version);
    }
    Err(others)
}

fn missing(directory: &ServerDirectory, wanted: Option<u32>, others: &BTreeSet<u32>) -> Failure {
    let (need, alternative) = match wanted {
        Some(wanted) => (
            format!("the data directory {} needs PostgreSQL {wanted}", directory.data().display()),
            "move the directory away",
        ),
        None => (
            format!("the embedded database needs postgres (version {MIN_VERSION} or later) and initdb"),
            "name another database: SYNCCTL_DATABASE_URL",
        ),
    };
    let ProgramSearch { only, path } = &directory.search;
    let place = only.as_ref().map_or_else(String::new, |only| format!(" in SYNCCTL_POSTGRES_BIN={}", only.display()));
    let others = others.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let found = if others.is_empty() { "not installed".to_owned() } else { format!("only {others} is installed") };
    let is_available = |program: &str| path.iter().any(|directory| directory.join(program).exists());
    let install = install_command(is_available, rustix::process::geteuid().is_root(), wanted);
    unavailable(format!("{need}, {found}{place}"), format!("{install}, or {alternative}"))
}

/// Directories that hold both programs, in order of preference.
fn candidates(search: &ProgramSearch) -> impl Iterator<Item = PathBuf> {
    let packages = PLACES.into_iter().flat_map(|(parent, prefix, below)| {
        let names = fs::read_dir(parent).into_iter().flatten().flatten();
        let names = newest_first(names.filter_map(|entry| entry.file_name().into_string().ok()), prefix);
        names.into_iter().map(move |name| Path::new(parent).join(name).join(below))
    });
    let places = match &search.only {
        Some(only) => vec![only.clone()],
        None => search.path.iter().cloned().chain(packages).collect(),
    };
    places.into_iter().filter_map(|place| {
        // A link in PATH leads to the directory of all programs.
        let programs = fs::canonicalize(place.join("postgres")).ok()?.parent()?.to_owned();
        programs.join("initdb").exists().then_some(programs)
    })
}

/// Names that consist of the prefix and a version, or of a prefix alone.
fn newest_first(names: impl Iterator<Item = String>, prefix: &str) -> Vec<String> {
    let version = |name: &str| match name.strip_prefix(prefix)? {
        "" if !prefix.is_empty() => Some(0.0),
        version => version.parse::<f32>().ok(),
    };
    let mut versions: Vec<_> = names.filter_map(|name| Some((version(&name)?, name))).collect();
    versions.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    versions.into_iter().map(|(_, name)| name).collect()
}

/// The major version of the server in this directory.
fn version(programs: &Path) -> Option<u32> {
    let output = Command::new(programs.join("postgres")).arg("-V").stdin(Stdio::null()).output().ok()?;
    version_in(&String::from_utf8_lossy(&output.stdout))
}

/// Of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn version_in(text: &str) -> Option<u32> {
    let (_, version) = text.split_once("(PostgreSQL) ")?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The command that installs the server on this machine, of this major version if there is one.
fn install_command(is_available: impl Fn(&str) -> bool, is_root: bool, version: Option<u32>) -> String {
    let command = INSTALL_COMMANDS.into_iter().find(|(program, _)| is_available(program));
    let command = command.map_or("install the package of the server of PostgreSQL VERSION", |(_, command)| command);
    let command = if is_root { command.trim_start_matches("sudo ") } else { command };
    let version = version.map(|version| version.to_string());
    // Without a version its separator goes, too.
    let separators = if version.is_some() { &[""][..] } else { &["-", "@", " ", ""] };
    separators.iter().fold(command.to_owned(), |command, separator| {
        command.replace(&format!("{separator}VERSION"), version.as_deref().unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::{choose, install_command, newest_first, version_in};
    use std::path::PathBuf;

    #[test]
    fn choose_prefers_the_version_of_the_data_then_the_first() {
        for (label, installed, wanted, expected) in [
            ("any will do", &[15, 17][..], None, Ok(15)),
            ("one is wanted", &[17, 15], Some(15), Ok(15)),
            ("too old for us", &[9, 13], None, Ok(13)),
            ("none", &[], None, Err(vec![])),
            ("others alone", &[17, 16, 17], Some(15), Err(vec![16, 17])),
        ] {
            let all = installed.iter().map(|version| (*version, PathBuf::from(version.to_string())));
            let expected = expected.map(|version: u32| PathBuf::from(version.to_string()));
            assert_eq!(choose(all, wanted).map_err(Vec::from_iter), expected, "{label}");
        }
    }

    #[test]
    fn newest_first_sorts_versions_as_numbers() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>().into_iter();
        assert_eq!(newest_first(names(&["9.6", "15", "8", "lib", "100"]), ""), ["100", "15", "9.6", "8"]);
        assert_eq!(
            newest_first(names(&["pgsql-13", "pgsql-x", "bin", "pgsql-17"]), "pgsql-"),
            ["pgsql-17", "pgsql-13"]
        );
        assert_eq!(newest_first(names(&["pgsql", "share"]), "pgsql"), ["pgsql"]);
    }

    #[test]
    fn version_in_reads_the_major_version() {
        for (text, expected) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 18beta1\n", Some(18)),
            ("postgres (PostgreSQL) 9.6.24\n", Some(9)),
            ("nginx version: 1.2", None),
            ("", None),
        ] {
            assert_eq!(version_in(text), expected, "{text}");
        }
    }

    #[test]
    fn install_command_is_that_of_the_package_manager() {
        for (available, is_root, version, expected) in [
            ("apt-get", true, None, "apt-get install postgresql"),
            ("apt-get", false, Some(13), "sudo apt-get install postgresql-13"),
            ("dnf", true, None, "dnf install postgresql-server"),
            ("dnf", true, Some(16), "dnf install postgresql16-server"),
            ("apk", false, None, "sudo apk add postgresql"),
            ("pacman", false, Some(16), "sudo pacman -S postgresql"),
            ("zypper", true, None, "zypper install postgresql-server"),
            ("brew", false, None, "brew install postgresql"),
            ("brew", true, Some(16), "brew install postgresql@16"),
            ("", false, None, "install the package of the server of PostgreSQL"),
            ("", true, Some(13), "install the package of the server of PostgreSQL 13"),
        ] {
            assert_eq!(install_command(|program| program == available, is_root, version), expected);
        }
    }
}
