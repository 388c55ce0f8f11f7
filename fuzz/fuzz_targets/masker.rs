//! A secret in any encoding, in any text, is masked. The first byte chooses the encodings; of the lines behind it the first one
//! is the text around the secret, the others are the secret.

#![no_main]

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use syncctl::secret::Masker;

/// Shorter secrets are masked as words alone.
const MIN_CHARS: usize = 4;
const MAX_BYTES: usize = 2000;

fuzz_target!(|data: &[u8]| {
    let [choice, text @ ..] = data else { return };
    let Ok(text) = str::from_utf8(text) else { return };
    let Some((around, secret)) = text.split_once('\n') else { return };
    // The mask itself is no secret.
    if secret.trim().chars().count() < MIN_CHARS || secret.len() > MAX_BYTES || secret.contains('*') {
        return;
    }
    let masker = Masker::new(Some(json!({"properties": {"field": {"airbyte_secret": true}}})), []);
    masker.add_config(&json!({"field": secret}));
    let encoded = encodings(secret, around).swap_remove(usize::from(*choice) % 14);
    // Next to a separator, because an escape that begins before the secret may swallow its first character.
    let line = format!("{around} {encoded} {around}");
    let masked = masker.mask(&line);
    assert!(!masked.contains(&*encoded), "{secret:?} as {encoded:?}: {masked:?}");
});

/// The secret as other programs print it.
fn encodings(secret: &str, around: &str) -> Vec<String> {
    let json = Value::from(secret).to_string();
    let json = json[1..json.len() - 1].to_owned();
    let nested = Value::from(json.as_str()).to_string();
    let units = |secret: &str| secret.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect::<String>();
    let html = secret.chars().map(|c| format!("&#{};", u32::from(c))).collect::<String>();
    let shift = around.len() % 3;
    let surrounded = format!("{}{secret}:{around}", "xyz".get(..shift).unwrap_or_default());
    vec![
        secret.to_owned(),
        json,
        nested[1..nested.len() - 1].to_owned(),
        units(secret),
        utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string(),
        utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string().replace("%20", "+"),
        html,
        secret
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
            .replace('"', "&quot;")
            .replace('\'', "&#39;"),
        secret.replace('\'', "''"),
        secret.replace('"', "\"\""),
        STANDARD.encode(&surrounded),
        STANDARD_NO_PAD.encode(&surrounded),
        URL_SAFE.encode(&surrounded),
        URL_SAFE_NO_PAD.encode(&surrounded),
    ]
}
