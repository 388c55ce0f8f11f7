//! A secret in any encoding, in any text, is masked. The first byte chooses the encoding; of the lines behind it the first one
//! is the text around the secret, the others are the secret. Documents are read as connectors read them.

#![no_main]

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use syncctl::secret::{Masker, parse_value};

/// Shorter secrets are masked as words alone.
const MIN_CHARS: usize = 4;
const MAX_BYTES: usize = 2000;
/// Shorter parts of an encoded secret may be in any text.
const MIN_PART: usize = 8;
/// Values that are no secret, whatever marks them.
const SWITCHES: [&str; 6] = ["true", "false", "null", "none", "enabled", "disabled"];

fuzz_target!(|data: &[u8]| {
    let [choice, text @ ..] = data else { return };
    let Ok(text) = str::from_utf8(text) else { return };
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        assert_eq!(parse_value(text), Some(value));
    }
    let any = Masker::default();
    any.add_config("the configuration", text);
    any.mask(text);
    any.mask_beginning(text, 10, true);

    let Some((around, secret)) = text.split_once('\n') else { return };
    if SWITCHES.iter().any(|switch| secret.trim().eq_ignore_ascii_case(switch)) {
        return;
    }
    // The mask itself is no secret.
    if secret.trim().chars().count() < MIN_CHARS || secret.len() > MAX_BYTES || secret.contains('*') {
        return;
    }
    let masker = Masker::new(Some(json!({"properties": {"field": {"airbyte_secret": true}}})), []);
    masker.add_config("the configuration", &json!({"field": secret}).to_string());
    let mut encodings = encodings(secret, around.len());
    let encoded = encodings.swap_remove(usize::from(*choice) % encodings.len());
    // Next to a separator, because an escape that begins before the secret may swallow its first character.
    let line = format!("{around} {encoded} {around}");
    let masked = masker.mask(&line);
    let middle = encoded.floor_char_boundary(encoded.len() / 2);
    for part in [&*encoded, &encoded[..middle], &encoded[middle..]] {
        if part.len() >= MIN_PART && !around.contains(part) {
            assert!(!masked.contains(part), "{secret:?} as {encoded:?}: {masked:?}");
        }
    }
});

/// The secret as other programs print it.
fn encodings(secret: &str, shift: usize) -> Vec<String> {
    let json = |text: &str| {
        let quoted = Value::from(text).to_string();
        quoted[1..quoted.len() - 1].to_owned()
    };
    let percent = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let shifted = format!("{}{secret}", "xy".get(..shift % 3).unwrap_or_default());
    let utf_16: Vec<u8> = secret.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let hex: Vec<String> = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let named = secret.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    vec![
        secret.to_owned(),
        json(secret),
        json(&json(secret)),
        json(secret).replace('/', "\\/"),
        secret.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect(),
        percent(secret),
        secret.bytes().map(|byte| format!("%{byte:02x}")).collect(),
        percent(secret).replace("%20", "+"),
        percent(&percent(secret)),
        percent(&json(secret)),
        secret.chars().map(|c| format!("&#{};", u32::from(c))).collect(),
        secret.chars().map(|c| format!("&#x{:X};", u32::from(c))).collect(),
        named.replace('\'', "&#39;"),
        secret.replace('\'', "''"),
        secret.replace('"', "\"\""),
        STANDARD.encode(&shifted),
        STANDARD_NO_PAD.encode(&shifted),
        URL_SAFE.encode(&shifted),
        URL_SAFE_NO_PAD.encode(&shifted),
        STANDARD.encode(utf_16),
        STANDARD.encode(json(secret)),
        hex.concat(),
        hex.concat().to_uppercase(),
        hex.join(":"),
    ]
}
