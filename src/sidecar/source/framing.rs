//! Messages in lines that are not one message, and messages that another writer's line has cut in two.
//!
//! A buffered writer ends somewhere within a message, and the line of another writer follows: the rest of the message is in
//! a later line. So the beginning waits for a rest that makes a message of it. It waits until a state, a status or an error
//! comes, which could count on its row, and is then reported as cut off.

use std::collections::VecDeque;

use crate::airbyte::message::Message;
use crate::airbyte::mixed_line::{Part, join, split};

/// How many texts are tried as the rest of a message.
const MAX_ATTEMPTS: u32 = 20;
/// Longer beginnings do not wait, and longer texts are truncated to this length, in bytes.
const MAX_WAITING: usize = 1 << 20;

/// A part of a line.
#[derive(Debug, PartialEq)]
pub enum Piece {
    /// A message.
    Message(Message<'static>),
    /// A beginning of a message whose end is missing.
    CutOff(String),
    /// A message that a log line quotes.
    Quoted(String),
    /// Other text.
    Text(String),
}

/// The pieces that were not returned yet.
#[derive(Default)]
pub struct Framing {
    queue: VecDeque<Piece>,
    /// A beginning that waits for its rest.
    beginning: Option<String>,
    attempts: u32,
}

impl Framing {
    /// Whether a line that is not one message must be passed to [`line`](Self::line), because it is not only text.
    pub fn may_use(&self, line: &str) -> bool {
        self.beginning.is_some() || memchr::memchr(b'{', line.as_bytes()).is_some()
    }

    /// Takes a line that is not one message. Returns whether it holds messages.
    pub fn line(&mut self, line: &str) -> bool {
        let mut parts = split(line);
        if let (Some(beginning), Some(Part::Text(text))) = (&self.beginning, parts.first()) {
            self.attempts += 1;
            if let Some(message) = join(beginning, text) {
                self.beginning = None;
                parts[0] = Part::Message(message);
            } else if self.attempts >= MAX_ATTEMPTS {
                self.queue.extend(self.beginning.take().map(Piece::CutOff));
            }
        }
        let has_messages = parts.iter().any(|part| matches!(part, Part::Message(_)));
        self.queue.extend(parts.into_iter().map(|part| match part {
            Part::Message(message) => Piece::Message(message),
            Part::CutOff(text) => Piece::CutOff(limited(text)),
            Part::Quoted(text) => Piece::Quoted(limited(text)),
            Part::Text(text) => Piece::Text(limited(text)),
        }));
        has_messages
    }

    /// Whether this message must be passed to [`message`](Self::message), because a beginning waits that it may count on.
    pub fn holds_back(&self, message: &Message<'_>) -> bool {
        self.beginning.is_some() && !matches!(message, Message::Record(_) | Message::Log { .. } | Message::Text)
    }

    /// Takes a message that is a whole line.
    pub fn message(&mut self, message: Message<'static>) {
        self.queue.push_back(Piece::Message(message));
    }

    /// The next piece of the lines so far.
    pub fn next(&mut self) -> Option<Piece> {
        loop {
            match self.queue.pop_front()? {
                Piece::CutOff(text) if text.len() <= MAX_WAITING => {
                    self.attempts = 0;
                    if let Some(earlier) = self.beginning.replace(text) {
                        return Some(Piece::CutOff(earlier));
                    }
                }
                Piece::Message(message) if self.holds_back(&message) => {
                    self.queue.push_front(Piece::Message(message));
                    return self.end();
                }
                piece => return Some(piece),
            }
        }
    }

    /// The beginning that waits when the source ends.
    pub fn end(&mut self) -> Option<Piece> {
        self.beginning.take().map(Piece::CutOff)
    }
}

/// A copy of the text, truncated so that it takes little memory beside the line.
fn limited(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_WAITING + 1)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Framing, Piece};
    use crate::airbyte::message::Message;

    const RECORD: &str = r#"{"type":"RECORD","record":{"stream":"s","data":{"id":1},"emitted_at":1}}"#;
    const LOG: &str = r#"{"type":"LOG","log":{"level":"INFO","message":"m"}}"#;
    const STATE: &str = r#"{"type":"STATE","state":{"data":{}}}"#;

    /// `R`, `L` and `S` for messages, `C` for a beginning, `T` for text.
    fn pieces(lines: &[String]) -> String {
        let mut framing = Framing::default();
        let mut pieces = String::new();
        for line in lines {
            match Message::parse(line.as_bytes()) {
                Message::Text => _ = framing.line(line),
                message => framing.message(message.into_owned()),
            }
            while let Some(piece) = framing.next() {
                pieces.push(letter(&piece));
            }
        }
        pieces.extend(framing.end().map(|piece| letter(&piece)));
        pieces
    }

    fn letter(piece: &Piece) -> char {
        match piece {
            Piece::Message(Message::Record(_)) => 'R',
            Piece::Message(Message::Log { .. }) => 'L',
            Piece::Message(_) => 'S',
            Piece::CutOff(_) => 'C',
            Piece::Quoted(_) => 'Q',
            Piece::Text(_) => 'T',
        }
    }

    #[test]
    fn a_message_that_another_line_has_cut_in_two_is_joined() {
        let (beginning, rest) = RECORD.split_at(60);
        let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        for (label, lines, expected) in [
            ("a log message between", vec![format!("{beginning}{LOG}"), rest.to_owned()], "LR"),
            (
                "a record between, and text",
                vec![format!("{beginning}{RECORD}"), "...".to_owned(), rest.to_owned()],
                "RTR",
            ),
            ("a message behind the rest", vec![beginning.to_owned(), format!("{rest}{LOG}")], "RL"),
            ("lines of other writers between", owned(&[beginning, RECORD, LOG, rest]), "RLR"),
            ("a state", owned(&[beginning, STATE, rest]), "CST"),
            ("a state in the same line", vec![format!("{beginning}{STATE}"), rest.to_owned()], "CST"),
            ("no rest", owned(&[RECORD, beginning]), "RC"),
            ("another beginning", owned(&[beginning, beginning, rest]), "CR"),
        ] {
            assert_eq!(pieces(&lines), expected, "{label}");
        }
        let long = format!("{}{}", &beginning[..beginning.len() - 1], "x".repeat(2 << 20));
        assert_eq!(pieces(&[long, rest.to_owned()]), "CT", "too long to wait");
        let mut many = owned(&[beginning]);
        many.extend(vec!["text".to_owned(); 30]);
        assert_eq!(pieces(&many).trim_matches('T'), "C", "reported after a while");
    }
}
