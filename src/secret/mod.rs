//! Secrets that do not print, and the masking of secrets in text.
//!
//! [`documents`] decides which values of a document are secret: those that a connector's specification marks, and where no
//! specification declares a field, those that look like a secret by [`names`] or by [`values`]. [`masker`] replaces them in
//! text, in whatever [`forms`] and [`views`] they appear.
//!
//! Masking is a safety net: a value that was missed is stored, a word that was masked makes a log useless. In doubt about
//! a field it masks, and in doubt about a word it does not. A document that cannot be read even [leniently](lenient) hides
//! all text.

#[cfg(test)]
mod corpus_tests;
mod documents;
mod entities;
mod forms;
mod lenient;
mod masker;
mod matcher;
mod names;
#[cfg(test)]
mod tests;
mod values;
mod views;

pub use lenient::parse_value;
pub use masker::Masker;

/// A value that prints as `[REDACTED]`: database URLs, tokens, credentials.
pub type Secret = secrecy::SecretString;
