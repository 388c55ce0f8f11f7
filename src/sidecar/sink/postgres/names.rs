//! Names of tables and columns: from what a source calls things to what Postgres takes.
//!
//! Pure text. Knows nothing of types or connections.

use md5::{Digest, Md5};

/// Postgres cuts longer names silently (`NAMEDATALEN` - 1), in bytes.
const LONGEST: usize = 63;

/// Hexadecimal digits that tell names apart which would otherwise be the same.
const SUFFIX_DIGITS: usize = 8;

/// What is named, for names of which nothing is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `column_<md5>`
    Column,
    /// `table_<md5>`
    Table,
    /// `schema_<md5>`
    Schema,
}

/// Column names that Postgres keeps for itself, also when quoted.
const SYSTEM_COLUMNS: [&str; 6] = ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];

/// A name that Postgres takes when quoted.
///
/// Runs of characters that are not letters, digits, `_`, space, `$` or `-` become one `_`; at most 63 bytes stay.
pub fn clean(raw: &str, kind: Kind, same_case: bool) -> String {
    if raw.is_empty() {
        return "_unnamed".to_owned();
    }
    let mut name = String::with_capacity(raw.len());
    let (mut replacing, mut any_kept) = (false, false);
    for c in raw.chars() {
        if c.is_alphabetic() || c.is_ascii_digit() || matches!(c, '_' | ' ' | '$' | '-') {
            if same_case {
                name.extend(c.to_lowercase());
            } else {
                name.push(c);
            }
            (replacing, any_kept) = (false, true);
        } else if !replacing {
            name.push('_');
            replacing = true;
        }
    }
    if !any_kept {
        let word = match kind {
            Kind::Column => "column",
            Kind::Table => "table",
            Kind::Schema => "schema",
        };
        return format!("{word}_{}", md5_hex(raw));
    }
    cut(&mut name, LONGEST);
    if kind == Kind::Column && SYSTEM_COLUMNS.contains(&name.as_str()) {
        name.push('_');
    }
    name
}

/// A name for something whose cleaned name is taken: it depends on what it stands for and on nothing else.
pub fn suffixed(name: &str, identity: &str) -> String {
    let mut name = name.to_owned();
    cut(&mut name, LONGEST - SUFFIX_DIGITS - 1);
    format!("{name}_{}", short_hash(identity))
}

/// The name as it stands in SQL.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Eight hexadecimal digits that stand for a text.
pub fn short_hash(text: &str) -> String {
    let mut hash = md5_hex(text);
    hash.truncate(SUFFIX_DIGITS);
    hash
}

/// Cuts to a number of bytes without splitting a character.
pub fn cut(name: &mut String, bytes: usize) {
    if name.len() > bytes {
        let end = (0..=bytes).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0);
        name.truncate(end);
    }
}

fn md5_hex(text: &str) -> String {
    let digest: [u8; 16] = Md5::digest(text.as_bytes()).into();
    format!("{:032x}", u128::from_be_bytes(digest))
}

#[cfg(test)]
mod tests {
    use super::{Kind, clean, quote, suffixed};

    #[test]
    fn names_are_cleaned_by_the_rules() {
        let long = "x".repeat(70);
        let wide = "é".repeat(40);
        for (label, raw, same_case, expected) in [
            ("kept as it is", "user_Name 1$-", false, "user_Name 1$-"),
            ("letters of any script", "größe_名前", false, "größe_名前"),
            ("dot", "a.b", false, "a_b"),
            ("slash", "a/b", false, "a_b"),
            ("a run becomes one", "a./\\!b", false, "a_b"),
            ("quotes", "a\"b'c", false, "a_b_c"),
            ("same case", "UserName", true, "username"),
            ("same case of any script", "GRÖSSE", true, "grösse"),
            ("empty", "", false, "_unnamed"),
            ("an underscore is a name", "_", false, "_"),
            ("nothing left", "!!!", false, "column_6dd075556effaa6e7f1e3e3ba9fdc5fa"),
            ("cut to 63 bytes", &long, false, &long[..63]),
            ("not in the middle of a character", &wide, false, &wide[..62]),
            ("a system column", "ctid", false, "ctid_"),
            ("a system column in capitals is none", "CTID", false, "CTID"),
            ("U+0000", "a\0b", false, "a_b"),
        ] {
            assert_eq!(clean(raw, Kind::Column, same_case), expected, "{label}");
        }
        assert_eq!(clean("!!!", Kind::Table, false), "table_6dd075556effaa6e7f1e3e3ba9fdc5fa");
        assert_eq!(clean("ctid", Kind::Table, false), "ctid", "only columns clash with system columns");
    }

    #[test]
    fn a_suffix_depends_on_the_identity_and_fits() {
        let wide = "é".repeat(40);
        let name = suffixed(&clean(&wide, Kind::Column, false), "a/b");
        assert!(name.len() <= 63 && name.starts_with("éé"), "{name}");
        assert_eq!(suffixed("a_b", "a/b"), suffixed("a_b", "a/b"));
        assert_ne!(suffixed("a_b", "a/b"), suffixed("a_b", "a.b"));
    }

    #[test]
    fn quotes_are_doubled() {
        assert_eq!(quote("a\"b"), "\"a\"\"b\"");
    }
}
