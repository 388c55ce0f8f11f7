//! Which column belongs to which field: the rules for names that are equal once they are cleaned, truncated or in lower
//! case.

use std::collections::{HashMap, HashSet};

use super::fields::SEPARATOR;
use super::names::{self, Kind};
use super::ownership::ColumnOwner;

/// The names of a table's columns, and those of a run.
#[derive(Debug)]
pub struct ColumnNames {
    /// Columns of the table: what they belong to, where that is known.
    existing: HashMap<String, Option<ColumnOwner>>,
    /// Columns that this run uses or must not use for fields.
    used: HashSet<String>,
    same_case: bool,
}

impl ColumnNames {
    /// The columns of the table. `reserved` are never used for fields.
    pub fn new(
        existing: impl IntoIterator<Item = (String, Option<ColumnOwner>)>,
        reserved: &[&str],
        same_case: bool,
    ) -> Self {
        let used = reserved.iter().map(|&name| name.to_owned()).collect();
        Self { existing: existing.into_iter().collect(), used, same_case }
    }

    /// The name of a field's column if no other field has it.
    pub fn cleaned(&self, identity: &str) -> String {
        names::clean(&identity.replace(SEPARATOR, "_"), Kind::Column, self.same_case)
    }

    /// Uses a name.
    pub fn take(&mut self, name: &str) {
        self.used.insert(name.to_owned());
    }

    /// Uses a name no longer.
    pub fn release(&mut self, name: &str) {
        self.used.remove(name);
    }

    /// The column that belongs to the field, or belonged to it before columns had marks.
    fn owned(&self, identity: &str) -> Option<String> {
        let cleaned = self.cleaned(identity);
        let is_owner =
            |owner: &Option<ColumnOwner>| matches!(owner, Some(ColumnOwner::Field(field)) if field == identity);
        let marked = candidates(&cleaned, identity)
            .find(|name| !self.used.contains(name) && self.existing.get(name).is_some_and(is_owner));
        marked.or_else(|| {
            let suffixed = names::suffixed(&cleaned, identity);
            (!self.used.contains(&suffixed) && self.existing.get(&suffixed).is_some_and(Option::is_none))
                .then_some(suffixed)
        })
    }

    /// Whether neither a field of this run nor the mark of another owner has the name.
    fn is_free(&self, name: &str) -> bool {
        !self.used.contains(name) && self.existing.get(name).is_none_or(Option::is_none)
    }

    /// The name of the column of a field.
    pub fn of_field(&self, identity: &str) -> Option<String> {
        self.owned(identity).or_else(|| candidates(&self.cleaned(identity), identity).find(|name| self.is_free(name)))
    }

    /// The names of the columns of declared fields. Columns that belong to a field are given first, then names that need
    /// no cleaning, then the others in their order.
    pub fn of_declared(&mut self, identities: &[&str]) -> Vec<Option<String>> {
        let mut names = vec![None; identities.len()];
        let rules: [fn(&Self, &str) -> Option<String>; 3] = [
            Self::owned,
            |names, identity| {
                (names.cleaned(identity) == identity && names.is_free(identity)).then(|| identity.to_owned())
            },
            Self::of_field,
        ];
        for rule in rules {
            for (name, identity) in names.iter_mut().zip(identities).filter(|(name, _)| name.is_none()) {
                *name = rule(self, identity);
                self.used.extend(name.clone());
            }
        }
        names
    }

    /// The name of a column of metadata: this one, unless it belongs to a field or cannot be used. Uses it.
    pub fn of_metadata(&mut self, name: &str, is_usable: impl Fn(&str) -> bool) -> Option<String> {
        let is_metadata =
            |candidate: &str| matches!(self.existing.get(candidate), None | Some(None | Some(ColumnOwner::Metadata)));
        let found = candidates(name, &format!("{SEPARATOR}{name}")).find(|candidate| {
            (candidate == name || !self.used.contains(candidate)) && is_metadata(candidate) && is_usable(candidate)
        });
        self.used.extend(found.clone());
        found
    }
}

/// The names that a field or a column of metadata may get, in order.
fn candidates(cleaned: &str, identity: &str) -> impl Iterator<Item = String> {
    let suffixed = names::suffixed(cleaned, identity);
    // Another field may have a name that looks like one with a suffix.
    let again = names::suffixed(&suffixed, &format!("{identity}{SEPARATOR}"));
    [cleaned.to_owned(), suffixed, again].into_iter()
}
