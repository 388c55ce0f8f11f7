//! The content of the tokens file: a YAML list of tokens. Pure.

use std::fmt::{self, Write};
use std::marker::PhantomData;
use std::str::FromStr;

use jiff::Timestamp;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::hash::Hashed;
use super::named::NamedToken;
use super::verb::Verb;
use crate::controller::document::without_values;
use crate::pattern::{Glob, ImagePattern};

/// More tokens would make each request slow: its token is compared with all of them.
const MAX_TOKENS: usize = 1000;
const MAX_NAME_BYTES: usize = 63;
/// Each request of the last minute is remembered.
const MAX_REQUESTS_PER_MINUTE: u32 = 100_000;

/// An entry as it is written. A field that is there must have a value: a list whose entries were removed must not allow
/// everything.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Fields {
    name: Text<Name>,
    hash: Text<Hashed>,
    #[serde(default, deserialize_with = "given")]
    expires: Option<Text<Expiry>>,
    #[serde(default, deserialize_with = "given")]
    verbs: Option<List<Verb>>,
    #[serde(default, deserialize_with = "given")]
    sync_ids: Option<List<Glob>>,
    #[serde(default, deserialize_with = "given")]
    storage_keys: Option<List<Glob>>,
    #[serde(default, deserialize_with = "given")]
    images: Option<List<ImagePattern>>,
    #[serde(default, deserialize_with = "given")]
    max_tasks: Option<Number<{ u32::MAX }>>,
    #[serde(default, deserialize_with = "given")]
    requests_per_minute: Option<Number<MAX_REQUESTS_PER_MINUTE>>,
}

/// A value that may be left out, but not empty.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Names are metric labels and words in logs.
struct Name(String);

impl FromStr for Name {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let is_valid = text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.len() <= MAX_NAME_BYTES
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if is_valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("expected a name of at most {MAX_NAME_BYTES} letters, digits, dots, underscores and dashes"))
        }
    }
}

struct Expiry(Timestamp);

impl FromStr for Expiry {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| "expected a time such as 2027-01-31T00:00:00Z".to_owned())
    }
}

/// A value that is written as a text. The parser adds line and field to an error of the visitor.
struct Text<T>(T);

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor<T>(PhantomData<T>);
        impl<T: FromStr<Err = String>> Visitor<'_> for TextVisitor<T> {
            type Value = Text<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Text<T>, E> {
                text.parse().map(Text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(TextVisitor(PhantomData))
    }
}

/// A list of texts that is not empty.
struct List<T>(Vec<T>);

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T>(PhantomData<T>);
        impl<'de, T: FromStr<Err = String>> Visitor<'de> for ListVisitor<T> {
            type Value = List<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<List<T>, A::Error> {
                let mut values = Vec::new();
                while let Some(Text(value)) = sequence.next_element()? {
                    values.push(value);
                }
                if values.is_empty() {
                    let text = "the list is empty: remove it to allow everything, or the token to allow nothing";
                    return Err(A::Error::custom(text));
                }
                Ok(List(values))
            }
        }
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

/// A number from 1 to `MAX`.
struct Number<const MAX: u32>(u32);

impl<'de, const MAX: u32> Deserialize<'de> for Number<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberVisitor<const MAX: u32>;
        impl<const MAX: u32> Visitor<'_> for NumberVisitor<MAX> {
            type Value = Number<MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from 1 to {MAX}")
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Number<MAX>, E> {
                let number = u32::try_from(number).ok().filter(|number| (1..=MAX).contains(number));
                number.map(Number).ok_or_else(|| E::custom(format!("expected a whole number from 1 to {MAX}")))
            }
        }
        deserializer.deserialize_u64(NumberVisitor)
    }
}

/// Parses the file. The error names line and field and quotes no hash.
pub fn parse(text: &str) -> Result<Vec<NamedToken>, String> {
    let is_blank = text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    let parsed: Result<Option<Vec<Fields>>, _> = if is_blank { Ok(None) } else { serde_yaml::from_str(text) };
    let entries = parsed.map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        let message = error.to_string();
        let message = without_values(message.split(" at line ").next().unwrap_or_default());
        format!("line {line}: {}", message.trim_start_matches('.'))
    })?;
    // A file that was cut off must not look like one without tokens.
    let entries = entries.ok_or("line 1: the file is empty: expected a list of tokens, or [] for none")?;
    if entries.len() > MAX_TOKENS {
        return Err(format!("line 1: the list has {} tokens: expected at most {MAX_TOKENS}", entries.len()));
    }
    let tokens: Vec<NamedToken> = entries.into_iter().map(NamedToken::from).collect();
    for (index, NamedToken { name, .. }) in tokens.iter().enumerate() {
        if tokens[..index].iter().any(|other| other.name == *name) {
            let line = lines_of_name(text, name).nth(1).unwrap_or(1);
            return Err(format!("line {line}: [{index}].name: another token has the name {name:?}"));
        }
    }
    Ok(tokens)
}

/// The lines that give this name.
fn lines_of_name<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    let gives_name = move |line: &str| {
        let line = line.trim_start_matches(['-', ' ', '{', '"']);
        let value = line.strip_prefix("name").map(|rest| rest.trim_start_matches(['"', ' ', ':', '\'']));
        value
            .and_then(|value| value.strip_prefix(name))
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || "._-".contains(c)))
    };
    text.lines().enumerate().filter(move |(_, line)| gives_name(line)).map(|(index, _)| index + 1)
}

impl From<Fields> for NamedToken {
    fn from(fields: Fields) -> Self {
        let Fields { name, hash, expires, verbs, sync_ids, storage_keys, images, max_tasks, requests_per_minute } =
            fields;
        Self {
            name: name.0.0,
            hash: hash.0,
            expires: expires.map(|text| text.0.0),
            verbs: verbs.map(|list| list.0),
            sync_ids: sync_ids.map(|list| list.0),
            storage_keys: storage_keys.map(|list| list.0),
            images: images.map(|list| list.0),
            max_tasks: max_tasks.map(|number| number.0),
            requests_per_minute: requests_per_minute.map(|number| number.0),
            recent: std::sync::Arc::default(),
        }
    }
}

/// A token to be written.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    pub name: String,
    pub hashed: String,
    pub expires: Option<Timestamp>,
    pub verbs: Vec<Verb>,
    pub sync_ids: Vec<String>,
    pub storage_keys: Vec<String>,
    pub images: Vec<String>,
    pub max_tasks: Option<u32>,
    pub requests_per_minute: Option<u32>,
}

impl Entry {
    /// The lines of the entry in the file, each behind `indent`. JSON strings and lists are YAML, too.
    pub fn lines(&self, indent: &str) -> String {
        let mut fields = vec![("name", json!(self.name)), ("hash", json!(self.hashed))];
        fields.extend(self.expires.map(|expires| ("expires", json!(expires))));
        let verbs: Vec<String> = self.verbs.iter().map(ToString::to_string).collect();
        let lists = [
            ("verbs", &verbs),
            ("syncIds", &self.sync_ids),
            ("storageKeys", &self.storage_keys),
            ("images", &self.images),
        ];
        fields.extend(lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(name, list)| (name, json!(list))));
        fields.extend(self.max_tasks.map(|number| ("maxTasks", json!(number))));
        fields.extend(self.requests_per_minute.map(|number| ("requestsPerMinute", json!(number))));
        let mut lines = String::new();
        for (index, (name, value)) in fields.iter().enumerate() {
            let bullet = if index == 0 { "- " } else { "  " };
            // Writing to a String cannot fail.
            writeln!(lines, "{indent}{bullet}{name}: {value}").unwrap_or_default();
        }
        lines
    }
}

/// The content of the file with a new entry at its end; everything else stays as it is. The error says why the entry, or
/// the file as it was, is not valid.
pub fn append(text: &str, entry: &Entry) -> Result<String, String> {
    parse(&entry.lines("")).map_err(|error| {
        // The line is one of this entry, which is in no file yet.
        let error = error.split_once(": ").map_or(error.as_str(), |(_, error)| error);
        format!("invalid token: {}", error.trim_start_matches("[0]."))
    })?;
    let is_empty = text.lines().all(|line| matches!(line.trim(), "" | "---" | "[]") || line.trim().starts_with('#'));
    let existing = if is_empty { Vec::new() } else { parse(text)? };
    if existing.iter().any(|token| token.name == entry.name) {
        return Err(format!("a token of the name {:?} exists: choose another name, or remove its entry", entry.name));
    }
    let indent = text.lines().find(|line| line.trim_start().starts_with("- "));
    let indent = indent.map_or("", |line| &line[..line.len() - line.trim_start().len()]);
    let mut text: String = text.split_inclusive('\n').filter(|line| !is_empty || line.trim() != "[]").collect();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text += &entry.lines(indent);
    // A list in flow style, or another document, has no place for it.
    let names = |tokens: &[NamedToken]| tokens.iter().map(|token| token.name.clone()).collect::<Vec<_>>();
    let expected = [names(&existing), vec![entry.name.clone()]].concat();
    match parse(&text) {
        Ok(tokens) if names(&tokens) == expected => Ok(text),
        _ => Err("cannot add an entry at its end: write it as a list with one dash for each token".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, append, parse};
    use crate::server::auth::{Verb, hashed};
    use strum::IntoEnumIterator;

    fn hash() -> String {
        hashed("token", "hunter2", &"secret".into())
    }

    fn entry(name: &str) -> Entry {
        Entry { name: name.to_owned(), hashed: hash(), ..Entry::default() }
    }

    #[test]
    fn every_field_is_read_and_written() {
        let entry = Entry {
            expires: Some("2030-01-02T03:04:05Z".parse().expect("a time")),
            verbs: Verb::iter().collect(),
            sync_ids: vec!["a-*".to_owned(), "\"\\ä: #".to_owned()],
            storage_keys: vec!["*".to_owned()],
            images: vec!["airbyte/*@sha256:*".to_owned()],
            max_tasks: Some(1),
            requests_per_minute: Some(100_000),
            ..entry("team.a_1-x")
        };
        let token = parse(&append("", &entry).expect("an entry")).expect("valid").remove(0);
        assert_eq!((token.name.as_str(), token.expires), ("team.a_1-x", entry.expires));
        assert!(bool::from(token.hash.is_of("token", &["secret".into()])));
        assert_eq!(token.verbs, Some(entry.verbs));
        assert!(
            token.check_sync("a-1").is_ok() && token.check_sync("\"\\ä: #").is_ok() && token.check_sync("b").is_err()
        );
        assert_eq!((token.max_tasks, token.requests_per_minute), (Some(1), Some(100_000)));
    }

    #[test]
    fn errors_name_line_and_field_and_quote_no_hash() {
        let hash = hash();
        let first = format!("- name: a\n  hash: {hash}\n");
        let mut problems = Vec::new();
        for (label, more, expected) in [
            ("unknown field", "  syncs: [x]\n", "line 3: [0]: unknown field `syncs`"),
            ("twice", "  verbs: [read]\n  verbs: [read]\n", "[0]: duplicate field `verbs`"),
            ("unknown verb", "  verbs: [read, Write]\n", "line 3: [0].verbs[1]: expected one of spec, check"),
            ("empty list", "  syncIds: []\n", "line 3: [0].syncIds: the list is empty"),
            ("no value", "  syncIds:\n", "[0].syncIds: the list is empty"),
            ("no number", "  maxTasks: ~\n", "[0].maxTasks: invalid type: unit value"),
            ("no time", "  expires: ~\n", "line 3: [0].expires: expected a time"),
            ("a text for a list", "  images: hunter2\n", "line 3: [0].images: invalid type: a string, expected a list"),
            ("a blank pattern", "  syncIds: [' ']\n", "line 3: [0].syncIds[0]: a pattern is blank"),
            ("an invalid image", "  images: ['a b']\n", "line 3: [0].images[0]: \"a b\" is not a pattern for images"),
            ("a date", "  expires: 2030-01-01\n", "line 3: [0].expires: expected a time"),
            ("no tasks", "  maxTasks: 0\n", "line 3: [0].maxTasks: expected a whole number from 1 to"),
            ("negative", "  maxTasks: -1\n", "[0].maxTasks: invalid"),
            (
                "too many requests",
                "  requestsPerMinute: 100001\n",
                "line 3: [0].requestsPerMinute: expected a whole number from 1 to 100000",
            ),
            (
                "the same name",
                &format!("\n- name: \"a\"\n  hash: x{hash}\n"),
                "line 4: [1].name: another token has the name \"a\"",
            ),
            ("no hash", "- name: b\n", "line 3: [1]: missing field `hash`"),
            ("a plain token", "- name: b\n  hash: hunter2\n", "line 4: [1].hash: it has no dot"),
            ("a short hash", "- name: b\n  hash: hunter2.abc\n", "line 4: [1].hash: the hash after the dot is neither"),
            ("a bad name", &format!("- name: a b\n  hash: {hash}\n"), "line 3: [1].name: expected a name"),
            (
                "a long name",
                &format!("- name: {}\n  hash: {hash}\n", "n".repeat(64)),
                "line 3: [1].name: expected a name",
            ),
            ("an alias", "  syncIds: [*a]\n", "line 3"),
            ("bad syntax", "  syncIds: [a\n", "line "),
        ] {
            match parse(&format!("{first}{more}")).err() {
                Some(error)
                    if error.contains(expected) && !error.contains("hunter2") && !error.contains(&hash[10..30]) => {}
                other => problems.push(format!("{label}: {other:?}")),
            }
        }
        assert!(problems.is_empty(), "{problems:#?}");
        for (text, expected) in [
            ("", "line 1: the file is empty"),
            (" \n", "line 1: the file is empty"),
            ("tokens: []", "line 1: invalid type: map, expected a sequence"),
            ("hunter2", "line 1: invalid type: a string, expected a sequence"),
        ] {
            let error = parse(text).err().expect("invalid");
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(parse("[]").expect("no token at all").is_empty());
        for empty in ["# all revoked\n", "~", "---\n"] {
            assert!(parse(empty).is_err(), "{empty}");
        }
    }

    #[test]
    fn an_entry_is_appended_behind_everything_that_is_there() {
        let hash = hash();
        for existing in [
            String::new(),
            "[]\n".to_owned(),
            "# ours\n".to_owned(),
            format!("# ours\n- name: a\n  hash: {hash} # of Anna\n\n# end"),
            format!("---\n  # ours\n  - hash: {hash}\n    name: a\n"),
        ] {
            let text = append(&existing, &entry("new")).unwrap_or_else(|error| panic!("{existing}: {error}"));
            let kept = existing.strip_suffix("[]\n").unwrap_or(&existing);
            assert!(text.starts_with(kept), "{text}");
            assert_eq!(parse(&text).expect("valid").last().map(|token| token.name.as_str()), Some("new"), "{text}");
        }
        let one = append("", &entry("a")).expect("an entry");
        let error = append(&one, &entry("a")).expect_err("the name is taken");
        assert!(error.contains("a token of the name \"a\" exists"), "{error}");
        for broken in ["{}", "- name: b\n", &format!("[{{name: b, hash: {hash}}}]"), &format!("{one}---\n{one}")] {
            assert!(append(broken, &entry("c")).is_err(), "{broken}");
        }
        let error = append("", &entry("a b")).expect_err("a bad name");
        assert!(error.starts_with("invalid token: name: expected a name"), "{error}");
    }
}
