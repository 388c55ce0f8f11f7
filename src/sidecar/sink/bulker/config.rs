//! Parses and validates a `destinationConfig` of the type `bulker`.

use std::sync::Arc;

use secrecy::ExposeSecret;
use serde_json::Value;

use crate::failure::Failure;
use crate::host_rules::HostRules;
use crate::http_client::{Endpoint, EndpointError};
use crate::secret::Secret;
use crate::sidecar::sink::{invalid_field, optional_text, required_text};

/// A validated configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The Bulker instance.
    pub endpoint: Endpoint,
    /// The bearer token.
    pub token: Secret,
    /// The destination within Bulker; `None` means the sync's id.
    pub destination_id: Option<String>,
    /// Where the instance may be; `None`: anywhere.
    pub rules: Option<Arc<HostRules>>,
}

impl Settings {
    /// Validates a `destinationConfig`. Errors name the field, never its value.
    pub fn parse(config: &Value) -> Result<Self, Failure> {
        let endpoint = required_text(config, "url")?;
        let endpoint = Endpoint::parse(&endpoint).map_err(|error| invalid_field("url", explain(error)))?;
        let token = required_text(config, "authToken")?;
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(invalid_field(
                "authToken",
                "contains a character that is not allowed in a header: expected ASCII without spaces",
            ));
        }
        let destination_id = optional_text(config, "destinationId")?;
        Ok(Self { endpoint, token: Secret::from(token), destination_id, rules: None })
    }

    /// The value of the `Authorization` header; secret.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.token.expose_secret())
    }
}

fn explain(error: EndpointError) -> &'static str {
    match error {
        EndpointError::Malformed => "expected a URL such as https://bulker.example.com:3042",
        EndpointError::Credentials => "contains credentials: set authToken instead",
        EndpointError::Query => "contains a query or a fragment: expected none",
    }
}

#[cfg(test)]
mod tests {
    use super::Settings;
    use serde_json::{Value, json};

    fn with(field: &str, value: Value) -> Value {
        let mut config =
            json!({"destinationType": "bulker", "url": "https://bulker.example.com", "authToken": "s3cret"});
        config[field] = value;
        config
    }

    #[test]
    fn urls_with_ports_prefixes_and_addresses_are_parsed() {
        for (label, url, host, port, shown) in [
            ("https", "https://bulker.example.com", "bulker.example.com", 443, "https://bulker.example.com"),
            ("http", "http://bulker", "bulker", 80, "http://bulker"),
            ("a port", "http://bulker:3042/", "bulker", 3042, "http://bulker:3042"),
            ("a prefix", "https://a.b/to/bulker/", "a.b", 443, "https://a.b/to/bulker"),
            ("IPv4", "http://10.0.0.1:1", "10.0.0.1", 1, "http://10.0.0.1:1"),
            ("IPv6", "http://[::1]:3042/x", "::1", 3042, "http://[::1]:3042/x"),
        ] {
            let settings = Settings::parse(&with("url", json!(url))).unwrap_or_else(|error| panic!("{label}: {error}"));
            assert_eq!((settings.endpoint.host.as_str(), settings.endpoint.port), (host, port), "{label}");
            assert_eq!(settings.endpoint.to_string(), shown, "{label}");
        }
    }

    #[test]
    fn errors_name_the_field_but_not_its_value() {
        for (field, value) in [
            ("url", json!(null)),
            ("url", json!("")),
            ("url", json!(["s3cret"])),
            ("url", json!("s3cret")),
            ("url", json!("ftp://s3cret")),
            ("url", json!("https://user:s3cret@bulker")),
            ("url", json!("https://bulker?token=s3cret")),
            ("authToken", json!(null)),
            ("authToken", json!("s3cret\r\nX-Injected: 1")),
            ("authToken", json!({"s3cret": 1})),
            ("destinationId", json!(1_234_567)),
        ] {
            let failure = Settings::parse(&with(field, value.clone())).expect_err(field);
            assert!(failure.text.starts_with(&format!("destinationConfig.{field}: ")), "{failure}");
            assert!(!failure.text.contains("s3cret") && !failure.text.contains("1234567"), "{failure}");
        }
    }

    #[test]
    fn debug_output_hides_the_token() {
        let settings = Settings::parse(&with("destinationId", json!("d"))).expect("settings");
        assert!(!format!("{settings:?}").contains("s3cret"));
        assert_eq!(settings.authorization(), "Bearer s3cret");
        assert_eq!(settings.destination_id.as_deref(), Some("d"));
    }
}
