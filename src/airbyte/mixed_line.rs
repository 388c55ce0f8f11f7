//! A line that is not one message: progress dots, colour codes, half a log line or another message share it.
//!
//! What may be data is data. A message begins at a `{` outside of other JSON values, is complete, and has its payload:
//! one nested in another document is a part of that document, and one in a string is text (its quotes are escaped there).
//! A plain log line may quote a message, too, and a message may follow half a log line: a message counts as quoted only if
//! quotes, apostrophes or backticks surround it, or if a label such as `record:` or `example =` introduces it. Everything
//! else is loaded.

use serde::de::IgnoredAny;

use super::message::{Message, parse_owned};

/// A part of a line.
#[derive(Debug, Clone, PartialEq)]
pub enum Part<'l> {
    /// A complete message.
    Message(Message<'static>),
    /// A message whose end is missing.
    CutOff(&'l str),
    /// A message that a log line quotes.
    Quoted(&'l str),
    /// Anything else, but for white space.
    Text(&'l str),
}

/// Words that introduce a quoted message before a colon or an equals sign.
const LABELS: [&str; 30] = [
    "body",
    "data",
    "emitted",
    "emitting",
    "example",
    "got",
    "input",
    "invalid",
    "json",
    "line",
    "message",
    "messages",
    "msg",
    "output",
    "parsed",
    "payload",
    "processing",
    "raw",
    "read",
    "received",
    "record",
    "records",
    "row",
    "rows",
    "sample",
    "sending",
    "sent",
    "skipped",
    "skipping",
    "writing",
];
/// The only text before a message that is framed as a server-sent event.
const EVENT_PREFIX: &str = "data:";
/// The shortest beginning of a message that is distinguished from other text, in bytes.
const SHORTEST_BEGINNING: usize = 2;

/// Splits a line. A line without a message, or the beginning of one, is one text.
pub fn split(line: &str) -> Vec<Part<'_>> {
    let mut splitter = Splitter { line, parts: Vec::new(), done: 0, cut_off: None };
    let mut at = 0;
    while let Some(offset) = memchr::memchr(b'{', &line.as_bytes()[at..]) {
        let start = at + offset;
        at = match value_end(&line[start..]) {
            Ok(length) => {
                splitter.object(start, start + length);
                start + length
            }
            Err(invalid_at) => {
                if splitter.cut_off.is_none() && is_beginning(&line[start..]) {
                    splitter.cut_off = Some(start);
                }
                let Some(invalid_at) = invalid_at else { break };
                // What is valid so far is a part of the broken document, except where its last string has swallowed the
                // brace of the next message.
                let last_brace = memchr::memrchr(b'{', &line.as_bytes()[start + 1..=start + invalid_at]);
                start + 1 + last_brace.unwrap_or(0)
            }
        };
    }
    splitter.finish()
}

struct Splitter<'l> {
    line: &'l str,
    parts: Vec<Part<'l>>,
    /// The end of the last part.
    done: usize,
    /// Where a message begins whose end was not found yet.
    cut_off: Option<usize>,
}

impl<'l> Splitter<'l> {
    /// Takes a complete JSON object.
    fn object(&mut self, start: usize, end: usize) {
        let object = &self.line[start..end];
        let Some(message) = parse_owned(object).filter(Message::is_known) else { return };
        let before = &self.line[self.done..start];
        let is_quoted = self.cut_off.is_none() && is_quoted(before, &self.line[end..], self.done == 0);
        self.flush(start);
        self.parts.push(if is_quoted { Part::Quoted(object) } else { Part::Message(message) });
        self.done = end;
    }

    /// Adds what is before the next part.
    fn flush(&mut self, end: usize) {
        let cut_off = self.cut_off.take().unwrap_or(end);
        let (text, cut_off) = (&self.line[self.done..cut_off], &self.line[cut_off..end]);
        self.parts.extend(Some(Part::Text(text)).filter(|_| !text.trim().is_empty()));
        self.parts.extend(Some(Part::CutOff(cut_off)).filter(|_| !cut_off.is_empty()));
    }

    fn finish(mut self) -> Vec<Part<'l>> {
        self.flush(self.line.len());
        self.rejoin();
        self.parts
    }

    /// Another writer may have written its message within this one: then the parts around it are a message.
    fn rejoin(&mut self) {
        let [Part::CutOff(beginning), .., Part::Text(end)] = self.parts[..] else { return };
        if let Some(message) = join(beginning, end) {
            self.parts.pop();
            self.parts[0] = Part::Message(message);
        }
    }
}

/// The message of which these are the beginning and the rest.
pub fn join(beginning: &str, rest: &str) -> Option<Message<'static>> {
    parse_owned(&format!("{beginning}{rest}")).filter(Message::is_known)
}

/// The length of the JSON value at the beginning of the text, or where it becomes invalid; `Err(None)` where only its end is
/// missing.
fn value_end(text: &str) -> Result<usize, Option<usize>> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => Ok(values.byte_offset()),
        Some(Err(error)) if !error.is_eof() => Err(Some(error.column().clamp(1, text.len()) - 1)),
        _ => Err(None),
    }
}

/// Whether the text begins like a message that may hold data, or an error.
fn is_beginning(text: &str) -> bool {
    let head: String = text.chars().take(100).filter(|c| !c.is_whitespace()).collect();
    let begins = |form: &str| head.starts_with(form) || (form.starts_with(&*head) && head.len() >= SHORTEST_BEGINNING);
    begins(r#"{"type":"RECORD""#)
        || begins(r#"{"type":"STATE""#)
        || begins(r#"{"type":"TRACE""#)
        || begins(r#"{"type":"CONTROL""#)
        || begins(r#"{"record":{"#)
}

/// Whether a message between these texts is quoted.
fn is_quoted(before: &str, after: &str, is_first: bool) -> bool {
    let closing = match before.chars().next_back() {
        Some(quote @ ('"' | '\'' | '`')) => Some(quote),
        Some('“') => Some('”'),
        _ => None,
    };
    if closing.is_some_and(|closing| after.starts_with(closing)) {
        return true;
    }
    let before = before.trim();
    let Some(label) = before.strip_suffix([':', '=']) else { return false };
    let label = label.trim_end().rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    LABELS.contains(&&*label.to_lowercase()) && !(is_first && before == EVENT_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::{Part, join, split};
    use crate::airbyte::message::Message;

    const RECORD: &str = r#"{"type":"RECORD","record":{"stream":"s","data":{"id":1,"v":"a\"}{"},"emitted_at":1}}"#;
    const LOG: &str = r#"{"type":"LOG","log":{"level":"INFO","message":"read {\"type\":\"RECORD\"}"}}"#;

    /// The parts in one line each: `R` for a record, `L` for a log message, `M` for another one, else the kind and the text.
    fn parts(line: &str) -> String {
        let name = |part: Part<'_>| match part {
            Part::Message(Message::Record(record)) => format!("R{}", record.line_bytes),
            Part::Message(Message::Log { .. }) => "L".to_owned(),
            Part::Message(_) => "M".to_owned(),
            Part::CutOff(text) => format!("cut {text}"),
            Part::Quoted(_) => "quoted".to_owned(),
            Part::Text(text) => format!("text {}", text.trim()),
        };
        split(line).into_iter().map(name).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn messages_are_found_among_other_text() {
        let half = &RECORD[..50];
        let length = RECORD.len();
        for (label, line, expected) in [
            ("dots", format!("...{RECORD}"), format!("text ...; R{length}")),
            ("colours", format!("\u{1b}[32m{RECORD}\u{1b}[0m"), format!("text \u{1b}[32m; R{length}; text \u{1b}[0m")),
            ("half a log line", format!("INFO page 3 of{RECORD}"), format!("text INFO page 3 of; R{length}")),
            (
                "half a log line with a space",
                format!("INFO page 3 of {RECORD}"),
                format!("text INFO page 3 of; R{length}"),
            ),
            ("a prefix of a logger", format!("INFO:root:{RECORD}"), format!("text INFO:root:; R{length}")),
            ("two", format!("{RECORD}{RECORD}"), format!("R{length}; R{length}")),
            ("a list", format!("[{RECORD},{LOG}]"), format!("text [; R{length}; text ,; L; text ]")),
            ("a log message first", format!("{LOG}{RECORD}"), format!("L; R{length}")),
            ("a byte order mark", format!("\u{feff}{RECORD}"), format!("text \u{feff}; R{length}")),
            ("an event", format!("data: {RECORD}"), format!("text data:; R{length}")),
            ("garbage at the end", format!("{RECORD}}} ok"), format!("R{length}; text }} ok")),
            ("a stray brace", format!("{{ {RECORD}"), format!("text {{; R{length}")),
            ("a beginning before it", format!("{half}{RECORD}"), format!("cut {half}; R{length}")),
            ("a beginning behind it", format!("{RECORD}{half}"), format!("R{length}; cut {half}")),
            ("a beginning in a string", format!("{}{LOG}", &RECORD[..60]), format!("cut {}; L", &RECORD[..60])),
            ("a short beginning", format!("{RECORD}{{\"ty"), format!("R{length}; cut {{\"ty")),
            ("a message within", format!("{}{LOG}{}", &RECORD[..60], &RECORD[60..]), format!("R{length}; L")),
            ("text", "no { message } \"type\"".to_owned(), "text no { message } \"type\"".to_owned()),
            (
                "another document",
                format!(r#"x {{"level":"info","record":{RECORD}}}"#),
                format!(r#"text x {{"level":"info","record":{RECORD}}}"#),
            ),
            ("a document cut off", r#"{"a":{"b":"#.to_owned(), r#"text {"a":{"b":"#.to_owned()),
            ("a log message cut off", LOG[..40].to_owned(), format!("text {}", &LOG[..40])),
        ] {
            assert_eq!(parts(&line), expected, "{label}");
        }
    }

    #[test]
    fn quoted_messages_are_no_data() {
        for (line, expected) in [
            (format!("Read record: {RECORD}"), "text Read record:; quoted"),
            (format!("an Example = {RECORD}."), "text an Example =; quoted; text ."),
            (format!("got '{RECORD}' from the API"), "text got '; quoted; text ' from the API"),
            (format!("`{RECORD}`"), "text `; quoted; text `"),
            (format!("the data: {RECORD}"), "text the data:; quoted"),
            (format!("don't{RECORD}"), &format!("text don't; R{}", RECORD.len())),
        ] {
            assert_eq!(parts(&line), expected, "{line}");
        }
    }

    #[test]
    fn messages_nested_in_broken_documents_are_no_data() {
        let nested = format!(r#"{{"type":"RECORD","record":{{"stream":"a","data":{{"id":1,"message":{RECORD},"#);
        for line in [nested.clone(), format!("{nested} garbage")] {
            assert_eq!(parts(&line), format!("cut {line}"));
        }
    }

    #[test]
    fn many_braces_take_linear_time() {
        for line in [
            "{".repeat(100_000),
            r#"{"a":"#.repeat(100_000),
            r#"{"a":{"b":1 x"#.repeat(20_000),
            r#"{"type":"RECORD"x"#.repeat(20_000),
        ] {
            assert!(split(&line).len() <= 2);
        }
    }

    #[test]
    fn halves_are_joined() {
        assert!(matches!(join(&RECORD[..30], &RECORD[30..]), Some(Message::Record(_))));
        assert_eq!(join(&RECORD[..30], "text"), None);
    }
}
