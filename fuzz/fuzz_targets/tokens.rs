//! The file of tokens, and its patterns. Of the text the first line is a pattern, too, and the second one what it may match.

#![no_main]

use libfuzzer_sys::fuzz_target;
use syncctl::pattern::{Glob, ImagePattern};
use syncctl::server::auth::entries;

fuzz_target!(|text: &str| {
    if let Ok(tokens) = entries::parse(text) {
        let names: std::collections::HashSet<&str> = tokens.iter().map(|token| token.name.as_str()).collect();
        assert_eq!(names.len(), tokens.len());
    }
    let mut lines = text.lines();
    let (pattern, candidate) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    if let Ok(glob) = pattern.parse::<Glob>() {
        assert_eq!(glob.matches(candidate), matches(pattern, candidate), "{pattern:?} {candidate:?}");
    }
    if let Ok(images) = pattern.parse::<ImagePattern>() {
        assert_eq!(images.to_string().parse(), Ok(images));
    }
});

/// The same with a table: whether each beginning of the pattern matches each beginning of the text.
fn matches(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let mut row = vec![false; text.len() + 1];
    row[0] = true;
    for wildcard in pattern.chars() {
        let mut next = vec![false; text.len() + 1];
        next[0] = row[0] && wildcard == '*';
        for (at, &character) in text.iter().enumerate() {
            next[at + 1] = match wildcard {
                '*' => next[at] || row[at + 1],
                '?' => row[at],
                other => row[at] && other == character,
            };
        }
        row = next;
    }
    row[text.len()]
}
