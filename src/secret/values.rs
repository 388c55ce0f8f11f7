//! Which values look like a secret by themselves, and which parts of a value are one.

use super::names::{Hint, hint};

/// Shorter runs of letters and digits are too often words: `utf8`, `ec2`.
const MIN_RANDOM_CHARS: usize = 6;
/// Hexadecimal numbers up to this length are positions, versions and hashes of commits.
const MAX_HEX_NUMBER_CHARS: usize = 8;
/// From this length on letters alone may be random: `wJalrXUtnFEMI`.
const MIN_RANDOM_LETTERS: usize = 10;
/// Runs of this length that mix letters and digits name nothing.
const MIN_TOKEN_CHARS: usize = 20;
/// The beginnings of tokens that services give out.
const TOKEN_PREFIXES: &[&str] = &[
    "eyJ",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "xoxr-",
    "xoxs-",
    "xapp-",
    "sk_live_",
    "sk_test_",
    "rk_live_",
    "sk-",
    "AKIA",
    "ASIA",
    "AIza",
    "ya29.",
    "SG.",
    "shpat_",
    "shpss_",
    "dop_v1_",
    "npm_",
    "pypi-",
];
const MIN_PREFIXED_CHARS: usize = 16;
/// Characters of passwords that names, numbers and dates rarely have.
const PASSWORD_MARKS: &str = "!#$^*~&?";
/// Values that name a kind of credentials.
const CHOICES: &[&str] = &[
    "basic", "bearer", "oauth", "oauth2", "oauth2.0", "password", "token", "api_key", "apikey", "key", "default",
    "required",
];
/// Values that answer a question, whatever the name of their field.
const SWITCHES: &[&str] = &["true", "false", "null", "none", "enabled", "disabled"];

/// Whether a value chooses between kinds of credentials, and so is no secret in a field that may hold either.
pub fn is_choice(value: &str) -> bool {
    CHOICES.iter().any(|choice| choice.eq_ignore_ascii_case(value))
}

/// Whether a value turns something on or off, and so is no secret in a field that is named like one.
pub fn is_switch(value: &str) -> bool {
    SWITCHES.iter().any(|switch| switch.eq_ignore_ascii_case(value))
}

/// Whether a value is made of words alone.
pub fn is_words(value: &str) -> bool {
    value.len() <= 32 && !value.contains(|c: char| c.is_ascii_digit()) && !is_random(value)
}

/// Whether a value is a date or a time.
pub fn is_date(value: &str) -> bool {
    let is_part = |c: char| c.is_ascii_digit() || "-:/. TZ+".contains(c);
    let mut numbers = value.split(['-', ':', '/', '.', ' ', 'T']).map(str::len);
    // A year or a part of a date or time, and another part.
    let begins_like_one = matches!(numbers.next(), Some(1 | 2 | 4)) && matches!(numbers.next(), Some(1 | 2));
    begins_like_one && value.contains(['-', ':', '/']) && value.chars().all(is_part)
}

/// Whether a value is a token for certain: by its prefix, or because names are not like it.
pub fn is_token(value: &str) -> bool {
    let is_prefixed =
        |word: &str| word.len() >= MIN_PREFIXED_CHARS && TOKEN_PREFIXES.iter().any(|prefix| word.starts_with(prefix));
    let is_long = |run: &str| run.len() >= MIN_TOKEN_CHARS && changes(run).1 >= 4;
    value.contains("PRIVATE KEY--")
        || value.split_whitespace().any(|word| !is_host(word) && (is_prefixed(word) || runs(word).any(is_long)))
}

/// Whether a value looks random: it is no word, name, number, date, host or address.
pub fn is_random(value: &str) -> bool {
    is_token(value)
        || value.split_whitespace().any(|word| !is_name(word) && (is_password(word) || runs(word).any(is_random_run)))
}

/// Whether a value is a UUID.
pub fn is_uuid(value: &str) -> bool {
    uuid::Uuid::try_parse(value).is_ok()
}

fn is_name(word: &str) -> bool {
    is_date(word) || is_host(word) || word.rsplit_once('@').is_some_and(|(_, host)| is_host(host) && host.contains('.'))
}

/// `db-1.cluster-c9a1b2c3d4e5.eu-west-1.rds.amazonaws.com:5432`: labels in lower case, of which the last is a word.
fn is_host(word: &str) -> bool {
    let (host, port) = word.split_once(':').unwrap_or((word, "0"));
    let is_label = |label: &str| {
        (1..64).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    host.contains('.')
        && port.bytes().all(|b| b.is_ascii_digit())
        && host.split('.').all(is_label)
        && (2..16).contains(&last.len())
        && last.bytes().all(|b| b.is_ascii_lowercase())
}

/// `Summer2024!`
fn is_password(word: &str) -> bool {
    let has = |test: fn(char) -> bool| word.contains(test);
    (8..64).contains(&word.len())
        && !word.contains(['/', '='])
        && has(|c| c.is_ascii_digit())
        && has(char::is_alphabetic)
        && word.contains(|c| PASSWORD_MARKS.contains(c))
}

fn runs(word: &str) -> impl Iterator<Item = &str> {
    word.split(|c: char| !c.is_alphanumeric()).filter(|run| !run.is_empty())
}

fn is_random_run(run: &str) -> bool {
    let (case_or_kind, letter_or_digit) = changes(run);
    if run.len() <= MAX_HEX_NUMBER_CHARS && run.bytes().all(|b| b.is_ascii_hexdigit()) {
        return false;
    }
    let length = run.chars().count();
    if run.contains(|c: char| c.is_ascii_digit()) {
        // `s3cret`; but `orders2024` and `2xlarge` change once.
        return length >= MIN_RANDOM_CHARS && letter_or_digit >= 2;
    }
    let is_vowel = |c: char| "aeiouy".contains(c.to_ascii_lowercase());
    let consonants = run.split(|c: char| is_vowel(c) || !c.is_ascii_alphabetic()).map(str::len).max().unwrap_or(0);
    let is_mixed = run.contains(char::is_lowercase) && run.contains(char::is_uppercase);
    length >= MIN_RANDOM_LETTERS && (is_mixed && case_or_kind * 10 > length * 3 || consonants >= 7)
}

/// How often a run changes between upper case, lower case and digits, and how often between letters and digits.
fn changes(run: &str) -> (usize, usize) {
    let class = |c: char| if c.is_ascii_digit() { 2 } else { usize::from(c.is_uppercase()) };
    let pairs = || run.chars().map(class).zip(run.chars().map(class).skip(1));
    let all = pairs().filter(|(one, next)| one != next).count();
    (all, pairs().filter(|(one, next)| (*one == 2) != (*next == 2)).count())
}

/// The secret parts of a value that is not secret as a whole: passwords and tokens in URLs and connection strings.
pub fn secret_parts(value: &str) -> Vec<String> {
    let mut parts = Vec::new();
    for url in value.split(|c: char| c.is_whitespace() || "'\"<>".contains(c)).filter(|word| word.contains("://")) {
        let (_, rest) = url.split_once("://").unwrap_or_default();
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        // The last one: a password that is not percent-encoded may contain any character.
        let (user, path) = match rest.rsplit_once('@').filter(|(user, _)| !user.contains('?') || !place.contains('@')) {
            Some((user, _)) if place.contains('@') || user.contains(':') => {
                let after = &rest[user.len() + 1..];
                (user, after.split_once('?').map_or(after, |(path, _)| path))
            }
            _ => ("", place),
        };
        match user.split_once(':') {
            Some((_, password)) => parts.push(password.to_owned()),
            None if is_random(user) => parts.push(user.to_owned()),
            None => {}
        }
        parts.extend(path.split('/').skip(1).filter(|part| is_token(part)).map(str::to_owned));
        parts.extend(query.split(['&', '#']).filter_map(secret_of_pair));
    }
    parts.extend(value.split(|c: char| c.is_whitespace() || ";,&?".contains(c)).filter_map(secret_of_pair));
    for scheme in ["Bearer ", "Basic ", "Token "] {
        parts.extend(value.split_once(scheme).map(|(_, rest)| rest.trim().to_owned()));
    }
    let decoded = parts.iter().map(|part| percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned());
    let decoded: Vec<_> = decoded.collect();
    parts.extend(decoded);
    parts
}

/// The value of `password=value` if it is secret.
fn secret_of_pair(pair: &str) -> Option<String> {
    let (name, value) = pair.split_once('=')?;
    let value = value.trim_matches(['\'', '"']);
    let is_secret = match hint(name) {
        Hint::Secret => !is_switch(value),
        Hint::PerhapsSecret | Hint::Unknown => is_random(value),
        Hint::Plain => is_token(value),
    };
    is_secret.then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{is_random, is_token, secret_parts};

    #[test]
    fn names_and_numbers_are_not_random() {
        for value in [
            "customers",
            "orders_2024",
            "us-east-1",
            "eu-central-1a",
            "db.internal",
            "CustomerOrders",
            "oauth2.0",
            "2024-01-01T00:00:00.000Z",
            "2024-01-01 10:00:00+02:00",
            "12345678901234567890",
            "10.0.0.1:5432",
            "db-1.cluster-c9a1b2c3d4e5.eu-west-1.rds.amazonaws.com",
            "ann.smith2@example.com",
            "Read Replication (CDC)",
            "SELECT id, name FROM orders WHERE id > 5",
            "Standard_V2",
            "airbyte/source-postgres:3.6.1",
            "%Y-%m-%d",
            "0/16B3748",
            "verify-full",
            "SCRAM-SHA-256",
            "**/*.csv",
            "https://example.com/v1/items",
        ] {
            assert!(!is_random(value), "{value}");
        }
    }

    #[test]
    fn tokens_and_passwords_are_random() {
        for value in [
            "s3cret!",
            "Tr0ub4dor&3",
            "Summer2024!",
            "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "AKIAIOSFODNN7EXAMPLE",
            "9f86d081884c7d659a2feaa0c55ad015",
            "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed",
            "xkqzjvwprtnmbdfg",
            "Bearer a8f5f167f44f4964e6c998dee827110c",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
            "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----",
        ] {
            assert!(is_random(value), "{value}");
        }
        assert!(!is_token("hunter2") && !is_token("my-bucket-7f3k2j9d"));
    }

    #[test]
    fn passwords_in_urls_and_connection_strings_are_found() {
        for (value, expected) in [
            ("postgres://ann:hunter2@db/x", &["hunter2"][..]),
            ("jdbc:postgresql://db/x?user=ann&password=hunter2&ssl=true", &["hunter2"]),
            ("mongodb+srv://ann:p@ss/word@a:1,b:2/db?authSource=admin", &["p@ss/word"]),
            ("https://s3cr3ttoken@git.example.com/a", &["s3cr3ttoken"]),
            ("https://hooks.example.com/services/T01/B02/x8Kq2mZ9vL4nT7wR1cY5bD3f", &["x8Kq2mZ9vL4nT7wR1cY5bD3f"]),
            ("host=db user=ann password='hunter2' dbname=x", &["hunter2"]),
            ("Server=db;User Id=ann;Password=hunter2;AccountKey=abc==;", &["hunter2", "abc=="]),
            ("Bearer hunter2", &["hunter2"]),
            ("https://example.com/v1/items?page=2&sort=name", &[]),
            ("https://ann@example.com/", &[]),
            ("a plain text", &[]),
        ] {
            let mut parts = secret_parts(value);
            parts.sort_unstable();
            parts.dedup();
            let mut expected: Vec<_> = expected.iter().map(|part| (*part).to_owned()).collect();
            expected.sort_unstable();
            assert_eq!(parts, expected, "{value}");
        }
    }
}
