//! What the command line and the HTTP service share: a request, the lifecycle of its task, the outcome, the cleanup.

pub mod cancel;
pub mod cleanup;
pub mod destination;
pub mod document;
pub mod engine;
pub mod lifecycle;
pub mod one_shot;
pub mod outcome;
pub mod owner;
pub mod reconciler;
pub mod request;
