//! The programs of PostgreSQL on this machine: where they are, which major version they are, how to get them.
//!
//! Debian and others put them outside of PATH, several versions beside each other. A data directory works with one
//! major version alone, so that one is looked for everywhere before it is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where to look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Search {
    /// The only folder, if there is one.
    pub only: Option<PathBuf>,
    /// The folders of PATH.
    pub path: Vec<PathBuf>,
}

/// `postgres` and `initdb` of one installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Installed {
    pub(super) folder: PathBuf,
    pub(super) major: u32,
}

/// Servers before it do not tell in their pid file that they are ready.
const OLDEST: u32 = 10;

/// Where packages put them: the folder, what comes before the version in a name below it, and the folder below that.
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
    // FreeBSD and what was built by hand
    ("/usr/local", "pgsql", "bin"),
];

/// The installation that fits: of the wanted major version, or the first one if any will do. The error lists the
/// versions of those that do not fit.
pub(super) fn find(search: &Search, wanted: Option<u32>) -> Result<Installed, Vec<u32>> {
    let installed =
        candidates(search).into_iter().filter_map(|folder| Some(Installed { major: major(&folder)?, folder }));
    choose(installed, wanted)
}

/// Looks at one after the other, because each look starts a process.
fn choose(installed: impl Iterator<Item = Installed>, wanted: Option<u32>) -> Result<Installed, Vec<u32>> {
    let mut others = Vec::new();
    for one in installed {
        if one.major >= OLDEST && wanted.is_none_or(|wanted| wanted == one.major) {
            return Ok(one);
        }
        others.push(one.major);
    }
    others.sort_unstable();
    others.dedup();
    Err(others)
}

/// Folders that hold both programs, in the order in which they are preferred.
fn candidates(search: &Search) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut add = |folder: &Path| {
        // A link in PATH leads to the folder where everything is.
        let postgres = fs::canonicalize(folder.join("postgres")).ok();
        let folder = postgres.as_deref().and_then(Path::parent);
        if let Some(folder) = folder.filter(|folder| folder.join("initdb").exists())
            && !found.iter().any(|known| known == folder)
        {
            found.push(folder.to_owned());
        }
    };
    if let Some(only) = &search.only {
        add(only);
        return found;
    }
    search.path.iter().for_each(|folder| add(folder));
    for (parent, prefix, below) in PLACES {
        let names = fs::read_dir(parent).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        for name in newest_first(names, prefix) {
            add(&Path::new(parent).join(name).join(below));
        }
    }
    found
}

/// Names that are nothing but the prefix and a version, or the prefix alone.
fn newest_first(names: impl Iterator<Item = String>, prefix: &str) -> Vec<String> {
    let version = |name: &str| {
        let rest = name.strip_prefix(prefix)?;
        let alone = rest.is_empty() && !prefix.is_empty();
        if alone { Some((0, 0)) } else { parse_version(rest) }
    };
    let mut versions: Vec<_> = names.filter_map(|name| Some((version(&name)?, name))).collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions.into_iter().map(|(_, name)| name).collect()
}

/// `15`, `9.6`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Asks the program itself.
pub(super) fn major(folder: &Path) -> Option<u32> {
    let output = Command::new(folder.join("postgres")).arg("-V").stdin(Stdio::null()).output().ok()?;
    major_of(&String::from_utf8_lossy(&output.stdout))
}

/// Of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn major_of(text: &str) -> Option<u32> {
    let (_, version) = text.split_once("(PostgreSQL) ")?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// What to type on this machine to get the server, of this major version if one is named.
pub(super) fn install_command(major: Option<u32>) -> String {
    let os_release = fs::read_to_string("/etc/os-release").or_else(|_| fs::read_to_string("/usr/lib/os-release"));
    let os_release = os_release.unwrap_or_default();
    let system = if cfg!(target_os = "macos") { "ID=macos" } else { os_release.as_str() };
    install_command_of(system, rustix::process::geteuid().is_root(), major)
}

fn install_command_of(os_release: &str, root: bool, major: Option<u32>) -> String {
    let field = |name: &str| {
        let value = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
    };
    let names = format!("{} {}", field("ID"), field("ID_LIKE"));
    let number = major.map(|major| major.to_string()).unwrap_or_default();
    let dashed = |name: &str, mark: &str| major.map_or(name.to_owned(), |major| format!("{name}{mark}{major}"));
    let command = names.split_whitespace().find_map(|name| {
        Some(match name {
            "debian" | "ubuntu" => format!("apt-get install {}", dashed("postgresql", "-")),
            "fedora" | "rhel" | "centos" => format!("dnf install postgresql{number}-server"),
            "alpine" => format!("apk add postgresql{number}"),
            "arch" => "pacman -S postgresql".to_owned(),
            "suse" | "opensuse" => format!("zypper install postgresql{number}-server"),
            // Refuses to run as root.
            "macos" => return Some(format!("brew install {}", dashed("postgresql", "@"))),
            _ => return None,
        })
    });
    match command {
        Some(command) if root || command.starts_with("brew") => command,
        Some(command) => format!("sudo {command}"),
        None => format!("install the package of the server of {}", dashed("PostgreSQL", " ")),
    }
}

#[cfg(test)]
mod tests {
    use super::{Installed, choose, install_command_of, major_of, newest_first};

    fn all(majors: &[u32]) -> impl Iterator<Item = Installed> {
        majors.iter().map(|major| Installed { folder: format!("/{major}").into(), major: *major })
    }

    #[test]
    fn the_first_installation_is_taken_or_the_one_of_the_data_wherever_it_is() {
        for (label, installed, wanted, expected) in [
            ("any will do", &[15, 17][..], None, Ok(15)),
            ("one is wanted", &[17, 15], Some(15), Ok(15)),
            ("too old for us", &[9, 13], None, Ok(13)),
            ("none", &[], None, Err(vec![])),
            ("others alone", &[17, 16, 17], Some(15), Err(vec![16, 17])),
        ] {
            assert_eq!(choose(all(installed), wanted).map(|one| one.major), expected, "{label}");
        }
    }

    #[test]
    fn versions_are_numbers_and_the_newest_comes_first() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>().into_iter();
        assert_eq!(newest_first(names(&["9.6", "15", "8", "lib", "100"]), ""), ["100", "15", "9.6", "8"]);
        assert_eq!(
            newest_first(names(&["pgsql-13", "pgsql-x", "bin", "pgsql-17"]), "pgsql-"),
            ["pgsql-17", "pgsql-13"]
        );
        assert_eq!(newest_first(names(&["pgsql", "share"]), "pgsql"), ["pgsql"]);
    }

    #[test]
    fn the_major_version_is_read_from_what_the_program_says() {
        for (text, expected) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 18beta1\n", Some(18)),
            ("postgres (PostgreSQL) 9.6.24\n", Some(9)),
            ("nginx version: 1.2", None),
            ("", None),
        ] {
            assert_eq!(major_of(text), expected, "{text}");
        }
    }

    #[test]
    fn the_command_that_installs_a_server_is_the_platforms() {
        for (os_release, root, major, expected) in [
            ("NAME=\"Debian GNU/Linux\"\nID=debian\n", true, None, "apt-get install postgresql"),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", false, None, "sudo apt-get install postgresql"),
            ("ID=debian\n", false, Some(13), "sudo apt-get install postgresql-13"),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", true, None, "dnf install postgresql-server"),
            ("ID=fedora\n", true, Some(16), "dnf install postgresql16-server"),
            ("ID=alpine\n", false, None, "sudo apk add postgresql"),
            ("ID=manjaro\nID_LIKE=arch\n", false, None, "sudo pacman -S postgresql"),
            ("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n", true, None, "zypper install postgresql-server"),
            ("ID=macos", false, None, "brew install postgresql"),
            ("ID=macos", false, Some(16), "brew install postgresql@16"),
            ("ID=plan9\n", false, None, "install the package of the server of PostgreSQL"),
            ("", true, Some(13), "install the package of the server of PostgreSQL 13"),
        ] {
            assert_eq!(install_command_of(os_release, root, major), expected, "{os_release}");
        }
    }
}
