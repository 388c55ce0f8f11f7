//! Who may call: bearer tokens, compared by their digests in constant time, and what each may do.
//!
//! Tokens of SYNCCTL_AUTH_TOKENS have all rights and no name; those of SYNCCTL_TOKENS_FILE have a name and may have limits.
//! Knows neither requests nor the environment. Errors name the place of an entry and never quote a token.

mod add;
mod caller;
pub mod entries;
mod file;
mod hash;
mod named;
mod verb;

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use secrecy::ExposeSecret;
use subtle::{Choice, ConstantTimeEq};

use crate::failure::{Class, Failure};
use crate::secret::Secret;

pub use add::add;
pub use caller::{Caller, Denial};
pub use entries::{Entry, append};
pub use hash::{MAX_TOKEN_BYTES, check_token, default_secrets, hashed, parse_secrets};
pub use verb::Verb;

use file::TokensFile;
use hash::{Hash, Hashed, digest};

/// Plain tokens and `salt.hash` pairs.
const AUTH_TOKENS: &str = "SYNCCTL_AUTH_TOKENS";
/// Plain tokens with any characters.
const RAW_AUTH_TOKENS: &str = "SYNCCTL_RAW_AUTH_TOKENS";

/// The accepted tokens. Plain ones are stored as digests.
pub struct Tokens {
    plain: Vec<Hash>,
    hashed: Vec<Hashed>,
    /// Those with a name.
    file: Option<Arc<TokensFile>>,
    secrets: Vec<Secret>,
    has_own_secret: bool,
}

/// Why a request has no caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unidentified {
    /// It has no token, or one that is not known.
    Unknown,
    /// Its token was valid; its name.
    Expired(String),
}

impl Tokens {
    /// Parses the three lists and reports all problems together. A list that is set but contains no token is an error:
    /// it would open the service by accident.
    pub fn parse(
        auth_tokens: Option<&Secret>,
        raw_tokens: Option<&Secret>,
        secrets: Option<&Secret>,
    ) -> Result<Self, Failure> {
        let mut problems = Vec::new();
        let own_secrets = parse_secrets(secrets, &mut problems);
        let mut tokens = Self {
            plain: Vec::new(),
            hashed: Vec::new(),
            file: None,
            has_own_secret: !own_secrets.is_empty(),
            secrets: if own_secrets.is_empty() { default_secrets() } else { own_secrets },
        };
        each_entry(auth_tokens, AUTH_TOKENS, &mut problems, |entry| tokens.add(entry));
        each_entry(raw_tokens, RAW_AUTH_TOKENS, &mut problems, |entry| tokens.add_raw(entry));
        if problems.is_empty() {
            Ok(tokens)
        } else {
            Err(Failure::new(Class::Usage, format!("invalid settings:\n{}", problems.join("\n"))))
        }
    }

    /// Adds the tokens of a file, which is read again whenever it changes.
    pub fn with_file(self, path: &Path) -> Result<Self, Failure> {
        let file = TokensFile::open(path)
            .map_err(|error| Failure::new(Class::Usage, format!("SYNCCTL_TOKENS_FILE: {error}")))?;
        Ok(Self { file: Some(file), ..self })
    }

    /// Whether requests need no token.
    pub fn is_open(&self) -> bool {
        // Each list that is set has an entry.
        self.plain.is_empty() && self.hashed.is_empty() && self.file.is_none()
    }

    /// Whether there are hashes, and anybody knows the secret that they were made with: a token can be guessed offline.
    pub fn has_public_secret(&self) -> bool {
        let has_hashes = !self.hashed.is_empty() || self.file.as_ref().is_some_and(|file| !file.tokens().is_empty());
        has_hashes && !self.has_own_secret
    }

    /// Who sends a request with this value of the `Authorization` header.
    pub fn identify(&self, authorization: Option<&str>) -> Result<Caller, Unidentified> {
        self.identify_at(authorization, Timestamp::now())
    }

    fn identify_at(&self, authorization: Option<&str>, now: Timestamp) -> Result<Caller, Unidentified> {
        if self.is_open() {
            return Ok(Caller::default());
        }
        let (scheme, token) =
            authorization.and_then(|value| value.trim().split_once(' ')).ok_or(Unidentified::Unknown)?;
        let token = token.trim();
        if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err(Unidentified::Unknown);
        }
        // Compares all tokens: the time does not depend on which one matches.
        let mut is_unnamed = Choice::from(0);
        let plain = digest(&[token]);
        for known in &self.plain {
            is_unnamed |= plain.ct_eq(known);
        }
        for known in &self.hashed {
            is_unnamed |= known.is_of(token, &self.secrets);
        }
        let mut named = None;
        for known in self.file.iter().flat_map(|file| file.tokens().to_vec()) {
            if bool::from(known.hash.is_of(token, &self.secrets)) {
                named.get_or_insert(known);
            }
        }
        match named {
            _ if is_unnamed.into() => Ok(Caller::default()),
            None => Err(Unidentified::Unknown),
            Some(token) if token.is_expired(now) => Err(Unidentified::Expired(token.name.clone())),
            Some(token) => Ok(Caller::from(token)),
        }
    }

    fn add(&mut self, entry: &str) -> Result<(), &'static str> {
        // A plain token contains no dot.
        if entry.contains('.') {
            self.hashed.push(Hashed::parse(entry)?);
        } else {
            check_token(entry)?;
            self.plain.push(digest(&[entry]));
        }
        Ok(())
    }

    fn add_raw(&mut self, entry: &str) -> Result<(), &'static str> {
        if !entry.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the token contains a character other than visible ASCII");
        }
        if entry.len() > MAX_TOKEN_BYTES {
            return Err("the token is longer than 4096 characters");
        }
        self.plain.push(digest(&[entry]));
        Ok(())
    }
}

fn each_entry(
    list: Option<&Secret>,
    variable: &str,
    problems: &mut Vec<String>,
    mut add: impl FnMut(&str) -> Result<(), &'static str>,
) {
    let Some(list) = list else { return };
    let mut seen = false;
    // Positions count all entries, so that commas can be counted to find one.
    for (index, entry) in list.expose_secret().split(',').map(str::trim).enumerate() {
        if entry.is_empty() {
            continue;
        }
        seen = true;
        if let Err(error) = add(entry) {
            let mut problem = String::new();
            write!(problem, "  {variable}: entry {}: {error}", index + 1).expect("writing to a string");
            problems.push(problem);
        }
    }
    if !seen {
        problems.push(format!("  {variable} is set but contains no token: set one, or unset it to run without tokens"));
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_TOKEN_BYTES, Tokens, hashed};
    use crate::failure::Failure;
    use crate::secret::Secret;
    use base64::Engine;

    /// sha512("token" + "salt" + "secret"), from another program.
    const KNOWN: &str = "c5988a5c9c1ab212a7baadcb9fbe8b88ae9ace3e8364543905db4fa191a72c9d\
        d0882a842f492013cb692e66f5de168338988ae703701f5956d3e2eb46cd4ced";

    fn tokens(auth: Option<&str>, raw: Option<&str>, secrets: Option<&str>) -> Result<Tokens, Failure> {
        let [auth, raw, secrets] = [auth, raw, secrets].map(|text| text.map(Secret::from));
        Tokens::parse(auth.as_ref(), raw.as_ref(), secrets.as_ref())
    }

    fn accepts(tokens: &Tokens, token: &str) -> bool {
        tokens.identify(Some(&format!("Bearer {token}"))).is_ok()
    }

    #[test]
    fn hash_of_another_program_is_accepted_in_lower_and_upper_case() {
        for digits in [KNOWN.to_owned(), KNOWN.to_uppercase()] {
            let tokens = tokens(Some(&format!("salt.{digits}")), None, Some("secret")).expect("tokens");
            assert!(accepts(&tokens, "token"));
            assert!(!accepts(&tokens, "token2"));
            assert!(!accepts(&tokens, &format!("salt.{digits}")), "the stored form is not a token");
        }
        assert_eq!(hashed("token", "salt", &"secret".into()), format!("salt.{KNOWN}"));
    }

    #[test]
    fn all_tokens_and_secrets_are_compared() {
        let old = hashed("one", "s1", &"old".into());
        let new = hashed("two", "s2", &"new".into());
        let none = hashed("three", "s3", &"".into());
        let list = format!(" plain-1 ,{old}, {new},,plain_2,{none},");
        let tokens = tokens(Some(&list), Some("raw.with.dots, a+b/c=="), Some("new, old")).expect("tokens");
        assert!(!tokens.is_open());
        for token in ["plain-1", "plain_2", "one", "two", "raw.with.dots", "a+b/c=="] {
            assert!(accepts(&tokens, token), "{token}");
        }
        for token in ["three", "plain-1x", "plain-", "", "s1", "raw", "new", &old] {
            assert!(!accepts(&tokens, token), "{token}");
        }
    }

    #[test]
    fn without_a_secret_the_public_one_and_the_empty_one_are_compared() {
        // sha512("token" + "salt" + the built-in secret), from another program.
        let known = "737946c4191d35367d38bdabbbf2975e5804f6919b1db33d416054a7b6deaed7795bc0980c14be6403d970e91e9dc0bc3b62f39b792653f3059c007b28cca29d";
        for (label, digits) in
            [("public", known.to_owned()), ("empty", hashed("token", "salt", &"".into())[5..].to_owned())]
        {
            let list = format!("salt.{digits}");
            for secret in [None, Some("")] {
                let tokens = tokens(Some(&list), None, secret).expect("tokens");
                assert!(accepts(&tokens, "token") && !accepts(&tokens, "token2"), "{label}");
                assert!(tokens.has_public_secret(), "{label}");
            }
            let with_secret = tokens(Some(&list), None, Some("secret")).expect("tokens");
            assert!(!accepts(&with_secret, "token") && !with_secret.has_public_secret(), "{label}");
        }
        assert!(!tokens(Some("plain"), None, None).expect("tokens").has_public_secret());
    }

    #[test]
    fn hashes_in_base64_are_accepted_with_and_without_padding() {
        let bytes = hex::decode(KNOWN).expect("hex digits");
        let padded = base64::engine::general_purpose::STANDARD.encode(&bytes);
        assert!(padded.ends_with("=="));
        for text in [padded.as_str(), padded.trim_end_matches('=')] {
            let tokens = tokens(Some(&format!("salt.{text}")), None, Some("other,secret")).expect("tokens");
            assert!(accepts(&tokens, "token") && !accepts(&tokens, "token2") && !accepts(&tokens, text));
        }
        let short = base64::engine::general_purpose::STANDARD.encode(&bytes[1..]);
        assert!(tokens(Some(&format!("salt.{short}")), None, None).is_err());
    }

    #[test]
    fn header_must_be_one_bearer_token() {
        let tokens = tokens(Some("abc"), None, None).expect("tokens");
        for fine in ["Bearer abc", "bearer abc", "BEARER abc", "Bearer   abc", "Bearer abc "] {
            assert!(tokens.identify(Some(fine)).is_ok(), "{fine:?}");
        }
        for bad in
            ["", "abc", "Bearer", "Bearer ", "Basic abc", "Bearerabc", "Bearer abc def", "Bearer ab c", "Bearer,abc"]
        {
            assert!(tokens.identify(Some(bad)).is_err(), "{bad:?}");
        }
        assert!(tokens.identify(None).is_err());
    }

    #[test]
    fn oversized_token_is_rejected() {
        let longest = "a".repeat(MAX_TOKEN_BYTES);
        let tokens = tokens(None, Some(&longest), None).expect("tokens");
        assert!(accepts(&tokens, &longest));
        assert!(!accepts(&tokens, &format!("{longest}a")));
    }

    #[test]
    fn service_is_open_only_without_any_list() {
        let open = tokens(None, None, Some("secret")).expect("tokens");
        assert!(open.is_open() && open.identify(None).is_ok() && open.identify(Some("Bearer whatever")).is_ok());
        for (label, auth, raw) in [
            ("empty", Some(""), None),
            ("blank", Some("  "), None),
            ("commas", Some(" ,, "), None),
            ("empty raw list", None, Some("")),
            ("one of two is empty", Some("abc"), Some(",")),
        ] {
            let error = tokens(auth, raw, None).err().unwrap_or_else(|| panic!("{label} was accepted"));
            assert!(error.text.contains("contains no token"), "{label}: {error}");
        }
    }

    #[test]
    fn malformed_entries_are_reported_by_position_and_not_quoted() {
        let bad_hash = format!("hunter2.{}", &KNOWN[1..]);
        let no_hex = format!("hunter2.{}g", &KNOWN[1..]);
        let empty_salt = format!(".{KNOWN}");
        for (label, auth, raw, secret, expected) in [
            ("a blank", Some("ok,hunter2 x"), None, None, "SYNCCTL_AUTH_TOKENS: entry 2: the token contains"),
            ("a plus", Some("ok,,hunter2+"), None, None, "SYNCCTL_AUTH_TOKENS: entry 3: the token contains"),
            ("an umlaut", Some("hunter2ä"), None, None, "entry 1: the token contains"),
            (
                "a short hash",
                Some(&bad_hash[..]),
                None,
                None,
                "entry 1: the hash after the dot is neither 128 hex digits nor",
            ),
            ("no hex", Some(&no_hex[..]), None, None, "entry 1: the hash after the dot is neither 128 hex digits nor"),
            ("no salt", Some(&empty_salt[..]), None, None, "entry 1: the salt before the dot is empty"),
            ("nothing after the dot", Some("hunter2."), None, None, "entry 1: the hash after the dot is neither"),
            ("a blank salt", Some("hunter2 x.ab"), None, None, "entry 1: the salt contains"),
            ("a raw umlaut", None, Some("a,hunter2ä"), None, "SYNCCTL_RAW_AUTH_TOKENS: entry 2: the token contains"),
            ("no secret", Some("a"), None, Some(" , "), "SYNCCTL_TOKEN_SECRET is set but contains no secret"),
        ] {
            let error = tokens(auth, raw, secret).err().unwrap_or_else(|| panic!("{label} was accepted")).to_string();
            assert!(error.contains(expected), "{label}: {error}");
            assert!(!error.contains("hunter2") && !error.contains(&KNOWN[1..20]), "{label}: {error}");
        }
    }

    #[test]
    fn all_problems_are_reported_together() {
        let error = tokens(Some("a b,c d"), Some(""), None).err().expect("problems").to_string();
        for part in ["entry 1", "entry 2", "SYNCCTL_RAW_AUTH_TOKENS is set"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
