//! Finds the patterns of secrets in text.

use std::collections::BTreeMap;
use std::ops::Bound;

use aho_corasick::AhoCorasick;

use super::forms::Form;
use super::views::{Bytes, View};

/// The automaton finds the beginnings of patterns: small enough for the processor's cache, it is several times faster.
const MAX_ANCHOR_BYTES: usize = 12;
/// Shorter patterns are not searched for across line breaks, where the end of one word meets the beginning of another.
const MIN_UNWRAPPED_BYTES: usize = 16;
/// At the end of a text that was cut, the beginning of a secret has at least this length, and at most that one.
const CUT_CHARS: std::ops::RangeInclusive<usize> = 4..=4096;

/// The patterns of secrets.
pub struct Matcher {
    anchors: AhoCorasick,
    /// The patterns that begin with each anchor: their further bytes and their forms.
    patterns: Vec<Vec<(Vec<u8>, Form)>>,
    /// Long secrets, of which pieces are patterns.
    long: Vec<String>,
    /// Escapes of other bytes are in no pattern.
    bytes: Bytes,
}

impl Matcher {
    /// `None` where there are no patterns.
    pub fn new(patterns: &BTreeMap<String, Form>, long: Vec<String>) -> Option<Self> {
        let mut by_anchor: BTreeMap<&[u8], Vec<(Vec<u8>, Form)>> = BTreeMap::new();
        for (pattern, form) in patterns {
            let (anchor, rest) = pattern.as_bytes().split_at(pattern.len().min(MAX_ANCHOR_BYTES));
            by_anchor.entry(anchor).or_default().push((rest.to_owned(), *form));
        }
        let bytes = if patterns.values().any(|form| *form == Form::Word) {
            // An escape next to a word separates it from others, whatever it stands for.
            Bytes::all()
        } else {
            Bytes::with_escapes(patterns.keys().chain(&long).flat_map(|pattern| pattern.bytes()))
        };
        // Only sizes beyond what memory holds are refused.
        let anchors = AhoCorasick::new(by_anchor.keys()).ok().filter(|_| !by_anchor.is_empty())?;
        Some(Self { anchors, patterns: by_anchor.into_values().collect(), long, bytes })
    }

    /// Where secrets are in a text, in order; those that overlap are one.
    pub fn find(&self, text: &str) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        View::for_each(text, &self.bytes, |view| self.search(view, &mut found));
        found.sort_unstable();
        let mut joined: Vec<(usize, usize)> = Vec::new();
        for (start, end) in found {
            match joined.last_mut() {
                // The rest of either would be a part of it.
                Some(last) if start < last.1 => last.1 = last.1.max(end),
                _ => joined.push((start, end)),
            }
        }
        joined
    }

    fn search(&self, view: &View<'_>, found: &mut Vec<(usize, usize)>) {
        let text = view.text();
        let (mut base64_end, mut piece_end) = (0, 0);
        for anchor in self.anchors.find_overlapping_iter(text) {
            for (rest, form) in &self.patterns[anchor.pattern().as_usize()] {
                if !text[anchor.end()..].starts_with(rest) {
                    continue;
                }
                let (start, end) = (anchor.start(), anchor.end() + rest.len());
                if view.is_unwrapped && end - start < MIN_UNWRAPPED_BYTES {
                    continue;
                }
                let (start, end) = match form {
                    Form::Substring => (start, end),
                    Form::Word if is_whole_word(text, start, end) => (start, end),
                    // Many secrets in one base64 text are hidden with the first of them.
                    Form::Base64 | Form::Base64Piece if start >= base64_end => {
                        let (start, end) = base64_extent(text, start, end, *form == Form::Base64Piece);
                        base64_end = end;
                        (start, end)
                    }
                    Form::Piece if start >= piece_end => {
                        let (start, end) = self.piece_extent(text, start, end);
                        piece_end = end;
                        (start, end)
                    }
                    Form::Word | Form::Base64 | Form::Base64Piece | Form::Piece => continue,
                };
                found.push(view.original_range(start, end));
            }
        }
    }

    /// A piece of a long secret with what is around it of that secret.
    fn piece_extent(&self, text: &[u8], start: usize, end: usize) -> (usize, usize) {
        let extents = self.long.iter().filter_map(|secret| {
            let secret = secret.as_bytes();
            let at = memchr::memmem::find(secret, &text[start..end])?;
            let before = text[..start].iter().rev().zip(secret[..at].iter().rev());
            let after = text[end..].iter().zip(&secret[at + end - start..]);
            let before = before.take_while(|(one, other)| one == other).count();
            Some((start - before, end + after.take_while(|(one, other)| one == other).count()))
        });
        extents.max_by_key(|(start, end)| end - start).unwrap_or((start, end))
    }
}

/// Where at the end of a text a secret begins that was cut; the length of the text if there is none.
pub fn cut_secret(patterns: &BTreeMap<String, Form>, text: &str) -> usize {
    let starts = text.char_indices().rev().map(|(at, _)| at).take(*CUT_CHARS.end()).skip(CUT_CHARS.start() - 1);
    let is_beginning = |at: &usize| {
        let next = patterns.range::<str, _>((Bound::Included(&text[*at..]), Bound::Unbounded)).next();
        next.is_some_and(|(pattern, form)| *form != Form::Word && pattern.starts_with(&text[*at..]))
    };
    starts.filter(is_beginning).last().unwrap_or(text.len())
}

/// Whether no letter or digit is next to a part of a text.
fn is_whole_word(text: &[u8], start: usize, end: usize) -> bool {
    let before = String::from_utf8_lossy(&text[start.saturating_sub(4)..start]).chars().next_back();
    let after = String::from_utf8_lossy(&text[end..text.len().min(end + 4)]).chars().next();
    ![before, after].into_iter().flatten().any(char::is_alphanumeric)
}

/// A part of a base64 text with the rest of it: the first and the last character hold bits of the secret.
fn base64_extent(text: &[u8], start: usize, end: usize, is_long: bool) -> (usize, usize) {
    let is_digit = |byte: &&u8| byte.is_ascii_alphanumeric() || is_long && b"+/-_".contains(*byte);
    let before = text[..start].iter().rev().take_while(is_digit).count();
    let after = text[end..].iter().take_while(is_digit).count();
    let padding = text[end + after..].iter().take(2).take_while(|byte| **byte == b'=').count();
    (start - before, end + after + padding)
}
