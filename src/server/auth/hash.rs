//! Tokens and the digests that are stored of them. Errors never quote a token.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha512};
use subtle::{Choice, ConstantTimeEq};

use crate::secret::Secret;

/// Hashed together with a token.
const TOKEN_SECRET: &str = "SYNCCTL_TOKEN_SECRET";
/// Hashed together with a token where no secret is set. Jitsu's sync-controller publishes it in its source.
const BUILT_IN_SECRET: &str = "dea42a58-acf4-45af-85bb-e77e94bd5025";
/// Hashes of Jitsu's releases before 2024.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Longer tokens are not hashed: that would cost time.
pub const MAX_TOKEN_BYTES: usize = 4096;

/// A digest.
pub type Hash = [u8; 64];

/// The `salt.hash` pair of a token.
#[derive(Clone)]
pub struct Hashed {
    salt: Secret,
    hash: Hash,
}

impl std::str::FromStr for Hashed {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| format!("{error}: expected what `syncctl token` prints"))
    }
}

impl Hashed {
    /// Parses a pair. A hash contains no dot, so the last dot ends the salt.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (salt, digits) = text.rsplit_once('.').ok_or("it has no dot between salt and hash")?;
        if salt.is_empty() {
            return Err("the salt before the dot is empty");
        }
        if !salt.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the salt contains a character other than visible ASCII");
        }
        let hash =
            parse_hash(digits).ok_or("the hash after the dot is neither 128 hex digits nor 64 bytes in base64")?;
        Ok(Self { salt: salt.into(), hash })
    }

    /// Whether it is that of a token, hashed with one of the secrets. Compares all of them.
    pub fn is_of(&self, token: &str, secrets: &[Secret]) -> Choice {
        let mut found = Choice::from(0);
        for secret in secrets {
            found |= digest(&[token, self.salt.expose_secret(), secret.expose_secret()]).ct_eq(&self.hash);
        }
        found
    }
}

/// Checks that a token contains only the documented characters. The error does not quote it.
pub fn check_token(token: &str) -> Result<(), &'static str> {
    if token.is_empty() {
        return Err("the token is empty");
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err("the token is longer than 4096 characters");
    }
    if !token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-') {
        return Err("the token contains a character other than letters, digits, underscore and dash");
    }
    Ok(())
}

/// The list of secrets; empty if none is set.
pub fn parse_secrets(secrets: Option<&Secret>, problems: &mut Vec<String>) -> Vec<Secret> {
    let Some(text) = secrets.map(ExposeSecret::expose_secret).filter(|text| !text.is_empty()) else {
        return Vec::new();
    };
    let secrets: Vec<Secret> =
        text.split(',').map(str::trim).filter(|each| !each.is_empty()).map(Secret::from).collect();
    if secrets.is_empty() {
        problems.push(format!("  {TOKEN_SECRET} is set but contains no secret: set one or unset it"));
    }
    secrets
}

/// The secrets where none is set: the built-in one first, then the empty one of earlier releases.
pub fn default_secrets() -> Vec<Secret> {
    [BUILT_IN_SECRET, ""].map(Secret::from).to_vec()
}

fn parse_hash(text: &str) -> Option<Hash> {
    let mut hash = [0; 64];
    if hex::decode_to_slice(text, &mut hash).is_ok() {
        return Some(hash);
    }
    BASE64.decode(text).ok()?.try_into().ok()
}

/// The `salt.hash` of a token.
pub fn hashed(token: &str, salt: &str, secret: &Secret) -> String {
    format!("{salt}.{}", hex::encode(digest(&[token, salt, secret.expose_secret()])))
}

/// The digest of the parts, one after the other.
pub fn digest(parts: &[&str]) -> Hash {
    let mut hasher = Sha512::new();
    for part in parts {
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}
