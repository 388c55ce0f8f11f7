//! The forms in which a secret is searched for in text: what no [`View`](super::views::View) resolves, because any word of a
//! text might be base64 or hexadecimal, and because writers differ in what they quote.
//!
//! The list is that of the runner of GitHub Actions, and more: base64 at its three alignments, of UTF-8 and UTF-16, in both
//! alphabets, of escaped values and of itself; hexadecimal; the quotes of SQL, CSV, shells and command lines; parts of a
//! value between quotes, ampersands and lines.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::values::is_switch;

/// Below this length all of a secret's base64 shares characters with what surrounds it.
const MIN_CORE_BYTES: usize = 4;
/// Shorter secrets are parts of many words and numbers, so they are masked only where nothing but themselves could be
/// meant: as whole words.
const MIN_SUBSTRING_CHARS: usize = 4;
/// Shorter parts of a secret are words, unless they are a line of it.
const MIN_PART_CHARS: usize = 6;
/// Longer secrets are searched for only as they are, in parts, and in base64.
const MAX_ENCODED_BYTES: usize = 4 * 1024;
/// Longer secrets are searched for in pieces of [`PIECE_BYTES`] alone.
const MAX_WHOLE_BYTES: usize = 16 * 1024;
/// Longer secrets are also searched for in pieces, unless these are no secret.
const MIN_PIECED_BYTES: usize = 128;
/// Length of a piece. Each text with this many bytes at the place of a piece is a part of the secret.
const PIECE_BYTES: usize = 32;
/// The number of pieces of one secret: the longer it is, the wider they are apart.
const MAX_PIECES: usize = 4096;
/// The number of lines of one secret that are searched for.
const MAX_LINES: usize = 4096;

/// How a pattern appears in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// A part of a base64 text; the letters and digits around it belong to it.
    Base64,
    /// A piece of a long base64 text; all of the alphabet around it belongs to it.
    Base64Piece,
    /// With neither letters nor digits around it.
    Word,
    /// A piece of a long secret; what is around it belongs to it as far as it equals the secret.
    Piece,
    /// Anywhere.
    Substring,
}

/// Calls `add` with each pattern of a secret. Programs remove the whitespace around it before they encode it.
pub fn forms_of(secret: &str, add: &mut impl FnMut(String, Form)) {
    forms_of_exactly(secret, add);
    if secret.trim() != secret && secret.len() <= MAX_WHOLE_BYTES {
        forms_of_exactly(secret.trim(), add);
    }
}

fn forms_of_exactly(secret: &str, add: &mut impl FnMut(String, Form)) {
    let is_short = secret.trim().chars().count() < MIN_SUBSTRING_CHARS;
    let form = if is_short { Form::Word } else { Form::Substring };
    if secret.len() > MAX_WHOLE_BYTES || secret.len() > MIN_PIECED_BYTES && !has_readable_parts(secret) {
        pieces(secret.as_bytes(), Form::Piece, add);
    }
    if secret.len() <= MAX_WHOLE_BYTES {
        add(secret.to_owned(), form);
    }
    parts(secret, add);
    if secret.len() <= MAX_ENCODED_BYTES {
        for quoted in quoted_forms(secret) {
            add(quoted, form);
        }
        // Those of short ones look like numbers.
        for hexadecimal in hexadecimal(secret.as_bytes()).into_iter().filter(|_| !is_short) {
            add(hexadecimal, form);
        }
    }
    base64_forms(secret, is_short, add);
}

/// Calls `add` with the patterns of `user:password`, of which only the password is secret.
pub fn forms_of_pair(pair: &str, add: &mut impl FnMut(String, Form)) {
    for alphabet in [&STANDARD, &URL_SAFE] {
        add(alphabet.encode(pair), Form::Base64);
    }
}

/// Whether a secret is a document or a URL, of which hosts, names and options are no secret. Its secret parts are searched for
/// by themselves.
fn has_readable_parts(secret: &str) -> bool {
    secret.trim_start().starts_with(['{', '[']) || secret.contains("://")
}

/// Parts of a secret that are printed alone: a PEM key is logged line by line, and then no line equals the whole.
fn parts(secret: &str, add: &mut impl FnMut(String, Form)) {
    let is_long = |part: &str, chars: usize| part.chars().take(chars).count() == chars && part.len() <= MAX_WHOLE_BYTES;
    // Some configurations hold the escape of a line break in place of the line break.
    let lines = secret.split(['\n', '\r']).flat_map(|line| line.split("\\n")).map(str::trim);
    for line in lines.filter(|line| is_long(line, MIN_SUBSTRING_CHARS)).take(MAX_LINES) {
        if !is_switch(line) {
            add(line.to_owned(), Form::Substring);
        }
    }
    // U+FFFD stands for what cannot be printed, and others print another character for it.
    for part in secret.split(char::REPLACEMENT_CHARACTER).filter(|part| part.len() < secret.len()) {
        if is_long(part, MIN_SUBSTRING_CHARS) {
            add(part.to_owned(), Form::Substring);
        }
    }
    let unquoted = secret.trim_matches(['"', '\'']);
    // A command line ends at `&`, and PowerShell prints what is on either side of it apart.
    let split = Some(secret).filter(|secret| !has_readable_parts(secret));
    let ampersands = split.and_then(|secret| secret.rsplit_once('&')).into_iter();
    let ampersands = ampersands.chain(split.and_then(|secret| secret.split_once('&')));
    for part in std::iter::once(unquoted).chain(ampersands.flat_map(|(before, after)| [before, after])) {
        if part.len() < secret.len() && is_long(part, MIN_PART_CHARS) {
            add(part.to_owned(), Form::Substring);
        }
    }
}

/// Forms of a value that no view resolves: quotes as SQL, CSV and shells double them, spaces in a form's data, and quotes
/// that are escaped although backslashes are not.
fn quoted_forms(value: &str) -> impl Iterator<Item = String> {
    [("'", "''"), ("'", r"'\''"), ("'", r#"'"'"'"#), ("\"", "\"\""), ("\"", "\\\""), (" ", "+"), ("%", "%%")]
        .into_iter()
        .filter(|(plain, _)| value.contains(plain))
        .map(|(plain, quoted)| value.replace(plain, quoted))
}

fn hexadecimal(value: &[u8]) -> Vec<String> {
    let separated = |separator| value.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(separator);
    let lower = [hex::encode(value), separated(" "), separated(":")];
    let upper = lower.each_ref().map(|text| text.to_ascii_uppercase());
    lower.into_iter().chain(upper).collect()
}

fn base64_forms(secret: &str, is_short: bool, add: &mut impl FnMut(String, Form)) {
    let form = if is_short { Form::Word } else { Form::Base64 };
    if secret.len() > MAX_ENCODED_BYTES {
        for core in base64_cores(secret.as_bytes()) {
            pieces(core.as_bytes(), Form::Base64Piece, add);
        }
        return;
    }
    let json = serde_json::Value::from(secret).to_string();
    let utf_16: Vec<u8> = secret.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let encoded = [
        secret.as_bytes().to_vec(),
        json.as_bytes()[1..json.len() - 1].to_vec(),
        utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string().into_bytes(),
        utf_16,
        STANDARD.encode(secret).into_bytes(),
    ];
    for encoded in BTreeSet::from(encoded) {
        for core in base64_cores(&encoded) {
            add(core, form);
        }
    }
}

/// What the base64 of every text that contains the value contains, in the standard and in the URL alphabet: only the bits of
/// the value, for each of the three positions in which it may begin. A value that is too short for that only by itself.
fn base64_cores(value: &[u8]) -> BTreeSet<String> {
    if value.len() < MIN_CORE_BYTES {
        let encoded = [&STANDARD, &URL_SAFE].map(|alphabet| alphabet.encode(value));
        return encoded.into();
    }
    let mut cores = BTreeSet::new();
    // The number of bytes before the value, and of the characters that hold bits of them.
    for (bytes_before, characters_before) in [(0, 0), (1, 2), (2, 3)] {
        let shifted = [&[0; 2][..bytes_before], value].concat();
        let characters = shifted.len() * 8 / 6;
        for alphabet in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            cores.insert(alphabet.encode(&shifted)[characters_before..characters].to_owned());
        }
    }
    cores
}

/// Pieces of a long text at regular distances.
fn pieces(text: &[u8], form: Form, add: &mut impl FnMut(String, Form)) {
    let distance = PIECE_BYTES.max(text.len().div_ceil(MAX_PIECES));
    for piece in text.chunks(distance) {
        // The text may be cut within a character.
        let piece = piece[..piece.len().min(PIECE_BYTES)]
            .utf8_chunks()
            .map(|chunk| chunk.valid())
            .max_by_key(|valid| valid.len());
        if let Some(piece) = piece.filter(|piece| piece.len() >= PIECE_BYTES / 2) {
            add(piece.to_owned(), form);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::base64_cores;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    #[test]
    fn cores_are_in_the_base64_of_every_text_with_the_value() {
        let value = "p\u{e4}ss?>word";
        let cores = base64_cores(value.as_bytes());
        for before in ["", "u", "us", "use", "user:"] {
            for after in ["", "x", "yz"] {
                let encoded = STANDARD.encode(format!("{before}{value}{after}"));
                assert!(cores.iter().any(|core| encoded.contains(core)), "{encoded}");
            }
        }
    }
}
