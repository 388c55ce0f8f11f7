//! The command line, without a cluster.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::support::{Program, catalog, cluster, root};

/// The value of secrets.
const MARKER: &str = "hunter2-hunter2";

/// All commands that the help lists, each as its words.
fn commands() -> Vec<Vec<String>> {
    let mut found = vec![vec![]];
    let mut at = 0;
    while at < found.len() {
        let words = found[at].clone();
        let help = Program::new(&words).with(&["--help"]).run();
        let listed = help.code(0).stdout.split("\nCommands:\n").nth(1).unwrap_or_default();
        for line in listed.lines().take_while(|line| !line.trim().is_empty()) {
            let name = line.trim_start().split(' ').next().unwrap_or_default();
            let is_entry = line.starts_with("  ") && !line.starts_with("   ");
            if is_entry && name != "help" {
                found.push([words.as_slice(), &[name.to_owned()]].concat());
            }
        }
        at += 1;
    }
    assert!(found.len() > 5, "{found:?}");
    found
}

/// All variables that help texts name.
fn variables() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for words in commands() {
        let help = Program::new(&words).with(&["--help"]).run().stdout;
        for part in help.split("[env: ").skip(1) {
            names.extend(part.split(['=', ']', ' ', '\n']).next().map(str::to_owned));
        }
    }
    assert!(names.contains("SYNCCTL_DATABASE_URL"), "{names:?}");
    names
}

#[test]
fn help_hides_the_values_of_secret_variables() {
    let secret =
        |name: &&String| ["URL", "TOKEN", "SECRET", "PASSWORD", "CONFIG", "KEY"].iter().any(|word| name.contains(word));
    let variables = variables();
    for words in commands() {
        for flag in ["--help", "-h"] {
            let program = Program::new(&words).with(&[flag]);
            let program = variables.iter().filter(secret).fold(program, |program, name| program.env(name, MARKER));
            let help = program.run();
            help.code(0).hides(MARKER);
        }
    }
}

#[test]
fn usage_errors_hide_the_values_of_variables() {
    let program = cluster::nowhere(&["spec", "airbyte/source-faker:1", "--nonsense"]);
    program.env("SYNCCTL_DATABASE_URL", MARKER).run().code(2).hides(MARKER);
    let malformed = cluster::nowhere(&["spec", "airbyte/source-faker:1", "-o", "json"]);
    let done = malformed.env("SYNCCTL_DATABASE_URL", &format!("postgresql://a:{MARKER}@[broken")).run();
    done.hides(MARKER);
    assert!(matches!(done.code, Some(2 | 3)), "{done}");
}

#[test]
fn usage_errors_are_printable() {
    for hostile in ["--\u{1b}[2J\u{202e}", "--output=\u{1b}]0;title\u{7}", "a/b:\u{9b}1m"] {
        let done = Program::new(&["check", hostile, "--config", "/nonexistent\u{1b}[2J"]).run();
        let is_shown = |c: char| c == '\n' || !c.is_control() && c != '\u{202e}';
        assert!(!done.stderr.is_empty() && done.stderr.chars().all(is_shown), "{:?}", done.stderr);
    }
}

/// `tests/golden` holds the `--help` of each command, so that a review shows changes.
#[test]
fn help_matches_the_golden_files() {
    let folder = root().join("tests/golden");
    let update = std::env::var("SYNCCTL_TEST_UPDATE").is_ok_and(|value| value == "1");
    let mut expected = BTreeSet::new();
    for words in commands() {
        let file: PathBuf =
            folder.join(format!("{}.txt", [&["syncctl".to_owned()], words.as_slice()].concat().join("-")));
        let help = Program::new(&words).with(&["--help"]).run().code(0).stdout.clone();
        if update {
            std::fs::create_dir_all(&folder).expect("a folder");
            std::fs::write(&file, &help).expect("a golden file");
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            golden == help,
            "{} differs: run `make generate` if that is intended\n--- golden\n{golden}\n--- actual\n{help}",
            file.display()
        );
        expected.insert(file);
    }
    for entry in std::fs::read_dir(&folder).expect("tests/golden") {
        let path = entry.expect("an entry").path();
        assert!(expected.contains(&path), "{} belongs to no command", path.display());
    }
}

#[test]
fn a_closed_stdout_is_not_an_error() {
    for arguments in [&["image"][..], &["generate", "bash"], &["--help"], &["read", "--help"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_syncctl"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("panicked") && !stderr.contains("error"), "{arguments:?}: {stderr}");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
    }
}

#[test]
fn invalid_usage_exits_with_2() {
    for (label, arguments) in [
        ("nothing", &[][..]),
        ("no such command", &["fetch"]),
        ("no image", &["spec"]),
        ("no version", &["spec", "--package", "airbyte/source-faker"]),
        ("image and package", &["spec", "a/b:1", "--package", "a/b", "--version", "1"]),
        ("no configuration", &["check", "a/b:1"]),
        ("no such format", &["spec", "a/b:1", "-o", "xml"]),
        ("no duration", &["spec", "a/b:1", "--timeout", "soon"]),
        ("a timeout of zero", &["spec", "a/b:1", "--timeout", "0"]),
        ("no sync", &["read", "a/b:1", "--config", "a", "--catalog", "b", "--destination-config", "c"]),
        (
            "max records of zero",
            &["read", "a/b:1", "--config", "a", "--catalog", "b", "--sync-id", "s", "--max-records", "0"],
        ),
        ("no name of an image", &["image", "--name", "a b"]),
    ] {
        let done = cluster::nowhere(arguments).run();
        assert_eq!(done.code, Some(2), "{label}\n{done}");
        assert_eq!(done.stdout, "", "{label}");
        assert_ne!(done.stderr, "", "{label}");
    }
}

#[test]
fn empty_ids_are_rejected() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("f"), "{}").expect("a file");
    let files = ["--config", "f", "--catalog", "f", "--destination-config", "f", "-o", "json"];
    for (label, ids) in [("sync", ["--sync-id", " ", "--task-id", "t"]), ("task", ["--sync-id", "s", "--task-id", ""])]
    {
        let done = cluster::nowhere(&["read", "a/b:1"]).with(&files).with(&ids).current_dir(folder.path()).run();
        done.fails(2, "USAGE", &[&format!("--{label}-id")]);
    }
}

#[test]
fn a_read_needs_a_destination_or_a_default_in_the_settings() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("config"), "{}").expect("a file");
    std::fs::write(folder.path().join("catalog"), catalog(&["s"]).to_string()).expect("a file");
    std::fs::write(folder.path().join("foreign"), r#"{"destinationType":"bulker","url":"http://x"}"#).expect("a file");
    let read = ["read", "a/b:1", "--config", "config", "--catalog", "catalog", "--sync-id", "s", "-o", "json"];
    let read = || cluster::nowhere(&read).current_dir(folder.path());
    read().run().fails(2, "USAGE", &["--destination-config", "SYNCCTL_BULKER_URL"]);
    let url = "https://bulker.example.com";
    let done = read().env("SYNCCTL_BULKER_URL", url).run();
    done.fails(2, "USAGE", &["invalid destination of SYNCCTL_BULKER_URL", "authToken: is required"]);
    let (url_variable, token_variable) = ("SYNCCTL_BULKER_URL", "SYNCCTL_BULKER_AUTH_TOKEN");
    let done = read().env(token_variable, "t0ken-t0ken").run();
    done.fails(2, "USAGE", &["SYNCCTL_BULKER_AUTH_TOKEN is set without SYNCCTL_BULKER_URL"]).hides("t0ken");
    let done = read().env(url_variable, "s3cret.example.com").env(token_variable, "t0ken-t0ken").run();
    done.fails(2, "USAGE", &["SYNCCTL_BULKER_URL is not a URL"]).hides("s3cret");
    // The token of the settings belongs to their URL.
    let foreign =
        read().with(&["--destination-config", "foreign"]).env(url_variable, url).env(token_variable, "t0ken-t0ken");
    foreign.run().fails(2, "INVALID_INPUT", &["foreign: ", "authToken: is required"]).hides("t0ken");
    // With both it continues to the database, which is unreachable.
    let done = read().env(url_variable, url).env(token_variable, "t0ken-t0ken").run();
    done.fails(3, "DATABASE_UNREACHABLE", &[]).hides("t0ken");
}

#[test]
fn max_records_is_positive_and_needs_our_own_sidecar() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("f"), "{}").expect("a file");
    std::fs::write(folder.path().join("catalog"), catalog(&["s"]).to_string()).expect("a file");
    std::fs::write(folder.path().join("nowhere"), r#"{"destinationType":"discard"}"#).expect("a file");
    let read = |records| {
        cluster::nowhere(&["read", "a/b:1", "--config", "f", "--catalog", "catalog", "--sync-id", "s", "-o", "json"])
            .with(&["--destination-config", "nowhere", "--max-records", records])
            .current_dir(folder.path())
    };
    for records in ["0", "-1", "ten", ""] {
        let done = read(records).run();
        assert_eq!(done.code, Some(2), "{records}\n{done}");
        assert!(done.stderr.contains("expected at least 1") || records == "-1", "{records}\n{done}");
    }
    let foreign = read("10").env("SYNCCTL_INIT_IMAGE", "alpine:3").run();
    foreign.fails(2, "USAGE", &["--max-records", "SYNCCTL_INIT_IMAGE"]);
    // It continues to the database, which is unreachable.
    read("10").run().fails(3, "DATABASE_UNREACHABLE", &[]);
}

#[test]
fn version_and_help_go_to_stdout() {
    let version = Program::new(&["--version"]).run();
    assert_eq!(version.code(0).stdout.trim(), concat!("syncctl ", env!("CARGO_PKG_VERSION")));
    let help = Program::new(&["--help"]).run();
    assert!(help.code(0).stdout.contains("Exit codes: 0 success; 1 the connector failed"), "{help}");
}

#[test]
fn a_flag_overrides_its_variable() {
    let program = cluster::nowhere(&["spec", "a/b:1", "-o", "json", "--container-init-timeout-seconds", "never"]);
    let done = program.env("SYNCCTL_CONTAINER_INIT_TIMEOUT_SECONDS", "8").run();
    done.fails(2, "USAGE", &["never"]);
}

#[test]
fn failures_are_printed_as_json_or_yaml_only_on_request() {
    let arguments = ["spec", "not-an-image"];
    let json = cluster::nowhere(&arguments).with(&["-o", "json"]).run();
    let document = json.fails(2, "USAGE", &[]).json();
    let keys: Vec<&String> = document.as_object().expect("a map").keys().collect();
    assert_eq!(keys, ["status", "class", "error", "hint"]);
    let yaml = cluster::nowhere(&arguments).with(&["-o", "yaml"]).run();
    let from_yaml: serde_json::Value = serde_yaml::from_str(&yaml.code(2).stdout).expect("YAML");
    assert_eq!(from_yaml, document);
    let text = cluster::nowhere(&arguments).with(&["-o", "text"]).run();
    assert_eq!(text.code(2).stdout, "");
}

#[test]
fn the_image_is_reproducible() {
    let image = || {
        let output = Command::new(env!("CARGO_BIN_EXE_syncctl")).arg("image").output().expect("the program runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert!(image() == image());
}
