//! The destination of a read as its sidecar is told: what the caller leaves out comes from the settings.
//!
//! The token of the settings belongs to the URL of the settings: no caller can have it sent anywhere else.

use secrecy::ExposeSecret;
use serde_json::{Map, Value};

use crate::airbyte::catalog::{ConfiguredCatalog, Stream};
use crate::config::BulkerSettings;
use crate::db::is_reserved_table;

/// The type that the settings know.
const BULKER: &str = "bulker";

/// The document with what the settings add; `None` when there is none at all. What is not a JSON object, or is a
/// destination of another type, stays as it is: whoever parses it says what is wrong.
pub fn completed(document: Option<&str>, settings: &BulkerSettings) -> Option<String> {
    let document = document.filter(|text| text.trim() != "null");
    let mut fields = match document.map(serde_json::from_str::<Value>) {
        None => Map::new(),
        Some(Ok(Value::Object(fields))) => fields,
        Some(_) => return document.map(str::to_owned),
    };
    let given = |fields: &Map<String, Value>, field: &str| match fields.get(field) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(value) => Some(value.clone()),
    };
    let kind = given(&fields, "destinationType");
    let by_default = kind.is_none() && settings.url.is_some();
    if !by_default && kind.as_ref().and_then(Value::as_str) != Some(BULKER) {
        return document.map(str::to_owned);
    }
    let mut add = |field: &str, value: &str| fields.insert(field.to_owned(), Value::from(value));
    add("destinationType", BULKER);
    if let Some(ours) = &settings.url {
        let url = given(&fields, "url");
        if url.is_none() {
            fields.insert("url".to_owned(), Value::from(ours.as_str()));
        }
        let is_ours = url.is_none_or(|url| url == ours.as_str());
        if let Some(token) = settings.auth_token.as_ref().filter(|_| is_ours)
            && given(&fields, "authToken").is_none()
        {
            fields.insert("authToken".to_owned(), Value::from(token.expose_secret()));
        }
    }
    Some(Value::Object(fields).to_string())
}

/// Why these streams cannot go where the results are: the table of one would be a table of ours.
pub fn among_ours(catalog: &ConfiguredCatalog, prefix: &str) -> Option<String> {
    let table = |stream: &Stream| stream.table_name.clone().unwrap_or_else(|| format!("{prefix}{}", stream.name));
    let taken = catalog.streams.iter().map(|stream| table(&stream.stream)).find(|table| is_reserved_table(table))?;
    Some(format!(
        "the table {taken:?} of the embedded database holds results of tasks: \
         give --table-name-prefix, or another place for the rows with --destination-config"
    ))
}

#[cfg(test)]
mod tests {
    use super::completed;
    use crate::config::BulkerSettings;
    use crate::secret::Secret;
    use serde_json::{Value, json};

    fn settings(url: Option<&str>, token: Option<&str>) -> BulkerSettings {
        BulkerSettings { url: url.map(str::to_owned), auth_token: token.map(Secret::from) }
    }

    #[test]
    fn what_is_left_out_comes_from_the_settings() {
        let ours = settings(Some("http://ours"), Some("t0ken"));
        let whole = json!({"destinationType": "bulker", "url": "http://ours", "authToken": "t0ken"});
        for (label, document, expected) in [
            ("absent", None, Some(whole.clone())),
            ("null", Some(json!(null)), Some(whole.clone())),
            ("empty", Some(json!({})), Some(whole.clone())),
            ("the type alone", Some(json!({"destinationType": "bulker"})), Some(whole.clone())),
            ("our URL", Some(json!({"destinationType": "bulker", "url": "http://ours"})), Some(whole.clone())),
            ("empty fields", Some(json!({"destinationType": "", "url": null, "authToken": ""})), Some(whole)),
            (
                "a destination of its own",
                Some(json!({"destinationId": "d"})),
                Some(
                    json!({"destinationId": "d", "destinationType": "bulker", "url": "http://ours", "authToken": "t0ken"}),
                ),
            ),
            (
                "a token of its own",
                Some(json!({"authToken": "own"})),
                Some(json!({"authToken": "own", "destinationType": "bulker", "url": "http://ours"})),
            ),
            (
                "another type",
                Some(json!({"destinationType": "postgres"})),
                Some(json!({"destinationType": "postgres"})),
            ),
            ("a wrong type", Some(json!({"destinationType": 1})), Some(json!({"destinationType": 1}))),
            ("no object", Some(json!([1])), Some(json!([1]))),
        ] {
            let document = document.map(|document| document.to_string());
            let completed = completed(document.as_deref(), &ours);
            let read: Option<Value> = completed.map(|text| serde_json::from_str(&text).expect("JSON"));
            assert_eq!(read, expected, "{label}");
        }
    }

    #[test]
    fn our_token_goes_to_our_url_alone() {
        let ours = settings(Some("http://ours"), Some("t0ken"));
        for url in ["http://ours.evil", "http://theirs", "http://ours/", "http://ours@theirs"] {
            for kind in [json!("bulker"), json!(null)] {
                let document = json!({"destinationType": kind, "url": url}).to_string();
                let text = completed(Some(&document), &ours).expect("a document");
                assert!(!text.contains("t0ken"), "{text}");
                assert!(text.contains(url), "{text}");
            }
        }
    }

    #[test]
    fn without_settings_nothing_is_added() {
        let nothing = settings(None, None);
        assert_eq!(completed(None, &nothing), None);
        assert_eq!(completed(Some("null"), &nothing), None);
        for document in ["{}", "{\"url\": 1}", "not JSON", "{\"destinationType\":\"postgres\"}"] {
            assert_eq!(completed(Some(document), &nothing).as_deref(), Some(document));
        }
    }
}
