//! `syncctl token create`: creates a named token with limits, and its entry in the tokens file.

use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::json;

use super::{Created, TokenSource};
use crate::env;
use crate::failure::{Class, Failure};
use crate::output::Output;
use crate::server::auth::{self, Entry, Verb};

/// Create a token with a name and limits, and its entry in the file of SYNCCTL_TOKENS_FILE
///
/// The token is printed once; the file holds its hash. A limit that is not given does not apply. In patterns * stands for
/// any characters. A running service reads the changed file by itself. Without a file the entry is printed.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Name of the token in logs, metrics and `started_by`
    #[arg(long, value_name = "NAME")]
    name: String,
    /// When it expires, e.g. 2027-01-31T00:00:00Z [default: never]
    #[arg(long, value_name = "TIME", value_parser = future)]
    expires: Option<Timestamp>,
    /// What it may do: spec, check, discover, read, cancel, tasks, logs or metrics; repeat it for several [default: all;
    /// with patterns all but metrics]
    #[arg(long = "verb", value_name = "VERB")]
    verbs: Vec<Verb>,
    /// Pattern for ids of syncs that it may use and see, e.g. 'team-a-*'; repeat it for several [default: all]
    #[arg(long = "sync", value_name = "PATTERN")]
    sync_ids: Vec<String>,
    /// Pattern for storage keys that it may use [default: all]
    #[arg(long = "storage-key", value_name = "PATTERN")]
    storage_keys: Vec<String>,
    /// Pattern for connector images that it may run, e.g. 'airbyte/*:7.*' or '*@sha256:*' [default: all]
    #[arg(long = "image", value_name = "PATTERN")]
    images: Vec<String>,
    /// How many of its tasks may run at a time [default: any number]
    #[arg(long, value_name = "N")]
    max_tasks: Option<u32>,
    /// How many requests it may send to one process of the service in a minute [default: any number]
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u32>,
    /// File that gets the entry; created if missing
    #[arg(long, env = env::TOKENS_FILE.name, hide_env_values = true, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    source: TokenSource,
}

fn future(text: &str) -> Result<Timestamp, String> {
    let time: Timestamp = text.parse().map_err(|_| "expected a time such as 2027-01-31T00:00:00Z".to_owned())?;
    if time > Timestamp::now() { Ok(time) } else { Err("expected a time in the future".to_owned()) }
}

pub(super) fn run(args: CreateArgs) -> u8 {
    let CreateArgs {
        name,
        expires,
        verbs,
        sync_ids,
        storage_keys,
        images,
        max_tasks,
        requests_per_minute,
        file,
        source,
    } = args;
    let output = Output::new(source.output, false);
    let file = file.filter(|path| !path.as_os_str().is_empty());
    let result = source.create().and_then(|created| {
        let hashed = created.hashed.clone();
        let entry =
            Entry { name, hashed, expires, verbs, sync_ids, storage_keys, images, max_tasks, requests_per_minute };
        let added = match &file {
            Some(file) => auth::add(file, &entry),
            None => auth::append("", &entry).map(drop),
        };
        added.map_err(|error| Failure::new(Class::InvalidInput, error))?;
        Ok((created, entry))
    });
    let (Created { token, hashed, has_public_secret }, entry) = match result {
        Ok(created) => created,
        Err(failure) => return output.failure(&failure),
    };
    super::warn_of_public_secret(&output, has_public_secret);
    let name = &entry.name;
    let place = match &file {
        Some(file) => format!("Its entry is in {}.", file.display()),
        None => format!("Its entry for the service's SYNCCTL_TOKENS_FILE:\n{}", entry.lines("").trim_end()),
    };
    let text = format!(
        "Token {name}, for the client's header \"Authorization: Bearer TOKEN\"; it is not stored:\n  {token}\n{place}"
    );
    output.result_with_text(&text, &json!({"name": name, "token": token, "hashed": hashed, "file": file}))
}
