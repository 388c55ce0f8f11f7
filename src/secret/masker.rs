//! Replaces known secrets in text.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;

use super::documents::{Secrets, secrets_of_config, secrets_of_document};
use super::forms::{Form, forms_of, forms_of_pair};
use super::lenient::parse;
use super::matcher::{Matcher, cut_secret};

/// Replaces a secret.
const MASK: &str = "***";

/// Limit of all patterns of a configuration: a dozen secrets of any length, or tens of thousands of short ones. Beyond it
/// text is not shown.
const MAX_CONFIG_BYTES: usize = if cfg!(test) { 4 } else { 16 } * 1024 * 1024;
/// Limit of all patterns of what only looks like a secret. What exceeds it is left out, a value at a time.
const MAX_GUESSED_BYTES: usize = 4 * 1024 * 1024;
/// How much more of a text is searched than is shown of it.
const SEARCHED_BEYOND: usize = 64 * 1024;
/// The field that holds a configuration that a connector renews.
const RENEWED_CONFIG: &str = "connectorConfig";
/// Replaces a text with that field: nothing is known of its secrets yet.
const RENEWED_CONFIG_HIDDEN: &str = "a message with a renewed configuration is not shown";

/// Masks the secrets of documents in text, also where they are encoded. Clones share the secrets.
///
/// Where a document cannot be read, its secrets are unknown, and one sentence replaces every text.
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
    /// The patterns of each kind of document.
    groups: [Group; 3],
    /// Of all groups.
    patterns: BTreeMap<String, Form>,
    /// `None` while there are no patterns.
    matcher: Option<Matcher>,
    /// What replaces every text.
    hidden: Option<String>,
}

#[derive(Default)]
struct Group {
    patterns: BTreeMap<String, Form>,
    bytes: usize,
    /// Secrets of which only pieces are patterns.
    long: Vec<String>,
}

/// A kind of document.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A configuration that the caller gave.
    Config,
    /// A configuration that the connector renewed.
    Renewed,
    /// Any other document.
    Other,
}

impl Masker {
    /// A masker for configurations of this schema, if it is known.
    pub fn new(schema: Option<Value>, readable: impl IntoIterator<Item = String>) -> Self {
        let readable = readable.into_iter().collect();
        Self { shared: Arc::new(Shared { schema, readable, known: RwLock::default() }) }
    }

    /// Masks the secrets of a connector's configuration from now on. `name` is what errors call it.
    pub fn add_config(&self, name: &str, config: &str) {
        self.add_config_of_kind(name, config, Kind::Config);
    }

    /// Masks the secrets of a configuration that the connector renews from now on.
    pub fn add_renewed_config(&self, name: &str, config: &str) {
        self.add_config_of_kind(name, config, Kind::Renewed);
    }

    fn add_config_of_kind(&self, name: &str, config: &str, kind: Kind) {
        let Shared { schema, readable, .. } = &*self.shared;
        match parse(config) {
            Some(config) => self.add(name, kind, &secrets_of_config(&config, schema.as_ref(), readable)),
            None => self.hide(name, config),
        }
    }

    /// Masks what looks like a secret in any other document.
    pub fn add_document(&self, name: &str, document: &str) {
        match parse(document) {
            Some(document) => self.add(name, Kind::Other, &secrets_of_document(&document, &self.shared.readable)),
            None => self.hide(name, document),
        }
    }

    /// Hides every text from now on, unless the document is empty and so has no secrets.
    fn hide(&self, name: &str, document: &str) {
        if !document.trim().is_empty() {
            self.known_mut(|known| known.hide(&format!("{name} cannot be read")));
        }
    }

    fn known_mut(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.shared.known.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn add(&self, name: &str, kind: Kind, secrets: &Secrets) {
        self.known_mut(|known| {
            if !known.add(kind, secrets) && kind != Kind::Other {
                known.hide(&format!("{name} has too many"));
            }
            known.build();
        });
    }

    /// The sentence that replaces every text, where a document cannot be read.
    pub fn hidden(&self) -> Option<String> {
        self.shared.known.read().unwrap_or_else(PoisonError::into_inner).hidden.clone()
    }

    /// The text without secrets. Does not allocate where there are none.
    pub fn mask<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if has_renewed_config(text) {
            return Cow::Borrowed(RENEWED_CONFIG_HIDDEN);
        }
        let known = self.shared.known.read().unwrap_or_else(PoisonError::into_inner);
        match &known.hidden {
            Some(sentence) => Cow::Owned(sentence.clone()),
            None => known.mask(text),
        }
    }

    /// The same for a text of ours, which is shown where the connector's text is not.
    pub fn mask_own<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.shared.known.read().unwrap_or_else(PoisonError::into_inner).mask(text)
    }

    /// The beginning of a text without secrets, and whether that is not all. Masked before it is cut: half of a secret would
    /// not be recognized. A text that `was_cut` before may end in half of one.
    pub fn mask_beginning(&self, text: &str, limit: usize, was_cut: bool) -> (String, bool) {
        let searched = text.floor_char_boundary(limit.saturating_add(SEARCHED_BEYOND));
        let is_cut = searched < text.len();
        let mut shown = &text[..searched];
        if is_cut || was_cut {
            let known = self.shared.known.read().unwrap_or_else(PoisonError::into_inner);
            shown = &shown[..cut_secret(&known.patterns, shown)];
        }
        let hides_end = shown.len() < searched;
        let masked = if has_renewed_config(text) { RENEWED_CONFIG_HIDDEN.into() } else { self.mask(shown) };
        let masked = if hides_end { masked + MASK } else { masked };
        let end = masked.floor_char_boundary(limit);
        (masked[..end].to_owned(), is_cut || end < masked.len())
    }
}

/// Whether a text has a configuration that a connector renews, of which nothing is known.
fn has_renewed_config(text: &str) -> bool {
    memchr::memmem::find_iter(text.as_bytes(), RENEWED_CONFIG).any(|at| {
        let rest = text[at + RENEWED_CONFIG.len()..].trim_start_matches(['\\', '"', '\'']);
        rest.len() < text.len() - at - RENEWED_CONFIG.len() && rest.trim_start().starts_with(':')
    })
}

impl Known {
    fn hide(&mut self, why: &str) {
        let text = || format!("text of the connector is not shown: its secrets are unknown, because {why}");
        self.hidden.get_or_insert_with(text);
    }

    /// Returns false if there are too many that are marked or named as a secret.
    fn add(&mut self, kind: Kind, secrets: &Secrets) -> bool {
        self.groups[Kind::Other as usize].add(&secrets.guessed, &BTreeSet::new(), MAX_GUESSED_BYTES);
        let limit = if kind == Kind::Other { MAX_GUESSED_BYTES } else { MAX_CONFIG_BYTES };
        let group = &mut self.groups[kind as usize];
        let is_complete = group.add(&secrets.values, &secrets.pairs, limit);
        if is_complete || kind != Kind::Renewed {
            return is_complete;
        }
        // Earlier renewals are no longer valid.
        *group = Group::default();
        group.add(&secrets.values, &secrets.pairs, limit)
    }

    fn build(&mut self) {
        self.patterns.clear();
        for group in &self.groups {
            for (pattern, form) in &group.patterns {
                let known = self.patterns.entry(pattern.clone()).or_insert(*form);
                *known = (*known).max(*form);
            }
        }
        let long = self.groups.iter().flat_map(|group| group.long.iter().cloned()).collect();
        self.matcher = Matcher::new(&self.patterns, long);
    }

    fn mask<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let found = self.matcher.as_ref().map(|matcher| matcher.find(text)).unwrap_or_default();
        if found.is_empty() {
            return Cow::Borrowed(text);
        }
        let (mut masked, mut at) = (String::with_capacity(text.len()), 0);
        for (start, end) in found {
            let (start, end) = (text.floor_char_boundary(start).max(at), text.ceil_char_boundary(end));
            masked.push_str(&text[at..start]);
            masked.push_str(MASK);
            at = end;
        }
        masked.push_str(&text[at..]);
        Cow::Owned(masked)
    }
}

impl Group {
    /// Adds what is within the limit; returns whether that is all.
    fn add(&mut self, values: &BTreeSet<String>, pairs: &BTreeSet<String>, limit: usize) -> bool {
        let mut values: Vec<_> = values.iter().filter(|secret| !secret.trim().is_empty()).collect();
        // A long one leaves room for the others.
        values.sort_by_key(|secret| secret.len());
        let is_complete = Cell::new(true);
        let add = |group: &mut Self, pattern: String, form: Form| {
            if let Some(known) = group.patterns.get_mut(&pattern) {
                *known = form.max(*known);
            } else if group.bytes + pattern.len() <= limit {
                group.bytes += pattern.len();
                group.patterns.insert(pattern, form);
            } else {
                is_complete.set(false);
            }
        };
        for pair in pairs {
            forms_of_pair(pair, &mut |pattern, form| add(self, pattern, form));
        }
        for secret in values {
            if !is_complete.get() {
                break;
            }
            let mut is_long = false;
            forms_of(secret, &mut |pattern, form| {
                is_long |= form == Form::Piece;
                add(self, pattern, form);
            });
            if is_long && !self.long.contains(secret) {
                self.long.push(secret.clone());
            }
        }
        is_complete.get()
    }
}
