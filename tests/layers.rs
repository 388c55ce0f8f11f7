//! Imports: layers point one way, files do not import each other in circles, and each foreign library is used in one
//! place.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::support::root;

/// The parts of `src` from the bottom up, each with the parts below that it may import. `*`: all of them.
const LAYERS: [(&str, &[&str]); 27] = [
    ("airbyte", &[]),
    ("contract", &[]),
    ("failure", &[]),
    ("host_rules", &[]),
    ("http_client", &["host_rules"]),
    ("printable", &[]),
    ("logging", &["printable"]),
    ("process", &[]),
    ("retry", &[]),
    ("secret", &[]),
    ("shared_folder", &[]),
    ("handover", &[]),
    ("captured_logs", &[]),
    ("env", &[]),
    ("task", &["env"]),
    ("pattern", &["task"]),
    ("output", &["failure", "printable"]),
    ("db", &["airbyte", "failure", "host_rules", "printable", "process", "retry", "secret", "task"]),
    ("pod", &["airbyte", "contract", "failure", "handover", "process", "retry", "secret", "shared_folder", "task"]),
    (
        "sidecar",
        &[
            "airbyte",
            "contract",
            "db",
            "failure",
            "handover",
            "host_rules",
            "http_client",
            "logging",
            "retry",
            "secret",
            "shared_folder",
            "task",
        ],
    ),
    (
        "config",
        &[
            "contract",
            "db",
            "env",
            "failure",
            "host_rules",
            "http_client",
            "pattern",
            "pod",
            "secret",
            "sidecar",
            "task",
        ],
    ),
    (
        "controller",
        &[
            "airbyte",
            "config",
            "contract",
            "db",
            "failure",
            "host_rules",
            "http_client",
            "output",
            "pattern",
            "pod",
            "process",
            "retry",
            "secret",
            "sidecar",
            "task",
        ],
    ),
    ("server", &["config", "controller", "db", "failure", "pattern", "pod", "printable", "secret", "task"]),
    ("cmd", &["*"]),
    ("main", &["cmd"]),
    // Declares modules for the fuzz targets.
    ("lib", &[]),
    // Not a part of its own: the root module only declares the others.
    ("", &[]),
];

/// Libraries that only these places may use.
const LIBRARIES: [(&str, &[&str]); 9] = [
    ("clap", &["src/cmd", "src/config", "src/main.rs", "src/output.rs"]),
    ("kube", &["src/pod/kubernetes"]),
    ("k8s_openapi", &["src/pod"]),
    ("tokio", &["src/db/connect", "src/pod/kubernetes", "src/server/guard", "src/server/http.rs"]),
    ("tokio_rustls", &["src/server/guard"]),
    ("tiny_http", &["src/server/http.rs"]),
    ("r2d2", &["src/db"]),
    ("postgres", &["src/db", "src/sidecar/sink"]),
    ("tracing_subscriber", &["src/logging.rs", "src/captured_logs.rs"]),
];

/// A source file, without its tests and comments.
struct Source {
    path: PathBuf,
    /// `["pod", "status"]` for `src/pod/status.rs`, `["pod"]` for `src/pod/mod.rs`.
    module: Vec<String>,
    code: String,
}

fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    collect(&root().join("src"), &mut sources);
    assert!(sources.len() > 30, "{} files", sources.len());
    sources
}

fn collect(folder: &Path, sources: &mut Vec<Source>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            if name != "tests" {
                collect(&path, sources);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") && !name.ends_with("_tests.rs") {
            let text = std::fs::read_to_string(&path).expect("a source file");
            let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
            let module = path.strip_prefix(root().join("src")).expect("a file in src").with_extension("");
            let module = module.iter().map(|part| part.to_string_lossy().into_owned());
            let module = module.filter(|part| part != "mod").collect();
            sources.push(Source { path, module, code });
        }
    }
}

impl Source {
    fn is_folder(&self) -> bool {
        self.path.ends_with("mod.rs") || self.path.ends_with("main.rs")
    }

    /// The paths that begin with `crate`, `self` or `super`, from the root, of imports and of other code.
    fn paths(&self) -> Vec<Vec<String>> {
        let parent = || self.module[..self.module.len() - 1].to_vec();
        let own = if self.path.ends_with("main.rs") { Vec::new() } else { self.module.clone() };
        let starts = [("crate::", Vec::new()), ("self::", own), ("super::", parent())];
        let mut paths = Vec::new();
        for (keyword, base) in starts {
            for (at, _) in self.code.match_indices(keyword) {
                let is_start = !self.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
                if is_start {
                    tree(&self.code[at + keyword.len()..], &base, &mut paths);
                }
            }
        }
        paths
    }
}

/// Expands `a::{b, c::{d, self}}` below `base`; returns the rest of the text.
fn tree<'a>(text: &'a str, base: &[String], paths: &mut Vec<Vec<String>>) -> &'a str {
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = tree(rest.trim_start(), base, paths).trim_start().trim_start_matches(',').trim_start();
            match rest.strip_prefix('}') {
                Some(after) => return after,
                None if rest.is_empty() => return rest,
                None => {}
            }
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path = match name {
        "super" => base[..base.len().saturating_sub(1)].to_vec(),
        "self" | "" => base.to_vec(),
        name => [base, &[name.to_owned()]].concat(),
    };
    if let Some(rest) = rest.strip_prefix("::") {
        return tree(rest, &path, paths);
    }
    paths.push(path);
    // Skips `as name`, `*` and whatever is not a path.
    &rest[rest.find([',', '}', ';']).unwrap_or(rest.len())..]
}

#[test]
fn layers_point_one_way() {
    for (index, (name, imports)) in LAYERS.iter().enumerate() {
        let below: Vec<&str> = LAYERS[..index].iter().map(|(name, _)| *name).collect();
        assert!(imports.iter().all(|import| *import == "*" || below.contains(import)), "{name} is below its imports");
    }
    for source in sources() {
        let own = &source.module[0];
        let (_, allowed) = LAYERS.iter().find(|(name, _)| name == own).unwrap_or_else(|| panic!("{own} has no layer"));
        for path in source.paths() {
            let Some(part) = path.first() else { continue };
            // Whatever is not a part is an item of the root module.
            let is_part = LAYERS.iter().any(|(name, _)| name == part);
            let is_allowed = part == own || allowed.contains(&"*") || allowed.contains(&part.as_str());
            assert!(!is_part || is_allowed, "{} imports {part}, which {own} must not", source.path.display());
        }
    }
}

/// What is not printable is escaped where text reaches a terminal or a log, and that is in one place each.
#[test]
fn one_file_writes_to_the_terminal_and_one_to_the_log() {
    // The launcher and the init of isolated programs write one line into a pipe or a file of their supervisor.
    let isolation = ["src/cmd/isolate.rs", "src/pod/isolation/launcher.rs", "src/pod/isolation/init.rs"];
    let writers = ["src/output.rs", "src/logging.rs"].iter().chain(&isolation).map(|path| root().join(path));
    let writers: Vec<PathBuf> = writers.collect();
    for source in sources().iter().filter(|source| !writers.contains(&source.path)) {
        for write in ["stdout()", "stderr()", "print!(", "println!(", "dbg!("] {
            assert!(!source.code.contains(write), "{} uses {write}: use crate::output", source.path.display());
        }
    }
}

/// A folder's `mod.rs` and the files below it count as one towards each other: a folder may define what its files share.
#[test]
fn files_do_not_import_each_other_in_circles() {
    let sources = sources();
    let files: BTreeMap<&[String], &Source> = sources.iter().map(|source| (source.module.as_slice(), source)).collect();
    let imports: BTreeMap<&Path, BTreeSet<&Path>> = sources
        .iter()
        .map(|source| {
            let targets = source.paths().into_iter().filter_map(|path| {
                let target = (1..=path.len()).rev().find_map(|length| files.get(&path[..length]))?;
                let is_inside =
                    |folder: &Source, file: &Source| folder.is_folder() && file.module.starts_with(&folder.module);
                let is_related = is_inside(source, target) || is_inside(target, source) || source.path == target.path;
                (!is_related).then_some(target.path.as_path())
            });
            (source.path.as_path(), targets.collect())
        })
        .collect();
    // Files that import no other remaining file are not in a circle.
    let mut remaining = imports;
    loop {
        let names: BTreeSet<&Path> = remaining.keys().copied().collect();
        remaining.retain(|_, targets| targets.iter().any(|target| names.contains(target)));
        if remaining.len() == names.len() {
            break;
        }
    }
    let edges: Vec<String> = remaining
        .iter()
        .flat_map(|(file, targets)| {
            let inside = targets.iter().filter(|target| remaining.contains_key(*target));
            inside.map(move |target| format!("{} -> {}", file.display(), target.display()))
        })
        .collect();
    assert!(edges.is_empty(), "circles, and files that import them:\n{}", edges.join("\n"));
}

#[test]
fn each_library_is_used_in_one_place() {
    for Source { path, code, .. } in sources() {
        for (name, places) in LIBRARIES {
            let is_allowed = places.iter().any(|place| path.starts_with(root().join(place)));
            let uses = [format!("use {name}::"), format!(" {name}::"), format!("({name}::"), format!("<{name}::")];
            let hit = code.lines().find(|line| uses.iter().any(|text| format!(" {line}").contains(text.as_str())));
            assert!(is_allowed || hit.is_none(), "{} uses {name}: {}", path.display(), hit.unwrap_or_default());
        }
    }
}
