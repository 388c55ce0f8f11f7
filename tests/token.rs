//! `syncctl token`: the hash follows the documented rule.

use serde_json::Value;
use sha2::{Digest, Sha512};

use super::support::Program;

/// hex(sha512(token + salt + secret))
fn hash(token: &str, salt: &str, secret: &str) -> String {
    hex::encode(Sha512::digest(format!("{token}{salt}{secret}")))
}

/// Asserts that `hashed` belongs to the token.
#[track_caller]
fn belongs(document: &Value, token: &str, secret: &str) {
    let hashed = document["hashed"].as_str().expect("a text");
    let (salt, digits) = hashed.split_once('.').expect("a dot");
    assert!(!salt.is_empty());
    assert_eq!(digits, hash(token, salt, secret));
}

/// The secret of Jitsu's sync-controller, which applies where none is set.
const PUBLIC_SECRET: &str = "dea42a58-acf4-45af-85bb-e77e94bd5025";

#[test]
fn token_is_random_and_its_hash_follows_the_rule() {
    let run = || Program::new(&["token", "-o", "json"]).env("SYNCCTL_TOKEN_SECRET", "first, second").run();
    let (one, other) = (run().code(0).json(), run().code(0).json());
    let token = one["token"].as_str().expect("a text");
    assert!(token.len() >= 43 && token.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{token}");
    assert_ne!(one["token"], other["token"]);
    belongs(&one, token, "first");
    assert!(!run().stderr.contains("SYNCCTL_TOKEN_SECRET"), "there is nothing to warn of");
    let without = Program::new(&["token"]).run();
    let document = without.code(0).json();
    belongs(&document, document["token"].as_str().expect("a text"), PUBLIC_SECRET);
    assert!(without.stderr.contains("SYNCCTL_TOKEN_SECRET is not set"), "{without}");
}

#[test]
fn existing_token_is_hashed_from_stdin() {
    for text in ["my_token-1", "my_token-1\n", "my_token-1\r\n"] {
        let document = Program::new(&["token", "--token", "-"]).stdin(text).run().code(0).json();
        assert_eq!(document["token"], "my_token-1");
        belongs(&document, "my_token-1", PUBLIC_SECRET);
    }
}

#[test]
fn text_output_explains_token_and_hash() {
    let done = Program::new(&["token", "-o", "text", "--token", "-"]).stdin("abc").run();
    let lines: Vec<&str> = done.code(0).stdout.lines().collect();
    assert!(lines[0].contains("Authorization: Bearer") && lines[1].trim() == "abc", "{done}");
    assert!(lines[2].contains("SYNCCTL_AUTH_TOKENS") && lines[3].contains('.'), "{done}");
    let yaml = Program::new(&["token", "-o", "yaml", "--token", "-"]).stdin("abc").run();
    let document: Value = serde_yaml::from_str(&yaml.code(0).stdout).expect("YAML");
    belongs(&document, "abc", PUBLIC_SECRET);
}

#[test]
fn token_in_an_argument_is_rejected_and_not_repeated() {
    let done = Program::new(&["token", "-o", "json", "--token", "hunter2"]).run();
    done.fails(2, "USAGE", &["stdin"]).hides("hunter2");
}

#[test]
fn invalid_token_is_rejected_and_not_repeated() {
    let long = "hunter2".repeat(1000);
    for (label, text) in [
        ("empty", ""),
        ("a line break alone", "\n"),
        ("a blank", "hunter2 x"),
        ("two lines", "hunter2\nhunter2"),
        ("a dot", "hunter2.x"),
        ("an umlaut", "hunter2ä"),
        ("too long", long.as_str()),
    ] {
        let done = Program::new(&["token", "-o", "json", "--token", "-"]).stdin(text).run();
        assert_eq!(done.code, Some(2), "{label}: {done}");
        done.fails(2, "INVALID_INPUT", &["stdin"]).hides("hunter2");
    }
}

#[test]
fn empty_list_of_secrets_is_rejected() {
    Program::new(&["token", "-o", "json"]).env("SYNCCTL_TOKEN_SECRET", " , ").run().fails(
        2,
        "USAGE",
        &["SYNCCTL_TOKEN_SECRET"],
    );
}
