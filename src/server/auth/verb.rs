//! What callers do, as tokens are limited to it.

use strum::{Display, EnumString, VariantNames};

use crate::task::TaskKind;

/// What a token may be limited to: the closed list of `verbs`. Each endpoint has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, EnumString, VariantNames)]
#[cfg_attr(test, derive(strum::EnumIter))]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown_verb)]
pub enum Verb {
    /// `GET /spec`.
    Spec,
    /// `POST /check`.
    Check,
    /// `POST /discover`.
    Discover,
    /// `POST /read`, and `POST /discover` with `thenRun`.
    Read,
    /// `GET /cancel`.
    Cancel,
    /// `GET /tasks` and `GET /tasks/{taskId}`.
    Tasks,
    /// The log lines in `GET /tasks/{taskId}`.
    Logs,
    /// `GET /metrics`, which counts the tasks of all callers.
    Metrics,
}

fn unknown_verb(_: &str) -> String {
    format!("expected one of {}", Verb::VARIANTS.join(", "))
}

impl From<TaskKind> for Verb {
    fn from(kind: TaskKind) -> Self {
        match kind {
            TaskKind::Spec => Self::Spec,
            TaskKind::Check => Self::Check,
            TaskKind::Discover => Self::Discover,
            TaskKind::Read => Self::Read,
        }
    }
}
