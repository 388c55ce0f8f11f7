//! A connector under development: a command that the caller gives.

use std::path::Path;

use super::child::{self, Surroundings};
use super::{Connector, ConnectorRequest, ResolvedConnector};
use crate::failure::{Class, Failure};

/// Takes the command as it is, after a look whether it could be run at all.
pub fn find(command: &str, wanted: &ConnectorRequest<'_>) -> Result<ResolvedConnector, Failure> {
    let Some(word) = command.split_whitespace().next() else {
        return Err(Failure::new(Class::Usage, "--exec is empty: expected the connector's command")
            .with_hint("for example --exec 'python main.py'"));
    };
    if is_plain(word) {
        check(word, wanted)?;
    }
    Ok(ResolvedConnector {
        connector: Connector::Host { entrypoint: command.to_owned(), environment: Vec::new() },
        summary: format!("connector: the command {command}"),
    })
}

/// Whether a shell takes the word as it is, and not as an assignment, a quoted word or an expansion.
fn is_plain(word: &str) -> bool {
    word.chars().all(|c| c.is_alphanumeric() || "._-/+@:,%".contains(c))
}

fn check(word: &str, wanted: &ConnectorRequest<'_>) -> Result<(), Failure> {
    let ConnectorRequest { environment, working_directory: folder, .. } = *wanted;
    let refuse = |text: String, hint: &str| Err(Failure::new(Class::StartError, text).with_hint(hint));
    if word.contains('/') {
        let path = folder.join(word);
        if child::is_executable(&path) {
            return Ok(());
        }
        return match path.metadata() {
            Ok(found) if found.is_dir() => refuse(
                format!("the command of --exec cannot be run: {word} is a folder"),
                "give the path of the program in it",
            ),
            Ok(_) => refuse(
                format!("the command of --exec cannot be run: {word} is not executable"),
                "make it executable with chmod +x, or name its interpreter: --exec 'python main.py'",
            ),
            Err(_) => refuse(
                format!("the command of --exec cannot be run: there is no {word} in {}", folder.display()),
                "relative paths count from the folder that syncctl is started in",
            ),
        };
    }
    if child::program(word, environment, folder).is_some() || is_of_shell(word, wanted) {
        return Ok(());
    }
    refuse(
        format!("the command of --exec cannot be run: {word} is not in PATH"),
        "give its path, or put its folder into PATH",
    )
}

/// Whether the shell itself knows the word: `cd`, `exec`, `env`-like builtins.
fn is_of_shell(word: &str, wanted: &ConnectorRequest<'_>) -> bool {
    let limit = std::time::Duration::from_secs(5);
    let ConnectorRequest { environment, working_directory: folder, .. } = *wanted;
    let surroundings = Surroundings { environment, folder, holds: None, limit };
    child::ask(Path::new("/bin/sh"), &["-c", r#"command -v -- "$1""#, "sh", word], surroundings).is_some()
}
