//! A result of spec, check or discover as its table holds it, before and after.

use crate::task::Task;

/// What is stored of the end of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredResult {
    pub succeeded: bool,
    /// The specification or the catalog: a JSON document.
    pub document: Option<String>,
    /// The connector's explanation of a check, or why the attempt has failed.
    pub description: Option<String>,
}

/// Which stored rows a result replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precedence {
    /// All: it belongs to the newest recorded attempt.
    Newest,
    /// Those of attempts that started earlier.
    ByStart,
}

/// A result in the columns of its table.
pub(super) struct NewResult<'a> {
    pub(super) task: &'a Task,
    pub(super) succeeded: bool,
    /// Clean JSON.
    pub(super) document: Option<&'a str>,
    /// Clean text.
    pub(super) description: Option<&'a str>,
    pub(super) precedence: Precedence,
}
