//! The errors of the database layer, and which of them are transient.
//!
//! Messages name host, port and database, but never user, password or URL: servers put user names into some of their
//! messages, and values of rows into the detail field, so both are removed here.

use std::error::Error as _;

use postgres::error::SqlState;

use crate::failure::{Class, Failure};

/// An error of the database layer. An `address` is database, host and port; an `action` completes "cannot …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DbError {
    /// The settings of the connection are invalid; nothing was tried.
    #[error("{variable}: {problem}")]
    InvalidSettings {
        /// The variable, flag or document that contains them.
        variable: String,
        /// Does not quote their values.
        problem: String,
    },
    /// The connection failed.
    #[error("cannot connect to {address}: {reason}")]
    Unreachable {
        address: String,
        reason: String,
        /// Whether a later attempt may succeed.
        transient: bool,
        /// No server is at the address: the port is closed, or the host is unknown or unreachable.
        no_server: bool,
    },
    /// The connection was lost and could not be restored within the retry timeout.
    #[error("cannot {action} in {address}: gave up after {waited_seconds} s: {reason}")]
    ConnectionLost {
        action: &'static str,
        address: String,
        /// The last error.
        reason: String,
        waited_seconds: u64,
    },
    /// The server answered with an error.
    #[error("cannot {action} in {address}: {reason}")]
    ServerError {
        action: &'static str,
        address: String,
        reason: String,
        /// SQLSTATE, if there is one.
        code: Option<String>,
    },
    /// The tables cannot be used.
    #[error("the tables of {address} do not match: {problems}")]
    SchemaMismatch {
        address: String,
        /// Each table and column, and what is wrong with it.
        problems: String,
    },
}

/// The server asks for the password in clear text where others could read it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server asks for the password in clear text, which is sent only where sslmode requires TLS (verify-full, verify-ca or \
     require), through a Unix socket, or with sslmode=disable"
)]
pub(super) struct CleartextRefused;

impl DbError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::InvalidSettings { .. } => Class::InvalidInput,
            Self::Unreachable { .. } | Self::ConnectionLost { .. } => Class::DatabaseUnreachable,
            Self::ServerError { .. } | Self::SchemaMismatch { .. } => Class::DatabaseError,
        }
    }

    /// Whether no server is at the address: the port is closed, or the host is unknown or unreachable.
    pub fn is_no_server(&self) -> bool {
        matches!(self, Self::Unreachable { no_server: true, .. })
    }

    /// Whether the same operation may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { transient: true, .. } | Self::ConnectionLost { .. })
    }
}

impl From<DbError> for Failure {
    fn from(error: DbError) -> Self {
        Self::new(error.class(), error.to_string())
    }
}

/// Whether the same statements may succeed on a new connection: the connection was lost, or another transaction was in
/// the way.
pub(super) fn is_transient(error: &postgres::Error) -> bool {
    let conflict = |code| [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(code);
    is_connection_lost(error) || error.code().is_some_and(conflict)
}

/// Whether a connection was lost or cannot be made at the moment, so that a later one may work.
pub fn is_connection_lost(error: &postgres::Error) -> bool {
    if let Some(code) = error.code() {
        return is_connection_lost_code(code.code());
    }
    // Errors of rustls and refusals of ours are within I/O errors; what is refused now will be refused later, too.
    let is_io = sources(error).any(<dyn std::error::Error>::is::<std::io::Error>);
    error.is_closed() || is_io && !is_tls(error) && cleartext_refused(error).is_none()
}

/// The SQLSTATEs with which a server ends or refuses a connection that may work later: class 08, operator intervention,
/// too many connections, and the timeouts of idle sessions.
///
/// Of operator intervention (57Pxx), `database_dropped` (57P04) is final: a standby sends it when the primary has
/// dropped the database, and every new connection fails with `invalid_catalog_name`.
fn is_connection_lost_code(code: &str) -> bool {
    code.starts_with("08") || ["57P01", "57P02", "57P03", "57P05", "53300", "25P03"].contains(&code)
}

/// Whether no server is at the address: the port is closed, or the host is unknown or unreachable. A server that starts
/// accepts connections before it answers, so this is more likely a wrong address than a start.
pub(super) fn is_no_server(error: &postgres::Error) -> bool {
    sources(error).filter_map(|source| source.downcast_ref::<std::io::Error>()).any(is_no_server_io)
}

/// The same for an I/O error of a connection attempt.
pub fn is_no_server_io(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable)
        || error.to_string().contains(UNKNOWN_HOST)
}

/// How the standard library begins the error of a name that cannot be resolved; it has no kind of its own.
const UNKNOWN_HOST: &str = "failed to lookup address information";

/// Whether the TLS handshake failed.
pub(super) fn is_tls(error: &postgres::Error) -> bool {
    sources(error).any(is_rustls)
}

/// The refusal of a password in clear text.
fn cleartext_refused(error: &postgres::Error) -> Option<&CleartextRefused> {
    sources(error).find_map(|source| source.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref())
}

fn is_rustls(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<rustls::Error>()
        || error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            .is_some()
}

fn sources(error: &postgres::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |error: &&(dyn std::error::Error + 'static)| (*error).source())
}

/// The message of an error, without the name and the password of the user and without the server's detail field, which
/// may quote the values of a row.
pub(super) fn describe(error: &postgres::Error, user: Option<&str>, password: Option<&[u8]>) -> String {
    let text = if let Some(db) = error.as_db_error() {
        format!("{} (SQLSTATE {})", db.message(), db.code().code())
    } else if let Some(refused) = cleartext_refused(error) {
        refused.to_string()
    } else {
        sources(error).map(ToString::to_string).fold(error.to_string(), |text, source| {
            if text.contains(&source) { text } else { format!("{text}: {source}") }
        })
    };
    redact(&text, user, password)
}

/// Removing shorter passwords would make the message unreadable.
const MIN_PASSWORD_LENGTH: usize = 4;

fn redact(text: &str, user: Option<&str>, password: Option<&[u8]>) -> String {
    let mut text = text.to_owned();
    if let Some(user) = user {
        // A database often has the name of its owner, so only the name after these words is removed.
        for word in ["user", "role"] {
            text = text.replace(&format!("{word} \"{user}\""), &format!("{word} ***"));
        }
    }
    let password = password.and_then(|bytes| std::str::from_utf8(bytes).ok());
    if let Some(password) = password.filter(|password| password.len() >= MIN_PASSWORD_LENGTH) {
        text = text.replace(password, "***");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{is_connection_lost_code, redact};

    #[test]
    fn redact_removes_the_user_and_keeps_the_database() {
        for (label, text, expected) in [
            (
                "password",
                r#"password authentication failed for user "app""#,
                "password authentication failed for user ***",
            ),
            ("role", r#"role "app" does not exist"#, "role *** does not exist"),
            ("database", r#"database "app" does not exist"#, r#"database "app" does not exist"#),
            ("password in text", "bad value s3cret!", "bad value ***"),
        ] {
            assert_eq!(redact(text, Some("app"), Some(b"s3cret!")), expected, "{label}");
        }
    }

    #[test]
    fn a_connection_is_lost_where_the_server_may_accept_another() {
        for (code, expected) in [
            ("57P01", true),
            ("57P02", true),
            ("57P03", true),
            ("57P04", false),
            ("57P05", true),
            ("25P03", true),
            ("08006", true),
            ("08P01", true),
            ("53300", true),
            ("40P01", false),
            ("28P01", false),
            ("3D000", false),
            ("57014", false),
            ("42P01", false),
            ("22P02", false),
        ] {
            assert_eq!(is_connection_lost_code(code), expected, "{code}");
        }
    }
}
