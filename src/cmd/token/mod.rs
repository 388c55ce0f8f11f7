//! `syncctl token`: creates a token for the HTTP service, and its salted hash.

mod create;

use std::io::Read;

use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::json;

use crate::env;
use crate::failure::{Class, Failure};
use crate::output::{Format, Output};
use crate::secret::Secret;
use crate::server::auth;

/// Bytes of a token: 256 bits cannot be guessed.
const TOKEN_BYTES: usize = 32;
/// Bytes of a salt.
const SALT_BYTES: usize = 16;

/// Create a token for `syncctl serve`, and its salted hash for SYNCCTL_AUTH_TOKENS
///
/// The client sends the token; the service needs only the hash. Set the same SYNCCTL_TOKEN_SECRET for this command and
/// for the service. If it lists several secrets, the first one is used. Without one, the public secret of Jitsu's
/// sync-controller is used, and a warning reports it.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: Option<TokenCommand>,
    #[command(flatten)]
    source: TokenSource,
}

#[derive(Debug, clap::Subcommand)]
enum TokenCommand {
    Create(Box<create::CreateArgs>),
}

/// Where a token comes from, and how it is hashed and printed.
#[derive(Debug, clap::Args)]
struct TokenSource {
    /// Hash an existing token: - reads it from stdin, where other users cannot see it [default: a new token]
    #[arg(long, value_name = "-", allow_hyphen_values = true)]
    token: Option<String>,
    /// Print the result (and a failure) in this form [default: text on a terminal, else json]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    /// Secret that is hashed with the token; set it in the environment, where other users cannot see it
    #[arg(long, env = env::TOKEN_SECRET.name, hide_env_values = true, value_name = "SECRET")]
    token_secret: Option<String>,
}

pub(super) fn run(args: TokenArgs) -> u8 {
    if let Some(TokenCommand::Create(args)) = args.command {
        return create::run(*args);
    }
    let output = Output::new(args.source.output, false);
    match args.source.create() {
        Ok(Created { token, hashed, has_public_secret }) => {
            warn_of_public_secret(&output, has_public_secret);
            let text = format!(
                "Token, for the client's header \"Authorization: Bearer TOKEN\":\n  {token}\n\
                 Its salted hash, for the service's SYNCCTL_AUTH_TOKENS:\n  {hashed}"
            );
            output.result_with_text(&text, &json!({"token": token, "hashed": hashed}))
        }
        Err(failure) => output.failure(&failure),
    }
}

impl TokenSource {
    fn create(self) -> Result<Created, Failure> {
        create(self.token.as_deref(), self.token_secret.map(Secret::from).as_ref())
    }
}

fn warn_of_public_secret(output: &Output, has_public_secret: bool) {
    if has_public_secret {
        output.progress().notice(
            "warning: SYNCCTL_TOKEN_SECRET is not set: the token is hashed with the public secret of Jitsu's \
             sync-controller, so anyone who reads the hash can test guesses of the token offline",
        );
    }
}

struct Created {
    token: String,
    /// The `salt.hash` of the token.
    hashed: String,
    has_public_secret: bool,
}

fn create(given: Option<&str>, secrets: Option<&Secret>) -> Result<Created, Failure> {
    let mut problems = Vec::new();
    let mut secrets = auth::parse_secrets(secrets, &mut problems);
    if !problems.is_empty() {
        return Err(Failure::new(Class::Usage, problems.join("\n").trim().to_owned()));
    }
    let has_public_secret = secrets.is_empty();
    if has_public_secret {
        secrets = auth::default_secrets();
    }
    let secret = secrets.swap_remove(0);
    let token = match given {
        None => random(TOKEN_BYTES)?,
        Some("-") => from_stdin()?,
        Some(_) => {
            let text = "--token accepts only -: other users can see arguments, so the token is read from stdin";
            return Err(Failure::new(Class::Usage, text));
        }
    };
    let hashed = auth::hashed(&token, &random(SALT_BYTES)?, &secret);
    Ok(Created { token, hashed, has_public_secret })
}

fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    // One byte over the limit, and a line break.
    let max = auth::MAX_TOKEN_BYTES as u64 + 3;
    std::io::stdin()
        .take(max)
        .read_to_string(&mut text)
        .map_err(|error| Failure::new(Class::InvalidInput, format!("cannot read the token from stdin: {error}")))?;
    let token = text.trim_end_matches(['\r', '\n']);
    auth::check_token(token).map_err(|error| Failure::new(Class::InvalidInput, format!("stdin: {error}")))?;
    Ok(token.to_owned())
}

/// Random bytes as hexadecimal digits.
fn random(bytes: usize) -> Result<String, Failure> {
    let mut random = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        match getrandom(&mut random[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return Err(Failure::new(Class::Internal, format!("cannot read random bytes: {error}")));
            }
        }
    }
    Ok(hex::encode(random))
}

#[cfg(test)]
mod tests {
    use super::{Created, Secret, auth, create};

    #[test]
    fn new_token_is_unique_and_accepted_by_its_hash() {
        let secrets = Secret::from("new,old");
        let Created { token, hashed, has_public_secret } = create(None, Some(&secrets)).expect("a token");
        let other = create(None, Some(&secrets)).expect("a token");
        assert!(token != other.token && !has_public_secret);
        assert_eq!((token.len(), auth::check_token(&token)), (64, Ok(())));
        let accepts = |secret: &str| {
            let tokens =
                auth::Tokens::parse(Some(&hashed.as_str().into()), None, Some(&secret.into())).expect("tokens");
            tokens.identify(Some(&format!("Bearer {token}"))).is_ok()
        };
        assert!(accepts("new"), "the first secret is used");
        assert!(accepts("older, new"));
        assert!(!accepts("old"));
    }
}
