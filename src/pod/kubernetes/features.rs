//! What the program does only where the credentials have the right to it.

use std::sync::{Arc, OnceLock};

/// What the service can do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feature {
    /// Several replicas.
    LeaderElection,
    /// The cluster's reasons in messages.
    Events,
    /// Secrets that the cluster deletes with their Pod.
    SecretOwner,
    /// Distinguishing the Secrets of two launches.
    SecretIdentity,
}

/// The features that the credentials have no right to. Unknown until the rights were examined; then all are tried.
#[derive(Clone, Default)]
pub(super) struct Lacking(Arc<OnceLock<Vec<Feature>>>);

impl Lacking {
    /// Sets them, once.
    pub(super) fn set(&self, features: Vec<Feature>) {
        self.0.set(features).ok();
    }

    /// Whether a feature cannot work.
    pub(super) fn contains(&self, feature: Feature) -> bool {
        self.0.get().is_some_and(|lacking| lacking.contains(&feature))
    }
}
