//! The memory of one request, for its body and then for its response, as a share of what all requests may take.

use std::sync::Arc;

use tokio::time::timeout;

use super::budget::{Budget, Peer, Share};
use super::limits::Limits;
use crate::server::service::Response;

/// What each request may take without the budget, so that small ones never wait for large ones.
const FREE_BYTES: usize = 64 << 10;
/// The unit in which the budget is counted.
const UNIT: usize = 1 << 10;

/// The budget of all requests. One peer leaves room for the largest request of another one.
pub fn budget(limits: &Limits) -> Arc<Budget> {
    let largest = limits.body_bytes.max(2 * limits.response_bytes);
    let total = limits.total_bytes.max(2 * largest);
    Arc::new(Budget::new(total.div_ceil(UNIT), largest.div_ceil(UNIT)))
}

/// What one request may take. Dropping it returns its share.
pub struct Memory {
    budget: Arc<Budget>,
    peer: Peer,
    share: Option<Share>,
}

impl Memory {
    /// Nothing yet but what is free.
    pub fn new(budget: &Arc<Budget>, peer: Peer) -> Self {
        Self { budget: Arc::clone(budget), peer, share: None }
    }

    /// Waits until the request may take so many bytes in total; the error is the response.
    pub async fn reserve(&mut self, bytes: usize, limits: &Limits) -> Result<(), Response> {
        let held = self.share.as_ref().map_or(0, Share::units);
        let needed = units(bytes);
        if needed <= held {
            return Ok(());
        }
        let more = timeout(limits.total_bytes_timeout, self.budget.take(self.peer, needed - held)).await;
        let Ok(Some(more)) = more else {
            return Err(Response::busy("too many large bodies and responses are in memory: try again"));
        };
        match &mut self.share {
            Some(share) => share.add(more),
            None => self.share = Some(more),
        }
        Ok(())
    }

    /// Returns what exceeds this number of bytes.
    pub fn shrink(&mut self, bytes: usize) {
        match &mut self.share {
            Some(share) if units(bytes) > 0 => share.keep(units(bytes)),
            _ => self.share = None,
        }
    }

    /// Whether so many bytes need no share of the budget.
    pub fn is_free(bytes: usize) -> bool {
        bytes <= FREE_BYTES
    }
}

fn units(bytes: usize) -> usize {
    bytes.saturating_sub(FREE_BYTES).div_ceil(UNIT)
}
