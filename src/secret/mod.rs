//! Secrets that do not print, and the masking of secrets in text.
//!
//! [`documents`] decides which values of a document are secret: those that a connector's specification marks, and where no
//! specification declares a field, those that look like a secret by [`names`] or by [`values`]. [`masker`] replaces them in
//! text, in whatever [`encodings`] they appear.
//!
//! Masking is a safety net: a value that was missed is stored, a word that was masked makes a log useless. In doubt about
//! a field it masks, and in doubt about a word it does not.

mod documents;
mod encodings;
mod masker;
mod names;
#[cfg(test)]
mod tests;
mod values;

pub use masker::Masker;

/// A value that prints as `[REDACTED]`: database URLs, tokens, credentials.
pub type Secret = secrecy::SecretString;
