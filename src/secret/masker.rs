//! Replaces known secrets in text.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use aho_corasick::AhoCorasick;
use serde_json::Value;

use super::documents::{secrets_of_config, secrets_of_document};
use super::encodings::{Bytes, View, base64_cores, quoted_forms};

/// Replaces a secret.
const MASK: &str = "***";

/// Shorter secrets are parts of many words and numbers, so they are masked only where nothing but themselves could be
/// meant: as whole words.
const MIN_SUBSTRING_CHARS: usize = 4;

/// Limit of all patterns together, because text is compared with each of them. What exceeds it is left out, a value at a
/// time.
const MAX_PATTERN_BYTES: usize = 512 * 1024;
/// Longer secrets are not searched for in base64, which takes eight times their length.
const MAX_BASE64_BYTES: usize = 8 * 1024;
/// The automaton finds the beginnings of patterns: small enough for the processor's cache, it is several times faster.
const MAX_ANCHOR_BYTES: usize = 12;

/// How deep encodings may be nested: JSON in JSON in a URL.
const MAX_NESTING: usize = 3;

/// Masks the secrets of documents in text, also where they are encoded. Clones share the secrets.
#[derive(Clone, Default)]
pub struct Masker {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// The JSON Schema of configurations.
    schema: Option<Value>,
    /// Values that are no secret, whatever they look like. Does not apply to fields that are secret by mark or by name.
    readable: BTreeSet<String>,
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    patterns: BTreeMap<String, Form>,
    bytes: usize,
    /// `None` while there are no patterns.
    matcher: Option<Matcher>,
}

struct Matcher {
    anchors: AhoCorasick,
    /// The patterns that begin with each anchor: their further bytes and their forms.
    patterns: Vec<Vec<(Vec<u8>, Form)>>,
    /// Escapes of other bytes are in no pattern.
    bytes: Bytes,
}

/// How a pattern appears in text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    /// A part of a base64 text; the letters and digits around it belong to it.
    Base64,
    /// With neither letters nor digits around it.
    Word,
    /// Anywhere.
    Substring,
}

impl Masker {
    /// A masker for configurations of this schema, if it is known.
    pub fn new(schema: Option<Value>, readable: impl IntoIterator<Item = String>) -> Self {
        let readable = readable.into_iter().collect();
        Self { shared: Arc::new(Shared { schema, readable, known: RwLock::default() }) }
    }

    /// Masks the secrets of a connector's configuration from now on.
    pub fn add_config(&self, config: &Value) {
        self.add(&secrets_of_config(config, self.shared.schema.as_ref(), &self.shared.readable));
    }

    /// Masks what looks like a secret in any other document.
    pub fn add_document(&self, document: &Value) {
        self.add(&secrets_of_document(document, &self.shared.readable));
    }

    fn add(&self, secrets: &BTreeSet<String>) {
        let mut known = self.shared.known.write().unwrap_or_else(PoisonError::into_inner);
        let mut secrets: Vec<_> = secrets.iter().filter(|secret| !secret.trim().is_empty()).collect();
        // One that is too large leaves room for the others.
        secrets.sort_by_key(|secret| secret.len());
        for secret in secrets {
            known.add(secret);
        }
        known.build();
    }

    /// The text without secrets. Does not allocate where there are none.
    pub fn mask<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let known = self.shared.known.read().unwrap_or_else(PoisonError::into_inner);
        let Some(matcher) = &known.matcher else { return Cow::Borrowed(text) };
        let mut found = Vec::new();
        matcher.search(&View::new(text), 0, &mut found);
        if found.is_empty() {
            return Cow::Borrowed(text);
        }
        found.sort_unstable();
        let (mut masked, mut at) = (String::with_capacity(text.len()), 0);
        let mut hidden: Vec<(usize, usize)> = Vec::new();
        for (start, end) in found {
            match hidden.last_mut() {
                // Secrets that overlap are hidden as one: the rest of either would be a part of it.
                Some(last) if start < last.1 => last.1 = last.1.max(end),
                _ => hidden.push((start, end)),
            }
        }
        for (start, end) in hidden {
            let (start, end) = (text.floor_char_boundary(start).max(at), text.ceil_char_boundary(end));
            masked.push_str(&text[at..start]);
            masked.push_str(MASK);
            at = end;
        }
        masked.push_str(&text[at..]);
        Cow::Owned(masked)
    }
}

impl Known {
    fn add(&mut self, secret: &str) {
        let is_short = secret.trim().chars().count() < MIN_SUBSTRING_CHARS;
        let form = if is_short { Form::Word } else { Form::Substring };
        self.add_pattern(secret.to_owned(), form);
        if is_short {
            self.add_pattern(secret.trim().to_owned(), form);
        }
        // A PEM key is logged line by line, and then no line equals the whole.
        for line in secret.lines().map(str::trim).filter(|line| line.chars().count() >= MIN_SUBSTRING_CHARS) {
            self.add_pattern(line.to_owned(), form);
        }
        for quoted in quoted_forms(secret) {
            self.add_pattern(quoted, form);
        }
        if secret.len() <= MAX_BASE64_BYTES {
            let form = if is_short { Form::Word } else { Form::Base64 };
            for core in base64_cores(secret.as_bytes()) {
                self.add_pattern(core, form);
            }
        }
    }

    fn add_pattern(&mut self, pattern: String, form: Form) {
        if let Some(known) = self.patterns.get_mut(&pattern) {
            *known = form.max(*known);
        } else if self.bytes + pattern.len() <= MAX_PATTERN_BYTES {
            self.bytes += pattern.len();
            self.patterns.insert(pattern, form);
        }
    }

    fn build(&mut self) {
        let mut patterns: BTreeMap<&[u8], Vec<(Vec<u8>, Form)>> = BTreeMap::new();
        for (pattern, form) in &self.patterns {
            let (anchor, rest) = pattern.as_bytes().split_at(pattern.len().min(MAX_ANCHOR_BYTES));
            patterns.entry(anchor).or_default().push((rest.to_owned(), *form));
        }
        // Only sizes beyond what memory holds are refused.
        let anchors = AhoCorasick::new(patterns.keys()).ok().filter(|_| !patterns.is_empty());
        let bytes = if self.patterns.values().any(|form| *form == Form::Word) {
            // An escape next to a word separates it from others, whatever it stands for.
            Bytes::all()
        } else {
            Bytes::with_escapes(self.patterns.keys().flat_map(|pattern| pattern.bytes()))
        };
        self.matcher = anchors.map(|anchors| Matcher { anchors, patterns: patterns.into_values().collect(), bytes });
    }
}

impl Matcher {
    /// Collects where patterns are in the original text.
    fn search(&self, view: &View<'_>, depth: usize, found: &mut Vec<(usize, usize)>) {
        let text = view.text();
        let mut base64_end = 0;
        for anchor in self.anchors.find_overlapping_iter(text) {
            for (rest, form) in &self.patterns[anchor.pattern().as_usize()] {
                if !text[anchor.end()..].starts_with(rest) {
                    continue;
                }
                let (start, end) = (anchor.start(), anchor.end() + rest.len());
                let (start, end) = match form {
                    Form::Substring => (start, end),
                    Form::Word if is_whole_word(text, start, end) => (start, end),
                    // Many secrets in one base64 text are hidden with the first of them.
                    Form::Base64 if start >= base64_end => base64_extent(text, start, end),
                    Form::Word | Form::Base64 => continue,
                };
                if *form == Form::Base64 {
                    base64_end = end;
                }
                found.push(view.original_range(start, end));
            }
        }
        if depth < MAX_NESTING {
            view.decoded(&self.bytes).iter().for_each(|view| self.search(view, depth + 1, found));
        }
    }
}

/// Whether no letter or digit is next to a part of a text.
fn is_whole_word(text: &[u8], start: usize, end: usize) -> bool {
    let before = String::from_utf8_lossy(&text[start.saturating_sub(4)..start]).chars().next_back();
    let after = String::from_utf8_lossy(&text[end..text.len().min(end + 4)]).chars().next();
    ![before, after].into_iter().flatten().any(char::is_alphanumeric)
}

/// A part of a base64 text with the rest of it: the first and the last character hold bits of the secret.
fn base64_extent(text: &[u8], start: usize, end: usize) -> (usize, usize) {
    let before = text[..start].iter().rev().take_while(|byte| byte.is_ascii_alphanumeric()).count();
    let after = text[end..].iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
    let padding = text[end + after..].iter().take(2).take_while(|byte| **byte == b'=').count();
    (start - before, end + after + padding)
}
