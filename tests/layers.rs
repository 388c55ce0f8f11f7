//! Who may import whom: layers point one way, and each foreign world is known to one place.

use std::path::{Path, PathBuf};

/// The parts of `src` and what each may import of ours. `cmd` and `main` may import everything.
const MAY_IMPORT: [(&str, &[&str]); 15] = [
    ("airbyte", &[]),
    ("contract", &[]),
    ("failure", &[]),
    ("process", &[]),
    ("retry", &[]),
    ("secret", &[]),
    ("env", &[]),
    ("task", &["env"]),
    ("output", &["failure"]),
    ("db", &["failure", "process", "retry", "secret", "task"]),
    ("pod", &["airbyte", "contract", "failure", "process", "retry", "secret", "task"]),
    ("sidecar", &["airbyte", "contract", "db", "failure", "retry", "secret", "task"]),
    ("config", &["contract", "db", "env", "failure", "pod", "secret", "sidecar", "task"]),
    (
        "controller",
        &[
            "airbyte", "config", "contract", "db", "failure", "output", "pod", "process", "retry", "secret", "sidecar",
            "task",
        ],
    ),
    ("server", &["airbyte", "config", "controller", "db", "failure", "pod", "retry", "secret", "sidecar", "task"]),
];

/// Crates that only these folders may know.
const KNOWN_TO: [(&str, &[&str]); 7] = [
    ("kube", &["src/pod/kubernetes"]),
    ("k8s_openapi", &["src/pod"]),
    ("tokio", &["src/pod/kubernetes", "src/server/gate"]),
    ("tiny_http", &["src/server/http.rs"]),
    ("r2d2", &["src/db"]),
    ("postgres", &["src/db", "src/sidecar/sink"]),
    ("tracing_subscriber", &["src/cmd", "src/captured_logs.rs"]),
];

/// All source files with their text, without the tests inside them.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, into: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() && path.ends_with("tests") {
                continue;
            }
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
                into.push((path, code));
            }
        }
    }
    let mut all = Vec::new();
    walk(&super::support::root().join("src"), &mut all);
    assert!(all.len() > 30, "{} files", all.len());
    all
}

/// The part of `src` that a file belongs to.
fn part(path: &Path) -> String {
    let inside = path.strip_prefix(super::support::root().join("src")).expect("a file of ours");
    inside.components().next().expect("a name").as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

#[test]
fn layers_point_one_way() {
    for (path, code) in sources() {
        let own = part(&path);
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == own) else { continue };
        for import in code.split("crate::").skip(1) {
            let name: String = import.chars().take_while(char::is_ascii_lowercase).collect();
            let fine = name.is_empty() || name == own || allowed.contains(&name.as_str());
            assert!(fine, "{} imports crate::{name}, which {own} must not know", path.display());
        }
    }
}

#[test]
fn each_foreign_world_is_known_to_one_place() {
    for (path, code) in sources() {
        for (name, places) in KNOWN_TO {
            let known = places.iter().any(|place| path.starts_with(super::support::root().join(place)));
            let used = [format!("use {name}::"), format!(" {name}::"), format!("({name}::"), format!("<{name}::")];
            let hit = code.lines().find(|line| {
                !line.trim_start().starts_with("//")
                    && used.iter().any(|text| format!(" {line}").contains(text.as_str()))
            });
            assert!(known || hit.is_none(), "{} uses {name}: {}", path.display(), hit.unwrap_or_default());
        }
    }
}
