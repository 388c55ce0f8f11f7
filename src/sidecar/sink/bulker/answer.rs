//! What an answer of Bulker means.

use serde_json::Value;

use super::http::Answer;
use super::request::{Server, Trouble};

/// The longest text of the server's that is shown.
const LONGEST_TEXT: usize = 500;

/// What became of the rows of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// They are in the table.
    Loaded,
    /// There were none, and nothing was done: a table that was to be replaced has its old rows.
    Ignored,
}

/// The answer to a complete request of so many rows.
pub fn verdict(server: &Server, answer: &Answer, rows: u64) -> Result<Verdict, Trouble> {
    if answer.status != 200 {
        return Err(refusal(server, answer));
    }
    let document: Value = serde_json::from_str(&answer.body)
        .map_err(|_| Trouble::of("it answered 200 with something that is not JSON: is it Bulker?", false))?;
    let Some(state) = document.get("state").filter(|state| state.is_object()) else {
        return if rows == 0 {
            Ok(Verdict::Ignored)
        } else {
            Err(Trouble::of("it answered 200 without a state: what became of the rows is not known", true))
        };
    };
    let status = state.get("status").and_then(Value::as_str).unwrap_or_default();
    if status != "COMPLETED" {
        let why = state.get("lastError").and_then(|error| error.as_str().or_else(|| error.get("message")?.as_str()));
        let text = format!("it ended with status {:?}: {}", shown(status), shown(why.unwrap_or("no reason is given")));
        return Err(Trouble::of(text, true));
    }
    for (field, what) in [("processedRows", "processed"), ("successfulRows", "loaded")] {
        if let Some(count) = state.get(field).and_then(Value::as_u64).filter(|count| *count != rows) {
            let text = format!("it {what} {count} of {rows} rows");
            return Err(Trouble::of(text, false));
        }
    }
    Ok(Verdict::Loaded)
}

/// An answer that is not the one to a complete request.
pub fn refusal(server: &Server, answer: &Answer) -> Trouble {
    let status = answer.status;
    let told = error_text(&answer.body);
    let because = told.as_deref().map(|told| format!(": {told}")).unwrap_or_default();
    match status {
        200 => Trouble::of("it answered 200 before it had all rows", true),
        // Its text may repeat the token.
        401 | 403 => Trouble::of(format!("authToken was refused ({status})"), false),
        404 if told.is_some() => {
            let id = &server.destination_id;
            Trouble::of(format!("it knows no destination {id:?} (404){because}"), false)
        }
        404 => Trouble::of("there is no /bulk endpoint (404): check url", false),
        300..=399 => Trouble::of(format!("it redirects elsewhere ({status}): give that address as url"), false),
        413 => Trouble::of(format!("the request is too large for something in front of it (413){because}"), false),
        429 => Trouble::untouched(format!("it is busy (429){because}")),
        502 | 503 => Trouble::passing(format!("it is not reachable ({status}){because}")),
        504 => Trouble::under_way(format!("something in front of it did not wait for its answer (504){because}")),
        _ => Trouble::of(format!("it refused the rows ({status}){because}"), status >= 500),
    }
}

/// The text of `{"error":"…"}`.
fn error_text(body: &str) -> Option<String> {
    let document: Value = serde_json::from_str(body).ok()?;
    document.get("error")?.as_str().map(shown)
}

/// A text of somebody else's, on one line and not too long.
fn shown(text: &str) -> String {
    let end = text.floor_char_boundary(LONGEST_TEXT);
    let mut shown: String = text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if end < text.len() {
        shown.push('…');
    }
    shown
}
