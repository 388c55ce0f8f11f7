//! Stand-in until the database layer's connections are here.

use postgres::{Client, NoTls};

/// Why no connection could be made.
#[derive(Debug)]
pub struct ConnectError {
    /// One sentence.
    pub text: String,
    /// Whether it may pass.
    pub transient: bool,
}

/// A database to connect to.
#[derive(Debug, Clone)]
pub struct Target(pub postgres::Config);

impl Target {
    pub fn place(&self) -> String {
        format!("database {:?}", self.0.get_dbname())
    }
    pub fn connect(&self, name: &str) -> Result<Client, ConnectError> {
        let mut config = self.0.clone();
        config.application_name(name).notice_callback(|_| {});
        config.connect(NoTls).map_err(|e| ConnectError { text: format!("{}: {}", self.place(), self.describe(&e)), transient: e.as_db_error().is_none_or(|e| e.code().code().starts_with("57P")) })
    }
    pub fn describe(&self, error: &postgres::Error) -> String {
        error.as_db_error().map_or_else(|| error.to_string(), |e| e.message().to_owned())
    }
}
