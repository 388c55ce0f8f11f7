//! `syncctl generate`: the completions, made from the same definitions as `--help`.

use std::io::Write;
use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;
use crate::failure::{Class, Failure};
use crate::output::Output;

/// Write shell completions
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
    /// Folder to write the file into [default: stdout]
    #[arg(long, value_name = "FOLDER")]
    into: Option<PathBuf>,
}

pub(super) fn run(args: GenerateArgs) -> u8 {
    let GenerateArgs { shell, into } = args;
    let mut command = Cli::command();
    let written = if let Some(folder) = into {
        clap_complete::generate_to(shell, &mut command, "syncctl", folder).map(|_| ())
    } else {
        // Not to stdout itself: clap panics when its reader goes away.
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, "syncctl", &mut script);
        match std::io::stdout().write_all(&script) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    };
    match written {
        Ok(()) => 0,
        Err(error) => {
            let failure = Failure::new(Class::Usage, format!("writing the completions: {error}"));
            Output::new(None, false).explain(&failure);
            failure.class.exit_code()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Cli, CommandFactory, Shell};

    #[test]
    fn the_completions_in_the_repository_are_those_of_this_program() {
        for (shell, file) in [(Shell::Bash, "syncctl.bash"), (Shell::Zsh, "_syncctl"), (Shell::Fish, "syncctl.fish")] {
            let mut made = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "syncctl", &mut made);
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("completions").join(file);
            let committed = std::fs::read(&path).unwrap_or_default();
            assert!(made == committed, "{} is old: run make generate", path.display());
        }
    }

    #[test]
    fn no_command_of_the_tree_is_defined_twice_or_shows_a_secret() {
        fn walk(command: &clap::Command) {
            for argument in command.get_arguments() {
                let secret = argument.get_env().is_some_and(|name| {
                    let name = name.to_string_lossy();
                    ["URL", "TOKEN", "SECRET", "CONFIG"].iter().any(|word| name.contains(word))
                });
                assert!(!secret || argument.is_hide_env_values_set(), "{} shows its value", argument.get_id());
            }
            command.get_subcommands().for_each(walk);
        }
        let command = Cli::command();
        command.clone().debug_assert();
        walk(&command);
    }
}
