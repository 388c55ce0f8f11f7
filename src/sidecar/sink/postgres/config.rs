//! The fields of a `destinationConfig` of type `postgres`, validated without a connection.

use serde_json::Value;

use crate::db::{SslMode, Target, read_pem_file};
use crate::failure::{Class, Failure};
use crate::sidecar::sink::{cdc_deletion, invalid_field, optional_text, required_text};
use crate::task::CdcDeletion;

const DEFAULT_PORT: u16 = 5432;
const DEFAULT_SCHEMA: &str = "public";

/// Session parameters, which `parameters` of the configuration override.
///
/// Times without an offset are UTC, and a transaction stays open while the source is slow. The lock timeout is short
/// because new readers queue behind a writer that waits for its lock; the sink retries.
const SESSION_PARAMETERS: [(&str, &str); 6] = [
    ("TimeZone", "UTC"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("lock_timeout", "10s"),
    ("client_encoding", "UTF8"),
];

/// Parameters with certificates and keys, and the fields that are the same.
const CERTIFICATES: [(&str, &str); 3] =
    [("sslrootcert", "sslServerCA"), ("sslcert", "sslClientCert"), ("sslkey", "sslClientKey")];

/// Replaces paths of certificates and keys by the content of these files, which are the user's own. Other values are left
/// for [`Settings::parse`], which takes only PEM text.
pub fn read_files(config: &mut Value) -> Result<(), Failure> {
    for (parameter, field) in CERTIFICATES {
        read_file(config, field, field)?;
        if let Some(parameters) = config.get_mut("parameters") {
            read_file(parameters, parameter, &format!("parameters.{parameter}"))?;
        }
    }
    Ok(())
}

fn read_file(fields: &mut Value, name: &str, shown: &str) -> Result<(), Failure> {
    if let Some(Value::String(text)) = fields.get_mut(name)
        && !(text.is_empty() || is_pem_or_system(text))
    {
        *text = read_pem_file(text, "file").map_err(|error| invalid_field(shown, &error))?;
    }
    Ok(())
}

/// Whether a text is PEM, or libpq's word for the certificates of the system.
fn is_pem_or_system(text: &str) -> bool {
    text == "system" || text.contains("-----BEGIN")
}

/// A validated configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The database.
    pub(super) target: Target,
    /// The schema of streams that do not name one.
    pub(super) default_schema: String,
    /// New tables get the columns of Airbyte's destination.
    pub(super) airbyte_columns: bool,
    /// What becomes of rows that the source marks as deleted.
    pub(super) cdc_deletion: Option<CdcDeletion>,
}

impl Settings {
    /// Parses a `destinationConfig`. Errors name the field, never its value.
    pub fn parse(config: &Value) -> Result<Self, Failure> {
        let mut all = vec![
            ("host".to_owned(), required_text(config, "host")?),
            ("port".to_owned(), port(config)?.to_string()),
            ("dbname".to_owned(), required_text(config, "database")?),
            ("user".to_owned(), required_text(config, "username")?),
            ("password".to_owned(), optional_text(config, "password")?.unwrap_or_default()),
        ];
        if let Some(mode) = optional_text(config, "sslMode")? {
            SslMode::parse(&mode).map_err(|why| invalid_field("sslMode", &why))?;
            all.push(("sslmode".to_owned(), mode));
        }
        for (name, field) in CERTIFICATES {
            let value = optional_text(config, field)?;
            if value.as_ref().is_some_and(|value| !is_pem_or_system(value)) {
                return Err(invalid_field(field, "expected PEM text (-----BEGIN …): a path is not accepted here"));
            }
            all.extend(value.map(|value| (name.to_owned(), value)));
        }
        all.extend(parameters(config)?);
        let target = Target::from_parameters(all.iter().map(|(name, value)| (name.as_str(), value.as_str())))
            .map_err(|error| Failure::new(Class::InvalidInput, format!("destinationConfig: {error}")))?;
        let target =
            SESSION_PARAMETERS.iter().fold(target, |target, (name, value)| target.with_default_setting(name, value));
        let airbyte_columns = match config.get("airbyteColumns") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(value)) => *value,
            Some(_) => return Err(invalid_field("airbyteColumns", "expected true or false")),
        };
        Ok(Self {
            target,
            airbyte_columns,
            default_schema: optional_text(config, "defaultSchema")?.unwrap_or_else(|| DEFAULT_SCHEMA.to_owned()),
            cdc_deletion: cdc_deletion(config)?,
        })
    }
}

fn port(config: &Value) -> Result<u16, Failure> {
    let number = match config.get("port") {
        None | Some(Value::Null) => Some(DEFAULT_PORT),
        Some(Value::Number(number)) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
        Some(Value::String(number)) => number.trim().parse().ok(),
        Some(_) => None,
    };
    number.filter(|port| *port > 0).ok_or_else(|| invalid_field("port", "expected a number from 1 to 65535"))
}

fn parameters(config: &Value) -> Result<Vec<(String, String)>, Failure> {
    let fields = match config.get("parameters") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(fields)) => fields,
        Some(_) => return Err(invalid_field("parameters", "expected an object")),
    };
    let parameter = |(name, value): (&String, &Value)| match value {
        Value::String(value) => Ok((name.clone(), value.clone())),
        Value::Number(_) | Value::Bool(_) => Ok((name.clone(), value.to_string())),
        _ => Err(invalid_field(&format!("parameters.{name}"), "expected a string, a number or a boolean")),
    };
    fields.iter().filter(|(_, value)| !value.is_null()).map(parameter).collect()
}

#[cfg(test)]
mod tests {
    use super::{Settings, read_files};
    use serde_json::{Value, json};

    fn with(field: &str, value: Value) -> Value {
        let mut config = json!({
            "destinationType": "postgres", "host": "db.example.com", "port": 5433, "database": "warehouse",
            "username": "loader", "password": "s3cret", "defaultSchema": "raw", "parameters": {}, "sslMode": "disable",
        });
        config[field] = value;
        config
    }

    #[test]
    fn parses_a_complete_configuration() {
        let settings = Settings::parse(&with("extra", json!(1))).expect("settings");
        assert_eq!(settings.target.address(), "database \"warehouse\" at db.example.com:5433");
        assert_eq!(settings.default_schema, "raw");
    }

    #[test]
    fn host_can_be_a_socket_directory() {
        let settings = Settings::parse(&with("host", json!("/var/lib/syncctl/postgres/socket"))).expect("settings");
        assert_eq!(settings.target.address(), "database \"warehouse\" at /var/lib/syncctl/postgres/socket:5433");
    }

    #[test]
    fn accepts_missing_fields_and_a_port_as_text() {
        for (label, field, value) in [
            ("port as text", "port", json!("5432")),
            ("no port", "port", json!(null)),
            ("no password", "password", json!(null)),
            ("empty certificates", "sslServerCA", json!("")),
            ("a server setting", "parameters", json!({"statement_timeout": 1000})),
            ("no sslMode", "sslMode", json!(null)),
        ] {
            assert!(Settings::parse(&with(field, value)).is_ok(), "{label}");
        }
    }

    /// A caller of another machine must not learn which files this one has, nor have them read.
    #[test]
    fn no_path_is_opened_and_a_refusal_is_the_same_whatever_is_there() {
        let fields = ["sslServerCA", "sslClientCert", "sslClientKey"];
        let parameters = ["sslrootcert", "sslcert", "sslkey"];
        let paths =
            ["/etc/passwd", "/no/such", "/dev/zero", "/proc/self/environ", "Cargo.toml", "file:///etc/passwd", "~"];
        for mode in ["disable", "prefer", "require", "verify-full"] {
            let refusal = |field: &str, value: Value| {
                let mut config = with(field, value);
                config["sslMode"] = json!(mode);
                Settings::parse(&config).expect_err(field).text
            };
            for field in fields {
                let all: Vec<String> = paths.iter().map(|path| refusal(field, json!(path))).collect();
                assert!(all.iter().all(|text| *text == all[0] && text.contains(field)), "{mode}: {all:?}");
            }
            for name in parameters {
                let all: Vec<String> = paths.iter().map(|path| refusal("parameters", json!({name: path}))).collect();
                assert!(all.iter().all(|text| *text == all[0] && text.contains("PEM text")), "{mode}: {all:?}");
            }
            for name in ["passfile", "service", "servicefile", "sslcrl", "sslcrldir", "sslkeylogfile", "requirepeer"] {
                let text = refusal("parameters", json!({name: "/etc/passwd"}));
                assert!(text.contains(&format!("unknown option `{name}`")), "{text}");
            }
        }
    }

    #[test]
    fn a_user_of_this_machine_may_name_files() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let pem = "-----BEGIN CERTIFICATE-----\n";
        std::fs::write(file.path(), pem).expect("a file");
        let mut config = with("sslServerCA", json!(file.path()));
        config["parameters"] = json!({"sslkey": file.path(), "sslrootcert": "system", "application_name": "/no/such"});
        read_files(&mut config).expect("readable files");
        assert_eq!((&config["sslServerCA"], &config["parameters"]["sslkey"]), (&json!(pem), &json!(pem)));
        assert_eq!(config["parameters"]["sslrootcert"], "system");
        let failure = read_files(&mut with("sslClientKey", json!("/no/such"))).expect_err("no file");
        assert!(failure.text.contains("sslClientKey") && failure.text.contains("/no/such"), "{failure}");
    }

    #[test]
    fn errors_name_the_field_and_hide_its_value() {
        for (field, value) in [
            ("host", json!(null)),
            ("host", json!(["s3cret"])),
            ("port", json!("s3cret")),
            ("port", json!(70000)),
            ("database", json!("")),
            ("username", json!({"s3cret": 1})),
            ("password", json!(1_234_567)),
            ("sslMode", json!("perhaps")),
            ("parameters", json!("s3cret")),
            ("sslServerCA", json!(12)),
            ("airbyteColumns", json!("s3cret")),
        ] {
            let failure = Settings::parse(&with(field, value.clone())).expect_err(field);
            assert!(failure.text.contains(field), "{failure}");
            assert!(!failure.text.contains("s3cret") && !failure.text.contains("1234567"), "{failure}");
        }
    }
}
