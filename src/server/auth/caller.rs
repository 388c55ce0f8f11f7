//! Who sends a request.

use std::sync::Arc;

/// The sender of an admitted request, as its token shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    name: Option<Arc<str>>,
}

impl Caller {
    /// The name of its token. Tokens of SYNCCTL_AUTH_TOKENS have none, and neither has a caller without a token.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}
