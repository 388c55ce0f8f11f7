//! Identifiers: the names of streams and fields converted to names of schemas, tables and columns.

use std::fmt::Write as _;

use md5::{Digest, Md5};

pub use crate::db::text::quote_ident as quote;

/// Bytes of the longest identifier (`NAMEDATALEN` - 1); Postgres silently truncates longer ones.
pub const MAX_BYTES: usize = 63;

/// Hexadecimal digits of the suffix that distinguishes colliding names.
const SUFFIX_DIGITS: usize = 8;

/// The kind of an identifier, which becomes the prefix of a name without any allowed character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `column_<md5>`
    Column,
    /// `table_<md5>`
    Table,
    /// `schema_<md5>`
    Schema,
}

/// Column names that Postgres reserves even when quoted.
const SYSTEM_COLUMNS: [&str; 6] = ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];

/// Converts a name to a valid quoted identifier, by the rules of the existing implementation.
///
/// A run of characters other than letters, digits, `_`, space, `$` and `-` becomes one `_`. The result is truncated to
/// [`MAX_BYTES`].
pub fn clean(raw: &str, kind: Kind, same_case: bool) -> String {
    if raw.is_empty() {
        return "_unnamed".to_owned();
    }
    let mut name = String::with_capacity(raw.len());
    let (mut in_replaced_run, mut any_allowed) = (false, false);
    for c in raw.chars() {
        if c.is_alphabetic() || c.is_ascii_digit() || matches!(c, '_' | ' ' | '$' | '-') {
            if same_case {
                name.extend(c.to_lowercase());
            } else {
                name.push(c);
            }
            (in_replaced_run, any_allowed) = (false, true);
        } else if !in_replaced_run {
            name.push('_');
            in_replaced_run = true;
        }
    }
    if !any_allowed {
        let prefix = match kind {
            Kind::Column => "column",
            Kind::Table => "table",
            Kind::Schema => "schema",
        };
        return format!("{prefix}_{}", md5_hex(raw));
    }
    truncate(&mut name, MAX_BYTES);
    if kind == Kind::Column && SYSTEM_COLUMNS.contains(&name.as_str()) {
        name.push('_');
    }
    name
}

/// The name of an object whose cleaned name is already in use. The suffix is a hash of `identity`, so that it is the
/// same in every run.
pub fn suffixed(name: &str, identity: &str) -> String {
    let mut name = name.to_owned();
    truncate(&mut name, MAX_BYTES - SUFFIX_DIGITS - 1);
    format!("{name}_{}", short_hash(identity))
}

/// The qualified name of a table in SQL.
pub fn qualified(schema: &str, table: &str) -> String {
    format!("{}.{}", quote(schema), quote(table))
}

/// Quoted identifiers in SQL, separated by commas.
pub fn quoted_list<'n>(names: impl IntoIterator<Item = &'n String>) -> String {
    names.into_iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
}

/// The first [`SUFFIX_DIGITS`] hexadecimal digits of the MD5 hash.
pub fn short_hash(text: &str) -> String {
    let mut hash = md5_hex(text);
    hash.truncate(SUFFIX_DIGITS);
    hash
}

/// Truncates to a number of bytes without splitting a character.
pub fn truncate(name: &mut String, bytes: usize) {
    if name.len() > bytes {
        let end = (0..=bytes).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0);
        name.truncate(end);
    }
}

/// Escapes the characters of a JSON document that are not printable ASCII.
pub fn ascii_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c == ' ' || c.is_ascii_graphic() {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(text, "\\u{unit:04x}").expect("a String accepts any text");
            }
        }
    }
    text
}

fn md5_hex(text: &str) -> String {
    let digest: [u8; 16] = Md5::digest(text.as_bytes()).into();
    format!("{:032x}", u128::from_be_bytes(digest))
}

#[cfg(test)]
mod tests {
    use super::{Kind, clean, quote, suffixed};

    #[test]
    fn clean_replaces_disallowed_characters_and_truncates() {
        let long = "x".repeat(70);
        let wide = "é".repeat(40);
        for (label, raw, same_case, expected) in [
            ("unchanged", "user_Name 1$-", false, "user_Name 1$-"),
            ("letters of any script", "größe_名前", false, "größe_名前"),
            ("dot", "a.b", false, "a_b"),
            ("slash", "a/b", false, "a_b"),
            ("a run becomes one", "a./\\!b", false, "a_b"),
            ("quotes", "a\"b'c", false, "a_b_c"),
            ("same case", "UserName", true, "username"),
            ("same case of any script", "GRÖSSE", true, "grösse"),
            ("empty", "", false, "_unnamed"),
            ("underscore alone", "_", false, "_"),
            ("no allowed character", "!!!", false, "column_6dd075556effaa6e7f1e3e3ba9fdc5fa"),
            ("truncated to 63 bytes", &long, false, &long[..63]),
            ("not truncated within a character", &wide, false, &wide[..62]),
            ("a system column", "ctid", false, "ctid_"),
            ("system columns are lower-case", "CTID", false, "CTID"),
            ("U+0000", "a\0b", false, "a_b"),
        ] {
            assert_eq!(clean(raw, Kind::Column, same_case), expected, "{label}");
        }
        assert_eq!(clean("!!!", Kind::Table, false), "table_6dd075556effaa6e7f1e3e3ba9fdc5fa");
        assert_eq!(clean("ctid", Kind::Table, false), "ctid", "system columns restrict only column names");
    }

    #[test]
    fn suffix_depends_only_on_the_identity() {
        let wide = "é".repeat(40);
        let name = suffixed(&clean(&wide, Kind::Column, false), "a/b");
        assert!(name.len() <= 63 && name.starts_with("éé"), "{name}");
        assert_eq!(suffixed("a_b", "a/b"), suffixed("a_b", "a/b"));
        assert_ne!(suffixed("a_b", "a/b"), suffixed("a_b", "a.b"));
    }

    #[test]
    fn quote_doubles_quotes() {
        assert_eq!(quote("a\"b"), "\"a\"\"b\"");
    }
}
