//! How far an installation is, from what pip and uv write on their way. Pure but for the clock.

use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Not more often than this is anything told.
const PAUSE: Duration = Duration::from_millis(200);
/// Characters between the brackets.
const BAR: usize = 20;

/// What an installation has come to.
pub struct Progress<'a> {
    title: String,
    tell: &'a mut dyn FnMut(&str),
    found: HashSet<String>,
    total: Option<usize>,
    installed: usize,
    /// What takes long just now.
    doing: String,
    told: Option<(Instant, String)>,
}

impl<'a> Progress<'a> {
    /// Of one package.
    pub fn new(requirement: &str, tell: &'a mut dyn FnMut(&str)) -> Self {
        Self {
            title: format!("installing {requirement}"),
            tell,
            found: HashSet::new(),
            total: None,
            installed: 0,
            doing: String::new(),
            told: None,
        }
    }

    /// Starts again, with another Python.
    pub fn restart(&mut self, doing: String) {
        self.found.clear();
        (self.total, self.installed) = (None, 0);
        self.doing = doing;
        self.told = None;
        self.look(|| 0);
    }

    /// The packages are coming.
    pub fn fetch(&mut self) {
        "fetching packages".clone_into(&mut self.doing);
    }

    /// All of it is there.
    pub fn complete(&mut self) {
        self.doing.clear();
        self.told = None;
        self.look(|| usize::MAX);
    }

    /// A line of pip or uv.
    pub fn heard(&mut self, line: &str) {
        let text = line.trim();
        let first = |text: &str| text.split([' ', '\u{1b}']).next().unwrap_or_default().to_owned();
        if let Some(rest) = text.strip_prefix("Collecting ") {
            let requirement = first(rest);
            let end = requirement.find(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)));
            let name = &requirement[..end.unwrap_or(requirement.len())];
            self.found.insert(name.to_owned());
            self.doing = format!("looking for {name}");
        } else if let Some(rest) = text.strip_prefix("Processing ") {
            self.found.insert(first(rest));
        } else if let Some(rest) = text.strip_prefix("Downloading ").or_else(|| text.strip_prefix("Using cached ")) {
            if !first(rest).ends_with(".metadata") {
                self.doing = format!("fetching {}", rest.rsplit('/').next().unwrap_or(rest));
            }
        } else if let Some(rest) = text.strip_prefix("Building wheel for ").or_else(|| text.strip_prefix("Building ")) {
            self.doing = format!("building {}", first(rest));
        } else if let Some(rest) = text.strip_prefix("Installing collected packages: ") {
            self.total = Some(rest.split(", ").count());
            self.doing.clear();
        } else if let Some(rest) = text.strip_prefix("Resolved ") {
            self.total = first(rest).parse().ok();
            self.doing.clear();
        } else if text.contains("Retrying (Retry") || text.contains("connection broken by") {
            "no answer, trying again".clone_into(&mut self.doing);
        }
    }

    /// Tells how far it is, if that has changed and the last time is a while ago. `installed` counts, once that matters.
    pub fn look(&mut self, installed: impl FnOnce() -> usize) {
        if self.told.as_ref().is_some_and(|(when, _)| when.elapsed() < PAUSE) {
            return;
        }
        if let Some(total) = self.total {
            self.installed = installed().min(total);
        }
        let text = self.text();
        if self.told.as_ref().is_none_or(|(_, told)| *told != text) {
            (self.tell)(&text);
            self.told = Some((Instant::now(), text));
        }
    }

    fn text(&self) -> String {
        let Self { title, total, found, installed, doing, .. } = self;
        let and = if doing.is_empty() { String::new() } else { format!(", {doing}") };
        match (total, found.len()) {
            (Some(total), _) => format!("{title} {} {installed}/{total} packages{and}", bar(*installed, *total)),
            (None, 0) if doing.is_empty() => title.clone(),
            (None, 0) => format!("{title}: {doing}"),
            (None, 1) => format!("{title}: 1 package found{and}"),
            (None, found) => format!("{title}: {found} packages found{and}"),
        }
    }
}

fn bar(done: usize, total: usize) -> String {
    let full = (done * BAR).checked_div(total).unwrap_or_default().min(BAR);
    format!("[{}{}]", "#".repeat(full), "-".repeat(BAR - full))
}

#[cfg(test)]
mod tests {
    use super::Progress;

    /// What is shown after these lines, with so many packages in place.
    fn shown(lines: &[&str], installed: usize) -> String {
        let mut last = String::new();
        let mut tell = |text: &str| text.clone_into(&mut last);
        let mut progress = Progress::new("x==1", &mut tell);
        for line in lines {
            progress.heard(line);
        }
        progress.look(|| installed);
        last
    }

    #[test]
    fn the_bar_counts_packages() {
        let collecting = [
            "Collecting x==1",
            "  Downloading x-1.whl (12 kB)",
            "Collecting numpy",
            "  Downloading numpy-2.whl (9 MB)",
        ];
        assert_eq!(shown(&[], 0), "installing x==1");
        assert_eq!(shown(&collecting, 0), "installing x==1: 2 packages found, fetching numpy-2.whl (9 MB)");
        let installing = [&collecting[..], &["Installing collected packages: numpy, x, a, b"]].concat();
        assert_eq!(shown(&installing, 1), "installing x==1 [#####---------------] 1/4 packages");
        assert_eq!(shown(&installing, 9), "installing x==1 [####################] 4/4 packages");
        assert_eq!(
            shown(&["Resolved 2 packages in 82ms", "Downloading numpy (15.9MiB)"], 0),
            "installing x==1 [--------------------] 0/2 packages, fetching numpy (15.9MiB)"
        );
    }
}
