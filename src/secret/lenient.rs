//! JSON as connectors read it, which is more than a [`serde_json::Value`] holds: lone surrogates, numbers beyond `f64`,
//! repeated keys, NaN, and any depth. A document that a connector can read must not hide its secrets from the masker.

/// Containers below this depth are flattened: their values become fields of one object.
const MAX_DEPTH: usize = 200;

/// A value of a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// Fields in their order, also those of repeated names.
    Object(Vec<(String, Node)>),
    Array(Vec<Node>),
    /// Fields of containers that are nested too deeply, each with the name that is next to it.
    Deep(Vec<(String, Node)>),
    /// Lone surrogates are U+FFFD.
    Text(String),
    /// As it is written.
    Number(String),
    /// `true`, `false` or `null`.
    Word,
}

/// The content of a document, `None` if it is not JSON in any reading.
pub fn parse(text: &str) -> Option<Node> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parser = Parser { text, at: 0 };
    let node = parser.value(0)?;
    parser.skip_whitespace();
    (parser.at == text.len()).then_some(node)
}

/// The document as a `Value`, without the numbers that no `Value` holds.
pub fn parse_value(text: &str) -> Option<serde_json::Value> {
    serde_json::from_str(text).ok().or_else(|| parse(text).map(to_value))
}

fn to_value(node: Node) -> serde_json::Value {
    use serde_json::Value;
    match node {
        Node::Object(fields) | Node::Deep(fields) => {
            Value::Object(fields.into_iter().map(|(name, field)| (name, to_value(field))).collect())
        }
        Node::Array(items) => Value::Array(items.into_iter().map(to_value).collect()),
        Node::Text(text) => Value::String(text),
        Node::Number(number) => serde_json::from_str(&number).unwrap_or_default(),
        Node::Word => Value::Null,
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &[u8] {
        &self.text.as_bytes()[self.at..]
    }

    fn skip_whitespace(&mut self) {
        self.at += self.rest().iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    }

    /// Skips whitespace, and this byte if it is next.
    fn skip(&mut self, byte: u8) -> bool {
        self.skip_whitespace();
        let is_next = self.rest().first() == Some(&byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn value(&mut self, depth: usize) -> Option<Node> {
        self.skip_whitespace();
        match self.rest().first()? {
            b'{' | b'[' if depth == MAX_DEPTH => self.flattened(),
            b'{' => {
                self.at += 1;
                let mut fields = Vec::new();
                if self.skip(b'}') {
                    return Some(Node::Object(fields));
                }
                loop {
                    let name = self.name()?;
                    fields.push((name, self.value(depth + 1)?));
                    if self.skip(b'}') {
                        return Some(Node::Object(fields));
                    }
                    self.skip(b',').then_some(())?;
                }
            }
            b'[' => {
                self.at += 1;
                let mut items = Vec::new();
                if self.skip(b']') {
                    return Some(Node::Array(items));
                }
                loop {
                    items.push(self.value(depth + 1)?);
                    if self.skip(b']') {
                        return Some(Node::Array(items));
                    }
                    self.skip(b',').then_some(())?;
                }
            }
            _ => self.scalar(),
        }
    }

    fn name(&mut self) -> Option<String> {
        self.skip_whitespace();
        let name = self.string()?;
        self.skip(b':').then_some(name)
    }

    fn scalar(&mut self) -> Option<Node> {
        if self.rest().first() == Some(&b'"') {
            return self.string().map(Node::Text);
        }
        let is_part = |byte: &&u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
        let length = self.rest().iter().take_while(is_part).count();
        let word = &self.text[self.at..self.at + length];
        let is_number = ["NaN", "Infinity", "-Infinity"].contains(&word)
            || word.trim_start_matches('-').starts_with(|c: char| c.is_ascii_digit());
        self.at += length;
        match word {
            "true" | "false" | "null" => Some(Node::Word),
            _ => is_number.then(|| Node::Number(word.to_owned())),
        }
    }

    /// The values of a container and of all below it, without recursion.
    fn flattened(&mut self) -> Option<Node> {
        let (mut fields, mut name, mut open) = (Vec::new(), String::new(), Vec::new());
        loop {
            self.skip_whitespace();
            match *self.rest().first()? {
                bracket @ (b'{' | b'[') => {
                    open.push(bracket);
                    self.at += 1;
                }
                bracket @ (b'}' | b']') => {
                    // In ASCII a closing bracket is two after its opening one.
                    (open.pop()? == bracket - 2).then_some(())?;
                    self.at += 1;
                    if open.is_empty() {
                        return Some(Node::Deep(fields));
                    }
                }
                b',' => self.at += 1,
                _ => match self.scalar()? {
                    Node::Text(text) if open.last() == Some(&b'{') && self.skip(b':') => name = text,
                    node => fields.push((name.clone(), node)),
                },
            }
        }
    }

    fn string(&mut self) -> Option<String> {
        (self.rest().first() == Some(&b'"')).then_some(())?;
        self.at += 1;
        let mut text = String::new();
        loop {
            let length = memchr::memchr2(b'"', b'\\', self.rest())?;
            text.push_str(&self.text[self.at..self.at + length]);
            self.at += length;
            if self.rest()[0] == b'"' {
                self.at += 1;
                return Some(text);
            }
            let escaped = *self.rest().get(1)?;
            self.at += 2;
            text.push(match escaped {
                b'n' => '\n',
                b'r' => '\r',
                b't' => '\t',
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'"' | b'\\' | b'/' => char::from(escaped),
                b'u' => self.unicode_escape()?,
                _ => return None,
            });
        }
    }

    /// The character of `\uXXXX` behind its `\u`, or of two of them.
    fn unicode_escape(&mut self) -> Option<char> {
        let unit = |text: &str| u16::from_str_radix(text, 16).ok().filter(|_| !text.starts_with('+'));
        let first = unit(self.text.get(self.at..self.at + 4)?)?;
        self.at += 4;
        let second = self.text.get(self.at..self.at + 6).and_then(|text| unit(text.strip_prefix("\\u")?));
        let second = second.filter(|_| matches!(first, 0xD800..=0xDBFF));
        match char::decode_utf16(std::iter::once(first).chain(second)).next()? {
            Ok(character) => {
                self.at += if second.is_some() { 6 } else { 0 };
                Some(character)
            }
            Err(_) => Some(char::REPLACEMENT_CHARACTER),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_DEPTH, Node, parse};

    fn text(text: &str) -> Node {
        Node::Text(text.to_owned())
    }

    #[test]
    fn what_connectors_read_is_read() {
        let number = |text: &str| Node::Number(text.to_owned());
        let repeated = vec![("a".to_owned(), text("x")), ("a".to_owned(), number("1e999"))];
        for (document, expected) in [
            (r#" {"a":"x", "a" : 1e999 } "#, Node::Object(repeated)),
            (
                r#"["a\ud800b", "\uD83D\ude00", "\ud83dx"]"#,
                Node::Array(vec![text("a\u{fffd}b"), text("😀"), text("\u{fffd}x")]),
            ),
            (
                "[NaN, -Infinity, 12345678901234567890123]",
                Node::Array(["NaN", "-Infinity", "12345678901234567890123"].map(number).into()),
            ),
            (
                "\u{feff}[true, false, null, {}, []]",
                Node::Array(vec![
                    Node::Word,
                    Node::Word,
                    Node::Word,
                    Node::Object(Vec::new()),
                    Node::Array(Vec::new()),
                ]),
            ),
            ("\"\\n\\/\\\"é\u{1}\"", text("\n/\"é\u{1}")),
        ] {
            assert_eq!(parse(document), Some(expected), "{document}");
        }
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for document in
            ["", "{", r#"{"a"}"#, r#"{"a":1"#, "[1,]", r#"["\u12"]"#, r#"["\q"]"#, "[x]", "{} {}", "{'a':1}", "[1}"]
        {
            assert_eq!(parse(document), None, "{document}");
        }
    }

    #[test]
    fn deep_documents_are_flattened_without_recursion() {
        for depth in [MAX_DEPTH + 1, 100_000] {
            let document = format!("{}{{\"k\":\"v\",\"l\":[{{}},\"w\"]}}{}", "[".repeat(depth), "]".repeat(depth));
            let mut node = &parse(&document).expect("JSON");
            while let Node::Array(items) = node {
                node = &items[0];
            }
            assert_eq!(node, &Node::Deep(vec![("k".to_owned(), text("v")), ("l".to_owned(), text("w"))]));
            assert_eq!(parse(&document[..document.len() - 1]), None);
        }
    }
}
