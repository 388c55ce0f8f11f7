//! The meaning of Bulker's responses.

use serde_json::Value;

use crate::http_client::Response;

/// Maximum size of a text from the server in an error.
const MAX_TEXT: usize = 500;

/// What Bulker did with the rows of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// They are in the table.
    Loaded,
    /// There were none, and Bulker did nothing: a table that was to be replaced keeps its rows.
    Ignored,
}

/// Why a request failed.
#[derive(Debug)]
pub struct RequestError {
    /// A clause without the server's name.
    pub text: String,
    /// A later run may succeed with the same rows.
    pub transient: bool,
    /// Whether to send the request again now.
    pub retry: Retry,
}

/// Whether to send a request again after a delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It would fail again.
    Never,
    /// It may succeed.
    Possible,
    /// It may succeed, and the server has not processed any rows.
    NotProcessed,
    /// It may succeed, but a server that received all rows may still be processing them.
    MayBeProcessing,
}

impl RequestError {
    /// An error that a retry cannot fix now.
    pub fn new(text: impl Into<String>, transient: bool) -> Self {
        Self { text: text.into(), transient, retry: Retry::Never }
    }

    /// An error that a retry may fix.
    pub fn retryable(text: impl Into<String>, retry: Retry) -> Self {
        Self { text: text.into(), transient: true, retry }
    }
}

/// The outcome of a complete request with this number of rows.
pub fn outcome(response: &Response, rows: u64, destination_id: &str) -> Result<Outcome, RequestError> {
    if response.status != 200 {
        return Err(refusal(response, destination_id));
    }
    let document: Value = serde_json::from_str(&response.body)
        .map_err(|_| RequestError::new("it responded 200 with something other than JSON: is it Bulker?", false))?;
    let Some(state) = document.get("state").filter(|state| state.is_object()) else {
        return if rows == 0 {
            Ok(Outcome::Ignored)
        } else {
            Err(RequestError::new("it responded 200 without a state: whether the rows are loaded is unknown", true))
        };
    };
    let status = state.get("status").and_then(Value::as_str).unwrap_or_default();
    if status != "COMPLETED" {
        let why = state.get("lastError").and_then(|error| error.as_str().or_else(|| error.get("message")?.as_str()));
        let why = printable(why.unwrap_or("no reason given"));
        return Err(RequestError::new(format!("it ended with status {:?}: {why}", printable(status)), true));
    }
    for (field, verb) in [("processedRows", "processed"), ("successfulRows", "loaded")] {
        if let Some(count) = state.get(field).and_then(Value::as_u64).filter(|count| *count != rows) {
            return Err(RequestError::new(format!("it {verb} {count} of {rows} rows"), false));
        }
    }
    Ok(Outcome::Loaded)
}

/// The error of a response that is not the success of a complete request.
pub fn refusal(response: &Response, destination_id: &str) -> RequestError {
    let status = response.status;
    let error = error_text(&response.body);
    let reason = error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    match status {
        200 => RequestError::new("it responded 200 before it received all rows", true),
        // The text may contain the token.
        401 | 403 => RequestError::new(format!("authToken was refused ({status})"), false),
        404 if error.is_some() => {
            RequestError::new(format!("it knows no destination {destination_id:?} (404){reason}"), false)
        }
        404 => RequestError::new("there is no /bulk endpoint (404): check url", false),
        300..=399 => RequestError::new(format!("it redirects ({status}): set url to the new address"), false),
        413 => RequestError::new(format!("the request is too large for a proxy in front of it (413){reason}"), false),
        429 => RequestError::retryable(format!("it is busy (429){reason}"), Retry::NotProcessed),
        502 | 503 => RequestError::retryable(format!("it is not reachable ({status}){reason}"), Retry::Possible),
        504 => {
            RequestError::retryable(format!("a proxy in front of it timed out (504){reason}"), Retry::MayBeProcessing)
        }
        _ => RequestError::new(format!("it refused the rows ({status}){reason}"), status >= 500),
    }
}

/// The text of `{"error":"…"}`.
fn error_text(body: &str) -> Option<String> {
    let document: Value = serde_json::from_str(body).ok()?;
    document.get("error")?.as_str().map(printable)
}

/// A text from the server, on one line and truncated.
fn printable(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_TEXT);
    let mut printable = text[..end].replace(char::is_control, " ");
    if end < text.len() {
        printable.push('…');
    }
    printable
}
