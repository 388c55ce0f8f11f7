//! The destination of a read: what a caller gives, completed from the settings, and what a caller may not have.

use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};

use super::document::{Document, without_values};
use crate::airbyte::catalog::ConfiguredCatalog;
use crate::airbyte::state::Progress;
use crate::config::{BulkerSettings, Settings};
use crate::db::{ResultsDatabase, local_server};
use crate::failure::{Class, Failure};
use crate::secret::Secret;
use crate::sidecar::sink::Destination;
use crate::sidecar::stream_specs;
use crate::task::ReadOptions;

/// The `destinationType` that the settings complete.
const BULKER: &str = "bulker";

/// What the caller names the options that a problem may be about.
pub struct OptionNames {
    /// The destination's configuration.
    pub destination: &'static str,
    /// The maximum number of records.
    pub max_records: &'static str,
    /// What becomes of rows that the source marks as deleted.
    pub cdc_deletion: &'static str,
}

/// A valid destination.
pub(super) struct Completed {
    /// Its configuration, as JSON.
    config: String,
    /// The rules for its hosts, where a caller has chosen them: those of the settings may be anywhere.
    hosts: Option<String>,
}

impl Completed {
    pub(super) fn into_parts(self) -> (String, Option<String>) {
        (self.config, self.hosts)
    }
}

/// The validated configuration of the destination, completed from the settings.
pub(super) fn complete(
    document: Option<&Document<'_>>,
    settings: &Settings,
    names: &OptionNames,
) -> Result<Completed, Failure> {
    let given = document.map(|document| document.object("the destination's credentials")).transpose()?;
    let of_bulker = given.as_deref().filter(|_| settings.pod.init_image.is_none()).and_then(type_of_another_loader);
    if let Some(kind) = of_bulker
        && let Some(url) = &settings.bulker.url
    {
        let config = bulker_for(&kind, url, settings.bulker.auth_token.as_ref())?;
        return Ok(Completed { config, hosts: None });
    }
    // A foreign sidecar has other destinations than ours, and none by default.
    let is_foreign = settings.pod.init_image.is_some();
    let completed =
        if is_foreign { given } else { with_bulker(given, &settings.bulker).or_else(|| settings.warehouse.clone()) };
    let Some(completed) = completed else {
        let text = format!("there is no destination: set {} or SYNCCTL_BULKER_URL", names.destination);
        return Err(Failure::new(Class::Usage, text));
    };
    let invalid = |text: &str| match document {
        Some(document) => document.invalid(text),
        None => Failure::new(Class::Usage, format!("invalid destination of SYNCCTL_BULKER_URL: {text}")),
    };
    if is_foreign {
        return Ok(Completed { config: completed, hosts: None });
    }
    let mut value: Value =
        serde_json::from_str(&completed).map_err(|error| invalid(&without_values(&error.to_string())))?;
    let mut config = completed;
    if document.is_some_and(Document::is_of_this_machine) {
        let before = value.clone();
        Destination::read_files(&mut value).map_err(|failure| invalid(&failure.text))?;
        if value != before {
            config = value.to_string();
        }
    }
    let destination = Destination::parse(&value).map_err(|failure| invalid(&failure.text))?;
    let is_of_settings = document.is_none() || is_bulker_of(&value, &settings.bulker);
    let hosts = settings.destination_hosts.as_deref().filter(|_| !is_of_settings);
    hosts.map_or(Ok(()), |rules| destination.check_hosts(rules)).map_err(|refused| invalid(&refused.to_string()))?;
    Ok(Completed { config, hosts: hosts.map(ToString::to_string) })
}

/// Whether a destination is the Bulker that the settings name.
fn is_bulker_of(destination: &Value, settings: &BulkerSettings) -> bool {
    destination["destinationType"] == BULKER && settings.url.as_ref().is_some_and(|url| destination["url"] == **url)
}

/// The type of a destination that syncctl does not load itself.
fn type_of_another_loader(document: &str) -> Option<String> {
    let fields: Map<String, Value> = serde_json::from_str(document).ok()?;
    let kind = fields.get("destinationType")?.as_str()?;
    (!kind.is_empty() && !Destination::is_known(kind)).then(|| kind.to_owned())
}

/// The Bulker of the settings in place of a destination that syncctl does not load itself: its connection of the sync's id
/// has the credentials, so those of the caller go nowhere.
fn bulker_for(kind: &str, url: &str, token: Option<&Secret>) -> Result<String, Failure> {
    let invalid = |text: &str| {
        let text = format!("destinations of the type {kind:?} go to the Bulker of SYNCCTL_BULKER_URL: {text}");
        Failure::new(Class::Usage, text)
    };
    let token = token.ok_or_else(|| invalid("set SYNCCTL_BULKER_AUTH_TOKEN, too"))?;
    let document = json!({"destinationType": BULKER, "url": url, "authToken": token.expose_secret()});
    Destination::parse(&document).map_err(|failure| invalid(&failure.text))?;
    Ok(document.to_string())
}

/// Adds the Bulker of the settings to a destination that leaves it out; other destinations stay as they are. The token
/// belongs to the URL of the settings: a caller cannot have it sent to another one.
fn with_bulker(document: Option<String>, settings: &BulkerSettings) -> Option<String> {
    let mut fields = match document.as_deref().map(serde_json::from_str::<Map<String, Value>>) {
        None => Map::new(),
        Some(Ok(fields)) => fields,
        // The parser of the destination reports it.
        Some(Err(_)) => return document,
    };
    let is_set =
        |fields: &Map<String, Value>, name: &str| fields.get(name).is_some_and(|value| !value.is_null() && value != "");
    let is_bulker = match fields.get("destinationType") {
        Some(kind) if is_set(&fields, "destinationType") => kind == BULKER,
        _ => settings.url.is_some(),
    };
    if !is_bulker {
        return document;
    }
    fields.insert("destinationType".to_owned(), BULKER.into());
    if let Some(url) = &settings.url {
        if !is_set(&fields, "url") {
            fields.insert("url".to_owned(), url.as_str().into());
        }
        if let Some(token) = &settings.auth_token
            && fields["url"] == url.as_str()
            && !is_set(&fields, "authToken")
        {
            fields.insert("authToken".to_owned(), token.expose_secret().into());
        }
    }
    Some(Value::Object(fields).to_string())
}

/// Checks that no stream is loaded into one of our own tables, as far as the address of the destination shows. The sidecar
/// recognizes them whatever the address.
pub(super) fn check_tables(
    catalog: &ConfiguredCatalog,
    options: &ReadOptions,
    destination: &str,
    settings: &Settings,
) -> Result<(), String> {
    // Other destinations, and an invalid URL, are reported elsewhere.
    let destination = serde_json::from_str(destination).ok().and_then(|config| Destination::parse(&config).ok());
    let is_embedded = settings.embedded.is_some();
    let default_schema = if is_embedded { local_server::SCHEMA } else { "public" };
    let (url, variable) = (&settings.pod.sidecar_database_url, "SYNCCTL_SIDECAR_DATABASE_URL");
    let results = ResultsDatabase::new(url, variable, default_schema, settings.own_schema());
    let (Some(destination), Ok(mut results)) = (destination, results) else { return Ok(()) };
    if is_embedded {
        results.reserve_around(local_server::DATA_SCHEMA);
    }
    destination.check_tables(&results, stream_specs(catalog, options, &Progress::default()))
}

#[cfg(test)]
mod tests {
    use super::{bulker_for, type_of_another_loader, with_bulker};
    use crate::config::BulkerSettings;
    use crate::secret::Secret;
    use serde_json::{Value, json};

    fn settings(url: Option<&str>, token: Option<&str>) -> BulkerSettings {
        BulkerSettings { url: url.map(str::to_owned), auth_token: token.map(Secret::from) }
    }

    #[test]
    fn destinations_are_completed_from_the_settings() {
        let ours = settings(Some("http://ours"), Some("t0ken"));
        let whole = json!({"destinationType": "bulker", "url": "http://ours", "authToken": "t0ken"});
        for (label, document, expected) in [
            ("absent", None, Some(whole.clone())),
            ("empty", Some(json!({})), Some(whole.clone())),
            ("the type alone", Some(json!({"destinationType": "bulker"})), Some(whole.clone())),
            ("our URL", Some(json!({"destinationType": "bulker", "url": "http://ours"})), Some(whole.clone())),
            ("empty fields", Some(json!({"destinationType": "", "url": null, "authToken": ""})), Some(whole)),
            (
                "another field",
                Some(json!({"destinationId": "d"})),
                Some(
                    json!({"destinationId": "d", "destinationType": "bulker", "url": "http://ours", "authToken": "t0ken"}),
                ),
            ),
            (
                "another token",
                Some(json!({"authToken": "own"})),
                Some(json!({"authToken": "own", "destinationType": "bulker", "url": "http://ours"})),
            ),
            (
                "another type",
                Some(json!({"destinationType": "postgres"})),
                Some(json!({"destinationType": "postgres"})),
            ),
            ("a wrong type", Some(json!({"destinationType": 1})), Some(json!({"destinationType": 1}))),
        ] {
            let completed = with_bulker(document.map(|document| document.to_string()), &ours);
            let read: Option<Value> = completed.map(|text| serde_json::from_str(&text).expect("JSON"));
            assert_eq!(read, expected, "{label}");
        }
    }

    #[test]
    fn destinations_of_other_loaders_go_to_the_bulker_of_the_settings_without_their_credentials() {
        for (document, expected) in [
            (r#"{"destinationType":"clickhouse","password":"hunter2"}"#, Some("clickhouse")),
            (r#"{"destinationType":"a later one"}"#, Some("a later one")),
            (r#"{"destinationType":"postgres"}"#, None),
            (r#"{"destinationType":"bulker"}"#, None),
            (r#"{"destinationType":""}"#, None),
            (r#"{"destinationType":1}"#, None),
            ("{}", None),
            ("not JSON", None),
        ] {
            assert_eq!(type_of_another_loader(document).as_deref(), expected, "{document}");
        }
        let bulker = |url: &str, token: Option<&str>| bulker_for("s3", url, token.map(Secret::from).as_ref());
        let document: Value =
            serde_json::from_str(&bulker("http://ours", Some("t0ken")).expect("valid")).expect("JSON");
        assert_eq!(document, json!({"destinationType": "bulker", "url": "http://ours", "authToken": "t0ken"}));
        for (url, token, expected) in [
            ("http://ours", None, "set SYNCCTL_BULKER_AUTH_TOKEN"),
            ("http://u:hunter2@ours", Some("t0ken"), "destinationConfig.url: contains credentials"),
        ] {
            let failure = bulker(url, token).expect_err(expected);
            assert!(failure.text.starts_with(r#"destinations of the type "s3" go to the Bulker"#), "{failure}");
            assert!(failure.text.contains(expected) && !failure.text.contains("hunter2"), "{failure}");
        }
    }

    #[test]
    fn the_token_of_the_settings_is_sent_to_their_url_only() {
        let ours = settings(Some("http://ours"), Some("t0ken"));
        for url in ["http://ours.evil", "http://theirs", "http://ours/", "http://ours@theirs"] {
            for kind in [json!("bulker"), json!(null)] {
                let document = json!({"destinationType": kind, "url": url}).to_string();
                let text = with_bulker(Some(document), &ours).expect("a document");
                assert!(!text.contains("t0ken"), "{text}");
                assert!(text.contains(url), "{text}");
            }
        }
    }

    #[test]
    fn without_settings_destinations_stay_as_they_are() {
        let nothing = settings(None, None);
        assert_eq!(with_bulker(None, &nothing), None);
        for document in ["{}", "{\"url\": 1}", "not JSON", "{\"destinationType\":\"postgres\"}"] {
            assert_eq!(with_bulker(Some(document.to_owned()), &nothing).as_deref(), Some(document));
        }
    }
}
