//! What the name of a field suggests about its value.

/// What a name suggests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// A password, a token, a key.
    Secret,
    /// Often a secret, but also the kind of one: `key`, `auth`.
    PerhapsSecret,
    /// What people must see to understand a log: a host, a user, a table, a date.
    Plain,
    /// Nothing.
    Unknown,
}

/// Parts of names of secrets, in names without separators, too: `accesstoken`.
const SECRET_PARTS: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "secret",
    "token",
    "apikey",
    "accesskey",
    "privatekey",
    "sharedkey",
    "accountkey",
    "credential",
    "connectionstring",
    "authorization",
    "bearer",
];
/// Words of names of secrets that other words contain.
const SECRET_WORDS: &[&str] = &["pass", "pwd", "pw", "pin", "otp", "pat", "jwt", "psk", "cookie", "cookies"];
const PERHAPS_SECRET_WORDS: &[&str] =
    &["key", "keys", "auth", "authentication", "dsn", "sas", "session", "signature", "salt", "webhook"];
/// Those of which a number is a secret, and not a limit or a lifetime.
const NUMERIC_SECRETS: &[&str] = &["password", "passwd", "passcode", "pass", "pwd", "pw", "pin", "secret"];

/// `X_key` is no secret.
const KEYS_OF_DATA: &[&str] = &[
    "primary",
    "foreign",
    "sort",
    "partition",
    "partitioning",
    "cursor",
    "order",
    "distribution",
    "dist",
    "cluster",
    "clustering",
    "join",
    "natural",
    "composite",
    "unique",
    "group",
    "object",
    "column",
    "public",
    "row",
    "surrogate",
    "business",
    "stream",
    "table",
    "record",
    "merge",
    "dedup",
];
/// Last words of names that describe a secret instead of holding it: `token_url`, `auth_type`, `secret_name`.
const DESCRIPTIONS: &[&str] = &[
    "type",
    "method",
    "mode",
    "url",
    "uri",
    "endpoint",
    "host",
    "port",
    "name",
    "names",
    "field",
    "fields",
    "column",
    "columns",
    "format",
    "expiry",
    "expires",
    "expiration",
    "at",
    "date",
    "time",
    "ttl",
    "lifetime",
    "seconds",
    "minutes",
    "length",
    "size",
    "count",
    "limit",
    "path",
    "file",
    "arn",
    "scheme",
    "prefix",
    "algorithm",
    "version",
    "provider",
    "enabled",
    "required",
    "policy",
    "flow",
    "scopes",
];
/// First words of such names: `max_tokens`.
const QUANTITIES: &[&str] = &["max", "min", "num", "number", "total", "use"];
/// Last words of names of what a log must show.
const PLAIN_WORDS: &[&str] = &[
    "host",
    "hostname",
    "hosts",
    "server",
    "servers",
    "address",
    "url",
    "uri",
    "endpoint",
    "port",
    "user",
    "users",
    "username",
    "login",
    "role",
    "email",
    "database",
    "databases",
    "db",
    "dbname",
    "schema",
    "schemas",
    "table",
    "tables",
    "stream",
    "streams",
    "collection",
    "collections",
    "dataset",
    "datasets",
    "namespace",
    "catalog",
    "warehouse",
    "region",
    "regions",
    "zone",
    "location",
    "bucket",
    "path",
    "paths",
    "prefix",
    "pattern",
    "glob",
    "globs",
    "format",
    "type",
    "types",
    "mode",
    "sslmode",
    "method",
    "date",
    "time",
    "timezone",
    "name",
    "names",
    "title",
    "description",
    "domain",
    "subdomain",
    "workspace",
    "project",
    "projects",
    "account",
    "accounts",
    "tenant",
    "organization",
    "org",
    "shop",
    "store",
    "site",
    "version",
    "level",
    "language",
    "currency",
    "country",
    "cursor",
    "column",
    "columns",
    "field",
    "fields",
    "query",
    "sql",
    "command",
    "delimiter",
    "encoding",
    "compression",
    "interval",
    "frequency",
    "window",
    "slot",
    "publication",
    "plugin",
    "driver",
    "protocol",
    "environment",
    "env",
    "stage",
    "topic",
    "topics",
    "queue",
    "index",
    "filter",
    "sort",
    "order",
    "provider",
    "engine",
    "dialect",
    "scope",
    "scopes",
    "repository",
    "repositories",
    "branch",
    "owner",
    "directory",
    "folder",
    "file",
    "filename",
    "sheet",
    "report",
];
const IDS: &[&str] = &["id", "ids", "uuid", "guid"];

/// What a name suggests.
pub fn hint(name: &str) -> Hint {
    let words = words(name);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (Some(first), Some(last)) = (words.first(), words.last()) else { return Hint::Unknown };
    let is = |list: &[&str], word: &str| list.contains(&word);
    let is_described = is(DESCRIPTIONS, last) || is(QUANTITIES, first);
    let joined = words.concat();
    let keys = words.windows(2).filter(|pair| is(&["key", "keys"], pair[1]) && !is(KEYS_OF_DATA, pair[0]));
    if !is_described
        && (SECRET_PARTS.iter().any(|part| joined.contains(part))
            || words.iter().any(|word| is(SECRET_WORDS, word))
            || keys.count() > 0)
    {
        return Hint::Secret;
    }
    let is_key_of_data = words.iter().any(|word| is(KEYS_OF_DATA, word));
    if !is_described && !is_key_of_data && words.iter().any(|word| is(PERHAPS_SECRET_WORDS, word)) {
        return Hint::PerhapsSecret;
    }
    if is_described || is_key_of_data || is(PLAIN_WORDS, last) || is(IDS, last) { Hint::Plain } else { Hint::Unknown }
}

/// Whether a name is that of an object in which fields of unknown names are secret.
pub fn holds_credentials(name: &str) -> bool {
    hint(name) == Hint::Secret || words(name).iter().any(|word| word == "auth" || word == "authentication")
}

/// Whether a name is that of an identifier, of which a UUID is no secret.
pub fn is_id(name: &str) -> bool {
    words(name).last().is_some_and(|last| IDS.contains(&last.as_str()))
}

/// Whether a number of this name is a secret.
pub fn is_numeric_secret(name: &str) -> bool {
    hint(name) == Hint::Secret && words(name).iter().any(|word| NUMERIC_SECRETS.contains(&word.as_str()))
}

/// The words of `api_key`, `apiKey`, `API Key` and `APIKey`, in lower case.
fn words(name: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let chars: Vec<char> = name.chars().collect();
    for (at, char) in chars.iter().enumerate() {
        let is_hump = char.is_uppercase()
            && at > 0
            && (chars[at - 1].is_lowercase() || chars.get(at + 1).is_some_and(|next| next.is_lowercase()));
        if (is_hump || !char.is_alphanumeric()) && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if char.is_alphanumeric() {
            word.extend(char.to_lowercase());
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}

#[cfg(test)]
mod tests {
    use super::{Hint, hint, is_numeric_secret};

    #[test]
    fn names_suggest_what_values_are() {
        for (names, expected) in [
            (
                &[
                    "password",
                    "api_key",
                    "apiKey",
                    "APIKey",
                    "apikey",
                    "accessToken",
                    "client_secret",
                    "sslClientKey",
                    "aws_access_key_id",
                    "Authorization",
                    "pwd",
                    "PIN",
                    "dbpassword",
                    "authToken",
                    "private key",
                    "X-Api-Key",
                    "connection_string",
                    "private_key_id",
                ][..],
                Hint::Secret,
            ),
            (&["key", "auth", "session", "webhook"], Hint::PerhapsSecret),
            (
                &[
                    "host",
                    "userName",
                    "primary_key",
                    "partition_keys",
                    "token_url",
                    "auth_type",
                    "secret_name",
                    "max_tokens",
                    "start_date",
                    "sslMode",
                    "account_id",
                    "key_column",
                    "tokenExpiryDate",
                ],
                Hint::Plain,
            ),
            (&["value", "monkey", "passenger", "spinner", "compat", "", "__"], Hint::Unknown),
        ] {
            for name in names {
                assert_eq!(hint(name), expected, "{name}");
            }
        }
    }

    #[test]
    fn numbers_are_secret_where_they_are_no_limit() {
        assert!(is_numeric_secret("pin") && is_numeric_secret("userPassword") && is_numeric_secret("client_secret"));
        assert!(!is_numeric_secret("token") && !is_numeric_secret("password_length") && !is_numeric_secret("port"));
    }
}
