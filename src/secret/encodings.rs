//! The encodings in which a secret may appear in text.
//!
//! Escapes are resolved in the text, because writers differ in what they escape: a [`View`] is a text with the escapes of
//! JSON and of most programming languages, of URLs, or of HTML resolved. Base64 is encoded instead: any word of a text might
//! be base64.

use std::borrow::Cow;
use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

/// Below this length all of a secret's base64 shares characters with what surrounds it.
const MIN_CORE_BYTES: usize = 4;
/// The longest HTML entity, `&#x10ffff;`.
const MAX_ENTITY_BYTES: usize = 10;

/// A text with escapes resolved, and where each part of it was before.
pub struct View<'a> {
    text: Cow<'a, [u8]>,
    /// What escapes were resolved in; `None` for the original.
    source: Option<&'a View<'a>>,
    /// Pairs of a position in this text and the one in its source, in order: the end of each escape.
    jumps: Vec<(usize, usize)>,
}

/// A set of bytes.
pub struct Bytes([bool; 256]);

impl Bytes {
    pub fn all() -> Self {
        Self([true; 256])
    }

    /// Those of a text, and those with which escapes begin, because escapes are nested.
    pub fn with_escapes(text: impl Iterator<Item = u8>) -> Self {
        let mut set = [false; 256];
        text.chain(*b"\\%&").for_each(|byte| set[usize::from(byte)] = true);
        Self(set)
    }

    fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte)]
    }
}

/// The length of the escape at the beginning of a text, and the bytes that it stands for.
type Decode = fn(&[u8]) -> Option<(usize, Decoded)>;

enum Decoded {
    Byte(u8),
    Char(char),
}

impl<'a> View<'a> {
    /// The original.
    pub fn new(text: &'a str) -> Self {
        Self { text: Cow::Borrowed(text.as_bytes()), source: None, jumps: Vec::new() }
    }

    /// The text. Not always UTF-8: a URL escapes bytes.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// A range of this text in the original.
    pub fn original_range(&self, start: usize, end: usize) -> (usize, usize) {
        match self.source {
            None => (start, end),
            Some(source) => source.original_range(self.source_position(start), self.source_position(end)),
        }
    }

    fn source_position(&self, at: usize) -> usize {
        match self.jumps.partition_point(|(position, _)| *position <= at).checked_sub(1) {
            None => at,
            Some(last) => self.jumps[last].1 + at - self.jumps[last].0,
        }
    }

    /// The text with one more encoding resolved, for each encoding of which it has escapes of these bytes.
    pub fn decoded(&self, bytes: &Bytes) -> Vec<View<'_>> {
        if memchr::memchr3(b'\\', b'%', b'&', &self.text).is_none() {
            return Vec::new();
        }
        let encodings = [(b'\\', decode_backslash as Decode), (b'%', decode_percent), (b'&', decode_entity)];
        encodings.into_iter().filter_map(|(lead, decode)| self.resolve(lead, decode, bytes)).collect()
    }

    fn resolve(&self, lead: u8, decode: Decode, bytes: &Bytes) -> Option<View<'_>> {
        let source = self.text();
        let (mut text, mut jumps, mut at) = (Vec::new(), Vec::new(), 0);
        for start in memchr::memchr_iter(lead, source) {
            if start < at {
                continue;
            }
            let Some((length, decoded)) = decode(&source[start..]) else { continue };
            let mut utf8 = [0; 4];
            let decoded = match decoded {
                Decoded::Byte(byte) => &[byte],
                Decoded::Char(char) => char.encode_utf8(&mut utf8).as_bytes(),
            };
            if !decoded.iter().all(|byte| bytes.contains(*byte)) {
                // No secret has it: `\n` where none has several lines.
                continue;
            }
            text.reserve(source.len() - at);
            text.extend_from_slice(&source[at..start]);
            text.extend_from_slice(decoded);
            at = start + length;
            jumps.push((text.len(), at));
        }
        if jumps.is_empty() {
            return None;
        }
        text.extend_from_slice(&source[at..]);
        Some(View { text: Cow::Owned(text), source: Some(self), jumps })
    }
}

/// `\n`, `\"`, `\u00e9`, `\xc3`, `\$`: JSON, and what most languages and shells print.
fn decode_backslash(text: &[u8]) -> Option<(usize, Decoded)> {
    let decoded = match *text.get(1)? {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'f' => 12,
        b'x' => return Some((4, Decoded::Byte(u8::try_from(hex(text.get(2..4)?)?).ok()?))),
        b'u' => return decode_unicode(text),
        byte if byte.is_ascii_punctuation() => byte,
        _ => return None,
    };
    Some((2, Decoded::Byte(decoded)))
}

/// `\u00e9`, or two of them for a character beyond 16 bits.
fn decode_unicode(text: &[u8]) -> Option<(usize, Decoded)> {
    let unit = hex(text.get(2..6)?)?;
    if let Some(char) = char::from_u32(unit) {
        return Some((6, Decoded::Char(char)));
    }
    let low = hex(text.get(6..12)?.strip_prefix(br"\u")?)?;
    let pair = [u16::try_from(unit).ok()?, u16::try_from(low).ok()?];
    let char = char::decode_utf16(pair).next()?.ok()?;
    Some((12, Decoded::Char(char)))
}

fn decode_percent(text: &[u8]) -> Option<(usize, Decoded)> {
    Some((3, Decoded::Byte(u8::try_from(hex(text.get(1..3)?)?).ok()?)))
}

/// `&amp;`, `&#39;`, `&#x27;`.
fn decode_entity(text: &[u8]) -> Option<(usize, Decoded)> {
    let end = text.iter().take(MAX_ENTITY_BYTES).position(|byte| *byte == b';')?;
    let char = match &text[1..end] {
        b"amp" => '&',
        b"lt" => '<',
        b"gt" => '>',
        b"quot" => '"',
        b"apos" => '\'',
        [b'#', b'x' | b'X', digits @ ..] => char::from_u32(hex(digits)?)?,
        [b'#', digits @ ..] => char::from_u32(std::str::from_utf8(digits).ok()?.parse().ok()?)?,
        _ => return None,
    };
    Some((end + 1, Decoded::Char(char)))
}

fn hex(digits: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(digits).ok()?;
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex.then(|| u32::from_str_radix(digits, 16).ok())?
}

/// Forms of a value that no [`View`] resolves: quotes as SQL, CSV and shells double them, and spaces in a form's data.
pub fn quoted_forms(value: &str) -> impl Iterator<Item = String> {
    [("'", "''"), ("'", r"'\''"), ("\"", "\"\""), (" ", "+")]
        .into_iter()
        .filter(|(plain, _)| value.contains(plain))
        .map(|(plain, quoted)| value.replace(plain, quoted))
}

/// What the base64 of every text that contains the value contains, in the standard and in the URL alphabet: only the bits of
/// the value, for each of the three positions in which it may begin. A value that is too short for that only by itself.
pub fn base64_cores(value: &[u8]) -> BTreeSet<String> {
    if value.len() < MIN_CORE_BYTES {
        let encoded = [&STANDARD, &URL_SAFE].map(|alphabet| alphabet.encode(value));
        return encoded.into();
    }
    let mut cores = BTreeSet::new();
    // With so many bytes before the value, so many characters hold bits of them.
    for (bytes_before, characters_before) in [(0, 0), (1, 2), (2, 3)] {
        let shifted = [&[0; 2][..bytes_before], value].concat();
        let characters = shifted.len() * 8 / 6;
        for alphabet in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            cores.insert(alphabet.encode(&shifted)[characters_before..characters].to_owned());
        }
    }
    cores
}

#[cfg(test)]
mod tests {
    use super::{Bytes, View, base64_cores};
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    /// The original range of a part of a text from which these encodings are resolved, one after the other.
    fn original_of(view: &View<'_>, encodings: &[usize], part: &str) -> Option<(usize, usize)> {
        if let [encoding, rest @ ..] = encodings {
            return original_of(view.decoded(&Bytes::all()).get(*encoding)?, rest, part);
        }
        let text = std::str::from_utf8(view.text()).ok()?;
        let start = text.find(part)?;
        Some(view.original_range(start, start + part.len()))
    }

    #[test]
    fn positions_lead_back_through_nested_escapes() {
        for (text, encodings, part, expected) in [
            ("é s3cret", &[][..], "s3cret", "s3cret"),
            (r"é\ns3\u0063ret\n", &[0], "s3cret", r"s3\u0063ret"),
            (r"\ud83d\ude00x\u00e9\x41y", &[0], "😀xéA", r"\ud83d\ude00x\u00e9\x41"),
            ("u=%C3%a9t&amp;", &[0], "ét", "%C3%a9t"),
            ("u=%26amp;%26lt;x", &[0, 0], "&<", "%26amp;%26lt;"),
            (r#"{\"k\":\"a\\\"b\\\\c\"}"#, &[0, 0], r#"a"b\c"#, r#"a\\\"b\\\\c"#),
            ("a%255Cb%zz", &[0, 0], r"a\b", "a%255Cb"),
            ("&#39;&#x27;&bogus;&", &[0], "''&bogus;&", "&#39;&#x27;&bogus;&"),
        ] {
            let original = original_of(&View::new(text), encodings, part).map_or("", |(start, end)| &text[start..end]);
            assert_eq!(original, expected, "{text}");
        }
    }

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
