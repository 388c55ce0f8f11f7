//! What is masked and what is not, in both directions: each case is a specification, a configuration and lines of text.

use serde_json::{Value, json};

use super::Masker;

/// Checks the masked form of each line.
fn check(schema: Option<Value>, config: &Value, lines: &[(&str, &str)]) {
    let masker = Masker::new(schema, []);
    masker.add_config("config.json", &config.to_string());
    for (line, expected) in lines {
        assert_eq!(masker.mask(line), *expected, "{line}");
    }
}

/// A specification as database connectors have it.
fn database_schema() -> Value {
    json!({
        "type": "object",
        "required": ["host", "username"],
        "properties": {
            "host": {"type": "string"},
            "port": {"type": "integer"},
            "username": {"type": "string"},
            "password": {"type": "string", "airbyte_secret": true},
            "schemas": {"type": "array", "items": {"type": "string"}},
            "region": {"type": "string", "enum": ["us-east-1", "eu-west-1"]},
            "start_date": {"type": "string", "format": "date-time"},
            "pin": {"type": "integer", "airbyte_secret": true},
            "keys": {"type": "array", "items": {"type": "string", "airbyte_secret": true}},
            "ssl_mode": {"oneOf": [
                {"properties": {"mode": {"const": "require"}}},
                {"properties": {
                    "mode": {"const": "verify-ca"},
                    "client_key": {"type": "string", "airbyte_secret": true, "multiline": true},
                }},
            ]},
            "tunnel_method": {"$ref": "#/definitions/tunnel"},
            "replication_method": {"anyOf": [
                {"properties": {"method": {"const": "Standard"}}},
                {"properties": {"method": {"const": "CDC"}, "replication_slot": {"type": "string"}}},
            ]},
            "vault": {"type": "object", "airbyte_secret": true},
            "headers": {"type": "object", "additionalProperties": {"type": "string", "airbyte_secret": true}},
            "options": {"allOf": [{"properties": {"passcode": {"airbyte_secret": true}}}, {"$ref": "#"}]},
        },
        "definitions": {"tunnel": {"properties": {
            "tunnel_method": {"type": "string", "const": "SSH_PASSWORD_AUTH"},
            "tunnel_user": {"type": "string"},
            "tunnel_user_password": {"type": "string", "airbyte_secret": true},
        }}},
    })
}

fn database_config() -> Value {
    json!({
        "host": "db-7.internal", "port": 5432, "username": "reader", "password": "p@ss w\u{f6}rd/\"1'", "pin": 4711,
        "schemas": ["public", "shop_2024"], "region": "eu-west-1", "start_date": "2024-01-01T00:00:00Z",
        "keys": ["first-of-keys", "ab"],
        "ssl_mode": {"mode": "verify-ca", "client_key": "-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEFAA\n-----END KEY-----\n"},
        "tunnel_method": {"tunnel_method": "SSH_PASSWORD_AUTH", "tunnel_user": "jump", "tunnel_user_password": "over-the-wall"},
        "replication_method": {"method": "CDC", "replication_slot": "airbyte_slot"},
        "vault": {"a": [{"b": "deep-in-vault"}]},
        "headers": {"X-Auth": "header-value"},
        "options": {"passcode": "open", "password": "nested-again"},
    })
}

#[test]
fn what_a_specification_marks_is_masked_in_every_form() {
    check(
        Some(database_schema()),
        &database_config(),
        &[
            ("login with p@ss w\u{f6}rd/\"1' failed", "login with *** failed"),
            ("quoted: 'first-of-keys' \"first-of-keys\" `first-of-keys`", "quoted: '***' \"***\" `***`"),
            ("json: {\"password\": \"p@ss w\u{f6}rd/\\\"1'\"}", "json: {\"password\": \"***\"}"),
            (r#"python json: {"password": "p@ss w\u00f6rd/\"1'"}"#, r#"python json: {"password": "***"}"#),
            (r#"java json: {"password": "p@ss w\u00F6rd\/\"1\u0027"}"#, r#"java json: {"password": "***"}"#),
            (r#"json in json: {\"password\": \"p@ss w\\u00f6rd/\\\"1'\"}"#, r#"json in json: {\"password\": \"***\"}"#),
            // Its last two quotes could be a doubled one.
            ("repr: 'p@ss w\u{f6}rd/\"1\\''", "repr: '***"),
            ("sql: 'p@ss w\u{f6}rd/\"1'''", "sql: '***'"),
            ("url: postgres://reader:p%40ss%20w%C3%B6rd%2F%221%27@db-7", "url: postgres://reader:***@db-7"),
            ("lower case: p%40ss%20w%c3%b6rd%2f%221%27", "lower case: ***"),
            ("unreserved kept: p@ss%20w%C3%B6rd/%221'", "unreserved kept: ***"),
            ("form: password=p%40ss+w%C3%B6rd%2F%221%27&x=1", "form: password=***&x=1"),
            ("twice: p%2540ss%2520w%25C3%25B6rd%252F%25221%2527", "twice: ***"),
            ("html: p@ss w\u{f6}rd/&quot;1&#39;", "html: ***"),
            ("base64: cEBzcyB3w7ZyZC8iMSc=", "base64: ***"),
            ("unpadded: cEBzcyB3w7ZyZC8iMSc", "unpadded: ***"),
            // reader:over-the-wall and its two neighbours in position
            ("Authorization: Basic cmVhZGVyOm92ZXItdGhlLXdhbGw=", "Authorization: Basic ***"),
            ("Authorization: Basic cmVhZGU6b3Zlci10aGUtd2FsbA==", "Authorization: Basic ***"),
            ("Authorization: Basic cmVhZDpvdmVyLXRoZS13YWxs", "Authorization: Basic ***"),
            ("in a URL: ?auth=cmVhZGVyOm92ZXItdGhlLXdhbGw%3D&x=1", "in a URL: ?auth=***&x=1"),
            ("pin 4711, PIN=4711; not 471", "pin ***, PIN=***; not 471"),
            ("keys first-of-keys and ab, ABC, abc, a", "keys *** and ***, ABC, abc, a"),
            (
                "the key\n-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEFAA\n-----END KEY-----\nends",
                "the key\n***ends",
            ),
            ("a line of it: MIIEvQIBADANBg", "a line of it: ***"),
            (r"escaped: -----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEFAA\n-----END KEY-----\n", r"escaped: ***"),
            (r"cut: MIIEvQIBADANBg\nkqhkiG9w0BA", r"cut: ***\nkqhkiG9w0BA"),
            ("ssh jump with over-the-wall", "ssh jump with ***"),
            ("deep-in-vault, header-value, open, nested-again", "***, ***, ***, ***"),
        ],
    );
}

#[test]
fn what_a_specification_does_not_mark_is_readable() {
    let lines = [
        "connecting to db-7.internal:5432 as reader",
        "method Standard, CDC with slot airbyte_slot, tunnel SSH_PASSWORD_AUTH as jump",
        "syncing public.orders and shop_2024.customers since 2024-01-01T00:00:00Z in eu-west-1 (verify-ca)",
        r#"given state: [{"type": "STREAM", "stream": {"stream_descriptor": {"name": "customers"}}}]"#,
        "password, secret, token: https://db-7.internal/?page=2 50% a\\b &amp; c\\n",
    ];
    check(Some(database_schema()), &database_config(), &lines.map(|line| (line, line)));
}

#[test]
fn an_unmarked_field_is_secret_only_for_certain() {
    let declared = ["note", "account_id", "api_token", "primary_key", "token_url", "auth_type", "url", "dsn", "repo"];
    let mut schema = json!({"properties": {}});
    for name in declared {
        schema["properties"][name] = json!({"type": "string"});
    }
    schema["properties"]["auth_type"]["enum"] = json!(["api_token", "oauth"]);
    let config = json!({
        "note": "s3cr3t-l00king", "account_id": "act_8f3k2j9x", "api_token": "forgotten", "primary_key": "order_key",
        "token_url": "https://auth.example.com/token", "auth_type": "api_token", "url": "mysql://ann:hunter2@db:3306/shop",
        "dsn": "host=db password='hunter3' user=ann", "repo": "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "undeclared": "x9K2mQ7vL4", "undeclared_object": {"client_secret": "of-the-client", "name": "ann"},
    });
    check(
        Some(schema),
        &config,
        &[
            ("s3cr3t-l00king act_8f3k2j9x order_key", "s3cr3t-l00king act_8f3k2j9x order_key"),
            ("https://auth.example.com/token api_token", "https://auth.example.com/token api_token"),
            ("forgotten by mysql://ann:hunter2@db:3306/shop", "*** by mysql://ann:***@db:3306/shop"),
            ("password=hunter3 ghp_16C7e42F292c6912E7710c838347Ae178B4a", "password=*** ***"),
            ("x9K2mQ7vL4 of-the-client of ann", "*** *** of ann"),
        ],
    );
}

#[test]
fn without_a_specification_names_and_entropy_decide() {
    let config = json!({
        "host": "db.internal", "port": 5432, "user": "reader", "database": "shop", "password": "wrong", "ssl": true,
        "region": "us-east-1", "method": "Standard", "start_date": "2024-01-01", "streams": ["customers", "orders_2024"],
        "credentials": {
            "auth_type": "OAuth2.0", "client_id": "my-client", "client_secret": "shh-quiet", "refresh_token": "renew-me",
            "opaque": "in-credentials",
        },
        "misc": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "code": "Tr0ub4dor&3", "PIN": 123_456, "max_tokens": 4096,
        "connection": "postgres://reader:hunter2@db.internal/shop",
        "service_account": "{\"type\": \"service_account\", \"project_id\": \"shop-prod\", \"private_key\": \"-----BEGIN PRIVATE KEY-----\\nMIIEvQ\\n-----END PRIVATE KEY-----\\n\", \"client_email\": \"bot@shop-prod.example.com\"}",
        "workspace_id": "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed", "api_keys": ["one-key", "another-key"],
        "use_password": "true", "admin": {"token": "token", "auth": "oauth2.0"}, "partition_key": "created", "short": {"password": "abc"},
    });
    check(
        None,
        &config,
        &[
            (
                "reader@db.internal:5432/shop: the password is wrong",
                "reader@db.internal:5432/shop: the password is ***",
            ),
            (
                "Standard in us-east-1 since 2024-01-01: customers, orders_2024",
                "Standard in us-east-1 since 2024-01-01: customers, orders_2024",
            ),
            ("OAuth2.0 my-client shh-quiet renew-me in-credentials", "OAuth2.0 my-client *** *** ***"),
            ("AWS wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY, Tr0ub4dor&3", "AWS ***, ***"),
            ("123456 of 4096", "*** of 4096"),
            ("postgres://reader:hunter2@db.internal/shop", "postgres://reader:***@db.internal/shop"),
            (
                "service_account of shop-prod: bot@shop-prod.example.com",
                "service_account of shop-prod: bot@shop-prod.example.com",
            ),
            ("key MIIEvQ", "key ***"),
            (
                "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed one-key another-key",
                "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed *** ***",
            ),
            ("true created abc oauth2.0", "true created abc oauth2.0"),
            ("a secret token is secret although it is a word", "a secret *** is secret although it is a word"),
        ],
    );
}

#[test]
fn states_are_readable_but_for_tokens() {
    let masker = Masker::new(None, ["x9k2m3p4q".to_owned()]);
    masker.add_document(
        "state.json",
        &json!([
            {"type": "STREAM", "stream": {
                "stream_descriptor": {"name": "s3cr3t1y", "namespace": "crm"},
                "stream_state": {
                    "updated_at": "2024-05-01T10:00:00.123456Z", "cursor": "customers", "next_page_token": "page-two",
                    "lsn": "0/16B3748", "version": 2, "of": "x9k2m3p4q", "session": "5f4dcc3b5aa765d61d8327deb882cf99",
                },
            }},
        ])
        .to_string(),
    );
    for line in [
        "s3cr3t1y of crm is COMPLETE",
        "cursor customers at 2024-05-01T10:00:00.123456Z, 0/16B3748, version 2 of x9k2m3p4q",
        r#"[{"stream": {"stream_descriptor": {"name": "s3cr3t1y", "namespace": "crm"}, "stream_state": {"version": 2}}}]"#,
    ] {
        assert_eq!(masker.mask(line), line);
    }
    assert_eq!(masker.mask("page-two 5f4dcc3b5aa765d61d8327deb882cf99"), "*** ***");
}

#[test]
fn a_renewed_configuration_adds_its_secrets_to_all_clones() {
    let schema = json!({"properties": {"refresh": {"airbyte_secret": true}}});
    let masker = Masker::new(Some(schema), []);
    let clone = masker.clone();
    masker.add_config("config.json", &json!({"refresh": "old one"}).to_string());
    masker.add_config("config.json", &json!({"refresh": "new one"}).to_string());
    assert_eq!(clone.mask("old one, new one"), "***, ***");
}

#[test]
fn secrets_that_contain_or_overlap_each_other_leave_nothing() {
    let schema = json!({"additionalProperties": {"airbyte_secret": true}});
    check(
        Some(schema),
        &json!({"a": "pass", "b": "password1", "c": "word12345", "d": "1"}),
        &[
            ("password1 pass", "*** ***"),
            ("password12345", "***"),
            ("passpass", "******"),
            ("1 of 10, v1, (1)", "*** of 10, v1, (***)"),
        ],
    );
}

#[test]
fn a_schema_that_refers_to_itself_ends() {
    let schema = json!({
        "properties": {"child": {"$ref": "#"}, "self": {"$ref": "#/properties/self"}, "token": {"airbyte_secret": true}},
        "anyOf": [{"$ref": "#"}, {"$ref": "#/nowhere"}],
    });
    check(
        Some(schema),
        &json!({"self": "x", "child": {"child": {"token": "deep"}}}),
        &[("a deep token", "a *** token")],
    );
}

#[test]
fn a_large_value_is_masked_and_leaves_room_for_others() {
    let large = "x".repeat(600 * 1024);
    let masker = Masker::default();
    masker.add_config("config.json", &json!({"a_secret": large, "password": "hunter2"}).to_string());
    assert_eq!(masker.mask("hunter2"), "***");
    assert_eq!(masker.mask(&large), "***");
}

#[test]
fn text_without_secrets_is_not_copied() {
    let masker = Masker::default();
    masker.add_config("config.json", &json!({"password": "hunter2"}).to_string());
    for text in ["nothing", r"a\nb", "50%25", ""] {
        assert!(matches!(masker.mask(text), std::borrow::Cow::Borrowed(_)), "{text}");
    }
}
