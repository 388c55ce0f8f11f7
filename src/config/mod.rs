//! Settings: flag > environment > default, resolved once into types. Names, defaults and help texts come from
//! [`crate::env`].
//!
//! Every value arrives as text, so that an empty variable counts as absent (manifests often carry such) and everything
//! that is missing or malformed is reported at once. Nothing else in the program reads the environment, except for the
//! sidecar's own contract and what a local task and the embedded database pass on unread.

mod directories;
mod ownership;
mod serve;
mod settings;

pub use directories::DirectoryArgs;
pub use serve::{ConsoleSettings, ServeSettings, ServeSettingsArgs, TlsFiles};
pub use settings::{BulkerSettings, Engine, OwnImage, Purpose, Settings, SettingsArgs};

use std::fmt::Display;
use std::time::Duration;

use crate::env::{self, Variable};
use crate::failure::{Class, Failure};

/// Gives an argument that is read from an environment variable its help text and placeholder, and hides a secret's value.
fn describe(argument: clap::Arg) -> clap::Arg {
    let is_of = |variable: &&Variable| argument.get_env().is_some_and(|name| name == variable.name);
    let Some(variable) = env::ALL.iter().find(is_of) else { return argument };
    argument.help(variable.help()).value_name(variable.value).hide_env_values(variable.is_secret)
}

/// A value that counts as absent where it is blank.
fn present(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.trim().is_empty())
}

/// Reads values and collects what is missing or malformed, so that all of it is reported at once.
#[derive(Default)]
struct Problems {
    missing: Vec<String>,
    malformed: Vec<String>,
    /// Which default a number has.
    is_local: bool,
}

/// The values of a switch that is on by default, as the existing implementation reads them.
const SWITCH: [(&str, bool); 6] =
    [("true", true), ("false", false), ("1", true), ("0", false), ("t", true), ("f", false)];

impl Problems {
    fn required(&mut self, value: Option<String>, variable: &Variable, flag: &str, example: &str) -> String {
        present(value).unwrap_or_else(|| {
            self.missing.push(format!("  {} (or {flag}), e.g. {example}", variable.name));
            String::new()
        })
    }

    /// Reports a value; secrets must not get here.
    fn malformed(&mut self, variable: &Variable, value: impl Display, expected: &str) {
        self.malformed.push(format!("  {} is {value}: expected {expected}", variable.name));
    }

    fn number(&mut self, value: Option<String>, variable: &Variable) -> u32 {
        let default = variable.number(self.is_local);
        let Some(text) = present(value) else { return default };
        text.parse().unwrap_or_else(|_| {
            self.malformed(variable, format_args!("{text:?}"), &format!("a whole number such as {default}"));
            default
        })
    }

    /// A number without a default of its own.
    fn optional_number(&mut self, value: Option<String>, variable: &Variable) -> Option<u32> {
        let text = present(value)?;
        let number = text.parse().ok();
        if number.is_none() {
            self.malformed(variable, format_args!("{text:?}"), "a whole number");
        }
        number
    }

    fn at_least_one(&mut self, value: Option<String>, variable: &Variable) -> u32 {
        let number = self.number(value, variable);
        if number == 0 {
            self.malformed(variable, 0, "at least 1");
        }
        number
    }

    fn seconds(&mut self, value: Option<String>, variable: &Variable) -> Duration {
        Duration::from_secs(u64::from(self.at_least_one(value, variable)))
    }

    /// One of some words, in any case; the first one is the default.
    fn choice<T: Copy>(&mut self, value: Option<String>, variable: &Variable, choices: &[(&str, T)]) -> T {
        let default = choices[0].1;
        let Some(text) = present(value).map(|text| text.to_ascii_lowercase()) else { return default };
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
            return *choice;
        }
        let mut words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let last = words.pop().unwrap_or_default();
        self.malformed(variable, format_args!("{text:?}"), &format!("{} or {last}", words.join(", ")));
        default
    }

    fn into_result(self) -> Result<(), Failure> {
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!("missing settings:\n{}", self.missing.join("\n")));
        }
        if !self.malformed.is_empty() {
            parts.push(format!("malformed settings:\n{}", self.malformed.join("\n")));
        }
        if parts.is_empty() { Ok(()) } else { Err(Failure::new(Class::Usage, parts.join("\n"))) }
    }
}
