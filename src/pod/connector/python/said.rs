//! What pip and uv say when they fail: which kind of failure it is. Pure; knows their wording, and nothing else does.

use super::names::{Package, normalized};

/// Why a package was not installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The index cannot be reached; what the transport said.
    Network(String),
    /// There is no package of that name.
    NoPackage,
    /// There is no such version; those that there are, where they are told.
    NoVersion(Vec<String>),
    /// This Python is not one that it runs on: whose word that is, and what it wants.
    OtherPython { package: String, wants: String },
    /// No space left.
    DiskFull,
    /// A package had to be built, and that failed: which, and the line that tells most.
    NotBuilt { package: String, why: String },
    /// Something that it depends on is not there.
    NoDependency(String),
    /// `venv` or `ensurepip` is not installed.
    NoVenv,
    /// Anything else, in the tool's words.
    Other(String),
}

/// Words of a transport that does not get through.
const NETWORK: [&str; 18] = [
    "connection broken by",
    "NewConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
    "SSLError",
    "SSLCertVerificationError",
    "Max retries exceeded",
    "Failed to establish a new connection",
    "Name or service not known",
    "Temporary failure in name resolution",
    "Connection reset by peer",
    "error sending request for url",
    "dns error",
    "tcp connect error",
    "operation timed out",
    "network was disabled",
    "Server Error",
];

/// Words of a file system that takes no more.
const FULL: [&str; 3] = ["No space left on device", "Disk quota exceeded", "os error 28"];

impl Refusal {
    /// Reads what a failed `pip install` or `uv pip install` of one package has said.
    pub fn of(package: &Package, lines: &[String]) -> Self {
        let said = Said(lines);
        if FULL.iter().any(|words| said.has(words)) {
            return Self::DiskFull;
        }
        said.other_python(package)
            .or_else(|| said.not_built())
            .or_else(|| said.absent(package))
            .or_else(|| said.contradiction())
            .or_else(|| said.network().map(Self::Network))
            .unwrap_or_else(|| Self::Other(said.last_error()))
    }

    /// Reads what a failed `python -m venv` or `uv venv` has said.
    pub fn of_venv(lines: &[String]) -> Self {
        let said = Said(lines);
        if FULL.iter().any(|words| said.has(words)) {
            return Self::DiskFull;
        }
        // The first one is Debian's, at the end of a line.
        let missing = [
            "because ensurepip is not",
            "No module named venv",
            "No module named ensurepip",
            "No module named 'ensurepip'",
        ];
        if missing.iter().any(|words| said.has(words)) { Self::NoVenv } else { Self::Other(said.last_error()) }
    }
}

struct Said<'a>(&'a [String]);

impl<'a> Said<'a> {
    fn has(&self, words: &str) -> bool {
        self.find(words).is_some()
    }

    /// The first line with these words.
    fn find(&self, words: &str) -> Option<&'a str> {
        self.0.iter().map(String::as_str).find(|line| line.contains(words))
    }

    fn other_python(&self, package: &Package) -> Option<Refusal> {
        // pip, of a file that it has looked into.
        if let Some(line) = self.find("requires a different Python: ") {
            let package = between(line, "Package '", "'").unwrap_or(&package.name).to_owned();
            let wants = between(line, "not in '", "'").unwrap_or("of another version").to_owned();
            return Some(Refusal::OtherPython { package, wants });
        }
        // pip, of an index that tells.
        if let Some(line) = self.find("require a different python version: ") {
            let (_, list) = line.split_once("version: ")?;
            let wanted = |entry: &'a str| entry.trim().split_once(" Requires-Python ");
            let entries: Vec<(&str, &str)> = list.split(';').filter_map(wanted).collect();
            let (_, requirement) = self.find("No matching distribution found for ")?.split_once(" for ")?;
            let name = name_of(requirement);
            if normalized(name) != normalized(&package.name) {
                let (_, wants) = entries.last()?;
                return Some(Refusal::OtherPython { package: name.to_owned(), wants: (*wants).to_owned() });
            }
            // Other versions may be for another Python and this one not be there at all.
            let (_, wants) = entries.iter().find(|(version, _)| *version == package.version)?;
            return Some(Refusal::OtherPython { package: name.to_owned(), wants: (*wants).to_owned() });
        }
        // uv, newer and older.
        for words in [" requires Python ", " depends on Python"] {
            let Some(line) = self.find(words) else { continue };
            let (before, after) = line.split_once(words)?;
            let whose = before.rsplit("Because ").next().unwrap_or(before).rsplit(" and ").next().unwrap_or(before);
            let wants = after.split([' ', '\'']).next().unwrap_or_default().trim_end_matches([',', '.']);
            let package = name_of(whose.trim()).trim_start_matches("all versions of ").to_owned();
            return Some(Refusal::OtherPython { package, wants: wants.to_owned() });
        }
        None
    }

    fn not_built(&self) -> Option<Refusal> {
        let is_failure = |line: &String| {
            line.contains("subprocess-exited-with-error")
                || line.contains("Failed building wheel for")
                || line.contains("Failed to build `")
                || line.contains("metadata-generation-failed")
        };
        let at = self.0.iter().position(is_failure)?;
        if self.has("install build dependencies")
            && let Some(network) = self.network()
        {
            return Some(Refusal::Network(network));
        }
        let named = self.find("Failed building wheel for ").and_then(|line| line.rsplit(' ').next());
        let quoted = self.find("Failed to build `").and_then(|line| between(line, "`", "`"));
        let before = || self.0[..at].iter().rev().find_map(|line| collected(line));
        let package = named.or(quoted).map(str::to_owned).or_else(before).unwrap_or_else(|| "a dependency".to_owned());
        // What the build itself wrote is between these, and of that the last line.
        let lines: Vec<&str> = self.0.iter().map(|line| line.trim().trim_start_matches('│').trim()).collect();
        let is_end = |line: &&str| line.contains("[end of output]") || line.starts_with("hint:");
        let end = lines.iter().position(is_end).unwrap_or(lines.len());
        let inner = lines[..end].iter().rev().take_while(|line| !line.ends_with("of output]") && **line != "[stderr]");
        let inner: Vec<&&str> = inner.filter(|line| !line.is_empty()).collect();
        let telling = inner.iter().find(|line| line.to_ascii_lowercase().contains("error")).or(inner.first());
        let why = telling.map_or_else(String::new, |line| line.trim_start_matches("cause: ").to_owned());
        Some(Refusal::NotBuilt { package, why: shortened(&masked(&why)) })
    }

    fn absent(&self, package: &Package) -> Option<Refusal> {
        let is_ours = |name: &str| normalized(name) == normalized(&package.name);
        if let Some(line) = self.find("No matching distribution found for ") {
            let (_, requirement) = line.split_once(" for ")?;
            let requirement = requirement.split(" (from ").next().unwrap_or(requirement).trim();
            let versions: Vec<String> = self
                .find("(from versions: ")
                .and_then(|line| between(line, "(from versions: ", ")"))
                .map(|list| list.split(", ").filter(|version| *version != "none").map(str::to_owned).collect())
                .unwrap_or_default();
            if versions.is_empty()
                && let Some(network) = self.network()
            {
                return Some(Refusal::Network(network));
            }
            return Some(match is_ours(name_of(requirement)) {
                false => Refusal::NoDependency(requirement.to_owned()),
                true if versions.is_empty() => Refusal::NoPackage,
                true if versions.contains(&package.version) => {
                    Refusal::Other("none of its files fits this machine and this Python".to_owned())
                }
                true => Refusal::NoVersion(versions),
            });
        }
        if let Some(line) = self.find(" was not found in the package registry") {
            let (before, _) = line.split_once(" was not found")?;
            let name = before.rsplit(' ').next().unwrap_or(before);
            return Some(if is_ours(name) { Refusal::NoPackage } else { Refusal::NoDependency(name.to_owned()) });
        }
        if let Some(line) = self.find("there is no version of ").or_else(|| self.find("There is no version of ")) {
            let (_, after) = line.split_once("here is no version of ")?;
            let requirement = after.split(' ').next().unwrap_or(after);
            let is_ours = is_ours(name_of(requirement));
            return Some(if is_ours {
                Refusal::NoVersion(Vec::new())
            } else {
                Refusal::NoDependency(requirement.to_owned())
            });
        }
        if self.has("Invalid requirement") {
            return Some(Refusal::NoVersion(Vec::new()));
        }
        None
    }

    fn contradiction(&self) -> Option<Refusal> {
        if self.has("ResolutionImpossible") {
            let after = self.0.iter().skip_while(|line| !line.starts_with("The conflict is caused by")).skip(1);
            let causes: Vec<&str> = after.map(|line| line.trim()).take_while(|line| !line.is_empty()).collect();
            let text = format!("its dependencies contradict each other: {}", causes.join(", "));
            return Some(Refusal::Other(shortened(&text)));
        }
        let line = self.find("are incompatible").filter(|_| self.has("No solution found"))?;
        let text = line.trim().trim_start_matches("cause: ").trim_start_matches("Because ");
        Some(Refusal::Other(shortened(&format!("its dependencies contradict each other: {text}"))))
    }

    /// The last line about a transport that did not get through: the deepest cause where there are several.
    fn network(&self) -> Option<String> {
        let line = self.0.iter().rev().find(|line| NETWORK.iter().any(|words| line.contains(words)))?;
        // `…: Failed to establish a new connection: [Errno 111] Connection refused')': /simple/x/`
        let text = match line.split_once("Failed to establish a new connection: ") {
            Some((_, cause)) => cause.split("')").next().unwrap_or(cause),
            None => line.trim().trim_start_matches("cause: "),
        };
        // A library of Rust tells the system's own words last.
        let deepest = self.0.iter().rev().map(|line| line.trim()).find(|line| line.contains("(os error "));
        Some(shortened(&masked(
            deepest.filter(|_| !text.contains("Errno")).unwrap_or(text).trim_start_matches("cause: "),
        )))
    }

    fn last_error(&self) -> String {
        let is_error = |line: &&String| line.starts_with("ERROR:") || line.starts_with("error:");
        let line =
            self.0.iter().rev().find(is_error).or_else(|| self.0.iter().rev().find(|line| !line.trim().is_empty()));
        let text = line.map_or("it does not say why", |line| line.trim());
        let text = text.strip_prefix("ERROR:").or_else(|| text.strip_prefix("error:")).unwrap_or(text).trim();
        shortened(&masked(text))
    }
}

/// The package that a line of pip's is about, when it takes one up.
fn collected(line: &str) -> Option<String> {
    if let Some(requirement) = line.strip_prefix("Collecting ") {
        return Some(name_of(requirement).to_owned());
    }
    let path = line.strip_prefix("Processing ")?.split(" (from ").next()?;
    let file = path.rsplit('/').next()?.trim_end_matches(".tar.gz").trim_end_matches(".zip").trim_end_matches(".whl");
    // `name-1.0` of a source, `name-1.0-py3-none-any` of a wheel.
    let end = file.match_indices('-').find(|(at, _)| file[at + 1..].starts_with(|c: char| c.is_ascii_digit()));
    Some(end.map_or(file, |(at, _)| &file[..at]).to_owned())
}

/// `name` of `name==1`, `name>=2 (from x)`, `name[extra]<3`.
fn name_of(requirement: &str) -> &str {
    let end = requirement.find(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)));
    // `all versions of name`
    match requirement.strip_prefix("all versions of ") {
        Some(rest) => name_of(rest),
        None => &requirement[..end.unwrap_or(requirement.len())],
    }
}

fn between<'t>(text: &'t str, start: &str, end: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(start)?;
    rest.split_once(end).map(|(inner, _)| inner)
}

/// The longest text of others that goes into a sentence of ours.
const LONGEST: usize = 300;

/// The beginning of a text that is too long.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text.to_owned(),
    }
}

/// Hides who logs in at an address: an index may be given with its password.
pub fn masked(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        shown.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "'\"<>`".contains(c)).unwrap_or(after.len());
        let (address, behind) = after.split_at(end);
        // The last one: a password that was not encoded may hold any character.
        match address.rfind('@') {
            Some(at) => shown.extend(["***", &address[at..]]),
            None => shown.push_str(address),
        }
        rest = behind;
    }
    shown + rest
}

/// Whether a Python is one that a package wants (`>=3.10,<3.12`); `None` when that cannot be told.
pub fn accepts(wants: &str, version: &str) -> Option<bool> {
    let numbers = |text: &str| text.trim().split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>();
    let ours = numbers(version)?;
    let mut all = true;
    for one in wants.split(',').map(str::trim) {
        let at = one.find(|c: char| c.is_ascii_digit())?;
        let (operator, wanted) = one.split_at(at);
        let stem = wanted.strip_suffix(".*");
        let mut wanted = numbers(stem.unwrap_or(wanted))?;
        let starts = ours.starts_with(&wanted);
        if stem.is_none() {
            wanted.resize(3, 0);
        }
        all &= match (operator.trim(), stem.is_some()) {
            ("==" | "===", true) => starts,
            ("!=", true) => !starts,
            (">=", _) => ours >= wanted,
            ("<=", _) => ours <= wanted,
            (">", _) => ours > wanted,
            ("<", _) => ours < wanted,
            ("==" | "===", false) => ours == wanted,
            ("!=", false) => ours != wanted,
            _ => return None,
        };
    }
    Some(all)
}

#[cfg(test)]
#[path = "said_tests.rs"]
mod tests;
