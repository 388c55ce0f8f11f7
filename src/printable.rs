//! Text of connectors, source systems and callers as printable text.
//!
//! Control characters move the cursor of a terminal and forge lines of a log; marks of direction and characters of no width
//! show another text than the one that is there. They are escaped as in JSON: `\u001b`, `\u202e`. Every exit of the program
//! has one writer, which uses this module: the terminal (`output`), the log (`logging`), rows (`db::text`) and answers over
//! HTTP (`server::service`).

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character shows itself, and nothing but itself. Line breaks and tabs do not.
fn is_printable(character: char) -> bool {
    match character {
        ' '..='~' => true,
        _ if character.is_control() => false,
        // Soft hyphen and Arabic letter mark; spaces of no width, joiners and marks of direction; separators of lines and
        // paragraphs, embeddings and overrides; other characters without a shape; byte order mark; annotations; tags.
        '\u{ad}'
        | '\u{61c}'
        | '\u{180e}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}' => false,
        _ => true,
    }
}

/// A text as one line: line breaks are escaped, too.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, |character| character == '\t')
}

/// A text of several lines, each without the carriage return at its end.
pub fn lines(text: &str) -> Cow<'_, str> {
    let text = if text.contains('\r') {
        let text = text.replace("\r\n", "\n");
        Cow::Owned(text.trim_end_matches('\r').to_owned())
    } else {
        Cow::Borrowed(text)
    };
    let is_kept = |character| matches!(character, '\t' | '\n');
    match text {
        Cow::Borrowed(text) => escaped(text, is_kept),
        Cow::Owned(text) => Cow::Owned(escaped(&text, is_kept).into_owned()),
    }
}

/// JSON with the same content: outside of its strings it has no other characters than line breaks.
pub fn json(text: &str) -> Cow<'_, str> {
    escaped(text, |character| matches!(character, '\t' | '\n' | '\r'))
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let must_escape = |character: char| !is_printable(character) && !is_kept(character);
    let Some(first) = text.find(must_escape) else { return Cow::Borrowed(text) };
    let mut printable = String::with_capacity(text.len() + 16);
    printable.push_str(&text[..first]);
    for character in text[first..].chars() {
        match character {
            _ if !must_escape(character) => printable.push(character),
            '\n' => printable.push_str("\\n"),
            '\r' => printable.push_str("\\r"),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(printable, "\\u{unit:04x}").expect("a String accepts any text");
                }
            }
        }
    }
    Cow::Owned(printable)
}

#[cfg(test)]
mod tests {
    use super::{json, line, lines};

    #[test]
    fn what_is_not_printable_is_escaped() {
        for (text, expected) in [
            ("a b\té😀 \u{301}", "a b\té😀 \u{301}"),
            ("\u{1b}]0;title\u{7}\u{1b}[2J", r"\u001b]0;title\u0007\u001b[2J"),
            ("\0\u{7f}\u{80}\u{85}\u{9b}31m", r"\u0000\u007f\u0080\u0085\u009b31m"),
            ("\u{202e}gpj.exe\u{2066}\u{2069}\u{200f}", r"\u202egpj.exe\u2066\u2069\u200f"),
            ("a\u{200b}b\u{feff}\u{2028}\u{2029}\u{2060}", r"a\u200bb\ufeff\u2028\u2029\u2060"),
            ("\u{e0041}", r"\udb40\udc41"),
        ] {
            assert_eq!((&*line(text), &*lines(text)), (expected, expected));
        }
        let text = "a\r\nb\rc\n\td\r";
        assert_eq!(line(text), "a\\r\\nb\\rc\\n\td\\r");
        assert_eq!(lines(text), "a\nb\\rc\n\td");
    }

    #[test]
    fn escaped_json_has_the_same_content() {
        for text in ["\u{1b}\0\u{7f}\u{9b}\u{202e}\u{2028}\u{e0041}é😀\n\t", "plain"] {
            let value = serde_json::json!({ text: [text] });
            for document in [value.to_string(), serde_json::to_string_pretty(&value).expect("JSON")] {
                let printable = json(&document);
                assert!(printable.chars().all(|c| c == '\n' || !c.is_control()), "{printable}");
                assert_eq!(serde_json::from_str::<serde_json::Value>(&printable).expect("JSON"), value);
            }
        }
    }
}
