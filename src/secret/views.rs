//! A text with escapes resolved.
//!
//! Escapes are resolved in the text, because writers differ in what they escape: those of JSON and of most programming
//! languages, of URLs, of HTML and XML, of e-mails and of shells, and the line breaks of wrapped text.

use std::borrow::Cow;
use std::rc::Rc;

use super::entities::ENTITIES;

/// The longest HTML entity that is resolved, `&#x0010ffff;`, and the longest name.
const MAX_ENTITY_BYTES: usize = 13;
/// How deep encodings may be nested: JSON in JSON in a URL.
const MAX_NESTING: usize = 3;
/// How many views of one text there are at most.
const MAX_VIEWS: usize = 64;

/// A text with escapes resolved, and where each part of it was before.
pub struct View<'a> {
    text: Cow<'a, [u8]>,
    /// What escapes were resolved in; `None` for the original.
    source: Option<Rc<View<'a>>>,
    /// Pairs of a position in this text and the one in its source, in order: the end of each escape.
    jumps: Vec<(usize, usize)>,
    /// How often escapes were resolved.
    depth: usize,
    /// Line breaks were removed, so words that were apart may look like one.
    pub is_unwrapped: bool,
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
        text.chain(*b"\\%&=`^\n").for_each(|byte| set[usize::from(byte)] = true);
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
    Nothing,
}

/// An encoding: the bytes with which its escapes begin, and how they are decoded.
struct Encoding {
    leads: &'static [u8],
    decode: Decode,
    /// Without this the encoding makes no difference.
    needs: &'static [u8],
    /// It occurs in a text that has been decoded before, too.
    is_nested: bool,
}

const ENCODINGS: [Encoding; 8] = [
    Encoding { leads: b"\\", needs: b"", decode: decode_backslash, is_nested: true },
    Encoding { leads: b"%", needs: b"", decode: decode_percent, is_nested: true },
    Encoding { leads: b"&", needs: b"", decode: decode_entity, is_nested: true },
    Encoding { leads: b"\\", needs: b"\\x", decode: decode_latin_backslash, is_nested: false },
    Encoding { leads: b"=", needs: b"", decode: decode_quoted_printable, is_nested: false },
    Encoding { leads: b"`", needs: b"", decode: decode_shell, is_nested: false },
    Encoding { leads: b"^", needs: b"", decode: decode_shell, is_nested: false },
    Encoding { leads: b"\r\n", needs: b"", decode: decode_line_break, is_nested: true },
];

impl<'a> View<'a> {
    /// The original.
    fn new(text: &'a str) -> Self {
        Self { text: Cow::Borrowed(text.as_bytes()), source: None, jumps: Vec::new(), depth: 0, is_unwrapped: false }
    }

    /// Calls `visit` with the original, and with the views of it in which escapes of these bytes are resolved.
    pub fn for_each(text: &'a str, bytes: &Bytes, mut visit: impl FnMut(&Self)) {
        let original = Self::new(text);
        visit(&original);
        if !original.has_escapes() {
            return;
        }
        let mut views = vec![Rc::new(original)];
        let mut at = 0;
        while let Some(view) = views.get(at).map(Rc::clone) {
            if at > 0 {
                visit(&view);
            }
            at += 1;
            if view.depth < MAX_NESTING && views.len() < MAX_VIEWS && view.has_escapes() {
                views.extend(decoded(&view, bytes).map(Rc::new));
            }
        }
    }

    fn has_escapes(&self) -> bool {
        memchr::memchr3(b'\\', b'%', b'&', &self.text).is_some()
            || memchr::memchr3(b'=', b'`', b'^', &self.text).is_some()
            || memchr::memchr2(b'\r', b'\n', &self.text).is_some()
    }

    /// The text. Not always UTF-8: a URL escapes bytes.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// A range of this text in the original.
    pub fn original_range(&self, start: usize, end: usize) -> (usize, usize) {
        match &self.source {
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
}

/// The text with one more encoding resolved, for each encoding of which it has escapes of these bytes.
fn decoded<'a>(view: &Rc<View<'a>>, bytes: &Bytes) -> impl Iterator<Item = View<'a>> {
    let encodings = ENCODINGS.iter().filter(|encoding| encoding.is_nested || view.depth == 0);
    encodings.filter_map(|encoding| resolve(view, encoding, bytes))
}

fn resolve<'a>(view: &Rc<View<'a>>, encoding: &Encoding, bytes: &Bytes) -> Option<View<'a>> {
    let source = view.text();
    memchr::memmem::find(source, encoding.needs)?;
    let (mut text, mut jumps, mut at) = (Vec::new(), Vec::new(), 0);
    let first = encoding.leads[0];
    let last = *encoding.leads.last()?;
    for start in memchr::memchr2_iter(first, last, source) {
        if start < at {
            continue;
        }
        let Some((length, decoded)) = (encoding.decode)(&source[start..]) else { continue };
        let mut utf8 = [0; 4];
        let decoded = match decoded {
            Decoded::Byte(byte) => &[byte],
            Decoded::Char(char) => char.encode_utf8(&mut utf8).as_bytes(),
            Decoded::Nothing => &[][..],
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
    let is_unwrapped = view.is_unwrapped || encoding.leads == b"\r\n";
    Some(View { text: Cow::Owned(text), source: Some(Rc::clone(view)), jumps, depth: view.depth + 1, is_unwrapped })
}

/// `\n`, `\"`, `\u00e9`, `\xc3`, `\303`, `\$`: JSON, and what most languages and shells print.
fn decode_backslash(text: &[u8]) -> Option<(usize, Decoded)> {
    let decoded = match *text.get(1)? {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'a' => 7,
        b'b' => 8,
        b'v' => 11,
        b'f' => 12,
        b'e' => 27,
        b'x' | b'u' if text.get(2) == Some(&b'{') => return braced(text),
        b'x' => return Some((4, Decoded::Byte(u8::try_from(hex(text.get(2..4)?)?).ok()?))),
        b'u' => return decode_unicode(text),
        b'U' => return Some((10, Decoded::Char(char::from_u32(hex(text.get(2..10)?)?)?))),
        b'0'..=b'3' => {
            let digits = std::str::from_utf8(text.get(1..4)?).ok()?;
            return Some((4, Decoded::Byte(u8::from_str_radix(digits, 8).ok()?)));
        }
        // A line that continues.
        b'\n' => return Some((2, Decoded::Nothing)),
        byte if byte.is_ascii_punctuation() || b" \t".contains(&byte) => byte,
        _ => return None,
    };
    Some((2, Decoded::Byte(decoded)))
}

/// `\xe9` as Python's `repr` and YAML mean it: a character.
fn decode_latin_backslash(text: &[u8]) -> Option<(usize, Decoded)> {
    if text.get(1) != Some(&b'x') {
        return decode_backslash(text);
    }
    Some((4, Decoded::Char(char::from_u32(hex(text.get(2..4)?)?)?)))
}

/// `\u{e9}`, `\x{e9}`.
fn braced(text: &[u8]) -> Option<(usize, Decoded)> {
    let end = text.iter().take(MAX_ENTITY_BYTES).position(|byte| *byte == b'}')?;
    Some((end + 1, Decoded::Char(char::from_u32(hex(text.get(3..end)?)?)?)))
}

/// `\u00e9` or `%u00e9`, or two of them for a character beyond 16 bits. A lone surrogate is U+FFFD, as in the secrets of a document.
fn decode_unicode(text: &[u8]) -> Option<(usize, Decoded)> {
    let unit = hex(text.get(2..6)?)?;
    if let Some(char) = char::from_u32(unit) {
        return Some((6, Decoded::Char(char)));
    }
    let low = text.get(6..12).and_then(|rest| hex(rest.strip_prefix(&text[..2])?));
    let pair = [u16::try_from(unit).ok()?, low.and_then(|low| u16::try_from(low).ok()).unwrap_or_default()];
    match char::decode_utf16(pair).next()? {
        Ok(char) => Some((12, Decoded::Char(char))),
        Err(_) => Some((6, Decoded::Char(char::REPLACEMENT_CHARACTER))),
    }
}

/// `%C3%A9`, and `%u00e9` as JavaScript's `escape` writes it.
fn decode_percent(text: &[u8]) -> Option<(usize, Decoded)> {
    if text.get(1) == Some(&b'u') {
        return decode_unicode(text);
    }
    Some((3, Decoded::Byte(u8::try_from(hex(text.get(1..3)?)?).ok()?)))
}

/// `&amp;`, `&#39;`, `&#x27;`.
fn decode_entity(text: &[u8]) -> Option<(usize, Decoded)> {
    let end = text.iter().take(MAX_ENTITY_BYTES).position(|byte| *byte == b';')?;
    let char = match &text[1..end] {
        [b'#', b'x' | b'X', digits @ ..] => char::from_u32(hex(digits)?)?,
        [b'#', digits @ ..] => char::from_u32(std::str::from_utf8(digits).ok()?.parse().ok()?)?,
        name => ENTITIES.iter().find(|(known, _)| known.as_bytes() == name)?.1,
    };
    Some((end + 1, Decoded::Char(char)))
}

/// `=C3=A9` and the line breaks of e-mails.
fn decode_quoted_printable(text: &[u8]) -> Option<(usize, Decoded)> {
    match text.get(1..3)? {
        [b'\n', _] => Some((2, Decoded::Nothing)),
        b"\r\n" => Some((3, Decoded::Nothing)),
        digits if digits.iter().any(u8::is_ascii_lowercase) => None,
        digits => Some((3, Decoded::Byte(u8::try_from(hex(digits)?).ok()?))),
    }
}

/// `` `$ `` of PowerShell, `^&` of cmd.
fn decode_shell(text: &[u8]) -> Option<(usize, Decoded)> {
    let escaped = text.get(1).filter(|byte| byte.is_ascii_punctuation() || **byte == b' ')?;
    Some((2, Decoded::Byte(*escaped)))
}

/// A line break, with the indentation of the next line: base64 is wrapped at 64 or 76 characters.
fn decode_line_break(text: &[u8]) -> Option<(usize, Decoded)> {
    let length = text.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    (length < text.len()).then_some((length, Decoded::Nothing))
}

fn hex(digits: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(digits).ok()?;
    let is_hex = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex.then(|| u32::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::{Bytes, View};

    /// The parts of a text that are `part` when escapes are resolved.
    fn originals_of<'a>(text: &'a str, part: &str) -> Vec<&'a str> {
        let mut found = Vec::new();
        View::for_each(text, &Bytes::all(), |view| {
            if let Some(at) = memchr::memmem::find(view.text(), part.as_bytes()) {
                let (start, end) = view.original_range(at, at + part.len());
                found.push(&text[start..end]);
            }
        });
        found
    }

    #[test]
    fn positions_lead_back_through_nested_escapes() {
        for (text, part, expected) in [
            ("é s3cret", "s3cret", "s3cret"),
            (r"é\ns3\u0063ret\n", "s3cret", r"s3\u0063ret"),
            (r"\ud83d\ude00x\u00e9\x41y", "😀xéA", r"\ud83d\ude00x\u00e9\x41"),
            (r"a\ud800\u00e9", "a\u{fffd}é", r"a\ud800\u00e9"),
            ("u=%C3%a9t&amp;", "ét", "%C3%a9t"),
            ("u=%26amp;%26lt;x", "&<", "%26amp;%26lt;"),
            (r#"{\"k\":\"a\\\"b\\\\c\"}"#, r#"a"b\c"#, r#"a\\\"b\\\\c"#),
            ("a%255Cb%zz", r"a\b", "a%255Cb"),
            ("&#39;&#x27;&bogus;&", "''&bogus;&", "&#39;&#x27;&bogus;&"),
            ("&eacute;&excl;&#0039;", "é!'", "&eacute;&excl;&#0039;"),
            (r"p\303\251 \u{e9}\U000000e9 \x{e9}", "é éé é", r"\303\251 \u{e9}\U000000e9 \x{e9}"),
            (r"'p\xe9'", "pé", r"p\xe9"),
            (r"b'p\xc3\xa9'", "pé", r"p\xc3\xa9"),
            ("a %u00e9 b", "é", "%u00e9"),
            ("p=3D=C3=A9 x=\r\ny", "=é xy", "=3D=C3=A9 x=\r\ny"),
            ("a`$b`\"c", "a$b\"c", "a`$b`\"c"),
            ("c ^&d", "c &d", "c ^&d"),
            ("%uD83D%uDE00", "😀", "%uD83D%uDE00"),
            ("ab\r\n  cd\nef", "abcdef", "ab\r\n  cd\nef"),
            (r"ab\ncd", "abcd", r"ab\ncd"),
        ] {
            assert!(originals_of(text, part).contains(&expected), "{text}: {:?}", originals_of(text, part));
        }
    }

    #[test]
    fn the_number_of_views_is_limited() {
        let text = r"\u005c%25&amp;=41`$^& ".repeat(1000);
        let mut views = 0;
        View::for_each(&text, &Bytes::all(), |_| views += 1);
        assert!(views <= 80, "{views}");
    }
}
